//! `keygate store`: when the key store is not the one that the gateways followed (protocols I4).

use super::output::Output;
use super::{Failure, actor, exit};
use crate::auth::snapshot::{Kept, Name, Snapshot};
use crate::clock::Clock;
use crate::config::Config;
use crate::key::{EntityRecord, KeyRecord};
use crate::store::{
    self, Action, FleetId, Held, KeyStore, Member, Mutation, OperationId, Position, Record, StoreError, Write,
};
use std::collections::HashMap;
use std::process::ExitCode;

/// Records written in one step.
const STEP: usize = 100;
/// Records read at a time.
const PAGE: usize = 1000;
/// How many of the records that stand in the way are named.
const NAMED_MAX: usize = 10;

/// What to do about the key store.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Say whose store it is, who follows it, who does not, and what to do.
    Status,
    /// Begin a new fleet in an empty store. The first gateway or the first key does so too, unless it knows of another fleet.
    Init,
    /// Have the gateways that are held take the store as it is, in place of the keys that they know. What was revoked stays so. To be run where the one runs that knows most.
    Adopt {
        /// Do it, not only say what it would change.
        #[arg(long)]
        yes: bool,
    },
    /// Fill an empty store with what the gateway of this configuration has on its disk. To be run where the one runs that knows most.
    Reseed {
        /// Do it, not only say what it would change.
        #[arg(long)]
        yes: bool,
    },
}

/// Runs the command.
pub fn run(command: &Command, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let store = store::open_existing(&config.store)?;
    let store = store.as_ref();
    match command {
        Command::Status => status(store, config, output),
        Command::Init => init(store, config),
        Command::Adopt { yes } => adopt(store, config, *yes),
        Command::Reseed { yes } => reseed(store, config, *yes),
    }
}

// === status ===

fn status(store: &dyn KeyStore, config: &Config, output: Output) -> Result<ExitCode, Failure> {
    let (fleet, head, keys) = (store.fleet_id()?, store.changes()?.head()?, store.count()?);
    let members = store.fleet()?.members;
    let rows: Vec<_> = members.iter().map(|member| row(member, fleet)).collect();
    let whose = fleet.map_or_else(|| "no fleet was begun in it".to_owned(), |fleet| format!("fleet {fleet}"));
    say!("the store: {whose}; {keys} keys; its latest change is {}", head.seq);
    match known(config)? {
        Some(kept) => say!("on this gateway's disk: {}", disk(store, fleet, &kept)?),
        None => say!("nothing is on this gateway's disk"),
    }
    let values: Vec<_> = members.iter().map(|member| value(member, fleet)).collect();
    super::output::list(output, &["GATEWAY", "INSTANCE", "STATE", "KEYS", "POSITION"], rows, &values)?;
    if members.iter().any(|member| member.held.is_some()) {
        say!(
            "a gateway that is held serves what it knows until its max_stale, and takes nothing from this store. Put the right store back; or, if this one counts, `keygate store adopt`; or fill an empty one with `keygate store reseed`"
        );
        return Ok(exit::FAILED);
    }
    Ok(exit::DONE)
}

fn disk(store: &dyn KeyStore, fleet: Option<FleetId>, kept: &Kept) -> Result<String, StoreError> {
    let Kept { position, lineage, records } = kept;
    let whose = lineage.fleet.map_or_else(|| "no fleet".to_owned(), |fleet| format!("fleet {fleet}"));
    let stands = if lineage.fleet != fleet {
        "another fleet than the store's, in which commands beside it change nothing: put store.url right, or run them where no gateway of another fleet has its snapshot"
    } else if store.holds(*position)? {
        "the store's history"
    } else {
        "the store has lost changes since then, or went another way"
    };
    Ok(format!("{whose}; {} records up to change {}: {stands}", records.len(), position.seq))
}

/// What a member does with the store, in a word.
fn state(member: &Member, fleet: Option<FleetId>) -> &'static str {
    match member.held {
        Some(held) if fleet.is_none_or(|fleet| fleet != held.fleet) => "held: another fleet",
        Some(_) => "held: nothing in common",
        None if member.pos == 0 => "loading",
        None => "following",
    }
}

