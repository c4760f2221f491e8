//! What gateways tell of their journals and of the last use of each key.

use super::super::account::{Account, Accounts, JournalAccount, LastUses, Seal, Step, Use};
use super::super::check_fleet;
use super::{FleetId, StoreError, fleet, one_row, rows, unavailable};
use crate::clock::Timestamp;
use crate::key::KeyId;
use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params};

/// Beside the schema's tables: a version that does not know them works without them.
pub const TABLES: &str = "
CREATE TABLE IF NOT EXISTS journals (
    journal TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    seal_seq INTEGER,
    seal_hash TEXT,
    since INTEGER NOT NULL,
    whole_since INTEGER NOT NULL,
    through INTEGER NOT NULL,
    closed_seq INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uses (
    key_id TEXT PRIMARY KEY,
    any TEXT,
    allowed TEXT
) WITHOUT ROWID;
";
const JOURNAL_COLUMNS: &str = "journal, seq, seal_seq, seal_hash, since, whole_since, through, closed_seq";

/// Writes a report, step by step, into the expected fleet's store.
pub fn account(connection: &mut Connection, account: &Account, expected: Option<FleetId>) -> Result<(), StoreError> {
    account.steps().iter().try_for_each(|step| write(connection, step, expected))
}

/// How far all journals are reported.
pub fn accounts(connection: &Connection) -> Result<Accounts, StoreError> {
    let sql = format!("SELECT {JOURNAL_COLUMNS} FROM journals ORDER BY journal");
    let mut statement = connection.prepare_cached(&sql).map_err(unavailable)?;
    let mut found = statement.query([]).map_err(unavailable)?;
    let mut journals = Vec::new();
    while let Some(row) = found.next().map_err(unavailable)? {
        journals.push(read_journal(row)?);
    }
    Ok(Accounts { journals })
}

/// The last uses of a key; none, if none was told.
pub fn last_uses(connection: &Connection, key: KeyId) -> Result<LastUses, StoreError> {
    let sql = "SELECT any, allowed FROM uses WHERE key_id = ?1";
    let uses = one_row(connection, sql, [key.to_string()], |row| {
        Ok(LastUses { any: read_use(row, 0)?, allowed: read_use(row, 1)? })
    })?;
    Ok(uses.unwrap_or_default())
}

fn write(connection: &mut Connection, step: &Step<'_>, expected: Option<FleetId>) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(unavailable)?;
    check_fleet(fleet::id(&transaction)?, expected)?;
    for (key, uses) in &step.uses {
        write_uses(&transaction, **key, uses)?;
    }
    if let Some(journal) = step.journal {
        write_journal(&transaction, journal)?;
    }
    transaction.commit().map_err(unavailable)
}

fn write_uses(transaction: &Transaction<'_>, key: KeyId, uses: &LastUses) -> Result<(), StoreError> {
    let known = last_uses(transaction, key)?;
    let mut merged = known.clone();
    merged.merge(uses);
    if merged == known {
        return Ok(());
    }
    let text = |call: &Option<Use>| call.as_ref().map(Use::to_text).transpose();
    let values = params![key.to_string(), text(&merged.any)?, text(&merged.allowed)?];
    let sql = "INSERT OR REPLACE INTO uses (key_id, any, allowed) VALUES (?1, ?2, ?3)";
    transaction.prepare_cached(sql).and_then(|mut insert| insert.execute(values)).map(drop).map_err(unavailable)
}

fn write_journal(transaction: &Transaction<'_>, told: &JournalAccount) -> Result<(), StoreError> {
    let sql = format!("SELECT {JOURNAL_COLUMNS} FROM journals WHERE journal = ?1");
    let mut journal = one_row(transaction, &sql, [&told.journal], read_journal)?.unwrap_or_else(|| told.clone());
    journal.merge(told);
    let values = params![
        journal.journal,
        journal.seq,
        journal.seal.as_ref().map(|seal| seal.seq),
        journal.seal.as_ref().map(|seal| &seal.hash),
        journal.since.as_micros(),
        journal.whole_since.as_micros(),
        journal.through.as_micros(),
        journal.closed_seq,
    ];
    let sql = format!("INSERT OR REPLACE INTO journals ({JOURNAL_COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
    transaction.prepare_cached(&sql).and_then(|mut insert| insert.execute(values)).map(drop).map_err(unavailable)
}

fn read_journal(row: &Row<'_>) -> Result<JournalAccount, StoreError> {
    let seal: (Option<u64>, Option<String>) = (rows::column(row, 2)?, rows::column(row, 3)?);
    let time = |index| rows::column(row, index).map(Timestamp::from_micros);
    Ok(JournalAccount {
        journal: rows::column(row, 0)?,
        seq: rows::column(row, 1)?,
        seal: seal.0.zip(seal.1).map(|(seq, hash)| Seal { seq, hash }),
        since: time(4)?,
        whole_since: time(5)?,
        through: time(6)?,
        closed_seq: rows::column(row, 7)?,
    })
}

fn read_use(row: &Row<'_>, index: usize) -> Result<Option<Use>, StoreError> {
    rows::column::<Option<String>>(row, index)?.as_deref().map(Use::from_text).transpose()
}
