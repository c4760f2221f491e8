//! The rows of an embedded store's gateways: one file each, beside the database, locked for as long as its process lives.
//! A free lock means that the process is gone, however it ended.

use super::super::fleet::Member;
use super::{Position, StoreError};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A gateway's own row. Dropped: the gateway has left.
#[derive(Debug)]
pub struct Row {
    path: PathBuf,
    file: File,
    told: Member,
    /// Beside the rows: how far any gateway has come, in this database and before.
    latest: PathBuf,
}

/// The longest row that is read.
const ROW_MAX: usize = 4096;
/// How often a row is read that changes meanwhile.
const READS_MAX: usize = 100;
const EXTENSION: &str = "json";
const LATEST: &str = "latest";
/// The length of what it says: always the same, so that one writer's text never ends in another's.
const LATEST_BYTES: usize = 64;
/// A position that no log holds.
const ILLEGIBLE: Position = Position { seq: 0, token: 1 };

// === impl Row ===

impl Row {
    /// Joins: from now on, who waits for a confirmation waits for this gateway too.
    ///
    /// # Errors
    /// As of making and locking a file.
    pub fn join(database: &Path, member: &Member) -> io::Result<Self> {
        let dir = directory(database);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        clear(&dir)?;
        let latest = dir.join(LATEST);
        write_latest(&latest, member)?;
        // Locked and written before it has its name: nobody finds it free, or half of it.
        let making = dir.join(format!("{}.new", member.instance));
        // Left by an attempt that failed.
        _ = fs::remove_file(&making);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&making)?;
        file.try_lock()?;
        write(&file, member)?;
        let path = dir.join(&member.instance).with_extension(EXTENSION);
        fs::rename(&making, &path)?;
        Ok(Self { path, file, told: member.clone(), latest })
    }

    /// Tells what has changed.
    ///
    /// # Errors
    /// As of writing the file; it says what it said before then, which is less.
    pub fn tell(&mut self, member: &Member) -> io::Result<()> {
        if (self.told.pos, self.told.token) != (member.pos, member.token) {
            // First: what is confirmed is missed when it is lost.
            write_latest(&self.latest, member)?;
        }
        if self.told != *member {
            write(&self.file, member)?;
            self.told = member.clone();
        }
        Ok(())
    }

    /// Whether the row is still there for others to see: `fleet forget` removes it.
    pub fn is_listed(&self) -> bool {
        self.path.exists()
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        _ = fs::remove_file(&self.path);
    }
}

/// The rows of the gateways that live.
///
/// # Errors
/// When a row cannot be read: who waits must not take it for a gateway that is gone.
pub fn members(database: &Path) -> Result<Vec<Member>, StoreError> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        StoreError::Unavailable(format!("cannot read the gateway's row {}: {error}", path.display()))
    };
    let mut members = Vec::new();
    for path in rows(&directory(database)).map_err(|error| failed(&directory(database), &error))? {
        match read(&path) {
            Ok(Some(member)) => members.push(member),
            Ok(None) => {}
            Err(error) => return Err(failed(&path, &error)),
        }
    }
    members.sort_by(|left, right| (&left.gateway, &left.instance).cmp(&(&right.gateway, &right.instance)));
    Ok(members)
}

