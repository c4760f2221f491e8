//! The key cache: every key of the store in this process, or as many as there is room for, digest to principal (protocols I1,
//! I5-I7).
//!
//! Readers are the workers: one look-up in moka and a few atomic loads, no lock that a writer can hold. The one writer is
//! the follower. While the whole set is inside and the feed is fresh the cache is *complete*: a miss is a definite
//! refusal without I/O. In every other state a miss is *unknown*, and unknown is never told as a bad key.

use crate::clock::{Instant, Moment, Timestamp};
use crate::key::{Digest, Principal};
use crate::sync::{self, AtomicBool, AtomicI64, AtomicU64, RwLock};
use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{self, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// How long after the last caught-up poll the feed counts as fresh: L of protocols I1.
pub const FRESH_FOR: Duration = Duration::from_secs(2);

/// How long the store's word that there is no such key is believed, and how many such words are kept.
const ABSENT_FOR: Duration = Duration::from_secs(2);
const ABSENT_MAX: u64 = 64 * 1024;

/// The cache, shared by all workers and the follower.
#[derive(Debug)]
pub struct KeyCache {
    map: Cache<Digest, Arc<Principal>, Uniform>,
    census: Arc<Census>,
    /// What was revoked. Beside the map, which may evict: revoked is final (protocols I5). The lock is not on the path of a key
    /// that is in the map, nor on any path while the cache is complete.
    tombstones: RwLock<HashSet<Digest>>,
    /// Keys that the store was asked for and does not have. The writer removes those that are made.
    absent: Cache<Digest, ()>,
    /// Another number than ever before while the store's word on a single key counts: it is the one that is followed, and
    /// whoever knew more has told it. 0 otherwise.
    trust: AtomicU64,
    trusts: AtomicU64,
    /// Whether foreign credentials are worth a look-up.
    holds_imported: AtomicBool,
    caught_up: Contact,
    max_stale: Duration,
    /// Decides nothing, hence `std`'s.
    lookups: atomic::AtomicU64,
}

/// What is in the map, as far as it is known.
#[derive(Debug, Default)]
struct Census {
    /// 0 while a miss proves nothing; a new non-zero value each time the set has become complete.
    generation: AtomicU64,
    /// Told, and compared with the bound by the one writer, hence `std`'s.
    records: atomic::AtomicU64,
    /// A key has gone that nobody removed.
    evicted: AtomicBool,
    /// There are more keys than room: that one goes when another comes is as it should be.
    overflowed: AtomicBool,
}

/// Takes a digest's own first bytes for its hash: SHA-256 has spread them already, and nobody chooses the digests of stored
/// keys, since a key is drawn at random or imported by an operator.
#[derive(Clone, Copy, Debug)]
struct Uniform(u64);

/// When the follower was last caught up, on two clocks: the earlier right to serve counts (protocols I1).
#[derive(Debug)]
struct Contact {
    wall_micros: AtomicI64,
    mono_nanos: AtomicU64,
}

/// What the cache knows of a digest.
#[derive(Debug)]
pub enum Lookup {
    Known(Arc<Principal>),
    /// Known to have been revoked, or its entity deleted; with what is known of it besides.
    Ended(Option<Arc<Principal>>),
    /// Known, and past its expiry.
    Expired(Arc<Principal>),
    /// There is no such key.
    Absent,
    /// The truth cannot be known here and now.
    Unknown,
}

// === impl KeyCache ===

impl KeyCache {
    /// An empty cache that is not complete and gives no right to serve until its follower first caught up. With room for the
    /// `expected` keys from the start, the map is not built anew several times while they are loaded.
    pub fn new(keys_max: u64, max_stale: Duration, expected: u64) -> Self {
        let census = Arc::new(Census::default());
        let counted = Arc::clone(&census);
        // Twice the bound and no time limits, so that moka never has a reason to evict while all keys fit. If it evicts all the
        // same, a miss proves nothing any more until the next full load. By age and not by use: the other policy may refuse a
        // new entry, which whoever asked for it would then miss for ever.
        let map = Cache::builder()
            .eviction_policy(EvictionPolicy::lru())
            .max_capacity(keys_max.saturating_mul(2))
            .initial_capacity(usize::try_from(expected.min(keys_max)).unwrap_or(0))
            .eviction_listener(move |_, _, cause| {
                if matches!(cause, RemovalCause::Size | RemovalCause::Expired) {
                    counted.lose();
                }
            })
            .build_with_hasher(Uniform(0));
        Self {
            map,
            census,
            tombstones: RwLock::default(),
            absent: Cache::builder().max_capacity(ABSENT_MAX).time_to_live(ABSENT_FOR).build(),
            trust: AtomicU64::new(0),
            trusts: AtomicU64::new(0),
            holds_imported: AtomicBool::new(false),
            caught_up: Contact::new(),
            max_stale,
            lookups: atomic::AtomicU64::new(0),
        }
    }

    /// Looks `digest` up as of `now`. Only the truth is told (protocols I7).
    pub fn lookup(&self, digest: &Digest, now: Moment) -> Lookup {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let generation = self.census.generation.load(Ordering::SeqCst);
        let age = self.caught_up.age(now);
        match self.current(digest) {
            Some((principal, false)) => Lookup::Ended(Some(principal)),
            Some((principal, true)) if principal.is_expired(now.wall) => Lookup::Expired(principal),
            Some((principal, true)) if age < self.max_stale => Lookup::Known(principal),
            Some((_, true)) => Lookup::Unknown,
            None if self.proves_absence(generation, age) => Lookup::Absent,
            None if self.is_entombed(digest) => Lookup::Ended(None),
            None if age < FRESH_FOR && self.is_absent(digest) => Lookup::Absent,
            None => Lookup::Unknown,
        }
    }

    /// The entry and whether it is live, judged once. One that was replaced meanwhile has ended too, but its successor is in
    /// the map already, because the writer publishes before it ends: only an entry that is still there has ended for good.
    fn current(&self, digest: &Digest) -> Option<(Arc<Principal>, bool)> {
        let mut found = self.peek(digest)?;
        loop {
            if found.is_live() {
                return Some((found, true));
            }
            let again = self.peek(digest)?;
            if Arc::ptr_eq(&again, &found) {
                return Some((found, false));
            }
            found = again;
        }
    }

    /// Whether the store has just said that there is no such key.
    fn is_absent(&self, digest: &Digest) -> bool {
        if self.trust() == 0 {
            return false;
        }
        sync::will_read(&self.absent);
        self.absent.contains_key(digest)
    }

    /// Whether the store's word on a single key counts: 0 if not. What was asked for under another number does not.
    pub(super) fn trust(&self) -> u64 {
        self.trust.load(Ordering::SeqCst)
    }

    /// Whether it is known that there is no key of another system.
    pub(super) fn holds_no_imported(&self, now: Moment) -> bool {
        !self.holds_imported() && (self.trust() != 0 && self.is_fresh(now) || self.is_authoritative(now))
    }

    /// Whether the digest is a revoked key's.
    pub(super) fn is_entombed(&self, digest: &Digest) -> bool {
        self.tombstones.read().unwrap_or_else(PoisonError::into_inner).contains(digest)
    }

    /// A miss is definite only when the set was whole before and after it, and the feed is fresh.
    fn proves_absence(&self, before: u64, age: Duration) -> bool {
        before != 0 && age < FRESH_FOR && before == self.census.generation.load(Ordering::SeqCst)
    }

    /// Whether a miss would be definite now.
    pub fn is_authoritative(&self, now: Moment) -> bool {
        self.proves_absence(self.census.generation.load(Ordering::SeqCst), self.caught_up.age(now))
    }

    /// Whether a credential of another system can be a key here.
    pub fn holds_imported(&self) -> bool {
        self.holds_imported.load(Ordering::Relaxed)
    }

    /// The number of records inside, revoked ones included.
    pub fn records(&self) -> u64 {
        self.census.records.load(Ordering::Relaxed)
    }

    /// How often the map was asked: shows that malformed credentials never get this far.
    pub fn lookups(&self) -> u64 {
        self.lookups.load(Ordering::Relaxed)
    }

    pub fn is_complete(&self) -> bool {
        self.census.generation.load(Ordering::SeqCst) != 0
    }

    /// The time since the last caught-up poll; `Duration::MAX` before the first.
    pub fn staleness(&self, now: Moment) -> Duration {
        self.caught_up.age(now)
    }

    /// For how long known keys work from now on if nothing more is heard of the store (protocols I1).
    pub fn serves_for(&self, now: Moment) -> Duration {
        self.max_stale.saturating_sub(self.staleness(now))
    }

    /// Whether known keys no longer work, because nothing was heard of the store for too long.
    pub fn is_stale(&self, now: Moment) -> bool {
        self.staleness(now) >= self.max_stale
    }

    pub fn is_fresh(&self, now: Moment) -> bool {
        self.staleness(now) < FRESH_FOR
    }

    // What follows is for the one writer.

    /// The entry of `digest`, ended or not.
    pub(super) fn peek(&self, digest: &Digest) -> Option<Arc<Principal>> {
        sync::will_read(&self.map);
        self.map.get(digest)
    }

    /// Publishes `principal`, then ends the entry it replaces.
    pub(super) fn publish(&self, digest: Digest, principal: Arc<Principal>, replaced: Option<&Principal>) {
        sync::will_write(&self.map);
        self.map.insert(digest, principal);
        match replaced {
            Some(old) => old.end(),
            None => _ = self.census.records.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// No entry's version is above `seq` any more.
    pub(super) fn lower(&self, seq: u64) {
        sync::will_write(&self.map);
        self.map.iter().for_each(|(_, principal)| principal.lower(seq));
    }

    /// Loses every entry in force whose version is above `seq`; their digests.
    pub(super) fn lose_after(&self, seq: u64) -> Vec<Digest> {
        let is_lost = |(digest, principal): (Arc<Digest>, Arc<Principal>)| {
            (principal.version() > seq && principal.is_live()).then(|| {
                principal.end();
                *digest
            })
        };
        let lost: Vec<_> = self.map.iter().filter_map(is_lost).collect();
        sync::will_write(&self.map);
        for digest in &lost {
            self.map.invalidate(digest);
            self.census.lose();
        }
        lost
    }

    /// Loses every entry whose version is 0, and ends it; their digests. What was revoked stays so beside the map.
    pub(super) fn drop_outgoing(&self) -> Vec<Digest> {
        let outgoing = |(digest, principal): (Arc<Digest>, Arc<Principal>)| {
            (principal.version() == 0).then(|| {
                principal.end();
                *digest
            })
        };
        let outgoing: Vec<_> = self.map.iter().filter_map(outgoing).collect();
        sync::will_write(&self.map);
        for digest in &outgoing {
            self.map.invalidate(digest);
        }
        self.census.records.fetch_sub(outgoing.len() as u64, Ordering::Relaxed);
        outgoing
    }

    /// Ends all entries: what they let through is to be judged again.
    pub(super) fn end_all(&self) {
        self.map.iter().for_each(|(_, principal)| principal.end());
    }

    pub(super) fn entomb(&self, digest: Digest) {
        self.tombstones.write().unwrap_or_else(PoisonError::into_inner).insert(digest);
    }

    /// The store was asked and does not have it.
    pub(super) fn note_absent(&self, digest: &Digest) {
        sync::will_write(&self.absent);
        self.absent.insert(*digest, ());
    }

    pub(super) fn forget_absence(&self, digest: &Digest) {
        sync::will_write(&self.absent);
        self.absent.invalidate(digest);
    }

    pub(super) fn trust_store(&self, trusts: bool) {
        if trusts && self.trust() == 0 {
            self.trust.store(self.trusts.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        } else if !trusts && self.trust() != 0 {
            self.trust.store(0, Ordering::SeqCst);
            sync::will_write(&self.absent);
            self.absent.invalidate_all();
        }
    }

    /// Everything but what was revoked is forgotten: it may be another store's.
    pub(super) fn clear(&self) {
        self.set_incomplete();
        sync::will_write(&self.map);
        self.map.invalidate_all();
        self.census.records.store(0, Ordering::Relaxed);
        self.forget_overflow();
    }

    pub(super) fn note_imported(&self) {
        self.holds_imported.store(true, Ordering::Relaxed);
    }

    /// Whether a key has been evicted since the last load began.
    pub(super) fn has_evicted(&self) -> bool {
        self.census.evicted.load(Ordering::SeqCst)
    }

    /// Whatever was evicted is loaded again.
    pub(super) fn forget_eviction(&self) {
        self.census.evicted.store(false, Ordering::SeqCst);
    }

    pub(super) fn note_eviction(&self) {
        self.census.evicted.store(true, Ordering::SeqCst);
    }

    /// As if moka had evicted a key, which it does only where there is no room for all, and the set is not whole any more.
    #[cfg(any(test, feature = "model"))]
    pub fn lose(&self, digest: &Digest) {
        self.set_incomplete();
        sync::will_write(&self.map);
        self.map.invalidate(digest);
        self.census.lose();
    }

    /// There are more keys than room.
    pub(super) fn set_overflowed(&self) {
        self.census.overflowed.store(true, Ordering::SeqCst);
        self.set_incomplete();
    }

    /// Whether there are more keys than room is found out anew.
    pub(super) fn forget_overflow(&self) {
        self.census.overflowed.store(false, Ordering::SeqCst);
    }

    pub(super) fn set_incomplete(&self) {
        self.census.generation.store(0, Ordering::SeqCst);
    }

    /// Declares the set whole, under a generation that was never used before.
    pub(super) fn set_complete(&self, generation: u64) {
        self.census.generation.store(generation, Ordering::SeqCst);
    }

    /// Everything up to the head of a poll sent at `sent` has been applied.
    pub(super) fn mark_caught_up(&self, sent: Moment) {
        self.caught_up.set(sent);
    }
}

// === impl Census ===

impl Census {
    /// A key has been evicted: until it is loaded again a miss proves nothing.
    fn lose(&self) {
        self.records.fetch_sub(1, Ordering::Relaxed);
        if self.overflowed.load(Ordering::SeqCst) {
            return;
        }
        self.evicted.store(true, Ordering::SeqCst);
        self.generation.store(0, Ordering::SeqCst);
        tracing::error!("a key was evicted from the cache; unknown keys are answered 503 until it is reloaded");
    }
}

// === impl Uniform ===

impl BuildHasher for Uniform {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for Uniform {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.first_chunk().map_or(0, |first| u64::from_ne_bytes(*first));
    }

    /// A slice's length, which all digests share.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

// === impl Contact ===

impl Contact {
    const fn new() -> Self {
        Self { wall_micros: AtomicI64::new(i64::MIN), mono_nanos: AtomicU64::new(0) }
    }

    fn set(&self, sent: Moment) {
        self.mono_nanos.store(sent.mono.as_nanos(), Ordering::Relaxed);
        self.wall_micros.store(sent.wall.as_micros(), Ordering::Release);
    }

    /// The longer of the times that have passed on the two clocks.
    fn age(&self, now: Moment) -> Duration {
        let wall = self.wall_micros.load(Ordering::Acquire);
        if wall == i64::MIN {
            return Duration::MAX;
        }
        let mono = Instant::from_nanos(self.mono_nanos.load(Ordering::Relaxed));
        now.wall.since(Timestamp::from_micros(wall)).max(now.mono.saturating_duration_since(mono))
    }
}
