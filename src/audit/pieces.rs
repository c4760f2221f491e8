//! A segment, read piece by piece: its whole records, and what is none. A segment may be larger than memory.

use super::segment;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// No line is longer: the longest are changes of keys with very long allowlists. More bytes without a newline are damage,
/// and are not held at once.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What stands in a segment, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A whole record.
    Record {
        seq: u64,
        /// With its newline.
        line: &'a str,
    },
    /// Bytes of the file that are no whole record.
    Damage { start: u64, bytes: u64 },
    /// Bytes at the file's end without a newline: torn, or still being written.
    Torn { start: u64, bytes: u64 },
}

/// Reads one segment.
#[derive(Debug)]
pub struct Pieces {
    reader: BufReader<File>,
    line: Vec<u8>,
    /// The byte after the last piece.
    at: u64,
}

// === impl Pieces ===

impl Pieces {
    /// Reads from byte `from`, where a piece begins.
    ///
    /// # Errors
    /// As of opening the file.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        Ok(Self { reader: BufReader::new(file), line: Vec::new(), at: from })
    }

    /// The byte after the last piece that was given.
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// The next piece; none at the end, where it can be called again for what has been written since.
    ///
    /// # Errors
    /// As of reading the file.
    pub fn read(&mut self) -> io::Result<Option<Piece<'_>>> {
        self.line.clear();
        let start = self.at;
        let bytes = self.reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.line)? as u64;
        if bytes == 0 {
            return Ok(None);
        }
        self.at += bytes;
        Ok(Some(match record(&self.line) {
            Some((seq, line)) => Piece::Record { seq, line },
            None if self.line.ends_with(b"\n") || bytes == LINE_BYTES_MAX => Piece::Damage { start, bytes },
            None => Piece::Torn { start, bytes },
        }))
    }
}

/// A line that is a whole record, with its `seq`.
fn record(line: &[u8]) -> Option<(u64, &str)> {
    let body = line.strip_suffix(b"\n").filter(|body| segment::is_whole(body))?;
    Some((segment::seq_of(body)?, std::str::from_utf8(line).ok()?))
}
