//! The journal on real files: what was begun is recorded, in order, over restarts.

use keygate::audit::reader::{Fault, Follow, journals};
use keygate::audit::segment::{Kind, file_name, write_line};
use keygate::audit::{Journal, Recorder, Settings};
use keygate::clock::{Clock, monotonic};
use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;

fn settings(dir: &Path) -> Settings {
    Settings { anonymous_per_second: u32::MAX, ..Settings::of(dir.to_owned()) }
}

struct Record {
    seq: u64,
    text: String,
}

fn open(dir: &Path) -> (Journal, Rc<Recorder>) {
    let (journal, mut recorders) = open_for(dir, 1);
    (journal, Rc::new(recorders.remove(0)))
}

fn open_for(dir: &Path, workers: usize) -> (Journal, Vec<Recorder>) {
    let (journal, tellers) = Journal::open(&settings(dir), "gw", "cfg", Clock::system(), workers, 100).unwrap();
    (journal, tellers.into_iter().map(|tellers| tellers.recorder).collect())
}

/// All records of the first slot.
fn lines(dir: &Path) -> Vec<Record> {
    let mut lines = Vec::new();
    Follow::new(dir.join("0")).read(|line| lines.push(Record { seq: line.seq, text: line.text.to_owned() })).unwrap();
    lines
}

fn seqs(dir: &Path) -> Vec<u64> {
    lines(dir).iter().map(|line| line.seq).collect()
}

#[test]
fn j5_a_pending_that_is_dropped_leaves_its_record_and_a_stop_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for run in 1..=2 {
        let (journal, recorder) = open(dir.path());
        for _ in 0..5000 {
            drop(recorder.begin(Clock::system().moment()).unwrap());
        }
        drop(recorder);
        journal.shutdown();
        let lines = lines(dir.path());
        assert_eq!(seqs(dir.path()), (1..=lines.len() as u64).collect::<Vec<u64>>());
        let ours = lines.iter().filter(|line| line.text.contains(r#""reason":"internal_error""#));
        assert_eq!(ours.count(), run * 5000);
    }
}

/// Opens and ends `count` records whose request ids begin with `name`; gives how often it was told to come again.
fn record(recorder: Recorder, name: &str, count: usize) -> u64 {
    let recorder = Rc::new(recorder);
    let (head, ()) = http::Request::new(()).into_parts();
    let mut refused = 0;
    for index in 0..count {
        let mut pending = loop {
            match recorder.begin(Clock::system().moment()) {
                Ok(pending) => break pending,
                Err(_) => refused += 1,
            }
            std::thread::yield_now();
        };
        pending.set_request(&head, format!("{name}-{index}").parse().unwrap(), [7; 16]);
        pending.commit(None, monotonic());
    }
    refused
}

#[test]
fn j1_j5_records_of_two_threads_are_there_once_each_in_their_order_and_without_a_hole() {
    const EACH: usize = 30_000;
    let dir = tempfile::tempdir().unwrap();
    let (journal, recorders) = open_for(dir.path(), 2);
    let [left, right] = <[Recorder; 2]>::try_from(recorders).unwrap_or_else(|_| panic!("two recorders"));
    let refused = std::thread::scope(|scope| {
        let other = scope.spawn(|| record(right, "right", EACH));
        record(left, "left", EACH) + other.join().unwrap()
    });
    journal.shutdown();

    let records: Vec<Value> = lines(dir.path()).iter().map(|line| serde_json::from_str(&line.text).unwrap()).collect();
    let numbers: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=records.len() as u64).collect::<Vec<_>>());
    let ids: Vec<&str> = records.iter().filter_map(|record| record["request_id"].as_str()).collect();
    for name in ["left", "right"] {
        let of_thread: Vec<&str> = ids.iter().filter(|id| id.starts_with(name)).copied().collect();
        assert!(of_thread == (0..EACH).map(|index| format!("{name}-{index}")).collect::<Vec<_>>(), "{name}");
    }
    assert_eq!(ids.len(), 2 * EACH);
    let told: u64 = records.iter().filter_map(|record| record["requests_refused"].as_u64()).sum();
    assert_eq!(told, refused, "who was told to come again is counted exactly");
}

