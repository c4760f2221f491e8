//! Deaths of a process at any moment between two of its steps, and what its successor makes of what was left: the files as
//! they are at that moment are what a kill leaves.

use super::recorder::{Recorder, Terms, Unavailable};
use super::ring::{Counter, Family, RING_BYTES, Ring};
use super::seal::Chain;
use super::segment;
use super::slot;
use super::writer::{Parts, Writer};
use super::{Durability, Overload, Pending, Rotation};
use crate::audit::events::{Anonymous, Health};
use crate::clock::{Clock, Instant, Moment, Timestamp};
use crate::reason::Reason;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

const SLOTS: usize = 4;
const WORKERS: usize = 2;
const MOMENT: Moment = Moment { wall: Timestamp::from_micros(0), mono: Instant::from_nanos(0) };

/// What may happen next.
#[derive(Clone, Copy, Debug)]
enum Step {
    Begin {
        worker: usize,
    },
    /// It goes upstream.
    Open {
        which: usize,
    },
    Commit {
        which: usize,
    },
    Count {
        worker: usize,
    },
    /// The writer does what there is to do.
    Turn,
    /// The same when it is time to tell counts, and to seal.
    Tell,
    /// The process is killed when the writer has given numbers, or has written what got them and told nobody.
    DieInTurn {
        is_written: bool,
    },
    /// The process is killed, and started again.
    Die,
    /// The same, and the successor is killed when it has read what was left, before it serves.
    DieTwice,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..WORKERS).prop_map(|worker| Step::Begin { worker }),
        3 => any::<usize>().prop_map(|which| Step::Open { which }),
        3 => any::<usize>().prop_map(|which| Step::Commit { which }),
        1 => (0..WORKERS).prop_map(|worker| Step::Count { worker }),
        2 => Just(Step::Turn),
        1 => Just(Step::Tell),
        1 => any::<bool>().prop_map(|is_written| Step::DieInTurn { is_written }),
        1 => Just(Step::Die),
        1 => Just(Step::DieTwice),
    ]
}

/// One process.
struct Process {
    writer: Writer,
    recorders: Vec<Rc<Recorder>>,
    rings: Vec<Arc<Ring>>,
    requests: Vec<(u64, Pending, bool)>,
}

/// What must be found in the end.
#[derive(Default)]
struct Expected {
    next: u64,
    /// By request: whether its record is whole, or tells of the death.
    records: BTreeMap<u64, bool>,
    counted: u64,
}

struct World {
    root: tempfile::TempDir,
    lives: usize,
    process: Option<Process>,
    expected: Expected,
}

fn parts(dir: &Path) -> Parts {
    let (slot, _) = slot::take(dir).unwrap();
    Parts {
        slot,
        gateway: "gw".to_owned(),
        config: "0123456789abcdef".to_owned(),
        clock: Clock::system(),
        changes: sync_channel(1).1,
        health: Arc::new(Health::new()),
        stop: Arc::default(),
        rotation: Rotation { bytes: 4096, age: Duration::from_secs(1000) },
        durability: Durability::Written,
    }
}

// === impl Process ===

impl Process {
    fn start(dir: &Path) -> Self {
        let parts = parts(dir);
        let health = Arc::clone(&parts.health);
        let mut writer = Writer::recover(parts, true).unwrap();
        let ring =
            |worker| Arc::new(Ring::create(Some(&writer.dir().join(slot::ring_name(worker))), SLOTS, "cfg").unwrap());
        let rings: Vec<_> = (0..WORKERS).map(ring).collect();
        let terms = Terms {
            health,
            anonymous: Arc::new(Anonymous::new(1_000_000)),
            durability: Durability::Written,
            overload: Overload::Reject,
            query_names: [].into(),
        };
        let recorder = |ring: &Arc<Ring>| Rc::new(Recorder::new(Arc::clone(ring), Arc::default(), terms.clone()));
        let recorders = rings.iter().map(recorder).collect();
        writer.attach(rings.clone(), Arc::default());
        Self { writer, recorders, rings, requests: Vec::new() }
    }
}

// === impl World ===

