//! What gateways tell of their journals and of the last use of each key: one call of `account.lua` a step.

use super::link::{self, Link};
use super::{FleetId, PAGE, StoreError, codec, fleet, schema};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::store::account::{Account, Accounts, JournalAccount, LastUses, Seal, Step, Use};
use crate::store::foreign;
use std::collections::BTreeMap;

const ACCOUNT: &str = include_str!("account.lua");
/// By key: its last use, and the last one that was allowed.
const ANY: &str = "uses";
const ALLOWED: &str = "uses:allowed";

/// Writes a report, step by step, into the expected fleet's store.
pub fn account(link: &mut Link, account: &Account, expected: Option<FleetId>) -> Result<(), StoreError> {
    account.steps().iter().try_for_each(|step| write(link, step, expected))
}

fn write(link: &mut Link, step: &Step<'_>, expected: Option<FleetId>) -> Result<(), StoreError> {
    let uses = step.uses.iter().flat_map(|(key, uses)| {
        let numbered = [("2", &uses.any), ("3", &uses.allowed)];
        numbered.into_iter().filter_map(move |(which, call)| call.as_ref().map(|call| (which, *key, call)))
    });
    let uses: Vec<_> = uses.collect();
    let mut command = link::script(ACCOUNT, &["schema", ANY, ALLOWED, "journals", "fleet_id"]);
    command.arg(schema::VERSION).arg(expected.map_or_else(String::new, |fleet| fleet.to_string())).arg(uses.len());
    for (which, key, call) in uses {
        command.arg(which).arg(key.to_string()).arg(call.to_text()?);
    }
    if let Some(journal) = step.journal {
        let seal = journal.seal.as_ref().map_or_else(String::new, |seal| format!("{} {}", seal.seq, seal.hash));
        command.arg(&journal.journal).arg(journal.seq).arg(seal);
        let times = [journal.since, journal.whole_since, journal.through];
        times.into_iter().for_each(|time| _ = command.arg(time.as_micros()));
        command.arg(journal.closed_seq);
    }
    let (answer, stored): (String, String) = link.call(&command)?;
    match (answer.as_str(), expected) {
        ("ok", _) => Ok(()),
        ("foreign", Some(expected)) => {
            let stored = Some(stored.as_str()).filter(|id| !id.is_empty()).map(fleet::read_id).transpose()?;
            Err(foreign(stored, expected))
        }
        _ => Err(link::newer(&stored)),
    }
}

/// How far all journals are reported.
pub fn accounts(link: &mut Link) -> Result<Accounts, StoreError> {
    let members: Vec<(String, String)> = link.call(::redis::cmd("HGETALL").arg(schema::name("journals")))?;
    let mut journals = BTreeMap::<&str, BTreeMap<&str, &str>>::new();
    for (name, value) in &members {
        let (journal, member) = name.split_once(' ').ok_or_else(|| codec::corrupt(&format!("journals: '{name}'")))?;
        journals.entry(journal).or_default().insert(member, value);
    }
    let journals = journals.into_iter().map(|(journal, members)| read_journal(journal, &members));
    Ok(Accounts { journals: journals.collect::<Result<_, _>>()? })
}

/// What this version knows of a journal's members; others are passed over.
fn read_journal(journal: &str, members: &BTreeMap<&str, &str>) -> Result<JournalAccount, StoreError> {
    let text = |member: &str| members.get(member).copied().unwrap_or_default();
    let number = |member| codec::need(&format!("{journal} {member}"), text(member), |text| text.parse().ok());
    let time = |member| {
        let micros = codec::need(&format!("{journal} {member}"), text(member), |text| text.parse().ok());
        micros.map(Timestamp::from_micros)
    };
    let seal = members.get("seal").map(|text| codec::need(&format!("{journal} seal"), text, read_seal)).transpose()?;
    Ok(JournalAccount {
        journal: journal.to_owned(),
        seq: number("seq")?,
        seal,
        since: time("since")?,
        whole_since: time("whole_since")?,
        through: time("through")?,
        closed_seq: number("closed_seq")?,
    })
}

fn read_seal(text: &str) -> Option<Seal> {
    let (seq, hash) = text.split_once(' ')?;
    Some(Seal { seq: seq.parse().ok()?, hash: hash.to_owned() })
}

/// The last uses of these keys, in their order.
pub fn last_uses(link: &mut Link, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError> {
    let mut found = Vec::with_capacity(keys.len());
    for keys in keys.chunks(PAGE) {
        let (any, allowed) = (read_uses(link, ANY, keys)?, read_uses(link, ALLOWED, keys)?);
        found.extend(any.into_iter().zip(allowed).map(|(any, allowed)| LastUses { any, allowed }));
    }
    Ok(found)
}

fn read_uses(link: &mut Link, name: &str, keys: &[KeyId]) -> Result<Vec<Option<Use>>, StoreError> {
    let mut command = ::redis::cmd("HMGET");
    command.arg(schema::name(name));
    keys.iter().for_each(|key| _ = command.arg(key.to_string()));
    let texts: Vec<Option<String>> = link.call(&command)?;
    texts.iter().map(|text| text.as_deref().map(Use::from_text).transpose()).collect()
}