fn row(member: &Member, fleet: Option<FleetId>) -> Vec<String> {
    let position = member.held.map_or(member.pos, |held| held.position.seq);
    let words = [&member.gateway, &member.instance].map(String::clone);
    let numbers = [state(member, fleet).to_owned(), member.keys.to_string(), position.to_string()];
    words.into_iter().chain(numbers).collect()
}

fn value(member: &Member, fleet: Option<FleetId>) -> serde_json::Value {
    serde_json::json!({
        "gateway": member.gateway,
        "instance": member.instance,
        "state": state(member, fleet),
        "keys": member.keys,
        "position": member.held.map_or(member.pos, |held| held.position.seq),
        "fleet": member.held.map(|held| held.fleet.to_string()),
    })
}

// === init ===

fn init(store: &dyn KeyStore, config: &Config) -> Result<ExitCode, Failure> {
    if let Some(fleet) = store.fleet_id()? {
        return Err(format!("the store is fleet {fleet}'s already; nothing was changed").into());
    }
    if let Some(fleet) = known(config)?.and_then(|kept| kept.lineage.fleet) {
        return Err(format!(
            "the gateway of this configuration knows the keys of fleet {fleet}: put its store back, or fill this one with `keygate store reseed`; to begin anew, stop the gateways and remove {}",
            config.snapshot.display()
        )
        .into());
    }
    let fleet = store.begin_fleet(FleetId::random()?)?;
    say!("begun: fleet {fleet}");
    Ok(exit::DONE)
}

// === adopt ===

fn adopt(store: &dyn KeyStore, config: &Config, is_meant: bool) -> Result<ExitCode, Failure> {
    let Some(fleet) = store.fleet_id()? else {
        return Err("there is nothing to adopt: no fleet was begun in this store; fill it with `keygate store reseed`, or begin one with `keygate store init`".into());
    };
    let members = store.fleet()?.members;
    if members.iter().all(|member| member.held.is_none()) {
        say!("no gateway is held; nothing was changed");
        return Ok(exit::DONE);
    }
    let kept = expect_kept(config)?;
    let held = held(&members, &kept)?;
    if held.is_empty() {
        return Err("the gateways that are held are of another fleet than this gateway's disk; run this where one of them runs; nothing was changed".into());
    }
    let mut revived = Vec::new();
    for record in kept.records.iter().filter(|record| record.is_ended()) {
        let there = stored(store, record)?;
        revived.extend(there.filter(|there| !there.is_ended()));
    }
    if !revived.is_empty() {
        let advice = "revoke or delete them in the store first; nothing was changed";
        return Err(
            format!("in the store these are in force again, which had ended: {}; {advice}", names(&revived)).into()
        );
    }
    let keys = store.count()?;
    for (member, held) in &held {
        say!(
            "{} {}: forgets its {} keys of fleet {} up to change {}, all but what was revoked, and takes the {keys} keys of fleet {fleet}",
            member.gateway,
            member.instance,
            member.keys,
            held.fleet,
            held.position.seq
        );
    }
    if !is_meant {
        say!("nothing was changed; to do it: keygate store adopt --yes");
        return Ok(exit::DONE);
    }
    store.adopt(&held.into_iter().map(|(_, held)| held).collect::<Vec<_>>())?;
    say!("done; the gateways take it up within a second: see `keygate store status`");
    Ok(exit::DONE)
}

// === reseed ===

