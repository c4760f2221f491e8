//! How long a file that may lack something is not taken at its word: one that was put in the place of another, and one of
//! which a gateway has noted that it has lost changes (protocols, Settle).

use super::{StoreError, fleet};
use crate::clock::{Instant, monotonic};
use rusqlite::Connection;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

/// 2 L, in which every gateway that knows more has told of it.
pub const SETTLE: Duration = Duration::from_secs(4);

/// Which file it is. Not its path: a file that is restored by `mv` is another one; nor its inode alone, which is given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: u64,
    inode: u64,
    /// In nanoseconds since 1970; 0 where the file system does not tell.
    made_at: u128,
}

/// What a process has seen of a file that may lack something.
#[derive(Debug, Default)]
pub struct Settling {
    seen: Option<(String, Instant)>,
}

// === impl FileId ===

impl FileId {
    /// The file that a path leads to now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], also when there is none.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let failed = |error| StoreError::Unavailable(format!("{}: {error}", path.display()));
        let found = fs::metadata(path).map_err(failed)?;
        let made_at = found.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Ok(Self { device: found.dev(), inode: found.ino(), made_at: made_at.map_or(0, |made_at| made_at.as_nanos()) })
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.device, self.inode, self.made_at)
    }
}

// === impl Settling ===

impl Settling {
    /// How long it takes until everybody who knows more than this file could have told it, by this process's clock, from when
    /// it first saw the file as it stands. Once it has come so far, `record` tells the others: it says false if another fork
    /// was noted just now, which has not been seen for long.
    ///
    /// # Errors
    /// Those of reading the file, and of `record`.
    pub fn left(
        &mut self,
        connection: &Connection,
        file: &FileId,
        record: impl Fn(&str) -> Result<bool, StoreError>,
    ) -> Result<Duration, StoreError> {
        loop {
            let (standing, is_whole) = fleet::standing(connection, &file.to_string())?;
            if is_whole {
                return Ok(Duration::ZERO);
            }
            let now = monotonic();
            let seen = self.seen.take().filter(|(seen, _)| *seen == standing).unwrap_or((standing, now));
            let (standing, since) = self.seen.insert(seen);
            let left = SETTLE.saturating_sub(now.saturating_duration_since(*since));
            if !left.is_zero() || record(standing)? {
                return Ok(left);
            }
        }
    }
}
