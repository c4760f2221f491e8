//! A segment as it was written: lines in one file, found by search.

use super::slot::{Piece, Window};
use crate::audit::segment;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// No line is longer; more bytes without a newline are damage.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How much is read to see which record is at a place: a record or two.
const PROBE_BYTES: u64 = 2 * 1024;
/// A place is known well enough when no more bytes are in question.
const NEAR_BYTES: u64 = 4 * 1024;
/// So many guesses in a row, and then one half of what is left is ruled out.
const GUESSES: u32 = 3;

/// One open segment.
#[derive(Debug)]
pub struct Plain {
    file: File,
    /// The bytes that were there when it was opened.
    length: u64,
    first: u64,
    /// Where the last window began, and the record that it began with: the next one below it is not searched for.
    edge: Option<(u64, u64)>,
    pub bytes_read: u64,
}

// === impl Plain ===

impl Plain {
    pub fn open(path: &Path, first: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, first, edge: None, bytes_read: 0 })
    }

    /// Lets the first window, for this `upto`, end with the file.
    pub const fn begin_at_end(&mut self, upto: u64) {
        self.edge = Some((upto.saturating_add(1), self.length));
    }

    /// Puts a window into `window` that ends with the newest record of at most `upto`, about `want` bytes long. It may hold no
    /// record at all; the next call with the same `upto` then goes on below it.
    pub fn load(&mut self, upto: u64, want: u64, window: &mut Window) -> io::Result<()> {
        let known = self.edge.filter(|(low, _)| upto.checked_add(1) == Some(*low)).map(|(_, start)| start);
        let end = match known {
            Some(end) => end,
            None => self.end_of(upto)?,
        };
        let start = self.read_back(end, want, &mut window.bytes)?;
        window.split(start, end == self.length, upto);
        window.low = match (start, window.first()) {
            (0, _) => self.first,
            (_, Some(seq)) => seq,
            (_, None) => upto.saturating_add(1),
        };
        self.edge = Some((window.low, start));
        Ok(())
    }

    /// A place not far behind the last record of at most `upto`, where a line begins or the file ends.
    fn end_of(&mut self, upto: u64) -> io::Result<u64> {
        let mut search = Search::new(self.first, self.length);
        match self.edge {
            _ if upto == u64::MAX => return Ok(self.length),
            Some((seq, start)) if upto < seq => search.newer_at(seq, start),
            Some(_) | None => {}
        }
        // The line that ends at `low` may have begun before `high` and end behind it.
        while search.high.saturating_sub(search.low) > NEAR_BYTES {
            let place = search.guess(upto);
            match self.probe(place, search.high)? {
                Some(found) if found.seq <= upto => (search.low, search.low_seq) = (found.end, found.seq + 1),
                Some(found) => search.newer_at(found.seq, found.start),
                // No record begins there, though one may end.
                None => search.high = place,
            }
        }
        Ok(search.end)
    }

    /// The first whole record that begins behind `from` and before `high`.
    fn probe(&mut self, from: u64, high: u64) -> io::Result<Option<Found>> {
        let (mut bytes, mut at) = (Vec::new(), from);
        while at < high {
            self.read_at(at, PROBE_BYTES.min(self.length - at), &mut bytes)?;
            let mut begin = None;
            for newline in memchr::memchr_iter(b'\n', &bytes) {
                let line = begin.and_then(|begin: usize| Some((begin, bytes.get(begin..newline)?)));
                if let Some((begin, seq)) = line.and_then(|(begin, line)| Some((begin, whole(line)?))) {
                    let start = at + begin as u64;
                    return Ok((start < high).then_some(Found { seq, start, end: at + newline as u64 + 1 }));
                }
                begin = Some(newline + 1);
            }
            // The line that is cut off here is looked at again; one that fills everything is passed over.
            at += begin.filter(|begin| *begin > 1).map_or(bytes.len(), |begin| begin - 1) as u64;
        }
        Ok(None)
    }

    /// Reads what ends at `end`, from the beginning of a line on, about `want` bytes; gives where that is.
    fn read_back(&mut self, end: u64, mut want: u64, bytes: &mut Vec<u8>) -> io::Result<u64> {
        loop {
            let start = end.saturating_sub(want);
            self.read_at(start, end - start, bytes)?;
            if start == 0 {
                return Ok(0);
            }
            let lines = memchr::memchr(b'\n', bytes).map(|newline| newline + 1).filter(|begin| *begin < bytes.len());
            if let Some(begin) = lines {
                bytes.drain(..begin);
                return Ok(start + begin as u64);
            }
            if want >= LINE_BYTES_MAX {
                return Ok(start);
            }
            want = (want * 4).min(LINE_BYTES_MAX);
        }
    }

    fn read_at(&mut self, start: u64, length: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
        bytes.clear();
        bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
        self.bytes_read += length;
        self.file.read_exact_at(bytes, start)
    }
}

