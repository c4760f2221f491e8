//! The follower: the one writer of the key cache. It takes up the snapshot, loads the whole set where that is not enough, and
//! applies the change log as it grows.

use super::Settings;
use super::applier::{Applier, Ended, Origin};
use super::cache::KeyCache;
use super::fill::{Filler, Fills};
use super::kept::Kept;
use super::load::{self, Load, Reload};
use super::snapshot::Snapshot;
use crate::clock::{Clock, Moment, Timestamp};
use crate::key::Digest;
use crate::store::{Change, Changes, Feed, KeyStore, Member, Position, StoreError};
use crate::sync::{Mutex, MutexGuard, Receiver};
use crate::telemetry;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Log entries read at a time.
const ENTRIES: usize = 500;
/// How often the fleet is told when this gateway was last caught up.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// Keeps one [`KeyCache`] true. Owned by one thread.
pub struct Follower {
    cache: Arc<KeyCache>,
    store: Arc<dyn KeyStore>,
    changes: Box<dyn Changes>,
    applier: Arc<Mutex<Applier>>,
    fills: Arc<Fills>,
    kept: Kept,
    member: Member,
    cut: Cut,
    heard: Box<dyn Fn(&Change) + Send>,
    /// The last change that was told: some are read twice.
    heard_to: u64,
    clock: Clock,
    /// None until a load has begun or a snapshot was taken up.
    position: Option<Position>,
    generation: u64,
    /// Everything up to the position is known.
    loaded: bool,
    loading: Option<Load>,
    /// The store has run for so long that whoever knew more than it has told it, or this gateway knew it before: what it
    /// says may be served (protocols, Settle).
    settled: bool,
    /// Requests are served: what ends must be cut.
    serving: bool,
    joined: bool,
    /// The fleet could not be told how far this gateway has come.
    untold: bool,
}

/// What a follower is made of.
pub struct Parts {
    pub cache: Arc<KeyCache>,
    pub store: Arc<dyn KeyStore>,
    pub settings: Settings,
    pub fills: Arc<Fills>,
    /// None where another process owns it.
    pub snapshot: Option<Snapshot>,
    pub clock: Clock,
    /// What the fleet is told of this gateway.
    pub member: Member,
    pub cut: Cut,
    /// Is given each change once it is applied, for the journal.
    pub heard: Box<dyn Fn(&Change) + Send>,
}

/// Has every worker judge again what it has in flight by entries that have ended, or by these keys; what it gives returns when all have done so.
pub type Cut = Box<dyn Fn(Ended) -> Box<dyn FnOnce()> + Send>;

/// What one turn of the follower found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Everything is known and applied.
    CaughtUp,
    /// There is more; take another turn at once.
    Behind,
    /// The log does not hold our position. Nothing was applied; unknown keys are answered 503 from now on.
    Diverged,
}

// === impl Follower ===

impl Follower {
    /// # Errors
    /// When the store is not ours to use.
    pub fn new(parts: Parts) -> Result<Self, StoreError> {
        let applier = Applier::new(Arc::clone(&parts.cache), parts.settings, Arc::clone(&parts.fills));
        Ok(Self {
            changes: parts.store.changes()?,
            applier: Arc::new(Mutex::new(applier)),
            fills: parts.fills,
            cache: parts.cache,
            store: parts.store,
            kept: Kept::new(parts.snapshot, parts.clock.clone()),
            member: parts.member,
            cut: parts.cut,
            heard: parts.heard,
            heard_to: 0,
            clock: parts.clock,
            position: None,
            generation: 0,
            loaded: false,
            loading: None,
            settled: false,
            serving: false,
            joined: false,
            untold: false,
        })
    }

