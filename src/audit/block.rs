//! Compressed segments: blocks of whole lines, each a zstd frame of its own, behind a skippable frame that says what it is.
//!
//! So `zstdcat` reads the file, and a damaged block takes no other with it: each carries its own length, the first `seq` in it
//! and a checksum over all of it (RFC 8878, section 3.1.2). Segments of earlier versions are gzip members instead, which carry
//! the same in a subfield `KG` of their extra fields (RFC 1952, section 2.3.1.1): they are read, and not written any more.

use super::pieces::{Piece, Pieces};
use super::segment;
use flate2::{Decompress, FlushDecompress, Status};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A block's lines are together no longer.
pub const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// What does not shrink may grow: a fast compressor takes nine bits for some bytes.
const PACKED_BYTES_MAX: usize = BLOCK_BYTES_MAX / 8 * 9 + 1024;
const MARK_BYTES: usize = 16;
/// How a block begins. The length (u32), the first `seq` (u64) and the checksum (u32) follow, little endian.
///
/// A skippable frame of 24 bytes, of ours.
const ZSTD_MARK: [u8; MARK_BYTES] = *b"\x50\x2a\x4d\x18\x18\0\0\0kgblock\0";
/// Magic, deflate, FEXTRA; no time, no flags, unknown system; 20 bytes of extra field; subfield KG of 16 bytes.
const GZIP_MARK: [u8; MARK_BYTES] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 20, 0, b'K', b'G', 16, 0];
const LENGTH_AT: usize = MARK_BYTES;
const FIRST_AT: usize = LENGTH_AT + 4;
const CHECKSUM_AT: usize = FIRST_AT + 8;
pub const HEADER_BYTES: usize = CHECKSUM_AT + 4;
/// At the end of a gzip member: CRC-32 and length of the lines.
const TRAILER_BYTES: usize = 8;
/// Of zstd. Records repeat each other so much that more effort costs more than it saves.
const LEVEL: i32 = 1;
/// How many bytes one step of compressing takes in: a fraction of a millisecond of a core, on which a request may wait.
pub const STEP_BYTES: u64 = 256 * 1024;
/// So much is written and synced at once: more would hold the journal's own syncs up.
const WRITE_BYTES: usize = 256 * 1024;

/// A piece of a compressed segment: these bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    pub start: u64,
    pub bytes: u64,
    /// Whether it is a whole block; its lines are [`Blocks::lines`]. Otherwise these bytes are damaged.
    pub is_whole: bool,
}

/// Reads a compressed segment block by block; holds about two of them.
#[derive(Debug)]
pub struct Blocks {
    file: File,
    /// What has been read of the file, from byte `at` on.
    window: Vec<u8>,
    at: u64,
    at_end: bool,
    mark: [u8; MARK_BYTES],
    unpack: Unpack,
    lines: Vec<u8>,
}

/// Writes a segment's compressed form, step by step, and puts it into the segment's place.
#[derive(Debug)]
pub struct Compressing {
    path: PathBuf,
    part: PathBuf,
    from: Pieces,
    to: File,
    pack: Pack,
    /// The lines of the next block, and the first one's `seq`; 0 before there is any.
    lines: Vec<u8>,
    first: u64,
    /// Not written yet.
    blocks: Vec<u8>,
}

/// How far a step has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    More,
    /// The compressed segment is in place.
    Done,
    /// The segment has to stay as it is: it is damaged or empty, which is for a person to look at, or has a line longer than
    /// a block.
    Unfit,
}

/// The compressor. Its own type, as it prints nothing.
struct Pack {
    zstd: zstd::bulk::Compressor<'static>,
    frame: Vec<u8>,
}

