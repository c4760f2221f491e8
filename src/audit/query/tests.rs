//! Whatever helps to find records, the answer is that of a filter over all of them.

use super::{Cursor, Filter, JournalSource, Kinds, Source, StatusFilter};
use crate::audit::block::{Compressing, Step};
use crate::audit::fields::Fields;
use crate::audit::index::{Entry, Index, IndexReader};
use crate::audit::segment::{Kind, compressed, file_name, write_line};
use crate::clock::Timestamp;
use crate::net::{Networks, parse_network};
use fastrand::Rng;
use proptest::prelude::*;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

const MINUTE: i64 = 60 * 1_000_000;
const START: i64 = 1_764_000_000_000_000;
const SLOTS: usize = 2;

/// Journals on disk, and all their lines.
struct World {
    dir: tempfile::TempDir,
    rng: Rng,
    lines: [Vec<String>; SLOTS],
    segments: [Vec<u64>; SLOTS],
    minute: i64,
}

// === impl World ===

impl World {
    /// Two journals of a few segments, some of them compressed, indexed up to somewhere.
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        (0..SLOTS).for_each(|slot| fs::create_dir(dir.path().join(slot.to_string())).unwrap());
        let rng = Rng::with_seed(seed);
        let mut world = Self { dir, rng, lines: Default::default(), segments: Default::default(), minute: 0 };
        for slot in 0..SLOTS {
            for _ in 0..world.rng.usize(0..4) {
                world.rotate(slot);
                let count = world.rng.usize(1..400);
                world.write(slot, count);
            }
        }
        world.index();
        for slot in 0..SLOTS {
            let closed = world.segments[slot].len().saturating_sub(1);
            let chosen: Vec<u64> =
                world.segments[slot][..closed].iter().copied().filter(|_| world.rng.bool()).collect();
            chosen.into_iter().for_each(|first| world.compress(slot, first));
        }
        world
    }

    fn path(&self, slot: usize, first: u64) -> PathBuf {
        self.dir.path().join(slot.to_string()).join(file_name(first))
    }

    fn rotate(&mut self, slot: usize) {
        let next = self.lines[slot].len() as u64 + 1;
        self.segments[slot].push(next);
        fs::write(self.path(slot, next), "").unwrap();
    }

    fn write(&mut self, slot: usize, count: usize) {
        let Some(first) = self.segments[slot].last().copied() else { return };
        let mut file = fs::File::options().append(true).open(self.path(slot, first)).unwrap();
        for _ in 0..count {
            let line = self.line(slot);
            writeln!(file, "{line}").unwrap();
            self.lines[slot].push(line);
        }
    }

    fn line(&mut self, slot: usize) -> String {
        self.minute += 1;
        let rng = &mut self.rng;
        // Time mostly goes on, and sometimes back.
        let minute = self.minute - if rng.u8(..) < 40 { rng.i64(0..300) } else { 0 };
        let key = ["null", "\"key_A\"", "\"key_B\"", "\"key_C\""][rng.usize(0..4)];
        let decision = ["allow", "deny"][rng.usize(0..2)];
        let body = format!(
            r#""ts":"{}","request_id":"req_{}","client_ip":"192.0.2.{}","method":"{}","path":"/v1/{}/{}","route":"/v1/{}/**","key_id":{key},"entity_id":"{}","mode":"{}","decision":"{decision}","reason":{},"status":{},"duration_us":{},"#,
            Timestamp::from_micros(START + minute * MINUTE),
            rng.u16(..),
            rng.u8(0..20),
            ["GET", "POST"][rng.usize(0..2)],
            ["orders", "a\\\"b"][rng.usize(0..2)],
            "x".repeat(if rng.u8(..) == 0 { 20_000 } else { rng.usize(0..300) }),
            ["orders", "a\\\"b"][rng.usize(0..2)],
            ["e1", "e2", "e3"][rng.usize(0..3)],
            ["test", "live"][rng.usize(0..2)],
            ["null", "\"client_aborted\"", "\"key_revoked\""][rng.usize(0..3)],
            ["null", "200", "404", "503"][rng.usize(0..4)],
            rng.u32(0..2000),
        );
        let kind = match rng.u8(..) {
            0..20 => Kind::Change,
            20..60 => Kind::Seal,
            _ => Kind::Request,
        };
        let mut line = Vec::new();
        let seq = self.lines[slot].len() as u64 + 1;
        write_line(&mut line, kind, &format!("edge-1/{slot}"), seq, "cfg", body.as_bytes());
        line.pop();
        String::from_utf8(line).unwrap()
    }

    /// Indexes a part of each journal, in a few transactions; some not from the beginning.
    fn index(&mut self) {
        let mut index = Index::open(self.dir.path()).unwrap();
        for slot in 0..SLOTS {
            let mut at = if self.rng.bool() { 0 } else { self.rng.usize(0..=self.lines[slot].len()) };
            for _ in 0..self.rng.usize(0..4) {
                let end = self.rng.usize(at..=self.lines[slot].len());
                let journal = format!("edge-1/{slot}");
                let entries = (at as u64 + 1..).zip(&self.lines[slot][at..end]);
                index.deliver(entries.map(|(seq, text)| Entry { journal: &journal, seq, text })).unwrap();
                index.flush().unwrap();
                at = end;
            }
        }
    }

    fn compress(&self, slot: usize, first: u64) {
        let mut compressing = Compressing::begin(&self.path(slot, first)).unwrap();
        while compressing.step().unwrap() == Step::More {}
    }

    fn filter(&mut self) -> Filter {
        let rng = &mut self.rng;
        let mut maybe = |text: &[&str]| (rng.u8(0..4) == 0).then(|| text[rng.usize(0..text.len())].to_owned());
        let mut filter = Filter {
            key_id: maybe(&["key_A", "key_B", "key_D"]).or_else(|| maybe(&["key_A"])),
            entity_ids: maybe(&["e1", "e2"]).map(|id| vec![id, "e9".to_owned()]),
            mode: maybe(&["test", "live"]),
            decision: maybe(&["allow", "deny"]),
            reason: maybe(&["client_aborted"]),
            method: maybe(&["GET"]),
            path_prefix: maybe(&["/v1/o", "/v1/a\"b/"]),
            route: maybe(&["/v1/orders/**", "/v1/a\"b/**"]),
            status: maybe(&["404", "5xx"]).map(|text| StatusFilter::parse(&text).unwrap()),
            client_ip: maybe(&["192.0.2.8/29"]).map(|text| Networks::new(vec![parse_network(&text).unwrap()])),
            ..Filter::default()
        };
        let time = |rng: &mut Rng| Some(Timestamp::from_micros(START + rng.i64(0..self.minute + 2) * MINUTE));
        filter.kinds = match rng.u8(0..3) {
            0 => Kinds::All,
            1 => Kinds::Events,
            _ => Kinds::Of(vec!["change".to_owned(), "seal".to_owned()]),
        };
        filter.slower_than = (rng.u8(0..4) == 0).then(|| Duration::from_millis(1));
        filter.since = if rng.bool() { time(rng) } else { None };
        filter.until = if rng.bool() { time(rng) } else { None };
        filter
    }

    /// Newest first, by filtering everything.
    fn expected(&self, filter: &Filter) -> Vec<String> {
        let wanted = |line: &&String| filter.wants(&Fields::read(line).unwrap());
        let mut slots: Vec<Vec<&String>> =
            self.lines.iter().map(|lines| lines.iter().filter(wanted).collect()).collect();
        let mut merged = Vec::new();
        while let Some(slot) = slots
            .iter_mut()
            .filter(|slot| !slot.is_empty())
            .max_by_key(|slot| Fields::read(slot.last().unwrap()).unwrap().ts.map(|ts| ts.raw().to_owned()))
        {
            merged.push(slot.pop().unwrap().clone());
        }
        merged
    }

    /// All pages, while records are written between them.
    fn pages(&mut self, source: &mut JournalSource, filter: &Filter) -> Vec<String> {
        let (mut lines, mut after) = (Vec::new(), None::<Cursor>);
        loop {
            let limit = self.rng.usize(1..60);
            let page = source.page(filter, after.as_ref(), limit).unwrap();
            assert_eq!(page.warnings, Vec::<String>::new());
            assert!(page.lines.len() == limit || page.next.is_none());
            lines.extend(page.lines);
            after = page.next;
            if after.is_none() {
                return lines;
            }
            let slot = self.rng.usize(0..SLOTS);
            let count = self.rng.usize(0..3);
            self.write(slot, count);
        }
    }

    fn reader(&self) -> Option<IndexReader> {
        IndexReader::open(self.dir.path()).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn with_the_index_and_without_the_answer_is_that_of_a_filter_over_everything(seed: u64) {
        let mut world = World::new(seed);
        for with_index in [true, false, true] {
            let filter = world.filter();
            let expected = world.expected(&filter);
            let index = world.reader().filter(|_| with_index);
            let mut source = JournalSource::new(world.dir.path(), index);
            let found = world.pages(&mut source, &filter);
            prop_assert_eq!(&found, &expected, "{:?}", filter);
        }
    }
}

