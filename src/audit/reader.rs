//! Reads a journal back: every whole record in order, and what is damaged or missing.

use super::segment;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// No line is longer: the longest are changes of keys with very long allowlists. More bytes without a newline are damage,
/// and are not held at once.
const LINE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// One record as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub seq: u64,
    /// The JSON object, without its newline.
    pub text: String,
}

/// What a journal should hold and does not. Its text is a sentence for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Bytes in a segment that are no whole record.
    Damage {
        segment: PathBuf,
        /// From this byte on.
        start: u64,
        bytes: u64,
        /// The whole records around it, where there are any and they had been read when the fault was taken.
        after: Option<u64>,
        before: Option<u64>,
    },
    /// Numbers without a record, though there are earlier and later ones. What lacks at the journal's beginning is no fault:
    /// old segments may be moved away.
    Missing { journal: PathBuf, first: u64, last: u64 },
}

/// The journals of an audit directory: its slots, by number.
///
/// # Errors
/// As of reading the directory.
pub fn journals(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut slots = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if let Some(number) = number.filter(|_| entry.path().is_dir()) {
            slots.push((number, entry.path()));
        }
    }
    slots.sort();
    Ok(slots.into_iter().map(|(_, path)| path).collect())
}

/// Follows one journal: each call of [`Follow::read`] gives what has been written since the last.
#[derive(Debug)]
pub struct Follow {
    dir: PathBuf,
    /// The segment that is being read, by its first `seq`, and how far.
    at: Option<(u64, u64)>,
    last_seq: Option<u64>,
    /// Found, and not yet taken.
    faults: Vec<Fault>,
}

/// Which records of a segment count.
#[derive(Clone, Copy)]
struct Bounds {
    /// None beyond this is taken yet.
    through: Option<u64>,
    /// The next segment's first number: from there on records were written again.
    next: Option<u64>,
}

/// What a line with its newline is.
enum Judged {
    Next(Line),
    /// Not to be taken yet.
    Beyond,
    /// Damage, or a record that was taken or written again.
    Nothing,
}

// === impl Follow ===