#[test]
fn j1_two_journals_on_one_directory_have_a_slot_each_and_both_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let opened = [open(dir.path()), open(dir.path())];
    for (journal, recorder) in opened {
        drop(recorder.begin(Clock::system().moment()).unwrap());
        drop(recorder);
        journal.shutdown();
    }
    let slots = journals(dir.path()).unwrap();
    assert_eq!(slots, [dir.path().join("0"), dir.path().join("1")]);
    for (slot, name) in slots.into_iter().zip(["gw/0", "gw/1"]) {
        let mut seqs = Vec::new();
        Follow::new(slot)
            .read(|line| {
                assert!(line.text.contains(&format!(r#""journal":"{name}""#)), "{}", line.text);
                seqs.push(line.seq);
            })
            .unwrap();
        assert_eq!(seqs, [1, 2, 3], "{name}: the start, the request, the seal");
    }
}

/// The lines of these numbers, as the writer makes them.
fn lines_of(seqs: impl IntoIterator<Item = u64>) -> Vec<u8> {
    let mut lines = Vec::new();
    seqs.into_iter().for_each(|seq| write_line(&mut lines, Kind::Gap, "gw/0", seq, "cfg", b"\"requests_refused\":1,"));
    lines
}

/// Reads what is new: the numbers, and the faults.
fn read(follow: &mut Follow) -> (Vec<u64>, Vec<Fault>) {
    let mut seqs = Vec::new();
    follow.read(|line| seqs.push(line.seq)).unwrap();
    (seqs, follow.take_faults())
}

#[test]
fn l8_numbers_that_lack_are_told_within_a_segment_and_across_two_but_not_at_the_beginning() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(file_name(5)), lines_of([5, 6, 9])).unwrap();
    std::fs::write(dir.path().join(file_name(11)), lines_of([11, 12])).unwrap();
    let mut follow = Follow::new(dir.path().to_owned());
    let missing = |first, last| Fault::Missing { journal: dir.path().to_owned(), first, last };
    assert_eq!(read(&mut follow), (vec![5, 6, 9, 11, 12], vec![missing(7, 8), missing(10, 10)]));
    std::fs::write(dir.path().join(file_name(20)), lines_of([20])).unwrap();
    assert_eq!(read(&mut follow), (vec![20], vec![missing(13, 19)]));
}

#[test]
fn j4_what_was_written_again_in_the_next_segment_does_not_lack() {
    let dir = tempfile::tempdir().unwrap();
    let older = dir.path().join(file_name(1));
    std::fs::write(&older, [&lines_of(1..=3)[..], b"{\"torn"].concat()).unwrap();
    std::fs::write(dir.path().join(file_name(3)), lines_of(3..=4)).unwrap();
    let torn = Fault::Damage {
        segment: older,
        start: lines_of(1..=3).len() as u64,
        bytes: 6,
        after: Some(2),
        before: Some(3),
    };
    assert_eq!(read(&mut Follow::new(dir.path().to_owned())), (vec![1, 2, 3, 4], vec![torn]));
}

#[test]
fn l8_a_long_stretch_without_a_newline_is_one_damage() {
    let dir = tempfile::tempdir().unwrap();
    let segment = dir.path().join(file_name(1));
    let (before, stretch) = (lines_of([1]), vec![0; 40 << 20]);
    std::fs::write(&segment, [&before[..], &stretch, b"\n", &lines_of([7])].concat()).unwrap();
    let (start, bytes) = (before.len() as u64, stretch.len() as u64 + 1);
    let damage = Fault::Damage { segment, start, bytes, after: Some(1), before: Some(7) };
    let missing = Fault::Missing { journal: dir.path().to_owned(), first: 2, last: 6 };
    assert_eq!(read(&mut Follow::new(dir.path().to_owned())), (vec![1, 7], vec![damage, missing]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Line by line, of a journal of three segments: left alone, damaged, or cut out; and read in two steps.
    #[test]
    fn l8_every_whole_record_is_read_and_every_other_number_and_byte_is_told(
        fates in proptest::collection::vec(prop_oneof![4 => Just(Fate::Whole), 1 => Just(Fate::Damaged), 1 => Just(Fate::Gone)], 1..40),
        step in 0.0..1.0_f64,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut whole, mut damaged_bytes) = (Vec::new(), 0);
        let mut follow = Follow::new(dir.path().to_owned());
        let (mut seqs, mut faults) = (Vec::new(), Vec::new());
        for (index, fates) in fates.chunks(15).enumerate() {
            let first = index as u64 * 15 + 1;
            let mut content = Vec::new();
            for (seq, fate) in (first..).zip(fates) {
                let mut line = lines_of([seq]);
                match fate {
                    Fate::Whole => whole.push(seq),
                    Fate::Damaged => { line[20] ^= 1; damaged_bytes += line.len() as u64; }
                    Fate::Gone => line.clear(),
                }
                content.extend(line);
            }
            let path = dir.path().join(file_name(first));
            for end in [(content.len() as f64 * step) as usize, content.len()] {
                std::fs::write(&path, &content[..end]).unwrap();
                let (more, found) = read(&mut follow);
                seqs.extend(more);
                faults.extend(found);
            }
        }
        prop_assert_eq!(&seqs, &whole);
        let (mut missing, mut bytes_told) = (Vec::new(), 0);
        for fault in faults {
            match fault {
                Fault::Missing { first, last, .. } => missing.extend(first..=last),
                Fault::Damage { bytes, .. } => bytes_told += bytes,
            }
        }
        prop_assert_eq!(bytes_told, damaged_bytes);
        let (first, last) = (whole.first().copied().unwrap_or(1), whole.last().copied().unwrap_or(0));
        prop_assert_eq!(missing, (first..=last).filter(|seq| !whole.contains(seq)).collect::<Vec<_>>());
    }
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Whole,
    Damaged,
    Gone,
}
