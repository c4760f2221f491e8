//! What every store promises, as one suite: run for each engine. SQLite's own promises follow it.

#[path = "store_contract/accounts.rs"]
mod accounts;
#[path = "store_contract/fleet.rs"]
mod fleet;
#[path = "store_contract/relay.rs"]
mod relay;
#[path = "store_contract/rows.rs"]
mod rows;
#[path = "it/harness/redis.rs"]
mod server;

use keygate::clock::Timestamp;
use keygate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord, Mode, ScopeList};
use keygate::net::Networks;
use keygate::store::memory::MemoryStore;
use keygate::store::redis::{RedisStore, Url};
use keygate::store::sqlite::SqliteStore;
use keygate::store::{
    Action, Conflict, Feed, KeyFilter, KeyStore, Member, Mutation, OperationId, Position, Record, StoreError, Write,
    codec,
};
use keygate::ulid::Ulid;
use proptest::prelude::*;
use server::RedisServer;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn entity(code: &str) -> EntityRecord {
    EntityRecord {
        id: EntityId::random(),
        version: 0,
        code: code.into(),
        name: code.into(),
        created_at: at(1),
        deleted_at: None,
    }
}

fn key(entity: &EntityRecord, number: u128) -> KeyRecord {
    KeyRecord {
        id: KeyId::new(Ulid::from_bits(number)),
        version: 0,
        digest: Digest::of(&number.to_be_bytes()),
        entity_id: entity.id,
        name: format!("key {number}"),
        mode: Mode::Live,
        scopes: ScopeList::parse("orders:read orders:write"),
        allowlist: Networks::parse("10.0.0.0/8 2001:db8::/32").unwrap(),
        tier: "standard".into(),
        api_version: Some("2026-11-01".into()),
        last4: "abcd".into(),
        imported: false,
        created_at: at(2),
        expires_at: Some(at(1000)),
        revoked_at: None,
        rotated_to: None,
        rotated_from: Some(KeyId::new(Ulid::from_bits(9))),
        until_quiet: Some(std::time::Duration::from_secs(86_400)),
    }
}

fn create(record: impl Into<Rec>) -> Write {
    write(record, None)
}

fn write(record: impl Into<Rec>, expected: Option<u64>) -> Write {
    let Rec(record) = record.into();
    let action = if matches!(record, Record::Key(_)) { Action::KeyUpdated } else { Action::EntityCreated };
    Write { action, expected, record }
}

struct Rec(Record);

impl From<&KeyRecord> for Rec {
    fn from(key: &KeyRecord) -> Self {
        Self(Record::Key(key.clone()))
    }
}

impl From<&EntityRecord> for Rec {
    fn from(entity: &EntityRecord) -> Self {
        Self(Record::Entity(entity.clone()))
    }
}

fn apply(store: &dyn KeyStore, writes: Vec<Write>) -> Result<Vec<u64>, StoreError> {
    let operation = OperationId(fastrand::u128(..));
    store.apply(&Mutation { operation, actor: "test:alice".into(), at: at(3), writes })
}

fn conflict(result: Result<Vec<u64>, StoreError>) -> Conflict {
    match result {
        Err(StoreError::Conflict(conflict)) => conflict,
        other => panic!("{other:?}"),
    }
}

/// Runs a promise on every engine.
fn on_every_engine(promise: impl Fn(&dyn KeyStore)) {
    promise(&MemoryStore::default());
    let directory = tempfile::tempdir().unwrap();
    promise(&SqliteStore::open(&directory.path().join("data/keys.db")).unwrap());
    let server = RedisServer::start();
    promise(&redis(&server));
}

fn redis(server: &RedisServer) -> RedisStore {
    RedisStore::new(&Url::parse(&server.url()).unwrap())
}

