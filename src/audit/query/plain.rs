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
const PROBE_BYTES: u64 = 4 * 1024;

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
        if upto == u64::MAX {
            return Ok(self.length);
        }
        // Lines that begin before `low` are not newer, those that begin at `high` and behind it are, and `end` begins one.
        let (mut low, mut high, mut end) = (0, self.length, self.length);
        // Numbers grow almost evenly with bytes: a guess by proportion is near. Every other step halves, in case it is not.
        let (mut low_seq, mut end_seq, mut halve) = (self.first, None::<u64>, true);
        while high - low > 2 * PROBE_BYTES {
            let room = high - low;
            let known = end_seq
                .filter(|_| !halve)
                .map(|end_seq| share(upto.saturating_sub(low_seq), end_seq.saturating_sub(low_seq), end - low));
            let middle = low + known.unwrap_or(room / 2).clamp(PROBE_BYTES / 2, room - PROBE_BYTES / 2);
            halve = !halve || end_seq.is_none();
            match self.probe(middle, high)? {
                Some(found) if found.seq <= upto => (low, low_seq) = (found.end, found.seq),
                Some(found) => (high, end, end_seq) = (found.start, found.start, Some(found.seq)),
                // No record begins there, though one may end.
                None => high = middle,
            }
        }
        Ok(end)
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
