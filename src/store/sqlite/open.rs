//! Opening the file: what is refused, and the schema.

use super::settle::FileId;
use super::{StoreError, accounts, changes, fleet, number, roster, unavailable};
use crate::clock::monotonic;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

/// "ark" and a version byte: says that the file is ours.
const APPLICATION_ID: i64 = 0x61_72_6b_01;
const SCHEMA_VERSION: i64 = 1;
/// How long a writer waits for another: mutations take a millisecond.
const BUSY: Duration = Duration::from_secs(5);
/// Between two attempts where SQLite does not wait by itself.
const BUSY_REST: Duration = Duration::from_millis(2);

/// `version` is the row's own number, so that a load by version reads the table from front to back.
const SCHEMA: &str = "
CREATE TABLE keys (
    version INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL UNIQUE,
    entity_id TEXT NOT NULL,
    name TEXT NOT NULL,
    mode TEXT NOT NULL,
    scopes TEXT NOT NULL,
    allowlist TEXT NOT NULL,
    tier TEXT NOT NULL,
    api_version TEXT,
    last4 TEXT NOT NULL,
    imported INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    rotated_to TEXT,
    rotated_from TEXT
);
CREATE TABLE entities (
    version INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    code TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER
);
CREATE UNIQUE INDEX entities_code ON entities (code) WHERE deleted_at IS NULL;
CREATE TABLE changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    token INTEGER NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    before TEXT,
    after TEXT NOT NULL
);
CREATE TABLE operations (
    id BLOB PRIMARY KEY,
    first_seq INTEGER NOT NULL,
    writes INTEGER NOT NULL
) WITHOUT ROWID;
";

/// The few keys that end once they are quiet.
const INDEX: &str = "
CREATE INDEX IF NOT EXISTS keys_until_quiet ON keys (version) WHERE until_quiet IS NOT NULL AND revoked_at IS NULL;
";

/// Opens or makes the database.
pub fn open(path: &Path) -> Result<Connection, StoreError> {
    make_directory(path)?;
    check_owner(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_use(path, &error))?;
    connection.busy_timeout(BUSY).map_err(unavailable)?;
    check_ours(&connection, path)?;
    // The file holds no secret, but who may read it may learn who the customers are.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|error| io_refused(path, &error))?;
    log_ahead(&connection).map_err(|error| cannot_use(path, &error))?;
    connection
        .execute_batch("PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(|error| cannot_use(path, &error))?;
    make_schema(&connection, path)?;
    add_to_schema(&connection, path)?;
    fleet::begin_for_older(&connection)?;
    look_for_loss(&connection, path)?;
    Ok(connection)
}

/// Has the file written ahead to a log. A new one, and one that was restored, may be found without by several at once: of
/// these SQLite refuses all but one, and does not wait as it does elsewhere.
fn log_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let until = monotonic() + BUSY;
    loop {
        match connection.execute_batch("PRAGMA journal_mode = WAL") {
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && monotonic() < until => {
                std::thread::sleep(BUSY_REST);
            }
            result => return result,
        }
    }
}

/// A file that lacks what a gateway has read here is an older one that was put back, perhaps under the same inode, or one that
/// has been cut: whoever reads it first notes that, and everybody waits for those who know more.
fn look_for_loss(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let failed =
        |error| StoreError::Unavailable(format!("cannot read what was last told of {}: {error}", path.display()));
    match roster::latest(path).map_err(failed)? {
        None => Ok(()),
        Some(latest) if changes::holds(connection, latest)? => Ok(()),
        Some(_) => {
            fleet::note_fork(connection)?;
            // Noted once: the fork is in the file now.
            roster::forget_latest(path).map_err(failed)
        }
    }
}

/// Opens for reading alone, for a follower.
pub fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| cannot_use(path, &error))?;
    connection.busy_timeout(BUSY).map_err(unavailable)?;
    check_ours(&connection, path)?;
    // An older file may have been put in the place of the one that was opened first.
    add_to_schema(&connection, path)?;
    connection.execute_batch("PRAGMA query_only = ON;").map_err(unavailable)?;
    Ok(connection)
}

fn make_directory(path: &Path) -> Result<(), StoreError> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() && !dir.exists() => {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(|error| io_refused(dir, &error))
        }
        Some(_) | None => Ok(()),
    }
}