fn reseed(store: &dyn KeyStore, config: &Config, is_meant: bool) -> Result<ExitCode, Failure> {
    let kept = expect_kept(config)?;
    let Some(fleet) = kept.lineage.fleet else {
        return Err("the snapshot does not say of which fleet it is; nothing was changed".into());
    };
    if let Some(other) = store.fleet_id()?.filter(|there| *there != fleet) {
        return Err(format!("the store is fleet {other}'s, the snapshot fleet {fleet}'s; nothing was changed").into());
    }
    let members = store.fleet()?.members;
    let held = held(&members, &kept)?;
    let missing = missing(store, &kept.records)?;
    say!(
        "{} of the {} records of fleet {fleet} up to change {} are written into the store; {} gateways that are held take it up then",
        missing.len(),
        kept.records.len(),
        kept.position.seq,
        held.len()
    );
    if !is_meant {
        say!("nothing was changed; to do it: keygate store reseed --yes");
        return Ok(exit::DONE);
    }
    store.begin_fleet(fleet)?;
    store.expect_fleet(fleet);
    store.note_fork()?;
    fill(store, missing)?;
    store.adopt(&held.into_iter().map(|(_, held)| held).collect::<Vec<_>>())?;
    say!("done: {} keys; see `keygate store status`", store.count()?);
    Ok(exit::DONE)
}

/// The records that the store lacks. It must hold nothing else than the others: what was written into it since would have to be
/// judged one by one.
fn missing(store: &dyn KeyStore, records: &[Record]) -> Result<Vec<Record>, Failure> {
    let mut missing: HashMap<_, _> = records.iter().map(|record| (Name::of(record), record)).collect();
    let (mut changes, mut after, mut others) = (store.changes()?, 0, Vec::new());
    loop {
        let page = changes.page(after, PAGE)?.records;
        let Some(last) = page.last() else { break };
        after = last.version();
        for record in page {
            let is_known = missing.remove(&Name::of(&record)).is_some_and(|known| is_same(known, &record));
            others.extend((!is_known).then_some(record));
        }
    }
    if !others.is_empty() {
        return Err(format!(
            "the store is not empty, and holds other things than the snapshot: {}; nothing was changed. If it counts, `keygate store adopt`",
            names(&others)
        )
        .into());
    }
    let mut missing: Vec<_> = missing.into_values().cloned().collect();
    missing.sort_by_key(Record::version);
    Ok(missing)
}

/// Whether they say the same, whatever their versions. An entity whose deletion was not written yet counts.
fn is_same(known: &Record, there: &Record) -> bool {
    match (known, there) {
        (Record::Key(known), Record::Key(there)) => KeyRecord { version: known.version, ..there.clone() } == *known,
        (Record::Entity(known), Record::Entity(there)) => {
            EntityRecord { version: known.version, ..there.clone() } == *known
        }
        (Record::Key(_), Record::Entity(_)) | (Record::Entity(_), Record::Key(_)) => false,
    }
}

/// Entities first, keys next, and last what ends entities, whose keys could not be written after that.
fn fill(store: &dyn KeyStore, records: Vec<Record>) -> Result<(), StoreError> {
    let mut writes = Vec::new();
    let mut deleted = Vec::new();
    let mut keys = Vec::new();
    for record in records {
        match record {
            Record::Key(key) => {
                let action = if key.revoked_at.is_some() { Action::KeyRevoked } else { Action::KeyCreated };
                keys.push(Write { action, expected: None, record: Record::Key(key) });
            }
            Record::Entity(entity) => {
                let live = EntityRecord { deleted_at: None, ..entity.clone() };
                deleted.extend(entity.deleted_at.is_some().then_some(entity));
                writes.push(Write { action: Action::EntityCreated, expected: None, record: Record::Entity(live) });
            }
        }
    }
    writes.extend(keys);
    for step in writes.chunks(STEP) {
        write(store, step.to_vec())?;
    }
    for entity in deleted {
        let there = store.entity(entity.id)?.map(|there| there.version);
        let record = Record::Entity(entity);
        write(store, vec![Write { action: Action::EntityDeleted, expected: there, record }])?;
    }
    Ok(())
}

fn write(store: &dyn KeyStore, writes: Vec<Write>) -> Result<(), StoreError> {
    let operation = OperationId(FleetId::random()?.bits());
    store.apply(&Mutation { operation, actor: actor(), at: Clock::system().now(), writes }).map(|_| ())
}

// === What is on this gateway's disk ===

