//! What was said of every key, and what the upstream saw.

use super::GATEWAYS;
use crate::harness::upstream::Received;
use crate::harness::{Key, Reply, Upstream};
use keygate::key::{Mode, Prefix, Token};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A key, and what is known of it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: Key,
    pub state: State,
    /// From when on no request that starts may be accepted, for each gateway; as of the run's beginning.
    pub ends: [Option<Duration>; GATEWAYS],
    /// What the command said that ended it.
    pub words: String,
    /// Somebody has tried to.
    pub is_rotated: bool,
    /// Somebody is changing it.
    pub is_taken: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A command has returned that made it, and none has begun that ends it.
    Good,
    /// A command has begun that ends it.
    Ending,
    /// It has ended, at the times that the entry tells.
    Ended,
}

/// A request at the upstream.
#[derive(Clone, Debug)]
struct Arrival {
    gateway: usize,
    /// When the client began to send it.
    started: Duration,
    /// Which key the client presented: none for one that was never made.
    entry: Option<usize>,
    key_id: String,
}

/// Everything that is written down, by whoever takes part.
pub struct Ledger {
    origin: Instant,
    entries: Mutex<Vec<Entry>>,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    history: Mutex<Vec<String>>,
    violations: Mutex<Vec<String>>,
    answers: Mutex<HashMap<String, u64>>,
}

/// Violations beyond these are not told.
const VIOLATIONS_MAX: usize = 20;

// === impl Ledger ===

impl Ledger {
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            entries: Mutex::default(),
            arrivals: Arc::default(),
            history: Mutex::default(),
            violations: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    /// An upstream that writes down what arrives.
    pub fn upstream(&self) -> Upstream {
        let arrivals = Arc::clone(&self.arrivals);
        Upstream::start(move |received| {
            arrivals.lock().unwrap().extend(read(received));
            if received.target().contains("/products") { Reply::events_without_end() } else { Reply::ok("erp") }
        })
    }

    /// The time since the run's beginning.
    pub fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.entries.lock().unwrap().clone()
    }

    pub fn entry(&self, index: usize) -> Entry {
        self.entries.lock().unwrap()[index].clone()
    }

    pub fn extend(&self, entry: Option<Entry>) {
        self.entries.lock().unwrap().extend(entry);
    }

    pub fn change(&self, index: usize, change: impl FnOnce(&mut Entry)) {
        change(&mut self.entries.lock().unwrap()[index]);
    }

    /// Takes one of the keys in this state that nobody else has taken, for the caller alone.
    pub fn take(&self, state: State, random: &mut fastrand::Rng) -> Option<usize> {
        let mut entries = self.entries.lock().unwrap();
        let is_free = |entry: &Entry| entry.state == state && !entry.is_taken;
        let free: Vec<_> = (0..entries.len()).filter(|&index| is_free(&entries[index])).collect();
        let index = *free.get(random.usize(..free.len().max(1)))?;
        entries[index].is_taken = true;
        Some(index)
    }

    /// Writes down something that was done or said.
    pub fn note(&self, what: &str) {
        self.history.lock().unwrap().push(format!("{:9.3}  {what}", self.now().as_secs_f64()));
    }

    pub fn history(&self) -> String {
        self.history.lock().unwrap().join("\n")
    }

    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < VIOLATIONS_MAX && !violations.contains(&what) {
            self.note(&what);
            violations.push(what);
        }
    }

    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().unwrap().clone()
    }

    pub fn is_violated(&self) -> bool {
        !self.violations.lock().unwrap().is_empty()
    }

    /// Counts an answer that a client or a manager got.
    pub fn count(&self, what: String) {
        *self.answers.lock().unwrap().entry(what).or_default() += 1;
    }

    pub fn summary(&self) -> String {
        let answers = self.answers.lock().unwrap();
        let mut lines: Vec<_> = answers.iter().map(|(what, count)| format!("{count:8} {what}")).collect();
        lines.sort_by(|left, right| left[9..].cmp(&right[9..]));
        lines.push(format!("{:8} requests at the upstream", self.arrivals.lock().unwrap().len()));
        lines.join("\n")
    }

    /// Looks for requests that should not have arrived.
    pub fn judge(&self) {
        let (arrivals, entries) = (self.arrivals.lock().unwrap().clone(), self.entries());
        arrivals.iter().filter_map(|arrival| fault(arrival, &entries)).for_each(|fault| self.violation(fault));
    }
}

/// What is wrong with a request that has arrived.
fn fault(arrival: &Arrival, entries: &[Entry]) -> Option<String> {
    let Some(index) = arrival.entry else {
        return Some(format!("a key that was never made was accepted: {arrival:?}"));
    };
    let entry = &entries[index];
    if entry.key.id != arrival.key_id {
        return Some(format!("{} was taken for another key: {arrival:?}", entry.key.id));
    }
    let end = entry.ends[arrival.gateway].filter(|end| arrival.started > *end)?;
    let (key, words) = (&entry.key.id, &entry.words);
    Some(format!("{key} was accepted although it had ended at {end:?}, as was said: {words}\n  {arrival:?}"))
}

/// The target of a request that tells who sent it and when.
pub fn target(resource: &str, gateway: usize, started: Duration, entry: Option<usize>) -> String {
    let entry = entry.map_or_else(|| "never".to_owned(), |index| index.to_string());
    format!("{resource}?gateway={gateway}&started={}&entry={entry}", started.as_micros())
}

fn read(received: &Received) -> Option<Arrival> {
    let target = received.target();
    let value = |name: &str| target.split(['?', '&']).find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    Some(Arrival {
        gateway: value("gateway")?.parse().unwrap(),
        started: Duration::from_micros(value("started")?.parse().unwrap()),
        entry: value("entry")?.parse().ok(),
        key_id: received.header("x-key-id").unwrap_or_default(),
    })
}

/// A well-formed key that nobody was given.
pub fn never_made() -> String {
    let token = Token::generate(&Prefix::new("ark").unwrap(), Mode::Live, "acme").unwrap();
    token.text.expose().clone()
}