#[test]
fn what_was_written_is_read_back_with_its_version() {
    on_every_engine(|store| {
        let (acme, other) = (entity("acme"), entity("other"));
        assert_eq!(apply(store, vec![create(&acme), create(&other)]).unwrap(), [1, 2]);
        let keys: Vec<_> = (1..=3).map(|number| key(&acme, number)).collect();
        assert_eq!(apply(store, keys.iter().map(create).collect()).unwrap(), [3, 4, 5]);
        let expected = KeyRecord { version: 4, ..keys[1].clone() };
        assert_eq!(store.key(expected.id).unwrap(), Some(expected.clone()));
        assert_eq!(store.key_by_digest(&expected.digest).unwrap(), Some(expected));
        assert_eq!(store.entity_by_code("acme").unwrap(), Some(EntityRecord { version: 1, ..acme.clone() }));
        assert_eq!(store.entity(other.id).unwrap().unwrap().version, 2);
        let listed = |filter: &KeyFilter, after, limit| -> Vec<u64> {
            store.keys(filter, after, limit).unwrap().iter().map(|key| key.version).collect()
        };
        assert_eq!(listed(&KeyFilter::default(), None, 2), [3, 4]);
        assert_eq!(listed(&KeyFilter::default(), Some(keys[0].id), 9), [4, 5]);
        assert_eq!(listed(&KeyFilter { entity: Some(other.id) }, None, 9), [0; 0]);
        assert_eq!(store.key(KeyId::new(Ulid::from_bits(99))).unwrap(), None);
    });
}

#[test]
fn keys_are_counted_whatever_became_of_them() {
    on_every_engine(|store| {
        let entity = entity("acme");
        apply(store, vec![create(&entity)]).unwrap();
        assert_eq!(store.count().unwrap(), 0);
        let keys = [key(&entity, 1), key(&entity, 2)];
        let seqs = apply(store, keys.iter().map(create).collect()).unwrap();
        let revoked = KeyRecord { revoked_at: Some(at(9)), ..keys[0].clone() };
        apply(store, vec![write(&revoked, Some(seqs[0]))]).unwrap();
        assert_eq!(store.count().unwrap(), 2);
    });
}

#[test]
fn keys_that_end_once_they_are_quiet_are_found_until_they_are_revoked() {
    on_every_engine(|store| {
        let entity = entity("acme");
        apply(store, vec![create(&entity)]).unwrap();
        let (waiting, other) = (key(&entity, 1), KeyRecord { until_quiet: None, ..key(&entity, 2) });
        let seqs = apply(store, vec![create(&waiting), create(&other)]).unwrap();
        let waiting = KeyRecord { version: seqs[0], ..waiting };
        assert_eq!(store.until_quiet().unwrap(), std::slice::from_ref(&waiting));
        let revoked = KeyRecord { revoked_at: Some(at(9)), ..waiting };
        apply(store, vec![write(&revoked, Some(seqs[0]))]).unwrap();
        assert_eq!(store.until_quiet().unwrap(), []);
    });
}

#[test]
fn a_record_that_ends_on_its_day_is_written_as_older_versions_read_it() {
    let entity = entity("acme");
    let plain = Record::Key(KeyRecord { until_quiet: None, ..key(&entity, 1) });
    let text = codec::encode(&plain).unwrap();
    assert!(!text.contains("quiet"), "{text}");
    assert_eq!(codec::decode(&text).unwrap(), plain);
}

#[test]
fn a_database_of_an_older_version_takes_what_was_added() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    drop(SqliteStore::open(&path).unwrap());
    let older = "DROP INDEX keys_until_quiet; ALTER TABLE keys DROP COLUMN until_quiet;";
    let store = SqliteStore::open(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch(older).unwrap();
    // Also for a reader that meets the file first.
    assert!(store.changes().unwrap().page(0, 9).unwrap().records.is_empty());
    let entity = entity("acme");
    apply(&store, vec![create(&entity), create(&key(&entity, 1))]).unwrap();
    assert_eq!(store.until_quiet().unwrap().len(), 1);
}

#[test]
fn the_fleet_is_who_follows_and_how_far_each_has_come() {
    on_every_engine(|store| {
        assert_eq!(store.fleet().unwrap().members, []);
        let member = |instance: &str, gateway: &str, pos| Member {
            instance: instance.into(),
            gateway: gateway.into(),
            max_stale_ms: 60_000,
            pos,
            ..Member::default()
        };
        let (mut first, mut second) = (store.changes().unwrap(), store.changes().unwrap());
        first.tell(&member("b", "edge-1", 0)).unwrap();
        second.tell(&member("a", "edge-2", 7)).unwrap();
        first.tell(&member("b", "edge-1", 12)).unwrap();
        assert_eq!(store.fleet().unwrap().members, [member("b", "edge-1", 12), member("a", "edge-2", 7)]);
        assert!(store.forget("a").unwrap() && !store.forget("a").unwrap());
        assert_eq!(store.fleet().unwrap().members, [member("b", "edge-1", 12)]);
        first.leave(&member("b", "edge-1", 12));
        assert_eq!(store.fleet().unwrap().members, []);
    });
}

