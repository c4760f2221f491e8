//! `keygate keys`.

mod report;
mod usage;

use super::confirm::Wait;
use super::output::{self, Output};
use super::{Failure, actor, exit};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, values};
use crate::key::{Digest, EntityId, KeyId, KeyRecord, Mode};
use crate::manage::{Created, ImportKey, Manage, NewKey, Overlap, Revoked, UpdateKey};
use crate::net::{Networks, parse_network};
use crate::store::{self, KeyStore, Record};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;
use std::time::Duration;

/// What to do with keys.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a key. It is shown once, now, and never again.
    Create(CreateArgs),
    /// List the keys.
    List {
        /// Of this entity alone, by its code.
        #[arg(long)]
        entity: Option<String>,
    },
    /// Show a key.
    Show { id: String },
    /// Change a key's name, scopes, allowlist or tier.
    Update(UpdateArgs),
    /// Make a successor; the old key ends after the overlap.
    Rotate {
        id: String,
        /// How long the old key goes on working, such as 24h; 0 ends it now. Never longer than its own expiry.
        #[arg(long, value_name = "TIME", default_value = "24h", value_parser = overlap)]
        overlap: Duration,
        /// End the old key sooner, once it was not used for so long on any gateway, refused calls included.
        #[arg(long, value_name = "TIME", value_parser = values::duration)]
        until_quiet: Option<Duration>,
        #[command(flatten)]
        wait: Wait,
    },
    /// End a key, at once and for good.
    Revoke {
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// What a key is used for, and whether it can be deleted.
    Usage(usage::Args),
    /// Which keys deserve a second look: unused, without an end, too powerful, old, or rotated and still in use.
    Report(report::Args),
    /// Store a key that another system made, by its SHA-256 alone: nobody must change a key.
    Import {
        #[command(flatten)]
        grant: CreateArgs,
        /// The SHA-256 of the key's text, in hex.
        #[arg(long, value_name = "HEX", value_parser = digest)]
        sha256: Digest,
    },
}

// === impl Command ===

impl Command {
    const fn writes(&self) -> bool {
        match self {
            Self::Create(_) | Self::Update(_) | Self::Rotate { .. } | Self::Revoke { .. } | Self::Import { .. } => true,
            Self::List { .. } | Self::Show { .. } | Self::Usage(_) | Self::Report(_) => false,
        }
    }
}

/// What a new key is.
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// The entity's code.
    #[arg(long, value_name = "CODE")]
    entity: String,
    /// What the key is for, for people.
    #[arg(long, value_name = "TEXT")]
    name: String,
    /// Sandbox data or real data.
    #[arg(long, value_name = "test|live", value_parser = mode)]
    mode: Mode,
    /// A scope, such as orders:read; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// The scopes of a preset in gateway.toml, instead of --scope.
    #[arg(long, value_name = "NAME", conflicts_with = "scopes")]
    preset: Option<String>,
    /// An address or CIDR range the key works from; may be repeated. Without it, from anywhere.
    #[arg(long = "allow", value_name = "CIDR", value_parser = parse_network)]
    allow: Vec<IpNet>,
    /// When it ends: a time from now (90d) or a date (2027-01-31, to the end of that day, UTC).
    #[arg(long, value_name = "WHEN")]
    expires: Option<String>,
    /// For the preset `migration`: no expiry is wanted.
    #[arg(long, conflicts_with = "expires")]
    no_expiry: bool,
    /// Its rate-limit tier; by default test for test keys and standard for live keys.
    #[arg(long)]
    tier: Option<String>,
    /// You know that an elevated scope can do lasting harm.
    #[arg(long)]
    acknowledge_elevated: bool,
    #[command(flatten)]
    wait: Wait,
}

/// What to change.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    id: String,
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
    /// Replaces all scopes; may be repeated.
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
    /// Replaces the allowlist; may be repeated.
    #[arg(long = "allow", value_name = "CIDR", value_parser = parse_network, conflicts_with = "allow_any")]
    allow: Vec<IpNet>,
    /// Empties the allowlist: the key works from anywhere.
    #[arg(long)]
    allow_any: bool,
    #[arg(long)]
    tier: Option<String>,
    /// You know that an elevated scope can do lasting harm.
    #[arg(long)]
    acknowledge_elevated: bool,
    #[command(flatten)]
    wait: Wait,
}

/// Read here and not by the argument parser, whose error would show a key that was given by mistake.
pub fn key_id(text: &str) -> Result<KeyId, Failure> {
    let help = "not a key's id: key_ and 26 characters, as `keygate keys list` shows them";
    KeyId::parse(text).ok_or_else(|| help.into())
}

fn mode(text: &str) -> Result<Mode, String> {
    Mode::parse(text).ok_or_else(|| "a key's mode is test or live".to_owned())
}

