//! Segments: the journal's files, each named by its first `seq`, and the format of a line.

use super::SCHEMA;
use super::json::push_hex;
use crate::net::push_number;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The end of every line: the CRC-32 (IEEE) of all bytes before this member, in hex.
const CRC_MEMBER: &str = ",\"crc\":\"";
const CRC_DIGITS: usize = 8;
const SUFFIX: &str = ".ndjson";
/// Where in a line `seq` is looked for: what stands before it is shorter, whatever the gateway's id.
const SEQ_WITHIN: usize = 200;

/// The kinds of record (contract, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Change,
    Gap,
    Summary,
    Connection,
    Start,
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
        }
    }
}

/// Appends one line: the members the writer adds, `body` (members, each followed by a comma), and the checksum.
pub fn write_line(out: &mut Vec<u8>, kind: Kind, journal: &str, seq: u64, config: &str, body: &[u8]) {
    let start = out.len();
    out.extend_from_slice(br#"{"schema":"#);
    push_number(out, SCHEMA.into());
    extend(out, &[br#","kind":""#, kind.as_str().as_bytes(), br#"","journal":""#, journal.as_bytes(), br#"","seq":"#]);
    push_number(out, seq);
    let gateway = journal.split('/').next().unwrap_or_default();
    extend(out, &[b",", body, br#""gateway":""#, gateway.as_bytes(), br#"","config":""#, config.as_bytes(), b"\""]);
    let crc = crc32fast::hash(out.get(start..).unwrap_or_default());
    out.extend_from_slice(CRC_MEMBER.as_bytes());
    push_hex(out, &crc.to_be_bytes());
    out.extend_from_slice(b"\"}\n");
}

fn extend(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Whether a line (without its newline) is whole: its checksum is that of the bytes before it.
pub fn is_whole(line: &[u8]) -> bool {
    let tail = CRC_MEMBER.len() + CRC_DIGITS + 2;
    let Some((body, end)) = line.len().checked_sub(tail).and_then(|at| line.split_at_checked(at)) else { return false };
    *end == *format!("{CRC_MEMBER}{:08x}\"}}", crc32fast::hash(body)).as_bytes()
}

/// The `seq` of a line, without parsing the rest.
pub fn seq_of(line: &[u8]) -> Option<u64> {
    const MEMBER: &[u8] = b"\"seq\":";
    let head = line.get(..SEQ_WITHIN).unwrap_or(line);
    let at = head.windows(MEMBER.len()).position(|part| part == MEMBER)? + MEMBER.len();
    let digits = line.get(at..)?.split(|byte| !byte.is_ascii_digit()).next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The journal of a line, without parsing the rest.
pub fn journal_of(line: &str) -> Option<&str> {
    const MEMBER: &str = "\"journal\":\"";
    let (_, rest) = line.split_once(MEMBER)?;
    rest.split_once('"').map(|(journal, _)| journal)
}

/// The name of the segment whose first record is `seq`.
pub fn file_name(seq: u64) -> String {
    format!("{seq:020}{SUFFIX}")
}

/// The segments of a journal's directory, oldest first, each with its first `seq`.
///
/// # Errors
/// As of reading the directory.
pub fn list(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(SUFFIX));
        if let Some(first) = name.filter(|digits| digits.len() == 20).and_then(|digits| digits.parse().ok()) {
            segments.push((first, path));
        }
    }
    segments.sort();
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
        let bytes = fs::read(&path)?;
        let (end, last) = last_whole(&bytes);
        let Some(last) = last else {
            // Nothing in it counts: the older segment goes on, and never below what this one's name says was given.
            fs::rename(&path, free_name(&path, "void"))?;
            sync_dir(&path)?;
            recovered.last_seq = recovered.last_seq.max(first.saturating_sub(1));
            continue;
        };
        if end < bytes.len() {
            recovered.torn = Some(move_aside(&path, &bytes, end)?);
        }
        recovered.last_seq = recovered.last_seq.max(last);
        break;
    }
    Ok(recovered)
}

/// Where the last whole line ends, and its `seq`.
fn last_whole(bytes: &[u8]) -> (usize, Option<u64>) {
    let (mut end, mut last, mut at) = (0, None, 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        at += line.len();
        if let Some(line) = line.strip_suffix(b"\n").filter(|line| is_whole(line)) {
            end = at;
            last = seq_of(line);
        }
    }
    (end, last)
}

fn move_aside(path: &Path, bytes: &[u8], end: usize) -> io::Result<PathBuf> {
    let torn = free_name(path, "torn");
    let mut file = File::create_new(&torn)?;
    file.write_all(bytes.get(end..).unwrap_or_default())?;
    file.sync_all()?;
    let segment = File::options().write(true).open(path)?;
    segment.set_len(end as u64)?;
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

fn sync_dir(path: &Path) -> io::Result<()> {
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
            prop_assert_eq!(journal_of(std::str::from_utf8(&line).unwrap()), Some(&*journal));
        }
    }

    #[test]
    fn an_empty_newest_segment_does_not_void_the_older_ones_tail() {
        let dir = tempfile::tempdir().unwrap();
        let mut lines = Vec::new();
        (1..=5).for_each(|seq| write_line(&mut lines, Kind::Gap, "gw/0", seq, "cfg", b""));
        fs::write(dir.path().join(file_name(1)), &lines).unwrap();
        fs::write(dir.path().join(file_name(4)), "{\"torn").unwrap();
        assert_eq!(recover(dir.path()).unwrap().last_seq, 5);
        assert_eq!(list(dir.path()).unwrap().len(), 1);
    }
}