impl World {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let process = Some(Process::start(&root.path().join("0")));
        Self { root, lives: 0, process, expected: Expected::default() }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.lives.to_string())
    }

    fn act(&mut self, step: Step) {
        let Some(process) = &mut self.process else { return };
        match step {
            Step::Begin { worker } => {
                let id = self.expected.next;
                match process.recorders[worker].begin(MOMENT) {
                    Ok(mut pending) => {
                        let request = http::Request::builder().uri("/x").body(()).unwrap().into_parts().0;
                        pending.set_request(&request, id.to_string().parse().unwrap(), [0; 16]);
                        self.expected.next += 1;
                        process.requests.push((id, pending, false));
                    }
                    Err(_) => self.expected.counted += 1,
                }
            }
            Step::Open { which } => {
                let at = which % process.requests.len().max(1);
                if let Some((_, pending, open)) = process.requests.get_mut(at).filter(|request| !request.2) {
                    pending.allow();
                    pending.open("erp".into());
                    *open = true;
                }
            }
            Step::Commit { which } if !process.requests.is_empty() => {
                let (id, mut pending, _) = process.requests.remove(which % process.requests.len());
                pending.commit(Some(Reason::KeyUnknown), Instant::from_nanos(0));
                self.expected.records.insert(id, true);
            }
            Step::Commit { .. } => {}
            Step::Count { worker } => {
                process.rings[worker].count(Counter::Refused);
                self.expected.counted += 1;
            }
            Step::Turn => _ = process.writer.turn(),
            Step::Tell => {
                process.writer.tell_soon();
                process.writer.turn();
            }
            Step::DieInTurn { is_written } => {
                process.writer.tell_soon();
                process.writer.collect();
                if is_written { self.die_after_writing() } else { self.die() }
            }
            Step::Die => self.die(),
            Step::DieTwice => {
                self.die();
                self.die();
            }
        }
    }

    /// The process is killed when its writer has written to the journal, and not to the rings that this is done.
    fn die_after_writing(&mut self) {
        let dir = self.dir().join("0");
        let rings: Vec<_> = (0..WORKERS).map(|worker| fs::read(dir.join(slot::ring_name(worker))).unwrap()).collect();
        self.process.iter_mut().for_each(|process| process.writer.persist());
        self.die_with(|dir| {
            for (worker, ring) in rings.iter().enumerate() {
                fs::write(dir.join("0").join(slot::ring_name(worker)), ring).unwrap();
            }
        });
    }

    /// What is there now is what a kill leaves: copied, since what this process does on its way out is not of it.
    fn die(&mut self) {
        self.die_with(|_| {});
    }

    /// The same with more done to the copy.
    fn die_with(&mut self, change: impl FnOnce(&Path)) {
        let (old, new) = (self.dir(), self.root.path().join((self.lives + 1).to_string()));
        copy(&old, &new);
        change(&new);
        self.lives += 1;
        if let Some(process) = self.process.take() {
            for (id, _, open) in &process.requests {
                if *open {
                    self.expected.records.insert(*id, false);
                }
            }
        }
        self.process = Some(Process::start(&new));
    }

    /// Everything that is there in the end, once.
    fn check(mut self) {
        self.die();
        let lines = self.lines();
        let seqs: Vec<_> = lines.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "each number once");
        let requests = lines.iter().filter(|line| line["kind"] == "request");
        let mut found = BTreeMap::new();
        for record in requests {
            let id: u64 = record["request_id"].as_str().unwrap().parse().unwrap();
            let before = found.insert(id, record["reason"] != "gateway_died");
            assert_eq!(before, None, "request {id} has two records");
        }
        assert_eq!(found, self.expected.records);
        let counted: u64 = lines.iter().filter_map(|line| line["requests_refused"].as_u64()).sum();
        assert_eq!(counted, self.expected.counted);
        // The chain can be followed from the beginning.
        Chain::recover(&self.dir().join("0"), seqs.len() as u64).unwrap();
    }

    fn lines(&self) -> Vec<Value> {
        let segments = segment::list(&self.dir().join("0")).unwrap();
        let mut lines = Vec::new();
        for (index, (_, path)) in segments.iter().enumerate() {
            let next = segments.get(index + 1).map_or(u64::MAX, |(next, _)| *next);
            for line in fs::read_to_string(path).unwrap().lines() {
                assert!(segment::is_whole(line.as_bytes()));
                if segment::seq_of(line.as_bytes()).unwrap() < next {
                    lines.push(serde_json::from_str(line).unwrap());
                }
            }
        }
        lines
    }
}

fn copy(old: &Path, new: &Path) {
    for entry in fs::read_dir(old.join("0")).unwrap() {
        let entry = entry.unwrap();
        fs::create_dir_all(new.join("0")).unwrap();
        fs::copy(entry.path(), new.join("0").join(entry.file_name())).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn j3_j7_j8_every_request_has_one_record_and_every_count_is_told_once_whenever_the_process_dies(
        steps in proptest::collection::vec(step(), 0..40)
    ) {
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.act(step));
        world.check();
    }
}

