//! Compressed segments: blocks of whole lines, each a gzip member of its own.
//!
//! So `zcat` reads the file, and a damaged block takes no other with it: each member carries its own length, the first `seq`
//! in it and a checksum over all of it, in a subfield `KG` of its extra field (RFC 1952, section 2.3.1.1).

use super::pieces::{Piece, Pieces};
use super::segment;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A block's lines are together no longer.
pub const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// What does not shrink may grow: a fast compressor takes nine bits for some bytes.
const MEMBER_BYTES_MAX: usize = BLOCK_BYTES_MAX / 8 * 9 + 1024;
/// Magic, deflate, FEXTRA; no time, no flags, unknown system; 20 bytes of extra field; subfield KG of 16 bytes. The length
/// (u32), the first `seq` (u64) and the checksum (u32) follow, little endian.
const MARK: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 20, 0, b'K', b'G', 16, 0];
const LENGTH_AT: usize = MARK.len();
const FIRST_AT: usize = LENGTH_AT + 4;
const CHECKSUM_AT: usize = FIRST_AT + 8;
pub const HEADER_BYTES: usize = CHECKSUM_AT + 4;
/// CRC-32 and length of the lines.
const TRAILER_BYTES: usize = 8;
/// How many bytes one step of compressing takes in: less than a millisecond of a core, on which a request may wait.
pub const STEP_BYTES: u64 = 256 * 1024;

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
    inflate: Inflate,
    lines: Vec<u8>,
}

/// Writes a segment's compressed form, step by step, and puts it into the segment's place.
#[derive(Debug)]
pub struct Compressing {
    path: PathBuf,
    part: PathBuf,
    from: Pieces,
    to: File,
    deflate: Deflate,
    /// The lines of the next block, and the first one's `seq`; 0 before there is any.
    lines: Vec<u8>,
    first: u64,
    members: Vec<u8>,
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
struct Deflate(Compress);

struct Inflate(Decompress);

// === impl Blocks ===

impl Blocks {
    /// Reads from byte `from`, where a block begins.
    ///
    /// # Errors
    /// As of opening the file.
    pub fn open(path: &Path, from: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let inflate = Inflate(Decompress::new(false));
        Ok(Self { file, window: Vec::new(), at: from, at_end: false, inflate, lines: Vec::new() })
    }