    /// Takes up the snapshot, then follows the store until everything is known. From then on requests may be served: what
    /// ends is cut.
    ///
    /// # Errors
    /// The store's. When it cannot be asked, what the snapshot gave stays, with the right to serve that it had
    /// (protocols I2).
    pub fn start(&mut self) -> Result<(), StoreError> {
        self.recall();
        let outcome = loop {
            match self.turn() {
                Ok(Turn::Behind) => {}
                Ok(Turn::CaughtUp | Turn::Diverged) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.serving = true;
        outcome
    }

    /// Who answers when a worker asks for a key that the cache lacks.
    pub fn filler(&self, queue: Receiver<Digest>) -> Filler {
        let (store, cache, applier) = (Arc::clone(&self.store), Arc::clone(&self.cache), Arc::clone(&self.applier));
        Filler::new(store, cache, applier, Arc::clone(&self.fills), queue)
    }

    /// Rests until there may be something new.
    pub fn wait(&mut self) {
        self.changes.wait(self.position.unwrap_or_default());
    }

    /// Reads the log once and applies what is new; goes on with a load, if one is due.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be asked: the right to serve is not renewed.
    pub fn turn(&mut self) -> Result<Turn, StoreError> {
        let turn = self.take_turn();
        if turn.is_err() {
            // Whoever answers next may be another store.
            self.cache.trust_store(false);
        }
        turn
    }

    fn take_turn(&mut self) -> Result<Turn, StoreError> {
        if !self.joined {
            // Before the head is read: a change after that waits for this gateway (protocols I2).
            self.tell()?;
            self.joined = true;
        }
        if self.position.is_none() && self.begin_load(Reload::Start)?.is_none() {
            return self.diverge();
        }
        // A store that does not hold our position is not loaded from.
        let turn = self.read()?;
        if turn == Turn::Diverged {
            return Ok(turn);
        }
        if let Some(reason) = self.reload_due().filter(|_| self.loading.is_none()) {
            self.begin_load(reason)?;
        }
        if self.loading.is_some() {
            self.go_on_loading()?;
            return Ok(Turn::Behind);
        }
        Ok(turn)
    }

    /// Leaves the fleet: nobody waits for this gateway any more. What it keeps on disk must not be served from again without
    /// the store, or it stays a member (protocols, Rows).
    pub fn leave(mut self) {
        self.fills.close();
        match self.kept.retire() {
            Ok(()) => self.changes.leave(&self.member),
            Err(error) => {
                tracing::error!(%error, "the snapshot cannot be retired; this gateway stays in the fleet's list")
            }
        }
    }

    // === From the snapshot ===

    fn recall(&mut self) {
        let now = self.clock.moment();
        match self.kept.recall(now, |page| load::apply(&self.applier, &page)) {
            Ok(Some(recalled)) => {
                self.stand_at(recalled.position);
                self.loaded = true;
                if let Some(contact) = recalled.contact {
                    self.cache.mark_caught_up(contact);
                    self.settled = !self.cache.is_stale(now);
                }
            }
            Ok(None) => {}
            Err(error) => {
                self.applier().forget();
                telemetry::snapshot_refused();
                tracing::error!(%error, "the snapshot cannot be used; the keys are loaded from the store");
            }
        }
        // A set that was whole when it was written is known to have changed only through the log.
        _ = self.applier().take_ended();
    }

    // === From the store ===

    fn reload_due(&self) -> Option<Reload> {
        match self.position {
            None => Some(Reload::Start),
            Some(_) if self.cache.has_evicted() => Some(Reload::Eviction),
            Some(_) if self.kept.is_due() => Some(Reload::Snapshot),
            Some(_) => None,
        }
    }

    /// Begins to read the whole set, page by page in the order of versions. What changes meanwhile comes through the log, and
    /// versions sort it out. None when an empty store is in the place of one that had changes.
    fn begin_load(&mut self, reason: Reload) -> Result<Option<()>, StoreError> {
        let since = match self.position {
            Some(position) => position,
            None => self.changes.head()?,
        };
        if since == Position::default() && self.kept.had_position() && reason == Reload::Start {
            return Ok(None);
        }
        let load = Load::begin(self.store.changes()?, self.kept.draft(), since, reason)?;
        if reason == Reload::Eviction {
            self.cache.set_incomplete();
            self.cache.forget_eviction();
        }
        self.loading = Some(load);
        self.stand_at(since);
        telemetry::reload_begun(reason.as_str());
        Ok(Some(()))
    }

    /// Applies pages for a while, and cuts what they ended.
    fn go_on_loading(&mut self) -> Result<(), StoreError> {
        let Some(mut load) = self.loading.take() else { return Ok(()) };
        let is_done = load.go_on(&self.applier, &self.clock);
        self.cut_ended()();
        if !is_done {
            self.loading = Some(load);
            return Ok(());
        }
        let (since, reason) = (load.since, load.reason);
        let draft = load.end().inspect_err(|_| self.repeat(reason))?;
        self.loaded = true;
        if self.kept.replace(draft, since)? {
            self.stand_at(since);
        }
        Ok(())
    }

    /// A load came to nothing: it is still due.
    fn repeat(&mut self, reason: Reload) {
        match reason {
            Reload::Start => {
                self.position = None;
                self.applier().forget();
            }
            Reload::Eviction => self.cache.note_eviction(),
            Reload::Snapshot => {}
        }
    }

    fn stand_at(&mut self, position: Position) {
        self.position = Some(position);
        self.applier().stand_at(position);
    }

    fn read(&mut self) -> Result<Turn, StoreError> {
        let from = self.position.unwrap_or_default();
        let sent = self.clock.moment();
        let (head, entries) = match self.changes.poll(from, None, ENTRIES)? {
            Feed::Entries { head, entries } => (head, entries),
            Feed::Diverged { .. } | Feed::Foreign { .. } => return self.diverge(),
        };
        self.apply(&entries);
        self.advance(&entries)?;
        let confirmed = self.confirm();
        if self.position.unwrap_or_default().seq < head.seq {
            return Ok(Turn::Behind);
        }
        let is_settling = !self.changes.settles_in().is_zero();
        self.settled |= !is_settling;
        self.cache.trust_store(!is_settling && self.loaded);
        if confirmed && self.loaded && self.settled {
            self.catch_up(sent);
        }
        Ok(Turn::CaughtUp)
    }

    fn apply(&self, entries: &[Change]) {
        let mut applier = self.applier();
        entries.iter().for_each(|change| applier.apply(&change.after, Origin::Log));
    }

    fn applier(&self) -> MutexGuard<'_, Applier> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing of the store's history has been applied: whoever waits for a change of it must wait.
    fn diverge(&mut self) -> Result<Turn, StoreError> {
        self.cache.set_incomplete();
        self.cache.trust_store(false);
        if let Some(loading) = self.loading.take() {
            self.repeat(loading.reason);
        }
        self.tell_of(Position::default())?;
        Ok(Turn::Diverged)
    }

    /// Entries that were applied count as read when what they ended has been cut and they are on disk (protocols I3, I9).
    fn advance(&mut self, entries: &[Change]) -> Result<(), StoreError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let cut = self.cut_ended();
        let kept = self.kept.append(entries);
        cut();
        kept?;
        self.stand_at(Position { seq: last.seq, token: last.token });
        let now = self.clock.now();
        for change in entries.iter().filter(|change| change.seq > self.heard_to) {
            telemetry::change_applied(now.since(change.at));
            (self.heard)(change);
        }
        self.heard_to = self.heard_to.max(last.seq);
        Ok(())
    }

    /// What was in force and is not any more ends in flight too.
    fn cut_ended(&mut self) -> Box<dyn FnOnce()> {
        // Before requests are served there is nobody who could cut.
        let ended = self.applier().take_ended().filter(|_| self.serving);
        ended.map_or_else(|| Box::new(|| {}) as Box<dyn FnOnce()>, |changed| (self.cut)(changed))
    }

    /// Everything up to the head of a poll sent at `sent` is known.
    fn catch_up(&mut self, sent: Moment) {
        let lacks = self.loading.as_ref().is_some_and(|loading| loading.reason == Reload::Eviction);
        if !self.cache.is_complete() && self.applier().is_whole() && !lacks {
            self.generation += 1;
            self.cache.set_complete(self.generation);
            // Unless a key was lost, or found no room, just now.
            if self.cache.has_evicted() || !self.applier().is_whole() {
                self.cache.set_incomplete();
            }
        }
        self.cache.mark_caught_up(sent);
        let told = Timestamp::from_micros(self.member.caught_up_at);
        if sent.wall.since(told) >= TELL_EVERY || sent.wall < told {
            self.member.caught_up_at = sent.wall.as_micros();
        }
        let position = self.position.unwrap_or_default();
        if self.changes.outlives_process() {
            self.kept.stamp(sent, position);
        }
    }

    /// Confirms to the fleet how far this gateway has come; whether that could be done. A store that can be read and not
    /// written may be one that nobody writes to any more: what it says renews no right (protocols I1, FEED).
    fn confirm(&mut self) -> bool {
        let told = self.tell();
        match &told {
            Ok(()) => self.untold = false,
            Err(error) if !std::mem::replace(&mut self.untold, true) => {
                tracing::error!(%error, "changes are applied but cannot be confirmed; without that the right to serve runs out");
            }
            Err(_) => {}
        }
        told.is_ok()
    }

    fn tell(&mut self) -> Result<(), StoreError> {
        self.tell_of(self.position.filter(|_| self.loaded).unwrap_or_default())
    }

    fn tell_of(&mut self, position: Position) -> Result<(), StoreError> {
        (self.member.pos, self.member.token) = (position.seq, position.token);
        self.member.keys = self.cache.records();
        self.member.complete = self.cache.is_complete();
        self.member.volatile = self.kept.is_volatile();
        self.changes.tell(&self.member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::cache::Lookup;
    use crate::key::{EntityId, EntityRecord, KeyId, KeyRecord, Mode, Prefix, ScopeList, Vocabulary};
    use crate::net::Networks;
    use crate::store::Record;
    use crate::store::memory::MemoryStore;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Action, KeyStore, Mutation, OperationId, Write};
    use crate::ulid::Ulid;
    use std::time::Duration;

    fn digest(number: u128) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    const ACME: EntityId = EntityId::from_bits(1);
    const CREATED_AT: Timestamp = Timestamp::from_micros(1);

    fn key(number: u128) -> Record {
        Record::Key(KeyRecord {
            id: KeyId::new(Ulid::from_bits(number)),
            version: 0,
            digest: digest(number),
            entity_id: ACME,
            name: "key".into(),
            mode: Mode::Live,
            scopes: ScopeList::default(),
            allowlist: Networks::default(),
            tier: "standard".into(),
            api_version: None,
            last4: String::new(),
            imported: false,
            created_at: CREATED_AT,
            expires_at: None,
            revoked_at: None,
            rotated_to: None,
            rotated_from: None,
            until_quiet: None,
        })
    }

    /// Makes an entity and `count` keys.
    fn fill(store: &dyn KeyStore, count: u128) {
        let (id, created_at) = (ACME, CREATED_AT);
        let entity =
            EntityRecord { id, version: 0, code: "acme".into(), name: "acme".into(), created_at, deleted_at: None };
        write(store, 1, std::iter::once(Record::Entity(entity)).chain((0..count).map(key)));
    }

    fn fill_key(store: &dyn KeyStore, number: u128) {
        write(store, number, std::iter::once(key(number)));
    }

    fn write(store: &dyn KeyStore, operation: u128, records: impl Iterator<Item = Record>) {
        let writes = records.map(|record| Write { action: Action::KeyCreated, expected: None, record }).collect();
        let mutation = Mutation { operation: OperationId(operation), actor: "test".into(), at: CREATED_AT, writes };
        store.apply(&mutation).unwrap();
    }

    fn follow(store: Arc<dyn KeyStore>, keys_max: u64) -> (Arc<KeyCache>, Follower) {
        follow_with(store, keys_max, Clock::system(), None)
    }

    fn follow_with(
        store: Arc<dyn KeyStore>,
        keys_max: u64,
        clock: Clock,
        snapshot: Option<Snapshot>,
    ) -> (Arc<KeyCache>, Follower) {
        let max_stale = Duration::from_secs(60);
        let cache = Arc::new(KeyCache::new(keys_max, max_stale, 0));
        let (prefix, vocabulary) = (Prefix::new("ark").unwrap(), Arc::new(Vocabulary::default()));
        let settings = Settings { prefix, keys_max, max_stale, vocabulary };
        let parts = Parts {
            cache: Arc::clone(&cache),
            store,
            settings,
            snapshot,
            clock,
            member: Member::default(),
            cut: Box::new(|_| Box::new(|| {})),
            fills: Fills::new().0,
            heard: Box::new(|_| {}),
        };
        let mut follower = Follower::new(parts).unwrap();
        follower.start().unwrap();
        (cache, follower)
    }

    fn look(cache: &KeyCache, number: u128) -> Lookup {
        cache.lookup(&digest(number), Clock::system().moment())
    }

    #[test]
    fn a_key_that_found_no_room_is_unknown_and_never_absent() {
        let store = Arc::new(MemoryStore::default());
        fill(store.as_ref(), 3);
        let (cache, _follower) = follow(Arc::clone(&store) as _, 2);
        let known = (0..3).filter(|number| matches!(look(&cache, *number), Lookup::Known(_))).count();
        let unknown = (0..3).filter(|number| matches!(look(&cache, *number), Lookup::Unknown)).count();
        assert_eq!((known, unknown), (2, 1));
        let (cache, _follower) = follow(store, 3);
        assert!(matches!(look(&cache, 99), Lookup::Absent));
    }

    #[test]
    fn a_store_that_is_put_back_is_followed_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["keys.db", "other.db"] {
            // Closed before it is moved, so that nothing of it stays in its log.
            fill(&SqliteStore::open(&path(name)).unwrap(), 2);
        }
        let (cache, mut follower) = follow(Arc::new(SqliteStore::open(&path("keys.db")).unwrap()), 10);
        let swap = |from: &str, to: &str| std::fs::rename(path(from), path(to)).unwrap();
        let clear = || {
            let _ = ["keys.db-wal", "keys.db-shm"].map(|name| std::fs::remove_file(path(name)));
        };
        swap("keys.db", "away.db");
        swap("other.db", "keys.db");
        clear();
        assert!(matches!(follower.turn().unwrap(), Turn::Diverged));
        assert!(matches!(look(&cache, 99), Lookup::Unknown));
        assert!(matches!(look(&cache, 1), Lookup::Known(_)));
        swap("away.db", "keys.db");
        clear();
        assert!(matches!(follower.turn().unwrap(), Turn::CaughtUp));
        assert!(matches!(look(&cache, 99), Lookup::Absent));
    }

    #[test]
    fn i3_a_change_that_cannot_be_kept_is_in_force_and_the_disk_holds_nothing_old() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.snapshot");
        let store = Arc::new(MemoryStore::default());
        fill(store.as_ref(), 2);
        let (clock, hand) = Clock::manual(Timestamp::from_micros(1_000_000));
        let (cache, mut follower) =
            follow_with(Arc::clone(&store) as _, 10, clock.clone(), Some(Snapshot::at(path.clone())));
        assert!(Snapshot::at(path.clone()).exists());
        follower.kept.close_for_writing();
        fill_key(store.as_ref(), 3);
        assert_eq!(follower.turn().unwrap(), Turn::CaughtUp);
        assert!(matches!(cache.lookup(&digest(3), clock.moment()), Lookup::Known(_)));
        let volatile = || store.fleet().unwrap().members[0].volatile;
        assert!(volatile() && !Snapshot::at(path.clone()).exists());
        // Another one is written after a while.
        hand.pass(crate::auth::kept::RETRY);
        while follower.turn().unwrap() == Turn::Behind {}
        assert!(!volatile() && Snapshot::at(path).exists());
    }

