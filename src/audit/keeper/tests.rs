//! The keeper on real files and a clock that stands where it is put.

use super::*;
use crate::audit::block::STEP_BYTES;
use crate::audit::seal::Chain;
use crate::audit::segment::{Kind, file_name, write_line};
use crate::audit::verify::{Event, verify};
use crate::clock::Hand;
use proptest::prelude::*;
use std::sync::Arc;

const DAY: Duration = Duration::from_secs(24 * 3600);
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// An audit directory whose segments are written here.
struct Kept {
    dir: tempfile::TempDir,
    clock: Clock,
    hand: Arc<Hand>,
    /// What has been told to be lost.
    lost: Vec<Lost>,
    keeper: Keeper,
}

impl Kept {
    fn new(retention: Retention) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (clock, hand) = Clock::manual(Timestamp::parse("2026-11-24T12:00:00Z").unwrap());
        let settings = Settings { retention, ..Settings::of(dir.path().to_owned()) };
        let keeper = Keeper::new(&settings, clock.clone());
        Self { dir, clock, hand, lost: Vec::new(), keeper }
    }

    /// Keeps everything, of whatever age and size.
    fn forever() -> Self {
        Self::new(Retention { age: 100 * YEAR, bytes: u64::MAX })
    }

    fn slot(&self, slot: usize) -> PathBuf {
        self.dir.path().join(slot.to_string())
    }

    /// Writes a slot's segments, each with so many records that were made so long ago; every one ends with a seal.
    fn write(&self, slot: usize, segments: &[(u64, Duration)]) {
        let (mut chain, mut seq, journal) = (Chain::start(), 1, format!("gw/{slot}"));
        fs::create_dir_all(self.slot(slot)).unwrap();
        for (records, ago) in segments {
            let (mut lines, first) = (Vec::new(), seq);
            let past = self.clock.now().as_micros() - i64::try_from(ago.as_micros()).unwrap();
            let time = Timestamp::from_micros(past);
            for _ in 0..*records {
                let start = lines.len();
                let body = format!("\"ts\":\"{time}\",\"requests_refused\":1,");
                write_line(&mut lines, Kind::Gap, &journal, seq, "cfg", body.as_bytes());
                chain.add(&lines[start..]);
                seq += 1;
            }
            let (start, seal) = (lines.len(), chain.seal());
            write_line(&mut lines, Kind::Seal, &journal, seq, "cfg", &seal.body(time));
            chain = Chain::after(seal.hash, seq, &lines[start..]);
            seq += 1;
            fs::write(self.slot(slot).join(file_name(first)), lines).unwrap();
        }
    }

    /// Turns until there is nothing to be done.
    fn turn(&mut self, passed: &Passed) {
        let told = &mut self.lost;
        let mut tell = |lost: &Lost| {
            told.push(lost.clone());
            Ok(())
        };
        while self.keeper.turn(passed, &mut tell).unwrap() != Turn::Done {}
    }

    /// The clocks run for an hour, and are looked at.
    fn settle(&mut self) {
        self.hand.pass(STEADY_AFTER);
    }

    /// The first numbers of the segments that are there.
    fn segments(&self, slot: usize) -> Vec<u64> {
        segment::list(&self.slot(slot)).unwrap().into_iter().map(|(first, _)| first).collect()
    }

    fn names(&self, slot: usize) -> Vec<String> {
        let entries = fs::read_dir(self.slot(slot)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What the slot holds, if it is whole.
    #[track_caller]
    fn records(&self, slot: usize) -> Vec<u64> {
        let mut seqs = Vec::new();
        let summary = verify(&self.slot(slot), &[], None, &mut |event| {
            match event {
                Event::Record { seq, .. } => seqs.push(seq),
                Event::Fault(fault) => panic!("{fault}"),
            }
            Ok(())
        });
        assert_eq!(summary.unwrap().faults, 0);
        seqs
    }
}

/// One sink that has come so far in each slot's journal.
fn passed(positions: &[u64]) -> Passed {
    let positions = positions.iter().enumerate().map(|(slot, seq)| (format!("gw/{slot}"), *seq)).collect();
    Passed::from([("sink".to_owned(), positions)])
}

fn lost(slot: usize, first: u64, last: u64) -> Lost {
    Lost { sink: "sink".into(), journal: format!("gw/{slot}"), first, last }
}

#[test]
fn closed_segments_are_compressed_and_the_newest_of_each_journal_is_not() {
    let mut kept = Kept::forever();
    kept.write(0, &[(20, DAY), (3000, DAY), (5, DAY)]);
    kept.write(1, &[(20, DAY)]);
    kept.turn(&passed(&[0, 0]));
    let (first, second) = (format!("{:020}.ndjson.zst", 1), format!("{:020}.ndjson.zst", 22));
    assert_eq!(kept.names(0), [first, second, file_name(3023)]);
    assert_eq!(kept.names(1), [file_name(1)]);
    assert_eq!(kept.records(0), (1..=3028).collect::<Vec<_>>());
    assert_eq!(kept.lost, []);
}

#[test]
fn no_turn_compresses_more_than_a_bounded_piece() {
    let mut kept = Kept::forever();
    kept.write(0, &[(20_000, DAY), (5, DAY)]);
    let segment = kept.slot(0).join(file_name(1));
    let pieces = fs::metadata(&segment).unwrap().len() / STEP_BYTES;
    let mut turns = 0;
    while segment.exists() {
        assert_eq!(kept.keeper.turn(&Passed::new(), &mut |_| Ok(())).unwrap(), Turn::More);
        turns += 1;
    }
    assert!(pieces > 2 && (pieces..=pieces + 2).contains(&turns), "{turns} turns for {pieces} pieces");
}

#[test]
fn a_damaged_segment_stays_as_it_is_and_is_deleted_in_its_turn() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, YEAR), (20, YEAR), (5, DAY)]);
    let path = kept.slot(0).join(file_name(22));
    let damaged = fs::read(&path).unwrap().split_off(3);
    fs::write(&path, &damaged).unwrap();
    kept.turn(&Passed::new());
    assert_eq!(fs::read(&path).unwrap(), damaged);
    kept.settle();
    kept.turn(&Passed::new());
    assert_eq!(kept.segments(0), [42, 43]);
}

