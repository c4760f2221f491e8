//! Whose store it is, which history it holds, and for how long it is not taken at its word (protocols I4, Settle).

use super::server::RedisServer;
use super::{apply, create, entity, key, on_every_engine, redis, write};
use keygate::clock::Timestamp;
use keygate::store::sqlite::SqliteStore;
use keygate::store::{
    Account, Accounts, Changes, Feed, FleetId, Held, JournalAccount, KeyStore, Member, Mutation, OperationId, Position,
    StoreError,
};
use std::path::Path;
use std::time::{Duration, Instant};

const OURS: FleetId = FleetId::from_bits(0xc0ffee);
const OTHERS: FleetId = FleetId::from_bits(u128::MAX);
/// 2 L of the protocols.
const SETTLE: Duration = Duration::from_secs(4);

fn refused<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Refused(message)) => message,
        other => panic!("{other:?}"),
    }
}

/// The position after each change of the log.
fn positions(changes: &mut dyn Changes) -> Vec<Position> {
    let Feed::Entries { entries, .. } = changes.poll(Position::default(), None, 5000).unwrap() else { panic!() };
    entries.iter().map(|entry| Position { seq: entry.seq, token: entry.token }).collect()
}

fn member(instance: &str, position: Position) -> Member {
    let (instance, gateway) = (instance.to_owned(), "edge-1".to_owned());
    Member { instance, gateway, max_stale_ms: 60_000, pos: position.seq, token: position.token, ..Member::default() }
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn i4_a_fleet_begins_once() {
    on_every_engine(|store| {
        assert_eq!(store.fleet_id().unwrap(), None);
        assert_eq!(store.begin_fleet(OURS).unwrap(), OURS);
        assert_eq!(store.begin_fleet(OTHERS).unwrap(), OURS);
        apply(store, vec![create(&entity("acme"))]).unwrap();
        assert_eq!(store.fleet_id().unwrap(), Some(OURS));
    });
}

#[test]
fn i4_the_first_change_that_is_applied_begins_a_fleet() {
    on_every_engine(|store| {
        let acme = entity("acme");
        assert!(apply(store, vec![create(&key(&acme, 1))]).is_err());
        assert_eq!(store.fleet_id().unwrap(), None);
        apply(store, vec![create(&acme)]).unwrap();
        let id = store.fleet_id().unwrap().expect("a fleet was begun");
        apply(store, vec![create(&key(&acme, 1))]).unwrap();
        assert_eq!((store.begin_fleet(OTHERS).unwrap(), store.fleet_id().unwrap()), (id, Some(id)));
    });
}

#[test]
fn i4_who_expects_a_fleet_writes_to_no_other_store() {
    on_every_engine(|store| {
        let acme = entity("acme");
        let check_untouched = |fleet| {
            assert_eq!(store.fleet_id().unwrap(), fleet);
            assert_eq!(store.changes().unwrap().head().unwrap(), Position::default());
            assert_eq!(store.entities().unwrap(), []);
        };
        store.expect_fleet(OURS);
        let message = refused(apply(store, vec![create(&acme)]));
        assert!(message.contains("is empty") && message.contains(&OURS.to_string()), "{message}");
        check_untouched(None);

        store.begin_fleet(OTHERS).unwrap();
        let message = refused(apply(store, vec![create(&acme)]));
        assert!(message.contains(&OTHERS.to_string()) && message.contains(&OURS.to_string()), "{message}");
        check_untouched(Some(OTHERS));

        store.expect_fleet(OTHERS);
        apply(store, vec![create(&acme)]).unwrap();
    });
}

#[test]
fn i4_who_expects_a_fleet_tells_no_other_store_what_its_keys_are_used_for() {
    on_every_engine(|store| {
        let account = Account::new(JournalAccount::new("edge-1/0".into(), Timestamp::from_micros(1)));
        store.check_fleet().unwrap();
        store.expect_fleet(OURS);
        let check_refused = |whose: &str| {
            let messages = [refused(store.account(&account)), refused(store.check_fleet())];
            let is_named = |message: &String| message.contains(whose) && message.contains(&OURS.to_string());
            assert!(messages.iter().all(is_named), "{messages:?}");
            assert_eq!(store.accounts().unwrap(), Accounts::default());
        };
        check_refused("is empty");
        store.begin_fleet(OTHERS).unwrap();
        check_refused(&OTHERS.to_string());
        store.expect_fleet(OTHERS);
        store.check_fleet().unwrap();
        store.account(&account).unwrap();
        assert_eq!(store.accounts().unwrap().journals, std::slice::from_ref(&account.journal));
    });
}

#[test]
fn i4_a_poll_tells_another_fleets_store_from_one_that_has_lost_changes() {
    on_every_engine(|store| {
        let mut changes = store.changes().unwrap();
        let start = Position::default();
        let poll = |changes: &mut dyn Changes, from, fleet| changes.poll(from, Some(fleet), 10).unwrap();
        assert_eq!(poll(changes.as_mut(), start, OURS), Feed::Foreign { fleet: None });
        store.begin_fleet(OURS).unwrap();
        assert_eq!(poll(changes.as_mut(), start, OTHERS), Feed::Foreign { fleet: Some(OURS) });
        let nothing = Feed::Entries { head: start, entries: Vec::new() };
        assert_eq!(poll(changes.as_mut(), start, OURS), nothing);

        apply(store, vec![create(&entity("acme"))]).unwrap();
        let Feed::Entries { head, entries } = poll(changes.as_mut(), start, OURS) else { panic!() };
        assert_eq!((head.seq, entries.len()), (1, 1));
        // Also where a poll takes the quick way, since nothing was written.
        for _ in 0..2 {
            assert_eq!(poll(changes.as_mut(), head, OURS), Feed::Entries { head, entries: Vec::new() });
            assert_eq!(poll(changes.as_mut(), head, OTHERS), Feed::Foreign { fleet: Some(OURS) });
            assert!(matches!(changes.poll(head, None, 10).unwrap(), Feed::Entries { .. }));
        }
        let lost = Position { seq: 7, token: 7 };
        assert_eq!(poll(changes.as_mut(), lost, OURS), Feed::Diverged { head });
        assert_eq!(poll(changes.as_mut(), lost, OTHERS), Feed::Foreign { fleet: Some(OURS) });
    });
}

#[test]
fn i4_the_past_is_what_the_log_holds() {
    on_every_engine(|store| {
        let mut changes = store.changes().unwrap();
        assert_eq!(changes.past(10).unwrap(), []);
        let names = ["a", "b", "c", "d", "e"].map(entity);
        apply(store, names.iter().map(create).collect()).unwrap();
        let all = positions(changes.as_mut());
        assert_eq!(all.iter().map(|position| position.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(changes.past(10).unwrap(), all);
        assert_eq!(changes.past(2).unwrap(), all[3..]);
        assert_eq!(changes.past(0).unwrap(), []);
        for position in all {
            assert!(store.holds(position).unwrap());
            assert!(!store.holds(Position { token: position.token ^ 1, ..position }).unwrap());
        }
    });
}

#[test]
fn i4_leave_to_adopt_is_for_just_who_it_was_given_and_the_latest_counts() {
    on_every_engine(|store| {
        let held = |seq, token| Held { fleet: OURS, position: Position { seq, token } };
        assert!(!store.is_adopted(&held(1, 7)).unwrap());
        store.adopt(&[held(1, 7), held(2, 8)]).unwrap();
        assert!(store.is_adopted(&held(1, 7)).unwrap() && store.is_adopted(&held(2, 8)).unwrap());
        let others = [held(1, 8), held(2, 7), held(3, 7), Held { fleet: OTHERS, ..held(1, 7) }];
        others.iter().for_each(|other| assert!(!store.is_adopted(other).unwrap(), "{other}"));
        store.adopt(&[held(3, 7)]).unwrap();
        assert!(!store.is_adopted(&held(1, 7)).unwrap() && store.is_adopted(&held(3, 7)).unwrap());
        store.adopt(&[]).unwrap();
        assert!(!store.is_adopted(&held(3, 7)).unwrap());
        assert_eq!(store.changes().unwrap().head().unwrap(), Position::default());
    });
}

// --- Settling ------------------------------------------------------------------------------------------------------------

/// Runs a promise on the engines that processes share, with what opens the store as another process does.
fn on_shared_engines(promise: impl Fn(&dyn Fn() -> Box<dyn KeyStore>) + Sync) {
    let server = RedisServer::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    std::thread::scope(|scope| {
        scope.spawn(|| promise(&|| Box::new(redis(&server))));
        scope.spawn(|| promise(&|| Box::new(SqliteStore::open(&path).unwrap())));
    });
}

fn settles_in(store: &dyn KeyStore) -> Duration {
    store.fleet().unwrap().settles_in
}

/// How long a gateway that has just joined waits.
fn cold(store: &dyn KeyStore) -> Duration {
    let mut changes = store.changes().unwrap();
    let member = member("cold", Position::default());
    changes.tell(&member).unwrap();
    let settles_in = changes.settles_in();
    changes.leave(&member);
    settles_in
}

#[test]
fn a_fork_that_was_noted_unsettles_everybody_until_somebody_has_seen_it_for_long() {
    on_shared_engines(|open| {
        let (store, other) = (open(), open());
        apply(store.as_ref(), vec![create(&entity("acme"))]).unwrap();
        let mut running = store.changes().unwrap();
        running.tell(&member("running", Position::default())).unwrap();
        let settled = [settles_in(store.as_ref()), cold(other.as_ref()), running.settles_in()];
        assert_eq!(settled, [Duration::ZERO; 3]);

        let begun = Instant::now();
        store.note_fork().unwrap();
        assert!(settles_in(store.as_ref()) > Duration::from_secs(3) && cold(other.as_ref()) > Duration::from_secs(3));
        eventually("who runs hears of it", || {
            running.tell(&member("running", Position::default())).unwrap();
            !running.settles_in().is_zero()
        });
        assert!(begun.elapsed() < Duration::from_secs(2));

        // Another one in the meantime: who has only seen the first for long has not seen this one.
        std::thread::sleep(SETTLE.saturating_sub(begun.elapsed() + Duration::from_millis(500)));
        other.note_fork().unwrap();
        let again = Instant::now();
        std::thread::sleep(Duration::from_millis(1000));
        assert!(begun.elapsed() > SETTLE);
        assert!(!settles_in(store.as_ref()).is_zero() && !settles_in(other.as_ref()).is_zero());
        eventually("it settles", || {
            running.tell(&member("running", Position::default())).unwrap();
            running.settles_in().is_zero()
        });
        assert!(again.elapsed() >= SETTLE, "{:?}", again.elapsed());
        // Also for whoever comes then.
        assert_eq!([cold(open().as_ref()), settles_in(open().as_ref())], [Duration::ZERO; 2]);
    });
}

// --- SQLite's own --------------------------------------------------------------------------------------------------------

/// A store whose history a gateway has followed to its end, and a copy of it from before the last change.
struct Restored {
    directory: tempfile::TempDir,
    before: Position,
    lost: Position,
    gateway: Box<dyn Changes>,
}

impl Restored {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.db");
        let store = SqliteStore::open(&path).unwrap();
        store.begin_fleet(OURS).unwrap();
        apply(&store, vec![create(&entity("acme"))]).unwrap();
        let copy = directory.path().join("copy.db").display().to_string();
        rusqlite::Connection::open(&path).unwrap().execute("VACUUM INTO ?1", [copy]).unwrap();
        apply(&store, vec![create(&entity("other"))]).unwrap();
        let mut gateway = store.changes().unwrap();
        let [before, lost] = positions(gateway.as_mut())[..] else { panic!() };
        gateway.tell(&member("gateway", lost)).unwrap();
        assert_eq!((gateway.settles_in(), settles_in(&store)), (Duration::ZERO, Duration::ZERO));
        Self { directory, before, lost, gateway }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn remove_logs(&self) {
        ["keys.db-wal", "keys.db-shm"].iter().for_each(|name| _ = std::fs::remove_file(self.path(name)));
    }
}

/// The log has lost its last change, which whoever knew it notices, and whoever comes waits for.
fn check_restored(path: &Path, gateway: &mut dyn Changes, before: Position, lost: Position) {
    let comer = SqliteStore::open(path).unwrap();
    assert_eq!(gateway.poll(lost, Some(OURS), 10).unwrap(), Feed::Diverged { head: before });
    assert_eq!(gateway.past(10).unwrap(), [before]);
    assert!(cold(&comer) > Duration::from_secs(3) && settles_in(&comer) > Duration::from_secs(3));
    let begun = Instant::now();
    eventually("it settles", || settles_in(&comer).is_zero());
    assert!(begun.elapsed() > Duration::from_secs(3));
    // It was written down.
    assert_eq!(cold(&SqliteStore::open(path).unwrap()), Duration::ZERO);
}

#[test]
fn i4_an_older_copy_that_was_moved_into_place_is_not_taken_at_its_word() {
    let mut restored = Restored::new();
    std::fs::rename(restored.path("copy.db"), restored.path("keys.db")).unwrap();
    restored.remove_logs();
    let path = restored.path("keys.db");
    check_restored(&path, restored.gateway.as_mut(), restored.before, restored.lost);
}

#[test]
fn i4_a_copy_that_was_moved_into_place_is_another_file_though_nobody_is_known_to_know_more() {
    let restored = Restored::new();
    std::fs::rename(restored.path("copy.db"), restored.path("keys.db")).unwrap();
    restored.remove_logs();
    std::fs::remove_file(restored.path("keys.db-fleet/latest")).unwrap();
    assert!(cold(&SqliteStore::open(&restored.path("keys.db")).unwrap()) > Duration::from_secs(3));
}

#[test]
fn i4_an_older_copy_that_was_written_over_the_file_is_not_taken_at_its_word() {
    let Restored { directory, before, lost, gateway } = Restored::new();
    let path = directory.path().join("keys.db");
    drop(gateway);
    // The inode stays.
    std::fs::copy(directory.path().join("copy.db"), &path).unwrap();
    ["keys.db-wal", "keys.db-shm"].iter().for_each(|name| _ = std::fs::remove_file(directory.path().join(name)));
    let mut gateway = SqliteStore::open(&path).unwrap().changes().unwrap();
    check_restored(&path, gateway.as_mut(), before, lost);
}

#[test]
fn i4_a_log_of_sqlite_that_was_cut_is_not_taken_at_its_word() {
    let restored = Restored::new();
    // As a crash leaves it: the database, and a write-ahead log that was not copied into it yet and has lost its end.
    let crashed = tempfile::tempdir().unwrap();
    let path = crashed.path().join("keys.db");
    let wal = std::fs::read(restored.path("keys.db-wal")).unwrap();
    std::fs::copy(restored.path("keys.db"), &path).unwrap();
    std::fs::write(crashed.path().join("keys.db-wal"), &wal[..wal.len() - 100]).unwrap();
    std::fs::create_dir(crashed.path().join("keys.db-fleet")).unwrap();
    let latest = "keys.db-fleet/latest";
    std::fs::copy(restored.path(latest), crashed.path().join(latest)).unwrap();
    let mut gateway = SqliteStore::open(&path).unwrap().changes().unwrap();
    check_restored(&path, gateway.as_mut(), restored.before, restored.lost);
}

#[test]
fn what_a_gateway_told_of_its_position_is_no_loss_while_the_log_holds_it() {
    let Restored { directory, lost, mut gateway, .. } = Restored::new();
    let path = directory.path().join("keys.db");
    gateway.tell(&member("gateway", Position::default())).unwrap();
    drop(gateway);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!((cold(&store), settles_in(&store)), (Duration::ZERO, Duration::ZERO));
    assert!(store.holds(lost).unwrap());
    std::fs::write(directory.path().join("keys.db-fleet/latest"), "illegible").unwrap();
    assert!(!cold(&SqliteStore::open(&path).unwrap()).is_zero());
}

#[test]
fn i4_a_file_that_has_changes_and_no_fleet_gets_one_when_it_is_opened_for_writing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let raw = |sql: &str| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    apply(&SqliteStore::open(&path).unwrap(), vec![create(&entity("acme"))]).unwrap();
    for older in ["DROP TABLE fleet", "DELETE FROM fleet"] {
        raw(older);
        let store = SqliteStore::open(&path).unwrap();
        let id = store.fleet_id().unwrap().expect("it has a fleet");
        assert_eq!(SqliteStore::open(&path).unwrap().fleet_id().unwrap(), Some(id));
        // Nobody knows what became of it.
        assert!(!cold(&store).is_zero());
    }
    // An empty one waits for who begins.
    raw("DELETE FROM fleet; DELETE FROM changes; DELETE FROM entities");
    assert_eq!(SqliteStore::open(&path).unwrap().fleet_id().unwrap(), None);
}

// --- Redis's own ---------------------------------------------------------------------------------------------------------

/// A server that keeps its data here, with a fleet and three changes.
fn redis_in(directory: &Path) -> (RedisServer, Vec<Position>) {
    let server = RedisServer::start_with(&["--dir", directory.to_str().unwrap()]);
    let store = redis(&server);
    store.begin_fleet(OURS).unwrap();
    for code in ["a", "b", "c"] {
        apply(&store, vec![create(&entity(code))]).unwrap();
    }
    let all = positions(store.changes().unwrap().as_mut());
    (server, all)
}

#[test]
fn i4_a_redis_that_has_lost_the_end_of_its_file_has_diverged() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, all) = redis_in(directory.path());
    let store = redis(&server);
    store.expect_fleet(OURS);
    let mut gateway = store.changes().unwrap();
    gateway.tell(&member("gateway", all[2])).unwrap();
    assert!(gateway.settles_in().is_zero());
    server.kill();
    let file = directory.path().join("appendonlydir/appendonly.aof.1.incr.aof");
    let text = std::fs::read(&file).unwrap();
    // The change is one transaction, before it is the row that was told of it.
    let last = text.windows(14).rposition(|piece| piece == b"{keygate}:code").unwrap();
    std::fs::write(&file, &text[..last]).unwrap();
    server.restart();
    assert!(server.command("PING").contains("PONG"));

    assert_eq!(gateway.poll(all[2], Some(OURS), 10).unwrap(), Feed::Diverged { head: all[1] });
    assert_eq!(gateway.past(10).unwrap(), all[..2]);
    // A row that was lost is told of once more.
    eventually("it has joined again", || gateway.tell(&member("gateway", all[1])).is_ok());
    assert!(!gateway.settles_in().is_zero() && !cold(&store).is_zero());
    // It is still this fleet's, and takes changes: another third one.
    apply(&store, vec![create(&entity("d"))]).unwrap();
    assert!(!store.holds(all[2]).unwrap());
    assert!(!settles_in(&store).is_zero(), "a store that goes on has not lost nothing");
}

