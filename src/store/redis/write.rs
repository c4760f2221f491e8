//! Mutations: one call of `apply.lua` each.

use super::link::{self, Link};
use super::{FleetId, Mutation, StoreError, codec, fleet, schema};
use crate::key::{EntityId, KeyId};
use crate::store::{Conflict, Record, Write, fleet_of, foreign};
use serde::Serialize;

const APPLY: &str = include_str!("apply.lua");
/// How often a mutation is sent that was not answered in time.
const ATTEMPTS: usize = 3;
/// Where the script puts the version in.
const VERSION: &str = "\"version\":";

#[derive(Serialize)]
struct WriteWire {
    /// Empty: the record must not exist.
    expected: String,
    action: &'static str,
    token: String,
    /// The record's text before its version, and after it.
    head: String,
    tail: String,
}

/// Applies a mutation in the expected fleet's store, or gives its first outcome again. Without any fleet, and with none expected,
/// one begins.
pub fn apply(link: &mut Link, mutation: &Mutation, expected: Option<FleetId>) -> Result<Vec<u64>, StoreError> {
    let new_fleet = fleet_of(expected, expected)?;
    let writes = mutation.writes.iter().map(wire).collect::<Result<Vec<_>, _>>()?;
    let writes = serde_json::to_string(&writes).map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let mut command = link::script(APPLY, &["head"]);
    command.arg(schema::PREFIX).arg(schema::VERSION).arg(format!("{:032x}", mutation.operation.0));
    command.arg(mutation.at.as_micros()).arg(&mutation.actor).arg(writes);
    command.arg(expected.map_or_else(String::new, |id| id.to_string())).arg(new_fleet.to_string());
    let mut answer = link.call::<Vec<String>>(&command);
    for _ in 1..ATTEMPTS {
        if !matches!(answer, Err(StoreError::Unavailable(_))) {
            break;
        }
        // It may have been applied all the same: under its id, repeating it gives the first outcome.
        answer = link.call(&command);
    }
    outcome(&answer.map_err(unknown)?, expected)
}

/// Nobody can say whether a change that was not answered was made: repeating it is harmless (protocols I12).
fn unknown(error: StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(why) => StoreError::Unavailable(format!(
            "{why}; if it broke off on the way, the change may have been made all the same: repeat the command"
        )),
        error @ (StoreError::Refused(_) | StoreError::Conflict(_)) => error,
    }
}

fn wire(write: &Write) -> Result<WriteWire, StoreError> {
    let mut record = write.record.clone();
    match &mut record {
        Record::Key(key) => key.version = 0,
        Record::Entity(entity) => entity.version = 0,
    }
    let text = codec::encode(&record)?;
    let (head, tail) = text
        .split_once(&format!("{VERSION}0"))
        .ok_or_else(|| StoreError::Unavailable("a record has no version".to_owned()))?;
    Ok(WriteWire {
        expected: write.expected.map_or_else(String::new, |version| version.to_string()),
        action: write.action.as_str(),
        token: fastrand::u64(1..).to_string(),
        head: format!("{head}{VERSION}"),
        tail: tail.to_owned(),
    })
}

fn outcome(answer: &[String], expected: Option<FleetId>) -> Result<Vec<u64>, StoreError> {
    let words: Vec<&str> = answer.iter().map(String::as_str).collect();
    let conflict = match words[..] {
        ["ok", seqs] => return seqs.split_whitespace().map(read_seq).collect(),
        ["schema", stored] => return Err(link::newer(stored)),
        ["foreign", stored] => return Err(refusal(stored, expected)),
        ["version"] => Conflict::Version,
        ["final"] => Conflict::Final,
        ["digest_taken", id] => Conflict::DigestTaken(codec::need("digest", id, KeyId::parse)?),
        ["code_taken", code] => Conflict::CodeTaken(code.to_owned()),
        ["entity_id_taken", id] => Conflict::EntityIdTaken(codec::need("id", id, EntityId::parse)?),
        ["entity_gone", id] => Conflict::EntityGone(codec::need("entity_id", id, EntityId::parse)?),
        _ => return Err(codec::corrupt(&format!("a mutation was answered with '{}'", words.join(" ")))),
    };
    Err(StoreError::Conflict(conflict))
}

/// The store is not the expected fleet's; an empty text is no fleet's.
fn refusal(stored: &str, expected: Option<FleetId>) -> StoreError {
    let stored = Some(stored).filter(|id| !id.is_empty()).map(fleet::read_id).transpose();
    match (stored, expected) {
        (Ok(stored), Some(expected)) => foreign(stored, expected),
        (Ok(_), None) => codec::corrupt("a mutation was refused for a fleet that nobody expects"),
        (Err(error), _) => error,
    }
}

fn read_seq(text: &str) -> Result<u64, StoreError> {
    codec::need("seq", text, |text| text.parse().ok())
}
