//! A delivery against a destination that fails in every way, and a model that only counts.

use super::*;
use crate::audit::segment::{Kind, file_name, write_line};
use crate::clock::Clock;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const JOURNAL: &str = "gw/0";
const ROOM: Room = Room { records: 7, bytes: 2000 };
/// Records with such a number are longer than the destination takes, even alone.
const LONG_EACH: u64 = 13;
const LINE_BYTES_MAX: usize = 1000;

#[derive(Clone, Copy, Debug)]
enum Fate {
    Take,
    Refuse,
    /// Everything is taken, but the answer is lost.
    TakeInSilence,
    /// A batch of more than so many lines is too large.
    TooLarge(usize),
    /// The destination lost everything beyond so many of its records.
    Forget(usize),
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64),
    /// Retention removes the oldest segment.
    Remove,
    Turn(Fate),
    /// It is time to save the checkpoint.
    Save,
    /// The process dies; the next one has the checkpoint alone.
    Restart,
}

/// What the destination holds.
#[derive(Default)]
struct Held {
    fate: Option<Fate>,
    /// Records and gaps as `first..=last`, in the order in which they came.
    lines: Vec<(u64, u64, bool)>,
    keeps_positions: bool,
    /// It gathers, and has written up to this number.
    written: Option<u64>,
    /// Whatever it is sent is too large.
    is_stubborn: bool,
}

#[derive(Clone, Default)]
struct Destination(Arc<Mutex<Held>>);

struct World {
    dir: tempfile::TempDir,
    next: u64,
    removed: BTreeSet<u64>,
    destination: Destination,
    delivery: Delivery,
}

impl Held {
    fn end(&self) -> u64 {
        self.lines.iter().map(|(_, last, _)| *last).max().unwrap_or(0)
    }

    fn take(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        if let [line] = batch
            && line.text.len() > LINE_BYTES_MAX
        {
            return Err(SinkError::TooLarge { why: "a long line".into() });
        }
        if batch.iter().any(|line| line.text.len() > LINE_BYTES_MAX) {
            return Err(SinkError::TooLarge { why: "a long batch".into() });
        }
        for line in batch {
            let value: serde_json::Value = serde_json::from_str(&line.text).unwrap();
            let number = |name: &str| value[name].as_u64();
            let is_gap = value["kind"] == "gap";
            let first = if is_gap { number("first").unwrap() } else { line.seq };
            assert_eq!((number("seq"), &*line.journal), (Some(line.seq), JOURNAL));
            self.lines.push((first, line.seq, is_gap));
        }
        Ok(())
    }
}

impl Sink for Destination {
    fn name(&self) -> &str {
        "test"
    }

    fn position(&mut self) -> Result<Option<Positions>, SinkError> {
        let held = self.0.lock().unwrap();
        Ok(held.keeps_positions.then(|| [(JOURNAL.to_owned(), held.end())].into()))
    }

    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        let mut held = self.0.lock().unwrap();
        if held.is_stubborn {
            return Err(SinkError::TooLarge { why: "always".into() });
        }
        match held.fate.take().unwrap_or(Fate::Take) {
            Fate::Take => held.take(batch),
            Fate::Refuse => Err(SinkError::later("no")),
            Fate::TakeInSilence => held.take(batch).and_then(|()| Err(SinkError::later("silence"))),
            Fate::TooLarge(most) if batch.len() > most => Err(SinkError::TooLarge { why: "many".into() }),
            Fate::TooLarge(_) => held.take(batch),
            Fate::Forget(left) if held.keeps_positions => {
                held.lines.truncate(left);
                Err(SinkError::Behind { why: "lost".into() })
            }
            Fate::Forget(_) => held.take(batch),
        }
    }

    fn settled(&self) -> Option<Positions> {
        self.0.lock().unwrap().written.map(|written| [(JOURNAL.to_owned(), written)].into())
    }
}

impl World {
    fn new(keeps_positions: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("0")).unwrap();
        let destination = Destination::default();
        destination.0.lock().unwrap().keeps_positions = keeps_positions;
        let delivery = delivery(dir.path(), &destination);
        let mut world = Self { dir, next: 1, removed: BTreeSet::new(), destination, delivery };
        world.write(3);
        world.turn(Fate::Refuse);
        world
    }

    fn segments(&self) -> Vec<(u64, PathBuf)> {
        crate::audit::segment::list(&self.dir.path().join("0")).unwrap()
    }

    fn write(&mut self, count: u64) {
        let mut lines = Vec::new();
        let first = self.next;
        for seq in first..first + count {
            let length = if seq.is_multiple_of(LONG_EACH) { LINE_BYTES_MAX } else { 10 };
            let body = format!("\"ts\":\"2026-11-24T10:42:10.000000Z\",\"text\":\"{}\",", "x".repeat(length));
            write_line(&mut lines, Kind::Request, JOURNAL, seq, "cfg", body.as_bytes());
        }
        std::fs::write(self.dir.path().join("0").join(file_name(first)), lines).unwrap();
        self.next += count;
    }

    fn remove(&mut self) {
        let segments = self.segments();
        if let [(first, path), (next, _), ..] = &segments[..] {
            self.removed.extend(*first..*next);
            std::fs::remove_file(path).unwrap();
        }
    }

    fn turn(&mut self, fate: Fate) {
        self.destination.0.lock().unwrap().fate = Some(fate);
        if let Err(error) = self.delivery.turn() {
            self.delivery.hold(error);
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write(count) => self.write(count),
            Step::Remove => self.remove(),
            Step::Turn(fate) => self.turn(fate),
            Step::Save => self.delivery.save(true),
            Step::Restart => self.delivery = delivery(self.dir.path(), &self.destination),
        }
    }

    fn finish(&mut self) {
        self.destination.0.lock().unwrap().fate = None;
        for _ in 0..1000 {
            if self.delivery.turn() == Ok(Next::Rest) {
                return;
            }
        }
        panic!("it never comes to an end");
    }
}