/// A root shell would leave files behind that the service's user cannot open: refused, with the command to use instead.
fn check_owner(path: &Path) -> Result<(), StoreError> {
    let me = rustix::process::geteuid().as_raw();
    let owner = match (fs::metadata(path), path.parent().and_then(|dir| fs::metadata(dir).ok())) {
        (Ok(file), _) => file.uid(),
        // A new file in a directory of root's, such as /tmp, is nobody else's business.
        (Err(_), Some(dir)) if dir.uid() != 0 && me == 0 => dir.uid(),
        (Err(_), Some(_) | None) => me,
    };
    if owner == me {
        return Ok(());
    }
    let path = path.display();
    Err(StoreError::Refused(format!(
        "{path} belongs to user {owner}, and this is user {me}; use: sudo -u '#{owner}' keygate ..."
    )))
}

/// Not a database, somebody else's, or a newer one: refused before anything is written.
fn check_ours(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let ask = |sql| number(connection, sql);
    // Not "no pages": who was killed between making the file and its tables leaves a page behind.
    let tables = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
    let tables = tables.map_err(|error| cannot_use(path, &error))?;
    let (application, schema) = (ask("PRAGMA application_id")?, ask("PRAGMA user_version")?);
    let path = path.display();
    match (application.unwrap_or(0), schema.unwrap_or(0)) {
        (0, 0) if tables == 0 => Ok(()),
        (APPLICATION_ID, SCHEMA_VERSION) => Ok(()),
        (APPLICATION_ID, newer) if newer > SCHEMA_VERSION => Err(StoreError::Refused(format!(
            "{path} has schema {newer}, and this keygate knows up to {SCHEMA_VERSION}; use the keygate that wrote it or a newer one"
        ))),
        _ => Err(StoreError::Refused(format!(
            "{path} is a database, but not one of keygate's; name another file in [store] url"
        ))),
    }
}

/// Makes the tables of an empty file, at once or not at all. A file that is made just now has lost nothing.
fn make_schema(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    if number(connection, "PRAGMA user_version")? == Some(SCHEMA_VERSION) {
        return Ok(());
    }
    let whole = fleet::made(&FileId::of(path)?.to_string());
    let sql = format!(
        "BEGIN IMMEDIATE; {SCHEMA} {} {whole} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;",
        fleet::TABLE
    );
    let made = connection.execute_batch(&sql);
    if made.is_err() && !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK").map_err(unavailable)?;
    }
    // Another process may have made them at the same moment.
    if number(connection, "PRAGMA user_version")? == Some(SCHEMA_VERSION) {
        return Ok(());
    }
    made.map_err(|error| cannot_use(path, &error))
}

/// Adds what later versions have added. Older ones, which name the columns they use, work on without it.
fn add_to_schema(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    const COLUMN: &str = "SELECT count(*) FROM pragma_table_info('keys') WHERE name = 'until_quiet'";
    if number(connection, COLUMN)? == Some(0) {
        let added = connection.execute_batch("ALTER TABLE keys ADD COLUMN until_quiet INTEGER");
        // Another process may have added it at the same moment.
        if number(connection, COLUMN)? == Some(0) {
            added.map_err(|error| cannot_use(path, &error))?;
        }
    }
    let sql = format!("{INDEX}{}{}", accounts::TABLES, fleet::TABLE);
    connection.execute_batch(&sql).map_err(|error| cannot_use(path, &error))
}

fn cannot_use(path: &Path, error: &rusqlite::Error) -> StoreError {
    let code = error.sqlite_error_code();
    let path = path.display();
    match code {
        Some(ErrorCode::NotADatabase) => {
            StoreError::Refused(format!("{path} is not a database; name another file in [store] url, or restore it"))
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            StoreError::Refused(format!("{path} is corrupt ({error}); restore it from a backup"))
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
            StoreError::Refused(format!(
                "{path} cannot be opened for writing ({error}); the file and its directory must be writable by this user"
            ))
        }
        _ => StoreError::Unavailable(format!("{path}: {error}")),
    }
}

fn io_refused(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Refused(format!("{}: {error}; the store's directory must be writable by this user", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_finds_a_restored_file_without_its_log_waits_for_whoever_writes_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keygate.db");
        let other = open(&path).unwrap();
        other.execute_batch("PRAGMA journal_mode = DELETE; BEGIN IMMEDIATE").unwrap();
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| open(&path).map(drop));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!opened.is_finished());
            other.execute_batch("COMMIT").unwrap();
            opened.join().unwrap().unwrap();
        });
    }
}
