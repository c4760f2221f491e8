//! Gateways on one store, clients that use keys on each of them, and what a run shows at its end.

use super::book::{self, Book, Entry, State};
use super::operator::Operator;
use crate::harness::client::head;
use crate::harness::{Client, Gateway, Upstream, eventually};
use fastrand::Rng;
use serde_json::Value;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two requests of a client.
const PACE: Duration = Duration::from_millis(8);
/// What a gateway says that is held.
const FOREIGN_WORDS: &str = "is not the one that was followed";
/// What one says whose store has lost its last entries.
const FORK_WORDS: &str = "has lost changes";

pub struct Site {
    pub book: Book,
    pub upstream: Upstream,
    pub places: Vec<Place>,
    stop: AtomicBool,
}

/// A gateway's place: its process may be another one later.
pub struct Place {
    pub gateway: Mutex<Gateway>,
    /// Where it listens: elsewhere after every start.
    address: Mutex<SocketAddr>,
    /// Its process is not there, or was not a moment ago.
    is_down: AtomicBool,
    /// It began without a snapshot, or loads everything anew: it may say that it does not know yet.
    is_cold: AtomicBool,
}

// === impl Site ===

impl Site {
    pub fn new(book: Book, upstream: Upstream, gateways: Vec<Gateway>) -> Self {
        let places = gateways.into_iter().map(|gateway| Place::new(gateway, false)).collect();
        Self { book, upstream, places, stop: AtomicBool::new(false) }
    }

