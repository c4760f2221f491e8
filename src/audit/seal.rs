//! Seals: the lines that chain a journal's records together, so that none can be altered, dropped or put in unnoticed by
//! whoever does not write the whole rest of the journal anew.
//!
//! A seal is a line with its own `seq`. It covers the lines from the seal before it, that one included, or from the
//! journal's first, to the one before itself. Its `hash` is SHA-256 over the hash of the seal before it (zeros, where there
//! is none) and over the covered lines with their newlines.

use super::json::{ObjectWriter, parse_hex};
use super::pieces::{Piece, Pieces};
use super::segment::{self, Kind};
use crate::clock::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::io;
use std::path::{Path, PathBuf};

/// A seal's hash.
pub type Hash = [u8; 32];

/// What the first seal of a journal has in place of the hash before it.
const NONE_BEFORE: Hash = [0; 32];

/// What a seal line says of the lines before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The first and the last `seq` it covers.
    pub first: u64,
    pub last: u64,
    /// The hash of the seal before it.
    pub previous: Hash,
    pub hash: Hash,
}

/// The lines since the last seal, as their hash.
#[derive(Clone, Debug)]
pub struct Chain {
    previous: Hash,
    first: u64,
    last: u64,
    /// Added since the last seal.
    lines: u64,
    hasher: Sha256,
}

// === impl Seal ===

impl Seal {
    /// The members of its line, as [`segment::write_line`] takes them.
    pub fn body(&self, at: Timestamp) -> Vec<u8> {
        let mut body = Vec::with_capacity(256);
        let mut object = ObjectWriter::new(&mut body);
        object.plain("ts", &at.to_string());
        object.number("first", self.first);
        object.number("last", self.last);
        object.hex("previous", &self.previous);
        object.hex("hash", &self.hash);
        body
    }

    /// Reads a line; none if it is no seal.
    pub fn read(line: &str) -> Option<Self> {
        #[derive(Deserialize)]
        struct Members<'a> {
            first: u64,
            last: u64,
            previous: &'a str,
            hash: &'a str,
        }
        segment::kind_of(line.as_bytes()).filter(|kind| *kind == Kind::Seal.as_str())?;
        let Members { first, last, previous, hash } = serde_json::from_str(line).ok()?;
        Some(Self { first, last, previous: parse_hex(previous)?, hash: parse_hex(hash)? })
    }
}

// === impl Chain ===

impl Chain {
    /// Of a journal that begins: the first line to be added is number 1.
    pub fn start() -> Self {
        Self { previous: NONE_BEFORE, first: 1, last: 0, lines: 0, hasher: Sha256::new_with_prefix(NONE_BEFORE) }
    }

    /// After the seal that has this hash, number and line (with its newline).
    pub fn after(hash: Hash, seal_seq: u64, seal_line: &[u8]) -> Self {
        let hasher = Sha256::new_with_prefix(hash).chain_update(seal_line);
        Self { previous: hash, first: seal_seq, last: seal_seq, lines: 0, hasher }
    }

    /// Adds the next line, with its newline.
    pub fn add(&mut self, line: &[u8]) {
        self.hasher.update(line);
        self.last = self.last.saturating_add(1);
        self.lines += 1;
    }

    /// How many lines have been added since the last seal.
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    /// Whether nothing has been added since the last seal.
    pub const fn is_empty(&self) -> bool {
        self.lines == 0
    }

    /// The seal over what has been added. Its line has the number after `last`; the chain goes on with [`Chain::after`].
    pub fn seal(&self) -> Seal {
        let hash = self.hasher.clone().finalize().into();
        Seal { first: self.first, last: self.last, previous: self.previous, hash }
    }

    /// The chain as a journal's directory has it: from its last seal on, over the whole records that no newer segment
    /// voids. `last_seq` is the last number that was given, as [`segment::recover`] found it.
    ///
    /// # Errors
    /// As of reading the directory.
    pub fn recover(dir: &Path, last_seq: u64) -> io::Result<Self> {
        let segments = segment::list(dir)?;
        let (mut chain, mut from, mut seq) = (Self::start(), 0, 0);
        for index in (0..segments.len()).rev() {
            let mut sealed = None;
            records(&segments, index, |seq, line| sealed = Seal::read(line).map(|_| seq).or(sealed))?;
            if let Some(sealed) = sealed {
                (from, seq) = (index, sealed);
                break;
            }
        }
        for index in from..segments.len() {
            records(&segments, index, |number, line| {
                if number >= seq {
                    seq = number.saturating_add(1);
                    chain.go_on(number, line);
                }
            })?;
        }
        // Of damaged lines only the numbers are known.
        chain.last = last_seq;
        Ok(chain)
    }

