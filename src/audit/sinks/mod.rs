//! Sinks: where the journal's records are sent besides the journal itself, and the [`Shipper`] that sends them.
//!
//! Nothing here is on a request's path: a sink reads synced records back from the segments, from a checkpoint of its own,
//! at least once, in order within a journal. Who takes them tells repeated ones by `(journal, seq)`. One process of a
//! directory ships all its journals; each sink has a thread of its own, so that none waits for another.

pub mod checkpoint;
mod delivery;
mod feed;
mod gap;
pub mod http;
mod keeping;
mod shipper;
mod sqlite;
mod status;
mod stdout;
mod tails;

pub use feed::Room;
pub use http::Http;
pub use shipper::{Shipper, ShipperParts, Watch, directory_id};
pub use sqlite::Sqlite;
pub use status::{Standing, State};
pub use stdout::Stdout;

use super::recent::Group;
use crate::clock::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// One record on its way to a sink. Where the journal lacks records, a line of kind `gap` stands in their place, under the
/// last of their numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The journal's id, such as `edge-1/0`.
    pub journal: Arc<str>,
    pub seq: u64,
    /// The JSON object as it stands in the journal, without its newline. Several sinks may hold it.
    pub text: Arc<str>,
}

/// The last `seq` that a sink has taken, by journal.
pub type Positions = BTreeMap<String, u64>;

/// A destination of records. Its calls may block, for a bounded time: each sink has a thread of its own.
pub trait Sink: Send {
    /// Its name in gateway.toml, in metrics and in the name of its checkpoint.
    fn name(&self) -> &str;

    /// How far the destination itself says it has come, if it can say so. Asked before the first delivery and after
    /// [`SinkError::Behind`]; where the shipper's own checkpoint says less, that counts.
    ///
    /// # Errors
    /// [`SinkError::Later`] when it cannot be asked now.
    fn position(&mut self) -> Result<Option<Positions>, SinkError>;

    /// Delivers lines, in order within each journal; they may have been delivered before. All were taken when this returns,
    /// or none counts as taken.
    ///
    /// # Errors
    /// [`SinkError`], by what is to be done about it. None of them loses a line.
    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError>;

    /// Whether it needs no lines, and takes [`Group`]s where there are any.
    fn takes_groups(&self) -> bool {
        false
    }

    /// The same for the records of a group, of which the first ones may have been delivered before.
    ///
    /// # Errors
    /// As of [`Sink::deliver`], but for [`SinkError::TooLarge`].
    fn deliver_group(&mut self, _: &Group) -> Result<(), SinkError> {
        Err(SinkError::later("it takes lines alone"))
    }

    /// Writes what it has taken and holds back, where it gathers. Called before the end.
    ///
    /// # Errors
    /// As of [`Sink::deliver`]: what is not written comes again after the next start.
    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    /// What it has written of what it took, where it gathers: the checkpoint moves no further.
    fn settled(&self) -> Option<Positions> {
        None
    }

    /// Everything that was synced at `read_at` has been delivered. Told again and again while nothing new comes, and a last time
    /// when the shipper stops.
    ///
    /// # Errors
    /// As of [`Self::deliver`].
    fn caught_up(&mut self, read_at: Timestamp, is_last: bool) -> Result<(), SinkError> {
        _ = (read_at, is_last);
        Ok(())
    }

    /// Whether the journal must keep what this sink has not taken yet.
    fn is_durable(&self) -> bool {
        true
    }
}

/// A sink, and how much it is sent at once.
pub struct Outlet {
    pub sink: Box<dyn Sink>,
    pub room: Room,
}

/// Why lines were not taken, told apart by what to do. There is none for giving lines up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The same lines again, not before `after` where the destination asked for that.
    #[error("{why}")]
    Later { why: String, after: Option<Duration> },
    /// In smaller pieces.
    #[error("{why}")]
    TooLarge { why: String },
    /// The destination has lost what it had taken: from the [`Sink::position`] that it has now.
    #[error("{why}")]
    Behind { why: String },
}

// === impl SinkError ===

impl SinkError {
    /// Again, whenever the shipper sees fit.
    pub fn later(why: impl Into<String>) -> Self {
        Self::Later { why: why.into(), after: None }
    }
}

/// Appends lines as they stand in a segment.
fn push_lines(out: &mut Vec<u8>, batch: &[Line]) {
    for line in batch {
        out.extend_from_slice(line.text.as_bytes());
        out.push(b'\n');
    }
}
