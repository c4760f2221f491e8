//! How the sinks stand: for metrics, readiness and whoever reads the log.

use super::Positions;
use super::feed::end_of;
use crate::audit::reader;
use crate::clock::{Instant, Timestamp};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Different troubles of journals that are remembered as told.
const TOLD_MAX: usize = 1000;
/// The same is said again after this, and no more than so many different things meanwhile.
const SAY_AGAIN: Duration = Duration::from_secs(600);
const SAID_MAX: usize = 16;

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

/// What was said lately.
#[derive(Debug, Default)]
pub struct Said(Vec<(String, Instant)>);

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

// === impl Said ===

impl Said {
    /// Whether `words` are to be said now.
    pub fn is_news(&mut self, words: &str, now: Instant) -> bool {
        self.0.retain(|(_, at)| now.saturating_duration_since(*at) < SAY_AGAIN);
        let is_news = self.0.len() < SAID_MAX && !self.0.iter().any(|(said, _)| said == words);
        if is_news {
            self.0.push((words.to_owned(), now));
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_not_said_all_the_time_and_neither_is_always_something_else() {
        let (mut said, start) = (Said::default(), Instant::from_nanos(0));
        let news =
            |said: &mut Said, seconds: u64, words: &str| said.is_news(words, start + Duration::from_secs(seconds));
        assert!(news(&mut said, 0, "down") && news(&mut said, 1, "busy"));
        assert!(!news(&mut said, 2, "down") && !news(&mut said, 599, "busy"));
        assert!(news(&mut said, 600, "down"));
        let different = (0..1000).filter(|n| news(&mut said, 700, &n.to_string())).count();
        assert!((10..=SAID_MAX).contains(&different), "{different}");
    }
}
