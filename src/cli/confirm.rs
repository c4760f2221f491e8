//! Waiting for the fleet, and what may be said afterwards (protocols I12).

use super::exit;
use crate::config::values;
use crate::manage::{Confirmation, Manage, Silent};
use crate::store::{Copies, Record};
use std::process::ExitCode;
use std::time::Duration;

/// How long a command that changes something waits for the gateways.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Wait {
    /// Do not wait for the gateways to confirm.
    #[arg(long)]
    no_wait: bool,
    /// How long to wait for them.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = values::duration)]
    timeout: Duration,
}

// === impl Wait ===

impl Wait {
    /// Waits until every gateway has acted on `written`, which has just been written, and says what is known then: `done` is
    /// the change in a word or a few.
    pub fn tell(self, manage: &Manage<'_>, done: &str, written: &Record) -> ExitCode {
        let code = self.tell_gateways(manage, done, written);
        manage.copies().iter().for_each(tell_copies);
        code
    }

    fn tell_gateways(self, manage: &Manage<'_>, done: &str, written: &Record) -> ExitCode {
        if self.no_wait {
            say!("{done}; not waited for: gateways that follow this store act on it as soon as they see it");
            return exit::DONE;
        }
        match manage.confirm(written, self.timeout) {
            Ok(confirmation) => tell(done, &confirmation),
            Err(error) => {
                say!("{done}; who has acted on it is unknown: {error}");
                exit::unconfirmed()
            }
        }
    }
}

fn tell(done: &str, confirmation: &Confirmation) -> ExitCode {
    let (confirmed, members) = (confirmation.confirmed, confirmation.members());
    if confirmation.is_settling {
        say!(
            "{done} and stored; membership settling: the store started again, was put back or lost changes, and gateways may be missing from the {members} that it lists; repeat the command in a few seconds"
        );
        return exit::unconfirmed();
    }
    if members == 0 {
        say!("{done}; no gateway is registered: held by the store alone");
        return exit::DONE;
    }
    if confirmation.is_complete() {
        let took = confirmation.took.as_secs_f64() * 1000.0;
        say!("{done} on {confirmed}/{members} gateways in {took:.1} ms");
        return exit::DONE;
    }
    say!("{done} on {confirmed}/{members} gateways; {}", unconfirmed(&confirmation.silent));
    say!("`keygate fleet forget INSTANCE` removes a gateway that is known to be dead");
    exit::unconfirmed()
}

/// What a failover would do to the change.
fn tell_copies(copies: &Copies) {
    match copies {
        Copies { replicas: 0, .. } => {
            say!("warning: the store's master has no replica: what is changed now is lost in a failover");
        }
        Copies { held: 0, replicas } => {
            say!(
                "warning: none of the store's {replicas} replicas has the change yet: a failover now would lose it; make sure of it later"
            );
        }
        Copies { held, replicas } => say!("held by {held} of {replicas} replicas of the store"),
    }
}

fn unconfirmed(silent: &[Silent]) -> String {
    let say = |one: &Silent| {
        // To the next whole second: an earlier time would promise too much.
        let until = one.until.plus(Duration::from_secs(1)).to_string();
        let second = until.split('.').next().unwrap_or(&until);
        let unconfirmed = match one.held {
            Some(fleet) => format!("is held with the keys of fleet {fleet} (see `keygate store status`)"),
            None => "unconfirmed".to_owned(),
        };
        format!("{} ({}) {unconfirmed}, may act as before until {second}Z", one.gateway, one.instance)
    };
    silent.iter().map(say).collect::<Vec<_>>().join("; ")
}