#[test]
fn records_that_are_not_shown_take_no_room_on_a_page() {
    let mut world = one_segment(0);
    let mut add = |kind, count: usize| {
        for _ in 0..count {
            let mut line = Vec::new();
            let body = br#""ts":"2026-11-24T10:42:10.000000Z","#;
            write_line(&mut line, kind, "edge-1/0", world.lines[0].len() as u64 + 1, "cfg", body);
            fs::File::options().append(true).open(world.path(0, 1)).unwrap().write_all(&line).unwrap();
            world.lines[0].push(String::from_utf8(line).unwrap().trim_end().to_owned());
        }
    };
    // The last page is followed by seals alone, which are no reason to say that there is more.
    for (kind, count) in
        [(Kind::Seal, 3), (Kind::Start, 1), (Kind::Seal, 20), (Kind::Gap, 2), (Kind::Seal, 5), (Kind::Gap, 3)]
    {
        add(kind, count);
    }
    let page = |kinds, after: Option<&Cursor>| {
        let filter = Filter { kinds, ..Filter::default() };
        let page = JournalSource::new(world.dir.path(), None).page(&filter, after, 2).unwrap();
        let seqs = page.lines.iter().map(|line| Fields::read(line).unwrap().seq.unwrap());
        (seqs.collect::<Vec<_>>(), page.next)
    };
    let (first, cursor) = page(Kinds::Events, None);
    let (second, cursor) = page(Kinds::Events, Some(&cursor.unwrap()));
    let (third, end) = page(Kinds::Events, Some(&cursor.unwrap()));
    assert_eq!((first, second, third, end), (vec![34, 33], vec![32, 26], vec![25, 4], None));
    assert_eq!(page(Kinds::Of(vec!["seal".to_owned()]), None).0, [31, 30]);
    assert_eq!(page(Kinds::All, None).0, [34, 33]);
}

