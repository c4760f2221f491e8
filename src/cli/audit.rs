//! `keygate audit`: proves that the journal is whole, and hands it over.

use super::output::{self, Output};
use super::{Failure, exit, when, with_config};
use crate::audit::verify::{self, Event, Finding, Head, Summary};
use crate::audit::{reader, segment};
use crate::clock::Timestamp;
use crate::config::Config;
use crate::store::{self, Accounts, JournalAccount};
use serde_json::{Value, json};
use std::io::{self, BufWriter, Stdout, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What is to be done with the journal.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Prove that the journal is whole, or name what is not.
    ///
    /// Exit code 0 if it is whole, 1 if not. With DIR it works on a copy, without a configuration file.
    Verify(VerifyArgs),
    /// Write records as they stand in the journal, one a line, seals included.
    ///
    /// Exit code 1 if anything was damaged or missing in the period.
    Export(ExportArgs),
}

/// Which journals, and what is known of them.
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// An audit directory, or one of the directories in it; the configured one if left out.
    dir: Option<PathBuf>,
    /// How far a journal is known to have come: its id, a number, and the hash if that record is a seal. Can be repeated.
    #[arg(long = "head", value_name = "JOURNAL=SEQ[:HASH]", value_parser = Head::parse)]
    heads: Vec<Head>,
}

/// Which records.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Not older than this: a time back from now (24h) or RFC 3339.
    #[arg(long, value_name = "WHEN")]
    since: String,
    /// Not newer than this.
    #[arg(long, value_name = "WHEN")]
    until: Option<String>,
    /// Of this journal alone, such as edge-1/0.
    #[arg(long, value_name = "ID")]
    journal: Option<String>,
}

/// Faults of one journal that are listed as data; the others are counted, and told as words.
const FAULTS_MAX: usize = 1000;

/// Runs a command, with the configuration file where it needs one.
pub fn run(command: &Command, config: &Path, output: Output) -> ExitCode {
    match command {
        Command::Verify(VerifyArgs { dir: Some(dir), heads }) => {
            verify(dir, heads, &[], output).unwrap_or_else(|failure| super::report(failure.as_ref()))
        }
        Command::Verify(VerifyArgs { dir: None, heads }) => with_config(config, |config| {
            check_is_dir(&config.audit.dir)?;
            verify(&config.audit.dir, heads, &fleet_heads(config), output)
        }),
        Command::Export(args) => with_config(config, |config| export(args, config)),
    }
}

/// # Errors
/// What to do, where no gateway has written a journal yet, or not there.
pub fn check_is_dir(dir: &Path) -> Result<(), Failure> {
    let none =
        || format!("there is no journal in {}; `keygate serve` writes it, in audit.dir of gateway.toml", dir.display());
    if dir.is_dir() { Ok(()) } else { Err(none().into()) }
}

/// What the gateways have told the store of their journals.
fn fleet_heads(config: &Config) -> Vec<Head> {
    let told = store::open_existing(&config.store).and_then(|store| store.accounts());
    let accounts = told.unwrap_or_else(|error| {
        say!("note: the journals are not compared with what the store knows of them: {error}");
        Accounts::default()
    });
    accounts.journals.into_iter().flat_map(heads_of).collect()
}

fn heads_of(account: JournalAccount) -> Vec<Head> {
    let JournalAccount { journal, seq, seal, .. } = account;
    let seal = seal.and_then(|seal| Head::parse(&format!("{journal}={}:{}", seal.seq, seal.hash)).ok());
    seal.into_iter().chain([Head { journal, seq, hash: None }]).filter(|head| head.seq > 0).collect()
}

/// `fleet`: heads of all gateways' journals, also of those on other machines.
fn verify(dir: &Path, heads: &[Head], fleet: &[Head], output: Output) -> Result<ExitCode, Failure> {
    let known = [heads, fleet].concat();
    let slots = verify::slots(dir).map_err(|error| format!("cannot verify {}: {error}", dir.display()))?;
    let (mut summaries, mut values) = (Vec::new(), Vec::new());
    for slot in &slots {
        let mut faults = Vec::new();
        let summary = verify::verify(slot, &known, None, &mut |event| {
            match event {
                Event::Record { .. } => {}
                Event::Fault(finding) => tell(&mut faults, finding),
            }
            Ok(())
        })?;
        let name = name(&summary);
        summary.notes().iter().for_each(|note| say!("note: {name}: {note}"));
        values.push(value(&summary, &faults));
        summaries.push(summary);
    }
    let of_gateway_here = |head: &&Head| {
        summaries.iter().flat_map(|summary| &summary.names).any(|name| gateway(name) == gateway(&head.journal))
    };
    let expected: Vec<Head> = heads.iter().chain(fleet.iter().filter(of_gateway_here)).cloned().collect();
    let absent = verify::absent(&expected, &summaries);
    for finding in &absent {
        let mut faults = Vec::new();
        tell(&mut faults, finding);
        values.push(json!({ "journal": null, "faults": 1, "findings": faults }));
    }
    let rows = summaries.iter().map(row).collect();
    output::list(output, &["JOURNAL", "FIRST", "LAST", "RECORDS", "SEGMENTS", "SEALED", "FAULTS"], rows, &values)?;
    let is_whole = absent.is_empty() && summaries.iter().all(|summary| summary.faults == 0);
    Ok(if is_whole { exit::DONE } else { exit::FAILED })
}

