//! The embedded store: one SQLite file that the gateway and the CLI share (protocols, the SQLite paragraph).

mod accounts;
mod changes;
mod fleet;
mod open;
mod roster;
mod rows;
mod settle;
mod write;

use super::{
    Account, Accounts, Changes, Fleet, FleetId, Held, KeyFilter, KeyStore, LastUses, Member, Mutation, Position,
    StoreError,
};
use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord};
use crate::store::fleet::Expected;
use rusqlite::{Connection, OptionalExtension, params};
use settle::{FileId, Settling};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Key and entity records and the change log in one file.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    opened: Mutex<Opened>,
    expected: Expected,
}

/// A connection, and the file it was opened on.
#[derive(Debug)]
struct Opened {
    connection: Connection,
    file: FileId,
    settling: Settling,
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens `path`, making the file and its directory when they are not there.
    ///
    /// # Errors
    /// [`StoreError::Refused`] for a file that is not ours to use, with what to do; [`StoreError::Unavailable`] for one that
    /// cannot be read or written now.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Ok(Self { path: path.to_owned(), opened: Mutex::new(Opened::at(path)?), expected: Expected::default() })
    }

    /// The file that the path leads to now: another one may have been put in its place.
    fn opened(&self) -> Result<MutexGuard<'_, Opened>, StoreError> {
        // A panic elsewhere leaves no transaction open: rusqlite rolls back on drop.
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if FileId::of(&self.path)? != opened.file {
            *opened = Opened::at(&self.path)?;
        }
        Ok(opened)
    }
}

// === impl Opened ===

impl Opened {
    fn at(path: &Path) -> Result<Self, StoreError> {
        let connection = open::open(path)?;
        Ok(Self { file: FileId::of(path)?, connection, settling: Settling::default() })
    }
}

impl KeyStore for SqliteStore {
    fn apply(&self, mutation: &Mutation) -> Result<Vec<u64>, StoreError> {
        write::apply(&mut self.opened()?.connection, mutation, self.expected.get())
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        rows::key_by_id(&self.opened()?.connection, id)
    }

    fn key_by_digest(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        rows::key_where(&self.opened()?.connection, "digest = ?1", [digest.to_string()])
    }