fn all(dir: &Path, index: Option<IndexReader>) -> (Vec<u64>, Vec<String>) {
    let page = JournalSource::new(dir, index).page(&Filter::default(), None, usize::MAX).unwrap();
    (page.lines.iter().map(|line| Fields::read(line).unwrap().seq.unwrap()).collect(), page.warnings)
}

/// One journal of this many records in one segment.
fn one_segment(count: usize) -> World {
    let mut world = World::new(0);
    for slot in 0..SLOTS {
        fs::remove_dir_all(world.dir.path().join(slot.to_string())).unwrap();
        world.lines[slot].clear();
        world.segments[slot].clear();
    }
    fs::create_dir(world.dir.path().join("0")).unwrap();
    world.rotate(0);
    world.write(0, count);
    world
}

#[test]
fn l8_damage_is_told_by_its_range_and_neighbours_wherever_it_is() {
    let mut rng = Rng::with_seed(7);
    for round in 0..30 {
        let world = one_segment(1000);
        let path = world.path(0, 1);
        let mut bytes = fs::read(&path).unwrap();
        let damaged = rng.usize(0..1000);
        let start: usize = world.lines[0][..damaged].iter().map(|line| line.len() + 1).sum();
        let length = world.lines[0][damaged].len() + 1;
        bytes[start + rng.usize(0..length - 1)] ^= 1;
        fs::write(&path, bytes).unwrap();

        let (seqs, warnings) = all(world.dir.path(), world.reader().filter(|_| round % 2 == 0));
        let seq = damaged as u64 + 1;
        assert_eq!(seqs, (1..=1000).rev().filter(|number| *number != seq).collect::<Vec<_>>());
        assert!(warnings[0].contains(&format!("{length} bytes from byte {start} ")), "{warnings:?}");
        let between = match seq {
            1 => ", before record 2".to_owned(),
            1000 => ", after record 999".to_owned(),
            _ => format!(", between records {} and {}", seq - 1, seq + 1),
        };
        assert!(warnings[0].ends_with(&between), "{warnings:?}");
        let missing: Vec<_> =
            warnings[1..].iter().filter(|one| one.ends_with(&format!("lacks record {seq}"))).collect();
        assert_eq!(missing.len(), usize::from(seq != 1 && seq != 1000), "{warnings:?}");
    }
}