/// Tells a fault as words, and keeps it as data.
fn tell(faults: &mut Vec<Value>, finding: &Finding) {
    say!("fault: {finding}");
    if faults.len() < FAULTS_MAX {
        faults.push(finding.to_json());
    }
}

/// The gateway of a journal.
fn gateway(journal: &str) -> &str {
    journal.rsplit_once('/').map_or(journal, |(gateway, _)| gateway)
}

fn value(summary: &Summary, faults: &[Value]) -> Value {
    json!({
        "journal": summary.journal(),
        "dir": summary.dir.display().to_string(),
        "first": summary.first,
        "last": summary.last,
        "records": summary.records,
        "segments": summary.segments,
        "sealed_through": summary.sealed_through,
        "faults": summary.faults,
        "findings": faults,
        "notes": summary.notes(),
    })
}

fn name(summary: &Summary) -> String {
    summary.journal().map_or_else(|| summary.dir.display().to_string(), str::to_owned)
}

fn row(summary: &Summary) -> Vec<String> {
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    vec![
        name(summary),
        number(summary.first),
        number(summary.last),
        summary.records.to_string(),
        summary.segments.to_string(),
        number(summary.sealed_through),
        summary.faults.to_string(),
    ]
}

/// The records of a period, and the faults between them.
struct Export {
    since: Timestamp,
    until: Timestamp,
    journal: Option<String>,
    /// The time of the last record, and the faults after it.
    before: Option<Timestamp>,
    pending: Vec<String>,
    faults: usize,
    out: BufWriter<Stdout>,
}

fn export(args: &ExportArgs, config: &Config) -> Result<ExitCode, Failure> {
    let mut export = Export {
        since: when::parse(&args.since)?,
        until: args.until.as_deref().map_or(Ok(Timestamp::from_micros(i64::MAX)), when::parse)?,
        journal: args.journal.clone(),
        before: None,
        pending: Vec::new(),
        faults: 0,
        out: BufWriter::new(std::io::stdout()),
    };
    let dir = &config.audit.dir;
    check_is_dir(dir)?;
    let mut slots = reader::journals(dir).map_err(|error| format!("no journal in {}: {error}", dir.display()))?;
    slots.retain(|slot| export.wants(slot));
    for slot in &slots {
        verify::verify(slot, &[], Some(export.since), &mut |event| export.take(&event))?;
        export.meet(None);
        export.before = None;
    }
    export.out.flush()?;
    Ok(if export.faults == 0 { exit::DONE } else { exit::FAILED })
}

// === impl Export ===

impl Export {
    /// Whether the slot can hold what is asked for: a journal's id ends with its slot's number.
    fn wants(&self, slot: &Path) -> bool {
        let number = self.journal.as_ref().and_then(|journal| journal.rsplit('/').next());
        number.is_none_or(|number| slot.ends_with(number))
    }

    fn take(&mut self, event: &Event<'_>) -> io::Result<()> {
        match event {
            Event::Fault(finding) => self.pending.push(finding.to_string()),
            Event::Record { line, .. } => {
                let time = segment::time_of(line.as_bytes());
                self.meet(time);
                self.before = time.or(self.before);
                let of_journal = |id: &String| segment::journal_of(line.as_bytes()) == Some(id);
                let is_wanted = time.is_some_and(|time| (self.since..=self.until).contains(&time));
                if is_wanted && self.journal.as_ref().is_none_or(of_journal) {
                    self.out.write_all(line.as_bytes())?;
                }
            }
        }
        Ok(())
    }

    /// The next record is of this time: tells the faults before it if the period reaches into what lies between the two.
    fn meet(&mut self, after: Option<Timestamp>) {
        let is_before_the_end = self.before.is_none_or(|before| before <= self.until);
        let is_after_the_beginning = after.is_none_or(|after| after >= self.since);
        for fault in self.pending.drain(..).filter(|_| is_before_the_end && is_after_the_beginning) {
            self.faults += 1;
            say!("warning: {fault}");
        }
    }
}
