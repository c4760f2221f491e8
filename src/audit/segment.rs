//! Segments: the journal's files, each named by its first `seq`, and the format of a line.

use super::SCHEMA;
use super::json::push_hex;
use super::pieces::{Piece, Pieces};
use crate::clock::Timestamp;
use crate::net::push_number;
use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// The end of every line: the CRC-32 (IEEE) of all bytes before this member, in hex.
const CRC_MEMBER: &str = ",\"crc\":\"";
const CRC_DIGITS: usize = 8;
const SUFFIX: &str = ".ndjson";
/// Of the compressed form, and of what it was in earlier versions.
const COMPRESSED_SUFFIXES: [&str; 2] = [".ndjson.zst", ".ndjson.gz"];
/// Where in a line the writer's own members and `ts` are looked for: they are shorter, whatever the gateway's id.
const HEAD_BYTES: usize = 200;

/// The kinds of record (contract, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Change,
    Gap,
    Summary,
    Connection,
    Start,
    Seal,
}

// === impl Kind ===

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Change => "change",
            Self::Gap => "gap",
            Self::Summary => "summary",
            Self::Connection => "connection",
            Self::Start => "start",
            Self::Seal => "seal",
        }
    }
}

/// Appends one line: the members the writer adds, `body` (members, each followed by a comma), and the checksum.
pub fn write_line(out: &mut Vec<u8>, kind: Kind, journal: &str, seq: u64, config: &str, body: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&begin(kind, journal));
    push_number(out, seq);
    out.push(b',');
    out.extend_from_slice(body);
    // The members' last comma is there already.
    out.extend_from_slice(end(journal, config).get(1..).unwrap_or_default());
    push_crc(out, start);
}

/// What a line begins with, up to its number.
pub(super) fn begin(kind: Kind, journal: &str) -> Vec<u8> {
    format!(r#"{{"schema":{SCHEMA},"kind":"{}","journal":"{journal}","seq":"#, kind.as_str()).into_bytes()
}

/// The members with which a line ends, but for the checksum.
pub(super) fn end(journal: &str, config: &str) -> Vec<u8> {
    let gateway = journal.split('/').next().unwrap_or_default();
    format!(r#","gateway":"{gateway}","config":"{config}""#).into_bytes()
}

/// Ends the line that begins at byte `start`. Gives its checksum.
pub(super) fn push_crc(out: &mut Vec<u8>, start: usize) -> u32 {
    let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(CRC_MEMBER.as_bytes());
    push_hex(out, &crc.to_be_bytes());
    out.extend_from_slice(b"\"}\n");
    crc
}

/// Whether a line (without its newline) is whole: its checksum is that of the bytes before it.
pub fn is_whole(line: &[u8]) -> bool {
    let tail = CRC_MEMBER.len() + CRC_DIGITS + 2;
    let Some((body, end)) = line.len().checked_sub(tail).and_then(|at| line.split_at_checked(at)) else { return false };
    let digits = end.strip_prefix(CRC_MEMBER.as_bytes()).and_then(|end| end.strip_suffix(b"\"}"));
    digits.and_then(hex) == Some(crc32fast::hash(body))
}

/// Lower-case hex, as it is written. By hand: every record that is read comes through here.
fn hex(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number: u32, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u32::from(value))
    })
}

const _: () = assert!(SCHEMA == 1, "this is how Head begins");

/// The members with which every line begins, as it is written.
struct Head<'a> {
    kind: &'a [u8],
    journal: &'a [u8],
    seq: &'a [u8],
}

// === impl Head ===

impl<'a> Head<'a> {
    /// Reads the beginning of a line; `None` when it is not as it is written now.
    fn read(line: &'a [u8]) -> Option<Self> {
        let (kind, rest) = split(line.strip_prefix(br#"{"schema":1,"kind":""#)?, b'"')?;
        let (journal, rest) = split(rest.strip_prefix(br#","journal":""#)?, b'"')?;
        let (seq, _) = split(rest.strip_prefix(br#","seq":"#)?, b',')?;
        Some(Self { kind, journal, seq })
    }
}

/// What is before the first of these bytes, which is near, and what is behind it.
fn split(text: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().take(HEAD_BYTES).position(|other| *other == byte)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// The `seq` of a line, without parsing the rest.
pub fn seq_of(line: &[u8]) -> Option<u64> {
    match Head::read(line) {
        Some(head) => std::str::from_utf8(head.seq).ok()?.parse().ok(),
        None => number(line, b"\"seq\":"),
    }
}

/// A line's kind, as text: another version may know more of them.
pub fn kind_of(line: &[u8]) -> Option<&str> {
    match Head::read(line) {
        Some(head) => std::str::from_utf8(head.kind).ok(),
        None => text(line, b"\"kind\":\""),
    }
}

/// A line's journal, `gateway/slot`.
pub fn journal_of(line: &[u8]) -> Option<&str> {
    match Head::read(line) {
        Some(head) => std::str::from_utf8(head.journal).ok(),
        None => text(line, b"\"journal\":\""),
    }
}

/// The version of the format that a line is in.
pub fn schema_of(line: &[u8]) -> Option<u64> {
    number(line, b"{\"schema\":")
}

/// A line's time.
pub fn time_of(line: &[u8]) -> Option<Timestamp> {
    Timestamp::parse(text(line, b"\"ts\":\"")?)
}

/// The first number that stands behind `member` in the head of a line.
fn number(line: &[u8], member: &[u8]) -> Option<u64> {
    let digits = behind(line, member)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The string that stands behind `member`, which ends with its opening quote.
fn text<'a>(line: &'a [u8], member: &[u8]) -> Option<&'a str> {
    let text = behind(line, member)?;
    std::str::from_utf8(text.get(..memchr::memchr(b'"', text)?)?).ok()
}

fn behind<'a>(line: &'a [u8], member: &[u8]) -> Option<&'a [u8]> {
    let head = line.get(..HEAD_BYTES).unwrap_or(line);
    line.get(memchr::memmem::find(head, member)? + member.len()..)
}

/// The name of the segment whose first record is `seq`.
pub fn file_name(seq: u64) -> String {
    format!("{seq:020}{SUFFIX}")
}

/// The name of the same segment once it is compressed.
pub fn compressed(path: &Path) -> PathBuf {
    path.with_extension("ndjson.zst")
}

/// Whether this is a compressed segment's name.
pub fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zst") || is_gzip(path)
}

/// Whether it was compressed by an earlier version.
pub fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "gz")
}

/// The first `seq` of the segment that has this name; none if it is no segment's name.
pub fn first_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let suffixes = [SUFFIX].into_iter().chain(COMPRESSED_SUFFIXES);
    let digits = suffixes.into_iter().find_map(|suffix| name.strip_suffix(suffix))?;
    digits.parse().ok().filter(|first| format!("{first:020}") == digits)
}

