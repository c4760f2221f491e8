//! Whose store this is, and which file it was when it was last known to lack nothing (protocols I4, Settle).

use super::super::{fleet_of, foreign};
use super::{FleetId, Held, StoreError, one_row, rows, unavailable};
use crate::store::codec;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// Beside the schema's tables: a version that does not know it works without it. `manual::sqlite_schema` names the rows.
pub const TABLE: &str = "CREATE TABLE IF NOT EXISTS fleet (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;";
const ID: &str = "fleet_id";
const ADOPTED: &str = "adopted";
const FORK: &str = "fork";
const WHOLE: &str = "whole";

/// The fleet that was begun, if any.
pub fn id(connection: &Connection) -> Result<Option<FleetId>, StoreError> {
    let id = value(connection, ID)?;
    id.map(|id| codec::need("fleet.fleet_id", &id, FleetId::parse)).transpose()
}

/// Begins a fleet, unless one was begun; gives the one that counts.
pub fn begin(connection: &Connection, new: FleetId) -> Result<FleetId, StoreError> {
    let transaction = begin_writing(connection)?;
    if let Some(begun) = id(&transaction)? {
        return Ok(begun);
    }
    put(&transaction, ID, &new.to_string())?;
    transaction.commit().map_err(unavailable)?;
    Ok(new)
}

/// A file with changes and no fleet is an older version's: it gets one.
pub fn begin_for_older(connection: &Connection) -> Result<(), StoreError> {
    let head = one_row(connection, "SELECT seq FROM changes LIMIT 1", [], |_| Ok(()))?;
    if head.is_some() && id(connection)?.is_none() {
        begin(connection, fleet_of(None, None)?)?;
    }
    Ok(())
}

/// Within a mutation: the store must be the expected fleet's. Without any, and with none expected, one begins.
///
/// # Errors
/// [`StoreError::Refused`] in any other store.
pub fn enter(transaction: &Transaction<'_>, expected: Option<FleetId>) -> Result<(), StoreError> {
    let stored = id(transaction)?;
    match (stored, expected) {
        (None, None) => put(transaction, ID, &fleet_of(None, None)?.to_string()),
        (Some(_), None) => Ok(()),
        (stored, Some(expected)) if stored == Some(expected) => Ok(()),
        (stored, Some(expected)) => Err(foreign(stored, expected)),
    }
}

/// Gives leave to just these.
pub fn adopt(connection: &Connection, held: &[Held]) -> Result<(), StoreError> {
    let lines: Vec<String> = held.iter().map(Held::to_string).collect();
    put(connection, ADOPTED, &lines.join("\n"))
}

/// Whether leave was given to just this one.
pub fn is_adopted(connection: &Connection, held: &Held) -> Result<bool, StoreError> {
    let lines = value(connection, ADOPTED)?;
    Ok(lines.is_some_and(|lines| lines.lines().any(|line| Held::parse(line) == Some(*held))))
}

/// Another history was found in the file: settling begins anew, for everybody. Nothing is written into a file whose pages are of
/// two histories: a copy that is put over one in use goes on with the write-ahead log of the other.
pub fn note_fork(connection: &Connection) -> Result<(), StoreError> {
    let found: Option<String> = one_row(connection, "PRAGMA integrity_check(1)", [], |row| rows::column(row, 0))?;
    if let Some(damage) = found.filter(|found| found != "ok") {
        return Err(StoreError::Unavailable(format!(
            "the database is damaged ({damage}), as when a copy was put over it while it was in use: stop every gateway, remove the files beside it whose names end in -wal and -shm, put a copy in its place, and start them again"
        )));
    }
    let fork = getrandom::u64().map_err(|error| StoreError::Unavailable(format!("no random numbers: {error}")))?;
    put(connection, FORK, &format!("{fork:016x}"))
}

/// What somebody must have seen for a while before the file is known to lack nothing: which file it is, and the fork that was
/// noted last. And whether somebody has.
pub fn standing(connection: &Connection, file: &str) -> Result<(String, bool), StoreError> {
    // One statement, hence one moment.
    let sql = "SELECT (SELECT value FROM fleet WHERE name = ?1), (SELECT value FROM fleet WHERE name = ?2)";
    let found: (Option<String>, Option<String>) =
        one_row(connection, sql, [FORK, WHOLE], |row| Ok((rows::column(row, 0)?, rows::column(row, 1)?)))?
            .unwrap_or_default();
    let standing = found.0.map_or_else(|| file.to_owned(), |fork| format!("{file} {fork}"));
    let is_whole = found.1.as_ref() == Some(&standing);
    Ok((standing, is_whole))
}

/// The file is known to lack nothing, if no other fork was noted meanwhile; whether it is so.
pub fn record_whole(connection: &Connection, file: &str, seen: &str) -> Result<bool, StoreError> {
    let transaction = begin_writing(connection)?;
    let (standing, _) = standing(&transaction, file)?;
    if standing != seen {
        return Ok(false);
    }
    put(&transaction, WHOLE, seen)?;
    transaction.commit().map_err(unavailable)?;
    Ok(true)
}

/// The statement by which a file that is made just now is known to lack nothing. `file` is numbers and spaces.
pub fn made(file: &str) -> String {
    format!("INSERT OR REPLACE INTO fleet (name, value) VALUES ('{WHOLE}', '{file}');")
}

fn begin_writing(connection: &Connection) -> Result<Transaction<'_>, StoreError> {
    Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(unavailable)
}

fn value(connection: &Connection, name: &str) -> Result<Option<String>, StoreError> {
    one_row(connection, "SELECT value FROM fleet WHERE name = ?1", [name], |row| rows::column(row, 0))
}

fn put(connection: &Connection, name: &str, value: &str) -> Result<(), StoreError> {
    let sql = "INSERT OR REPLACE INTO fleet (name, value) VALUES (?1, ?2)";
    let put = connection.prepare_cached(sql).and_then(|mut insert| insert.execute(params![name, value]));
    put.map(drop).map_err(unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_not_seen_the_latest_fork_cannot_declare_the_file_whole() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(&format!("{TABLE} {}", made("1 2 3"))).unwrap();
        let (made, is_whole) = standing(&connection, "1 2 3").unwrap();
        assert!(is_whole && !standing(&connection, "1 3 3").unwrap().1);
        note_fork(&connection).unwrap();
        let (first, is_whole) = standing(&connection, "1 2 3").unwrap();
        assert!(!is_whole && !record_whole(&connection, "1 2 3", &made).unwrap());
        note_fork(&connection).unwrap();
        assert!(!record_whole(&connection, "1 2 3", &first).unwrap());
        let (second, is_whole) = standing(&connection, "1 2 3").unwrap();
        assert!(!is_whole && record_whole(&connection, "1 2 3", &second).unwrap());
        assert_eq!(standing(&connection, "1 2 3").unwrap(), (second, true));
    }
}