fn digest(text: &str) -> Result<Digest, String> {
    Digest::parse(text).ok_or_else(|| "not a SHA-256: 64 hex digits".to_owned())
}

fn overlap(text: &str) -> Result<Duration, String> {
    if text == "0" { Ok(Duration::ZERO) } else { values::duration(text) }
}

/// A time from now, or the end of a day.
fn expiry(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(date) = text.parse::<jiff::civil::Date>() {
        return Timestamp::parse(&format!("{}T00:00:00Z", date.tomorrow()?)).ok_or_else(|| "not a date".into());
    }
    Ok(now.plus(values::duration(text)?))
}

/// The commands at work: the use cases, and how their results are shown.
struct Session<'a> {
    manage: Manage<'a>,
    store: &'a dyn KeyStore,
    now: Timestamp,
    output: Output,
}

/// Runs the command.
pub fn run(command: &Command, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let store = store::open_existing(&config.store)?;
    if command.writes() {
        super::store::expect_known(store.as_ref(), config)?;
    }
    let clock = Clock::system();
    let manage = Manage::new(store.as_ref(), &config.manage, &clock, actor());
    let session = Session { manage, store: store.as_ref(), now: clock.now(), output };
    match command {
        Command::Create(args) => session.create(args),
        Command::List { entity } => session.list(entity.as_deref()),
        Command::Show { id } => session.show(&session.manage.key(key_id(id)?)?),
        Command::Update(args) => session.update(args),
        Command::Rotate { id, overlap, until_quiet, wait } => {
            session.rotate(key_id(id)?, Overlap { time: *overlap, until_quiet: *until_quiet }, *wait)
        }
        Command::Revoke { id, yes, wait } => session.revoke(key_id(id)?, *yes, *wait),
        Command::Usage(args) => session.usage(args, config),
        Command::Report(args) => session.report(args),
        Command::Import { grant, sha256 } => session.import(grant, *sha256),
    }
}

// === impl Session ===