    /// Takes a line in that was written: a seal's too.
    fn go_on(&mut self, seq: u64, line: &str) {
        match Seal::read(line) {
            Some(seal) => *self = Self::after(seal.hash, seq, line.as_bytes()),
            None => self.add(line.as_bytes()),
        }
    }
}

/// Gives the whole records of a segment that the next one does not void.
fn records(segments: &[(u64, PathBuf)], index: usize, mut take: impl FnMut(u64, &str)) -> io::Result<()> {
    let Some((_, path)) = segments.get(index) else { return Ok(()) };
    let next = segments.get(index + 1).map_or(u64::MAX, |(next, _)| *next);
    let mut pieces = Pieces::open(path, 0)?;
    while let Some(piece) = pieces.read()? {
        match piece {
            Piece::Record { seq, line } if seq < next => take(seq, line),
            Piece::Record { .. } | Piece::Damage { .. } | Piece::Torn { .. } => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::block::compress;
    use proptest::prelude::*;
    use std::fs;

    /// A journal as its writer makes it: where to seal, where a segment begins, and where one is rewritten.
    struct Journal {
        dir: tempfile::TempDir,
        chain: Chain,
        /// Every line that counts.
        lines: Vec<String>,
        segment: (u64, String),
    }

    impl Journal {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { dir, chain: Chain::start(), lines: Vec::new(), segment: (1, String::new()) }
        }

        fn append(&mut self, kind: Kind, body: &[u8]) -> String {
            let mut line = Vec::new();
            segment::write_line(&mut line, kind, "gw/0", self.lines.len() as u64 + 1, "cfg", body);
            let line = String::from_utf8(line).unwrap();
            self.lines.push(line.clone());
            self.segment.1.push_str(&line);
            line
        }

        fn act(&mut self, action: u8) {
            match action {
                0 => {
                    let seal = self.chain.seal();
                    let line = self.append(Kind::Seal, &seal.body(Timestamp::from_micros(0)));
                    self.chain = Chain::after(seal.hash, self.lines.len() as u64, line.as_bytes());
                }
                1 => {
                    self.write();
                    self.segment = (self.lines.len() as u64 + 1, String::new());
                }
                2 => self.write_again(),
                _ => {
                    let line = self.append(Kind::Gap, b"\"requests_refused\":1,");
                    self.chain.add(line.as_bytes());
                }
            }
        }

        fn write(&self) {
            let path = self.dir.path().join(segment::file_name(self.segment.0));
            fs::write(path, &self.segment.1).unwrap();
        }

        /// A write failed: the last lines stand again in a new segment, and the old one ends torn.
        fn write_again(&mut self) {
            let (first, lines) = (self.segment.0, self.lines.len() as u64);
            let from = first.max(lines.saturating_sub(2)).max(1);
            self.segment.1.push_str("{\"torn");
            self.write();
            let again = self.lines.iter().skip(usize::try_from(from).unwrap() - 1).cloned().collect();
            self.segment = (from, again);
        }
    }

    /// The seals of a journal, computed in the plainest way.
    fn seals(lines: &[String]) -> Vec<Seal> {
        let (mut seals, mut first, mut previous) = (Vec::new(), 1, [0; 32]);
        for (index, line) in lines.iter().enumerate() {
            if !line.contains(r#""kind":"seal""#) {
                continue;
            }
            let text: String = lines[first - 1..index].concat();
            let hash = Sha256::digest([&previous[..], text.as_bytes()].concat()).into();
            seals.push(Seal { first: first as u64, last: index as u64, previous, hash });
            (first, previous) = (index + 1, hash);
        }
        seals
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn j7_every_seal_is_the_plain_hash_of_what_it_covers(actions in prop::collection::vec(0_u8..8, 0..120)) {
            let mut journal = Journal::new();
            actions.into_iter().for_each(|action| journal.act(action));
            let written: Vec<Seal> = journal.lines.iter().filter_map(|line| Seal::read(line)).collect();
            prop_assert_eq!(written, seals(&journal.lines));
        }

        #[test]
        fn j7_a_chain_goes_on_where_the_last_process_left_it(actions in prop::collection::vec(0_u8..8, 0..60)) {
            let mut journal = Journal::new();
            actions.into_iter().for_each(|action| journal.act(action));
            journal.write();
            for (_, path) in segment::list(journal.dir.path()).unwrap().iter().rev().skip(1) {
                compress(path).unwrap();
            }
            let recovered = Chain::recover(journal.dir.path(), journal.lines.len() as u64).unwrap();
            prop_assert_eq!(recovered.seal(), journal.chain.seal());
            prop_assert_eq!(recovered.lines(), journal.chain.lines());
        }
    }
}