#[test]
fn i4_a_redis_that_starts_again_empty_is_foreign_and_is_not_written_to() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, all) = redis_in(directory.path());
    let store = redis(&server);
    store.expect_fleet(OURS);
    let mut gateway = store.changes().unwrap();
    gateway.poll(all[2], Some(OURS), 10).unwrap();
    server.kill();
    std::fs::remove_dir_all(directory.path().join("appendonlydir")).unwrap();
    server.restart();
    assert!(server.command("PING").contains("PONG"));

    assert_eq!(gateway.poll(all[2], Some(OURS), 10).unwrap(), Feed::Foreign { fleet: None });
    assert_eq!(gateway.poll(all[2], None, 10).unwrap(), Feed::Diverged { head: Position::default() });
    assert!(refused(apply(&store, vec![create(&entity("d"))])).contains("is empty"));
    assert_eq!(server.command("DBSIZE"), ":0");
    // Somebody else, who knew nothing, begins another fleet there.
    assert_eq!(redis(&server).begin_fleet(OTHERS).unwrap(), OTHERS);
    assert_eq!(gateway.poll(all[2], Some(OURS), 10).unwrap(), Feed::Foreign { fleet: Some(OTHERS) });
    assert!(refused(apply(&store, vec![create(&entity("d"))])).contains(&OTHERS.to_string()));
}

