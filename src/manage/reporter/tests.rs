//! What the store is told of lines of a journal.

use super::*;
use crate::audit::recent::tests::both_forms;
use crate::audit::segment::{self, Kind};
use crate::clock::Hand;
use crate::key::KeyId;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use crate::store::{KeyFilter, LastUses, Seal, Use};
use crate::ulid::Ulid;
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};

const KEY: KeyId = KeyId::new(Ulid::from_bits(7));

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

fn line(kind: Kind, seq: u64, second: i64, body: &str) -> String {
    let mut line = Vec::new();
    let body = format!("\"ts\":\"{}\",{body}", at(second));
    segment::write_line(&mut line, kind, "edge-1/0", seq, "cfg", body.as_bytes());
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// A call with the key, of one second.
fn call(seq: u64, second: i64, decision: &str) -> String {
    let body = format!(
        r#""client_ip":"192.0.2.1","method":"GET","route":"/v1/x","key_id":"{KEY}","decision":"{decision}","reason":null,"duration_us":1000000,"#
    );
    line(Kind::Request, seq, second, &body)
}

fn refused(seq: u64, second: i64, reason: &str) -> String {
    let body = format!(r#""key_id":null,"decision":"deny","reason":"{reason}","duration_us":5,"#);
    line(Kind::Request, seq, second, &body)
}

fn parts(store: &Arc<MemoryStore>, clock: Clock) -> ReporterParts {
    let store: Arc<dyn KeyStore> = Arc::<MemoryStore>::clone(store);
    let (is_written, under_way) = (Box::new(|_: &str| true), Box::new(Vec::new));
    ReporterParts { store, clock, gateway: "edge-1".into(), is_written, under_way, ended: Vec::new() }
}

fn reporter(store: &Arc<MemoryStore>) -> (Reporter, Arc<Hand>) {
    let (clock, hand) = Clock::manual(at(1000));
    (Reporter::new(parts(store, clock)), hand)
}

fn told(store: &MemoryStore) -> (JournalAccount, LastUses) {
    let journal = store.accounts().unwrap().journals.remove(0);
    (journal, store.last_uses(&[KEY]).unwrap().remove(0))
}

/// The whole account of these lines.
fn account_of(lines: &[String]) -> (JournalAccount, LastUses) {
    let store = Arc::new(MemoryStore::default());
    let (mut reporter, _) = reporter(&store);
    reporter.fold(lines.iter().map(String::as_str)).unwrap();
    reporter.hand_over().unwrap();
    told(&store)
}

#[test]
fn calls_seals_and_the_way_a_journal_has_come_are_told() {
    let seal = line(Kind::Change, 4, 13, r#""hash":"c0ffee","#).replace("change", "seal");
    let lines = [line(Kind::Start, 1, 10, ""), call(2, 11, "allow"), call(3, 12, "deny"), seal];
    let (journal, uses) = account_of(&lines);
    assert_eq!((journal.seq, journal.since, journal.whole_since), (4, at(10), at(0)));
    assert_eq!(journal.seal, Some(Seal { seq: 4, hash: "c0ffee".into() }));
    let (any, allowed) = (uses.any.unwrap(), uses.allowed.unwrap());
    assert_eq!((any.seq, any.at, any.ended_at, any.allowed), (3, at(12), at(13), false));
    assert_eq!((allowed.seq, allowed.gateway.as_str(), allowed.allowed), (2, "edge-1", true));
    assert_eq!(allowed.client_ip, "192.0.2.1".parse().ok());
}

#[test]
fn what_may_hide_a_call_is_a_hole_up_to_its_end() {
    let whole_since = |lines: &[String]| account_of(lines).0.whole_since;
    let start = line(Kind::Start, 1, 10, "");
    assert_eq!(whole_since(&[start.clone(), call(2, 11, "allow")]), at(0));
    // Older segments were removed before anything was told of them; numbers are missing; records were given up.
    assert_eq!(whole_since(&[call(5, 11, "allow")]), at(12));
    assert_eq!(whole_since(&[start.clone(), call(3, 20, "allow")]), at(21));
    assert_eq!(whole_since(&[start.clone(), line(Kind::Gap, 2, 30, r#""requests_refused":3,"#)]), at(30));
    let after = |how: &str| line(Kind::Start, 2, 35, &format!(r#""version":"0.1.0","after":"{how}","#));
    assert_eq!(whole_since(&[start.clone(), after("kill")]), at(0));
    assert_eq!(whole_since(&[start.clone(), after("power_loss")]), at(35));
    // A good key may have been presented, and nobody could tell which.
    let stranger = refused(2, 40, "key_unknown");
    assert_eq!(whole_since(&[start.clone(), stranger]), at(0));
    assert!(whole_since(&[start.clone(), refused(2, 40, "key_store_unavailable")]) > at(40));
    let counts = |reason: &str| line(Kind::Summary, 2, 50, &format!(r#""counts":{{"{reason}":9}},"#));
    assert_eq!(whole_since(&[start.clone(), counts("key_unknown")]), at(0));
    assert_eq!(whole_since(&[start.clone(), counts("overloaded")]), at(50));
    assert_eq!(whole_since(&[start, line(Kind::Change, 2, 60, "").replace("change", "novelty")]), at(60));
}

#[test]
fn a_sinks_word_for_missing_records_is_as_good_as_their_absence() {
    let start = line(Kind::Start, 1, 10, "");
    let word = line(Kind::Gap, 5, 999, r#""sink":"accounts","reason":"not_in_journal","first":2,"last":5,"#);
    assert_eq!(account_of(&[start, word, call(6, 20, "allow")]).0.whole_since, at(21));
}

#[test]
fn lines_may_come_again_and_another_journal_under_the_same_numbers_is_a_hole() {
    let store = Arc::new(MemoryStore::default());
    let (mut first, _) = reporter(&store);
    let lines = [line(Kind::Start, 1, 10, ""), call(2, 900, "allow"), call(3, 901, "allow")];
    first.fold(lines.iter().map(String::as_str)).unwrap();
    first.advance(at(1000));
    first.hand_over().unwrap();
    let before = told(&store);
    let (mut second, _) = reporter(&store);
    assert_eq!(second.positions().unwrap(), BTreeMap::from([("edge-1/0".to_owned(), 3)]));
    second.fold(lines.iter().map(String::as_str)).unwrap();
    second.hand_over().unwrap();
    assert_eq!(told(&store), before);
    // Somebody has removed the directory.
    second.fold([&*line(Kind::Start, 1, 2000, "")]).unwrap();
    second.hand_over().unwrap();
    assert_eq!(told(&store).0.whole_since, at(2000));
}

#[test]
fn an_idle_journal_is_reported_up_to_now_while_it_is_written() {
    let store = Arc::new(MemoryStore::default());
    let (clock, hand) = Clock::manual(at(1000));
    let written = Arc::new(AtomicBool::new(true));
    let is_written = Arc::clone(&written);
    let is_written = Box::new(move |_: &str| is_written.load(Ordering::Relaxed));
    let mut reporter = Reporter::new(ReporterParts { is_written, ..parts(&store, clock) });
    reporter.fold([&*line(Kind::Start, 1, 1000, "")]).unwrap();
    reporter.advance(at(1000));
    assert!(!reporter.is_due());
    hand.pass(TELL_EVERY);
    assert!(reporter.is_due());
    reporter.hand_over().unwrap();
    assert_eq!(told(&store).0.through, at(995));
    hand.pass(TELL_EVERY);
    assert!(!reporter.is_due());
    written.store(false, Ordering::Relaxed);
    reporter.advance(at(2000));
    assert!(!reporter.is_due());
    written.store(true, Ordering::Relaxed);
    reporter.advance(at(2000));
    assert!(reporter.is_due());
    reporter.hand_over().unwrap();
    assert_eq!(told(&store).0.through, at(1995));
}

#[test]
fn a_call_that_is_under_way_is_a_use_until_now() {
    let store = Arc::new(MemoryStore::default());
    let under_way = Box::new(|| vec![call(0, 11, "allow"), "{\"torn".to_owned()]);
    let (clock, hand) = Clock::manual(at(1000));
    let mut reporter = Reporter::new(ReporterParts { under_way, ..parts(&store, clock) });
    reporter.fold([&*line(Kind::Start, 1, 10, "")]).unwrap();
    for now in [1000, 1002] {
        hand.pass(TELL_EVERY);
        reporter.caught_up(at(now), false).unwrap();
        let call = told(&store).1.any.unwrap();
        assert_eq!((call.at, call.ended_at, call.seq), (at(11), at(now), 0));
    }
    assert_eq!(told(&store).0.seq, 1);
}

#[test]
fn a_journal_is_closed_when_all_of_it_is_reported_and_open_again_with_its_next_record() {
    let store = Arc::new(MemoryStore::default());
    let (mut reporter, _) = reporter(&store);
    reporter.fold([&*line(Kind::Start, 1, 10, "")]).unwrap();
    reporter.hand_over().unwrap();
    close(store.as_ref(), "edge-1/0", 2, at(20)).unwrap();
    let is_closed = || told(&store).0.is_closed();
    assert!(!is_closed());
    for (text, closed) in [(call(2, 11, "allow"), true), (line(Kind::Start, 3, 30, ""), false)] {
        reporter.fold([&*text]).unwrap();
        reporter.hand_over().unwrap();
        assert_eq!(is_closed(), closed);
    }
    assert_eq!(store.keys(&KeyFilter::default(), None, 9).unwrap(), []);
}

#[test]
fn what_a_process_that_is_gone_has_left_is_closed_once_all_of_it_is_taken() {
    let store = Arc::new(MemoryStore::default());
    let (clock, _) = Clock::manual(at(1000));
    let ended = vec![("edge-1/0".to_owned(), 2), ("edge-1/9".to_owned(), 7)];
    let mut reporter = Reporter::new(ReporterParts { ended, is_written: Box::new(|_| false), ..parts(&store, clock) });
    reporter.fold([&*line(Kind::Start, 1, 10, ""), &call(2, 11, "allow")]).unwrap();
    reporter.hand_over().unwrap();
    assert!(!told(&store).0.is_closed());
    reporter.advance(at(1000));
    reporter.hand_over().unwrap();
    let (journal, _) = told(&store);
    assert!(journal.is_closed() && journal.through == at(0));
    assert_eq!(store.accounts().unwrap().journals.len(), 1);
}

#[test]
fn a_journal_that_is_given_up_is_waited_for_no_more_and_what_it_did_not_report_stays_unknown() {
    let store = Arc::new(MemoryStore::default());
    let (mut reporter, _) = reporter(&store);
    reporter.fold([&*line(Kind::Start, 1, 10, ""), &call(2, 11, "allow")]).unwrap();
    reporter.hand_over().unwrap();
    assert!(!abandon(store.as_ref(), "edge-9/0", at(50)).unwrap());
    assert!(abandon(store.as_ref(), "edge-1/0", at(50)).unwrap());
    let (journal, _) = told(&store);
    assert!(journal.is_closed() && journal.whole_since == at(50));
    assert!(!abandon(store.as_ref(), "edge-1/0", at(60)).unwrap());
    // It lives.
    reporter.fold([&*call(3, 70, "allow")]).unwrap();
    reporter.hand_over().unwrap();
    assert!(!told(&store).0.is_closed());
}

#[test]
fn a_store_that_was_put_back_from_a_copy_is_told_again_what_it_has_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.db");
    let store = Arc::new(SqliteStore::open(&path).unwrap());
    let parts = |clock| ReporterParts { store: Arc::<SqliteStore>::clone(&store), ..parts(&Arc::default(), clock) };
    let mut reporter = Reporter::new(parts(Clock::manual(at(1000)).0));
    let lines = [line(Kind::Start, 1, 10, ""), call(2, 11, "allow"), line(Kind::Connection, 3, 12, "")];
    reporter.fold([&*lines[0]]).unwrap();
    reporter.hand_over().unwrap();
    reporter.fold(lines[1..].iter().map(String::as_str)).unwrap();
    reporter.hand_over().unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("UPDATE journals SET seq = 1; DELETE FROM uses;").unwrap();
    assert!(matches!(reporter.hand_over(), Err(NotTold::Lost)));
    // As the shipper does then.
    assert_eq!(reporter.positions().unwrap(), BTreeMap::from([("edge-1/0".to_owned(), 1)]));
    reporter.fold(lines[1..].iter().map(String::as_str)).unwrap();
    reporter.hand_over().unwrap();
    let used = store.last_uses(&[KEY]).unwrap().remove(0);
    assert_eq!((used.any.unwrap().seq, store.accounts().unwrap().journals[0].seq), (2, 3));
}

proptest! {
    #[test]
    fn what_groups_tell_is_what_their_lines_do((lines, groups) in both_forms()) {
        let told = |fold: &dyn Fn(&mut Reporter)| {
            let store = Arc::new(MemoryStore::default());
            let (mut reporter, _) = reporter(&store);
            fold(&mut reporter);
            reporter.settle();
            reporter.accounts
        };
        let by_lines = told(&|reporter| reporter.fold(lines.iter().map(String::as_str)).unwrap());
        let by_groups = told(&|reporter| groups.iter().for_each(|group| reporter.fold_group(group).unwrap()));
        prop_assert_eq!(by_groups, by_lines);
    }

    /// Whatever the lines and however they come in batches, the store has what a plain fold over all calls gives.
    #[test]
    fn the_last_uses_are_those_of_a_plain_fold(
        calls in prop::collection::vec((0u128..3, 0i64..20, 0u64..5, any::<bool>()), 1..40), batch in 1usize..10,
    ) {
        let lines: Vec<_> = calls.iter().zip(1..).map(|((key, second, duration, allowed), seq)| {
            let (key, decision) = (KeyId::new(Ulid::from_bits(*key)), if *allowed { "allow" } else { "deny" });
            let body = format!(r#""method":"GET","key_id":"{key}","decision":"{decision}","duration_us":{},"#, duration * 1_000_000);
            line(Kind::Request, seq, *second, &body)
        }).collect();
        let store = Arc::new(MemoryStore::default());
        let (mut reporter, _) = reporter(&store);
        for batch in lines.chunks(batch) {
            reporter.fold(batch.iter().map(String::as_str)).unwrap();
        }
        reporter.hand_over().unwrap();
        for key in 0..3 {
            let of_key = calls.iter().zip(1..).filter(|((number, ..), _)| *number == key);
            let ended = of_key.map(|((_, second, duration, allowed), seq)| (second + *duration as i64, seq, *allowed));
            let last = |allowed_only: bool| ended.clone().filter(|(.., allowed)| *allowed || !allowed_only).max();
            let told = store.last_uses(&[KeyId::new(Ulid::from_bits(key))]).unwrap().remove(0);
            let place = |call: Option<Use>| call.map(|call| (call.ended_at.as_micros() / 1_000_000, call.seq, call.allowed));
            prop_assert_eq!((place(told.any), place(told.allowed)), (last(false), last(true)));
        }
    }
}
