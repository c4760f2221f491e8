//! The follower: the one writer of the key cache. It loads the whole set, then applies the change log as it grows.

use super::Settings;
use super::applier::Applier;
use super::cache::KeyCache;
use crate::clock::{Clock, Moment};
use crate::store::{Change, Changes, Feed, Member, Position, Record, StoreError};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Records read at a time during a load.
const PAGE: usize = 1024;
/// Pages that may wait to be applied.
const PAGES_AHEAD: usize = 4;
/// Log entries read at a time.
const ENTRIES: usize = 500;

/// Keeps one [`KeyCache`] true. Owned by one thread.
pub struct Follower {
    cache: Arc<KeyCache>,
    changes: Box<dyn Changes>,
    applier: Applier,
    member: Member,
    cut: Box<dyn Fn() + Send>,
    clock: Clock,
    position: Position,
    generation: u64,
    /// The whole set has been read, and no other history has been found since: what the cache lacks is known.
    loaded: bool,
    /// What the log gave while the set was loaded, to be handed on with the next turn.
    loaded_with: Vec<Change>,
    /// The fleet could not be told how far this gateway has come.
    untold: bool,
}

/// What one turn of the follower found.
#[derive(Debug)]
pub enum Turn {
    /// Nothing new, or everything new has been applied: the entries, for the journal.
    CaughtUp(Vec<Change>),
    /// There is more; take another turn at once.
    Behind(Vec<Change>),
    /// The log does not hold our position. Nothing was applied; unknown keys are answered 503 from now on.
    Diverged,
}

// === impl Follower ===

impl Follower {
    /// `member` is what the fleet is told of this gateway; `cut` returns when every worker has judged again what it has in
    /// flight.
    pub fn new(
        cache: Arc<KeyCache>,
        changes: Box<dyn Changes>,
        settings: Settings,
        clock: Clock,
        member: Member,
        cut: Box<dyn Fn() + Send>,
    ) -> Self {
        let applier = Applier::new(Arc::clone(&cache), settings);
        let position = Position::default();
        Self {
            cache,
            changes,
            applier,
            member,
            cut,
            clock,
            position,
            generation: 0,
            loaded: false,
            loaded_with: Vec::new(),
            untold: false,
        }
    }

    /// Loads the whole set, page by page in the order of versions, and stands at the log's head from before the load:
    /// what changed meanwhile comes again through the log, and versions sort it out.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read; what was loaded so far stays, the cache is not complete.
    pub fn load(&mut self) -> Result<(), StoreError> {
        self.cache.set_incomplete();
        // Joined before the head is read: a change after that waits for this gateway (protocols I2).
        self.tell()?;
        let head = self.changes.head()?;
        self.load_pages()?;
        self.advance(head);
        loop {
            match self.read()? {
                Turn::Behind(entries) => self.loaded_with.extend(entries),
                Turn::CaughtUp(entries) => {
                    self.loaded_with.extend(entries);
                    break;
                }
                Turn::Diverged => return Ok(()),
            }
        }
        self.loaded = true;
        self.complete();
        self.tell()
    }

    /// Everything up to `position` has been applied: it counts as read when what it ended has been cut (protocols I9).
    fn advance(&mut self, position: Position) {
        // Before the first load is whole nothing is served, and there is nobody yet who could cut.
        if self.applier.take_ended() && self.generation > 0 {
            (self.cut)();
        }
        self.position = position;
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
        (self.member.pos, self.member.token) = (self.position.seq, self.position.token);
        self.member.keys = self.cache.records();
        self.member.complete = self.cache.is_complete();
        self.changes.tell(&self.member)
    }

    /// Reads all pages on a thread of their own while this one applies them: the two cost about the same.
    fn load_pages(&mut self) -> Result<(), StoreError> {
        let (sender, pages) = sync_channel(PAGES_AHEAD);
        let Self { changes, applier, .. } = self;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || read_pages(changes.as_mut(), &sender));
            pages.iter().flatten().for_each(|record: Record| applier.apply(&record));
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Rests until there may be something new.
    pub fn wait(&mut self) {
        self.changes.wait(self.position);
    }

    /// Reads the log once and applies what is new. Loads the whole set first when that is still to be done: the store
    /// could not be asked before, or had another history and has ours again, as when a file was put back in its place.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be asked: the right to serve is not renewed.
    pub fn turn(&mut self) -> Result<Turn, StoreError> {
        let held = self.loaded || matches!(self.changes.poll(self.position, 1)?, Feed::Entries { .. });
        if held && !self.loaded {
            self.load()?;
            return Ok(if self.loaded {
                Turn::CaughtUp(std::mem::take(&mut self.loaded_with))
            } else {
                Turn::Diverged
            });
        }
        match self.read()? {
            Turn::CaughtUp(entries) => Ok(Turn::CaughtUp(self.after_load(entries))),
            Turn::Behind(entries) => Ok(Turn::Behind(self.after_load(entries))),
            Turn::Diverged => Ok(Turn::Diverged),
        }
    }