#[test]
fn l8_a_damaged_block_takes_its_records_and_no_others() {
    let world = one_segment(1000);
    world.compress(0, 1);
    let path = compressed(&world.path(0, 1));
    let bytes = fs::read(&path).unwrap();
    for at in [0, 40, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        let (seqs, warnings) = all(world.dir.path(), None);
        assert!(seqs.len() > 500 && seqs.len() < 1000, "{at}: {}", seqs.len());
        assert!(seqs.is_sorted_by(|newer, older| newer > older));
        assert!(warnings[0].contains("is damaged") && warnings[0].contains(path.to_str().unwrap()), "{warnings:?}");
    }
}

#[test]
fn j4_what_a_newer_segment_wrote_again_is_taken_from_there() {
    let mut world = one_segment(20);
    let again = world.lines[0].split_off(15);
    world.rotate(0);
    world.write(0, 10);
    assert_ne!(world.lines[0][15..20], again);
    let (seqs, warnings) = all(world.dir.path(), None);
    assert_eq!((seqs, warnings), ((1..=25).rev().collect(), Vec::new()));
    assert_eq!(JournalSource::new(world.dir.path(), None).page(&Filter::default(), None, 10).unwrap().lines, {
        let mut newest = world.lines[0][15..].to_vec();
        newest.reverse();
        newest
    });
}

#[test]
fn an_index_of_another_journal_is_not_believed() {
    let mut world = one_segment(300);
    world.rng = Rng::with_seed(3);
    let mut index = Index::open(world.dir.path()).unwrap();
    let entries = (1..).zip(&world.lines[0]).map(|(seq, text)| Entry { journal: "edge-1/0", seq, text });
    index.deliver(entries).unwrap();
    index.flush().unwrap();
    // The slot was removed, and begun again.
    fs::remove_file(world.path(0, 1)).unwrap();
    (world.lines[0], world.segments[0]) = (Vec::new(), Vec::new());
    world.rotate(0);
    let filter = Filter { key_id: Some("key_A".to_owned()), ..Filter::default() };
    for count in [50, 500] {
        world.write(0, count);
        let page = JournalSource::new(world.dir.path(), world.reader()).page(&filter, None, 1000).unwrap();
        assert_eq!(page.lines, world.expected(&filter));
    }
}
