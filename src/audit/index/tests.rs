//! The index must tell what a plain fold over all records tells, whatever came between.

use super::{Entry, FILE, Index, IndexError, IndexReader};
use crate::audit::fields::Fields;
use crate::audit::recent::tests::both_forms;
use crate::audit::segment::{Kind, file_name, write_line};
use crate::audit::usage::{Day, Usage};
use crate::clock::Timestamp;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::Path;

const HOUR: i64 = 3_600 * 1_000_000;
const START: i64 = 1_764_000_000_000_000;

/// What happens to a journal and its index.
#[derive(Clone, Debug)]
enum Step {
    /// A record is written.
    Record(Record),
    /// The index takes what it has not, and some of what it has.
    Deliver {
        again: u64,
    },
    Flush,
    /// The process dies and another goes on from the positions.
    Die,
    /// A new segment begins.
    Rotate,
    /// The oldest segment that the index has passed is removed.
    Retain,
}

#[derive(Clone, Debug)]
struct Record {
    slot: usize,
    hour: i64,
    key: Option<u8>,
    host: u8,
    route: Option<u8>,
    status: Option<u64>,
    reason: Option<&'static str>,
}

struct World {
    dir: tempfile::TempDir,
    index: Index,
    /// Everything that was ever written, by slot.
    written: [Vec<String>; 2],
    segments: [Vec<u64>; 2],
}

fn record() -> impl Strategy<Value = Record> {
    let refusals = prop_oneof![Just(None), Just(None), Just(Some("insufficient_scope")), Just(Some("entity_mismatch"))];
    let (key, route) = (proptest::option::of(0..3_u8), proptest::option::of(0..30_u8));
    let status = proptest::option::of(prop_oneof![Just(200_u64), Just(404), Just(503)]);
    (0..2_usize, 0..80_i64, key, 0..40_u8, route, status, refusals).prop_map(
        |(slot, hour, key, host, route, status, reason)| Record { slot, hour, key, host, route, status, reason },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => record().prop_map(Step::Record),
        3 => (0..9_u64).prop_map(|again| Step::Deliver { again }),
        2 => Just(Step::Flush),
        1 => Just(Step::Die),
        2 => Just(Step::Rotate),
        1 => Just(Step::Retain),
    ]
}

