//! The index: which records are a key's, when they were written, and what each key was used for. `audit/index.db`, a SQLite
//! file that can always be made again from the journal.
//!
//! It holds no record. For each key it has lists of `seq`, for each journal the time range of stretches of records, and for
//! each key and day its [`usage`](super::usage). A `seq` is found in its segment by search, not by an offset kept here, so
//! that nothing breaks when a segment is compressed or moved away. Records gather in memory and are written many at a time,
//! in one transaction with the checkpoint; who asks meanwhile reads the rest from the journal itself.

mod batch;
mod open;
mod postings;
mod read;
#[cfg(test)]
mod tests;
mod write;

pub use batch::{Entry, Mark};
pub use read::{IndexReader, Span};

use super::recent::Group;
use crate::clock::{Instant, monotonic};
use batch::Batch;
use rusqlite::Connection;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The file's name in the audit directory.
pub const FILE: &str = "index.db";
/// So many records are gathered before they are written: what a question may have to read from the journal besides.
const BATCH_RECORDS_MAX: usize = 100_000;
/// None waits longer than this.
const BATCH_AGE_MAX: Duration = Duration::from_secs(60);

/// Why the index cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is not a database, one of something else, of a newer keygate, or its content contradicts itself.
    #[error("the index {path} is {how}; keygate moves it aside and makes it again from the journal when it serves")]
    Unusable { path: PathBuf, how: String },
    /// It was moved aside; the one in its place knows only what its positions say.
    #[error("the index {path} was {how} and was moved aside to {moved_to}; it is made again from the journal")]
    Replaced { path: PathBuf, how: String, moved_to: PathBuf },
    /// Disk full, no permission, locked.
    #[error("the index {path} cannot be used now: {why}")]
    Unavailable { path: PathBuf, why: String },
}

/// The index as the one process that ships the directory writes it.
pub struct Index {
    dir: PathBuf,
    path: PathBuf,
    connection: Connection,
    batch: Batch,
    /// The last `seq` that is in the file, by journal.
    positions: BTreeMap<String, u64>,
    /// When the first record of the batch came.
    gathering_since: Option<Instant>,
}

// === impl Index ===

impl Index {
    /// Opens the index of an audit directory, or makes it. One that cannot be used is moved aside, with a warning.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`] when the file cannot be written or moved.
    pub fn open(dir: &Path) -> Result<Self, IndexError> {
        let path = dir.join(FILE);
        let connection = match open::writer(&path) {
            Err(IndexError::Unusable { how, .. }) => {
                let moved_to = open::move_aside(&path)?;
                tracing::warn!(index = %path.display(), why = how, moved_to = %moved_to.display(), "the audit index is made again");
                open::writer(&path)?
            }
            opened => opened?,
        };
        let lasts = open::lasts(&connection).map_err(|error| IndexError::of(&path, &error))?;
        let positions = lasts.iter().map(|(name, last, _)| (name.clone(), *last)).collect();
        let batch = Batch::after(lasts);
        Ok(Self { dir: dir.to_owned(), path, connection, batch, positions, gathering_since: None })
    }

    /// The last `seq` of each journal that is in the file: where deliveries go on after a restart.
    pub const fn positions(&self) -> &BTreeMap<String, u64> {
        &self.positions
    }

    /// Takes records, in order within each journal. What was taken before is passed over, so a delivery may be repeated.
    ///
    /// # Errors
    /// [`IndexError::Unavailable`]: the records are kept, and the next call tries to write them again.
    /// [`IndexError::Replaced`]: all that the index had taken is gone; deliveries must go on from its positions.
    pub fn deliver<'a>(&mut self, entries: impl IntoIterator<Item = Entry<'a>>) -> Result<(), IndexError> {
        for entry in entries {
            if !self.batch.add(&entry) {
                return Err(self.of_another(entry.journal));
            }
            if self.batch.records() >= BATCH_RECORDS_MAX {
                self.flush()?;
            }
        }
        self.flush_if_old()
    }

    /// The same for the records of a group.
    ///
    /// # Errors
    /// As of [`Index::deliver`].
    pub fn deliver_group(&mut self, group: &Group) -> Result<(), IndexError> {
        if !self.batch.add_group(group) {
            return Err(self.of_another(&group.journal));
        }
        if self.batch.records() >= BATCH_RECORDS_MAX { self.flush() } else { self.flush_if_old() }
    }

    fn of_another(&mut self, journal: &str) -> IndexError {
        let how = format!("made from another journal {journal}");
        self.recover(IndexError::Unusable { path: self.path.clone(), how })
    }

    fn flush_if_old(&mut self) -> Result<(), IndexError> {
        let now = monotonic();
        let since = *self.gathering_since.get_or_insert(now);
        if now.saturating_duration_since(since) >= BATCH_AGE_MAX { self.flush() } else { Ok(()) }
    }

    /// Writes what has been gathered. To be called before the end.
    ///
    /// # Errors
    /// As of [`Index::deliver`].
    pub fn flush(&mut self) -> Result<(), IndexError> {
        match write::write(&mut self.connection, &self.batch, &self.dir) {
            Ok(()) => {
                self.positions = self.batch.positions();
                self.batch.clear();
                self.gathering_since = None;
                Ok(())
            }
            Err(error) => Err(self.recover(IndexError::of(&self.path, &error))),
        }
    }

    /// Puts a new file in the place of one that turned out to be unusable.
    fn recover(&mut self, error: IndexError) -> IndexError {
        let IndexError::Unusable { path, how } = error else { return error };
        match self.replace() {
            Ok(moved_to) => IndexError::Replaced { path, how, moved_to },
            Err(error) => error,
        }
    }

    fn replace(&mut self) -> Result<PathBuf, IndexError> {
        // Closed first: whoever closes a database removes its log by name, and that name will be the new one's.
        self.connection = Connection::open_in_memory().map_err(|error| IndexError::of(&self.path, &error))?;
        let moved_to = open::move_aside(&self.path)?;
        *self = Self::open(&self.dir)?;
        Ok(moved_to)
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("path", &self.path).field("positions", &self.positions).finish_non_exhaustive()
    }
}

// === impl IndexError ===

impl IndexError {
    fn of(path: &Path, error: &rusqlite::Error) -> Self {
        let path = path.to_owned();
        let is_damaged = matches!(
            error.sqlite_error_code(),
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt)
        );
        match error {
            // Of a shape that we do not write.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::InvalidColumnType(..)
            | rusqlite::Error::IntegralValueOutOfRange(..) => {
                Self::Unusable { path, how: format!("damaged ({error})") }
            }
            _ if is_damaged => Self::Unusable { path, how: format!("damaged ({error})") },
            _ => Self::Unavailable { path, why: error.to_string() },
        }
    }
}
