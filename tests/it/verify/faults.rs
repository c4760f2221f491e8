//! Each fault that a journal can have, one by one, and what is none.

use super::journals::{Written, checked, cut, missing, three};
use keygate::audit::reader::{Follow, LOCK_FILE, SYNCED_FILE};
use keygate::audit::seal::Seal;
use keygate::audit::segment::{self, Kind, file_name, seq_of, write_line};
use keygate::audit::verify::{self, Finding, Head};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::Path;

#[test]
fn a_whole_journal_is_found_whole_in_every_form() {
    let mut written = Written::of("edge-1/0", &[20, 30, 40]);
    for compressed in 0..3 {
        let (summary, findings) = written.verify_with(&[written.head()]);
        assert_eq!(findings, []);
        assert_eq!((summary.first, summary.last, summary.records, summary.segments), (Some(1), Some(90), 90, 3));
        assert_eq!((summary.sealed_through, summary.journal()), (Some(90), Some("edge-1/0")));
        assert_eq!(summary.notes(), Vec::<String>::new());
        written.compress(compressed);
    }
    written.finds(&[]);
}

#[test]
fn what_is_not_sealed_yet_is_told_and_no_fault() {
    let mut written = Written::of("edge-1/0", &[10]);
    let lines = [written.record(), written.record()].concat();
    fs::write(written.slot().join(file_name(11)), lines).unwrap();
    let (summary, findings) = written.verify();
    assert_eq!(findings, []);
    assert_eq!(summary.notes(), ["records 11 to 12: not sealed yet"]);
}

#[test]
fn j6_a_line_that_is_being_written_is_no_fault_while_a_process_holds_the_slot() {
    let written = Written::of("edge-1/0", &[10]);
    let lines = fs::read(written.path(0)).unwrap();
    fs::write(written.path(0), [&lines[..], b"{\"schema\":1,"].concat()).unwrap();
    let damaged = Finding::Damaged {
        segment: written.path(0).into(),
        start: lines.len() as u64,
        bytes: 12,
        records: Some((11, None)),
    };
    written.finds(&[damaged]);
    let lock = File::create(written.slot().join(LOCK_FILE)).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    written.finds(&[]);
}

#[test]
fn what_retention_removed_at_the_beginning_is_told_and_no_fault() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    fs::remove_file(written.path(0)).unwrap();
    let (summary, findings) = written.verify_with(&[written.head(), Head { seq: 7, ..written.head() }]);
    assert_eq!(findings, []);
    assert_eq!(summary.first, Some(21));
    assert!(summary.notes()[0].contains("begins with record 21"), "{:?}", summary.notes());
    assert_eq!(summary.unchecked, Some((21, 26)));
    // From the first seal on, what is there is proven.
    written.forge(1, 30, "text", "texT");
    written.finds(&[Finding::Altered { first: 27, last: 33, seal: 34 }]);
}

#[test]
fn a_segment_that_lacks_is_named_by_its_numbers() {
    let written = three();
    fs::remove_file(written.path(1)).unwrap();
    written.finds(&[missing(21, 320)]);
}

#[test]
fn an_emptied_segment_is_named_with_its_numbers() {
    for index in 0..3 {
        let written = Written::of("edge-1/0", &[20, 30, 40]);
        fs::write(written.path(index), "").unwrap();
        let empty = Finding::Empty { segment: written.path(index).into() };
        let lacks = [missing(1, 20), missing(21, 50), cut(&written, 50, 90)][index].clone();
        assert_eq!(written.verify_with(&[written.head()]).1, [empty, lacks], "{index}");
    }
}

#[test]
fn j7_a_cut_tail_is_found_by_whoever_knows_more() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    fs::remove_file(written.path(2)).unwrap();
    written.finds(&[]);
    assert_eq!(written.verify_with(&[written.head()]).1, [cut(&written, 50, 90)]);
    // The slot's own mark is such a one.
    fs::write(written.slot().join(SYNCED_FILE), 88_u64.to_le_bytes()).unwrap();
    written.finds(&[cut(&written, 50, 88)]);
    let other = Head { journal: "edge-1/7".into(), seq: 5, hash: None };
    let absent = verify::absent(&[written.head(), other], &[written.verify().0]);
    assert_eq!(absent, [Finding::Cut { journal: "edge-1/7".into(), last: None, known: 5 }]);
}