#[test]
fn a_mutation_is_applied_whole_or_not_at_all_and_once() {
    on_every_engine(|store| {
        let acme = entity("acme");
        apply(store, vec![create(&acme)]).unwrap();
        let first = key(&acme, 1);
        let twin = KeyRecord { digest: first.digest, ..key(&acme, 2) };
        assert_eq!(conflict(apply(store, vec![create(&first), create(&twin)])), Conflict::DigestTaken(first.id));
        assert_eq!(store.key(first.id).unwrap(), None);
        assert_eq!(store.changes().unwrap().head().unwrap().seq, 1);

        let operation = OperationId(7);
        let mutation = Mutation { operation, actor: "a".into(), at: at(3), writes: vec![create(&first)] };
        let outcome = store.apply(&mutation).unwrap();
        assert_eq!(store.apply(&mutation).unwrap(), outcome);
        assert_eq!(store.changes().unwrap().head().unwrap().seq, outcome[0]);
    });
}

#[test]
fn i12_a_change_whose_answer_is_lost_is_said_to_have_been_made_perhaps_and_repeating_it_is_harmless() {
    let server = RedisServer::start();
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    let lossy = relay::relay(server.address(), b"entity_id_taken", move || {
        counted.fetch_add(1, Ordering::SeqCst);
        false
    });
    let through = RedisStore::new(&Url::parse(&format!("redis://{lossy}")).unwrap());
    let (operation, actor, writes) = (OperationId(7), "test:alice".to_owned(), vec![create(&entity("acme"))]);
    let mutation = Mutation { operation, actor, at: at(3), writes };
    let Err(StoreError::Unavailable(why)) = through.apply(&mutation) else { panic!("it was answered") };
    assert!(why.contains("the change may have been made all the same: repeat the command"), "{why}");
    assert_eq!(attempts.load(Ordering::SeqCst), 3);
    let store = redis(&server);
    assert_eq!(store.apply(&mutation).unwrap(), [1], "it was made, once");
    assert_eq!(store.changes().unwrap().head().unwrap().seq, 1);
}

#[test]
fn a_write_that_contradicts_the_store_is_refused() {
    on_every_engine(|store| {
        let acme = entity("acme");
        apply(store, vec![create(&acme)]).unwrap();
        let one = key(&acme, 1);
        let version = apply(store, vec![create(&one)]).unwrap()[0];
        assert_eq!(conflict(apply(store, vec![create(&one)])), Conflict::Version);
        assert_eq!(conflict(apply(store, vec![write(&one, Some(version + 1))])), Conflict::Version);
        assert_eq!(conflict(apply(store, vec![create(&entity("acme"))])), Conflict::CodeTaken("acme".into()));
        let same_id = EntityRecord { code: "acme2".into(), ..acme.clone() };
        assert_eq!(conflict(apply(store, vec![create(&same_id)])), Conflict::EntityIdTaken(acme.id));
        let stranger = entity("stranger");
        assert_eq!(conflict(apply(store, vec![create(&key(&stranger, 5))])), Conflict::EntityGone(stranger.id));
        let rekeyed = KeyRecord { digest: Digest::of(b"other"), ..one.clone() };
        assert_eq!(conflict(apply(store, vec![write(&rekeyed, Some(version))])), Conflict::Final);
    });
}

#[test]
fn revoked_and_deleted_are_final() {
    on_every_engine(|store| {
        let acme = entity("acme");
        apply(store, vec![create(&acme)]).unwrap();
        let one = key(&acme, 1);
        let version = apply(store, vec![create(&one)]).unwrap()[0];
        let revoked = KeyRecord { revoked_at: Some(at(5)), ..one.clone() };
        let version = apply(store, vec![write(&revoked, Some(version))]).unwrap()[0];
        assert_eq!(conflict(apply(store, vec![write(&one, Some(version))])), Conflict::Final);
        let deleted = EntityRecord { deleted_at: Some(at(6)), ..acme.clone() };
        let version = apply(store, vec![write(&deleted, Some(1))]).unwrap()[0];
        assert_eq!(conflict(apply(store, vec![write(&acme, Some(version))])), Conflict::Final);
        assert_eq!(conflict(apply(store, vec![create(&key(&acme, 2))])), Conflict::EntityGone(acme.id));
        assert_eq!(store.entity_by_code("acme").unwrap(), None);
        // The code is free for another entity.
        apply(store, vec![create(&entity("acme"))]).unwrap();
    });
}

