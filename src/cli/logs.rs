//! `keygate logs`: what the gateway decided, read from its journal.

use super::output::{self, Output};
use super::{Failure, exit, when};
use crate::audit::query::{Filter, StatusFilter};
use crate::audit::reader::{Follow, journals};
use crate::config::Config;
use crate::store;
use serde_json::Value;
use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Which records.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this key, by its id.
    #[arg(long, value_name = "ID")]
    key: Option<String>,
    /// Of this entity, by its code; it may have been deleted.
    #[arg(long, value_name = "CODE")]
    entity: Option<String>,
    /// With this status, or of this class: 403, 4xx.
    #[arg(long, value_parser = StatusFilter::parse)]
    status: Option<StatusFilter>,
    /// Allowed or denied.
    #[arg(long, value_parser = ["allow", "deny"])]
    decision: Option<String>,
    /// With this reason, such as key_revoked.
    #[arg(long, value_name = "CODE")]
    reason: Option<String>,
    /// With this method.
    #[arg(long)]
    method: Option<String>,
    /// Whose path begins with this.
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Not older than this: a time back from now (1h) or RFC 3339.
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,
    /// At most this many, the newest.
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: usize,
    /// Go on with new records as they are written.
    #[arg(long)]
    follow: bool,
}

/// Between two looks at the journal while following.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the command.
pub fn run(args: &Args, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let filter = args.filter(config)?;
    let mut tail = Tail { dir: config.audit.dir.clone(), known: HashSet::new(), journals: Vec::new() };
    show(output, &tail.read(&filter, args.limit)?, true)?;
    if !args.follow {
        return Ok(exit::DONE);
    }
    loop {
        std::thread::sleep(LOOK);
        show(output, &tail.read(&filter, usize::MAX)?, false)?;
    }
}

// === impl Args ===

impl Args {
    fn filter(&self, config: &Config) -> Result<Filter, Failure> {
        Ok(Filter {
            key_id: self.key.as_deref().map(super::keys::key_id).transpose()?.map(|id| id.to_string()),
            entity_ids: self.entity.as_deref().map(|code| entity_ids(config, code)).transpose()?,
            status: self.status,
            decision: self.decision.clone(),
            reason: self.reason.clone(),
            method: self.method.clone(),
            path_prefix: self.path.clone(),
            since: self.since.as_deref().map(when::parse).transpose()?,
        })
    }
}

/// The entities that have this code or had it until they were deleted: what they did is asked for then more than ever.
fn entity_ids(config: &Config, code: &str) -> Result<Vec<String>, Failure> {
    let entities = store::open_existing(&config.store)?.entities()?;
    let ids: Vec<_> =
        entities.iter().filter(|entity| entity.code == code).map(|entity| entity.id.to_string()).collect();
    if ids.is_empty() { Err(format!("there is no entity '{code}', and there was none").into()) } else { Ok(ids) }
}

/// All journals of the directory, those included that appear later.
struct Tail {
    dir: PathBuf,
    known: HashSet<PathBuf>,
    journals: Vec<Follow>,
}

// === impl Tail ===

impl Tail {
    /// New records of all journals that the filter wants, by time; the newest `limit` of them. Faults are told at once.
    fn read(&mut self, filter: &Filter, limit: usize) -> Result<Vec<Value>, Failure> {
        let slots = journals(&self.dir).map_err(|error| format!("no journal in {}: {error}", self.dir.display()))?;
        for slot in slots {
            if self.known.insert(slot.clone()) {
                self.journals.push(Follow::new(slot));
            }
        }
        let mut records: Vec<Value> = Vec::new();
        for journal in &mut self.journals {
            records.extend(newest(journal, filter, limit)?);
            journal.take_faults().iter().for_each(|fault| say!("warning: {fault}"));
        }
        if self.journals.len() > 1 {
            records.sort_by(|left, right| time(left).cmp(time(right)));
        }
        Ok(records.split_off(records.len().saturating_sub(limit)))
    }
}

/// The newest `limit` records of one journal that the filter wants. No more than these are held.
fn newest(journal: &mut Follow, filter: &Filter, limit: usize) -> Result<VecDeque<Value>, Failure> {
    let mut records = VecDeque::new();
    journal.read(|line| {
        let record = serde_json::from_str(&line.text).ok().filter(|record| filter.wants(record));
        records.extend(record);
        if records.len() > limit {
            records.pop_front();
        }
    })?;
    Ok(records)
}

fn time(record: &Value) -> &str {
    record.get("ts").and_then(Value::as_str).unwrap_or_default()
}

fn show(output: Output, records: &[Value], with_headings: bool) -> Result<(), Failure> {
    match output {
        Output::Json if with_headings => output::line(Value::from(records)),
        Output::Json | Output::Ndjson => records.iter().try_for_each(output::line),
        Output::Table if with_headings => output::table(&HEADINGS, records.iter().map(row).collect()),
        // New rows of a table that was drawn already.
        Output::Table => records.iter().try_for_each(|record| output::line(output::printable(&row(record).join("  ")))),
    }
}

const HEADINGS: [&str; 8] = ["TIME", "STATUS", "DECISION", "REASON", "METHOD", "PATH", "KEY", "CLIENT"];

fn row(record: &Value) -> Vec<String> {
    let text = |member: &str| match record.get(member) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".to_owned(),
    };
    let kind = text("kind");
    if kind != "request" {
        let what = ["action", "counts", "requests_refused", "version"]
            .map(|member| record.get(member).map(ToString::to_string));
        return vec![text("ts"), kind, what.into_iter().flatten().collect::<Vec<_>>().join(" ")];
    }
    ["ts", "status", "decision", "reason", "method", "path", "key_name", "client_ip"].map(text).to_vec()
}
