//! Reads a journal back: every whole record in order, and damage by its range.

use super::segment;
use std::fs;
use std::io;
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

    /// The whole records written since the last call, each `seq` once and in order.
    ///
    /// # Errors
    /// As of reading the files.
    pub fn read(&mut self) -> io::Result<Vec<Line>> {
        let mut lines = Vec::new();
        let segments = segment::list(&self.dir)?;
        for (index, (first, path)) in segments.iter().enumerate() {
            let from = match self.at {
                Some((current, offset)) if current == *first => offset,
                Some((current, _)) if current > *first => continue,
                Some(_) | None => 0,
            };
            // Records at and after the next segment's first number were written again there.
            let next = segments.get(index + 1).map(|(next, _)| *next);
            let read = self.read_segment(path, from, next, &mut lines)?;
            self.at = Some((*first, read));
        }
        Ok(lines)
    }

    /// Reads a segment from byte `from`; gives the byte after the last newline.
    fn read_segment(&mut self, path: &Path, from: u64, next: Option<u64>, lines: &mut Vec<Line>) -> io::Result<u64> {
        let bytes = fs::read(path)?;
        let mut at = from;
        let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
        for line in rest.split_inclusive(|byte| *byte == b'\n') {
            let Some(text) = line.strip_suffix(b"\n") else {
                // A torn end counts as damage only where nothing more will be written.
                if next.is_some() {
                    self.add_damage(path, at, line.len());
                }
                break;
            };
            self.take(path, at, text, next, lines);
            at += line.len() as u64;
        }
        Ok(at)
    }

    fn take(&mut self, path: &Path, at: u64, text: &[u8], next: Option<u64>, lines: &mut Vec<Line>) {
        let seq = segment::seq_of(text).filter(|_| segment::is_whole(text));
        let (Some(seq), Ok(text)) = (seq, std::str::from_utf8(text)) else {
            self.add_damage(path, at, text.len() + 1);
            return;
        };
        if seq > self.last_seq && next.is_none_or(|next| seq < next) {
            self.last_seq = seq;
            lines.push(Line { seq, text: text.to_owned() });
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