#[test]
fn the_log_is_read_in_order_and_only_by_who_shares_its_history() {
    on_every_engine(|store| {
        let mut changes = store.changes().unwrap();
        assert_eq!(changes.head().unwrap(), Position::default());
        let acme = entity("acme");
        apply(store, vec![create(&acme)]).unwrap();
        let one = key(&acme, 1);
        let version = apply(store, vec![create(&one)]).unwrap()[0];
        let renamed = KeyRecord { name: "renamed".into(), ..one.clone() };
        apply(store, vec![write(&renamed, Some(version))]).unwrap();

        let Feed::Entries { head, entries } = changes.poll(Position::default(), None, 2).unwrap() else { panic!() };
        assert_eq!((head.seq, entries.iter().map(|entry| entry.seq).collect::<Vec<_>>()), (3, vec![1, 2]));
        let position = Position { seq: 2, token: entries[1].token };
        let Feed::Entries { entries, .. } = changes.poll(position, None, 500).unwrap() else { panic!() };
        assert_eq!((entries[0].actor.as_str(), entries[0].at), ("test:alice", at(3)));
        assert_eq!(entries[0].before, Some(Record::Key(KeyRecord { version: 2, ..one.clone() })));
        assert_eq!(entries[0].after, Record::Key(KeyRecord { version: 3, ..renamed }));
        // Nothing new, asked twice: the second answer takes the quick way.
        for _ in 0..2 {
            let Feed::Entries { entries, .. } = changes.poll(head, None, 500).unwrap() else { panic!() };
            assert!(entries.is_empty());
        }
        let forged = Position { token: head.token ^ 1, ..head };
        assert_eq!(changes.poll(forged, None, 500).unwrap(), Feed::Diverged { head });
        assert_eq!(changes.poll(Position { seq: 99, token: 1 }, None, 500).unwrap(), Feed::Diverged { head });
    });
}

#[test]
fn pages_give_every_record_once_by_version_while_records_change() {
    on_every_engine(|store| {
        let acme = entity("acme");
        apply(store, vec![create(&acme)]).unwrap();
        let keys: Vec<_> = (1..=20).map(|number| key(&acme, number)).collect();
        apply(store, keys.iter().map(create).collect()).unwrap();
        let mut changes = store.changes().unwrap();
        let (mut after, mut seen) = (0, Vec::new());
        loop {
            let page = changes.page(after, 6).unwrap();
            assert_eq!(page.head, changes.head().unwrap());
            let page = page.records;
            let Some(last) = page.last() else { break };
            after = last.version();
            seen.extend(page.iter().map(Record::version));
            if after < 10 {
                // The first key moves to the end: it is seen again there, under its new version.
                apply(store, vec![write(&KeyRecord { name: "moved".into(), ..keys[0].clone() }, Some(2))]).unwrap();
            }
        }
        assert!(seen.is_sorted() && seen.contains(&22), "{seen:?}");
        assert_eq!(seen.len(), 22);
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Random mutations on all engines have the same outcomes and leave the same records.
    #[test]
    fn the_engines_agree(steps in prop::collection::vec((1u128..5, 0u64..8, any::<bool>(), any::<bool>()), 1..25)) {
        let directory = tempfile::tempdir().unwrap();
        let (memory, sqlite) = (MemoryStore::default(), SqliteStore::open(&directory.path().join("keys.db")).unwrap());
        let acme = entity("acme");
        let server = RedisServer::start();
        let redis = redis(&server);
        let stores: [&dyn KeyStore; 3] = [&memory, &sqlite, &redis];
        stores.iter().for_each(|store| _ = apply(*store, vec![create(&acme)]).unwrap());
        for (number, expected, revoke, fresh) in steps {
            let record = KeyRecord { revoked_at: revoke.then(|| at(5)), ..key(&acme, number) };
            let writes = vec![write(&record, (!fresh).then_some(expected))];
            let outcomes = stores.map(|store| apply(store, writes.clone()).map_err(|error| error.to_string()));
            prop_assert_eq!(&outcomes[0], &outcomes[1]);
            prop_assert_eq!(&outcomes[0], &outcomes[2]);
        }
        let all = stores.map(|store| store.changes().unwrap().page(0, 100).unwrap().records);
        prop_assert_eq!(&all[0], &all[1]);
        prop_assert_eq!(&all[0], &all[2]);
    }
}

// --- SQLite's own --------------------------------------------------------------------------------------------------------

fn refused(path: &Path) -> String {
    match SqliteStore::open(path) {
        Err(StoreError::Refused(message)) => message,
        other => panic!("{:?}", other.map(|_| ())),
    }
}

#[test]
fn two_connections_share_a_file_and_a_restored_file_is_another_history() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let (gateway, cli) = (SqliteStore::open(&path).unwrap(), SqliteStore::open(&path).unwrap());
    let mut changes = gateway.changes().unwrap();
    apply(&cli, vec![create(&entity("acme"))]).unwrap();
    let Feed::Entries { head, entries } = changes.poll(Position::default(), None, 10).unwrap() else { panic!() };
    assert_eq!(entries.len(), 1);

    let backup = directory.path().join("backup.db");
    let other = SqliteStore::open(&backup).unwrap();
    apply(&other, vec![create(&entity("other"))]).unwrap();
    drop(other);
    std::fs::rename(&backup, &path).unwrap();
    ["keys.db-wal", "keys.db-shm"].iter().for_each(|name| _ = std::fs::remove_file(directory.path().join(name)));
    assert!(matches!(changes.poll(head, None, 10).unwrap(), Feed::Diverged { .. }));
}

#[test]
fn a_file_that_is_not_ours_to_use_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    std::fs::write(&path, "this is no database, whatever its name may say").unwrap();
    assert!(refused(&path).contains("is not a database"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "this is no database, whatever its name may say");

    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
    assert!(refused(&path).contains("not one of keygate's"));

    std::fs::remove_file(&path).unwrap();
    drop(SqliteStore::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(refused(&path).contains("schema 99"));
}

#[test]
fn who_was_killed_before_the_tables_were_made_locks_nobody_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA journal_mode = WAL").unwrap();
    let store = SqliteStore::open(&path).unwrap();
    apply(&store, vec![create(&entity("acme"))]).unwrap();
}

#[test]
fn the_file_is_its_owners_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/keys.db");
    drop(SqliteStore::open(&path).unwrap());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    chown(&path, Some(12345), None).expect("this test gives a file away: run it as root, or in `unshare -Ur`");
    let message = refused(&path);
    assert!(message.contains("belongs to user 12345") && message.contains("sudo -u '#12345'"), "{message}");
    std::fs::remove_file(&path).unwrap();
    chown(path.parent().unwrap(), Some(12345), None).unwrap();
    assert!(refused(&path).contains("sudo -u '#12345'"));
    assert!(!path.exists());
}