/// What reads a segment, by its form.
enum Unpack {
    Zstd(zstd::bulk::Decompressor<'static>),
    Gzip(Decompress),
}

// === impl Blocks ===

impl Blocks {
    /// Reads from byte `from`, where a block begins.
    ///
    /// # Errors
    /// As of opening the file.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let (mark, unpack) = match segment::is_gzip(path) {
            true => (GZIP_MARK, Unpack::Gzip(Decompress::new(false))),
            false => (ZSTD_MARK, Unpack::Zstd(zstd::bulk::Decompressor::new()?)),
        };
        Ok(Self { file, window: Vec::new(), at: from, at_end: false, mark, unpack, lines: Vec::new() })
    }

    /// The next block; none at the end.
    ///
    /// # Errors
    /// As of reading the file.
    pub fn read(&mut self) -> io::Result<Option<Block>> {
        self.lines.clear();
        self.fill()?;
        let start = self.at;
        let is_whole = match block(&self.window, &self.mark) {
            _ if self.window.is_empty() => return Ok(None),
            Some(block) => {
                let (bytes, is_whole) = (block.len(), self.unpack.lines(block, &mut self.lines));
                self.pass(bytes);
                is_whole
            }
            None => {
                self.pass_damage()?;
                false
            }
        };
        if !is_whole {
            self.lines.clear();
        }
        Ok(Some(Block { start, bytes: self.at - start, is_whole }))
    }

    /// The lines of the block that was read last; none of a damaged one.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Passes over bytes up to the next whole block, or the end.
    fn pass_damage(&mut self) -> io::Result<()> {
        self.pass(1);
        loop {
            self.fill()?;
            match memchr::memmem::find(&self.window, &self.mark) {
                Some(0) if block(&self.window, &self.mark).is_some() => return Ok(()),
                Some(0) => self.pass(1),
                Some(hit) => self.pass(hit),
                None if self.at_end => {
                    self.pass(self.window.len());
                    return Ok(());
                }
                None => self.pass(self.window.len().saturating_sub(MARK_BYTES - 1)),
            }
        }
    }

    fn pass(&mut self, bytes: usize) {
        let bytes = bytes.min(self.window.len());
        self.window.drain(..bytes);
        self.at += bytes as u64;
    }

    /// Reads on until the window holds the longest block, or the rest of the file.
    fn fill(&mut self) -> io::Result<()> {
        if self.window.len() < PACKED_BYTES_MAX && !self.at_end {
            let wanted = 2 * PACKED_BYTES_MAX - self.window.len();
            let read = (&self.file).take(wanted as u64).read_to_end(&mut self.window)?;
            self.at_end = read < wanted;
        }
        Ok(())
    }
}

/// The length of the block that has this header, and the first `seq` in it, as the header says: whether it is whole, only
/// reading it tells. None when this is no header.
pub fn header(bytes: &[u8; HEADER_BYTES]) -> Option<(u64, u64)> {
    let length = u64::from(u32_at(bytes, LENGTH_AT)?);
    let has_mark = bytes.starts_with(&ZSTD_MARK) || bytes.starts_with(&GZIP_MARK);
    Some((length, u64_at(bytes, FIRST_AT)?)).filter(|_| has_mark && length > HEADER_BYTES as u64)
}

/// The block at the beginning of `bytes`, if there is a whole one of this form.
fn block<'a>(bytes: &'a [u8], mark: &[u8; MARK_BYTES]) -> Option<&'a [u8]> {
    let length = usize::try_from(u32_at(bytes, LENGTH_AT)?).ok()?;
    let is_possible = bytes.starts_with(mark) && (HEADER_BYTES + 1..=PACKED_BYTES_MAX).contains(&length);
    let block = bytes.get(..length).filter(|_| is_possible)?;
    (checksum(block) == u32_at(block, CHECKSUM_AT)).then_some(block)
}

/// The checksum over a block, but for its own four bytes.
fn checksum(block: &[u8]) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(block.get(..CHECKSUM_AT)?);
    hasher.update(block.get(HEADER_BYTES..)?);
    Some(hasher.finalize())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// Where a compressed segment's last block begins, by the lengths that the blocks before it claim; earlier, where one of
/// them is damaged.
///
/// # Errors
/// As of reading the file.
pub fn last_start(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let (end, mut start, mut bytes) = (file.metadata()?.len(), 0, [0; HEADER_BYTES]);
    loop {
        let read = file.read_at(&mut bytes, start)?;
        match header(&bytes).filter(|(length, _)| read == HEADER_BYTES && start + length < end) {
            Some((length, _)) => start += length,
            None => return Ok(start),
        }
    }
}

// === impl Unpack ===

impl Unpack {
    /// Puts a block's lines into `lines`; false if they are not what the block says they are.
    fn lines(&mut self, block: &[u8], lines: &mut Vec<u8>) -> bool {
        let packed = block.get(HEADER_BYTES..).unwrap_or_default();
        lines.clear();
        lines.resize(BLOCK_BYTES_MAX, 0);
        let length = match self {
            Self::Zstd(zstd) => zstd.decompress_to_buffer(packed, lines.as_mut_slice()).ok(),
            Self::Gzip(inflate) => inflate_member(inflate, packed, lines),
        };
        lines.truncate(length.unwrap_or(0));
        lines.ends_with(b"\n") && segment::seq_of(lines) == u64_at(block, FIRST_AT)
    }
}

/// Gives the length of the lines, if they are those that were compressed.
fn inflate_member(inflate: &mut Decompress, packed: &[u8], lines: &mut [u8]) -> Option<usize> {
    let (deflated, trailer) = packed.split_at_checked(packed.len().checked_sub(TRAILER_BYTES)?)?;
    inflate.reset(false);
    let status = inflate.decompress(deflated, lines, FlushDecompress::Finish);
    let is_at_end = matches!(status, Ok(Status::StreamEnd)) && inflate.total_in() == deflated.len() as u64;
    let lines = lines.get(..usize::try_from(inflate.total_out()).ok()?)?;
    let is_length = u32_at(trailer, 4).map(u64::from) == Some(lines.len() as u64);
    (is_at_end && is_length && u32_at(trailer, 0) == Some(crc32fast::hash(lines))).then_some(lines.len())
}

