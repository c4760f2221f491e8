//! What gateways tell of their journals and of the last uses of keys.

use super::server::RedisServer;
use super::{at, on_every_engine, redis};
use keygate::key::KeyId;
use keygate::store::memory::MemoryStore;
use keygate::store::sqlite::SqliteStore;
use keygate::store::{Account, Accounts, JournalAccount, KeyStore, LastUses, Seal, Use};
use keygate::ulid::Ulid;
use proptest::prelude::*;

/// A call whose contents follow from where its record is.
fn call(journal: &str, seq: u64, ended: i64) -> Use {
    Use {
        at: at(ended - 1),
        ended_at: at(ended),
        gateway: journal.split('/').next().unwrap().into(),
        journal: journal.into(),
        seq,
        client_ip: Some("192.0.2.7".parse().unwrap()),
        method: "GET".into(),
        route: seq.is_multiple_of(2).then(|| "/v1/entities/{entity_id}/orders/**".into()),
        allowed: !seq.is_multiple_of(3),
        reason: seq.is_multiple_of(3).then(|| "insufficient_scope".into()),
    }
}

fn report(journal: JournalAccount, calls: &[(u128, Use)]) -> Account {
    let mut account = Account::new(journal);
    calls.iter().for_each(|(key, call)| account.add(KeyId::new(Ulid::from_bits(*key)), call));
    account
}

fn told(store: &dyn KeyStore, keys: u128) -> (Accounts, Vec<LastUses>) {
    let keys: Vec<_> = (1..=keys).map(|number| KeyId::new(Ulid::from_bits(number))).collect();
    (store.accounts().unwrap(), store.last_uses(&keys).unwrap())
}

#[test]
fn the_last_use_of_a_key_is_the_latest_whatever_gateway_reports_when() {
    on_every_engine(|store| {
        assert_eq!(told(store, 2), (Accounts::default(), vec![LastUses::default(); 2]));
        let journal = JournalAccount {
            seq: 7,
            seal: Some(Seal { seq: 6, hash: "c0ffee".into() }),
            through: at(9),
            ..JournalAccount::new("edge-1/0".into(), at(3))
        };
        let refused = call("edge-1/0", 6, 8);
        let served = call("edge-1/0", 5, 7);
        store.account(&report(journal.clone(), &[(1, served.clone()), (1, refused.clone())])).unwrap();
        let elsewhere = call("edge-2/0", 1, 2);
        let other = JournalAccount { seq: 1, closed_seq: 1, ..JournalAccount::new("edge-2/0".into(), at(1)) };
        store.account(&report(other.clone(), &[(1, elsewhere)])).unwrap();
        let uses = LastUses { any: Some(refused), allowed: Some(served) };
        let all = Accounts { journals: vec![journal, other] };
        assert_eq!(told(store, 2), (all.clone(), vec![uses, LastUses::default()]));
        assert_eq!(all.journals.iter().map(JournalAccount::is_closed).collect::<Vec<_>>(), [false, true]);
    });
}

#[test]
fn a_report_of_more_keys_than_one_step_takes_is_stored_whole() {
    on_every_engine(|store| {
        let calls: Vec<_> = (1..=1001).map(|key| (key, call("edge-1/0", 1, key as i64))).collect();
        store.account(&report(JournalAccount::new("edge-1/0".into(), at(1)), &calls)).unwrap();
        let (_, uses) = told(store, 1001);
        let expected: Vec<_> = calls.into_iter().map(|(_, call)| Some(call)).collect();
        assert_eq!(uses.into_iter().map(|uses| uses.any).collect::<Vec<_>>(), expected);
    });
}

#[test]
fn reports_of_several_gateways_at_once_lose_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (server, path) = (RedisServer::start(), directory.path().join("keys.db"));
    let open: [Box<dyn Fn() -> Box<dyn KeyStore> + Sync>; 2] =
        [Box::new(|| Box::new(SqliteStore::open(&path).unwrap())), Box::new(|| Box::new(redis(&server)))];
    for open in open {
        std::thread::scope(|scope| {
            for gateway in 0..4 {
                let store = open();
                scope.spawn(move || {
                    let journal = format!("edge-{gateway}/0");
                    for seq in 1..=20 {
                        let calls = [
                            (1, call(&journal, seq, 4 * seq as i64 + gateway)),
                            (gateway as u128 + 2, call(&journal, seq, seq as i64)),
                        ];
                        let through = JournalAccount { seq, ..JournalAccount::new(journal.clone(), at(1)) };
                        store.account(&report(through, &calls)).unwrap();
                    }
                });
            }
        });
        let (accounts, uses) = told(open().as_ref(), 5);
        assert_eq!(accounts.journals.iter().map(|journal| journal.seq).collect::<Vec<_>>(), [20; 4]);
        assert_eq!(uses[0].any, Some(call("edge-3/0", 20, 83)));
        assert!((0..4).all(|gateway| uses[gateway + 1].any == Some(call(&format!("edge-{gateway}/0"), 20, 20))));
    }
}

