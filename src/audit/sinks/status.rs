//! How the sinks stand: for metrics, readiness and whoever reads the log.

use super::Positions;
use super::feed::end_of;
use crate::audit::reader;
use crate::clock::Timestamp;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Different troubles of journals that are remembered as told.
const TOLD_MAX: usize = 1000;

/// What one sink's thread tells of itself.
#[derive(Debug)]
pub struct Status {
    pub name: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    positions: Positions,
    /// When the oldest record that waits was written.
    waiting_since: Option<Timestamp>,
}

/// What a sink does now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Another process of this directory ships.
    #[default]
    Elsewhere,
    /// Takes records.
    Delivering,
    /// Is tried again; why, in words.
    Failing(String),
}

/// How one sink stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub name: String,
    pub state: State,
    /// Synced records that it has not taken.
    pub lag_records: u64,
    /// The age of the oldest of them.
    pub lag: Duration,
}

/// The troubles of journals that were told: each is told once, however many sinks come upon it.
#[derive(Debug, Default)]
pub struct Told(Mutex<BTreeSet<String>>);

// === impl Status ===

impl Status {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it was in another state before.
    pub fn enter(&self, state: State) -> bool {
        let mut inner = self.lock();
        let is_new = inner.state != state;
        inner.state = state;
        is_new
    }

    pub fn advance(&self, positions: &Positions) {
        self.lock().positions.clone_from(positions);
    }

    pub fn wait_since(&self, time: Option<Timestamp>) {
        self.lock().waiting_since = time;
    }

    /// `ends`: the last synced record of each slot, by the slot's number.
    pub fn standing(&self, ends: &[(String, u64)], now: Timestamp) -> Standing {
        let inner = self.lock();
        let taken = |slot: &str| {
            let here = inner
                .positions
                .iter()
                .filter(|(journal, _)| journal.rsplit_once('/').is_some_and(|(_, number)| number == slot));
            here.map(|(_, seq)| *seq).max().unwrap_or(0)
        };
        let lag_records = match inner.state {
            State::Elsewhere => 0,
            State::Delivering | State::Failing(_) => {
                ends.iter().map(|(slot, end)| end.saturating_sub(taken(slot))).sum()
            }
        };
        let lag = inner.waiting_since.map_or(Duration::ZERO, |since| now.since(since));
        Standing { name: self.name.clone(), state: inner.state.clone(), lag_records, lag }
    }
}

/// The last synced record of each slot of an audit directory. One that cannot be read is left out.
pub fn ends(dir: &Path) -> Vec<(String, u64)> {
    let slots = reader::journals(dir).unwrap_or_default();
    let end = |slot: &std::path::PathBuf| {
        let number = slot.file_name()?.to_str()?.to_owned();
        Some((number, end_of(slot).ok()??))
    };
    slots.iter().filter_map(end).collect()
}

// === impl Told ===

impl Told {
    /// Whether this was not told before.
    pub fn is_new(&self, trouble: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < TOLD_MAX && told.insert(trouble.to_owned())
    }

    /// How many different ones there were.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