#[test]
fn j3_a_record_whose_slot_was_not_freed_yet_is_not_told_to_have_died() {
    let dir = tempfile::tempdir().unwrap();
    let ring = Ring::create(Some(&dir.path().join("ring")), SLOTS, "cfg").unwrap();
    ring.open(1, br#""request_id":"1","#);
    ring.open(2, br#""request_id":"2","#);
    assert_eq!(ring.left_in_slots().len(), 2);
    // As a kill leaves them in the middle of a commit: the record placed and published, or placed alone.
    ring.stop_in_place(1, true);
    ring.stop_in_place(2, false);
    assert_eq!(ring.left_in_slots(), [br#""request_id":"2","#.to_vec()]);
}

#[test]
fn j3_a_request_that_finds_no_slot_does_not_begin_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path());
    let mut begun: Vec<_> = (0..SLOTS).map(|_| process.recorders[0].begin(MOMENT).unwrap()).collect();
    assert_eq!(process.recorders[0].begin(MOMENT).err(), Some(Unavailable::Slots));
    assert_eq!(process.rings[0].untold(Family::Gap), [("requests_refused".to_owned(), 1)]);
    assert!(process.recorders[1].begin(MOMENT).is_ok(), "another worker has slots of its own");
    begun.pop();
    assert!(process.recorders[0].begin(MOMENT).is_ok());
}

#[test]
fn j4_a_sync_covers_about_256_kib_of_a_ring_and_only_then_is_their_room_free() {
    const COVERED_MAX: u64 = 256 * 1024 + 4096;
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    while process.rings[0].used() < 4 * COVERED_MAX {
        drop(process.recorders[0].begin(MOMENT).unwrap());
    }
    let mut turns = 0;
    loop {
        let before = process.rings[0].freed();
        let more = process.writer.turn();
        let freed = process.rings[0].freed() - before;
        turns += 1;
        assert!(freed > 0 && freed <= COVERED_MAX, "turn {turns} covered {freed} bytes");
        // What is free again is in the files: its number is the last one there.
        let recovered = segment::recover(&dir.path().join("0")).unwrap().last_seq;
        assert_eq!(super::reader::synced(&dir.path().join("0")).unwrap(), Some(recovered));
        if !more {
            break;
        }
    }
    assert!(turns >= 4 && process.rings[0].used() == 0, "{turns} turns");
}

#[test]
fn j8_no_request_begins_while_a_ring_is_fuller_than_three_quarters_and_what_had_begun_still_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    let recorder = Rc::clone(&process.recorders[0]);
    let begun: Vec<_> = (1..SLOTS).map(|_| recorder.begin(MOMENT).unwrap()).collect();
    let refused = loop {
        match recorder.begin(MOMENT) {
            Ok(pending) => drop(pending),
            Err(refused) => break refused,
        }
    };
    assert_eq!((refused, recorder.begin(MOMENT).err()), (Unavailable::Journal, Some(Unavailable::Journal)));
    let (used, high) = (process.rings[0].used(), RING_BYTES / 4 * 3);
    assert!((high + 1..high + 4096).contains(&used), "{used} bytes are used");
    let before = process.rings[0].produced();
    drop(begun);
    assert!(process.rings[0].produced() > before && process.rings[0].left_in_slots().is_empty());
    assert_eq!(process.rings[0].untold(Family::Gap), [("requests_refused".to_owned(), 2)]);
    while process.writer.turn() {}
    assert!(recorder.begin(MOMENT).is_ok());
}

#[test]
fn j8_what_waits_for_room_in_a_full_ring_is_there_after_a_kill() {
    let mut world = World::new();
    (0..2).for_each(|_| world.act(Step::Begin { worker: 0 }));
    world.act(Step::Open { which: 0 });
    let process = world.process.as_ref().unwrap();
    let (ring, mut long) = (Arc::clone(&process.rings[0]), process.recorders[0].begin(MOMENT).unwrap());
    let request = http::Request::builder().uri(format!("/{}", "x".repeat(3000))).body(()).unwrap().into_parts().0;
    long.set_request(&request, "long".parse().unwrap(), [0; 16]);
    drop(long);
    let mut record = Vec::new();
    ring.record(0, &mut record).unwrap();
    while ring.place(&record, SLOTS - 1) {}
    (0..2).for_each(|_| world.act(Step::Commit { which: 0 }));
    assert_eq!(ring.left_in_slots().len(), 2, "they wait for room");
    world.die();
    let lines = world.lines();
    let of = |id: &str| lines.iter().filter(|line| line["request_id"] == id).collect::<Vec<_>>();
    for id in ["0", "1"] {
        let found: Vec<_> = of(id).iter().map(|line| &line["reason"]).collect();
        assert_eq!(found, ["key_unknown"], "request {id}");
    }
    assert!(of("long").len() as u64 > RING_BYTES / 4096, "the ring was full");
}

#[test]
fn j8_no_request_begins_while_the_journal_cannot_be_written_and_what_was_refused_is_told_once_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path());
    let recorder = Rc::clone(&process.recorders[0]);
    let (slot, away) = (dir.path().join("0"), dir.path().join("away"));
    fs::rename(&slot, &away).unwrap();
    // No directory can be made in its place.
    fs::write(&slot, "").unwrap();
    process.writer.tell_soon();
    process.writer.turn();
    assert_eq!(recorder.begin(MOMENT).err(), Some(Unavailable::Journal));
    fs::remove_file(&slot).unwrap();
    fs::rename(&away, &slot).unwrap();
    process.writer.turn();
    assert!(recorder.begin(MOMENT).is_ok());
    process.writer.tell_soon();
    process.writer.turn();
    let last = segment::list(&slot).unwrap().pop().unwrap().1;
    let told = fs::read_to_string(last).unwrap();
    assert!(told.contains(r#""requests_refused":1"#), "{told}");
}

#[test]
fn what_is_no_kind_of_ring_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ring");
    for content in [&b""[..], b"short", &[0xff; 100_000]] {
        fs::write(&path, content).unwrap();
        assert!(Ring::left_behind(&path).is_ok_and(|ring| ring.is_none()), "{} bytes", content.len());
    }
}