#[test]
fn i4_a_redis_with_changes_and_no_fleet_is_given_one_by_the_next_change() {
    let directory = tempfile::tempdir().unwrap();
    let (server, all) = redis_in(directory.path());
    assert_eq!(server.command("DEL {keygate}:fleet_id"), ":1");
    let (store, mut gateway) = (redis(&server), redis(&server).changes().unwrap());
    assert_eq!(gateway.poll(all[2], Some(OURS), 10).unwrap(), Feed::Foreign { fleet: None });
    let operation = OperationId(7);
    let writes = vec![write(&entity("d"), None)];
    let mutation = Mutation { operation, actor: "test".into(), at: super::at(3), writes };
    assert_eq!(store.apply(&mutation).unwrap(), [4]);
    let id = store.fleet_id().unwrap().expect("it has a fleet");
    // The same again is the first outcome and the same fleet.
    assert_eq!((store.apply(&mutation).unwrap(), store.fleet_id().unwrap()), (vec![4], Some(id)));
    assert!(matches!(gateway.poll(all[2], Some(id), 10).unwrap(), Feed::Entries { .. }));
}

#[test]
fn who_has_not_seen_the_latest_fork_in_redis_cannot_declare_the_rows_whole() {
    const SETTLED: &str = include_str!("../../src/store/redis/settled.lua");
    let server = RedisServer::start();
    let store = redis(&server);
    apply(&store, vec![create(&entity("acme"))]).unwrap();
    let raw = || ::redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let get = |name: &str| ::redis::cmd("GET").arg(name).query::<String>(&mut raw()).unwrap();
    let run = get("{keygate}:run");
    let declare = |seen: &str| {
        let mut script = ::redis::cmd("EVAL");
        script.arg(SETTLED).arg(2).arg("{keygate}:run").arg("{keygate}:fork").arg(seen);
        (script.query::<bool>(&mut raw()).unwrap(), get("{keygate}:run"))
    };
    assert_eq!(declare(&run), (true, run.clone()));
    store.note_fork().unwrap();
    assert_eq!(declare(&run), (false, run.clone()));
    assert_eq!(declare(&format!("{run} 0000000000000000")), (false, run.clone()));
    assert!(!settles_in(&store).is_zero());
    let both = format!("{run} {}", get("{keygate}:fork"));
    assert_eq!(declare(&both), (true, both.clone()));
    assert!(settles_in(&store).is_zero());
}

