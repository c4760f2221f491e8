//! Rows to records and back.

use super::super::codec::{corrupt, need};
use super::{StoreError, one_row};
use crate::clock::Timestamp;
use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord, Mode, ScopeList};
use crate::net::Networks;
use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, Params, Row, params};
use std::time::Duration;

pub const KEY_COLUMNS: &str = "version, id, digest, entity_id, name, mode, scopes, allowlist, tier, api_version, last4, \
                               imported, created_at, expires_at, revoked_at, rotated_to, rotated_from, until_quiet";
pub const ENTITY_COLUMNS: &str = "version, id, code, name, created_at, deleted_at";

pub fn key_by_id(connection: &Connection, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
    key_where(connection, "id = ?1", [id.to_string()])
}

pub fn key_where(
    connection: &Connection,
    condition: &str,
    params: impl Params,
) -> Result<Option<KeyRecord>, StoreError> {
    one_row(connection, &format!("SELECT {KEY_COLUMNS} FROM keys WHERE {condition}"), params, read_key)
}

pub fn entity_by_id(connection: &Connection, id: EntityId) -> Result<Option<EntityRecord>, StoreError> {
    entity_where(connection, "id = ?1", [id.to_string()])
}

pub fn entity_where(
    connection: &Connection,
    condition: &str,
    params: impl Params,
) -> Result<Option<EntityRecord>, StoreError> {
    one_row(connection, &format!("SELECT {ENTITY_COLUMNS} FROM entities WHERE {condition}"), params, read_entity)
}

pub fn read_key(row: &Row<'_>) -> Result<KeyRecord, StoreError> {
    Ok(KeyRecord {
        version: column(row, 0)?,
        id: text(row, 1, |text| need("keys.id", text, KeyId::parse))?,
        digest: text(row, 2, |text| need("keys.digest", text, Digest::parse))?,
        entity_id: text(row, 3, |text| need("keys.entity_id", text, EntityId::parse))?,
        name: column(row, 4)?,
        mode: text(row, 5, |text| need("keys.mode", text, Mode::parse))?,
        scopes: text(row, 6, |text| Ok(ScopeList::parse(text)))?,
        allowlist: text(row, 7, |text| Networks::parse(text).map_err(|error| corrupt(&error)))?,
        tier: column(row, 8)?,
        api_version: column(row, 9)?,
        last4: column(row, 10)?,
        imported: column(row, 11)?,
        created_at: Timestamp::from_micros(column(row, 12)?),
        expires_at: column::<Option<i64>>(row, 13)?.map(Timestamp::from_micros),
        revoked_at: column::<Option<i64>>(row, 14)?.map(Timestamp::from_micros),
        rotated_to: key_id(row, 15)?,
        rotated_from: key_id(row, 16)?,
        until_quiet: column::<Option<u64>>(row, 17)?.map(Duration::from_secs),
    })
}

pub fn read_entity(row: &Row<'_>) -> Result<EntityRecord, StoreError> {
    Ok(EntityRecord {
        version: column(row, 0)?,
        id: text(row, 1, |text| need("entities.id", text, EntityId::parse))?,
        code: column(row, 2)?,
        name: column(row, 3)?,
        created_at: Timestamp::from_micros(column(row, 4)?),
        deleted_at: column::<Option<i64>>(row, 5)?.map(Timestamp::from_micros),
    })
}

pub fn insert_key(connection: &Connection, key: &KeyRecord) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO keys (version, id, digest, entity_id, name, mode, scopes, allowlist, tier, api_version, last4, \
               imported, created_at, expires_at, revoked_at, rotated_to, rotated_from, until_quiet) \
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)";
    connection.prepare_cached(sql)?.execute(params![
        key.version,
        key.id.to_string(),
        key.digest.to_string(),
        key.entity_id.to_string(),
        key.name,
        key.mode.as_str(),
        key.scopes.as_str(),
        key.allowlist.to_string(),
        key.tier,
        key.api_version,
        key.last4,
        key.imported,
        key.created_at.as_micros(),
        key.expires_at.map(Timestamp::as_micros),
        key.revoked_at.map(Timestamp::as_micros),
        key.rotated_to.map(|id| id.to_string()),
        key.rotated_from.map(|id| id.to_string()),
        key.until_quiet.map(|time| time.as_secs()),
    ])
}

pub fn insert_entity(connection: &Connection, entity: &EntityRecord) -> rusqlite::Result<usize> {
    let sql = "INSERT INTO entities (version, id, code, name, created_at, deleted_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    connection.prepare_cached(sql)?.execute(params![
        entity.version,
        entity.id.to_string(),
        entity.code,
        entity.name,
        entity.created_at.as_micros(),
        entity.deleted_at.map(Timestamp::as_micros),
    ])
}

/// A column by its own type.
pub fn column<T: FromSql>(row: &Row<'_>, index: usize) -> Result<T, StoreError> {
    row.get(index).map_err(|error| corrupt(&error.to_string()))
}

/// A text column, read in place.
fn text<T>(row: &Row<'_>, index: usize, read: impl FnOnce(&str) -> Result<T, StoreError>) -> Result<T, StoreError> {
    let value = row.get_ref(index).map_err(|error| corrupt(&error.to_string()))?;
    read(value.as_str().map_err(|error| corrupt(&error.to_string()))?)
}

fn key_id(row: &Row<'_>, index: usize) -> Result<Option<KeyId>, StoreError> {
    match row.get_ref(index).map_err(|error| corrupt(&error.to_string()))? {
        ValueRef::Null => Ok(None),
        _ => text(row, index, |text| need("key id", text, KeyId::parse)).map(Some),
    }
}
