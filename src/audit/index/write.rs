//! Writes a batch: the lists of each key, its days, the stretches and the checkpoint, at once or not at all.

use super::batch::{Batch, JournalBatch, KeyBatch};
use super::postings::Postings;
use crate::audit::segment;
use crate::audit::usage::{Day, DayUsage, More};
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};
use std::path::Path;

/// A list that is longer is not added to: a row is read and written whole.
const DISTANCES_BYTES_MAX: usize = 1024;
/// What belongs to segments that are gone is dropped when it has become this part of a journal: the lists of all keys are
/// looked through for it.
const DROPPED_PART: u64 = 16;

/// Writes the batch of the journals in `dir`.
pub fn write(connection: &mut Connection, batch: &Batch, dir: &Path) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let journals = batch.journals().iter().map(|journal| write_journal(&transaction, journal, dir));
    let journals: Vec<Option<i64>> = journals.collect::<rusqlite::Result<_>>()?;
    batch.keys().try_for_each(|key| write_key(&transaction, key, &journals))?;
    transaction.commit()
}

/// Gives the journal's number in the file; none when nothing of it was gathered.
fn write_journal(transaction: &Transaction<'_>, journal: &JournalBatch, dir: &Path) -> rusqlite::Result<Option<i64>> {
    let Some(first) = journal.first else { return Ok(None) };
    let sql = "INSERT INTO journals (name, first, last, mark, dropped) VALUES (?1, ?2, ?3, ?4, 0)
        ON CONFLICT (name) DO UPDATE SET last = ?3, mark = ?4 RETURNING id";
    let mut statement = transaction.prepare_cached(sql)?;
    let values = params![journal.name, first, journal.last, journal.mark.0];
    let id: i64 = statement.query_row(values, |row| row.get(0))?;
    let sql = "INSERT INTO stretches (journal, first, last, earliest, latest) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut statement = transaction.prepare_cached(sql)?;
    for stretch in &journal.stretches {
        let times = stretch.times.map(|(earliest, latest)| (earliest.as_micros(), latest.as_micros()));
        let (earliest, latest) = times.unzip();
        statement.execute(params![id, stretch.first, stretch.last, earliest, latest])?;
    }
    drop_gone(transaction, id, journal, dir)?;
    Ok(Some(id))
}

/// Drops what belongs to records that are gone with their segments.
fn drop_gone(transaction: &Transaction<'_>, id: i64, journal: &JournalBatch, dir: &Path) -> rusqlite::Result<()> {
    let slot = journal.name.rsplit('/').next().unwrap_or_default();
    let Some(oldest) = segment::list(&dir.join(slot)).ok().and_then(|list| Some(list.first()?.0)) else {
        return Ok(());
    };
    let dropped: u64 = transaction.query_row("SELECT dropped FROM journals WHERE id = ?1", [id], |row| row.get(0))?;
    let (gone, kept) = (oldest.saturating_sub(dropped.max(1)), journal.last.saturating_sub(oldest));
    if gone <= kept / DROPPED_PART {
        return Ok(());
    }
    transaction
        .execute("DELETE FROM stretches WHERE journal = ?1 AND first < ?2 AND last < ?2", params![id, oldest])?;
    transaction.execute("DELETE FROM postings WHERE journal = ?1 AND last < ?2", params![id, oldest])?;
    transaction.execute("UPDATE journals SET dropped = ?2 WHERE id = ?1", params![id, oldest])?;
    Ok(())
}

fn write_key(transaction: &Transaction<'_>, key: KeyBatch<'_>, journals: &[Option<i64>]) -> rusqlite::Result<()> {
    let id = key_number(transaction, key.key_id)?;
    for (journal, postings) in key.postings {
        if let Some(journal) = journals.get(*journal).copied().flatten() {
            write_postings(transaction, id, journal, postings)?;
        }
    }
    key.days.into_iter().try_for_each(|(day, more)| write_day(transaction, id, day, more))
}

fn key_number(transaction: &Transaction<'_>, key_id: &str) -> rusqlite::Result<i64> {
    let mut select = transaction.prepare_cached("SELECT id FROM keys WHERE key = ?1")?;
    if let Some(id) = select.query_row([key_id], |row| row.get(0)).optional()? {
        return Ok(id);
    }
    transaction.prepare_cached("INSERT INTO keys (key) VALUES (?1)")?.insert([key_id])
}

/// Adds to the key's last list, or begins another.
fn write_postings(transaction: &Transaction<'_>, key: i64, journal: i64, more: &Postings) -> rusqlite::Result<()> {
    let sql = "SELECT first, last, distances FROM postings WHERE key = ?1 AND journal = ?2 AND length(distances) < ?3
        AND first = (SELECT max(first) FROM postings WHERE key = ?1 AND journal = ?2)";
    let mut select = transaction.prepare_cached(sql)?;
    let read = |row: &rusqlite::Row<'_>| Ok(Postings::stored(row.get(0)?, row.get(1)?, row.get(2)?));
    let last = select.query_row(params![key, journal, DISTANCES_BYTES_MAX], read).optional()?;
    let list = match last {
        Some(mut last) => {
            last.append(more);
            last
        }
        None => more.clone(),
    };
    let sql = "INSERT OR REPLACE INTO postings (key, journal, first, last, distances) VALUES (?1, ?2, ?3, ?4, ?5)";
    let mut insert = transaction.prepare_cached(sql)?;
    insert.execute(params![key, journal, list.first(), list.last(), list.distances()])?;
    Ok(())
}

fn write_day(transaction: &Transaction<'_>, key: i64, day: Day, more: More) -> rusqlite::Result<()> {
    let mut select = transaction.prepare_cached("SELECT usage FROM days WHERE key = ?1 AND day = ?2")?;
    let known = select.query_row(params![key, day.number()], |row| decode(row.get_ref(0)?.as_blob()?)).optional()?;
    let usage = match known {
        Some(mut usage) => {
            usage.add(more);
            usage
        }
        None => DayUsage::from(more),
    };
    let bytes = postcard::to_stdvec(&usage).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO days (key, day, usage) VALUES (?1, ?2, ?3)")?;
    insert.execute(params![key, day.number(), bytes])?;
    Ok(())
}

/// A day as it was stored.
pub fn decode(bytes: &[u8]) -> rusqlite::Result<DayUsage> {
    let damaged = |error: postcard::Error| rusqlite::Error::FromSqlConversionFailure(0, Type::Blob, error.into());
    postcard::from_bytes(bytes).map_err(damaged)
}