#[test]
fn accounts_outlive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (mut server, path) = (RedisServer::start(), directory.path().join("keys.db"));
    let account = report(JournalAccount::new("edge-1/0".into(), at(3)), &[(1, call("edge-1/0", 5, 7))]);
    SqliteStore::open(&path).unwrap().account(&account).unwrap();
    redis(&server).account(&account).unwrap();
    server.kill();
    server.restart();
    // Answered once it has read its file.
    server.command("PING");
    let expected = (Accounts { journals: vec![account.journal] }, vec![account.uses.into_values().next().unwrap()]);
    assert_eq!(told(&SqliteStore::open(&path).unwrap(), 1), expected);
    assert_eq!(told(&redis(&server), 1), expected);
}

#[test]
fn a_database_made_before_there_were_accounts_takes_them() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    drop(SqliteStore::open(&path).unwrap());
    rusqlite::Connection::open(&path).unwrap().execute_batch("DROP TABLE journals; DROP TABLE uses;").unwrap();
    let account = report(JournalAccount::new("edge-1/0".into(), at(3)), &[(1, call("edge-1/0", 5, 7))]);
    let store = SqliteStore::open(&path).unwrap();
    store.account(&account).unwrap();
    assert_eq!(told(&store, 1).0.journals, [account.journal]);
}

#[test]
fn what_a_newer_version_tells_beside_it_is_kept_and_passed_over() {
    let server = RedisServer::start();
    let store = redis(&server);
    let account = report(JournalAccount::new("edge-1/0".into(), at(3)), &[(1, call("edge-1/0", 5, 7))]);
    store.account(&account).unwrap();
    let mut raw = ::redis::Client::open(server.url()).unwrap().get_connection().unwrap();
    let newer = call("edge-1/0", 6, 8);
    let text = format!("{{\"continent\":\"EU\",{}", &newer.to_text().unwrap()[1..]);
    let id = KeyId::new(Ulid::from_bits(1)).to_string();
    ::redis::cmd("HSET").arg("{keygate}:uses").arg(id).arg(text).exec(&mut raw).unwrap();
    ::redis::cmd("HSET").arg("{keygate}:journals").arg("edge-1/0 mood").arg("good").exec(&mut raw).unwrap();
    store.account(&account).unwrap();
    let (accounts, uses) = told(&store, 1);
    assert_eq!((accounts.journals, uses[0].any.clone()), (vec![account.journal], Some(newer)));
    let mood: String = ::redis::cmd("HGET").arg("{keygate}:journals").arg("edge-1/0 mood").query(&mut raw).unwrap();
    assert_eq!(mood, "good");
}

type Report = ((u64, i64, i64, i64), (u64, Option<(u64, u8)>), Vec<(u128, u64, i64)>);

/// Of a handful of journals and keys, so that reports meet.
fn any_reports() -> impl Strategy<Value = Vec<Account>> {
    let journal = (0u64..5, 1i64..5, 0i64..5, 0i64..5);
    let ends = (0u64..5, prop::option::of((1u64..5, 0u8..3)));
    let calls = prop::collection::vec((1u128..4, 1u64..6, 2i64..6), 0..4);
    prop::collection::vec((0u8..3, (journal, ends, calls)), 1..12).prop_map(|reports| {
        reports.into_iter().map(|(number, report)| some_report(&format!("edge-{number}/0"), report)).collect()
    })
}

fn some_report(name: &str, ((seq, since, whole_since, through), (closed_seq, seal), calls): Report) -> Account {
    let seal = seal.map(|(seq, hash)| Seal { seq, hash: format!("{hash:02x}") });
    let (whole_since, through) = (at(whole_since), at(through));
    let journal =
        JournalAccount { seq, seal, whole_since, through, closed_seq, ..JournalAccount::new(name.into(), at(since)) };
    let calls: Vec<_> = calls.into_iter().map(|(key, seq, ended)| (key, call(name, seq, ended))).collect();
    report(journal, &calls)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// On every engine the same remains of the same reports, in any order and however often each comes.
    #[test]
    fn reports_in_any_order_and_number_leave_the_same(reports in any_reports(), picks in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
        let directory = tempfile::tempdir().unwrap();
        let (memory, sqlite) = (MemoryStore::default(), SqliteStore::open(&directory.path().join("keys.db")).unwrap());
        let server = RedisServer::start();
        let redis = redis(&server);
        reports.iter().for_each(|report| memory.account(report).unwrap());
        let shuffled = picks.iter().map(|pick| pick.get(&reports)).chain(reports.iter().rev());
        for report in shuffled {
            sqlite.account(report).unwrap();
            redis.account(report).unwrap();
        }
        prop_assert_eq!(told(&memory, 4), told(&sqlite, 4));
        prop_assert_eq!(told(&memory, 4), told(&redis, 4));
    }
}
