//! `keygate entities`.

use super::confirm::Wait;
use super::output::{self, Output};
use super::{Failure, actor, exit};
use crate::clock::Clock;
use crate::config::Config;
use crate::key::EntityId;
use crate::manage::{Manage, NewEntity};
use crate::store::{self, Record};
use std::process::ExitCode;

/// What to do with entities.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an entity.
    Create {
        /// Its short code inside keys: 2 to 16 characters of a-z and 0-9.
        #[arg(long)]
        code: String,
        /// The ERP's own id of this tenant; a new one unless given.
        #[arg(long, value_name = "UUID", value_parser = entity_id)]
        id: Option<EntityId>,
        /// Its name; the code unless given.
        #[arg(long, value_name = "TEXT")]
        name: Option<String>,
    },
    /// List the entities.
    List,
    /// Delete an entity, for good; every key of it ends at once.
    Delete {
        /// Its code.
        code: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

fn entity_id(text: &str) -> Result<EntityId, String> {
    EntityId::parse(text).ok_or_else(|| "not a UUID, such as 8f14e45f-ceea-467f-9d5d-6a9f1f0b1b1b".to_owned())
}

/// Runs the command.
pub fn run(command: &Command, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let store = match command {
        Command::Create { .. } => store::open(&config.store)?,
        Command::List | Command::Delete { .. } => store::open_existing(&config.store)?,
    };
    match command {
        Command::Create { .. } | Command::Delete { .. } => super::store::expect_known(store.as_ref(), config)?,
        Command::List => {}
    }
    let clock = Clock::system();
    let manage = Manage::new(store.as_ref(), &config.manage, &clock, actor());
    match command {
        Command::Create { code, id, name } => {
            let entity = manage.create_entity(NewEntity { code: code.clone(), id: *id, name: name.clone() })?;
            show(output, &[entity], false)?;
        }
        Command::List => show(output, &manage.entities()?, true)?,
        Command::Delete { code, yes, wait } => {
            let entity = manage.entity(code)?;
            let keys = manage.keys(Some(entity.id))?.len();
            let question = format!("delete entity {code} ({}) and end its {keys} keys, for good", entity.name);
            if !super::keys::confirmed(*yes, &question)? {
                return Ok(exit::usage());
            }
            let deleted = manage.delete_entity(code)?;
            return Ok(wait.tell(&manage, "deleted", &Record::Entity(deleted)));
        }
    }
    Ok(exit::DONE)
}

fn show(output: Output, entities: &[crate::key::EntityRecord], as_list: bool) -> Result<(), Failure> {
    let values: Vec<_> = entities.iter().map(output::entity_value).collect();
    if let ([value], Output::Json, false) = (values.as_slice(), output, as_list) {
        return output::line(value);
    }
    let rows = entities.iter().map(|entity| vec![entity.code.clone(), entity.id.to_string(), entity.name.clone()]);
    output::list(output, &["CODE", "ID", "NAME"], rows.collect(), &values)
}