// === impl World ===

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        (0..2).for_each(|slot| fs::create_dir(dir.path().join(slot.to_string())).unwrap());
        let index = Index::open(dir.path()).unwrap();
        Self { dir, index, written: Default::default(), segments: [vec![1], vec![1]] }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Record(record) => self.write(&record),
            Step::Deliver { again } => self.deliver(again),
            Step::Flush => self.index.flush().unwrap(),
            Step::Die => self.index = Index::open(self.dir.path()).unwrap(),
            Step::Rotate => self.segments.iter_mut().zip(&self.written).for_each(|(segments, lines)| {
                let next = lines.len() as u64 + 1;
                segments.extend(Some(next).filter(|next| segments.last() != Some(next)));
            }),
            Step::Retain => (0..2).for_each(|slot| self.retain(slot)),
        }
    }

    fn write(&mut self, record: &Record) {
        let (slot, text) = (record.slot, |text: Option<String>| serde_json::Value::from(text));
        let body = format!(
            r#""ts":"{}","client_ip":"192.0.2.{}","method":"{}","route":{},"key_id":{},"decision":"{}","reason":{},"status":{},"#,
            Timestamp::from_micros(START + record.hour * HOUR),
            record.host,
            if record.host.is_multiple_of(2) { "GET" } else { "POST" },
            text(record.route.map(|route| format!("/v1/\"{route}/キ"))),
            text(record.key.map(key_id)),
            if record.reason.is_some() { "deny" } else { "allow" },
            text(record.reason.map(str::to_owned)),
            serde_json::Value::from(record.status),
        );
        let seq = self.written[slot].len() as u64 + 1;
        let mut line = Vec::new();
        write_line(&mut line, Kind::Request, &journal(slot), seq, "cfg", body.as_bytes());
        let segment = self.dir.path().join(slot.to_string()).join(file_name(*self.segments[slot].last().unwrap()));
        fs::File::options().create(true).append(true).open(segment).unwrap().write_all(&line).unwrap();
        line.pop();
        self.written[slot].push(String::from_utf8(line).unwrap());
    }

    fn deliver(&mut self, again: u64) {
        for slot in 0..2 {
            let position = self.index.positions().get(&journal(slot)).copied().unwrap_or(0);
            let first = position.saturating_sub(again);
            let (journal, lines) = (journal(slot), &self.written[slot]);
            let entries = (first + 1..).zip(&lines[first as usize..]);
            let entries = entries.map(|(seq, text)| Entry { journal: &journal, seq, text });
            self.index.deliver(entries).unwrap();
        }
    }

    fn retain(&mut self, slot: usize) {
        let position = self.index.positions().get(&journal(slot)).copied().unwrap_or(0);
        if let [oldest, next, ..] = self.segments[slot][..]
            && next <= position + 1
        {
            fs::remove_file(self.dir.path().join(slot.to_string()).join(file_name(oldest))).unwrap();
            self.segments[slot].remove(0);
        }
    }

    fn reader(&self) -> IndexReader {
        IndexReader::open(self.dir.path()).unwrap().expect("an index")
    }

    fn all(&self) -> impl Iterator<Item = Fields<'_>> {
        self.written.iter().flatten().map(|line| Fields::read(line).unwrap())
    }

    fn check_usage(&self, since: i64, until: i64) {
        let (since, until) =
            (Timestamp::from_micros(START + since * HOUR), Timestamp::from_micros(START + until * HOUR));
        for key in (0..4).map(key_id) {
            let mut expected = Usage::default();
            let days = Day::of(since)..=Day::of(until);
            let wanted = self.all().filter(|fields| fields.key_id.is_some_and(|id| id.is(&key)));
            wanted.filter(|fields| days.contains(&Day::of(fields.at().unwrap()))).for_each(|one| expected.add(&one));
            assert_same(&self.reader().usage(&key, since, until).unwrap(), &expected);
        }
    }

    fn check_last_uses(&self) {
        let mut expected: BTreeMap<String, Timestamp> = BTreeMap::new();
        for (fields, id) in self.all().filter_map(|fields| Some((fields, fields.key_id?))) {
            let at = fields.at().unwrap();
            expected.entry(id.raw().to_owned()).and_modify(|last| *last = at.max(*last)).or_insert(at);
        }
        let uses = self.reader().last_uses().unwrap();
        assert_eq!(uses.iter().map(|(id, last)| (id.clone(), last.at)).collect::<BTreeMap<_, _>>(), expected);
    }

    /// The lists hold exactly the records of a key that are still there, and the ranges all of a time.
    fn check_postings(&self, since: i64, until: i64) {
        let (since, until) =
            (Timestamp::from_micros(START + since * HOUR), Timestamp::from_micros(START + until * HOUR));
        for slot in 0..2 {
            let (lines, oldest) = (&self.written[slot], self.segments[slot][0]);
            for span in self.reader().spans(&slot.to_string()).unwrap() {
                let seqs = |wants: &dyn Fn(&Fields<'_>) -> bool| -> BTreeSet<u64> {
                    let numbered = (1..=span.last).zip(lines).filter(|(seq, _)| *seq >= oldest.max(span.first));
                    numbered.filter(|(_, line)| wants(&Fields::read(line).unwrap())).map(|(seq, _)| seq).collect()
                };
                for key in (0..4).map(key_id) {
                    let expected = seqs(&|fields| fields.key_id.is_some_and(|id| id.is(&key)));
                    let (mut found, mut upto) = (BTreeSet::new(), u64::MAX);
                    while let Some(list) = self.reader().postings(&key, span, upto).unwrap() {
                        upto = list[0] - 1;
                        found.extend(list.into_iter().filter(|seq| *seq >= oldest));
                    }
                    assert_eq!(found, expected, "{key}");
                }
                let ranges = self.reader().ranges(span, Some(since), Some(until)).unwrap();
                let expected = seqs(&|fields| (since..=until).contains(&fields.at().unwrap()));
                assert!(expected.iter().all(|seq| ranges.iter().any(|range| range.contains(seq))));
                assert!(ranges.is_sorted_by(|newer, older| older.end() < newer.start()));
            }
        }
    }
}

fn journal(slot: usize) -> String {
    format!("edge-1/{slot}")
}

fn key_id(number: u8) -> String {
    format!("key_{number}")
}

/// All but which of two uses in the same microsecond is the later one, which two journals leave open.
fn assert_same(usage: &Usage, expected: &Usage) {
    let all = |usage: &Usage| {
        let days = usage.days().map(|(day, one)| (day, one.first, one.last.at, one.statuses, one.refusals.clone()));
        (days.collect::<Vec<_>>(), usage.addresses(), usage.routes(), usage.first(), usage.total())
    };
    assert_eq!(all(usage), all(expected));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn it_tells_what_a_fold_over_all_records_tells(
        steps in vec(step(), 1..150),
        since in 0..80_i64,
        length in 0..80_i64,
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.take(step));
        world.check_usage(since, since + length);
        world.check_last_uses();
        world.check_postings(since, since + length);
    }
}

