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
/// A member that does not shrink is stored, at five bytes for each 16 KiB and less.
const MEMBER_BYTES_MAX: usize = BLOCK_BYTES_MAX + 1024;
/// Magic, deflate, FEXTRA; no time, no flags, unknown system; 20 bytes of extra field; subfield KG of 16 bytes. The length
/// (u32), the first `seq` (u64) and the checksum (u32) follow, little endian.
const MARK: [u8; 16] = [0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 20, 0, b'K', b'G', 16, 0];
const LENGTH_AT: usize = MARK.len();
const FIRST_AT: usize = LENGTH_AT + 4;
const CHECKSUM_AT: usize = FIRST_AT + 8;
pub const HEADER_BYTES: usize = CHECKSUM_AT + 4;
/// CRC-32 and length of the lines.
const TRAILER_BYTES: usize = 8;
/// How many bytes one step of compressing takes in.
const STEP_BYTES: u64 = 1024 * 1024;

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
mod tests {
    use super::*;
    use crate::audit::reader::{Fault, Follow};
    use crate::audit::segment::{Kind, write_line};
    use flate2::read::MultiGzDecoder;
    use proptest::prelude::*;
    use std::ops::Range;
    use std::sync::OnceLock;

    /// Lines of different lengths, `count` of them, from number `first` on; they do not compress well.
    fn lines(first: u64, count: u64) -> Vec<u8> {
        let mut lines = Vec::new();
        for seq in first..first + count {
            let mut random = fastrand::Rng::with_seed(seq);
            let text: String = (0..random.usize(..6000)).map(|_| random.alphanumeric()).collect();
            write_line(&mut lines, Kind::Gap, "gw/0", seq, "cfg", format!("\"text\":\"{text}\",").as_bytes());
        }
        lines
    }

    /// A journal of one compressed segment.
    fn journal(lines: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(segment::file_name(1));
        fs::write(&path, lines).unwrap();
        assert_eq!(compress(&path).unwrap(), Step::Done);
        let path = segment::compressed(&path);
        (dir, path)
    }

    /// The same, of a hundred lines; compressed once for all cases.
    fn hundred() -> (tempfile::TempDir, PathBuf) {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        let bytes = BYTES.get_or_init(|| fs::read(journal(&lines(1, 100)).1).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = segment::compressed(&dir.path().join(segment::file_name(1)));
        fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    /// The whole blocks of a compressed segment: their bytes and the numbers in them.
    fn blocks(path: &Path) -> Vec<(Range<u64>, Range<u64>)> {
        let (mut blocks, mut found) = (Blocks::open(path, 0).unwrap(), Vec::new());
        while let Some(block) = blocks.read().unwrap() {
            let numbers: Vec<u64> =
                blocks.lines().split_inclusive(|byte| *byte == b'\n').filter_map(segment::seq_of).collect();
            if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
                found.push((block.start..block.start + block.bytes, *first..last + 1));
            }
        }
        found
    }

    fn read(dir: &Path) -> (Vec<u64>, Vec<Fault>) {
        let (mut follow, mut seqs) = (Follow::new(dir.to_owned()), Vec::new());
        follow.read(|line| seqs.push(line.seq)).unwrap();
        (seqs, follow.take_faults())
    }

    #[test]
    fn a_compressed_segment_is_gzip_and_holds_exactly_what_the_original_held() {
        for count in [1, 2, 200] {
            let lines = lines(1, count);
            let (dir, path) = journal(&lines);
            let mut inflated = Vec::new();
            MultiGzDecoder::new(File::open(&path).unwrap()).read_to_end(&mut inflated).unwrap();
            assert!(inflated == lines, "{count}");
            assert_eq!(read(dir.path()), ((1..=count).collect(), vec![]));
            let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            assert_eq!(names, [path]);
        }
    }

    #[test]
    fn no_block_holds_more_lines_than_it_may_and_none_is_far_smaller() {
        let (_dir, path) = journal(&lines(1, 200));
        let (mut blocks, mut sizes) = (Blocks::open(&path, 0).unwrap(), Vec::new());
        while let Some(block) = blocks.read().unwrap() {
            assert!(block.is_whole);
            sizes.push(blocks.lines().len());
        }
        sizes.pop();
        assert!(sizes.iter().all(|size| (BLOCK_BYTES_MAX - 8192..=BLOCK_BYTES_MAX).contains(size)), "{sizes:?}");
    }

    #[test]
    fn a_block_that_claims_more_than_it_may_hold_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.ndjson.gz");
        let mut deflate = Deflate(Compress::new(Compression::fast(), false));
        for extra in [0, 1, 10_000_000] {
            let mut lines = Vec::new();
            write_line(&mut lines, Kind::Gap, "gw/0", 1, "cfg", b"");
            lines.resize(BLOCK_BYTES_MAX + extra - 1, b' ');
            lines.push(b'\n');
            let mut member = Vec::new();
            deflate.member(&lines, 1, &mut member).unwrap();
            fs::write(&path, &member).unwrap();
            let mut blocks = Blocks::open(&path, 0).unwrap();
            assert_eq!(blocks.read().unwrap().unwrap().is_whole, extra == 0, "{extra}");
            assert!(blocks.window.capacity() + blocks.lines.capacity() < 8 * BLOCK_BYTES_MAX);
        }
    }

