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

pub(in crate::auth) fn digest(number: u128) -> Digest {
    Digest::of(&number.to_be_bytes())
}

pub(super) const ACME: EntityId = EntityId::from_bits(1);
pub(super) const CREATED_AT: Timestamp = Timestamp::from_micros(1);

pub(in crate::auth) fn key(number: u128) -> Record {
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

pub(super) fn follow_with(
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

pub(super) fn look(cache: &KeyCache, number: u128) -> Lookup {
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
    assert!(matches!(follower.turn().unwrap(), Turn::Held));
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
    let (_cache, mut follower) = follow_with(Arc::clone(&store) as _, 10, Clock::system(), Some(Snapshot::at(path)));
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
