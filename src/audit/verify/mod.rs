//! Proves that a journal is whole, or names what is not: numbers that lack or stand twice, damage, altered records, files
//! that do not belong here, and a tail that was cut off.
//!
//! It needs the directory alone, or a copy of it, and no more memory than a few lines, however large the journal is. What
//! an unkeyed chain cannot show is in the manual's page on the audit format.

mod finding;
mod scan;
mod seals;
mod survey;

pub use finding::Finding;
pub use scan::verify;

use super::json::parse_hex;
use super::seal::Hash;
use super::{reader, segment};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// How far a journal is known to have come, from somewhere else than its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub journal: String,
    pub seq: u64,
    /// If the record is a seal: its hash.
    pub hash: Option<Hash>,
}

/// What verifying meets, in the journal's order.
#[derive(Debug)]
pub enum Event<'a> {
    /// A record that counts. The line has its newline.
    Record {
        seq: u64,
        line: &'a str,
    },
    Fault(&'a Finding),
}

/// What a journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The slot's directory.
    pub dir: PathBuf,
    /// The journal's names: more than one, if the gateway was given another id, and none where there is no whole record.
    pub names: Vec<String>,
    /// The first and the last record that is there.
    pub first: Option<u64>,
    pub last: Option<u64>,
    pub records: u64,
    pub segments: u64,
    /// The last seal's number.
    pub sealed_through: Option<u64>,
    /// Under a seal that cannot be checked, as the seal before it was removed with an old segment.
    pub unchecked: Option<(u64, u64)>,
    /// Bytes of torn ends whose records were all written again.
    pub torn_bytes: u64,
    pub faults: u64,
}

/// The slots to be verified for `dir`, which may be an audit directory or one slot.
///
/// # Errors
/// As of reading the directory, and when there is no journal in it.
pub fn slots(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let slots = reader::journals(dir)?;
    if !slots.is_empty() {
        return Ok(slots);
    }
    if segment::list(dir)?.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "there is no journal in it"));
    }
    Ok(vec![dir.to_owned()])
}

/// The faults of journals that are known by their heads and are not there at all: one for each.
pub fn absent(heads: &[Head], there: &[Summary]) -> Vec<Finding> {
    let mut known: BTreeMap<&str, u64> = BTreeMap::new();
    for head in heads.iter().filter(|head| !there.iter().any(|summary| summary.names.contains(&head.journal))) {
        let seq = known.entry(&head.journal).or_default();
        *seq = head.seq.max(*seq);
    }
    known.into_iter().map(|(journal, known)| Finding::Cut { journal: journal.to_owned(), last: None, known }).collect()
}

// === impl Head ===

impl Head {
    /// Reads `JOURNAL=SEQ` or `JOURNAL=SEQ:HASH`.
    ///
    /// # Errors
    /// A sentence for whoever wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::read(text).ok_or_else(|| format!("'{text}' is not a head; write edge-1/0=1234, or edge-1/0=1234:HASH"))
    }

    fn read(text: &str) -> Option<Self> {
        let (journal, rest) = text.rsplit_once('=')?;
        let (seq, hash) = match rest.split_once(':') {
            Some((seq, hash)) => (seq, Some(parse_hex(hash)?)),
            None => (rest, None),
        };
        Some(Self { journal: journal.to_owned(), seq: seq.parse().ok()?, hash })
    }
}

// === impl Summary ===

impl Summary {
    /// What the journal is called now.
    pub fn journal(&self) -> Option<&str> {
        self.names.last().map(String::as_str)
    }

    /// What is no fault and worth knowing, as sentences.
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return vec!["it holds no record".to_owned()];
        };
        if let Some((_, earlier)) = self.names.split_last().filter(|(_, earlier)| !earlier.is_empty()) {
            notes.push(format!("it was called {} before", earlier.join(", ")));
        }
        if first > 1 {
            notes.push(format!("it begins with record {first}: what was before is not here any more"));
        }
        if let Some((first, last)) = self.unchecked {
            notes.push(format!(
                "{} cannot be checked against their seal, as the one before it is not here any more",
                finding::records(first, last)
            ));
        }
        let unsealed = self.sealed_through.map_or(first, |sealed| sealed.saturating_add(1));
        if unsealed <= last {
            notes.push(format!("{}: not sealed yet", finding::records(unsealed, last)));
        }
        if self.torn_bytes > 0 {
            notes.push(format!("{} bytes of torn ends, whose records were written again", self.torn_bytes));
        }
        notes
    }
}