    /// Uses keys on every gateway while `act` runs.
    pub fn under_load<T>(&self, seed: u64, act: impl FnOnce() -> T) -> T {
        self.stop.store(false, Ordering::SeqCst);
        std::thread::scope(|scope| {
            for (number, place) in self.places.iter().enumerate() {
                let mut random = Rng::with_seed(seed.wrapping_add(number as u64));
                scope.spawn(move || self.use_keys(number, place, &mut random));
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            self.stop.store(true, Ordering::SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Another gateway, which has no snapshot, while the others go on.
    pub fn with_cold<T>(&self, number: usize, gateway: Gateway, seed: u64, act: impl FnOnce(&Place) -> T) -> T {
        let place = Place::new(gateway, true);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Rng::with_seed(seed);
                while !stop.load(Ordering::SeqCst) {
                    self.use_one(number, &place, &mut random);
                }
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&place)));
            stop.store(true, Ordering::SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn use_keys(&self, number: usize, place: &Place, random: &mut Rng) {
        while !self.stop.load(Ordering::SeqCst) {
            self.use_one(number, place, random);
        }
    }

    fn use_one(&self, number: usize, place: &Place, random: &mut Rng) {
        std::thread::sleep(PACE);
        let Some(index) = self.book.draw(random, |_| true) else { return };
        let resource = if random.u8(..4) == 0 { "products" } else { "orders" };
        let (was_down, before) = (place.is_down(), self.book.entry(index));
        let status = place.ask(&before, book::target(&before, resource, number, index, self.book.now()));
        let after = self.book.entry(index);
        self.book.count(format!("{:?} {status:?}", before.state));
        let allowed: &[u16] = match (before.state, after.state) {
            (State::Ended, _) => &[401],
            (State::Good, State::Good) if resource == "products" => match (before.narrowed_at, after.narrowed_at) {
                (Some(_), _) => &[403],
                (None, None) => &[200],
                (None, Some(_)) => &[200, 403],
            },
            (State::Good, State::Good) => &[200],
            (State::Foreign, _) | (_, State::Foreign) => &[200, 401, 403],
            (State::Good | State::Changing, _) => &[200, 401, 403],
        };
        let is_allowed = match status {
            // One that is being made may not be known yet, which is then told.
            Some(503) => place.is_cold.load(Ordering::SeqCst) || before.state == State::Changing,
            Some(status) => allowed.contains(&status),
            None => was_down || place.is_down(),
        };
        if !is_allowed {
            let said = format!("gateway {number} answered {status:?} for {resource}");
            self.book.violation(format!("{said}, and not one of {allowed:?}: {before:?}"));
        }
    }

    /// Every gateway says the truth of every key.
    pub fn settles(&self, number: usize, place: &Place) {
        for (index, entry) in self.book.entries().iter().enumerate() {
            let wanted = match entry.state {
                State::Good => 200,
                State::Ended => 401,
                State::Changing => continue,
                State::Foreign => 401,
            };
            eventually(&format!("gateway {number} answers {wanted} to {entry:?}"), || {
                let target = book::target(entry, "orders", number, index, self.book.now());
                (place.ask(entry, target) == Some(wanted)).then_some(())
            });
        }
    }

    /// The same of all, and that nothing went wrong meanwhile.
    pub fn conclude(&self, words: &str) {
        self.places.iter().enumerate().for_each(|(number, place)| self.settles(number, place));
        let violations = self.book.violations();
        assert!(violations.is_empty(), "{words}\n{}\n{}", violations.join("\n"), self.logs());
    }

    pub fn logs(&self) -> String {
        let log = |place: &Place| place.gateway.lock().unwrap().log_text();
        self.places.iter().map(log).collect::<Vec<_>>().join("\n---\n")
    }

    /// A person has the gateways take the store as it is, which all are held by.
    pub fn take_up(&self, number: usize, command: &str) {
        let all = |code: i32, state: &str| (Some(code), vec![state.to_owned(); self.places.len()]);
        eventually("every gateway is held", || (self.states() == all(1, "held: another fleet")).then_some(()));
        // Nobody acts sooner than a gateway says so: it tells the fleet first, and speaks when that could be told.
        self.is_told("keygate_store_foreign_total", FOREIGN_WORDS);
        // They forget what they know, and load everything anew.
        self.places.iter().for_each(|place| place.excuse(true));
        let output = self.places[number].gateway.lock().unwrap().run(&["store", command, "--yes"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        eventually("they follow it", || (self.states() == all(0, "following")).then_some(()));
        // Nothing is called unknown before the store has settled.
        for place in &self.places {
            let is_complete = || place.gateway.lock().unwrap().metric("keygate_cache_complete") >= 1.0;
            eventually("a gateway knows that it knows all keys", || is_complete().then_some(()));
        }
        std::thread::sleep(PACE * 10);
        self.places.iter().for_each(|place| place.excuse(false));
    }

    pub fn states(&self) -> (Option<i32>, Vec<String>) {
        states(&self.places[0].gateway.lock().unwrap())
    }

    /// Whether everything that was acknowledged is in the store.
    pub fn is_in(&self, operator: &Operator) -> bool {
        self.book.entries().iter().all(|entry| match entry.state {
            State::Changing => true,
            State::Foreign => operator.is_in_force(entry.id).is_none(),
            State::Good => operator.is_in_force(entry.id) == Some(true),
            // Where another fleet's store was adopted it is not there.
            State::Ended => operator.is_in_force(entry.id) != Some(true),
        })
    }

    /// Each gateway has said that the store has lost its last entries.
    pub fn is_fork_told(&self) {
        self.is_told("keygate_store_forks_total", FORK_WORDS);
    }

    /// Each gateway has counted it, and said so.
    fn is_told(&self, metric: &str, words: &str) {
        for (number, place) in self.places.iter().enumerate() {
            eventually(&format!("gateway {number} counts {metric}"), || {
                (place.gateway.lock().unwrap().metric(metric) >= 1.0).then_some(())
            });
            eventually(&format!("gateway {number} says '{words}'"), || {
                place.gateway.lock().unwrap().log_text().contains(words).then_some(())
            });
        }
    }
}

// === impl Place ===

impl Place {
    fn new(gateway: Gateway, is_cold: bool) -> Self {
        let address = Mutex::new(gateway.address);
        Self {
            gateway: Mutex::new(gateway),
            address,
            is_down: AtomicBool::new(false),
            is_cold: AtomicBool::new(is_cold),
        }
    }

    fn is_down(&self) -> bool {
        self.is_down.load(Ordering::SeqCst)
    }

    pub fn kill(&self) {
        self.is_down.store(true, Ordering::SeqCst);
        let mut gateway = self.gateway.lock().unwrap();
        gateway.signal("KILL");
        gateway.wait();
    }

    /// Whether from now on it may say that it does not know.
    pub fn excuse(&self, is_cold: bool) {
        self.is_cold.store(is_cold, Ordering::SeqCst);
    }

    pub fn start(&self) {
        let mut gateway = self.gateway.lock().unwrap();
        gateway.restart();
        *self.address.lock().unwrap() = gateway.address;
        self.is_down.store(false, Ordering::SeqCst);
    }

    /// Over a connection of its own; none when there is no answer.
    fn ask(&self, entry: &Entry, target: String) -> Option<u16> {
        let address = *self.address.lock().unwrap();
        let bearer = format!("Authorization: Bearer {}", entry.text);
        let mut client = Client::try_connect(address)?;
        Some(client.send(head("GET", &target, &[&bearer])).try_read("GET")?.status)
    }
}

/// What `keygate store status` says of each gateway, and its exit code.
fn states(gateway: &Gateway) -> (Option<i32>, Vec<String>) {
    let output = gateway.run(&["store", "status", "--output", "json"]);
    let members: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let state = |member: &Value| member["state"].as_str().unwrap_or_default().to_owned();
    (output.status.code(), members.as_array().into_iter().flatten().map(state).collect())
}
