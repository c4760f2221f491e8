//! The segment that is written.

use super::segment;
use rustix::fs::{FallocateFlags, fallocate};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Space is reserved in pieces of this size: a full disk shows early, and files grow in few pieces.
const RESERVE: u64 = 256 * 1024;

/// A segment from its creation to its seal. Its descriptor is not used again after a failure: what it holds then is not known.
#[derive(Debug)]
pub struct Appender {
    file: File,
    path: PathBuf,
    /// The number of its first record.
    first: u64,
    bytes: u64,
    reserved: u64,
}

// === impl Appender ===

impl Appender {
    /// Creates the segment that begins with `seq` and holds `lines`. It gets its name once they are synced: a segment of that
    /// name is whole, so that what it rewrites may be voided in the segment before it.
    ///
    /// # Errors
    /// As of writing, syncing and renaming it.
    pub fn create(dir: &Path, seq: u64, lines: &[u8]) -> io::Result<Self> {
        let path = dir.join(segment::file_name(seq));
        let part = path.with_extension("part");
        match fs::remove_file(&part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = File::options().create_new(true).append(true).open(&part)?;
        file.write_all(lines)?;
        file.sync_data()?;
        if path.exists() {
            fs::rename(&path, segment::free_name(&path, "void"))?;
        }
        fs::rename(&part, &path)?;
        File::open(dir)?.sync_all()?;
        let bytes = lines.len() as u64;
        Ok(Self { file, path, first: seq, bytes, reserved: bytes })
    }

    /// Appends, and syncs what was appended.
    ///
    /// # Errors
    /// As of writing and syncing.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let end = self.bytes + lines.len() as u64;
        if end > self.reserved {
            // Where space cannot be reserved, the write tells.
            _ = fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.reserved, RESERVE + end - self.reserved);
            self.reserved = end + RESERVE;
        }
        self.file.write_all(lines)?;
        self.bytes = end;
        self.file.sync_data()
    }

    pub const fn first(&self) -> u64 {
        self.first
    }

    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the path still leads to the file that is written, as it was written: one that was removed, replaced or cut takes
    /// records that nobody will ever read.
    ///
    /// # Errors
    /// When it does not, or that cannot be told.
    pub fn check_in_place(&self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::metadata(&self.path)?);
        if (ours.dev(), ours.ino()) != (there.dev(), there.ino()) {
            return Err(io::Error::other("the segment was replaced by another file"));
        }
        if ours.len() == self.bytes {
            Ok(())
        } else {
            Err(io::Error::other("the segment was cut or written to by somebody else"))
        }
    }
}

impl Drop for Appender {
    /// Gives back the space that was reserved and not used.
    fn drop(&mut self) {
        _ = self.file.set_len(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j1_a_segment_is_exactly_as_long_as_its_content_and_space_is_reserved_behind_it_until_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let mut segment = Appender::create(dir.path(), 7, b"first\n").unwrap();
        let path = dir.path().join(segment::file_name(7));
        for count in 1..=3 {
            segment.append(&[b'x'; 1000]).unwrap();
            let file = fs::metadata(&path).unwrap();
            assert_eq!(file.len(), 6 + 1000 * count);
            assert!(file.blocks() * 512 >= RESERVE, "{} blocks are too few to hold what is reserved", file.blocks());
        }
        drop(segment);
        let file = fs::metadata(&path).unwrap();
        assert!(file.len() == 3006 && file.blocks() * 512 < RESERVE, "{} blocks are still reserved", file.blocks());
    }
}