#[test]
fn a_journal_that_was_written_anew_is_found_by_a_seal_that_is_known() {
    let written = Written::of("edge-1/0", &[20]);
    let known = Written::of("edge-1/0", &[3, 4]).head();
    assert_eq!(known.seq, 7);
    assert_eq!(written.verify_with(&[known]).1, [Finding::Forked { seq: 7 }]);
    let no_seal = Head { seq: 6, ..written.head() };
    assert_eq!(written.verify_with(&[no_seal]).1, [Finding::Forked { seq: 6 }]);
}

#[test]
fn an_altered_record_with_a_right_checksum_is_named_by_the_sealed_range() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    written.forge(1, 30, "text", "texT");
    written.finds(&[Finding::Altered { first: 27, last: 33, seal: 34 }]);
    // A seal is covered by the next one.
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    written.forge(0, 14, "ts\":\"2026", "ts\":\"2025");
    written.finds(&[Finding::Altered { first: 14, last: 19, seal: 20 }]);
}

#[test]
fn a_seal_that_says_something_else_is_named_whatever_it_says() {
    for (from, to) in [("\"first\":7", "\"first\":8"), ("\"last\":13", "\"last\":12"), ("\"hash\":\"", "\"hash\":\"0")]
    {
        let written = Written::of("edge-1/0", &[20]);
        written.forge(0, 14, from, to);
        let (_, findings) = written.verify();
        assert_eq!(findings[0], Finding::Altered { first: 7, last: 13, seal: 14 }, "{to}");
    }
}

#[test]
fn a_record_that_was_taken_out_with_all_later_ones_numbered_anew_is_noticed() {
    let written = Written::of("edge-1/0", &[20]);
    let text = fs::read_to_string(written.path(0)).unwrap();
    let renumbered: String = text
        .split_inclusive('\n')
        .filter(|line| seq_of(line.as_bytes()) != Some(9))
        .map(|line| match seq_of(line.as_bytes()).unwrap() {
            seq if seq > 9 => checked(&line.replacen(&format!("\"seq\":{seq}"), &format!("\"seq\":{}", seq - 1), 1)),
            _ => line.to_owned(),
        })
        .collect();
    fs::write(written.path(0), renumbered).unwrap();
    let (_, findings) = written.verify();
    assert_eq!(findings[0], Finding::Altered { first: 7, last: 12, seal: 13 });
}

#[test]
fn a_copy_under_another_number_is_named_with_the_records_it_repeats() {
    for compressed in [false, true] {
        let mut written = Written::of("edge-1/0", &[20, 30, 40]);
        if compressed {
            written.compress(0);
        }
        for number in [10, 33, 500] {
            let copy = written.slot().join(file_name(number));
            let copy = if compressed { segment::compressed(&copy) } else { copy };
            fs::copy(written.path(0), &copy).unwrap();
            let misnamed = Finding::Misnamed { segment: copy.clone(), begins: Some(1) };
            written.finds(&[misnamed, Finding::Repeated { segment: copy.clone(), first: 1, last: 20 }]);
            fs::remove_file(copy).unwrap();
        }
    }
}

#[test]
fn numbers_at_the_end_of_what_can_be_counted_are_read_like_others() {
    let written = Written::of("edge-1/0", &[10]);
    let mut line = Vec::new();
    write_line(&mut line, Kind::Gap, "edge-1/0", u64::MAX, "cfg", b"");
    let again = [line.clone(), line].concat();
    fs::write(written.slot().join(file_name(11)), &again).unwrap();
    let (_, findings) = written.verify();
    assert_eq!(findings.iter().map(Finding::code).collect::<Vec<_>>(), ["misnamed", "missing", "repeated"]);
    let mut seqs = Vec::new();
    let mut follow = Follow::new(written.slot());
    follow.read(|line| seqs.push(line.seq)).unwrap();
    assert_eq!(seqs.last(), Some(&u64::MAX));
    assert_eq!(follow.take_faults().len(), 1);
}

#[test]
fn a_line_that_stands_twice_is_named_also_with_other_content() {
    for (from, to) in [("text", "text"), ("text", "texT")] {
        let written = Written::of("edge-1/0", &[20]);
        let text = fs::read_to_string(written.path(0)).unwrap();
        let fifth = text.split_inclusive('\n').nth(4).unwrap();
        let twice = text.replacen(fifth, &format!("{fifth}{}", checked(&fifth.replacen(from, to, 1))), 1);
        fs::write(written.path(0), twice).unwrap();
        written.finds(&[Finding::Repeated { segment: written.path(0).into(), first: 5, last: 5 }]);
    }
}

