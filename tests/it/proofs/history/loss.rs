//! What becomes of the files of a Redis server.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// How a store loses its last entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A replica that had not got them is promoted.
    Promotion,
    /// The file of commands ends where the first of them began.
    Cut,
    /// It ends inside the first of them.
    CutInside,
    /// An earlier copy is restored.
    Backup,
    /// It starts without its files.
    Empty,
}

// === impl Loss ===

impl Loss {
    pub const ALL: [Self; 5] = [Self::Promotion, Self::Cut, Self::CutInside, Self::Backup, Self::Empty];
}

/// Copies everything below `from`.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Removes everything below `dir`.
pub fn empty(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let is_dir = entry.file_type().unwrap().is_dir();
        if is_dir { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) }.unwrap();
    }
}

/// The file of commands that a server writes to.
pub fn commands_of(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("appendonlydir")).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "aof")).collect();
    files.sort();
    files.pop().unwrap()
}

/// Ends the file of commands at, or somewhere inside, the first mutation that begins at `from` or later.
pub fn cut(dir: &Path, from: u64, inside: Option<&mut fastrand::Rng>) {
    let path = commands_of(dir);
    let bytes = fs::read(&path).unwrap();
    let step = first_mutation(&bytes, from as usize);
    let end = inside.map_or(step.start, |random| random.usize(step.start + 1..step.end));
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(end as u64).unwrap();
}

/// The first atomic step after `from` that writes to the change log.
fn first_mutation(bytes: &[u8], from: usize) -> Range<usize> {
    let mut at = from;
    loop {
        let begin = at;
        let mut words = command(bytes, &mut at).expect("there is a mutation");
        let mut is_mutation = is_logged(&words);
        if words[0] == b"MULTI" {
            while words[0] != b"EXEC" {
                words = command(bytes, &mut at).expect("a whole step");
                is_mutation |= is_logged(&words);
            }
        }
        if is_mutation {
            return begin..at;
        }
    }
}

fn is_logged(words: &[&[u8]]) -> bool {
    words[0] == b"XADD" && words[1] == b"{keygate}:log"
}

/// The words of the command at `at`, as clients send them; it moves on.
fn command<'a>(bytes: &'a [u8], at: &mut usize) -> Option<Vec<&'a [u8]>> {
    let count = number(bytes, at, b'*')?;
    (0..count)
        .map(|_| {
            let length = number(bytes, at, b'$')?;
            let word = bytes.get(*at..*at + length)?;
            *at += length + 2;
            Some(word)
        })
        .collect()
}

fn number(bytes: &[u8], at: &mut usize, sign: u8) -> Option<usize> {
    let rest = bytes.get(*at..)?;
    let length = rest.windows(2).position(|end| end == b"\r\n")?;
    let text = rest[..length].strip_prefix(&[sign])?;
    *at += length + 2;
    std::str::from_utf8(text).ok()?.parse().ok()
}
