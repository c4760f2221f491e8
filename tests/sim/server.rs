//! The store's server: records and log in a [`MemoryStore`], rows as the Redis engine keeps them, and what befalls a server.

use super::lock;
use super::time::{MILLIS, SECONDS, True};
use keygate::store::memory::MemoryStore;
use keygate::store::{Change, Feed, Fleet, FleetId, KeyStore as _, Member, Mutation, Position, StoreError};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How long the rows of a server that has just started prove nothing: as the Redis engine has it.
const SETTLE: True = 4 * SECONDS;

/// Which engine's manners the rows have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Rows outlive their process and are removed by those who see them silent.
    Beats,
    /// Rows go with their process.
    Locks,
}

pub struct Server {
    pub store: MemoryStore,
    pub engine: Engine,
    state: Mutex<State>,
}

struct State {
    is_up: bool,
    /// Connections belong to one run.
    run: u64,
    /// Since when the gateways have seen this run.
    seen: (u64, True),
    rows: BTreeMap<String, Row>,
}

/// A gateway's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub beat: u64,
    pub member: Member,
}

// === impl Server ===

impl Server {
    pub fn new(engine: Engine) -> Self {
        let state = State { is_up: true, run: 1, seen: (1, 0), rows: BTreeMap::new() };
        Self { store: MemoryStore::default(), engine, state: Mutex::new(state) }
    }

    pub fn is_up(&self) -> bool {
        lock(&self.state).is_up
    }

    pub fn run(&self) -> u64 {
        lock(&self.state).run
    }

    pub fn stop(&self) {
        lock(&self.state).is_up = false;
    }

    /// Starts it as another run, without the rows that `keep` does not keep; those that were lost.
    pub fn restart(&self, mut keep: impl FnMut(&str) -> bool) -> Vec<String> {
        let mut state = lock(&self.state);
        (state.is_up, state.run) = (true, state.run + 1);
        let lost: Vec<String> = state.rows.keys().filter(|instance| !keep(instance)).cloned().collect();
        lost.iter().for_each(|instance| _ = state.rows.remove(instance));
        lost
    }

    /// Writes a row; whether there was none.
    pub fn put_row(&self, row: Row) -> bool {
        lock(&self.state).rows.insert(row.member.instance.clone(), row).is_none()
    }

    pub fn remove_row(&self, instance: &str) -> bool {
        lock(&self.state).rows.remove(instance).is_some()
    }

    /// Removes a row unless it has changed meanwhile.
    pub fn remove_unchanged(&self, row: &Row) {
        let mut state = lock(&self.state);
        if state.rows.get(&row.member.instance) == Some(row) {
            state.rows.remove(&row.member.instance);
        }
    }

    /// All rows, and how long it takes until none can be missing. Whoever asks makes this run a seen one.
    pub fn rows(&self, now: True) -> (Vec<Row>, Duration) {
        let mut state = lock(&self.state);
        if self.engine == Engine::Beats && state.seen.0 != state.run {
            state.seen = (state.run, now);
        }
        // The server tells whole milliseconds.
        let seen_for = (now - state.seen.1) / MILLIS * MILLIS;
        let is_first = state.seen == (1, 0) || self.engine == Engine::Locks;
        let settles_in = if is_first { 0 } else { SETTLE.saturating_sub(seen_for) };
        (state.rows.values().cloned().collect(), Duration::from_micros(settles_in))
    }

    pub fn fleet(&self, now: True) -> Fleet {
        let (rows, settles_in) = self.rows(now);
        Fleet { members: rows.into_iter().map(|row| row.member).collect(), settles_in }
    }

    /// Applies a mutation; what it added to the log.
    pub fn apply(&self, mutation: &Mutation) -> Result<(Vec<u64>, Vec<Change>), StoreError> {
        let before = self.store.changes()?.head()?;
        let seqs = self.store.apply(mutation)?;
        Ok((seqs, entries(self.store.changes()?.poll(before, None, usize::MAX)?)))
    }

    pub fn poll(&self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        self.store.changes()?.poll(from, fleet, limit)
    }
}

fn entries(feed: Feed) -> Vec<Change> {
    match feed {
        Feed::Entries { entries, .. } => entries,
        Feed::Diverged { .. } | Feed::Foreign { .. } => panic!("the server lost its own position"),
    }
}