/// Removes a gateway's row; whether there was one.
///
/// # Errors
/// As of removing a file.
pub fn forget(database: &Path, instance: &str) -> io::Result<bool> {
    for path in rows(&directory(database))? {
        if path.file_stem().is_some_and(|stem| stem == instance) {
            fs::remove_file(path)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// The latest position that a gateway has told of, if any has told of one; [`ILLEGIBLE`] if it cannot be made out.
///
/// # Errors
/// As of reading a file.
pub fn latest(database: &Path) -> io::Result<Option<Position>> {
    let text = match fs::read(directory(database).join(LATEST)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let words = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().split_once(' '));
    let position = words.and_then(|(seq, token)| Some(Position { seq: seq.parse().ok()?, token: token.parse().ok()? }));
    Ok(Some(position.filter(|position| i64::try_from(position.seq).is_ok()).unwrap_or(ILLEGIBLE)))
}

/// What was told is not to be missed any more.
///
/// # Errors
/// As of removing a file.
pub fn forget_latest(database: &Path) -> io::Result<()> {
    match fs::remove_file(directory(database).join(LATEST)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Of a position at the start there is nothing to tell: it may be that of a gateway which has found another history.
fn write_latest(path: &Path, member: &Member) -> io::Result<()> {
    if member.pos == 0 {
        return Ok(());
    }
    let text = format!("{} {}", member.pos, member.token);
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.write_all_at(format!("{text:LATEST_BYTES$}").as_bytes(), 0)
}

fn directory(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-fleet");
    name.into()
}

fn rows(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Ok(entries) => {
            let paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
            Ok(paths.into_iter().filter(|path| path.extension().is_some_and(|found| found == EXTENSION)).collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The row, unless its gateway is gone.
fn read(path: &Path) -> io::Result<Option<Member>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.try_lock_shared().is_ok() {
        return Ok(None);
    }
    // A row that is being written may be read half old and half new: only what reads the same twice counts.
    let mut before = text(&file)?;
    for _ in 0..READS_MAX {
        let after = text(&file)?;
        if before == after {
            return Ok(Some(serde_json::from_slice(&after)?));
        }
        before = after;
    }
    Err(io::Error::other("it does not stand still"))
}

fn text(file: &File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; ROW_MAX];
    let len = file.read_at(&mut bytes, 0)?;
    bytes.truncate(len);
    Ok(bytes)
}

/// In one write, always of whole blocks.
fn write(file: &File, member: &Member) -> io::Result<()> {
    let mut text = serde_json::to_vec(member)?;
    text.resize(text.len().next_multiple_of(512), b' ');
    file.write_all_at(&text, 0)
}

/// Removes the rows of gateways that are gone.
fn clear(dir: &Path) -> io::Result<()> {
    for path in rows(dir)? {
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            _ = fs::remove_file(&path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(instance: &str, pos: u64) -> Member {
        let text = |text: &str| text.to_owned();
        let (gateway, version, config) = (text("edge-1"), text("0.1.0"), text("c0ffee"));
        let instance = text(instance);
        let (max_stale_ms, keys, complete) = (1000, 3, true);
        Member { instance, gateway, version, config, max_stale_ms, pos, keys, complete, ..Member::default() }
    }

    #[test]
    fn a_row_is_seen_while_its_gateway_lives_and_says_what_it_last_told() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("keys.db");
        assert_eq!(members(&database).unwrap(), []);
        let mut first = Row::join(&database, &member("a", 0)).unwrap();
        let second = Row::join(&database, &member("b", 7)).unwrap();
        first.tell(&member("a", 12)).unwrap();
        assert_eq!(members(&database).unwrap(), [member("a", 12), member("b", 7)]);
        drop(second);
        assert_eq!(members(&database).unwrap(), [member("a", 12)]);
        assert!(forget(&database, "a").unwrap() && !forget(&database, "a").unwrap());
        assert!(!first.is_listed());
    }

    #[test]
    fn a_row_whose_process_died_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("keys.db");
        drop(Row::join(&database, &member("a", 1)).unwrap());
        let left = directory(&database).join("dead.json");
        fs::write(&left, serde_json::to_vec(&member("dead", 1)).unwrap()).unwrap();
        assert_eq!(members(&database).unwrap(), []);
        let _row = Row::join(&database, &member("b", 1)).unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn an_attempt_to_join_that_failed_is_no_reason_to_fail_again() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("keys.db");
        fs::create_dir_all(directory(&database)).unwrap();
        fs::write(directory(&database).join("a.new"), "half").unwrap();
        let _row = Row::join(&database, &member("a", 1)).unwrap();
        assert_eq!(members(&database).unwrap(), [member("a", 1)]);
    }
}