    /// Entries of the log that were read while loading, then `entries`: each is handed on once.
    fn after_load(&mut self, entries: Vec<Change>) -> Vec<Change> {
        let mut all = std::mem::take(&mut self.loaded_with);
        all.extend(entries);
        all
    }

    fn read(&mut self) -> Result<Turn, StoreError> {
        let sent = self.clock.moment();
        let (head, entries) = match self.changes.poll(self.position, ENTRIES)? {
            Feed::Entries { head, entries } => (head, entries),
            Feed::Diverged { .. } => {
                self.cache.set_incomplete();
                self.loaded = false;
                // Nothing of this history has been applied: whoever waits for a change of it must wait.
                (self.member.pos, self.member.token) = (0, 0);
                self.changes.tell(&self.member)?;
                return Ok(Turn::Diverged);
            }
        };
        entries.iter().for_each(|change| self.applier.apply(&change.after));
        if let Some(last) = entries.last() {
            self.advance(Position { seq: last.seq, token: last.token });
        }
        let confirmed = self.confirm();
        Ok(self.conclude(head, entries, sent, confirmed))
    }

    fn conclude(&self, head: Position, entries: Vec<Change>, sent: Moment, confirmed: bool) -> Turn {
        if self.position.seq < head.seq {
            return Turn::Behind(entries);
        }
        if confirmed {
            self.cache.mark_caught_up(sent);
        }
        Turn::CaughtUp(entries)
    }

    /// Declares the cache complete, unless the set has outgrown it.
    fn complete(&mut self) {
        self.generation += 1;
        if self.applier.is_whole() {
            self.cache.set_complete(self.generation);
        }
    }
}

/// Sends every page, in the order of versions, until there is none or nobody takes it.
fn read_pages(changes: &mut dyn Changes, pages: &SyncSender<Vec<Record>>) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let page = changes.page(after, PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.version();
        if pages.send(page).is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::cache::Lookup;
    use crate::clock::Timestamp;
    use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord, Mode, Prefix, ScopeList, Vocabulary};
    use crate::net::Networks;
    use crate::store::memory::MemoryStore;
    use crate::store::sqlite::SqliteStore;
    use crate::store::{Action, KeyStore, Mutation, OperationId, Write};
    use crate::ulid::Ulid;
    use std::time::Duration;

    fn digest(number: u128) -> Digest {
        Digest::of(&number.to_be_bytes())
    }

    /// Makes an entity and `count` keys.
    fn fill(store: &dyn KeyStore, count: u128) {
        let created_at = Timestamp::from_micros(1);
        let id = EntityId::random();
        let entity =
            EntityRecord { id, version: 0, code: "acme".into(), name: "acme".into(), created_at, deleted_at: None };
        let key = |number: u128| KeyRecord {
            id: KeyId::new(Ulid::from_bits(number)),
            version: 0,
            digest: digest(number),
            entity_id: id,
            name: "key".into(),
            mode: Mode::Live,
            scopes: ScopeList::default(),
            allowlist: Networks::default(),
            tier: "standard".into(),
            api_version: None,
            last4: String::new(),
            imported: false,
            created_at,
            expires_at: None,
            revoked_at: None,
            rotated_to: None,
            rotated_from: None,
        };
        let records = std::iter::once(Record::Entity(entity)).chain((0..count).map(|number| Record::Key(key(number))));
        let writes = records.map(|record| Write { action: Action::KeyCreated, expected: None, record }).collect();
        let mutation = Mutation { operation: OperationId(1), actor: "test".into(), at: created_at, writes };
        store.apply(&mutation).unwrap();
    }

    fn follow(store: &dyn KeyStore, keys_max: u64) -> (Arc<KeyCache>, Follower) {
        let max_stale = Duration::from_secs(60);
        let cache = Arc::new(KeyCache::new(keys_max, max_stale, 0));
        let (prefix, vocabulary) = (Prefix::new("ark").unwrap(), Arc::new(Vocabulary::default()));
        let settings = Settings { prefix, keys_max, max_stale, vocabulary };
        let (changes, clock) = (store.changes().unwrap(), Clock::system());
        let mut follower =
            Follower::new(Arc::clone(&cache), changes, settings, clock, Member::default(), Box::new(|| {}));
        follower.load().unwrap();
        (cache, follower)
    }

    fn look(cache: &KeyCache, number: u128) -> Lookup {
        cache.lookup(&digest(number), Clock::system().moment())
    }

    #[test]
    fn a_key_that_found_no_room_is_unknown_and_never_absent() {
        let store = MemoryStore::default();
        fill(&store, 3);
        let (cache, _follower) = follow(&store, 2);
        let known = (0..3).filter(|number| matches!(look(&cache, *number), Lookup::Known(_))).count();
        let unknown = (0..3).filter(|number| matches!(look(&cache, *number), Lookup::Unknown)).count();
        assert_eq!((known, unknown), (2, 1));
        let (cache, _follower) = follow(&store, 3);
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
        let (cache, mut follower) = follow(&SqliteStore::open(&path("keys.db")).unwrap(), 10);
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
        assert!(matches!(follower.turn().unwrap(), Turn::CaughtUp(_)));
        assert!(matches!(look(&cache, 99), Lookup::Absent));
    }
}