/// All that is in an index's file.
fn content(dir: &Path) -> Vec<String> {
    let connection = rusqlite::Connection::open(dir.join(FILE)).unwrap();
    let rows = ["journals", "stretches", "keys", "postings", "days"].map(|table| {
        let mut select = connection.prepare(&format!("SELECT * FROM {table} ORDER BY 1, 2")).unwrap();
        let columns = select.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|at| row.get::<_, rusqlite::types::Value>(at)).collect();
        let rows = select.query_map([], row).unwrap().map(|row: rusqlite::Result<Vec<_>>| row.unwrap());
        rows.map(|row| format!("{table} {row:?}")).collect::<Vec<_>>()
    });
    rows.concat()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn it_takes_groups_as_it_takes_their_lines((lines, groups) in both_forms(), known in 0_usize..30) {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [mut by_lines, mut by_groups] = dirs.each_ref().map(|dir| Index::open(dir.path()).unwrap());
        let entries = (1..).zip(&lines).map(|(seq, text)| Entry { journal: "edge-1/0", seq, text });
        by_lines.deliver(entries.clone()).unwrap();
        by_groups.deliver(entries.take(known)).unwrap();
        // Some twice.
        for group in groups.iter().chain(groups.last()) {
            by_groups.deliver_group(group).unwrap();
        }
        [by_lines, by_groups].iter_mut().for_each(|index| index.flush().unwrap());
        prop_assert_eq!(content(dirs[1].path()), content(dirs[0].path()));
    }
}

/// An index of one record, closed.
fn written() -> World {
    let mut world = World::new();
    let record = Record { slot: 0, hour: 0, key: Some(1), host: 1, route: None, status: None, reason: None };
    (0..3).for_each(|_| world.write(&record));
    world.deliver(0);
    world.index.flush().unwrap();
    world
}

fn aside(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.starts_with("index.damaged")).collect();
    names.sort();
    names
}

fn run(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[test]
fn a_file_that_is_not_a_usable_index_is_moved_aside_and_made_again() {
    let spoil: [fn(&Path); 4] = [
        |path| fs::write(path, [7; 5000]).unwrap(),
        |path| run(path, "PRAGMA user_version = 2"),
        |path| run(path, "PRAGMA application_id = 5"),
        |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[4096..].fill(0xff);
            fs::write(path, bytes).unwrap();
        },
    ];
    for (index, spoil) in spoil.iter().enumerate() {
        let world = written();
        let World { dir, index: open, .. } = world;
        // Its log goes into the file, so that the file is what is spoilt.
        drop(open);
        let path = dir.path().join(FILE);
        spoil(&path);
        let spoilt = fs::read(&path).unwrap();
        let again = Index::open(dir.path()).unwrap();
        assert!(again.positions().is_empty(), "case {index}");
        assert_eq!(fs::read(dir.path().join("index.damaged")).unwrap(), spoilt, "case {index}");
        drop(again);
        // What was moved aside once is never overwritten.
        fs::write(&path, [8; 5000]).unwrap();
        Index::open(dir.path()).unwrap();
        assert_eq!(aside(dir.path()), ["index.damaged", "index.damaged.1"], "case {index}");
    }
}

#[test]
fn a_reader_refuses_what_is_no_index_and_leaves_it_alone() {
    let dir = tempfile::tempdir().unwrap();
    assert!(IndexReader::open(dir.path()).unwrap().is_none());
    fs::write(dir.path().join(FILE), [7; 5000]).unwrap();
    assert!(matches!(IndexReader::open(dir.path()), Err(IndexError::Unusable { .. })));
    assert_eq!(fs::read(dir.path().join(FILE)).unwrap(), [7; 5000]);
}

#[test]
fn damage_that_shows_while_it_is_open_is_told_and_taking_begins_again() {
    let mut world = written();
    let connection = rusqlite::Connection::open(world.dir.path().join(FILE)).unwrap();
    connection.execute_batch("UPDATE days SET usage = x'ff'").unwrap();
    drop(connection);
    world.deliver(3);
    let record = Record { slot: 0, hour: 1, key: Some(1), host: 1, route: None, status: None, reason: None };
    world.write(&record);
    world.deliver(0);
    assert!(matches!(world.index.flush(), Err(IndexError::Replaced { .. })));
    assert!(world.index.positions().is_empty());
    world.deliver(0);
    world.index.flush().unwrap();
    world.check_usage(0, 80);
    assert_eq!(aside(world.dir.path()), ["index.damaged"]);
}

#[test]
fn records_of_another_journal_under_the_same_numbers_begin_a_new_index() {
    let mut world = written();
    world.written[0].clear();
    let record = Record { slot: 0, hour: 2, key: Some(2), host: 1, route: None, status: None, reason: None };
    (0..5).for_each(|_| world.write(&record));
    let entries = (1..).zip(&world.written[0]).map(|(seq, text)| Entry { journal: "edge-1/0", seq, text });
    assert!(matches!(world.index.deliver(entries), Err(IndexError::Replaced { .. })));
    world.deliver(0);
    world.index.flush().unwrap();
    assert_eq!(world.index.positions().get("edge-1/0"), Some(&5));
    assert_eq!(world.reader().last_uses().unwrap().keys().collect::<Vec<_>>(), ["key_2"]);
}