    #[test]
    fn a_damaged_or_empty_segment_and_one_with_a_line_longer_than_a_block_stay_as_they_are() {
        let mut long = lines(1, 3);
        write_line(&mut long, Kind::Gap, "gw/0", 4, "cfg", format!("\"text\":\"{}\",", "x".repeat(70_000)).as_bytes());
        let mut flipped = lines(1, 300);
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        let torn = [lines(1, 3), b"{\"torn".to_vec()].concat();
        for lines in [long, flipped, torn, Vec::new()] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(segment::file_name(1));
            fs::write(&path, &lines).unwrap();
            assert_eq!(compress(&path).unwrap(), Step::Unfit);
            assert!(fs::read(&path).unwrap() == lines);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_crash_before_the_original_went_leaves_a_segment_that_counts_once() {
        let (dir, path) = journal(&lines(1, 50));
        fs::write(dir.path().join(segment::file_name(1)), lines(1, 50)).unwrap();
        assert_eq!(read(dir.path()), ((1..=50).collect(), vec![]));
        assert_eq!(compress(&dir.path().join(segment::file_name(1))).unwrap(), Step::Done);
        assert_eq!(read(dir.path()), ((1..=50).collect(), vec![]));
        assert!(path.exists());
    }

    #[test]
    fn a_reader_goes_on_in_the_compressed_form_of_the_segment_it_is_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(segment::file_name(1));
        fs::write(&path, lines(1, 100)).unwrap();
        let (mut follow, mut seqs) = (Follow::new(dir.path().to_owned()), Vec::new());
        for through in [30, 60, 100] {
            follow
                .read_through(through, |line| {
                    seqs.push(line.seq);
                    std::ops::ControlFlow::Continue(())
                })
                .unwrap();
            if through == 30 {
                fs::write(dir.path().join(segment::file_name(101)), lines(101, 9)).unwrap();
                compress(&path).unwrap();
            }
        }
        follow.read(|line| seqs.push(line.seq)).unwrap();
        assert_eq!((seqs, follow.take_faults()), ((1..=109).collect(), vec![]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_flipped_bit_takes_its_block_and_nothing_else(at: prop::sample::Index, bit in 0_u32..8) {
            let (dir, path) = hundred();
            let blocks = blocks(&path);
            let mut bytes = fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            let (span, numbers) = blocks.into_iter().find(|(span, _)| span.contains(&(at as u64))).unwrap();
            let (seqs, faults) = read(dir.path());
            prop_assert_eq!(&seqs, &(1..=100).filter(|seq| !numbers.contains(seq)).collect::<Vec<_>>());
            let (after, before) = (numbers.start.checked_sub(1).filter(|seq| *seq > 0), numbers.end);
            let before = (before <= 100).then_some(before);
            let damage = Fault::Damage { segment: path, start: span.start, bytes: span.end - span.start, after, before };
            prop_assert_eq!(&faults[0], &damage);
            let lacks = Fault::Missing { journal: dir.path().to_owned(), first: numbers.start, last: numbers.end - 1 };
            prop_assert_eq!(&faults[1..], if after.and(before).is_some() { vec![lacks] } else { vec![] });
        }

        #[test]
        fn any_bytes_are_read_to_the_end(bytes: Vec<u8>, copies in 0_usize..3, cut: prop::sample::Index) {
            let (dir, path) = hundred();
            let whole = fs::read(&path).unwrap();
            let part = &whole[..cut.index(whole.len())];
            let mixed = [&bytes[..], &MARK[..], &part.repeat(copies), &bytes, &whole].concat();
            fs::write(&path, &mixed).unwrap();
            let (mut blocks, mut at) = (Blocks::open(&path, 0).unwrap(), 0);
            while let Some(block) = blocks.read().unwrap() {
                prop_assert_eq!(block.start, at);
                at += block.bytes;
            }
            prop_assert_eq!(at, mixed.len() as u64);
            let (seqs, _) = read(dir.path());
            prop_assert_eq!(seqs.last(), Some(&100));
        }
    }
}