#[test]
fn j7_nothing_goes_for_its_age_before_the_clocks_have_run_together_for_an_hour() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, 40 * DAY), (20, 20 * DAY), (5, DAY)]);
    kept.turn(&Passed::new());
    assert_eq!(kept.segments(0).len(), 3);
    // Somebody sets the clock to a time at which everything is old.
    kept.hand.pass(STEADY_AFTER / 2);
    kept.hand.set_wall(kept.clock.now().plus(YEAR));
    for _ in 0..59 {
        kept.turn(&Passed::new());
        kept.hand.pass(STEADY_AFTER / 60);
    }
    assert_eq!(kept.segments(0).len(), 3);
    // And back: from then on, an hour.
    kept.hand.set_wall(Timestamp::from_micros(kept.clock.now().as_micros() - i64::try_from(YEAR.as_micros()).unwrap()));
    kept.turn(&Passed::new());
    kept.settle();
    kept.turn(&Passed::new());
    assert_eq!(kept.segments(0), [21, 22, 43]);
    assert_eq!(kept.records(0), (21..=48).collect::<Vec<_>>());
}

#[test]
fn j7_what_is_old_waits_for_every_durable_sink() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, YEAR), (20, YEAR), (20, YEAR), (5, DAY)]);
    kept.settle();
    for (position, left) in [(0, 4), (19, 4), (20, 4), (61, 3), (62, 2), (100, 2)] {
        let mut both = passed(&[position]);
        both.insert("ahead".into(), [("gw/0".to_owned(), 100)].into());
        kept.turn(&both);
        assert_eq!(kept.segments(0).len(), left, "{position}");
    }
    assert_eq!(kept.lost, []);
}

#[test]
fn j7_l3_beyond_its_size_the_oldest_goes_and_each_sink_is_told_exactly_what_it_lost() {
    let mut kept = Kept::new(Retention { age: 100 * YEAR, bytes: 1 });
    kept.write(0, &[(20, 9 * DAY), (20, 3 * DAY), (5, DAY)]);
    kept.write(1, &[(20, 6 * DAY), (20, 5 * DAY), (5, DAY)]);
    let refuse = kept.keeper.turn(&passed(&[10, 30]), &mut |_| Err(io::Error::other("no room for it")));
    // It compresses first, and then cannot tell.
    assert_eq!(refuse.unwrap(), Turn::Pressing);
    let mut refuse = || kept.keeper.turn(&passed(&[10, 30]), &mut |_| Err(io::Error::other("no room for it")));
    assert!((0..100).any(|_| refuse().is_err()), "nobody is told");
    assert_eq!((kept.segments(0).len(), kept.segments(1).len()), (3, 3));
    kept.turn(&passed(&[10, 30]));
    assert_eq!(kept.lost, [lost(0, 11, 20), lost(1, 31, 41), lost(0, 21, 41)]);
    assert_eq!((kept.segments(0), kept.segments(1)), (vec![42, 43], vec![42, 43]));
}

#[test]
fn what_is_left_is_proven_from_its_first_record_on() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, YEAR), (20, YEAR), (5, DAY)]);
    kept.settle();
    kept.turn(&Passed::new());
    assert_eq!(kept.segments(0), [42, 43]);
    let summary = verify(&kept.slot(0), &[], None, &mut |_| Ok(())).unwrap();
    assert_eq!((summary.first, summary.unchecked, summary.faults), (Some(42), None, 0));
    // Altered, with a checksum that is right.
    let last = kept.slot(0).join(file_name(43));
    let text = fs::read_to_string(&last).unwrap();
    let body = text
        .lines()
        .next()
        .unwrap()
        .split(",\"crc\"")
        .next()
        .unwrap()
        .replace("requests_refused\":1", "requests_refused\":2");
    let forged = format!("{body},\"crc\":\"{:08x}\"}}\n", crc32fast::hash(body.as_bytes()));
    fs::write(&last, text.replacen(text.split_inclusive('\n').next().unwrap(), &forged, 1)).unwrap();
    assert_eq!(verify(&kept.slot(0), &[], None, &mut |_| Ok(())).unwrap().faults, 1);
}

