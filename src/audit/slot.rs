//! Slots: the places in an audit directory, one for each process that shares it, each held by a lock.

use super::reader::{LOCK_FILE, SYNCED_FILE};
use crate::clock::boot_id;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How many processes can share one directory.
const SLOTS_MAX: usize = 64;
const RING_PREFIX: &str = "ring-";
const LOCK_TRIES: u32 = 5;

/// A slot that this process holds: only it assigns numbers there and writes.
#[derive(Debug)]
pub struct Slot {
    pub number: usize,
    pub dir: PathBuf,
    lock: File,
    synced: File,
}

/// How the process that had a slot before ended, as its lock file tells: that holds the boot id while a process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// In good order; or there was none.
    InOrder,
    Killed,
    /// The machine ended, or was started anew, while it went on.
    WithTheMachine,
}

/// Takes the lowest free slot, and all others that no process holds: who held them has died and may have left something.
///
/// # Errors
/// As of making and locking the directories; when no slot is free.
pub fn take(dir: &Path) -> io::Result<(Slot, Vec<Slot>)> {
    let mut taken = Vec::new();
    for number in 0..SLOTS_MAX {
        let path = dir.join(number.to_string());
        if !taken.is_empty() && !path.exists() {
            continue;
        }
        taken.extend(Slot::lock(number, path)?);
    }
    let mut taken = taken.into_iter();
    let lowest = taken.next();
    let lowest =
        lowest.ok_or_else(|| io::Error::other(format!("all {SLOTS_MAX} slots are in use by other processes")))?;
    Ok((lowest, taken.collect()))
}

/// The file of a worker's ring.
pub fn ring_name(worker: usize) -> String {
    format!("{RING_PREFIX}{worker}")
}

/// Takes a lock. A reader holds it for a moment to ask whether somebody else does: so it is tried again.
fn hold(lock: &File) -> rustix::io::Result<()> {
    for _ in 1..LOCK_TRIES {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(2)),
            result => return result,
        }
    }
    flock(lock, FlockOperation::NonBlockingLockExclusive)
}

/// What tells this start of the machine from others.
fn this_boot() -> [u8; 16] {
    boot_id().unwrap_or(0).to_be_bytes()
}

// === impl Slot ===

impl Slot {
    /// None when another process holds it.
    fn lock(number: usize, dir: PathBuf) -> io::Result<Option<Self>> {
        fs::create_dir_all(&dir)?;
        let open =
            |name: &str| File::options().create(true).truncate(false).write(true).read(true).open(dir.join(name));
        let lock = open(LOCK_FILE)?;
        match hold(&lock) {
            Ok(()) => {
                let synced = open(SYNCED_FILE)?;
                Ok(Some(Self { number, dir, lock, synced }))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the slot anew where its directory was removed; whether it was.
    ///
    /// # Errors
    /// As of making and locking it; also when another process has taken it meanwhile.
    pub fn restore(&mut self) -> io::Result<bool> {
        if self.dir.join(LOCK_FILE).exists() {
            return Ok(false);
        }
        let restored = Self::lock(self.number, self.dir.clone())?;
        let restored = restored.ok_or_else(|| io::Error::other("another process has taken the slot"))?;
        (self.lock, self.synced) = (restored.lock, restored.synced);
        self.begin()?;
        Ok(true)
    }

    /// How the process before ended; the same until [`Slot::begin`] or [`Slot::end`].
    ///
    /// # Errors
    /// As of reading the file.
    pub fn ended(&self) -> io::Result<Ended> {
        let mut boot = [0; 16];
        match self.lock.read_exact_at(&mut boot, 0) {
            Ok(()) if boot == this_boot() => Ok(Ended::Killed),
            Ok(()) => Ok(Ended::WithTheMachine),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Ended::InOrder),
            Err(error) => Err(error),
        }
    }

    /// This process goes on here. Returns when that is on the disk.
    ///
    /// # Errors
    /// As of writing the file.
    pub fn begin(&self) -> io::Result<()> {
        self.lock.write_all_at(&this_boot(), 0)?;
        self.lock.sync_all()?;
        File::open(&self.dir)?.sync_all()
    }

    /// Nothing is left to be done here.
    ///
    /// # Errors
    /// As of writing the file.
    pub fn end(&self) -> io::Result<()> {
        self.lock.set_len(0)?;
        self.lock.sync_all()
    }

    /// The rings in it, by file.
    ///
    /// # Errors
    /// As of reading the directory.
    pub fn rings(&self) -> io::Result<Vec<PathBuf>> {
        let mut rings = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(RING_PREFIX)) {
                rings.push(entry.path());
            }
        }
        rings.sort();
        Ok(rings)
    }

    /// The last number that was told to be synced; 0 if none was.
    ///
    /// # Errors
    /// As of reading the file.
    pub fn synced(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        match self.synced.read_exact_at(&mut bytes, 0) {
            Ok(()) => Ok(u64::from_le_bytes(bytes)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Tells the readers that everything up to `seq` is synced.
    ///
    /// # Errors
    /// As of writing the file.
    pub fn tell_synced(&self, seq: u64) -> io::Result<()> {
        self.synced.write_all_at(&seq.to_le_bytes(), 0)
    }
}
