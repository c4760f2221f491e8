//! `keygate keys report`.

use super::usage::{show_use, use_value};
use super::{Failure, Session, exit};
use crate::cli::output::{self, Output};
use crate::config::values;
use crate::manage::report::{Finding, Found, KeyReport};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Duration;

/// Which keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Of this entity alone, by its code.
    #[arg(long, value_name = "CODE")]
    entity: Option<String>,
    /// Without a call for so long a key is idle.
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = values::duration)]
    idle: Duration,
}

const HEADINGS: [&str; 6] = ["FINDING", "ID", "NAME", "ENTITY", "LAST4", "WHY"];

// === impl Session ===

impl Session<'_> {
    pub(super) fn report(&self, args: &Args) -> Result<ExitCode, Failure> {
        let entity = args.entity.as_deref().map(|code| self.manage.entity(code)).transpose()?;
        let KeyReport { coverage, found } = self.manage.key_report(entity.map(|entity| entity.id), args.idle)?;
        let codes = self.codes()?;
        let code = |found: &Found| codes.get(&found.key.entity_id).cloned().unwrap_or_default();
        let rows = found.iter().map(|found| row(found, code(found))).collect();
        let values: Vec<_> = found.iter().map(|found| self.found_value(found, &code(found))).collect();
        output::list(self.output, &HEADINGS, rows, &values)?;
        if self.output == Output::Table && found.iter().any(|found| matches!(found.finding, Finding::Unknown { .. })) {
            coverage.lacks(self.now.minus(args.idle)).for_each(|lack| say!("not every call is known: {lack}"));
        }
        Ok(exit::DONE)
    }

    fn found_value(&self, found: &Found, code: &str) -> Value {
        let Found { key, finding } = found;
        let (successor, percent) = match finding {
            Finding::OldKeyInUse { successor, .. } => (Some(successor.to_string()), None),
            Finding::Unknown { percent, .. } => (None, Some(*percent)),
            Finding::NeverUsed
            | Finding::Idle { .. }
            | Finding::NoExpiry
            | Finding::AnyAddress
            | Finding::Old
            | Finding::Migration => (None, None),
        };
        json!({
            "finding": finding.as_str(),
            "id": key.id.to_string(),
            "name": key.name,
            "entity_id": key.entity_id.to_string(),
            "entity": code,
            "mode": key.mode.as_str(),
            "state": key.state(self.now).as_str(),
            "last4": key.last4,
            "created_at": key.created_at.to_string(),
            "expires_at": key.expires_at.map(|time| time.to_string()),
            "last_use": finding.last().map(use_value),
            "successor": successor,
            "coverage_percent": percent,
        })
    }
}

fn row(found: &Found, code: String) -> Vec<String> {
    let Found { key, finding } = found;
    let word = finding.as_str().replace('_', " ");
    vec![word, key.id.to_string(), key.name.clone(), code, key.last4.clone(), why(found)]
}

fn why(found: &Found) -> String {
    let made = output::show_time(Some(found.key.created_at));
    let last = found.finding.last().map(show_use);
    match &found.finding {
        Finding::NeverUsed => format!("made {made}"),
        Finding::Idle { .. } => {
            last.map_or_else(|| format!("not used; made {made}"), |last| format!("last used {last}"))
        }
        Finding::Unknown { percent, .. } => {
            let known = last.map_or_else(|| "no call is known".to_owned(), |last| format!("last known use {last}"));
            format!("{known}; coverage {percent} %")
        }
        Finding::NoExpiry => "never ends".to_owned(),
        Finding::AnyAddress => "powerful, and works from any address".to_owned(),
        Finding::Old => format!("made {made}: rotate it"),
        Finding::Migration => "holds migration scopes".to_owned(),
        Finding::OldKeyInUse { successor, .. } => {
            format!("rotated to {successor}, and used {}", last.unwrap_or_default())
        }
    }
}