impl std::fmt::Debug for Unpack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unpack")
    }
}

// === impl Pack ===

impl Pack {
    fn new() -> io::Result<Self> {
        Ok(Self { zstd: zstd::bulk::Compressor::new(LEVEL)?, frame: Vec::with_capacity(PACKED_BYTES_MAX) })
    }

    /// Appends these lines, at most [`BLOCK_BYTES_MAX`], as a block. `first` is the first one's `seq`.
    fn block(&mut self, lines: &[u8], first: u64, out: &mut Vec<u8>) -> io::Result<()> {
        self.zstd.compress_to_buffer(lines, &mut self.frame)?;
        let start = out.len();
        out.extend_from_slice(&ZSTD_MARK);
        out.extend_from_slice(&u32::try_from(HEADER_BYTES + self.frame.len()).map_err(io::Error::other)?.to_le_bytes());
        out.extend_from_slice(&first.to_le_bytes());
        out.extend_from_slice(&[0; HEADER_BYTES - CHECKSUM_AT]);
        out.extend_from_slice(&self.frame);
        let block = out.get_mut(start..).unwrap_or_default();
        if let Some(checksum) = checksum(block) {
            block.iter_mut().skip(CHECKSUM_AT).zip(checksum.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        }
        Ok(())
    }
}

impl std::fmt::Debug for Pack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pack")
    }
}

// === impl Compressing ===

impl Compressing {
    /// Begins with the segment at `path`, which nobody writes any more.
    ///
    /// # Errors
    /// As of opening it and creating the file beside it.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let part = PathBuf::from(format!("{}.part", segment::compressed(path).display()));
        Ok(Self {
            path: path.to_owned(),
            from: Pieces::open(path, 0)?,
            to: File::create(&part)?,
            part,
            pack: Pack::new()?,
            lines: Vec::with_capacity(BLOCK_BYTES_MAX),
            first: 0,
            blocks: Vec::new(),
        })
    }

    /// Compresses a quarter of a megabyte more. After the last one the compressed segment gets its name, the directory
    /// is synced, and the original goes.
    ///
    /// # Errors
    /// As of reading, writing and renaming; the original is still there.
    pub fn step(&mut self) -> io::Result<Step> {
        let until = self.from.position() + STEP_BYTES;
        let mut step = Step::More;
        while step == Step::More && self.from.position() < until {
            step = self.take()?;
        }
        match step {
            Step::More if self.blocks.len() < WRITE_BYTES => {}
            Step::More => self.write()?,
            Step::Done => {
                self.end_block()?;
                self.write()?;
                self.put_in_place()?;
            }
            Step::Unfit => fs::remove_file(&self.part)?,
        }
        Ok(step)
    }

    /// Takes the next line.
    fn take(&mut self) -> io::Result<Step> {
        let (seq, line) = match self.from.read()? {
            Some(Piece::Record { seq, line }) if line.len() <= BLOCK_BYTES_MAX => (seq, line),
            Some(Piece::Record { .. } | Piece::Damage { .. } | Piece::Torn { .. }) => return Ok(Step::Unfit),
            None if self.first == 0 => return Ok(Step::Unfit),
            None => return Ok(Step::Done),
        };
        if self.lines.len() + line.len() > BLOCK_BYTES_MAX {
            self.pack.block(&self.lines, self.first, &mut self.blocks)?;
            self.lines.clear();
        }
        if self.lines.is_empty() {
            self.first = seq;
        }
        self.lines.extend_from_slice(line.as_bytes());
        Ok(Step::More)
    }

    fn end_block(&mut self) -> io::Result<()> {
        if !self.lines.is_empty() {
            self.pack.block(&self.lines, self.first, &mut self.blocks)?;
            self.lines.clear();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.to.write_all(&self.blocks)?;
        self.blocks.clear();
        self.to.sync_data()
    }

    fn put_in_place(&self) -> io::Result<()> {
        fs::rename(&self.part, segment::compressed(&self.path))?;
        segment::sync_dir(&self.path)?;
        fs::remove_file(&self.path)
    }
}

/// Compresses a whole segment at once.
///
/// # Errors
/// As [`Compressing::step`].
pub fn compress(path: &Path) -> io::Result<Step> {
    let mut compressing = Compressing::begin(path)?;
    loop {
        match compressing.step()? {
            Step::More => {}
            step @ (Step::Done | Step::Unfit) => return Ok(step),
        }
    }
}

#[cfg(test)]
mod tests;
