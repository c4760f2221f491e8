//! Journals as their writer makes them, and what is done to them before they are verified.

use keygate::audit::block::{Blocks, Step, compress};
use keygate::audit::seal::{Chain, Hash};
use keygate::audit::segment::{self, Kind, file_name, is_whole, seq_of, write_line};
use keygate::audit::verify::{self, Event, Finding, Head, Summary};
use keygate::clock::Timestamp;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// Between two records.
const STEP: Duration = Duration::from_secs(60);

/// A journal's writer, as far as files go: one slot below an audit directory.
pub struct Written {
    pub root: tempfile::TempDir,
    pub journal: String,
    pub chain: Chain,
    pub next_seq: u64,
    /// The segments, each with its numbers.
    pub segments: Vec<(PathBuf, Range<u64>)>,
    pub last_seal: (u64, Hash),
}

impl Written {
    pub fn new(journal: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let slot = root.path().join(journal.rsplit_once('/').unwrap().1);
        fs::create_dir(slot).unwrap();
        let chain = Chain::start();
        Self { root, journal: journal.into(), chain, next_seq: 1, segments: Vec::new(), last_seal: (0, [0; 32]) }
    }

    /// Segments of so many records each, seals among them.
    pub fn of(journal: &str, sizes: &[u64]) -> Self {
        let mut written = Self::new(journal);
        sizes.iter().for_each(|size| written.segment(*size));
        written
    }

    pub fn slot(&self) -> PathBuf {
        self.root.path().join(self.journal.rsplit_once('/').unwrap().1)
    }

    /// Writes a segment: every seventh record is a seal, and the last one.
    pub fn segment(&mut self, records: u64) {
        let (first, mut lines) = (self.next_seq, Vec::new());
        for at in 1..=records {
            let seals = (at % 7 == 0 || at == records) && !self.chain.is_empty();
            lines.extend(if seals { self.seal() } else { self.record() });
        }
        let path = self.slot().join(file_name(first));
        fs::write(&path, lines).unwrap();
        self.segments.push((path, first..self.next_seq));
    }

    pub fn record(&mut self) -> Vec<u8> {
        let mut random = fastrand::Rng::with_seed(self.next_seq);
        let text: String = (0..random.usize(..1500)).map(|_| random.alphanumeric()).collect();
        let body = format!("\"ts\":\"{}\",\"text\":\"{text}\",", time_of(self.next_seq));
        let line = self.line(Kind::Gap, body.as_bytes());
        self.chain.add(&line);
        line
    }

    pub fn seal(&mut self) -> Vec<u8> {
        let seal = self.chain.seal();
        let line = self.line(Kind::Seal, &seal.body(time_of(self.next_seq)));
        self.last_seal = (self.next_seq - 1, seal.hash);
        self.chain = Chain::after(seal.hash, self.next_seq - 1, &line);
        line
    }

    pub fn line(&mut self, kind: Kind, body: &[u8]) -> Vec<u8> {
        let mut line = Vec::new();
        write_line(&mut line, kind, &self.journal, self.next_seq, "cfg", body);
        self.next_seq += 1;
        line
    }

    pub fn compress(&mut self, index: usize) {
        let (path, _) = &mut self.segments[index];
        assert_eq!(compress(path).unwrap(), Step::Done);
        *path = segment::compressed(path);
    }

    pub fn path(&self, index: usize) -> &Path {
        &self.segments[index].0
    }

    pub fn head(&self) -> Head {
        let (seq, hash) = self.last_seal;
        Head { journal: self.journal.clone(), seq, hash: Some(hash) }
    }

    pub fn verify(&self) -> (Summary, Vec<Finding>) {
        self.verify_with(&[])
    }

    pub fn verify_with(&self, heads: &[Head]) -> (Summary, Vec<Finding>) {
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
    pub fn finds(&self, expected: &[Finding]) {
        assert_eq!(self.verify().1, expected);
    }

    /// Replaces a line's text, with a checksum that is right again.
    pub fn forge(&self, index: usize, seq: u64, from: &str, to: &str) {
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

pub fn time_of(seq: u64) -> Timestamp {
    let start = Timestamp::parse("2026-11-01T00:00:00Z").unwrap();
    start.plus(STEP * u32::try_from(seq).unwrap())
}

/// A line with the checksum that its text has.
pub fn checked(line: &str) -> String {
    let body = &line[..line.rfind(",\"crc\":").unwrap()];
    let line = format!("{body},\"crc\":\"{:08x}\"}}", crc32fast::hash(body.as_bytes()));
    assert!(is_whole(line.as_bytes()));
    line + "\n"
}

/// The bytes of a plain segment's lines, each with its number.
pub fn line_spans(path: &Path) -> Vec<(Range<u64>, u64)> {
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
pub fn parts(path: &Path) -> Vec<(Range<u64>, Range<u64>)> {
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

pub fn missing(first: u64, last: u64) -> Finding {
    Finding::Missing { first, last }
}

pub fn cut(written: &Written, last: u64, known: u64) -> Finding {
    Finding::Cut { journal: written.journal.clone(), last: Some(last), known }
}

/// Three segments, the middle one compressed.
pub fn three() -> Written {
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