#[test]
fn exchanged_and_renamed_segments_are_named_and_their_records_found() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let (left, right, aside) = (written.path(0), written.path(1), written.slot().join("aside"));
    fs::rename(left, &aside).unwrap();
    fs::rename(right, left).unwrap();
    fs::rename(&aside, right).unwrap();
    let misnamed = |path: &Path, begins| Finding::Misnamed { segment: path.into(), begins: Some(begins) };
    written.finds(&[misnamed(right, 1), misnamed(left, 21)]);

    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let renamed = written.slot().join("kept.ndjson");
    fs::rename(written.path(1), &renamed).unwrap();
    written.finds(&[misnamed(&renamed, 21)]);
}

#[test]
fn a_segment_of_another_gateway_is_named_in_place_of_ours_and_beside_it() {
    let (written, other) = (Written::of("edge-1/0", &[20, 30, 40]), Written::of("edge-2/0", &[20, 30, 40]));
    let foreign =
        |path: &Path, first, last| Finding::Foreign { segment: path.into(), journal: "edge-2/0".into(), first, last };
    fs::copy(other.path(1), written.path(1)).unwrap();
    written.finds(&[foreign(written.path(1), 21, 50), missing(21, 50)]);

    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let beside = written.slot().join(file_name(33));
    fs::copy(other.path(1), &beside).unwrap();
    let misnamed = Finding::Misnamed { segment: beside.clone(), begins: Some(21) };
    written.finds(&[misnamed, foreign(&beside, 21, 50)]);
}

#[test]
fn a_journal_that_goes_on_under_another_gateway_id_is_whole() {
    let mut written = Written::of("edge-1/0", &[20, 30]);
    written.journal = "edge-2/0".into();
    written.segment(15);
    written.journal = "edge-3/0".into();
    written.segment(40);
    written.compress(1);
    let (summary, findings) = written.verify_with(&[Head { journal: "edge-1/0".into(), seq: 50, hash: None }]);
    assert_eq!((findings, summary.records, summary.journal()), (vec![], 105, Some("edge-3/0")));
    assert_eq!(summary.notes(), ["it was called edge-1/0, edge-2/0 before"]);
    assert_eq!(verify::absent(&[Head { journal: "edge-2/0".into(), seq: 9, hash: None }], &[summary]), []);
}

#[test]
fn a_segment_in_another_version_of_the_format_is_named() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let text = fs::read_to_string(written.path(1)).unwrap();
    let newer: String =
        text.split_inclusive('\n').map(|line| checked(&line.replacen("\"schema\":1", "\"schema\":2", 1))).collect();
    fs::write(written.path(1), newer).unwrap();
    let (_, findings) = written.verify();
    assert_eq!(findings[0], Finding::Version { segment: written.path(1).into(), schema: 2 });
}

#[test]
fn j4_what_was_written_again_in_the_next_segment_is_no_fault() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let lines = fs::read(written.path(1)).unwrap();
    let again: Vec<u8> = lines.split_inclusive(|byte| *byte == b'\n').skip(25).flatten().copied().collect();
    fs::write(written.slot().join(file_name(46)), again).unwrap();
    fs::write(written.path(1), &lines[..lines.len() - 100]).unwrap();
    let (summary, findings) = written.verify();
    assert_eq!((findings, summary.records), (vec![], 90));
    assert!(summary.notes()[0].contains("torn ends"), "{:?}", summary.notes());
}

#[test]
fn seals_say_in_their_line_what_they_cover() {
    let written = Written::of("edge-1/0", &[20]);
    let text = fs::read_to_string(written.path(0)).unwrap();
    let seals: Vec<Seal> = text.lines().filter_map(Seal::read).collect();
    let covered: Vec<_> = seals.iter().map(|seal| (seal.first, seal.last)).collect();
    assert_eq!(covered, [(1, 6), (7, 13), (14, 19)]);
    assert_eq!(seals[0].previous, [0; 32]);
    assert!(seals.windows(2).all(|pair| pair[1].previous == pair[0].hash));
}
