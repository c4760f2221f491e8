//! Exactly one record for every request: the recorder, the rings, the journal and what reads it.
//!
//! A worker drafts a record and puts it into its own ring, a mapped file; one thread drains the rings, makes numbered lines of what
//! they hold, appends them to the journal's segments and syncs. On the request path there is no lock and no system call. The format is described in
//! the manual's page on the audit format.

mod appender;
pub mod block;
#[cfg(test)]
mod death;
mod draft;
pub mod events;
pub mod fields;
pub mod hash;
pub mod index;
pub mod journal;
mod json;
pub mod keeper;
mod line;
pub mod pieces;
pub mod query;
pub mod reader;
pub mod recent;
pub mod record;
pub mod recorder;
mod ring;
pub mod seal;
pub mod segment;
pub mod sinks;
mod slot;
pub mod texts;
pub mod usage;
pub mod verify;
mod words;
mod writer;

pub use events::{Cause, ChangeEntry, Changes, ConnectionEvents, Health};
pub use journal::{AuditError, Journal, Tellers, UnderWay};
pub use keeper::{Keeper, Retention};
pub use record::Pending;
pub use recorder::{NotSynced, Recorder, Unavailable};

use std::path::PathBuf;
use std::time::Duration;

/// `[audit]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `dir`: where the journal's segments are.
    pub dir: PathBuf,
    /// `durability`: what a record survives before its response is over.
    pub durability: Durability,
    /// `overload`: what happens to requests that cannot be recorded.
    pub overload: Overload,
    /// `anonymous_per_second`: refusals without a valid key beyond this become exact counts.
    pub anonymous_per_second: u32,
    /// `query_names`: the parameters whose values a record may show.
    pub query_names: Vec<String>,
    /// `rotate`: when a segment is closed.
    pub rotation: Rotation,
    /// `retain`: how long segments are kept.
    pub retention: Retention,
}

/// What a record survives before the last byte of its response goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The end of the process, where rings can be mapped; of a request that was under way then, nothing.
    Async,
    /// The end of the process.
    Written,
    /// The end of the machine.
    Synced,
}

/// What happens to requests that cannot be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overload {
    /// They are refused, and counted.
    Reject,
    /// They are served, and the records that have no room are counted.
    Drop,
}

/// When a segment is closed.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// It has grown to this.
    pub bytes: u64,
    /// It has been written to for so long.
    pub age: Duration,
}

// === impl Durability ===

impl Durability {
    /// Whether a response waits for its record to be synced: also where only that can keep the record from a kill.
    fn waits_for_sync(self, health: &Health) -> bool {
        match self {
            Self::Async => false,
            Self::Written => health.has_lost_rings(),
            Self::Synced => true,
        }
    }
}

// === impl Settings ===

impl Settings {
    /// The settings that an operator who says nothing gets, for this directory.
    pub const fn of(dir: PathBuf) -> Self {
        Self {
            dir,
            durability: Durability::Written,
            overload: Overload::Reject,
            // What a stranger can fill a disk with: less than 2 MiB a minute.
            anonymous_per_second: 50,
            query_names: Vec::new(),
            rotation: Rotation { bytes: 64 * 1024 * 1024, age: Duration::from_secs(24 * 3600) },
            retention: Retention { age: Duration::from_secs(90 * 24 * 3600), bytes: 10 * 1024 * 1024 * 1024 },
        }
    }
}

/// The version of the record format: the `schema` member.
pub const SCHEMA: u32 = 1;
/// The longest record in a ring; the line of one is at most 4 KiB.
pub const RECORD_BYTES_MAX: usize = 2048;
