//! The store's server: records and log in a [`MemoryStore`], rows as the engines keep them, and what befalls a server.

use super::lock;
use super::time::{MILLIS, SECONDS, True};
use keygate::store::memory::MemoryStore;
use keygate::store::{Change, Feed, Fleet, FleetId, KeyStore as _, Member, Mutation, Position, StoreError};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// How long the rows of a server that has just started, or whose history has just turned out to be another one, prove nothing: as
/// the engines have it.
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
    /// Which file it is, where the store is one.
    file: u64,
    kept: Kept,
    /// What the gateways have seen last of what the rows belong to, and since when.
    seen: Option<(Standing, True)>,
    rows: BTreeMap<String, Row>,
}

/// What the rows belong to: the run of the server, or the file, and the fork that was noted last.
type Standing = (u64, u64);

/// What the store says of its rows; lost and put back with everything else.
#[derive(Clone, Copy, Debug, Default)]
struct Kept {
    fork: u64,
    /// For which the rows are known to be whole.
    whole: Option<Standing>,
}

/// A store as it was at some time: a replica that stopped there, a backup, or another store altogether.
pub struct Copy {
    pub store: MemoryStore,
    kept: Kept,
}

/// A gateway's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub beat: u64,
    pub member: Member,
}

// === impl Copy ===

impl Copy {
    /// A store that never had to do with this one.
    pub fn of(store: MemoryStore) -> Self {
        Self { store, kept: Kept::default() }
    }

    pub fn changes(&self) -> Vec<Change> {
        entries(
            self.store.changes().and_then(|mut changes| changes.poll(Position::default(), None, usize::MAX)).unwrap(),
        )
    }
}

// === impl State ===

impl State {
    const fn standing(&self, engine: Engine) -> Standing {
        match engine {
            Engine::Beats => (self.run, self.kept.fork),
            Engine::Locks => (self.file, self.kept.fork),
        }
    }
}

// === impl Server ===

impl Server {
    /// The how-many-eth server of this simulation: no two have a run in common.
    pub fn new(engine: Engine, number: u64) -> Self {
        let run = number + 1;
        let kept = Kept { fork: 0, whole: Some((run, 0)) };
        let state = State { is_up: true, run, file: run, kept, seen: None, rows: BTreeMap::new() };
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
        (state.is_up, state.run) = (true, state.run + 2);
        let lost: Vec<String> = state.rows.keys().filter(|instance| !keep(instance)).cloned().collect();
        lost.iter().for_each(|instance| _ = state.rows.remove(instance));
        lost
    }

    // === Its history ===

    pub fn copy(&self) -> Copy {
        Copy { store: self.store.copy(), kept: lock(&self.state).kept }
    }

    /// Another history is in its place: of another run and another file, or of the same.
    pub fn place(&self, copy: &Copy, is_new: bool) {
        self.store.put_back(&copy.store);
        let mut state = lock(&self.state);
        (state.is_up, state.kept) = (true, copy.kept);
        if is_new {
            (state.run, state.file) = (state.run + 2, state.file + 2);
        }
    }

    /// It takes the rows of another server, which it was a replica of.
    pub fn take_rows(&self, other: &Self) {
        let rows = lock(&other.state).rows.clone();
        lock(&self.state).rows = rows;
    }

    /// Settling begins anew (protocols, Settle).
    pub fn note_fork(&self, now: True) {
        lock(&self.state).kept.fork = now + 1;
    }

    pub fn fork(&self) -> u64 {
        lock(&self.state).kept.fork
    }

    // === Rows ===

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

    /// The row of an instance.
    pub fn row(&self, instance: &str) -> Option<Member> {
        lock(&self.state).rows.get(instance).map(|row| row.member.clone())
    }

    /// All rows, and how long it takes until none can be missing. Whoever asks makes what they belong to a seen one.
    pub fn rows(&self, now: True) -> (Vec<Row>, Duration) {
        let mut state = lock(&self.state);
        let standing = state.standing(self.engine);
        let mut settles_in = 0;
        if state.kept.whole != Some(standing) {
            let seen = state.seen.filter(|(seen, _)| *seen == standing).unwrap_or((standing, now));
            state.seen = Some(seen);
            // The server tells whole milliseconds.
            settles_in = SETTLE.saturating_sub((now - seen.1) / MILLIS * MILLIS);
            if settles_in == 0 {
                state.kept.whole = Some(standing);
            }
        }
        (state.rows.values().cloned().collect(), Duration::from_micros(settles_in))
    }

    pub fn fleet(&self, now: True) -> Fleet {
        let (rows, settles_in) = self.rows(now);
        Fleet { members: rows.into_iter().map(|row| row.member).collect(), settles_in }
    }

    // === Records ===

    /// Applies a mutation; what it added to the log.
    pub fn apply(&self, mutation: &Mutation) -> Result<(Vec<u64>, Vec<Change>), StoreError> {
        let before = self.store.changes()?.head()?;
        let seqs = self.store.apply(mutation)?;
        let mut state = lock(&self.state);
        if before == Position::default() && state.kept.fork == 0 {
            // A store that has just been made has lost nothing, unless somebody knows better.
            state.kept.whole = Some(state.standing(self.engine));
        }
        drop(state);
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
