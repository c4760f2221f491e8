//! Mutations: one `BEGIN IMMEDIATE` transaction each.

use super::super::{Conflict, Mutation, Record, Write, check_entity, check_key, codec};
use super::{FleetId, StoreError, fleet, one_row, rows, unavailable};
use crate::key::{EntityRecord, KeyId, KeyRecord};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// Applies a mutation in the expected fleet's store, or gives its first outcome again.
pub fn apply(
    connection: &mut Connection,
    mutation: &Mutation,
    expected: Option<FleetId>,
) -> Result<Vec<u64>, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unavailable)?;
    let id = mutation.operation.0.to_be_bytes();
    if let Some(outcome) = first_outcome(&transaction, &id)? {
        return Ok(outcome);
    }
    fleet::enter(&transaction, expected)?;
    let seqs = mutation.writes.iter().map(|write| apply_write(&transaction, mutation, write));
    let seqs = seqs.collect::<Result<Vec<_>, _>>()?;
    if let Some(first) = seqs.first() {
        let sql = "INSERT INTO operations (id, first_seq, writes) VALUES (?1, ?2, ?3)";
        let writes = i64::try_from(seqs.len()).unwrap_or(i64::MAX);
        transaction.execute(sql, params![&id[..], first, writes]).map_err(unavailable)?;
    }
    transaction.commit().map_err(unavailable)?;
    Ok(seqs)
}

fn first_outcome(transaction: &Transaction<'_>, id: &[u8]) -> Result<Option<Vec<u64>>, StoreError> {
    one_row(transaction, "SELECT first_seq, writes FROM operations WHERE id = ?1", [id], |row| {
        let (first, writes): (u64, u64) = (rows::column(row, 0)?, rows::column(row, 1)?);
        Ok((first..first + writes).collect())
    })
}

/// Appends to the log, which gives the `seq`, and writes the record under it.
fn apply_write(transaction: &Transaction<'_>, mutation: &Mutation, write: &Write) -> Result<u64, StoreError> {
    let seq = next_seq(transaction)?;
    let mut after = write.record.clone();
    let before = match &mut after {
        Record::Key(key) => {
            key.version = seq;
            write_key(transaction, key, write.expected)?.map(Record::Key)
        }
        Record::Entity(entity) => {
            entity.version = seq;
            write_entity(transaction, entity, write.expected)?.map(Record::Entity)
        }
    };
    let before = before.as_ref().map(codec::encode).transpose()?;
    let sql = "INSERT INTO changes (seq, token, at, actor, action, before, after) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let token = fastrand::i64(1..);
    let values = params![
        seq,
        token,
        mutation.at.as_micros(),
        mutation.actor,
        write.action.as_str(),
        before,
        codec::encode(&after)?
    ];
    transaction.prepare_cached(sql).and_then(|mut insert| insert.execute(values)).map_err(unavailable)?;
    Ok(seq)
}

/// AUTOINCREMENT never gives a number twice, even when the log's end was cut off.
fn next_seq(transaction: &Transaction<'_>) -> Result<u64, StoreError> {
    let sql = "SELECT seq FROM sqlite_sequence WHERE name = 'changes'";
    let last: Option<u64> = one_row(transaction, sql, [], |row| rows::column(row, 0))?;
    Ok(last.unwrap_or(0) + 1)
}

fn write_key(
    transaction: &Transaction<'_>,
    key: &KeyRecord,
    expected: Option<u64>,
) -> Result<Option<KeyRecord>, StoreError> {
    let before = rows::key_by_id(transaction, key.id)?;
    check_key(before.as_ref(), key, expected)?;
    let entity = rows::entity_by_id(transaction, key.entity_id)?;
    if entity.is_none_or(|entity| entity.deleted_at.is_some()) && key.revoked_at.is_none() {
        return Err(StoreError::Conflict(Conflict::EntityGone(key.entity_id)));
    }
    if let Some(other) = holder_of(transaction, key)? {
        return Err(StoreError::Conflict(Conflict::DigestTaken(other)));
    }
    if let Some(before) = &before {
        transaction.execute("DELETE FROM keys WHERE version = ?1", [before.version]).map_err(unavailable)?;
    }
    rows::insert_key(transaction, key).map_err(unavailable)?;
    Ok(before)
}

/// Another key with this digest.
fn holder_of(transaction: &Transaction<'_>, key: &KeyRecord) -> Result<Option<KeyId>, StoreError> {
    let sql = "SELECT id FROM keys WHERE digest = ?1 AND id <> ?2";
    one_row(transaction, sql, params![key.digest.to_string(), key.id.to_string()], |row| {
        codec::need("keys.id", &rows::column::<String>(row, 0)?, KeyId::parse)
    })
}

fn write_entity(
    transaction: &Transaction<'_>,
    entity: &EntityRecord,
    expected: Option<u64>,
) -> Result<Option<EntityRecord>, StoreError> {
    let before = rows::entity_by_id(transaction, entity.id)?;
    check_entity(before.as_ref(), entity, expected)?;
    if entity.deleted_at.is_none() {
        let other = rows::entity_where(transaction, "code = ?1 AND deleted_at IS NULL", [&entity.code])?;
        if other.is_some_and(|other| other.id != entity.id) {
            return Err(StoreError::Conflict(Conflict::CodeTaken(entity.code.clone())));
        }
    }
    if let Some(before) = &before {
        transaction.execute("DELETE FROM entities WHERE version = ?1", [before.version]).map_err(unavailable)?;
    }
    rows::insert_entity(transaction, entity).map_err(unavailable)?;
    Ok(before)
}
