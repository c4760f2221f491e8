//! The records of one slot, from the newest to the oldest, without an index: windows into its segments.

use super::packed::Packed;
use super::plain::Plain;
use crate::audit::reader::Fault;
use crate::audit::segment;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How much is read at once from record to record, and for a single record.
const SCAN_BYTES: u64 = 256 * 1024;
const LOOKUP_BYTES: u64 = 8 * 1024;

/// How the records are gone through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One after the other: what is damaged or missing between them is told.
    Scan,
    /// One here, one there.
    Lookup,
}

/// A slot's segments, and the window that was read last.
#[derive(Debug)]
pub struct Slot {
    dir: PathBuf,
    /// Oldest first, each with its first number.
    segments: Vec<(u64, PathBuf)>,
    open: Option<(u64, Segment)>,
    window: Window,
    /// Everything from the window's `low` up to this number has been read into it.
    high: u64,
    faults: Faults,
    bytes_read: u64,
}

/// Part of a segment.
#[derive(Debug, Default)]
pub struct Window {
    pub bytes: Vec<u8>,
    /// In ascending order.
    pub pieces: Vec<Piece>,
    /// The records among them.
    records: Vec<(u64, Range<usize>)>,
    /// No record from this number up to what was asked for is missing here.
    pub low: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A whole record, at these bytes of the window.
    Record { seq: u64, text: Range<usize> },
    /// Bytes of the file that are none.
    Damage { start: u64, bytes: u64 },
    /// Bytes at the end of the file without a newline: still being written, unless there is a newer segment.
    Torn { start: u64, bytes: u64 },
}

#[derive(Debug)]
enum Segment {
    Plain(Plain),
    Packed(Packed),
}

/// What is found on the way down.
#[derive(Debug, Default)]
struct Faults {
    dir: PathBuf,
    found: Vec<Fault>,
    /// The record above.
    above: Option<u64>,
    /// The `low` of the last window.
    noted: Option<u64>,
    /// Damage below it, in this file, from this byte on.
    damage: Option<(PathBuf, u64, u64)>,
}

// === impl Slot ===

impl Slot {
    /// # Errors
    /// As of reading the directory.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            segments: segment::list(dir)?,
            open: None,
            window: Window { low: u64::MAX, ..Window::default() },
            high: 0,
            faults: Faults { dir: dir.to_owned(), ..Faults::default() },
            bytes_read: 0,
        })
    }

    /// The first number of the oldest segment.
    pub fn oldest(&self) -> Option<u64> {
        self.segments.first().map(|(first, _)| *first)
    }

    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The slot's last record.
    ///
    /// # Errors
    /// As of reading the segments, with the one that cannot be read.
    pub fn last(&mut self) -> io::Result<Option<u64>> {
        let last = self.newest(u64::MAX, Pace::Lookup)?.map(|(seq, _)| seq);
        self.forget();
        Ok(last)
    }

    /// Forgets the window: a scan is to see it all again.
    pub const fn forget(&mut self) {
        self.high = 0;
    }

    /// What is below is left out.
    pub fn end_scan(&mut self) {
        self.faults.end_damage(None);
    }

    /// The newest record of at most `upto`: its number, and where its text is in the window; `None` when there is none.
    ///
    /// # Errors
    /// As of reading the segments, with the one that cannot be read.
    pub fn newest(&mut self, mut upto: u64, pace: Pace) -> io::Result<Option<(u64, Range<usize>)>> {
        loop {
            let is_read = (self.window.low..=self.high).contains(&upto);
            if !is_read && !self.load(upto, pace)? {
                return Ok(None);
            }
            if let Some(found) = self.window.newest(upto) {
                return Ok(Some(found));
            }
            // A window that found nothing at all does not reach `upto`: the next one goes on below it.
            match self.window.low.checked_sub(1) {
                Some(below) => upto = upto.min(below),
                None => return Ok(None),
            }
        }
    }

    /// The line of a record in the window.
    pub fn line(&self, range: &Range<usize>) -> &[u8] {
        self.window.bytes.get(range.clone()).unwrap_or_default()
    }

    /// A record that should be there is not.
    pub fn add_missing(&mut self, seq: u64) {
        self.faults.add_missing(seq, seq);
    }

    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults.found)
    }

    /// Reads the window below `upto`; false when there is nothing.
    fn load(&mut self, upto: u64, pace: Pace) -> io::Result<bool> {
        let Some(index) = self.open_segment(upto, pace)? else { return Ok(false) };
        let (Some((_, path)), Some((_, segment))) = (self.segments.get(index), &mut self.open) else {
            return Ok(false);
        };
        let before = segment.bytes_read();
        let want = match pace {
            Pace::Scan => SCAN_BYTES,
            Pace::Lookup => LOOKUP_BYTES,
        };
        let loaded = segment.load(upto, want, &mut self.window);
        self.bytes_read += segment.bytes_read() - before;
        loaded.map_err(|error| unreadable(path, &error))?;
        self.window.list();
        self.high = upto;
        if pace == Pace::Scan {
            self.faults.go_on(upto);
            self.faults.note(path, &self.window.pieces, index + 1 < self.segments.len());
            self.faults.noted = Some(self.window.low);
        }
        Ok(true)
    }

    /// Opens the segment that holds `upto`, or what is below it; gives its place. One that was compressed or removed meanwhile
    /// is looked for again.
    fn open_segment(&mut self, upto: u64, pace: Pace) -> io::Result<Option<usize>> {
        loop {
            let index = self.segments.partition_point(|(first, _)| *first <= upto).checked_sub(1);
            let Some((index, (first, path))) = index.and_then(|index| Some((index, self.segments.get(index)?))) else {
                return Ok(None);
            };
            if self.open.as_ref().is_some_and(|(open, _)| open == first) {
                return Ok(Some(index));
            }
            // What begins in a newer segment was written again there; a scan sees what is left of it here.
            let next = self.segments.get(index + 1).map(|(next, _)| *next);
            let is_from_end = pace == Pace::Scan && next == upto.checked_add(1);
            match Segment::open(path, *first, upto, is_from_end) {
                Ok(segment) => {
                    self.bytes_read += segment.bytes_read();
                    self.open = Some((*first, segment));
                    return Ok(Some(index));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.segments = segment::list(&self.dir)?,
                Err(error) => return Err(unreadable(path, &error)),
            }
        }
    }
}

