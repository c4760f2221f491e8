//! Keys that the cache has no room for are asked for one by one (protocols I7, I8): each at most once at a time, and a bounded
//! number in a second. A fill only puts into the cache what the store says; whoever waits for it looks again.

use super::applier::{Applier, Origin};
use super::cache::KeyCache;
use crate::clock::Instant;
use crate::key::{Digest, KeyRecord};
use crate::store::{KeyStore, Record, StoreError};
use crate::sync::{Mutex, MutexGuard, Receiver, Sender, channel};
use crate::telemetry::{self, Filled};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// How many keys the store is asked for in a second.
const FILLS_PER_SECOND: u32 = 100;
const SECOND: Duration = Duration::from_secs(1);
/// How many keys are asked for at a time, and how many requests wait for one of them.
const FLIGHTS_MAX: usize = 64;
const WAITING_MAX: usize = 256;
/// How long a request waits for one.
const PATIENCE: Duration = Duration::from_millis(250);

/// What is being asked for. Shared by the workers, the applier and the [`Filler`].
#[derive(Debug)]
pub struct Fills {
    flights: Mutex<Flights>,
}

#[derive(Debug)]
struct Flights {
    by_digest: HashMap<Digest, Flight>,
    /// None once nothing is to be asked for any more.
    queue: Option<Sender<Digest>>,
    /// Begun in the second that began then.
    begun: u32,
    since: Instant,
}

/// One key that is being asked for.
#[derive(Debug, Default)]
struct Flight {
    /// Dropped when the answer is in the cache.
    waiting: Vec<oneshot::Sender<()>>,
    /// The log has told of this key since: the answer may be older than that.
    changed: bool,
    /// Under which trust in the store it was asked for.
    trust: u64,
}

/// Too many keys were asked for: try again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

/// Asks the store. Owned by one thread.
pub struct Filler {
    store: Arc<dyn KeyStore>,
    cache: Arc<KeyCache>,
    applier: Arc<Mutex<Applier>>,
    fills: Arc<Fills>,
    queue: Receiver<Digest>,
}

// === impl Fills ===

impl Fills {
    /// None yet, and the queue for a [`Filler`]. Without one nothing is filled.
    pub fn new() -> (Arc<Self>, Receiver<Digest>) {
        let (queue, asked) = channel();
        let (by_digest, queue, since) = (HashMap::new(), Some(queue), Instant::from_nanos(0));
        let flights = Flights { by_digest, queue, begun: 0, since };
        (Arc::new(Self { flights: Mutex::new(flights) }), asked)
    }

    /// Has the store asked for a key, and waits for the answer, but not for long: then look again.
    ///
    /// # Errors
    /// [`Overloaded`], when too many were asked for in this second, or have not been answered yet.
    pub async fn ask(&self, digest: Digest, trust: u64, now: Instant) -> Result<(), Overloaded> {
        let Some(answered) = self.join(digest, trust, now) else {
            telemetry::filled(Filled::Refused);
            return Err(Overloaded);
        };
        // An answer that is late serves the next request.
        _ = tokio::time::timeout(PATIENCE, answered).await;
        Ok(())
    }

    fn join(&self, digest: Digest, trust: u64, now: Instant) -> Option<oneshot::Receiver<()>> {
        let (answered, waiting) = oneshot::channel();
        let mut flights = self.flights();
        if let Some(flight) = flights.by_digest.get_mut(&digest) {
            if flight.waiting.len() >= WAITING_MAX {
                flight.waiting.retain(|waiting| !waiting.is_closed());
            }
            let has_room = flight.waiting.len() < WAITING_MAX;
            return has_room.then(|| flight.waiting.push(answered)).map(|()| waiting);
        }
        if now.saturating_duration_since(flights.since) >= SECOND {
            (flights.begun, flights.since) = (0, now);
        }
        let is_full = flights.begun >= FILLS_PER_SECOND || flights.by_digest.len() >= FLIGHTS_MAX;
        if is_full || !flights.enqueue(digest) {
            return None;
        }
        flights.begun += 1;
        flights.by_digest.insert(digest, Flight { waiting: vec![answered], changed: false, trust });
        Some(waiting)
    }

    /// Nothing is asked for any more, and the [`Filler`] ends.
    pub fn close(&self) {
        self.flights().queue = None;
    }

    /// The log tells of this key: an answer that is on its way may be older.
    pub(super) fn touch(&self, digest: &Digest) {
        if let Some(flight) = self.flights().by_digest.get_mut(digest) {
            flight.changed = true;
        }
    }

