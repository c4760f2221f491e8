//! What lies in a ring, and in its file.

use super::*;
use std::collections::VecDeque;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::AtomicBool;

const SLOTS: usize = 4;

/// The record at a position, and the position after it.
fn read(ring: &Ring, at: u64) -> (Vec<u8>, u64) {
    let mut record = Vec::new();
    let next = ring.record(at, &mut record).unwrap().unwrap();
    (record, next)
}

fn fill(ring: &Ring, random: &mut fastrand::Rng, placed: &mut VecDeque<Vec<u8>>) {
    loop {
        let record = (0..random.usize(1..=RECORD_BYTES_MAX)).map(|_| random.u8(..)).collect::<Vec<_>>();
        if !ring.place(&record, 0) {
            return;
        }
        placed.push_back(record);
        assert!(ring.used() <= RING_BYTES, "what is not freed was overwritten");
    }
}

#[test]
fn j2_records_come_back_whole_and_in_order_around_the_rings_end_and_none_is_overwritten() {
    let (ring, mut random) = (Ring::create(None, SLOTS, "cfg").unwrap(), fastrand::Rng::with_seed(1));
    let mut placed = VecDeque::new();
    for _ in 0..3 {
        fill(&ring, &mut random, &mut placed);
        let from = ring.freed();
        let mut end = from;
        for _ in 0..placed.len() / 2 {
            let (record, next) = read(&ring, end);
            assert!(Some(record) == placed.pop_front(), "the record at {end}");
            end = next;
        }
        ring.begin_run(Run { from, seq: 1, end });
        ring.free_run();
    }
    assert!(ring.produced() > RING_BYTES, "it never came to its end");
    let mut at = ring.freed();
    for record in placed {
        let (found, next) = read(&ring, at);
        assert!(found == record, "the record at {at}");
        at = next;
    }
    assert_eq!(ring.record(at, &mut Vec::new()).unwrap(), None);
}

#[test]
fn j2_a_record_counts_only_under_its_length_and_checksum() {
    let ring = Ring::create(None, SLOTS, "cfg").unwrap();
    let records = [&[b'a'; 20][..], &[b'b'; 100], &[b'c'; 20]];
    records.iter().for_each(|record| assert!(ring.place(record, 0)));
    let (start, end) = (read(&ring, 0).1, read(&ring, read(&ring, 0).1).1);
    let found = |at| ring.record(at, &mut Vec::new());
    for (at, bit) in (place_of(start)..place_of(end)).flat_map(|at| (0..64).map(move |bit| (at, bit))) {
        // What stands behind the record's last byte, to the word's end, is not of it.
        let is_of_it = at < place_of(end) - 1 || bit < 32;
        ring.ring()[at].fetch_xor(1 << bit, Ordering::Relaxed);
        assert_eq!(found(start).is_err(), is_of_it, "bit {bit} of word {at}");
        assert_eq!((found(0).unwrap(), found(end).is_ok()), (Some(start), true));
        ring.ring()[at].fetch_xor(1 << bit, Ordering::Relaxed);
    }
    assert_eq!(found(start).unwrap(), Some(end));
    ring.ring()[place_of(start)].store(0, Ordering::Relaxed);
    assert!(found(start).is_err(), "zeros are no record");
}

#[test]
fn j2_a_rings_file_has_its_space_from_the_beginning_keeps_its_size_and_shows_what_was_placed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ring");
    let ring = Ring::create(Some(&path), SLOTS, "cfg").unwrap();
    let length = ((HEADER_WORDS + RING_WORDS + SLOTS * SLOT_WORDS) * WORD) as u64;
    let shape = || fs::metadata(&path).map(|file| (file.ino(), file.len(), file.blocks())).unwrap();
    let made = shape();
    assert!(made.1 == length && made.2 * 512 >= length, "{made:?} of {length} bytes");
    let mut placed = VecDeque::new();
    fill(&ring, &mut fastrand::Rng::with_seed(1), &mut placed);
    ring.open(1, b"\"request_id\":\"1\",");
    assert_eq!(shape(), made);
    // As a kill leaves it: the file alone, while nothing was synced and nobody ended in good order.
    let left = Ring::left_behind(&path).unwrap().unwrap();
    let mut at = 0;
    for record in placed {
        let (found, next) = read(&left, at);
        assert!(found == record, "the record at {at}");
        at = next;
    }
    assert_eq!(left.left_in_slots(), [b"\"request_id\":\"1\",".to_vec()]);
}

/// What somebody sees who looks at any moment is what a kill at that moment leaves.
#[test]
fn j3_no_moment_shows_a_record_in_the_ring_and_its_request_under_way() {
    const RECORDS: u64 = 300_000;
    const RECORD_BYTES: u64 = 2 * WORD as u64;
    let (ring, is_done) = (Ring::create(None, SLOTS, "cfg").unwrap(), AtomicBool::new(false));
    let serve = || {
        for number in 0..RECORDS {
            ring.open(1, &number.to_le_bytes());
            assert!(ring.place(&number.to_le_bytes(), 1));
            ring.begin_run(Run { from: ring.freed(), seq: 1, end: ring.produced() });
            ring.free_run();
        }
        is_done.store(true, Ordering::Release);
    };
    let mut seen = 0;
    std::thread::scope(|scope| {
        scope.spawn(serve);
        while !is_done.load(Ordering::Acquire) {
            let placed = ring.produced() / RECORD_BYTES;
            for left in ring.left_in_slots() {
                let number = u64::from_le_bytes(left.try_into().unwrap());
                assert!(number >= placed, "{number} is told to have died, though {placed} have their records");
                seen += 1;
            }
        }
    });
    assert!(seen > 0, "nobody was seen under way");
}

#[test]
fn j7_a_ring_of_another_start_of_the_machine_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ring");
    let ring = Ring::create(Some(&path), SLOTS, "cfg").unwrap();
    assert!(ring.place(b"\"request_id\":\"1\",", 0));
    assert!(Ring::left_behind(&path).unwrap().is_some());
    ring.store(AT_BOOT, ring.load(AT_BOOT) ^ 1);
    assert!(Ring::left_behind(&path).unwrap().is_none());
}
