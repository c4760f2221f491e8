//! The verdict against what has really happened.

use super::*;
use crate::manage::samples::{at, call, key};
use crate::store::Member;
use proptest::prelude::*;

const NOW: i64 = 1000;

fn journal(name: &str) -> JournalAccount {
    JournalAccount { seq: 9, through: at(NOW), ..JournalAccount::new(name.into(), at(0)) }
}

fn fleet(gateways: &[&str]) -> Fleet {
    let member = |gateway: &&str| Member { gateway: (*gateway).into(), ..Member::default() };
    Fleet::settled(gateways.iter().map(member).collect())
}

fn percent(journals: &[JournalAccount], fleet: &Fleet, begin: i64) -> u8 {
    Coverage::of(&Accounts { journals: journals.to_vec() }, fleet, at(NOW)).percent(at(begin))
}

#[test]
fn what_is_not_known_of_a_period_is_told_in_percent() {
    let alone = fleet(&["edge-1"]);
    assert_eq!(percent(&[journal("edge-1/0")], &alone, 0), 100);
    assert_eq!(percent(&[], &fleet(&[]), 0), 0);
    // A hole counts where it ends within the period.
    let holed = JournalAccount { whole_since: at(500), ..journal("edge-1/0") };
    assert_eq!(percent(std::slice::from_ref(&holed), &alone, 0), 50);
    assert_eq!(percent(&[holed], &alone, 500), 100);
    // Before the first record of all, whichever gateway's.
    let (young, old) = (JournalAccount { since: at(900), ..journal("edge-1/0") }, journal("edge-2/0"));
    assert_eq!(percent(std::slice::from_ref(&young), &alone, 0), 10);
    assert_eq!(percent(&[young, old], &fleet(&["edge-1", "edge-2"]), 0), 100);
    // Not reported up to now, but for seconds.
    let late = |through| JournalAccount { through: at(through), ..journal("edge-2/0") };
    assert_eq!(percent(&[journal("edge-1/0"), late(400)], &alone, 0), 40);
    assert_eq!(percent(&[journal("edge-1/0"), late(NOW - 15)], &alone, 0), 100);
    assert_eq!(percent(&[journal("edge-1/0"), late(NOW - 16)], &alone, 0), 98);
    assert_eq!(percent(&[journal("edge-1/0"), JournalAccount { closed_seq: 9, ..late(400) }], &alone, 0), 100);
    // Never all of it when a moment lacks.
    let moment = JournalAccount { whole_since: Timestamp::from_micros(1), ..journal("edge-1/0") };
    assert_eq!(percent(&[moment], &alone, 0), 99);
}

#[test]
fn a_gateway_that_runs_and_tells_nothing_leaves_everything_unknown() {
    let open = journal("edge-1/0");
    let closed = JournalAccount { closed_seq: 9, ..journal("edge-2/0") };
    assert_eq!(percent(&[open.clone(), closed.clone()], &fleet(&["edge-1"]), 0), 100);
    assert_eq!(percent(&[open.clone(), closed], &fleet(&["edge-1", "edge-2"]), 0), 0);
    assert_eq!(percent(std::slice::from_ref(&open), &fleet(&["edge-1", "edge-1"]), 0), 0);
    let settling = Fleet { settles_in: Duration::from_secs(1), ..fleet(&["edge-1"]) };
    assert_eq!(percent(&[open], &settling, 0), 0);
}

#[test]
fn only_what_hides_something_of_the_period_is_told() {
    let journals = vec![JournalAccount { whole_since: at(500), since: at(100), ..journal("edge-1/0") }];
    let coverage = Coverage::of(&Accounts { journals }, &fleet(&["edge-1"]), at(NOW));
    let lacks = |begin| coverage.lacks(at(begin)).cloned().collect::<Vec<_>>();
    let hole = Lack::Hole { journal: "edge-1/0".into(), end: at(500) };
    assert_eq!(lacks(0), [Lack::Before { first: at(100) }, hole.clone()]);
    assert_eq!(lacks(200), [hole]);
    assert_eq!(lacks(500), []);
}

/// What happens at a gateway.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A call with the key.
    Call,
    /// A call with the key whose record is lost, which the next record shows.
    LostCall,
    /// Something else that is recorded.
    Other,
}