    /// The next block; none at the end.
    ///
    /// # Errors
    /// As of reading the file.
    pub fn read(&mut self) -> io::Result<Option<Block>> {
        self.lines.clear();
        self.fill()?;
        let start = self.at;
        let is_whole = match member(&self.window) {
            _ if self.window.is_empty() => return Ok(None),
            Some(member) => {
                let (bytes, is_whole) = (member.len(), self.inflate.lines(member, &mut self.lines));
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
            match memchr::memmem::find(&self.window, &MARK) {
                Some(0) if member(&self.window).is_some() => return Ok(()),
                Some(0) => self.pass(1),
                Some(hit) => self.pass(hit),
                None if self.at_end => {
                    self.pass(self.window.len());
                    return Ok(());
                }
                None => self.pass(self.window.len().saturating_sub(MARK.len() - 1)),
            }
        }
    }

    fn pass(&mut self, bytes: usize) {
        let bytes = bytes.min(self.window.len());
        self.window.drain(..bytes);
        self.at += bytes as u64;
    }

    /// Reads on until the window holds the longest member, or the rest of the file.
    fn fill(&mut self) -> io::Result<()> {
        if self.window.len() < MEMBER_BYTES_MAX && !self.at_end {
            let wanted = 2 * MEMBER_BYTES_MAX - self.window.len();
            let read = (&self.file).take(wanted as u64).read_to_end(&mut self.window)?;
            self.at_end = read < wanted;
        }
        Ok(())
    }
}

/// The length of the member that has this header, and the first `seq` in it, as the header says: whether it is whole, only
/// reading it tells. None when this is no header.
pub fn header(bytes: &[u8; HEADER_BYTES]) -> Option<(u64, u64)> {
    let length = u64::from(u32_at(bytes, LENGTH_AT)?);
    let is_possible = bytes.starts_with(&MARK) && length >= (HEADER_BYTES + TRAILER_BYTES) as u64;
    Some((length, u64_at(bytes, FIRST_AT)?)).filter(|_| is_possible)
}

/// The member at the beginning of `bytes`, if there is a whole one.
fn member(bytes: &[u8]) -> Option<&[u8]> {
    let length = usize::try_from(u32_at(bytes, LENGTH_AT)?).ok()?;
    let is_possible = bytes.starts_with(&MARK) && (HEADER_BYTES + TRAILER_BYTES..=MEMBER_BYTES_MAX).contains(&length);
    let member = bytes.get(..length).filter(|_| is_possible)?;
    (checksum(member) == u32_at(member, CHECKSUM_AT)).then_some(member)
}

/// The checksum over a member, but for its own four bytes.
fn checksum(member: &[u8]) -> Option<u32> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(member.get(..CHECKSUM_AT)?);
    hasher.update(member.get(HEADER_BYTES..)?);
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

// === impl Inflate ===

impl Inflate {
    /// Puts a member's lines into `lines`; false if they are not what the member says they are.
    fn lines(&mut self, member: &[u8], lines: &mut Vec<u8>) -> bool {
        let deflated = member.get(HEADER_BYTES..member.len() - TRAILER_BYTES).unwrap_or_default();
        let trailer = member.len() - TRAILER_BYTES;
        let (crc, length) = (u32_at(member, trailer), u32_at(member, trailer + 4));
        self.0.reset(false);
        lines.clear();
        lines.resize(BLOCK_BYTES_MAX, 0);
        let status = self.0.decompress(deflated, lines, FlushDecompress::Finish);
        let is_at_end = matches!(status, Ok(Status::StreamEnd)) && self.0.total_in() == deflated.len() as u64;
        lines.truncate(usize::try_from(self.0.total_out()).unwrap_or(0));
        is_at_end
            && lines.ends_with(b"\n")
            && length.map(u64::from) == Some(lines.len() as u64)
            && crc == Some(crc32fast::hash(lines))
            && segment::seq_of(lines) == u64_at(member, FIRST_AT)
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inflate")
    }
}

// === impl Deflate ===

impl Deflate {
    /// Appends these lines, at most [`BLOCK_BYTES_MAX`], as a member. `first` is the first one's `seq`.
    fn member(&mut self, lines: &[u8], first: u64, out: &mut Vec<u8>) -> io::Result<()> {
        let start = out.len();
        out.extend_from_slice(&MARK);
        out.extend_from_slice(&[0; HEADER_BYTES - MARK.len()]);
        out.reserve(MEMBER_BYTES_MAX);
        self.0.reset();
        let status = self.0.compress_vec(lines, out, FlushCompress::Finish).map_err(io::Error::other)?;
        if status != Status::StreamEnd {
            return Err(io::Error::other("a block does not fit its member"));
        }
        out.extend_from_slice(&crc32fast::hash(lines).to_le_bytes());
        out.extend_from_slice(&u32::try_from(lines.len()).map_err(io::Error::other)?.to_le_bytes());
        let member = out.get_mut(start..).unwrap_or_default();
        let length = u32::try_from(member.len()).map_err(io::Error::other)?;
        put(member, LENGTH_AT, &length.to_le_bytes());
        put(member, FIRST_AT, &first.to_le_bytes());
        if let Some(checksum) = checksum(member) {
            put(member, CHECKSUM_AT, &checksum.to_le_bytes());
        }
        Ok(())
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
}

impl std::fmt::Debug for Deflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Deflate")
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
            deflate: Deflate(Compress::new(Compression::fast(), false)),
            lines: Vec::with_capacity(BLOCK_BYTES_MAX),
            first: 0,
            members: Vec::new(),
        })
    }

    /// Compresses about a megabyte more and syncs it. After the last one the compressed segment gets its name, the directory
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
            self.deflate.member(&self.lines, self.first, &mut self.members)?;
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
            self.deflate.member(&self.lines, self.first, &mut self.members)?;
            self.lines.clear();
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        self.to.write_all(&self.members)?;
        self.members.clear();
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
