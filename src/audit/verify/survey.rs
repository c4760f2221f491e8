//! The files of a slot, before any is read to its end: where each begins and whose it is.

use crate::audit::pieces::newest_time;
use crate::audit::pieces::{Piece, Pieces};
use crate::audit::seal::Seal;
use crate::audit::{reader, segment};
use crate::clock::Timestamp;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A file that is a segment, or looks like one.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub path: PathBuf,
    /// The first `seq` by its name.
    pub named: Option<u64>,
    /// The `seq` and the journal of its first whole record.
    pub begins: Option<u64>,
    pub journal: Option<String>,
    /// Bytes that are no record stand before that.
    is_damaged_before: bool,
}

/// The files, in the order of what is in them, and whose they are.
#[derive(Debug, Default)]
pub struct Survey {
    pub candidates: Vec<Candidate>,
    /// The names of the slot's journal: that of most files, and those it had while the gateway had another id. The last one
    /// is what it is called now.
    pub names: Vec<String>,
}

// === impl Survey ===

impl Survey {
    /// Looks at the beginning of every file.
    ///
    /// # Errors
    /// As of reading the directory and the files.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let mut candidates = Vec::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if looks_like_one(&path) && !is_replaced(&path) {
                candidates.extend(Candidate::at(path)?);
            }
        }
        candidates.sort_by(|left, right| left.place().cmp(&right.place()));
        let names = names(&candidates, journal(dir, &candidates))?;
        Ok(Self { candidates, names })
    }

    /// Whether this one is of the slot's journal, or nobody can say.
    pub fn is_own(&self, candidate: &Candidate) -> bool {
        candidate.journal.as_ref().is_none_or(|journal| self.names.contains(journal))
    }

    /// The segment before the first one that has records of this time or later: in between, numbers may lack. Clocks may go
    /// back, so that all of them are looked at.
    ///
    /// # Errors
    /// As of reading the segments.
    pub fn index_since(&self, since: Timestamp) -> io::Result<usize> {
        for (index, candidate) in self.candidates.iter().enumerate() {
            let Some((path, _)) = open(&candidate.path)? else { continue };
            if newest_time(&path)? >= since {
                return Ok(index.saturating_sub(1));
            }
        }
        Ok(self.candidates.len().saturating_sub(1))
    }

    /// The number from which on the segment at `index` is void: there the next one begins.
    pub fn void_from(&self, index: usize) -> Option<u64> {
        let later = self.candidates.iter().skip(index + 1);
        later.filter(|later| later.is_named_right() && self.is_own(later)).find_map(|later| later.named)
    }
}

/// The journal of most files: of those that fit the slot's number, if any does.
fn journal(dir: &Path, candidates: &[Candidate]) -> Option<String> {
    let slot = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let fits = |journal: &str| journal.rsplit_once('/').is_some_and(|(_, number)| number == slot);
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for journal in candidates.iter().filter_map(|candidate| candidate.journal.as_deref()) {
        *files.entry(journal).or_default() += 1;
    }
    let most = files.into_iter().max_by_key(|(journal, files)| (fits(journal), *files))?;
    Some(most.0.to_owned())
}

/// All names of the journal: where it goes on under another one, the chain of its seals does too.
fn names(candidates: &[Candidate], journal: Option<String>) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = journal.into_iter().collect();
    let named: Vec<(&str, &Path)> =
        candidates.iter().filter_map(|one| Some((one.journal.as_deref()?, one.path.as_path()))).collect();
    let mut pairs: Vec<_> = named.iter().zip(named.iter().skip(1)).filter(|(left, right)| left.0 != right.0).collect();
    let is_own = |names: &[String], name: &str| names.iter().any(|own| own == name);
    while let Some(at) = pairs.iter().position(|(left, right)| is_own(&names, left.0) != is_own(&names, right.0)) {
        let (left, right) = pairs.swap_remove(at);
        if is_linked(left.1, right.1)? {
            let other = if is_own(&names, left.0) { right.0 } else { left.0 };
            names.push(other.to_owned());
        }
    }
    // In the order in which they came.
    names.sort_by_key(|name| named.iter().rposition(|(other, _)| other == name));
    Ok(names)
}

/// Whether the second segment's first seal names the first one's last.
fn is_linked(left: &Path, right: &Path) -> io::Result<bool> {
    let mut last = None;
    for mut pieces in [Pieces::open_near_end(left)?, Pieces::open(left, 0)?] {
        while let Some(piece) = pieces.read()? {
            last = seal_in(piece).or(last);
        }
        if last.is_some() {
            break;
        }
    }
    let (mut first, mut pieces) = (None, Pieces::open(right, 0)?);
    while let (None, Some(piece)) = (first, pieces.read()?) {
        first = seal_in(piece);
    }
    let names =
        |((_, first), (seq, last)): ((u64, Seal), (u64, Seal))| first.first == seq && first.previous == last.hash;
    Ok(first.zip(last).is_some_and(names))
}

fn seal_in(piece: Piece<'_>) -> Option<(u64, Seal)> {
    match piece {
        Piece::Record { seq, line } => Some((seq, Seal::read(line)?)),
        Piece::Damage { .. } | Piece::Torn { .. } => None,
    }
}

fn looks_like_one(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    [".ndjson", ".ndjson.zst", ".ndjson.gz"].iter().any(|suffix| name.ends_with(suffix)) && path.is_file()
}

/// Whether it is the compressed form of a segment whose original is there, and counts.
fn is_replaced(path: &Path) -> bool {
    segment::is_compressed(path) && path.with_extension("").exists()
}

// === impl Candidate ===

impl Candidate {
    /// Looks at a file; none if it is not there any more.
    fn at(path: PathBuf) -> io::Result<Option<Self>> {
        let Some((path, mut pieces)) = open(&path)? else { return Ok(None) };
        let named = segment::first_of(&path);
        let mut candidate = Self { path, named, begins: None, journal: None, is_damaged_before: false };
        while let Some(piece) = pieces.read()? {
            match piece {
                Piece::Record { seq, line } => {
                    candidate.begins = Some(seq);
                    candidate.journal = segment::journal_of(line.as_bytes()).map(str::to_owned);
                    break;
                }
                Piece::Damage { .. } | Piece::Torn { .. } => candidate.is_damaged_before = true,
            }
        }
        Ok(Some(candidate))
    }

    /// Whether its name says where it begins, as far as one can see.
    pub fn is_named_right(&self) -> bool {
        match (self.named, self.begins) {
            (Some(named), Some(begins)) => named == begins || (named < begins && self.is_damaged_before),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Where it belongs. Of two that begin with the same record the one with the right name comes first.
    fn place(&self) -> (Option<u64>, bool, &Path) {
        let is_right = self.is_named_right();
        (if is_right { self.named } else { self.begins }, !is_right, &self.path)
    }
}

/// Opens a segment that may be compressed at this moment; none if it is gone.
///
/// # Errors
/// As of opening the file.
pub fn open(path: &Path) -> io::Result<Option<(PathBuf, Pieces)>> {
    for form in [path.to_owned(), segment::compressed(path)] {
        match Pieces::open(&form, 0) {
            Ok(pieces) => return Ok(Some((form, pieces))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(reader::about("read", &form, &error)),
        }
    }
    Ok(None)
}