#[derive(Clone, Debug)]
struct Gateway {
    /// In the order of their times.
    events: Vec<(i64, Event)>,
    /// How many of them are reported.
    reported: usize,
    is_closed: bool,
}

fn any_gateway() -> impl Strategy<Value = Gateway> {
    let event = prop_oneof![2 => Just(Event::Other), 1 => Just(Event::Call), 1 => Just(Event::LostCall)];
    let events = prop::collection::btree_map((0..NOW / 20).prop_map(|step| 20 * step), event, 0..8);
    (events, 0usize..12, any::<bool>()).prop_map(|(events, reported, is_closed)| {
        let mut events: Vec<_> = events.into_iter().collect();
        // The first record is its start; what is lost shows in a later one.
        events.insert(0, (0, Event::Other));
        events.push((NOW, Event::Other));
        let reported = reported.clamp(1, events.len());
        Gateway { reported, is_closed: is_closed && reported == events.len(), events }
    })
}

/// The account of what is reported, and the last call in it.
fn account(number: usize, gateway: &Gateway) -> (JournalAccount, Option<i64>) {
    let reported = &gateway.events[..gateway.reported];
    let mut journal = JournalAccount::new(format!("edge-{number}/0"), at(0));
    let (mut last, mut is_missing) = (None, false);
    for (second, event) in reported {
        journal.through = at(*second);
        match event {
            Event::LostCall => is_missing = true,
            Event::Call | Event::Other => {
                journal.seq += 1;
                if std::mem::take(&mut is_missing) {
                    journal.whole_since = at(*second);
                }
                last = if matches!(event, Event::Call) { Some(*second) } else { last };
            }
        }
    }
    // A lost call at the end shows only later: until there it is not reported.
    if is_missing {
        let whole = reported.iter().rev().find(|(_, event)| !matches!(event, Event::LostCall));
        journal.through = at(whole.map_or(0, |(second, _)| *second));
    }
    journal.closed_seq = if gateway.is_closed { journal.seq } else { 0 };
    (journal, last)
}

proptest! {
    /// Against everything that has happened, which no gateway knows.
    #[test]
    fn no_key_that_was_used_is_called_safe_and_none_is_unknown_where_everything_is_known(
        gateways in prop::collection::vec(any_gateway(), 1..4), since in 0..NOW, created in 0..NOW,
    ) {
        let accounts: Vec<_> = gateways.iter().enumerate().map(|(number, gateway)| account(number, gateway)).collect();
        let mut uses = LastUses::default();
        accounts.iter().filter_map(|(_, last)| *last).for_each(|second| uses.add(&call("edge-0", at(second))));
        let journals: Vec<_> = accounts.into_iter().map(|(journal, _)| journal).collect();
        let names: Vec<_> = journals.iter().filter(|journal| !journal.is_closed()).map(|journal| journal.gateway().to_owned()).collect();
        let fleet = fleet(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let (key, now) = (key(1, at(created)), at(NOW));
        let verdict = Verdict::on(&key, &uses, &Coverage::of(&Accounts { journals }, &fleet, now), at(since));

        let begin = since.max(created);
        let calls = |lost: bool| {
            let mut events = gateways.iter().flat_map(|gateway| gateway.events.iter().enumerate().map(move |(index, event)| (index < gateway.reported, event)));
            events.any(|(reported, (second, event))| {
                let is_call = matches!(event, Event::Call) && (reported || lost) || matches!(event, Event::LostCall) && lost;
                is_call && *second >= begin
            })
        };
        let is_known = gateways.iter().all(|gateway| {
            let lost_late = gateway.events.windows(2).any(|pair| matches!(pair[0].1, Event::LostCall) && pair[1].0 > begin);
            let late = gateway.events[..gateway.reported].last().is_none_or(|(second, _)| second + 15 < NOW);
            !lost_late && !late
        });
        match verdict {
            // What has happened in the last seconds may not be reported yet, and the verdict's period ends there.
            Verdict::SafeToDelete => prop_assert!(is_known && !calls(false), "{gateways:?}"),
            Verdict::InUse => prop_assert!(calls(false), "{gateways:?}"),
            Verdict::Unknown { percent } => prop_assert!(!is_known && percent < 100, "{gateways:?}"),
        }
        if is_known {
            prop_assert_eq!(verdict == Verdict::InUse, calls(true));
        }
    }
}