impl Follow {
    /// From the journal's beginning.
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir, at: None, last_seq: None, faults: Vec::new() }
    }

    /// From the record after `seq`. Segments that end before it are not opened; what is missing behind it is a fault.
    pub const fn after(dir: PathBuf, seq: u64) -> Self {
        Self { dir, at: None, last_seq: Some(seq), faults: Vec::new() }
    }

    /// The faults found since the last call.
    pub fn take_faults(&mut self) -> Vec<Fault> {
        std::mem::take(&mut self.faults)
    }

    /// Gives the whole records written since the last call to `take`, each `seq` once and in order. Reads line by line: a
    /// journal may be larger than memory.
    ///
    /// # Errors
    /// As of reading the files, with the one that cannot be read.
    pub fn read(&mut self, mut take: impl FnMut(Line)) -> io::Result<()> {
        self.read_through(None, |line| {
            take(line);
            ControlFlow::Continue(())
        })
    }

    /// The same, but ends before the first record beyond `through`, and behind the one with which `take` breaks off: the
    /// next call goes on there.
    ///
    /// # Errors
    /// As of [`Follow::read`].
    pub fn read_through(
        &mut self,
        through: Option<u64>,
        mut take: impl FnMut(Line) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let segments = segment::list(&self.dir).map_err(|error| unreadable(&self.dir, &error))?;
        let begin = self.begin(&segments);
        for (index, (first, path)) in segments.iter().enumerate().skip(begin) {
            let from = match self.at {
                Some((current, offset)) if current == *first => offset,
                Some((current, _)) if current > *first => continue,
                Some(_) | None => 0,
            };
            // Records at and after the next segment's first number were written again there.
            let next = segments.get(index + 1).map(|(next, _)| *next);
            let bounds = Bounds { through, next };
            let (read, flow) =
                self.read_segment(path, from, bounds, &mut take).map_err(|error| unreadable(path, &error))?;
            self.at = Some((*first, read));
            if flow.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The first segment that is worth opening: the one that holds the record after the last.
    fn begin(&self, segments: &[(u64, PathBuf)]) -> usize {
        let sought = self.last_seq.filter(|_| self.at.is_none()).map(|last| last.saturating_add(1));
        sought.map_or(0, |seq| segments.partition_point(|(first, _)| *first <= seq).saturating_sub(1))
    }

    /// Reads a segment from byte `from`; gives the byte after the last newline that was read.
    fn read_segment(
        &mut self,
        path: &Path,
        from: u64,
        bounds: Bounds,
        take: &mut impl FnMut(Line) -> ControlFlow<()>,
    ) -> io::Result<(u64, ControlFlow<()>)> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let (mut reader, mut line, mut at) = (BufReader::new(file), Vec::new(), from);
        loop {
            line.clear();
            let length = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
            if let Some(text) = line.strip_suffix(b"\n") {
                match self.judge(path, at, text, bounds) {
                    Judged::Beyond => return Ok((at, ControlFlow::Break(()))),
                    Judged::Next(line) => {
                        if take(line).is_break() {
                            return Ok((at + length, ControlFlow::Break(())));
                        }
                    }
                    Judged::Nothing => {}
                }
            } else if length == LINE_BYTES_MAX || (length > 0 && bounds.next.is_some()) {
                // Too long for a line, or a torn end to which nothing more will be written.
                self.add_damage(path, at, length);
            } else {
                return Ok((at, ControlFlow::Continue(())));
            }
            at += length;
        }
    }

    fn judge(&mut self, path: &Path, at: u64, text: &[u8], bounds: Bounds) -> Judged {
        let seq = segment::seq_of(text).filter(|_| segment::is_whole(text));
        let (Some(seq), Ok(text)) = (seq, std::str::from_utf8(text)) else {
            self.add_damage(path, at, text.len() as u64 + 1);
            return Judged::Nothing;
        };
        if self.last_seq.is_some_and(|last| seq <= last) || bounds.next.is_some_and(|next| seq >= next) {
            return Judged::Nothing;
        }
        if bounds.through.is_some_and(|through| seq > through) {
            return Judged::Beyond;
        }
        self.advance(seq);
        Judged::Next(Line { seq, text: text.to_owned() })
    }

    /// The next whole record is `seq`: it ends what was damaged before it, and what lacks shows.
    fn advance(&mut self, seq: u64) {
        if let Some(Fault::Damage { before, .. }) = self.faults.last_mut() {
            before.get_or_insert(seq);
        }
        if let Some(last) = self.last_seq.replace(seq).filter(|last| last + 1 < seq) {
            self.faults.push(Fault::Missing { journal: self.dir.clone(), first: last + 1, last: seq - 1 });
        }
    }

    fn add_damage(&mut self, path: &Path, at: u64, length: u64) {
        match self.faults.last_mut() {
            Some(Fault::Damage { segment, start, bytes, before: None, .. })
                if segment == path && *start + *bytes == at =>
            {
                *bytes += length;
            }
            Some(Fault::Damage { .. } | Fault::Missing { .. }) | None => {
                let segment = path.to_owned();
                self.faults.push(Fault::Damage {
                    segment,
                    start: at,
                    bytes: length,
                    after: self.last_seq,
                    before: None,
                });
            }
        }
    }
}

/// The same error, for people.
fn unreadable(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damage { segment, start, bytes, after, before } => {
                write!(f, "{} is damaged: {bytes} bytes from byte {start} are no record", segment.display())?;
                match (after, before) {
                    (Some(after), Some(before)) => write!(f, ", between records {after} and {before}"),
                    (Some(after), None) => write!(f, ", after record {after}"),
                    (None, Some(before)) => write!(f, ", before record {before}"),
                    (None, None) => Ok(()),
                }
            }
            Self::Missing { journal, first, last } if first == last => {
                write!(f, "the journal in {} lacks record {first}", journal.display())
            }
            Self::Missing { journal, first, last } => {
                write!(f, "the journal in {} lacks records {first} to {last}", journal.display())
            }
        }
    }
}