fn delivery(dir: &Path, destination: &Destination) -> Delivery {
    let status = Arc::new(Status::new("test"));
    let shared = Shared::new(dir.to_owned(), "gw".to_owned(), Clock::system(), vec![Arc::clone(&status)]);
    Delivery::new(Outlet { sink: Box::new(destination.clone()), room: ROOM }, Arc::new(shared), status)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![
        4 => Just(Fate::Take),
        2 => Just(Fate::Refuse),
        2 => Just(Fate::TakeInSilence),
        1 => (1..9_usize).prop_map(Fate::TooLarge),
        1 => (0..30_usize).prop_map(Fate::Forget),
    ];
    let step = prop_oneof![
        3 => (1..20_u64).prop_map(Step::Write),
        1 => Just(Step::Remove),
        6 => fate.prop_map(Step::Turn),
        2 => Just(Step::Save),
        1 => Just(Step::Restart),
    ];
    vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever happens on the way, in the end each record was taken or stands in a gap, and only records that were removed
    /// or are too long stand in one.
    #[test]
    fn j6_l7_every_record_is_taken_or_told(steps in steps(), keeps_positions: bool) {
        let mut world = World::new(keeps_positions);
        steps.into_iter().for_each(|step| world.step(step));
        world.finish();
        let held = world.destination.0.lock().unwrap();
        let numbers = |gap: bool| {
            let ranges = held.lines.iter().filter(move |line| line.2 == gap);
            ranges.flat_map(|(first, last, _)| *first..=*last).collect::<BTreeSet<u64>>()
        };
        let (records, gaps) = (numbers(false), numbers(true));
        let all: BTreeSet<u64> = records.union(&gaps).copied().collect();
        prop_assert_eq!(all, (1..world.next).collect::<BTreeSet<u64>>());
        for seq in gaps {
            prop_assert!(world.removed.contains(&seq) || seq.is_multiple_of(LONG_EACH), "{} was there", seq);
        }
    }

    /// As long as the destination answers and the process lives, everything comes once and in order.
    #[test]
    fn l7_nothing_comes_twice_without_a_cause(writes in vec(1..20_u64, 1..10), most in 1..9_usize) {
        let mut world = World::new(false);
        for count in writes {
            world.write(count);
            world.turn(Fate::TooLarge(most));
            world.turn(Fate::Refuse);
        }
        world.finish();
        let held = world.destination.0.lock().unwrap();
        let lasts: Vec<_> = held.lines.iter().map(|line| line.1).collect();
        prop_assert_eq!(lasts, (1..world.next).collect::<Vec<_>>());
    }
}

#[test]
fn a_destination_that_takes_nothing_is_not_taken_for_one_that_takes_no_long_records() {
    let mut world = World::new(false);
    world.destination.0.lock().unwrap().is_stubborn = true;
    (0..20).for_each(|_| world.turn(Fate::Take));
    world.destination.0.lock().unwrap().is_stubborn = false;
    world.finish();
    assert_eq!(world.destination.0.lock().unwrap().lines, [(1, 1, false), (2, 2, false), (3, 3, false)]);
}

#[test]
fn garbage_in_the_place_of_the_checkpoint_lets_everything_be_sent_again() {
    let mut world = World::new(false);
    world.finish();
    world.delivery.save(true);
    let path = world.dir.path().join("checkpoints/test.json");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), r#"{"gw/0":3}"#);
    std::fs::write(&path, "\0\0\0").unwrap();
    world.step(Step::Restart);
    world.finish();
    assert_eq!(world.destination.0.lock().unwrap().lines.len(), 6);
}

#[test]
fn j6_j7_the_checkpoint_waits_for_what_a_destination_has_taken_and_not_written() {
    let mut world = World::new(true);
    let path = world.dir.path().join("checkpoints/test.json");
    for (written, saved) in [(1, r#"{"gw/0":1}"#), (3, r#"{"gw/0":3}"#)] {
        world.destination.0.lock().unwrap().written = Some(written);
        world.finish();
        world.delivery.save(true);
        // What is behind it, the journal still keeps.
        assert_eq!(std::fs::read_to_string(&path).unwrap(), saved);
    }
    assert_eq!(world.destination.0.lock().unwrap().lines.len(), 3, "all were taken before");
}
