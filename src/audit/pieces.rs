//! A segment, read piece by piece: its whole records, and what is none. A segment may be larger than memory.

use super::block::{Block, Blocks};
use super::{block, segment};
use crate::clock::Timestamp;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::UNIX_EPOCH;

/// No line is longer: the longest are changes of keys with very long allowlists. More bytes without a newline are damage,
/// and are not held at once.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// A plain segment is read in pieces of this size.
const READ_BYTES: usize = 64 * 1024;

/// What counts as near a plain segment's end.
const TAIL_BYTES: u64 = 256 * 1024;

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

/// Reads one segment, in either form.
#[derive(Debug)]
pub struct Pieces {
    source: Source,
    /// The byte after the last piece.
    at: u64,
}

#[derive(Debug)]
enum Source {
    Plain(Plain),
    Compressed(Box<Compressed>),
}

#[derive(Debug)]
struct Plain {
    file: File,
    /// What has been read of the file, and how much of it has been given.
    window: Vec<u8>,
    given: usize,
}

#[derive(Debug)]
struct Compressed {
    blocks: Blocks,
    /// The block whose lines are being given, and how many bytes of them have been.
    block: Block,
    given: usize,
}

// === impl Pieces ===

impl Pieces {
    /// Reads from byte `from`, where a piece begins; in a compressed segment, a block.
    ///
    /// # Errors
    /// As of opening the file.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let source = if segment::is_compressed(path) {
            let block = Block { start: from, bytes: 0, is_whole: true };
            Source::Compressed(Box::new(Compressed { blocks: Blocks::open(path, from)?, block, given: 0 }))
        } else {
            let mut file = File::open(path)?;
            file.seek(SeekFrom::Start(from))?;
            Source::Plain(Plain { file, window: Vec::with_capacity(READ_BYTES), given: 0 })
        };
        Ok(Self { source, at: from })
    }

    /// Reads the last pieces: the last block, or what is whole in about the last quarter of a megabyte, behind a piece of damage
    /// that is none.
    ///
    /// # Errors
    /// As of opening the file.
    pub fn open_near_end(path: &Path) -> io::Result<Self> {
        let from = match segment::is_compressed(path) {
            true => block::last_start(path)?,
            false => std::fs::metadata(path)?.len().saturating_sub(TAIL_BYTES),
        };
        Self::open(path, from)
    }

    /// The byte after the last piece that was given; in a compressed segment, where the block begins that is not given whole.
    pub const fn position(&self) -> u64 {
        self.at
    }

    /// The next piece; none at the end. After [`Piece::Torn`] the segment is to be opened again for what is written on.
    ///
    /// # Errors
    /// As of reading the file.
    pub fn read(&mut self) -> io::Result<Option<Piece<'_>>> {
        match &mut self.source {
            Source::Plain(plain) => plain.read(&mut self.at),
            Source::Compressed(compressed) => compressed.read(&mut self.at),
        }
    }
}

// === impl Plain ===

impl Plain {
    fn read(&mut self, at: &mut u64) -> io::Result<Option<Piece<'_>>> {
        let end = self.line_end()?;
        let line = self.window.get(self.given..end).unwrap_or_default();
        self.given = end;
        let (start, bytes) = (*at, line.len() as u64);
        *at += bytes;
        Ok(match record(line) {
            _ if bytes == 0 => None,
            Some((seq, line)) => Some(Piece::Record { seq, line }),
            None if line.ends_with(b"\n") || line.len() == LINE_BYTES_MAX => Some(Piece::Damage { start, bytes }),
            None => Some(Piece::Torn { start, bytes }),
        })
    }

    /// Where the next line ends in the window: behind its newline, at the file's end, or where it is too long for one.
    fn line_end(&mut self) -> io::Result<usize> {
        let mut searched = 0;
        loop {
            let rest = self.window.get(self.given..).unwrap_or_default();
            if let Some(newline) = memchr::memchr(b'\n', rest.get(searched..).unwrap_or_default()) {
                return Ok(self.given + (searched + newline + 1).min(LINE_BYTES_MAX));
            }
            searched = rest.len();
            if searched >= LINE_BYTES_MAX {
                return Ok(self.given + LINE_BYTES_MAX);
            }
            self.window.drain(..self.given);
            self.given = 0;
            // The window grows for a line that is longer than it, and for no other.
            let room = READ_BYTES - searched % READ_BYTES;
            if self.file.by_ref().take(room as u64).read_to_end(&mut self.window)? == 0 {
                return Ok(self.window.len());
            }
        }
    }
}

// === impl Compressed ===

impl Compressed {
    fn read(&mut self, at: &mut u64) -> io::Result<Option<Piece<'_>>> {
        if self.given == self.blocks.lines().len() {
            let Some(block) = self.blocks.read()? else { return Ok(None) };
            (self.block, self.given) = (block, 0);
        }
        let Block { start, bytes, .. } = self.block;
        let lines = self.blocks.lines();
        let rest = lines.get(self.given..).unwrap_or_default();
        let line = rest.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
        self.given += line.len();
        *at = if self.given == lines.len() { start + bytes } else { start };
        Ok(Some(record(line).map_or(Piece::Damage { start, bytes }, |(seq, line)| Piece::Record { seq, line })))
    }
}

/// A line that is a whole record, with its `seq`.
fn record(line: &[u8]) -> Option<(u64, &str)> {
    let body = line.strip_suffix(b"\n").filter(|body| segment::is_whole(body))?;
    Some((segment::seq_of(body)?, std::str::from_utf8(line).ok()?))
}

/// The time of a segment's newest record; of a segment without one, of its last change.
///
/// # Errors
/// As of reading the file.
pub fn newest_time(path: &Path) -> io::Result<Timestamp> {
    for mut pieces in [Pieces::open_near_end(path)?, Pieces::open(path, 0)?] {
        let mut newest = None;
        while let Some(piece) = pieces.read()? {
            if let Piece::Record { line, .. } = piece {
                newest = newest.max(segment::time_of(line.as_bytes()));
            }
        }
        if let Some(newest) = newest {
            return Ok(newest);
        }
    }
    let changed = std::fs::metadata(path)?.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(Timestamp::from_micros(0).plus(changed))
}
