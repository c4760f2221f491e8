//! `keygate fleet`.

use super::output::{self, Output};
use super::{Failure, exit};
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::manage::reporter;
use crate::store::{self, Fleet, KeyStore, Member};
use std::process::ExitCode;
use std::time::Duration;

/// What to do with the gateways that follow a store.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the gateways that follow the store, and how far each has come.
    List,
    /// Remove a gateway that is known to be dead, with no successor running, so that nobody waits for it.
    Forget {
        /// The instance, as `keygate fleet list` shows it; or a journal that will never be reported, as `keygate keys usage` names it.
        instance: String,
    },
}

/// Runs the command.
pub fn run(command: &Command, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let store = store::open_existing(&config.store)?;
    match command {
        Command::List => list(store.as_ref(), output),
        Command::Forget { instance } => forget(store.as_ref(), instance),
    }
}

fn forget(store: &dyn KeyStore, name: &str) -> Result<ExitCode, Failure> {
    let members = store.fleet()?.members;
    if store.forget(name)? {
        say!("forgotten; if it lives, it joins again");
        let gateway = members.iter().find(|member| member.instance == name).map(|member| member.gateway.as_str());
        tell_open_journals(store, gateway)?;
        return Ok(exit::DONE);
    }
    if reporter::abandon(store, name, Clock::system().now())? {
        say!("given up; what it recorded and did not report stays unknown");
        return Ok(exit::DONE);
    }
    Err(format!("there is no instance and no open journal '{}'", output::printable(name)).into())
}

/// What else is waited for of a gateway.
fn tell_open_journals(store: &dyn KeyStore, gateway: Option<&str>) -> Result<(), Failure> {
    let journals = store.accounts()?.journals;
    for journal in journals.iter().filter(|journal| !journal.is_closed() && Some(journal.gateway()) == gateway) {
        let name = output::printable(&journal.journal);
        say!(
            "its journal {name} is not reported to its end; if nothing more will come of it: keygate fleet forget {name}"
        );
    }
    Ok(())
}

fn list(store: &dyn KeyStore, output: Output) -> Result<ExitCode, Failure> {
    let Fleet { members, settles_in } = store.fleet()?;
    let head = store.changes()?.head()?.seq;
    let rows = members.iter().map(|member| row(member, head)).collect();
    let values = members.iter().map(|member| value(member, head)).collect::<Result<Vec<_>, _>>()?;
    let columns =
        ["GATEWAY", "INSTANCE", "VERSION", "CONFIG", "KEYS", "COMPLETE", "POSITION", "BEHIND", "MAY SERVE UNTIL"];
    output::list(output, &columns, rows, &values)?;
    if members.iter().any(|member| member.held.is_some()) {
        say!("a gateway is held: this is not the store that it followed; see `keygate store status`");
    }
    if !settles_in.is_zero() {
        say!(
            "the store started again, was put back or lost changes not long ago: gateways may be missing for the next {} s",
            settles_in.as_secs().max(1)
        );
    }
    Ok(exit::DONE)
}

fn row(member: &Member, head: u64) -> Vec<String> {
    let complete = match (member.held, member.complete) {
        (Some(_), _) => "held",
        (None, true) => "yes",
        (None, false) => "no",
    };
    let until = may_serve_until(member).map_or_else(|| "-".to_owned(), |until| until.to_string());
    let texts = [&member.gateway, &member.instance, &member.version, &member.config].map(String::clone);
    let numbers =
        [member.keys.to_string(), complete.to_owned(), member.pos.to_string(), behind(member, head).to_string()];
    texts.into_iter().chain(numbers).chain([until]).collect()
}

fn value(member: &Member, head: u64) -> serde_json::Result<serde_json::Value> {
    let mut value = serde_json::to_value(member)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("behind".to_owned(), behind(member, head).into());
        fields.insert("may_serve_until".to_owned(), may_serve_until(member).map(|until| until.to_string()).into());
    }
    Ok(value)
}

/// How many entries of the log it has not applied.
const fn behind(member: &Member, head: u64) -> u64 {
    head.saturating_sub(member.pos)
}

/// Until when it may serve if it hears nothing more, by its own clock.
fn may_serve_until(member: &Member) -> Option<Timestamp> {
    let max_stale = Duration::from_millis(member.max_stale_ms);
    (member.caught_up_at > 0).then(|| Timestamp::from_micros(member.caught_up_at).plus(max_stale))
}
