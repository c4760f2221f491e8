//! Exactly one record for every request: the recorder, the rings, the journal and what reads it.
//!
//! A worker encodes a record and puts it into its own ring; one thread drains the rings, numbers the records and appends
//! them to the journal's segments. On the request path there is no lock and no system call. The format is described in
//! the manual's page on the audit format.

pub mod block;
pub mod events;
pub mod journal;
mod json;
pub mod pieces;
pub mod query;
pub mod reader;
pub mod record;
pub mod recorder;
pub mod seal;
pub mod segment;
pub mod verify;

pub use events::{Cause, ChangeEntry, Changes, ConnectionEvents, Health};
pub use journal::{AuditError, Journal};
pub use record::Pending;
pub use recorder::{Recorder, Unavailable};

use std::path::PathBuf;

/// `[audit]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `dir`: where the journal's segments are.
    pub dir: PathBuf,
    /// `anonymous_per_second`: refusals without a valid key beyond this become exact counts.
    pub anonymous_per_second: u32,
}

/// The version of the record format: the `schema` member.
pub const SCHEMA: u32 = 1;
/// The longest encoded record.
pub const RECORD_BYTES_MAX: usize = 4096;
