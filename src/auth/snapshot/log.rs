//! The feed log: what changed since the snapshot, entry by entry, and when this gateway was last caught up.

use super::frames::{FrameReader, Next, frame};
use super::wire;
use crate::clock::{Instant, Moment, Timestamp};
use crate::store::{Change, Position};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 24] = *b"keygate-feed-log 2\n\0\0\0\0\0";
/// Where the log begins, then where the contact is kept, then the entries.
const CONTACT_AT: u64 = 64;
const ENTRIES_AT: u64 = 128;
/// Five numbers and the boot id, then their CRC-32.
const CONTACT_BYTES: usize = 48;

/// A log that is written.
#[derive(Debug)]
pub struct Log {
    pub path: PathBuf,
    file: File,
    /// Bytes written and known to be whole.
    len: u64,
}

/// When this gateway was last caught up, and where it stood then: the t0 of protocols I1 for a process to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// Which start of the machine the clock counts from.
    pub boot: u128,
    pub at: Moment,
    pub position: Position,
}

/// What a log holds.
#[derive(Debug)]
pub struct Recorded {
    pub path: PathBuf,
    /// The position that the first entry follows.
    pub base: Position,
    pub contact: Option<Contact>,
    /// Its entries, in order, as far as they are whole.
    pub entries: Entries,
}

/// Reads entries.
#[derive(Debug)]
pub struct Entries(FrameReader);

// === impl Log ===

impl Log {
    /// Makes a log whose first entry will follow `base`. It has its name, and is on disk, when this returns.
    pub fn create(path: PathBuf, base: Position) -> io::Result<Self> {
        let new = super::sibling(&path, ".new");
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut header = MAGIC.to_vec();
        header.extend(base.seq.to_le_bytes());
        header.extend(base.token.to_le_bytes());
        header.extend(crc32fast::hash(&header).to_le_bytes());
        header.resize(ENTRIES_AT as usize, 0);
        file.write_all_at(&header, 0)?;
        file.sync_all()?;
        std::fs::rename(new, &path)?;
        super::sync_dir(&path)?;
        Ok(Self { path, file, len: ENTRIES_AT })
    }

    /// Gives it another name.
    pub fn rename(self, path: PathBuf) -> io::Result<Self> {
        std::fs::rename(&self.path, &path)?;
        super::sync_dir(&path)?;
        Ok(Self { path, ..self })
    }

    /// Goes on with a log that was read up to `len`; what is behind that was never confirmed.
    pub fn reopen(path: PathBuf, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        file.set_len(len)?;
        file.sync_all()?;
        Ok(Self { path, file, len })
    }

    /// Appends entries; they are on disk when this returns.
    pub fn append(&mut self, entries: &[Change]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for entry in entries {
            bytes.extend(frame(&wire::encode_change(entry).map_err(io::Error::other)?)?);
        }
        self.file.write_all_at(&bytes, self.len)?;
        self.file.sync_data()?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Keeps the time of the latest contact, or that there is none to go by. Not synced: a later time that is lost only makes
    /// the right to serve end earlier.
    pub fn stamp(&self, contact: Option<&Contact>) -> io::Result<()> {
        let bytes = contact.map_or([0; CONTACT_BYTES + 4], |contact| contact.to_bytes());
        self.file.write_all_at(&bytes, CONTACT_AT)
    }

    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Every write fails from now on.
    #[cfg(test)]
    pub fn close_for_writing(&mut self) {
        self.file = File::open(&self.path).unwrap();
    }
}

// === impl Contact ===

impl Contact {
    fn to_bytes(self) -> [u8; CONTACT_BYTES + 4] {
        let numbers = [
            self.at.mono.as_nanos(),
            u64::from_le_bytes(self.at.wall.as_micros().to_le_bytes()),
            self.position.seq,
            self.position.token,
        ];
        let mut bytes = [0; CONTACT_BYTES + 4];
        let parts = self.boot.to_le_bytes().into_iter().chain(numbers.into_iter().flat_map(u64::to_le_bytes));
        bytes.iter_mut().zip(parts).for_each(|(slot, byte)| *slot = byte);
        let crc = crc32fast::hash(bytes.first_chunk::<CONTACT_BYTES>().unwrap_or(&[0; CONTACT_BYTES]));
        bytes.iter_mut().skip(CONTACT_BYTES).zip(crc.to_le_bytes()).for_each(|(slot, byte)| *slot = byte);
        bytes
    }

    /// None for bytes that were never written whole.
    fn from_bytes(bytes: &[u8; CONTACT_BYTES + 4]) -> Option<Self> {
        let (body, crc) = bytes.split_first_chunk::<CONTACT_BYTES>()?;
        if crc32fast::hash(body).to_le_bytes() != crc {
            return None;
        }
        let (boot, numbers) = body.split_first_chunk::<16>()?;
        let number = |index: usize| {
            let chunk = numbers.chunks_exact(8).nth(index)?;
            chunk.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes))
        };
        Some(Self {
            boot: u128::from_le_bytes(*boot),
            at: Moment {
                mono: Instant::from_nanos(number(0)?),
                wall: Timestamp::from_micros(i64::from_le_bytes(number(1)?.to_le_bytes())),
            },
            position: Position { seq: number(2)?, token: number(3)? },
        })
    }
}

// === impl Recorded ===

impl Recorded {
    /// Opens a log for reading.
    ///
    /// # Errors
    /// `InvalidData`, for a file that is no log of ours.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let mut header = [0; ENTRIES_AT as usize];
        file.read_exact(&mut header)?;
        let base = read_base(&header).ok_or_else(|| super::damaged(path, "its head is no feed log's"))?;
        let contact = header.get(CONTACT_AT as usize..).and_then(|rest| rest.first_chunk());
        file.seek(SeekFrom::Start(ENTRIES_AT))?;
        Ok(Self {
            path: path.to_owned(),
            base,
            contact: contact.and_then(Contact::from_bytes),
            entries: Entries(FrameReader::new(file, ENTRIES_AT)),
        })
    }
}

fn read_base(header: &[u8; ENTRIES_AT as usize]) -> Option<Position> {
    let (head, rest) = header.split_first_chunk::<40>()?;
    let is_ours = head.starts_with(&MAGIC) && rest.starts_with(&crc32fast::hash(head).to_le_bytes());
    let (_, numbers) = head.split_first_chunk::<24>()?;
    let (seq, token) = numbers.split_first_chunk::<8>()?;
    let token = token.first_chunk::<8>()?;
    is_ours.then(|| Position { seq: u64::from_le_bytes(*seq), token: u64::from_le_bytes(*token) })
}

// === impl Entries ===

impl Entries {
    /// The next entry; none at the end, and where what follows is not whole.
    pub fn read(&mut self) -> io::Result<Option<Change>> {
        match self.0.read()? {
            Next::Frame(bytes) => wire::decode_change(bytes).map(Some).map_err(io::Error::other),
            Next::End | Next::Torn => Ok(None),
        }
    }

    /// The offset behind the last entry that was read.
    pub const fn offset(&self) -> u64 {
        self.0.offset()
    }
}
