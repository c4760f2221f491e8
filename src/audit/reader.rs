//! Reads a journal back: every whole record in order, and what is damaged or missing.

use super::pieces::{Piece, Pieces};
use super::segment;
use rustix::fs::{FlockOperation, flock};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A slot's file that its process holds locked.
pub const LOCK_FILE: &str = "lock";
/// A slot's file with the last synced `seq`: 8 bytes, little endian.
pub const SYNCED_FILE: &str = "synced";

/// Between the look at a directory and the opening of a segment it may be replaced by its compressed form, and then be
/// deleted.
const ATTEMPTS: u32 = 3;

/// One record as it stands in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub seq: u64,
    /// The JSON object, without its newline.
    pub text: &'a str,
}

/// What a journal should hold and does not. Its text is a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Bytes in a segment that are no whole record; in a compressed one, no whole block.
    Damage {
        segment: PathBuf,
        /// From this byte on.
        start: u64,
        bytes: u64,
        /// The whole records around it, where there are any and they had been read when the fault was taken.
        after: Option<u64>,
        before: Option<u64>,
    },
    /// Numbers without a record, though there are earlier and later ones. What lacks at the journal's beginning is no fault:
    /// old segments may be moved away.
    Missing { journal: PathBuf, first: u64, last: u64 },
}

/// The journals of an audit directory: its slots, by number.
///
/// # Errors
/// As of reading the directory.
pub fn journals(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut slots = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(number) = number.filter(|_| entry.path().is_dir()) {
            slots.push((number, entry.path()));
        }
    }
    slots.sort();
    Ok(slots.into_iter().map(|(_, path)| path).collect())
}

/// Up to which `seq` a slot's records may be shown to somebody who cannot take them back: while a process holds the slot, up
/// to the last one that is synced; none means all that are there, as nobody writes.
///
/// # Errors
/// As of reading the slot's files.
pub fn synced_through(slot: &Path) -> io::Result<Option<u64>> {
    // Read first: a writer that takes the slot meanwhile has synced no less.
    let synced = synced(slot)?;
    Ok(synced.filter(|_| is_held(slot).unwrap_or(true)))
}