/// Has a command that writes beside the snapshot of a gateway change nothing in the store of another fleet than that gateway's, and
/// begin none in an empty one.
///
/// # Errors
/// The store's, when it is not the snapshot's fleet's; and those of reading the snapshot, when the store is nobody's.
pub fn expect_known(store: &dyn KeyStore, config: &Config) -> Result<(), Failure> {
    let stored = store.fleet_id()?;
    let known = match Snapshot::at(config.snapshot.clone()).fleet() {
        Ok(known) => known,
        Err(error) if stored.is_none() => return Err(format!("the snapshot cannot be read: {error}").into()),
        // A key must be revoked also beside a snapshot that is damaged, or somebody else's to read.
        Err(_) => None,
    };
    if let Some(fleet) = known {
        store.expect_fleet(fleet);
    }
    Ok(store.check_fleet()?)
}

fn known(config: &Config) -> Result<Option<Kept>, Failure> {
    Snapshot::at(config.snapshot.clone()).read().map_err(|error| format!("the snapshot cannot be read: {error}").into())
}

fn expect_kept(config: &Config) -> Result<Kept, Failure> {
    let path = config.snapshot.display();
    known(config)?.ok_or_else(|| {
        format!("there is no snapshot {path}; run this where a gateway has one; nothing was changed").into()
    })
}

/// The gateways that are held, of the fleet of this disk. They forget what they know for what this disk or the store holds, so the
/// disk must know all that they do: a key that only one of them knows to have been revoked would be in force again on the others.
fn held<'a>(members: &'a [Member], kept: &Kept) -> Result<Vec<(&'a Member, Held)>, Failure> {
    let each = |member: &'a Member| member.held.map(|held| (member, held));
    let held: Vec<_> =
        members.iter().filter_map(each).filter(|(_, held)| kept.lineage.fleet == Some(held.fleet)).collect();
    let is_known = |held: &Held| held.position == Position::default() || kept.lineage.holds(held.position);
    if let Some((member, there)) = held.iter().find(|(_, held)| !is_known(held)) {
        let Member { gateway, instance, .. } = member;
        return Err(format!(
            "{gateway} {instance} is at change {} of fleet {}, which this gateway's disk, at {}, does not know of: run this where {gateway} runs, so that nothing is in force again that it knows to have been revoked. If what it alone knows may be lost, stop it, and `keygate fleet forget {instance}`; nothing was changed",
            there.position.seq, there.fleet, kept.position.seq
        )
        .into());
    }
    Ok(held)
}

fn stored(store: &dyn KeyStore, record: &Record) -> Result<Option<Record>, StoreError> {
    match record {
        Record::Key(key) => Ok(store.key_by_digest(&key.digest)?.map(Record::Key)),
        Record::Entity(entity) => Ok(store.entity(entity.id)?.map(Record::Entity)),
    }
}

fn names(records: &[Record]) -> String {
    let name = |record: &Record| match record {
        Record::Key(key) => key.id.to_string(),
        Record::Entity(entity) => format!("entity {}", entity.code),
    };
    let some: Vec<_> = records.iter().take(NAMED_MAX).map(name).collect();
    let more = records.len().saturating_sub(NAMED_MAX);
    if more == 0 { some.join(", ") } else { format!("{} and {more} more", some.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::key::EntityId;
    use crate::store::memory::MemoryStore;

    #[test]
    fn i4_a_store_that_says_something_else_of_a_record_is_not_filled() {
        let (store, created_at) = (MemoryStore::default(), Timestamp::from_micros(1));
        let entity = |number: u128, name: &str| {
            let (id, code, name) = (EntityId::from_bits(number), format!("e{number}"), name.to_owned());
            EntityRecord { id, version: 0, code, name, created_at, deleted_at: None }
        };
        fill(&store, vec![Record::Entity(entity(1, "one"))]).unwrap();
        let kept = |name: &str| [Record::Entity(entity(1, name)), Record::Entity(entity(2, "two"))];
        assert_eq!(missing(&store, &kept("one")).unwrap().len(), 1);
        assert!(missing(&store, &kept("other")).is_err());
    }
}