/// A record that a probe hit.
struct Found {
    seq: u64,
    start: u64,
    /// Behind its newline.
    end: u64,
}

/// Narrows down where the records beyond a number begin.
struct Search {
    /// Lines that begin before this byte are not beyond it; the one that begins here is at least this.
    low: u64,
    low_seq: u64,
    /// Lines that begin here or behind are beyond it.
    high: u64,
    /// Where such a line begins, and its number, or the file's end.
    end: u64,
    end_seq: Option<u64>,
    guesses: u32,
}

// === impl Search ===

impl Search {
    const fn new(first: u64, length: u64) -> Self {
        Self { low: 0, low_seq: first, high: length, end: length, end_seq: None, guesses: 0 }
    }

    const fn newer_at(&mut self, seq: u64, start: u64) {
        (self.high, self.end, self.end_seq) = (start, start, Some(seq));
    }

    /// The place to look at next. Numbers grow almost evenly with bytes, so a guess by proportion is near; guesses take turns
    /// to fall short of the place and to go beyond it, so that soon both sides are near.
    fn guess(&mut self, upto: u64) -> u64 {
        let room = self.high - self.low;
        self.guesses += 1;
        let known = self.end_seq.filter(|_| !self.guesses.is_multiple_of(GUESSES + 1));
        let offset = known.map_or(room / 2, |end_seq| {
            let (records, bytes) = (end_seq.saturating_sub(self.low_seq), self.end - self.low);
            let (below, above) = (upto.saturating_sub(self.low_seq) + 1, end_seq.saturating_sub(upto + 1));
            // From the nearer side: lines are of about one length in one neighbourhood.
            let place = if below < above {
                share(below, records, bytes)
            } else {
                bytes.saturating_sub(share(above, records, bytes))
            };
            if self.guesses.is_multiple_of(2) { place + PROBE_BYTES / 2 } else { place.saturating_sub(PROBE_BYTES) }
        });
        self.low + offset.clamp(PROBE_BYTES / 4, room - PROBE_BYTES / 4)
    }
}

/// `part` of `whole`, of `length`.
fn share(part: u64, whole: u64, length: u64) -> u64 {
    u64::try_from(u128::from(part) * u128::from(length) / u128::from(whole.max(1))).unwrap_or(length)
}

/// The `seq` of a whole record, without its newline.
pub fn whole(line: &[u8]) -> Option<u64> {
    segment::seq_of(line).filter(|_| segment::is_whole(line))
}

// === impl Window ===

impl Window {
    /// Finds the lines in the bytes, which begin at byte `start` of the file, up to the record `upto`.
    fn split(&mut self, start: u64, is_end: bool, upto: u64) {
        self.pieces.clear();
        let mut at = 0;
        for newline in memchr::memchr_iter(b'\n', &self.bytes) {
            match self.bytes.get(at..newline).and_then(whole) {
                Some(seq) if seq <= upto => self.pieces.push(Piece::Record { seq, text: at..newline }),
                Some(_) => {}
                None => self.pieces.push(Piece::Damage { start: start + at as u64, bytes: (newline + 1 - at) as u64 }),
            }
            at = newline + 1;
        }
        if at < self.bytes.len() {
            let (start, bytes) = (start + at as u64, (self.bytes.len() - at) as u64);
            self.pieces.push(if is_end { Piece::Torn { start, bytes } } else { Piece::Damage { start, bytes } });
        }
    }
}
