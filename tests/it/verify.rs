//! `keygate audit verify` names every fault a journal can have, and nothing else; `audit export` hands records over as
//! they are.

use crate::harness::gateway::keygate;
use crate::harness::{Gateway, Upstream, eventually};
use keygate::audit::block::{Blocks, Step, compress};
use keygate::audit::reader::{Follow, LOCK_FILE, SYNCED_FILE};
use keygate::audit::seal::{Chain, Hash, Seal};
use keygate::audit::segment::{self, Kind, file_name, is_whole, seq_of, write_line};
use keygate::audit::verify::{self, Event, Finding, Head, Summary};
use keygate::clock::Timestamp;
use proptest::prelude::*;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::OnceLock;
use std::time::Duration;

/// Between two records.
const STEP: Duration = Duration::from_secs(60);

/// A journal's writer, as far as files go: one slot below an audit directory.
struct Written {
    root: tempfile::TempDir,
    journal: String,
    chain: Chain,
    next_seq: u64,
    /// The segments, each with its numbers.
    segments: Vec<(PathBuf, Range<u64>)>,
    last_seal: (u64, Hash),
}

impl Written {
    fn new(journal: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let slot = root.path().join(journal.rsplit_once('/').unwrap().1);
        fs::create_dir(slot).unwrap();
        let chain = Chain::start();
        Self { root, journal: journal.into(), chain, next_seq: 1, segments: Vec::new(), last_seal: (0, [0; 32]) }
    }

    /// Segments of so many records each, seals among them.
    fn of(journal: &str, sizes: &[u64]) -> Self {
        let mut written = Self::new(journal);
        sizes.iter().for_each(|size| written.segment(*size));
        written
    }

    fn slot(&self) -> PathBuf {
        self.root.path().join(self.journal.rsplit_once('/').unwrap().1)
    }

    /// Writes a segment: every seventh record is a seal, and the last one.
    fn segment(&mut self, records: u64) {
        let (first, mut lines) = (self.next_seq, Vec::new());
        for at in 1..=records {
            let seals = (at % 7 == 0 || at == records) && !self.chain.is_empty();
            lines.extend(if seals { self.seal() } else { self.record() });
        }
        let path = self.slot().join(file_name(first));
        fs::write(&path, lines).unwrap();
        self.segments.push((path, first..self.next_seq));
    }

    fn record(&mut self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.next_seq);
        let text: String = (0..random.usize(..1500)).map(|_| random.alphanumeric()).collect();
        let body = format!("\"ts\":\"{}\",\"text\":\"{text}\",", time_of(self.next_seq));
        let line = self.line(Kind::Gap, body.as_bytes());
        self.chain.add(&line);
        line
    }

    fn seal(&mut self) -> Vec<u8> {
        let seal = self.chain.seal();
        let line = self.line(Kind::Seal, &seal.body(time_of(self.next_seq)));
        self.last_seal = (self.next_seq - 1, seal.hash);
        self.chain = Chain::after(seal.hash, self.next_seq - 1, &line);
        line
    }

    fn line(&mut self, kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        write_line(&mut line, kind, &self.journal, self.next_seq, "cfg", body);
        self.next_seq += 1;
        line
    }

    fn compress(&mut self, index: usize) {
        let (path, _) = &mut self.segments[index];
        assert_eq!(compress(path).unwrap(), Step::Done);
        *path = segment::compressed(path);
    }

    fn path(&self, index: usize) -> &Path {
        &self.segments[index].0
    }

    fn head(&self) -> Head {
        let (seq, hash) = self.last_seal;
        Head { journal: self.journal.clone(), seq, hash: Some(hash) }
    }

    fn verify(&self) -> (Summary, Vec<Finding>) {
        self.verify_with(&[])
    }

    fn verify_with(&self, heads: &[Head]) -> (Summary, Vec<Finding>) {
        let mut findings = Vec::new();
        let summary = verify::verify(&self.slot(), heads, None, &mut |event| {
            if let Event::Fault(finding) = event {
                findings.push(finding.clone());
            }
            Ok(())
        });
        let summary = summary.unwrap();
        assert_eq!(summary.faults, findings.len() as u64);
        (summary, findings)
    }

    #[track_caller]
    fn finds(&self, expected: &[Finding]) {
        assert_eq!(self.verify().1, expected);
    }

    /// Replaces a line's text, with a checksum that is right again.
    fn forge(&self, index: usize, seq: u64, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(index)).unwrap();
        let forged: String =
            text.split_inclusive('\n')
                .map(|line| {
                    if seq_of(line.as_bytes()) == Some(seq) {
                        checked(&line.replacen(from, to, 1))
                    } else {
                        line.into()
                    }
                })
                .collect();
        assert_ne!(text, forged);
        fs::write(self.path(index), forged).unwrap();
    }
}