    fn end(&self, digest: &Digest) -> Flight {
        self.flights().by_digest.remove(digest).unwrap_or_default()
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Flights ===

impl Flights {
    fn enqueue(&self, digest: Digest) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.send(digest).is_ok())
    }
}

// === impl Filler ===

impl Filler {
    pub(super) const fn new(
        store: Arc<dyn KeyStore>,
        cache: Arc<KeyCache>,
        applier: Arc<Mutex<Applier>>,
        fills: Arc<Fills>,
        queue: Receiver<Digest>,
    ) -> Self {
        Self { store, cache, applier, fills, queue }
    }

    /// Answers until [`Fills::close`].
    pub fn run(self) {
        while let Ok(digest) = self.queue.recv() {
            let found = self.find(&digest);
            telemetry::filled(self.put(&digest, found));
        }
    }

    /// Asks, and makes sure that who answered holds what this gateway has applied: it may be another store by now.
    fn find(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        let position = self.applier().position();
        let found = self.store.key_by_digest(digest)?;
        let is_ours = self.store.holds(position)?;
        is_ours.then_some(found).ok_or_else(|| StoreError::Unavailable("another history".to_owned()))
    }

    fn applier(&self) -> MutexGuard<'_, Applier> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an answer into the cache, unless the log has told of the key since it was asked for. The lock makes this and what
    /// the log tells one after the other.
    fn put(&self, digest: &Digest, found: Result<Option<KeyRecord>, StoreError>) -> Filled {
        let mut applier = self.applier();
        let flight = self.fills.end(digest);
        match found {
            Ok(_) if flight.changed || flight.trust != self.cache.trust() => Filled::Outdated,
            // Of a change that the log has not told yet, and may never tell: a store may forget.
            Ok(Some(key)) if key.version > applier.position().seq => Filled::Outdated,
            Ok(Some(key)) => {
                applier.apply(&Record::Key(key), Origin::Fill);
                Filled::Found
            }
            Ok(None) => {
                self.cache.note_absent(digest);
                Filled::Absent
            }
            Err(_) => Filled::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Settings;
    use crate::auth::follower::{digest, key};
    use crate::clock::monotonic;
    use crate::key::{Prefix, Vocabulary};
    use crate::store::Position;
    use crate::store::memory::MemoryStore;

    fn filler() -> Filler {
        let (keys_max, max_stale) = (10, Duration::from_secs(60));
        let (prefix, vocabulary) = (Prefix::new("ark").unwrap(), Arc::new(Vocabulary::default()));
        let settings = Settings { prefix, keys_max, max_stale, vocabulary };
        let (cache, (fills, queue)) = (Arc::new(KeyCache::new(keys_max, max_stale, 0)), Fills::new());
        let applier = Arc::new(Mutex::new(Applier::new(Arc::clone(&cache), settings, Arc::clone(&fills))));
        Filler::new(Arc::new(MemoryStore::default()), cache, applier, fills, queue)
    }

    /// What the store says of a key whose record has this version.
    fn of_version(version: u64) -> Result<Option<KeyRecord>, StoreError> {
        let Record::Key(key) = key(1) else { unreachable!() };
        Ok(Some(KeyRecord { version, ..key }))
    }

    #[test]
    fn i7_what_another_history_says_of_a_key_does_not_count() {
        let filler = filler();
        assert!(filler.find(&digest(1)).unwrap().is_none());
        filler.applier().stand_at(Position { seq: 3, token: 7 });
        assert!(filler.find(&digest(1)).is_err());
    }

    #[test]
    fn i7_what_the_log_has_not_told_is_not_taken_from_the_store() {
        let filler = filler();
        filler.applier().stand_at(Position { seq: 3, token: 7 });
        assert_eq!(filler.put(&digest(1), of_version(4)), Filled::Outdated);
        assert_eq!(filler.put(&digest(1), of_version(3)), Filled::Found);
    }

    #[test]
    fn i7_an_answer_does_not_count_that_the_log_or_the_loss_of_the_store_has_overtaken() {
        let filler = filler();
        let _waiting = [1, 2, 3].map(|number| filler.fills.join(digest(number), 0, monotonic()).unwrap());
        filler.fills.touch(&digest(1));
        assert_eq!(filler.put(&digest(1), Ok(None)), Filled::Outdated);
        assert_eq!(filler.put(&digest(2), Ok(None)), Filled::Absent);
        // It was asked for when another store was believed, or none.
        filler.cache.trust_store(true);
        assert_eq!(filler.put(&digest(3), Ok(None)), Filled::Outdated);
    }
}