#[test]
fn the_past_of_a_long_log_in_redis_is_read_in_steps() {
    let server = RedisServer::start();
    let store = redis(&server);
    for batch in 0..5 {
        let entities: Vec<_> = (0..500).map(|number| entity(&format!("e{batch}-{number}"))).collect();
        apply(&store, entities.iter().map(create).collect()).unwrap();
    }
    let mut changes = store.changes().unwrap();
    let past = changes.past(2400).unwrap();
    assert_eq!(past.iter().map(|position| position.seq).collect::<Vec<_>>(), (101..=2500).collect::<Vec<_>>());
    assert_eq!(changes.past(usize::MAX).unwrap().len(), 2500);
    assert!(past.iter().step_by(777).all(|position| store.holds(*position).unwrap()));
}

#[test]
fn a_newer_layout_in_redis_begins_no_fleet() {
    let server = RedisServer::start();
    // Connected before, so that only the script can see it.
    let store = redis(&server);
    assert_eq!(store.fleet_id().unwrap(), None);
    assert_eq!(server.command("SET {keygate}:schema 99"), "+OK");
    let result = store.begin_fleet(OURS);
    assert!(matches!(&result, Err(StoreError::Refused(message)) if message.contains("schema 99")), "{result:?}");
    assert_eq!(server.command("DBSIZE"), ":1");
}