#[test]
fn a_store_that_is_locked_for_too_long_is_unavailable_not_empty() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let store = SqliteStore::open(&path).unwrap();
    let holder = rusqlite::Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let result = apply(&store, vec![create(&entity("acme"))]);
    assert!(matches!(result, Err(StoreError::Unavailable(_))), "{result:?}");
    holder.execute_batch("ROLLBACK").unwrap();
    apply(&store, vec![create(&entity("acme"))]).unwrap();
}

// --- Redis's own ---------------------------------------------------------------------------------------------------------

#[test]
fn a_newer_layout_in_redis_is_refused_and_nothing_is_written() {
    let server = RedisServer::start();
    let mut raw = ::redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    ::redis::cmd("SET").arg("{keygate}:schema").arg("99").exec(&mut raw).unwrap();
    let result = apply(&redis(&server), vec![create(&entity("acme"))]);
    assert!(matches!(&result, Err(StoreError::Refused(message)) if message.contains("schema 99")), "{result:?}");
    assert_eq!(::redis::cmd("DBSIZE").query::<u64>(&mut raw).unwrap(), 1);
}

#[test]
fn a_redis_that_cannot_be_asked_is_unavailable_not_empty() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = RedisStore::new(&Url::parse(&format!("redis://127.0.0.1:{port}")).unwrap());
    assert!(matches!(store.entities(), Err(StoreError::Unavailable(_))));
    assert!(matches!(store.changes().unwrap().page(0, 10), Err(StoreError::Unavailable(_))));
}

#[test]
fn a_redis_that_never_answers_or_answers_garbage_is_unavailable() {
    for answer in ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "-LOADING Redis is loading the dataset in memory\r\n"] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let store = RedisStore::new(&Url::parse(&format!("redis://{}", listener.local_addr().unwrap())).unwrap());
        let (done, result) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(store.entities()));
        let (mut accepted, _) = listener.accept().unwrap();
        std::io::Write::write_all(&mut accepted, answer.repeat(8).as_bytes()).unwrap();
        let result = result.recv_timeout(std::time::Duration::from_secs(20)).expect("it gives up");
        assert!(matches!(result, Err(StoreError::Unavailable(_))), "{answer}: {result:?}");
    }
}