    fn keys(&self, filter: &KeyFilter, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError> {
        let opened = self.opened()?;
        let sql = format!(
            "SELECT {} FROM keys WHERE id > ?1 AND (?2 IS NULL OR entity_id = ?2) ORDER BY id LIMIT ?3",
            rows::KEY_COLUMNS
        );
        let mut statement = opened.connection.prepare_cached(&sql).map_err(unavailable)?;
        let after = after.map_or_else(String::new, |id| id.to_string());
        let entity = filter.entity.map(|entity| entity.to_string());
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut found = statement.query(params![after, entity, limit]).map_err(unavailable)?;
        let mut keys = Vec::new();
        while let Some(row) = found.next().map_err(unavailable)? {
            keys.push(rows::read_key(row)?);
        }
        Ok(keys)
    }

    fn entity(&self, id: EntityId) -> Result<Option<EntityRecord>, StoreError> {
        rows::entity_by_id(&self.opened()?.connection, id)
    }

    fn entity_by_code(&self, code: &str) -> Result<Option<EntityRecord>, StoreError> {
        rows::entity_where(&self.opened()?.connection, "code = ?1 AND deleted_at IS NULL", [code])
    }

    fn entities(&self) -> Result<Vec<EntityRecord>, StoreError> {
        let opened = self.opened()?;
        let sql = format!("SELECT {} FROM entities ORDER BY code, id", rows::ENTITY_COLUMNS);
        let mut statement = opened.connection.prepare_cached(&sql).map_err(unavailable)?;
        let mut found = statement.query([]).map_err(unavailable)?;
        let mut entities = Vec::new();
        while let Some(row) = found.next().map_err(unavailable)? {
            entities.push(rows::read_entity(row)?);
        }
        Ok(entities)
    }

    fn count(&self) -> Result<u64, StoreError> {
        let count = number(&self.opened()?.connection, "SELECT count(*) FROM keys")?;
        Ok(count.and_then(|count| u64::try_from(count).ok()).unwrap_or(0))
    }

    fn holds(&self, position: Position) -> Result<bool, StoreError> {
        changes::holds(&self.opened()?.connection, position)
    }

    fn fleet_id(&self) -> Result<Option<FleetId>, StoreError> {
        fleet::id(&self.opened()?.connection)
    }

    fn begin_fleet(&self, id: FleetId) -> Result<FleetId, StoreError> {
        fleet::begin(&self.opened()?.connection, id)
    }

    fn expect_fleet(&self, id: FleetId) {
        self.expected.set(id);
    }

    fn check_fleet(&self) -> Result<(), StoreError> {
        super::check_fleet(self.fleet_id()?, self.expected.get())
    }

    fn note_fork(&self) -> Result<(), StoreError> {
        fleet::note_fork(&self.opened()?.connection)
    }

    fn adopt(&self, held: &[Held]) -> Result<(), StoreError> {
        fleet::adopt(&self.opened()?.connection, held)
    }

    fn is_adopted(&self, held: &Held) -> Result<bool, StoreError> {
        fleet::is_adopted(&self.opened()?.connection, held)
    }

    fn fleet(&self) -> Result<Fleet, StoreError> {
        let members = roster::members(&self.path)?;
        // After the rows: a fork that is noted between is seen.
        let mut opened = self.opened()?;
        let Opened { connection, file, settling } = &mut *opened;
        let record = |seen: &str| fleet::record_whole(connection, &file.to_string(), seen);
        let settles_in = settling.left(connection, file, record)?;
        Ok(Fleet { members, settles_in })
    }

    fn forget(&self, instance: &str) -> Result<bool, StoreError> {
        roster::forget(&self.path, instance).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    fn until_quiet(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let opened = self.opened()?;
        let sql = format!(
            "SELECT {} FROM keys WHERE until_quiet IS NOT NULL AND revoked_at IS NULL ORDER BY version",
            rows::KEY_COLUMNS
        );
        let mut statement = opened.connection.prepare_cached(&sql).map_err(unavailable)?;
        let mut found = statement.query([]).map_err(unavailable)?;
        let mut keys = Vec::new();
        while let Some(row) = found.next().map_err(unavailable)? {
            keys.push(rows::read_key(row)?);
        }
        Ok(keys)
    }

    fn account(&self, account: &Account) -> Result<(), StoreError> {
        accounts::account(&mut self.opened()?.connection, account, self.expected.get())
    }

    fn accounts(&self) -> Result<Accounts, StoreError> {
        accounts::accounts(&self.opened()?.connection)
    }

    fn last_uses(&self, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError> {
        let opened = self.opened()?;
        keys.iter().map(|key| accounts::last_uses(&opened.connection, *key)).collect()
    }

    fn changes(&self) -> Result<Box<dyn Changes>, StoreError> {
        Ok(Box::new(changes::SqliteChanges::open(&self.path)?))
    }
}

/// A failing database is one that cannot be asked, whatever the failure: never an empty one.
fn unavailable(error: rusqlite::Error) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

/// Runs a query of one row.
fn one_row<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    read: impl FnOnce(&rusqlite::Row<'_>) -> Result<T, StoreError>,
) -> Result<Option<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(unavailable)?;
    let mut rows = statement.query(params).map_err(unavailable)?;
    rows.next().map_err(unavailable)?.map(read).transpose()
}

/// Runs a query of one number.
fn number(connection: &Connection, sql: &str) -> Result<Option<i64>, StoreError> {
    connection.query_row(sql, [], |row| row.get(0)).optional().map_err(unavailable)
}