/// The segments of a journal's directory, oldest first, each with its first `seq`. Of one that has been compressed while its
/// original is still there, the original.
///
/// # Errors
/// As of reading the directory.
pub fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        segments.extend(first_of(&path).map(|first| (first, path)));
    }
    // An original's name is the beginning of the compressed one's.
    segments.sort();
    segments.dedup_by_key(|(first, _)| *first);
    Ok(segments)
}

/// What recovery found in a journal's directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last `seq` that was written whole; 0 in an empty journal.
    pub last_seq: u64,
    /// Where a torn end was moved to.
    pub torn: Option<PathBuf>,
}

/// Finds the last whole record and moves a torn end aside. Damage with whole records after it stays where it is: readers
/// report it.
///
/// # Errors
/// As of reading and writing the directory.
pub fn recover(dir: &Path) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    for (first, path) in list(dir)?.into_iter().rev() {
        let (end, last) = last_whole(&path)?;
        let Some(last) = last else {
            // Nothing in it counts: the older segment goes on, and never below what this one's name says was given.
            fs::rename(&path, free_name(&path, "void"))?;
            sync_dir(&path)?;
            recovered.last_seq = recovered.last_seq.max(first.saturating_sub(1));
            continue;
        };
        if end < fs::metadata(&path)?.len() && !is_compressed(&path) {
            recovered.torn = Some(move_aside(&path, end)?);
        }
        recovered.last_seq = recovered.last_seq.max(last);
        break;
    }
    Ok(recovered)
}

/// Where the last whole record ends, and its `seq`.
fn last_whole(path: &Path) -> io::Result<(u64, Option<u64>)> {
    let mut pieces = Pieces::open(path, 0)?;
    let (mut end, mut last) = (0, None);
    while let Some(piece) = pieces.read()? {
        if let Piece::Record { seq, .. } = piece {
            last = Some(seq);
            end = pieces.position();
        }
    }
    Ok((end, last))
}

fn move_aside(path: &Path, end: u64) -> io::Result<PathBuf> {
    let torn = free_name(path, "torn");
    let mut segment = File::options().read(true).write(true).open(path)?;
    segment.seek(SeekFrom::Start(end))?;
    let mut file = File::create_new(&torn)?;
    io::copy(&mut segment, &mut file)?;
    file.sync_all()?;
    segment.set_len(end)?;
    segment.sync_all()?;
    sync_dir(path)?;
    Ok(torn)
}

/// A name beside `path` that no file has: what was moved aside once is never overwritten.
pub fn free_name(path: &Path, extension: &str) -> PathBuf {
    let first = path.with_extension(extension);
    let numbered = (1_u32..).map(|n| path.with_extension(format!("{extension}.{n}")));
    std::iter::once(first.clone()).chain(numbered).find(|name| !name.exists()).unwrap_or(first)
}

/// Syncs the directory that holds `path`.
///
/// # Errors
/// As of opening and syncing it.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_line_says_its_number_whatever_else_it_holds(seq: u64, id in "[a-z]{1,64}", text in "\\PC{0,100}") {
            let mut line = Vec::new();
            let body = format!("\"text\":{},", serde_json::Value::from(text));
            write_line(&mut line, Kind::Change, &format!("{id}/63"), seq, "cfg", body.as_bytes());
            prop_assert_eq!(line.pop(), Some(b'\n'));
            prop_assert_eq!((seq_of(&line), is_whole(&line)), (Some(seq), true));
            let journal = format!("{id}/63");
            prop_assert_eq!(journal_of(&line), Some(&*journal));
        }
    }

    #[test]
    fn j7_an_empty_newest_segment_does_not_void_the_older_ones_tail() {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        (1..=5).for_each(|seq| write_line(&mut lines, Kind::Gap, "gw/0", seq, "cfg", b""));
        fs::write(dir.path().join(file_name(1)), &lines).unwrap();
        fs::write(dir.path().join(file_name(4)), "{\"torn").unwrap();
        assert_eq!(recover(dir.path()).unwrap().last_seq, 5);
        assert_eq!(list(dir.path()).unwrap().len(), 1);
    }
}
