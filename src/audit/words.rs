//! Memory of a fixed size, as words that several threads may touch: of a mapped file, which outlives the process, or anonymous.

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a word.
pub const WORD: usize = 8;

/// The memory. All access is atomic, word by word: what a thread was killed in leaves whole words, in the order of its stores.
#[derive(Debug)]
pub struct Words {
    map: MmapRaw,
}

// === impl Words ===

impl Words {
    /// Maps the file, made as long as `count` words if it is new; its space is reserved, so that a full disk shows here and
    /// not at a store.
    ///
    /// # Errors
    /// As of making, reserving and mapping the file; also when it has another length.
    pub fn of_file(path: &Path, count: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        let length = (count * WORD) as u64;
        if file.metadata()?.len() == 0 {
            fallocate(&file, FallocateFlags::empty(), 0, length)?;
            file.sync_all()?;
        }
        if file.metadata()?.len() != length {
            return Err(io::Error::other(format!("{} is not {length} bytes long", path.display())));
        }
        Ok(Self { map: MmapOptions::new().map_raw(&file)? })
    }

    /// Maps a file as it is.
    ///
    /// # Errors
    /// As of opening and mapping it.
    pub fn of_existing(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self { map: MmapOptions::new().map_raw(&file)? })
    }

    /// Memory that ends with the process.
    ///
    /// # Errors
    /// When there is none.
    pub fn anonymous(count: usize) -> io::Result<Self> {
        Ok(Self { map: MmapRaw::from(MmapMut::map_anon(count * WORD)?) })
    }

    #[allow(unsafe_code, reason = "a shared mapping can only be reached by its address")]
    pub fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: the mapping begins at a page, is as long as it says, and lives as long as `self`. It is reached in no other way
        // than through this slice of atomics, which may be shared; any bits are a valid word. What another process writes into the
        // file is one more store. (One that shortens the file ends this process by a signal: nothing is read that is not there.)
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), self.map.len() / WORD) }
    }
}

/// Stores bytes from word `at` on, zeros after them up to the word's end. In a ring: what passes its end goes on at its start.
pub fn store(ring: &[AtomicU64], at: usize, bytes: &[u8]) {
    let (first, second) = split(ring, at);
    let (bytes, rest) = bytes.split_at_checked(first.len() * WORD).unwrap_or((bytes, &[]));
    store_in(first, bytes);
    store_in(second, rest);
}

/// Without the ring's turn: two plain loops, which the compiler makes fast.
fn store_in(words: &[AtomicU64], bytes: &[u8]) {
    let (chunks, rest) = bytes.as_chunks::<WORD>();
    for (word, chunk) in words.iter().zip(chunks) {
        word.store(u64::from_le_bytes(*chunk), Ordering::Relaxed);
    }
    if let Some(word) = words.get(chunks.len()).filter(|_| !rest.is_empty()) {
        let mut last = [0; WORD];
        last.iter_mut().zip(rest).for_each(|(slot, byte)| *slot = *byte);
        word.store(u64::from_le_bytes(last), Ordering::Relaxed);
    }
}

/// Appends `length` bytes from word `at` on to `out`, or as many as the ring has.
pub fn load(ring: &[AtomicU64], at: usize, length: usize, out: &mut Vec<u8>) {
    let (first, second) = split(ring, at);
    let begin = out.len();
    let length = length.min(ring.len() * WORD);
    out.resize(begin + length.next_multiple_of(WORD), 0);
    let (chunks, _) = out.get_mut(begin..).unwrap_or_default().as_chunks_mut::<WORD>();
    let (before, after) = chunks.split_at_mut(first.len().min(chunks.len()));
    load_in(first, before);
    load_in(second, after);
    out.truncate(begin + length);
}

fn load_in(words: &[AtomicU64], chunks: &mut [[u8; WORD]]) {
    for (word, chunk) in words.iter().zip(chunks) {
        *chunk = word.load(Ordering::Relaxed).to_le_bytes();
    }
}

/// From `at` to the end, and from the start to `at`.
fn split(ring: &[AtomicU64], at: usize) -> (&[AtomicU64], &[AtomicU64]) {
    let (second, first) = ring.split_at_checked(at).unwrap_or((ring, &[]));
    (first, second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_stored_is_loaded_wherever_it_begins(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..32) {
            let words = Words::anonymous(32).unwrap();
            store(words.as_slice(), at, &bytes);
            let mut out = b"before".to_vec();
            load(words.as_slice(), at, bytes.len().min(256), &mut out);
            prop_assert_eq!(&out[6..], &bytes[..]);
        }
    }

    #[test]
    fn j2_a_mapped_file_holds_what_was_stored_and_is_refused_in_another_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("words");
        store(Words::of_file(&path, 512).unwrap().as_slice(), 510, b"over the end of it");
        let mut out = Vec::new();
        load(Words::of_existing(&path).unwrap().as_slice(), 510, 18, &mut out);
        assert_eq!(out, b"over the end of it");
        assert!(Words::of_file(&path, 1024).is_err());
    }
}