#[test]
fn a_segment_that_does_not_end_with_a_seal_leaves_nothing() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, YEAR), (20, DAY), (5, DAY)]);
    let path = kept.slot(0).join(file_name(1));
    let lines = fs::read_to_string(&path).unwrap();
    let (unsealed, seal) = lines.trim_end().rsplit_once('\n').unwrap();
    fs::write(&path, format!("{unsealed}\n")).unwrap();
    let next = kept.slot(0).join(file_name(22));
    fs::write(kept.slot(0).join(file_name(21)), format!("{seal}\n{}", fs::read_to_string(&next).unwrap())).unwrap();
    fs::remove_file(next).unwrap();
    kept.settle();
    kept.turn(&Passed::new());
    assert_eq!(kept.segments(0), [21, 43]);
}

#[test]
fn of_a_slot_that_nobody_holds_only_the_number_stays_when_its_time_is_over() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, YEAR), (20, YEAR)]);
    kept.write(1, &[(20, YEAR), (20, YEAR)]);
    kept.write(2, &[(20, YEAR), (20, DAY)]);
    let _held = reader::hold(&kept.slot(1)).unwrap().unwrap();
    kept.settle();
    kept.turn(&passed(&[40, 41, 41]));
    assert_eq!((kept.segments(0), kept.segments(1), kept.segments(2)), (vec![21, 22], vec![21, 22], vec![21, 22]));
    kept.turn(&passed(&[41, 41, 41]));
    assert_eq!((kept.segments(0), kept.segments(1), kept.segments(2)), (vec![42], vec![21, 22], vec![21, 22]));
    assert_eq!(kept.records(0), [42]);
    assert_eq!(segment::recover(&kept.slot(0)).unwrap().last_seq, 42);
    assert_eq!(Chain::recover(&kept.slot(0), 42).unwrap().seal().first, 42);
}

#[test]
fn what_was_moved_aside_goes_with_its_segment() {
    let mut kept = Kept::new(Retention { age: 30 * DAY, bytes: u64::MAX });
    kept.write(0, &[(20, YEAR), (20, DAY), (5, DAY)]);
    for (number, end) in [(1, "torn"), (1, "void"), (1, "ndjson.zst.part"), (22, "torn"), (43, "void")] {
        fs::write(kept.slot(0).join(format!("{number:020}.{end}")), "x").unwrap();
    }
    fs::write(kept.slot(0).join("lock"), "").unwrap();
    kept.settle();
    kept.turn(&Passed::new());
    let names = kept.names(0);
    assert!(names.iter().all(|name| !name.starts_with(&format!("{:020}", 1))), "{names:?}");
    assert_eq!(names.len(), 6, "{names:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn j7_l3_whatever_goes_was_old_and_passed_or_too_much_and_is_told(
        slots in prop::collection::vec(prop::collection::vec((1_u64..400, 0_u32..100), 1..6), 1..3),
        positions in prop::array::uniform2(0_u64..800),
        bytes in 1_u64..60_000,
    ) {
        let mut kept = Kept::new(Retention { age: 30 * DAY, bytes });
        for (slot, segments) in slots.iter().enumerate() {
            let mut segments: Vec<_> = segments.iter().map(|(records, days)| (*records, DAY * *days)).collect();
            segments.sort_by_key(|(_, ago)| std::cmp::Reverse(*ago));
            kept.write(slot, &segments);
        }
        let before: Vec<_> = (0..slots.len()).map(|slot| kept.segments(slot)).collect();
        let _held: Vec<_> = (0..slots.len()).map(|slot| reader::hold(&kept.slot(slot)).unwrap().unwrap()).collect();
        kept.settle();
        kept.turn(&passed(&positions));
        let total = total_bytes(kept.dir.path()).unwrap();
        let mut told: Vec<(usize, u64)> = Vec::new();
        for lost in &kept.lost {
            let slot: usize = lost.journal.strip_prefix("gw/").unwrap().parse().unwrap();
            told.extend((lost.first..=lost.last).map(|seq| (slot, seq)));
        }
        told.sort_unstable();
        let mut gone = Vec::new();
        for (slot, before) in before.iter().enumerate() {
            let after = kept.segments(slot);
            let whole: Vec<u64> = after.iter().copied().filter(|first| before.contains(first)).collect();
            prop_assert_eq!(&before[before.len() - whole.len()..], &whole[..], "the oldest first");
            prop_assert!(!whole.is_empty() && after.len() - whole.len() <= 1);
            prop_assert!(total <= bytes || whole.len() == 1);
            gone.extend((positions[slot] + 1..after[0]).map(|seq| (slot, seq)));
            kept.records(slot);
        }
        prop_assert_eq!(told, gone);
    }
}