fn time_of(seq: u64) -> Timestamp {
    let start = Timestamp::parse("2026-11-01T00:00:00Z").unwrap();
    start.plus(STEP * u32::try_from(seq).unwrap())
}

/// A line with the checksum that its text has.
fn checked(line: &str) -> String {
    let body = &line[..line.rfind(",\"crc\":").unwrap()];
    let line = format!("{body},\"crc\":\"{:08x}\"}}", crc32fast::hash(body.as_bytes()));
    assert!(is_whole(line.as_bytes()));
    line + "\n"
}

/// The bytes of a plain segment's lines, each with its number.
fn line_spans(path: &Path) -> Vec<(Range<u64>, u64)> {
    let (bytes, mut at) = (fs::read(path).unwrap(), 0);
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines
        .map(|line| {
            at += line.len() as u64;
            (at - line.len() as u64..at, seq_of(line).unwrap())
        })
        .collect()
}

/// The bytes of a segment's parts that are damaged together, lines or blocks, each with its numbers.
fn parts(path: &Path) -> Vec<(Range<u64>, Range<u64>)> {
    if !segment::is_compressed(path) {
        return line_spans(path).into_iter().map(|(span, seq)| (span, seq..seq + 1)).collect();
    }
    let (mut blocks, mut parts) = (Blocks::open(path, 0).unwrap(), Vec::new());
    while let Some(block) = blocks.read().unwrap() {
        let lines = blocks.lines().split_inclusive(|byte| *byte == b'\n');
        let numbers: Vec<u64> = lines.map(|line| seq_of(line).unwrap()).collect();
        parts.push((block.start..block.start + block.bytes, numbers[0]..numbers[numbers.len() - 1] + 1));
    }
    parts
}

fn missing(first: u64, last: u64) -> Finding {
    Finding::Missing { first, last }
}

fn cut(written: &Written, last: u64, known: u64) -> Finding {
    Finding::Cut { journal: written.journal.clone(), last: Some(last), known }
}

