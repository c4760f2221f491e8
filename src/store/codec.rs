//! Records as JSON text: the form they have in the change log, in audit records, and wherever a record travels.

use super::{Record, StoreError};
use crate::clock::Timestamp;
use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord, Mode, ScopeList};
use crate::net::Networks;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The wire form of a record. Unknown members are refused: a newer gateway may have meant something by them that would
/// narrow the key.
#[derive(Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Wire {
    Key(Box<KeyWire>),
    Entity(EntityWire),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyWire {
    id: String,
    version: u64,
    digest: String,
    entity_id: String,
    name: String,
    mode: String,
    scopes: String,
    allowlist: String,
    tier: String,
    api_version: Option<String>,
    last4: String,
    imported: bool,
    created_at: String,
    expires_at: Option<String>,
    revoked_at: Option<String>,
    rotated_to: Option<String>,
    rotated_from: Option<String>,
    /// Left out where there is none: a record without it is one that older versions read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until_quiet_s: Option<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntityWire {
    id: String,
    version: u64,
    code: String,
    name: String,
    created_at: String,
    deleted_at: Option<String>,
}

/// The JSON text of a record. It holds the digest, never the key.
///
/// # Errors
/// [`StoreError::Unavailable`], if the record cannot be written as JSON.
pub fn encode(record: &Record) -> Result<String, StoreError> {
    let wire = match record {
        Record::Key(key) => Wire::Key(Box::new(key_to_wire(key))),
        Record::Entity(entity) => Wire::Entity(entity_to_wire(entity)),
    };
    serde_json::to_string(&wire).map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// Reads a record.
///
/// # Errors
/// [`StoreError::Unavailable`] that names what is wrong: a record that cannot be read is never taken for an absent one.
pub fn decode(text: &str) -> Result<Record, StoreError> {
    let wire: Wire = serde_json::from_str(text).map_err(|error| corrupt(&error.to_string()))?;
    Ok(match wire {
        Wire::Key(key) => Record::Key(key_from_wire(*key)?),
        Wire::Entity(entity) => Record::Entity(entity_from_wire(entity)?),
    })
}

/// The error for stored text that does not read as what it should be.
pub fn corrupt(what: &str) -> StoreError {
    StoreError::Unavailable(format!("a stored record cannot be read: {what}"))
}

fn key_to_wire(key: &KeyRecord) -> KeyWire {
    KeyWire {
        id: key.id.to_string(),
        version: key.version,
        digest: key.digest.to_string(),
        entity_id: key.entity_id.to_string(),
        name: key.name.clone(),
        mode: key.mode.to_string(),
        scopes: key.scopes.to_string(),
        allowlist: key.allowlist.to_string(),
        tier: key.tier.clone(),
        api_version: key.api_version.clone(),
        last4: key.last4.clone(),
        imported: key.imported,
        created_at: key.created_at.to_string(),
        expires_at: key.expires_at.map(|time| time.to_string()),
        revoked_at: key.revoked_at.map(|time| time.to_string()),
        rotated_to: key.rotated_to.map(|id| id.to_string()),
        rotated_from: key.rotated_from.map(|id| id.to_string()),
        until_quiet_s: key.until_quiet.map(|time| time.as_secs()),
    }
}

fn key_from_wire(wire: KeyWire) -> Result<KeyRecord, StoreError> {
    Ok(KeyRecord {
        id: need("id", &wire.id, KeyId::parse)?,
        version: wire.version,
        digest: need("digest", &wire.digest, Digest::parse)?,
        entity_id: need("entity_id", &wire.entity_id, EntityId::parse)?,
        name: wire.name,
        mode: need("mode", &wire.mode, Mode::parse)?,
        scopes: ScopeList::parse(&wire.scopes),
        allowlist: Networks::parse(&wire.allowlist).map_err(|error| corrupt(&error))?,
        tier: wire.tier,
        api_version: wire.api_version,
        last4: wire.last4,
        imported: wire.imported,
        created_at: need("created_at", &wire.created_at, Timestamp::parse)?,
        expires_at: may("expires_at", wire.expires_at, Timestamp::parse)?,
        revoked_at: may("revoked_at", wire.revoked_at, Timestamp::parse)?,
        rotated_to: may("rotated_to", wire.rotated_to, KeyId::parse)?,
        rotated_from: may("rotated_from", wire.rotated_from, KeyId::parse)?,
        until_quiet: wire.until_quiet_s.map(Duration::from_secs),
    })
}

fn entity_to_wire(entity: &EntityRecord) -> EntityWire {
    EntityWire {
        id: entity.id.to_string(),
        version: entity.version,
        code: entity.code.clone(),
        name: entity.name.clone(),
        created_at: entity.created_at.to_string(),
        deleted_at: entity.deleted_at.map(|time| time.to_string()),
    }
}

fn entity_from_wire(wire: EntityWire) -> Result<EntityRecord, StoreError> {
    Ok(EntityRecord {
        id: need("id", &wire.id, EntityId::parse)?,
        version: wire.version,
        code: wire.code,
        name: wire.name,
        created_at: need("created_at", &wire.created_at, Timestamp::parse)?,
        deleted_at: may("deleted_at", wire.deleted_at, Timestamp::parse)?,
    })
}

/// Reads a member that must be there, or names it.
///
/// # Errors
/// [`StoreError::Unavailable`], as of [`corrupt`].
pub fn need<T>(name: &str, text: &str, parse: impl Fn(&str) -> Option<T>) -> Result<T, StoreError> {
    parse(text).ok_or_else(|| corrupt(&format!("{name} is '{text}'")))
}

fn may<T>(name: &str, text: Option<String>, parse: impl Fn(&str) -> Option<T>) -> Result<Option<T>, StoreError> {
    text.map(|text| need(name, &text, parse)).transpose()
}
