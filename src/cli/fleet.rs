//! `keygate fleet`.

use super::output::{self, Output};
use super::{Failure, exit};
use crate::config::Config;
use crate::store::{self, Member};
use std::process::ExitCode;

/// What to do with the gateways that follow a store.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the gateways that follow the store, and how far each has come.
    List,
    /// Remove a gateway that is known to be dead, so that nobody waits for it.
    Forget {
        /// The instance, as `keygate fleet list` shows it.
        instance: String,
    },
}

/// Runs the command.
pub fn run(command: &Command, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let store = store::open_existing(&config.store)?;
    match command {
        Command::List => list(&store.fleet()?, output),
        Command::Forget { instance } if store.forget(instance)? => {
            say!("forgotten; if it lives, it joins again");
            Ok(exit::DONE)
        }
        Command::Forget { instance } => Err(format!("there is no instance '{}'", output::printable(instance)).into()),
    }
}

fn list(members: &[Member], output: Output) -> Result<ExitCode, Failure> {
    let values = members.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
    let row = |member: &Member| {
        let complete = if member.complete { "yes" } else { "no" };
        let (keys, pos) = (member.keys.to_string(), member.pos.to_string());
        let texts = [&member.gateway, &member.instance, &member.version, &member.config, &keys];
        texts.into_iter().cloned().chain([complete.to_owned(), pos]).collect()
    };
    let columns = ["GATEWAY", "INSTANCE", "VERSION", "CONFIG", "KEYS", "COMPLETE", "POSITION"];
    output::list(output, &columns, members.iter().map(row).collect(), &values)?;
    Ok(exit::DONE)
}