impl Session<'_> {
    fn create(&self, args: &CreateArgs) -> Result<ExitCode, Failure> {
        let created = self.manage.create_key(args.new_key(self.now)?)?;
        self.show_created(&created, "created", &created.record, args.wait)
    }

    fn import(&self, args: &CreateArgs, digest: Digest) -> Result<ExitCode, Failure> {
        let (key, warnings) = self.manage.import_key(&ImportKey { new: args.new_key(self.now)?, digest })?;
        warn(&warnings);
        let code = self.confirmed("imported", &key, args.wait);
        self.show(&key)?;
        Ok(code)
    }

    /// Waits for the gateways, and says which have acted on the change that made `key` what it is.
    fn confirmed(&self, done: &str, key: &KeyRecord, wait: Wait) -> ExitCode {
        wait.tell(&self.manage, done, &Record::Key(key.clone()))
    }

    fn list(&self, entity: Option<&str>) -> Result<ExitCode, Failure> {
        let entity = entity.map(|code| self.manage.entity(code)).transpose()?;
        let keys = self.manage.keys(entity.map(|entity| entity.id))?;
        let codes = self.codes()?;
        let code = |key: &KeyRecord| codes.get(&key.entity_id).cloned().unwrap_or_default();
        let values: Vec<_> = keys.iter().map(|key| output::key_value(key, &code(key), self.now)).collect();
        let rows = keys.iter().map(|key| self.row(key, code(key))).collect();
        output::list(
            self.output,
            &["ID", "NAME", "ENTITY", "MODE", "STATE", "LAST4", "EXPIRES", "SCOPES"],
            rows,
            &values,
        )?;
        Ok(exit::DONE)
    }

    fn row(&self, key: &KeyRecord, code: String) -> Vec<String> {
        vec![
            key.id.to_string(),
            key.name.clone(),
            code,
            key.mode.to_string(),
            key.state(self.now).as_str().to_owned(),
            key.last4.clone(),
            end_of(key),
            key.scopes.to_string(),
        ]
    }

    fn show(&self, key: &KeyRecord) -> Result<ExitCode, Failure> {
        let value = self.value(key)?;
        if self.output == Output::Table {
            output::table(&["FIELD", "VALUE"], fields(&value))?;
        } else {
            output::line(value)?;
        }
        Ok(exit::DONE)
    }

    fn update(&self, args: &UpdateArgs) -> Result<ExitCode, Failure> {
        let allowlist = (args.allow_any || !args.allow.is_empty()).then(|| Networks::new(args.allow.clone()));
        let update = UpdateKey {
            name: args.name.clone(),
            scopes: (!args.scopes.is_empty()).then(|| args.scopes.clone()),
            allowlist,
            tier: args.tier.clone(),
            acknowledge_elevated: args.acknowledge_elevated,
        };
        let (key, warnings) = self.manage.update_key(key_id(&args.id)?, &update)?;
        warn(&warnings);
        let code = self.confirmed("updated", &key, args.wait);
        self.show(&key)?;
        Ok(code)
    }

    fn rotate(&self, id: KeyId, overlap: Overlap, wait: Wait) -> Result<ExitCode, Failure> {
        let (created, old) = self.manage.rotate_key(id, overlap)?;
        if overlap.until_quiet.is_some_and(|quiet| quiet >= overlap.time) {
            say!("warning: the overlap ends before the key can have been quiet for so long; give a longer --overlap");
        }
        let end = if overlap.time.is_zero() { "has ended".to_owned() } else { format!("works until {}", end_of(&old)) };
        self.show_created(&created, &format!("rotated: {id} {end}, its successor is"), &old, wait)
    }

    fn revoke(&self, id: KeyId, yes: bool, wait: Wait) -> Result<ExitCode, Failure> {
        let key = self.manage.key(id)?;
        let code = self.codes()?.remove(&key.entity_id).unwrap_or_default();
        let question = format!("revoke {id} '{}' of {code}, {}, ending in {}, for good", key.name, key.mode, key.last4);
        if key.revoked_at.is_none() && !confirmed(yes, &question)? {
            return Ok(exit::usage());
        }
        let (done, key) = match self.manage.revoke_key(id)? {
            Revoked::Now(key) => ("revoked".to_owned(), key),
            Revoked::Before(key) => {
                (format!("{id} had been revoked at {} already; revoked", output::show_time(key.revoked_at)), key)
            }
        };
        let code = self.confirmed(&done, &key, wait);
        if self.output != Output::Table {
            output::line(self.value(&key)?)?;
        }
        Ok(code)
    }

    /// Shows a new key once `last`, what was written last, is confirmed: alone on stdout for a script, with words around it for a person.
    fn show_created(&self, created: &Created, word: &str, last: &KeyRecord, wait: Wait) -> Result<ExitCode, Failure> {
        warn(&created.warnings);
        let text = created.text.expose();
        let (id, name) = (created.record.id, output::printable(&created.record.name));
        let code = self.confirmed(&format!("{word} {id} '{name}'"), last, wait);
        if self.output != Output::Table {
            let mut value = self.value(&created.record)?;
            if let Value::Object(object) = &mut value {
                object.insert("key".to_owned(), Value::from(text.as_str()));
            }
            output::line(value)?;
            return Ok(code);
        }
        if std::io::stdout().is_terminal() {
            say!("this is the only time the key is shown:");
        }
        output::line(text)?;
        Ok(code)
    }

    fn value(&self, key: &KeyRecord) -> Result<Value, Failure> {
        let code = self.codes()?.remove(&key.entity_id).unwrap_or_default();
        Ok(output::key_value(key, &code, self.now))
    }

    fn codes(&self) -> Result<HashMap<EntityId, String>, Failure> {
        Ok(self.store.entities()?.into_iter().map(|entity| (entity.id, entity.code)).collect())
    }
}

// === impl CreateArgs ===

impl CreateArgs {
    fn new_key(&self, now: Timestamp) -> Result<NewKey, Failure> {
        Ok(NewKey {
            entity: self.entity.clone(),
            name: self.name.clone(),
            mode: self.mode,
            scopes: self.scopes.clone(),
            preset: self.preset.clone(),
            allowlist: Networks::new(self.allow.clone()),
            expires_at: self.expires.as_deref().map(|text| expiry(text, now)).transpose()?,
            tier: self.tier.clone(),
            acknowledge_elevated: self.acknowledge_elevated,
            waive_expiry: self.no_expiry,
        })
    }
}

/// When a key ends, for people.
fn end_of(key: &KeyRecord) -> String {
    let end = output::show_time(key.expires_at);
    let quiet = key.until_quiet.filter(|_| key.revoked_at.is_none());
    quiet.map_or_else(|| end.clone(), |quiet| format!("{end}, or once quiet for {}", values::show_duration(quiet)))
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| say!("warning: {warning}"));
}

/// The members of a JSON object as rows.
fn fields(value: &Value) -> Vec<Vec<String>> {
    let show = |value: &Value| match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) if list.is_empty() => "any".to_owned(),
        Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    };
    let members = value.as_object().into_iter().flatten();
    members.map(|(name, value)| vec![name.clone(), show(value)]).collect()
}

/// Asks a person on the terminal. Where there is none, only `--yes` confirms.
pub fn confirmed(yes: bool, question: &str) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() {
        say!("error: not confirmed; to {question}, add --yes");
        return Ok(false);
    }
    eprint!("{question}? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    let confirmed = matches!(answer.trim(), "y" | "Y" | "yes");
    if !confirmed {
        say!("nothing was changed");
    }
    Ok(confirmed)
}