    #[test]
    fn what_the_cache_has_lost_is_loaded_again() {
        let store = Arc::new(MemoryStore::default());
        fill(store.as_ref(), 2);
        let (cache, mut follower) = follow(store, 10);
        cache.lose(&digest(1));
        assert!(matches!(look(&cache, 1), Lookup::Unknown));
        while follower.turn().unwrap() == Turn::Behind {}
        assert!(matches!(look(&cache, 1), Lookup::Known(_)));
        assert!(matches!(look(&cache, 99), Lookup::Absent));
    }

    #[test]
    fn i3_nothing_is_confirmed_while_something_outdated_cannot_be_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.snapshot");
        let store = Arc::new(MemoryStore::default());
        fill(store.as_ref(), 2);
        let (_cache, mut follower) =
            follow_with(Arc::clone(&store) as _, 10, Clock::system(), Some(Snapshot::at(path)));
        // A directory of a log's name cannot be removed as a file.
        let stubborn = dir.path().join("keys.snapshot.00000000000000000099.log");
        std::fs::create_dir(&stubborn).unwrap();
        follower.kept.close_for_writing();
        let before = store.fleet().unwrap().members[0].pos;
        fill_key(store.as_ref(), 3);
        for _ in 0..3 {
            assert!(matches!(follower.turn(), Err(StoreError::Unavailable(_))));
            assert_eq!(store.fleet().unwrap().members[0].pos, before);
        }
        std::fs::remove_dir(stubborn).unwrap();
        assert_eq!(follower.turn().unwrap(), Turn::CaughtUp);
        let member = &store.fleet().unwrap().members[0];
        assert!(member.pos > before && member.volatile);
    }
}
