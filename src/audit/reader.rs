//! Reads a journal back: every whole record in order, and damage by its range.

use super::segment;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// One record as it stands in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub seq: u64,
    /// The JSON object, without its newline.
    pub text: String,
}

/// Bytes in a segment that are no whole record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub segment: PathBuf,
    /// From this byte on.
    pub start: u64,
    pub bytes: u64,
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
    last_seq: u64,
    pub damage: Vec<Damage>,
}

// === impl Follow ===

impl Follow {
    /// From the journal's beginning.
    pub const fn new(dir: PathBuf) -> Self {
        Self { dir, at: None, last_seq: 0, damage: Vec::new() }
    }

    /// Gives the whole records written since the last call to `take`, each `seq` once and in order. Reads line by line: a
    /// journal may be larger than memory.
    ///
    /// # Errors
    /// As of reading the files.
    pub fn read(&mut self, mut take: impl FnMut(Line)) -> io::Result<()> {
        let segments = segment::list(&self.dir)?;
        for (index, (first, path)) in segments.iter().enumerate() {
            let from = match self.at {
                Some((current, offset)) if current == *first => offset,
                Some((current, _)) if current > *first => continue,
                Some(_) | None => 0,
            };
            // Records at and after the next segment's first number were written again there.
            let next = segments.get(index + 1).map(|(next, _)| *next);
            let read = self.read_segment(path, from, next, &mut take)?;
            self.at = Some((*first, read));
        }
        Ok(())
    }

    /// Reads a segment from byte `from`; gives the byte after the last newline.
    fn read_segment(
        &mut self,
        path: &Path,
        from: u64,
        next: Option<u64>,
        take: &mut impl FnMut(Line),
    ) -> io::Result<u64> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(from))?;
        let (mut reader, mut line, mut at) = (BufReader::new(file), Vec::new(), from);
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(at);
            }
            let Some(text) = line.strip_suffix(b"\n") else {
                // A torn end counts as damage only where nothing more will be written.
                if next.is_some() {
                    self.add_damage(path, at, line.len());
                }
                return Ok(at);
            };
            self.judge(path, at, text, next, take);
            at += line.len() as u64;
        }
    }

    fn judge(&mut self, path: &Path, at: u64, text: &[u8], next: Option<u64>, take: &mut impl FnMut(Line)) {
        let seq = segment::seq_of(text).filter(|_| segment::is_whole(text));
        let (Some(seq), Ok(text)) = (seq, std::str::from_utf8(text)) else {
            self.add_damage(path, at, text.len() + 1);
            return;
        };
        if seq > self.last_seq && next.is_none_or(|next| seq < next) {
            self.last_seq = seq;
            take(Line { seq, text: text.to_owned() });
        }
    }

    fn add_damage(&mut self, path: &Path, start: u64, bytes: usize) {
        let bytes = bytes as u64;
        match self.damage.last_mut() {
            Some(last) if last.segment == path && last.start + last.bytes == start => last.bytes += bytes,
            Some(_) | None => self.damage.push(Damage { segment: path.to_owned(), start, bytes }),
        }
    }
}
