//! What was acknowledged of every key, and what the upstream saw of it.

use crate::harness::upstream::Received;
use crate::harness::{Reply, Upstream};
use keygate::key::{EntityId, KeyId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A key, and what is known of it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub id: KeyId,
    pub text: String,
    pub entity: EntityId,
    pub state: State,
    /// It was good when the run began, and nobody changes it.
    pub is_known: bool,
    /// It ended because it was rotated, which is no revocation: who changes it after that was lost has the last word.
    pub is_rotated: bool,
    /// From when on no request that starts may be accepted, as of the run's beginning.
    pub ended_at: Option<Duration>,
    /// The same for requests for products alone.
    pub narrowed_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It was acknowledged by every gateway.
    Good,
    /// Somebody changes it.
    Changing,
    /// That it has ended was acknowledged by every gateway.
    Ended,
    /// A person has said that the fleet it is of does not count.
    Foreign,
}

/// Everything that is written down.
pub struct Book {
    origin: Instant,
    entries: Mutex<Vec<Entry>>,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
    violations: Mutex<Vec<String>>,
    answers: Mutex<BTreeMap<String, u64>>,
}

/// A request at the upstream.
struct Arrival {
    gateway: usize,
    index: usize,
    /// When the client began to send it.
    started: Duration,
    is_for_products: bool,
}

/// Violations beyond these are not told.
const VIOLATIONS_MAX: usize = 20;

// === impl Book ===

impl Book {
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
            entries: Mutex::default(),
            arrivals: Arc::default(),
            violations: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    /// An upstream that writes down what arrives.
    pub fn upstream(&self) -> Upstream {
        let arrivals = Arc::clone(&self.arrivals);
        Upstream::start(move |received| {
            arrivals.lock().unwrap().extend(read(received));
            Reply::ok("erp")
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

    /// Adds a key; where it stands.
    pub fn add(&self, entry: Entry) -> usize {
        let mut entries = self.entries.lock().unwrap();
        entries.push(entry);
        entries.len() - 1
    }

    pub fn change(&self, index: usize, change: impl FnOnce(&mut Entry)) {
        change(&mut self.entries.lock().unwrap()[index]);
    }

    /// One of the keys of which this is true.
    pub fn draw(&self, random: &mut fastrand::Rng, is_wanted: impl Fn(&Entry) -> bool) -> Option<usize> {
        let entries = self.entries.lock().unwrap();
        let wanted: Vec<_> = (0..entries.len()).filter(|&index| is_wanted(&entries[index])).collect();
        wanted.get(random.usize(..wanted.len().max(1))).copied()
    }

    pub fn end(&self, index: usize) {
        let now = self.now();
        self.change(index, |entry| (entry.state, entry.ended_at) = (State::Ended, Some(now)));
    }

    pub fn violation(&self, what: String) {
        let mut violations = self.violations.lock().unwrap();
        if violations.len() < VIOLATIONS_MAX && !violations.contains(&what) {
            violations.push(format!("{:9.3}  {what}", self.now().as_secs_f64()));
        }
    }

    pub fn count(&self, what: String) {
        *self.answers.lock().unwrap().entry(what).or_default() += 1;
    }

    /// How often the clients were told what, in one line.
    pub fn answers(&self) -> String {
        let answers = self.answers.lock().unwrap();
        answers.iter().map(|(what, times)| format!("{what}: {times}")).collect::<Vec<_>>().join(", ")
    }

    /// Everything that must not be, once all is over.
    pub fn violations(&self) -> Vec<String> {
        let (entries, arrivals) = (self.entries(), self.arrivals.lock().unwrap());
        assert!(!arrivals.is_empty(), "nothing arrived at the upstream");
        for arrival in arrivals.iter() {
            let entry = &entries[arrival.index];
            let has_ended = entry.ended_at.is_some_and(|end| arrival.started > end);
            let is_narrowed = entry.narrowed_at.is_some_and(|end| arrival.started > end) && arrival.is_for_products;
            if has_ended || is_narrowed {
                let (gateway, id, started) = (arrival.gateway, entry.id, arrival.started);
                self.violation(format!(
                    "gateway {gateway} let {id} through at {started:?}, which had ended: {entry:?}"
                ));
            }
        }
        self.violations.lock().unwrap().clone()
    }
}

impl Entry {
    pub fn good(id: KeyId, text: String, entity: EntityId) -> Self {
        Self {
            id,
            text,
            entity,
            state: State::Good,
            is_known: false,
            is_rotated: false,
            ended_at: None,
            narrowed_at: None,
        }
    }
}

/// Where a request goes: the upstream reads there who sent it.
pub fn target(entry: &Entry, resource: &str, gateway: usize, index: usize, started: Duration) -> String {
    format!("/v1/entities/{}/{resource}?{gateway}.{index}.{}", entry.entity, started.as_micros())
}

fn read(received: &Received) -> Option<Arrival> {
    let target = received.target();
    let (path, query) = target.split_once('?')?;
    let mut numbers = query.split('.').map_while(|number| number.parse::<u64>().ok());
    let mut next = || numbers.next();
    let (gateway, index, started) = (next()?, next()?, next()?);
    Some(Arrival {
        gateway: gateway as usize,
        index: index as usize,
        started: Duration::from_micros(started),
        is_for_products: path.ends_with("/products"),
    })
}
