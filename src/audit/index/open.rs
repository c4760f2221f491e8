//! Opening the file: whose it is, its schema, and moving aside what is not ours.

use super::IndexError;
use super::batch::Mark;
use crate::audit::segment::free_name;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// "kgix": says that the file is an index of ours.
const APPLICATION_ID: i64 = 0x6b_67_69_78;
const SCHEMA_VERSION: i64 = 1;
const BUSY: Duration = Duration::from_secs(5);

/// `journals.first` and `last`: what the index knows of a journal, `mark` the end of that last line. Times are microseconds since the epoch, null in a stretch
/// without any; a day is its number since the epoch.
const SCHEMA: &str = "
CREATE TABLE journals (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, first INTEGER NOT NULL, last INTEGER NOT NULL,
    mark BLOB NOT NULL, dropped INTEGER NOT NULL);
CREATE TABLE stretches (journal INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, earliest INTEGER,
    latest INTEGER, PRIMARY KEY (journal, first)) WITHOUT ROWID;
CREATE TABLE keys (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE postings (key INTEGER NOT NULL, journal INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL,
    distances BLOB NOT NULL, PRIMARY KEY (key, journal, first)) WITHOUT ROWID;
CREATE TABLE days (key INTEGER NOT NULL, day INTEGER NOT NULL, usage BLOB NOT NULL, PRIMARY KEY (key, day)) WITHOUT ROWID;
";

/// Opens for writing, making the file and its tables when there are none.
pub fn writer(path: &Path) -> Result<Connection, IndexError> {
    let of = |error| IndexError::of(path, &error);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(of)?;
    connection.busy_timeout(BUSY).map_err(of)?;
    let is_new = is_new(&connection, path)?;
    // It names keys and addresses: not for everybody.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(|error| unavailable(path, &error))?;
    // What a loss of power takes back is made again.
    connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;").map_err(of)?;
    if is_new {
        let sql = format!(
            "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        );
        connection.execute_batch(&sql).map_err(of)?;
    } else {
        check(&connection, path)?;
    }
    Ok(connection)
}

/// Opens for reading, while another process may write; `None` when there is no index.
pub fn reader(path: &Path) -> Result<Option<Connection>, IndexError> {
    let of = |error| IndexError::of(path, &error);
    if !path.try_exists().map_err(|error| unavailable(path, &error))? {
        return Ok(None);
    }
    // Readers take part in the bookkeeping of the log, so the file is not opened read only.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(of)?;
    connection.busy_timeout(BUSY).map_err(of)?;
    // The log is removed by name: it may be another file's by then, when ours was moved aside.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(of)?;
    connection.execute_batch("PRAGMA query_only = ON;").map_err(of)?;
    Ok((!is_new(&connection, path)?).then_some(connection))
}

/// The last `seq` of each journal.
pub fn positions(connection: &Connection) -> rusqlite::Result<BTreeMap<String, u64>> {
    Ok(lasts(connection)?.into_iter().map(|(name, last, _)| (name, last)).collect())
}

/// The last record of each journal.
pub fn lasts(connection: &Connection) -> rusqlite::Result<Vec<(String, u64, Mark)>> {
    let mut statement = connection.prepare_cached("SELECT name, last, mark FROM journals")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, Mark(row.get(2)?))))?.collect()
}

/// Gives the file a name that no other has, its log with it; gives that name.
pub fn move_aside(path: &Path) -> Result<PathBuf, IndexError> {
    let failed = |error| unavailable(path, &error);
    let aside = free_name(path, "damaged");
    fs::rename(path, &aside).map_err(failed)?;
    match fs::rename(beside(path, "-wal"), beside(&aside, "-wal")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    match fs::remove_file(beside(path, "-shm")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        Ok(()) | Err(_) => Ok(aside),
    }
}

fn beside(path: &Path, suffix: &str) -> OsString {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name
}

/// Whether it has no tables yet. One that is not ours, or of a newer keygate, is refused before anything is written.
fn is_new(connection: &Connection, path: &Path) -> Result<bool, IndexError> {
    let ask =
        |sql| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|error| IndexError::of(path, &error));
    let tables = ask("SELECT count(*) FROM sqlite_schema")?;
    let unusable = |how: String| Err(IndexError::Unusable { path: path.to_owned(), how });
    match (ask("PRAGMA application_id")?, ask("PRAGMA user_version")?) {
        (0, 0) if tables == 0 => Ok(true),
        (APPLICATION_ID, SCHEMA_VERSION) => Ok(false),
        (APPLICATION_ID, version) => unusable(format!("of schema {version}, and this keygate writes {SCHEMA_VERSION}")),
        _ => unusable("a database of something else".to_owned()),
    }
}

/// Looks at every page once: a damaged one would give wrong answers later.
fn check(connection: &Connection, path: &Path) -> Result<(), IndexError> {
    let told = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match told.map_err(|error| IndexError::of(path, &error))?.as_str() {
        "ok" => Ok(()),
        fault => Err(IndexError::Unusable { path: path.to_owned(), how: format!("damaged ({fault})") }),
    }
}

fn unavailable(path: &Path, error: &io::Error) -> IndexError {
    IndexError::Unavailable { path: path.to_owned(), why: error.to_string() }
}