/// Three segments, the middle one compressed.
fn three() -> Written {
    type File = (std::ffi::OsString, Vec<u8>, Range<u64>);
    static ORIGINAL: OnceLock<(Vec<File>, (u64, Hash))> = OnceLock::new();
    let (files, last_seal) = ORIGINAL.get_or_init(|| {
        let mut written = Written::of("edge-1/0", &[20, 300, 20]);
        written.compress(1);
        let file = |(path, numbers): &(PathBuf, Range<u64>)| {
            (path.file_name().unwrap().to_owned(), fs::read(path).unwrap(), numbers.clone())
        };
        (written.segments.iter().map(file).collect(), written.last_seal)
    });
    let mut copy = Written::new("edge-1/0");
    for (name, bytes, numbers) in files {
        let path = copy.slot().join(name);
        fs::write(&path, bytes).unwrap();
        copy.segments.push((path, numbers.clone()));
    }
    Written { last_seal: *last_seal, ..copy }
}

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
fn a_line_that_is_being_written_is_no_fault_while_a_process_holds_the_slot() {
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
fn a_cut_tail_is_found_by_whoever_knows_more() {
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
fn what_was_written_again_in_the_next_segment_is_no_fault() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let lines = fs::read(written.path(1)).unwrap();
    let again: Vec<u8> = lines.split_inclusive(|byte| *byte == b'\n').skip(25).flatten().copied().collect();
    fs::write(written.slot().join(file_name(46)), again).unwrap();
    fs::write(written.path(1), &lines[..lines.len() - 100]).unwrap();
    let (summary, findings) = written.verify();
    assert_eq!((findings, summary.records), (vec![], 90));
    assert!(summary.notes()[0].contains("torn ends"), "{:?}", summary.notes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_flipped_bit_is_named_with_its_record_or_the_exact_range_of_its_block(
        segment in 0_usize..3,
        at: prop::sample::Index,
        bit in 0_u32..8,
    ) {
        let written = three();
        let path = written.path(segment).to_owned();
        let parts = parts(&path);
        let mut bytes = fs::read(&path).unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let hit = parts.iter().position(|(span, _)| span.contains(&(at as u64))).unwrap();
        let (span, numbers) = &parts[hit];
        // Without its newline a line goes on in the next one.
        let is_newline = segment != 1 && at as u64 == span.end - 1;
        let end = if is_newline { parts.get(hit + 1).unwrap_or(&parts[hit]) } else { &parts[hit] };
        let last = Some(end.1.end - 1).filter(|last| *last < 340);
        prop_assert_eq!(written.verify().1, [Finding::Damaged {
            segment: path,
            start: span.start,
            bytes: end.0.end - span.start,
            records: Some((numbers.start, last)),
        }]);
    }

    #[test]
    fn any_cut_is_named_with_exactly_the_records_it_took(segment in 0_usize..3, at: prop::sample::Index) {
        let written = three();
        let path = written.path(segment).to_owned();
        let (parts, bytes) = (parts(&path), fs::read(&path).unwrap());
        let at = at.index(bytes.len());
        fs::write(&path, &bytes[..at]).unwrap();
        let (span, numbers) = parts.iter().find(|(span, _)| span.contains(&(at as u64))).unwrap();
        let (first, last, torn) = (numbers.start, written.segments[segment].1.end - 1, at as u64 - span.start);
        let (_, findings) = written.verify_with(&[written.head()]);
        let mut expected = Vec::new();
        if at == 0 {
            expected.push(Finding::Empty { segment: path.clone() });
        }
        if torn > 0 {
            let records = Some((first, Some(last).filter(|_| segment < 2)));
            expected.push(Finding::Damaged { segment: path, start: span.start, bytes: torn, records });
        } else if segment < 2 {
            expected.push(missing(first, last));
        }
        if segment == 2 {
            expected.push(cut(&written, first - 1, 340));
        }
        prop_assert_eq!(findings, expected);
    }
}

/// What somebody does to a segment's bytes.
#[derive(Clone, Debug)]
enum Edit {
    Replace(prop::sample::Index, usize, Vec<u8>),
    /// A stretch of it, somewhere else in it or in another segment.
    Copy(prop::sample::Index, usize, prop::sample::Index, usize),
    Exchange(usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        (index(), 0_usize..3000, prop::collection::vec(any::<u8>(), 0..50))
            .prop_map(|(at, length, bytes)| Edit::Replace(at, length, bytes)),
        (index(), 1_usize..5000, index(), 0_usize..3)
            .prop_map(|(from, length, to, into)| Edit::Copy(from, length, to, into)),
        (0_usize..3).prop_map(Edit::Exchange),
    ]
}

fn apply(written: &Written, segment: usize, edit: Edit) {
    let mut bytes = fs::read(written.path(segment)).unwrap();
    match edit {
        Edit::Replace(at, length, with) => {
            let at = at.index(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, with);
            fs::write(written.path(segment), bytes).unwrap();
        }
        Edit::Copy(from, length, to, into) => {
            let from = from.index(bytes.len());
            let piece = bytes[from..(from + length).min(bytes.len())].to_vec();
            let mut bytes = fs::read(written.path(into)).unwrap();
            let to = to.index(bytes.len() + 1);
            bytes.splice(to..to, piece);
            fs::write(written.path(into), bytes).unwrap();
        }
        Edit::Exchange(other) => {
            let others = fs::read(written.path(other)).unwrap();
            fs::write(written.path(other), bytes).unwrap();
            fs::write(written.path(segment), others).unwrap();
        }
    }
}

/// The records that count, and how many faults there are.
fn counted(written: &Written) -> (Vec<(u64, String)>, u64) {
    let mut records = Vec::new();
    let summary = verify::verify(&written.slot(), &[written.head()], None, &mut |event| {
        if let Event::Record { seq, line } = event {
            records.push((seq, line.to_owned()));
        }
        Ok(())
    });
    (records, summary.unwrap().faults)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_is_done_to_the_bytes_only_what_was_written_counts_and_what_lacks_is_told(
        edits in prop::collection::vec((0_usize..3, edit()), 1..4),
    ) {
        let written = three();
        let (original, none) = counted(&written);
        prop_assert_eq!((original.len(), none), (340, 0));
        edits.into_iter().for_each(|(segment, edit)| apply(&written, segment, edit));
        let (records, faults) = counted(&written);
        prop_assert!(records.windows(2).all(|pair| pair[0].0 < pair[1].0));
        prop_assert!(records.iter().all(|record| original.contains(record)));
        prop_assert!(faults > 0 || records == original);
    }
}

/// Runs the command where there is neither a gateway nor a configuration file.
fn run(dir: &Path, args: &[&str]) -> Output {
    keygate(dir).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_copied_directory_is_verified_without_a_gateway_its_configuration_or_its_store() {
    let written = three();
    let elsewhere = tempfile::tempdir().unwrap();
    for dir in [written.root.path(), &written.slot()] {
        let output = run(elsewhere.path(), &["audit", "verify", dir.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let table = text(&output.stdout);
        let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["edge-1/0", "1", "340", "340", "3", "340", "0"], "{table}");
    }
    let output = run(elsewhere.path(), &["audit", "verify", elsewhere.path().to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stderr).contains("no journal")), (Some(1), true));
    assert_eq!(run(elsewhere.path(), &["audit", "verify"]).status.code(), Some(78));
}

#[test]
fn faults_are_told_as_words_and_as_data_and_by_the_exit_code() {
    let written = three();
    fs::remove_file(written.path(1)).unwrap();
    let (seq, hash) = written.last_seal;
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let (dir, elsewhere) = (written.root.path().to_str().unwrap(), tempfile::tempdir().unwrap());
    let known = format!("edge-1/0={seq}:{hex}");
    let head = ["audit", "verify", dir, "--head", &known, "--head", "edge-9/3=12", "--output"];
    let output = run(elsewhere.path(), &[&head[..], &["json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let journals: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(journals[0]["journal"], "edge-1/0");
    assert_eq!(journals[0]["faults"], 1);
    let found = &journals[0]["findings"][0];
    assert_eq!((&found["fault"], &found["first"], &found["last"]), (&"missing".into(), &21.into(), &320.into()));
    assert_eq!(journals[1]["findings"][0]["fault"], "cut");
    let words = text(&output.stderr);
    assert!(
        words.contains("fault: records 21 to 320 are missing") && words.contains("edge-9/3 is not here"),
        "{words}"
    );
    let lines = run(elsewhere.path(), &[&head[..], &["ndjson"]].concat());
    assert_eq!(text(&lines.stdout).lines().count(), 2);
    assert_eq!(run(elsewhere.path(), &["audit", "verify", dir, "--head", "edge-1/0"]).status.code(), Some(2));
}

#[test]
fn an_export_reads_no_segment_that_is_older_than_its_period_but_one() {
    let written = Written::of("edge-1/0", &[20, 30, 40, 20]);
    fs::write(written.path(0), "no record").unwrap();
    fs::File::options().append(true).open(written.path(0)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let dir = configured(&written);
    for (since, code) in [(20, 1), (51, 0), (95, 0), (200, 0)] {
        let output = run(dir.path(), &["audit", "export", "--since", &time_of(since).to_string()]);
        assert_eq!(output.status.code(), Some(code), "{since}: {}", text(&output.stderr));
        assert_eq!(exported(&output), (since.max(21)..=110).collect::<Vec<_>>());
    }
}

/// A directory with a configuration whose journal is this one.
fn configured(written: &Written) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[upstreams.erp]\nlive = [\"http://127.0.0.1:9\"]\n[[routes]]\npath = \"/\"\n\
         upstream = \"erp\"\npublic = true\n[audit]\ndir = \"{}\"\n",
        written.root.path().display()
    );
    fs::write(dir.path().join("gateway.toml"), config).unwrap();
    dir
}

fn exported(output: &Output) -> Vec<u64> {
    text(&output.stdout).lines().map(|line| seq_of(line.as_bytes()).unwrap()).collect()
}

#[test]
fn an_export_is_the_journals_lines_as_they_are_and_of_the_period_alone() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let other = Written::of("edge-1/1", &[20]);
    let lines: Vec<u8> = (0..3).flat_map(|index| fs::read(written.path(index)).unwrap()).collect();
    let mut written = written;
    written.compress(1);
    fs::rename(other.slot(), written.root.path().join("1")).unwrap();
    let dir = configured(&written);
    let output = run(dir.path(), &["audit", "export", "--since", "2026-01-01T00:00:00Z", "--journal", "edge-1/0"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stdout == lines);
    assert_eq!(text(&output.stderr), "");
    let (since, until) = (time_of(15).to_string(), time_of(60).to_string());
    let output = run(dir.path(), &["audit", "export", "--since", &since, "--until", &until]);
    assert_eq!(exported(&output), (15..=60).chain(15..=20).collect::<Vec<_>>());
    assert_eq!(run(dir.path(), &["audit", "export", "--since", "soon"]).status.code(), Some(1));
    assert_eq!(run(dir.path(), &["audit", "verify"]).status.code(), Some(0));
}

#[test]
fn an_export_fails_for_a_fault_in_its_period_and_for_no_other() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    fs::remove_file(written.path(1)).unwrap();
    let dir = configured(&written);
    for (since, until, code) in [(1, 20, 1), (1, 19, 0), (51, 90, 1), (52, 90, 0), (25, 45, 1), (1, 90, 1)] {
        let (since, until) = (time_of(since).to_string(), time_of(until).to_string());
        let output = run(dir.path(), &["audit", "export", "--since", &since, "--until", &until]);
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{since} {until}: {words}");
        assert_eq!(words.contains("records 21 to 50 are missing"), code == 1, "{words}");
    }
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

#[test]
fn a_running_gateways_journal_is_compressed_and_stays_whole_through_kills() {
    let upstream = Upstream::named("erp");
    let mut gateway = Gateway::builder().live(&upstream).toml("[audit]\nrotate = { age = \"1s\" }").start();
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    let slot = gateway.dir.path().join("data/audit/0");
    for _ in 0..2 {
        eventually("closed segments are compressed", || {
            assert_eq!(gateway.client().request("GET", &path, &[&key.bearer()]).status, 200);
            let segments = segment::list(&slot).unwrap();
            (segments.len() > 2 && segments.iter().filter(|(_, path)| !segment::is_compressed(path)).count() == 1)
                .then_some(())
        });
        let output = gateway.run(&["audit", "verify"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        gateway.restart();
    }
    let served = gateway.records().iter().filter(|record| record["status"] == 200).count();
    assert_eq!(served, upstream.received().len());
    let output = gateway.run(&["audit", "export", "--since", "1h"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(exported(&output), (1..=exported(&output).len() as u64).collect::<Vec<_>>());
}

#[test]
fn what_the_gateways_told_the_store_shows_a_tail_that_was_cut_off() {
    let upstream = Upstream::named("erp");
    let mut gateway = Gateway::before(&upstream);
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    for _ in 0..20 {
        assert_eq!(gateway.client().request("GET", &path, &[&key.bearer()]).status, 200);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let slot = gateway.dir.path().join("data/audit/0");
    let (first, newest) = segment::list(&slot).unwrap().pop().unwrap();
    let lines = fs::read_to_string(&newest).unwrap();
    let last = first + lines.lines().count() as u64 - 1;
    let verified = || gateway.run(&["audit", "verify"]);
    assert_eq!(verified().status.code(), Some(0), "{}", text(&verified().stderr));
    // At the end of a line, with what the slot itself knows.
    fs::write(&newest, lines.split_inclusive('\n').take(5).collect::<String>()).unwrap();
    fs::remove_file(slot.join(SYNCED_FILE)).unwrap();
    let words = text(&verified().stderr);
    assert_eq!(verified().status.code(), Some(1), "{words}");
    assert!(
        words.contains(&format!("ends with record {}, and it is known to have come to {last}", first + 4)),
        "{words}"
    );
    // Whoever has the files alone cannot see it.
    let copied = gateway.run(&["audit", "verify", slot.to_str().unwrap()]);
    assert_eq!(copied.status.code(), Some(0), "{}", text(&copied.stderr));
}