/// The same error, for people.
fn unreadable(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
}

// === impl Window ===

impl Window {
    /// Its oldest record.
    pub fn first(&self) -> Option<u64> {
        self.pieces.iter().find_map(Piece::seq)
    }

    fn list(&mut self) {
        self.records.clear();
        self.records.extend(self.pieces.iter().filter_map(|piece| match piece {
            Piece::Record { seq, text } => Some((*seq, text.clone())),
            Piece::Damage { .. } | Piece::Torn { .. } => None,
        }));
    }

    fn newest(&self, upto: u64) -> Option<(u64, Range<usize>)> {
        let place = self.records.partition_point(|(seq, _)| *seq <= upto).checked_sub(1)?;
        self.records.get(place).cloned()
    }
}

// === impl Piece ===

impl Piece {
    const fn seq(&self) -> Option<u64> {
        match self {
            Self::Record { seq, .. } => Some(*seq),
            Self::Damage { .. } | Self::Torn { .. } => None,
        }
    }
}

// === impl Segment ===

impl Segment {
    fn open(path: &Path, first: u64, upto: u64, is_from_end: bool) -> io::Result<Self> {
        if segment::is_compressed(path) {
            return Packed::open(path, first).map(Self::Packed);
        }
        let mut plain = Plain::open(path, first)?;
        if is_from_end {
            plain.begin_at_end(upto);
        }
        Ok(Self::Plain(plain))
    }

    const fn bytes_read(&self) -> u64 {
        match self {
            Self::Plain(plain) => plain.bytes_read,
            Self::Packed(packed) => packed.bytes_read,
        }
    }

    fn load(&mut self, upto: u64, want: u64, window: &mut Window) -> io::Result<()> {
        match self {
            Self::Plain(plain) => plain.load(upto, want, window),
            Self::Packed(packed) => packed.load(upto, window),
        }
    }
}

// === impl Faults ===

impl Faults {
    /// The next window is below `upto`. If it does not follow the last one, what should stand right above it is not missing.
    fn go_on(&mut self, upto: u64) {
        if self.noted != upto.checked_add(1) {
            self.end_damage(None);
            self.above = upto.checked_add(1);
        }
    }

    /// Goes down through the pieces of a file.
    fn note(&mut self, path: &Path, pieces: &[Piece], has_newer: bool) {
        for piece in pieces.iter().rev() {
            match piece {
                Piece::Record { seq, .. } => self.pass(*seq),
                Piece::Damage { start, bytes } => self.add_damage(path, *start, *bytes),
                Piece::Torn { start, bytes } if has_newer => self.add_damage(path, *start, *bytes),
                Piece::Torn { .. } => {}
            }
        }
    }

    fn pass(&mut self, seq: u64) {
        self.end_damage(Some(seq));
        if let Some(above) = self.above.replace(seq).filter(|above| seq + 1 < *above) {
            self.add_missing(seq + 1, above - 1);
        }
    }

    fn add_damage(&mut self, path: &Path, start: u64, bytes: u64) {
        match &mut self.damage {
            Some((segment, upper, length)) if segment == path && start + bytes == *upper => {
                (*upper, *length) = (start, *length + bytes);
            }
            Some(_) | None => {
                self.end_damage(None);
                self.damage = Some((path.to_owned(), start, bytes));
            }
        }
    }

    fn end_damage(&mut self, after: Option<u64>) {
        if let Some((segment, start, bytes)) = self.damage.take() {
            self.found.push(Fault::Damage { segment, start, bytes, after, before: self.above });
        }
    }

    fn add_missing(&mut self, first: u64, last: u64) {
        self.found.push(Fault::Missing { journal: self.dir.clone(), first, last });
    }
}