/// The last `seq` that the slot's writer says it has synced; none where none has said so.
///
/// # Errors
/// As of reading the file.
pub fn synced(slot: &Path) -> io::Result<Option<u64>> {
    match fs::read(slot.join(SYNCED_FILE)) {
        Ok(bytes) => Ok(<[u8; 8]>::try_from(bytes).ok().map(u64::from_le_bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a process holds the slot. Asks by taking its lock for a moment: whoever starts then must ask twice.
///
/// # Errors
/// As of opening and locking the file.
pub fn is_held(slot: &Path) -> io::Result<bool> {
    match File::open(slot.join(LOCK_FILE)) {
        Ok(lock) => Ok(!is_free(&lock, FlockOperation::NonBlockingLockShared)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Holds a slot that no process holds, as long as what is given back lives. Not for longer than a moment: whoever starts then
/// takes another one.
///
/// # Errors
/// As of opening and locking the file.
pub fn hold(slot: &Path) -> io::Result<Option<File>> {
    let lock = File::options().create(true).truncate(false).write(true).open(slot.join(LOCK_FILE))?;
    Ok(is_free(&lock, FlockOperation::NonBlockingLockExclusive)?.then_some(lock))
}

/// Locks the file, if nobody else has.
fn is_free(lock: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock(lock, operation) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Follows one journal: each call of [`Follow::read`] gives what has been written since the last.
#[derive(Debug)]
pub struct Follow {
    dir: PathBuf,
    at: Option<Place>,
    last_seq: Option<u64>,
    /// Found, and not yet taken.
    faults: Vec<Fault>,
}

/// How far a segment has been read.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The segment's first `seq`.
    first: u64,
    /// Of which of its forms `offset` is.
    is_compressed: bool,
    offset: u64,
}

// === impl Follow ===

impl Follow {
    /// From the journal's beginning.
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir, at: None, last_seq: None, faults: Vec::new() }
    }

    /// From the record after `seq` on. Older segments are not read.
    pub const fn after(dir: PathBuf, seq: u64) -> Self {
        Self { dir, at: None, last_seq: Some(seq), faults: Vec::new() }
    }

    /// The faults found since the last call.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Gives the whole records written since the last call to `take`, each `seq` once and in order. Reads line by line: a
    /// journal may be larger than memory.
    ///
    /// # Errors
    /// As of reading the files, with the one that cannot be read.
    pub fn read(&mut self, mut take: impl FnMut(Line<'_>)) -> io::Result<()> {
        self.read_through(u64::MAX, |line| {
            take(line);
            ControlFlow::Continue(())
        })
    }

    /// The same up to the record `through`, or the one with which `take` breaks off; the next call goes on after it. With
    /// [`synced_through`]: what no loss of power takes back.
    ///
    /// # Errors
    /// As of reading the files, with the one that cannot be read.
    pub fn read_through(&mut self, through: u64, mut take: impl FnMut(Line<'_>) -> ControlFlow<()>) -> io::Result<()> {
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.read_listed(through, &mut take) {
                // Since the look at the directory the segment was compressed, or its time was over.
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS => {}
                result => return result,
            }
        }
    }

    fn read_listed(&mut self, through: u64, take: &mut impl FnMut(Line<'_>) -> ControlFlow<()>) -> io::Result<()> {
        let segments = segment::list(&self.dir).map_err(|error| about("read", &self.dir, &error))?;
        for (index, (first, path)) in segments.iter().enumerate() {
            // Records at and after the next segment's first number were written again there.
            let next = segments.get(index + 1).map(|(next, _)| *next);
            let read_before = match self.at {
                Some(place) => *first < place.first,
                None => next.is_some_and(|next| self.last_seq.is_some_and(|last| next <= last.saturating_add(1))),
            };
            if read_before {
                continue;
            }
            let whole = self.read_segment(*first, path, next, through, take);
            if !whole.map_err(|error| about("read", path, &error))? {
                break;
            }
        }
        Ok(())
    }

    /// Reads a segment from where it was left; false when there may be more in it, after `through` or what `take` broke off with.
    fn read_segment(
        &mut self,
        first: u64,
        path: &Path,
        next: Option<u64>,
        through: u64,
        take: &mut impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> io::Result<bool> {
        let is_compressed = segment::is_compressed(path);
        // In its other form a segment is read anew, and what was given of it is passed over.
        let left = self.at.filter(|place| place.first == first && place.is_compressed == is_compressed);
        let mut pieces = Pieces::open(path, left.map_or(0, |place| place.offset))?;
        self.at = Some(Place { first, is_compressed, offset: pieces.position() });
        while let Some(piece) = pieces.read()? {
            let mut flow = ControlFlow::Continue(());
            match piece {
                Piece::Record { seq, .. } if seq > through => return Ok(false),
                Piece::Record { seq, line } => {
                    if self.last_seq.is_none_or(|last| seq > last) && next.is_none_or(|next| seq < next) {
                        self.advance(seq);
                        flow = take(Line { seq, text: line.trim_end_matches('\n') });
                    }
                }
                Piece::Damage { start, bytes } => self.add_damage(path, start, bytes),
                // Nothing more will be written to it.
                Piece::Torn { start, bytes } if next.is_some() => self.add_damage(path, start, bytes),
                Piece::Torn { .. } => return Ok(true),
            }
            self.at = Some(Place { first, is_compressed, offset: pieces.position() });
            if flow.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The next whole record is `seq`: it ends what was damaged before it, and what lacks shows.
    fn advance(&mut self, seq: u64) {
        if let Some(Fault::Damage { before, .. }) = self.faults.last_mut() {
            before.get_or_insert(seq);
        }
        if let Some(last) = self.last_seq.replace(seq).filter(|last| last.saturating_add(1) < seq) {
            self.faults.push(Fault::Missing { journal: self.dir.clone(), first: last + 1, last: seq - 1 });
        }
    }

    fn add_damage(&mut self, path: &Path, at: u64, length: u64) {
        match self.faults.last_mut() {
            Some(Fault::Damage { segment, start, bytes, before: None, .. })
                if segment == path && *start + *bytes == at =>
            {
                *bytes += length;
            }
            Some(Fault::Damage { .. } | Fault::Missing { .. }) | None => {
                let segment = path.to_owned();
                self.faults.push(Fault::Damage {
                    segment,
                    start: at,
                    bytes: length,
                    after: self.last_seq,
                    before: None,
                });
            }
        }
    }
}

/// The same error, for people.
pub(super) fn about(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot {what} {}: {error}", path.display()))
}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damage { segment, start, bytes, after, before } => {
                write!(f, "{} is damaged: {bytes} bytes from byte {start} are no record", segment.display())?;
                match (after, before) {
                    (Some(after), Some(before)) => write!(f, ", between records {after} and {before}"),
                    (Some(after), None) => write!(f, ", after record {after}"),
                    (None, Some(before)) => write!(f, ", before record {before}"),
                    (None, None) => Ok(()),
                }
            }
            Self::Missing { journal, first, last } if first == last => {
                write!(f, "the journal in {} lacks record {first}", journal.display())
            }
            Self::Missing { journal, first, last } => {
                write!(f, "the journal in {} lacks records {first} to {last}", journal.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j6_a_held_slot_is_read_as_far_as_it_is_synced_and_one_that_nobody_holds_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(synced_through(dir.path()).unwrap(), None);
        let lock = File::create(dir.path().join(LOCK_FILE)).unwrap();
        fs::write(dir.path().join(SYNCED_FILE), 7_u64.to_le_bytes()).unwrap();
        assert_eq!(synced_through(dir.path()).unwrap(), None);
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(synced_through(dir.path()).unwrap(), Some(7));
        drop(lock);
        assert_eq!(synced_through(dir.path()).unwrap(), None);
    }

    #[test]
    fn a_reader_stops_where_it_is_told_and_goes_on_there() {
        let dir = tempfile::tempdir().unwrap();
        for first in [1, 4] {
            let mut lines = Vec::new();
            (first..first + 3)
                .for_each(|seq| segment::write_line(&mut lines, segment::Kind::Gap, "gw/0", seq, "c", b""));
            fs::write(dir.path().join(segment::file_name(first)), lines).unwrap();
        }
        let read = |follow: &mut Follow, through| {
            let mut seqs = Vec::new();
            follow
                .read_through(through, |line| {
                    seqs.push(line.seq);
                    ControlFlow::Continue(())
                })
                .unwrap();
            assert_eq!(follow.take_faults(), []);
            seqs
        };
        let mut follow = Follow::new(dir.path().to_owned());
        let turns = [0, 2, 2, 3, 5, 9].map(|through| read(&mut follow, through));
        assert_eq!(turns, [vec![], vec![1, 2], vec![], vec![3], vec![4, 5], vec![6]]);
        for after in 0..=6 {
            let mut follow = Follow::after(dir.path().to_owned(), after);
            assert_eq!(read(&mut follow, u64::MAX), (after + 1..=6).collect::<Vec<_>>());
        }
    }
}
