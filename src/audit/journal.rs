//! The journal: one directory, one writer thread, a gapless sequence.

use super::events::{Anonymous, ChangeEntry, Changes, ConnectionEvents, Health};
use super::json::ObjectWriter;
use super::reader::LOCK_FILE;
use super::recorder::{LENGTH_BYTES, Recorder};
use super::segment::{self, Kind, write_line};
use super::{RECORD_BYTES_MAX, Settings};
use crate::clock::{Clock, Instant, monotonic};
use rtrb::Consumer;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// A segment is closed when it has grown to this.
const SEGMENT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Between two looks at the rings.
const REST: Duration = Duration::from_millis(5);
/// Unsynced records are synced after this time, or at this many bytes.
const SYNC_AFTER: Duration = Duration::from_millis(100);
const SYNC_BYTES: usize = 4 * 1024 * 1024;
/// Between two attempts at a journal that fails.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long a stop waits for a journal that fails.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// Changes that wait for the writer.
const CHANGES_MAX: usize = 1024;
/// How many processes can share one directory.
const SLOTS_MAX: usize = 64;

/// Why the journal does not open.
#[derive(Debug, thiserror::Error)]
#[error("the audit journal in {path} cannot be used: {error}")]
pub struct AuditError {
    path: PathBuf,
    error: io::Error,
}

/// The running journal.
pub struct Journal {
    health: Arc<Health>,
    events: ConnectionEvents,
    changes: Changes,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<()>,
}

/// The writer thread's own.
struct Writer {
    dir: PathBuf,
    journal: String,
    config: String,
    clock: Clock,
    rings: Vec<Consumer<u8>>,
    changes: Receiver<ChangeEntry>,
    events: ConnectionEvents,
    anonymous: Arc<Anonymous>,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    segment: Option<Segment>,
    next_seq: u64,
    /// Encoded lines since the last sync, and the `seq` of the first: what a new segment must begin with after a failure.
    retained: Vec<u8>,
    retained_seq: u64,
    /// How much of `retained` has been written to the current segment.
    written: usize,
    synced_at: Instant,
    told_at: Instant,
    refused_told: u64,
    scratch: Vec<u8>,
    _slot: File,
}

struct Segment {
    file: File,
    path: PathBuf,
    bytes: u64,
}

// === impl Journal ===

impl Journal {
    /// Takes the lowest free slot of the directory, recovers it, and starts the writer. Gives one recorder for each worker.
    ///
    /// # Errors
    /// [`AuditError`] when the directory cannot be made, locked, read or written.
    pub fn open(
        settings: &Settings,
        gateway: &str,
        config: &str,
        clock: Clock,
        workers: usize,
    ) -> Result<(Self, Vec<Recorder>), AuditError> {
        let failed = |error| AuditError { path: settings.dir.clone(), error };
        let (slot, dir, lock) = take_slot(&settings.dir).map_err(failed)?;
        let recovered = segment::recover(&dir).map_err(failed)?;
        if let Some(torn) = &recovered.torn {
            tracing::warn!(moved_to = %torn.display(), "the journal's last record was torn");
        }
        let health = Arc::new(Health::new());
        let anonymous = Arc::new(Anonymous::new(settings.anonymous_per_second));
        let (recorders, rings): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| Recorder::new(Arc::clone(&health), Arc::clone(&anonymous))).unzip();
        let (sender, changes) = sync_channel(CHANGES_MAX);
        let events = ConnectionEvents::default();
        let stop = Arc::new(AtomicBool::new(false));
        let mut writer = Writer {
            dir,
            journal: format!("{gateway}/{slot}"),
            config: config.to_owned(),
            clock,
            rings,
            changes,
            events: events.clone(),
            anonymous,
            health: Arc::clone(&health),
            stop: Arc::clone(&stop),
            segment: None,
            next_seq: recovered.last_seq + 1,
            retained: Vec::new(),
            retained_seq: recovered.last_seq + 1,
            written: 0,
            synced_at: monotonic(),
            told_at: monotonic(),
            refused_told: 0,
            scratch: Vec::new(),
            _slot: lock,
        };
        // The first record also shows that the directory takes records.
        writer.append_start();
        writer.write().and_then(|()| writer.sync()).map_err(failed)?;
        let writer = std::thread::Builder::new().name("journal".into()).spawn(move || writer.run()).map_err(failed)?;
        let changes = Changes { sender, health: Arc::clone(&health) };
        Ok((Self { health, events, changes, stop, writer }, recorders))
    }

    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    pub fn connection_events(&self) -> ConnectionEvents {
        self.events.clone()
    }

    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Empties the rings, syncs, and ends the writer. To be called after the workers have ended.
    pub fn shutdown(self) {
        self.stop.store(true, Ordering::SeqCst);
        if self.writer.join().is_err() {
            tracing::error!("the journal's writer panicked");
        }
    }
}

/// Locks the lowest free slot: one writer for each journal.
fn take_slot(dir: &Path) -> io::Result<(usize, PathBuf, File)> {
    for slot in 0..SLOTS_MAX {
        let path = dir.join(slot.to_string());
        fs::create_dir_all(&path)?;
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK_FILE))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok((slot, path, lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::Error::other(format!("all {SLOTS_MAX} slots are in use by other processes")))
}

// === impl Writer ===

impl Writer {
    fn run(mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let more = self.health.is_healthy() && self.collect();
            self.persist(false);
            if !more {
                std::thread::sleep(if self.health.is_healthy() { REST } else { RETRY_AFTER });
            }
        }
        self.finish();
    }

    /// After the stop: empties everything there is into the journal, trying again while that fails, for a bounded time.
    fn finish(&mut self) {
        let deadline = monotonic() + SHUTDOWN_MAX;
        loop {
            let more = self.health.is_healthy().then(|| self.collect());
            self.persist(true);
            match (self.health.is_healthy(), more) {
                (true, Some(false)) => return,
                // Another turn: more was there, or what had waited for the disk can be collected now.
                (true, Some(true) | None) => {}
                (false, _) if monotonic() >= deadline => return self.tell_lost(),
                (false, _) => std::thread::sleep(RETRY_AFTER),
            }
        }
    }

    /// Says exactly what the end of the process takes with it.
    fn tell_lost(&mut self) {
        let mut scratch = Vec::new();
        let waiting: usize = self
            .rings
            .iter_mut()
            .map(|ring| std::iter::from_fn(|| take_record(ring, &mut scratch).then_some(())).count())
            .sum();
        let unsynced = self.next_seq - self.retained_seq;
        let changes = self.changes.try_iter().count();
        let refused = self.health.refused() - self.refused_told;
        tracing::error!(
            unsynced,
            waiting,
            changes,
            refused,
            "audit records lost: the journal could not be written until the end"
        );
    }

    /// Takes what the rings and the counters hold; true when a ring had more than one turn takes.
    fn collect(&mut self) -> bool {
        let mut more = false;
        for index in 0..self.rings.len() {
            more |= self.drain(index);
        }
        while let Ok(change) = self.changes.try_recv() {
            self.append_change(&change);
        }
        if monotonic().saturating_duration_since(self.told_at) >= Duration::from_secs(1)
            || self.stop.load(Ordering::SeqCst)
        {
            self.told_at = monotonic();
            self.append_counts();
            if let Err(error) = self.segment.as_ref().map_or(Ok(()), Segment::check_in_place) {
                self.fail(&error);
            }
        }
        more
    }

    /// Moves records from one ring into the buffer, at most as many as one sync should cover.
    fn drain(&mut self, index: usize) -> bool {
        let mut records = 0;
        let mut scratch = std::mem::take(&mut self.scratch);
        while self.retained.len() < SYNC_BYTES {
            let Some(ring) = self.rings.get_mut(index) else { break };
            if !take_record(ring, &mut scratch) {
                break;
            }
            self.append(Kind::Request, &scratch);
            records += 1;
        }
        self.scratch = scratch;
        self.health.add_records(records);
        self.retained.len() >= SYNC_BYTES
    }

    fn append(&mut self, kind: Kind, body: &[u8]) {
        write_line(&mut self.retained, kind, &self.journal, self.next_seq, &self.config, body);
        self.next_seq += 1;
    }

    fn append_with(&mut self, kind: Kind, members: impl FnOnce(&mut ObjectWriter<'_>)) {
        let now = self.clock.now();
        let mut body = Vec::new();
        let mut object = ObjectWriter::new(&mut body);
        object.plain("ts", &now.to_string());
        members(&mut object);
        self.append(kind, &body);
    }

    fn append_start(&mut self) {
        let version = env!("CARGO_PKG_VERSION");
        self.append_with(Kind::Start, |object| object.plain("version", version));
    }

    /// One record for each kind of count that is not zero.
    fn append_counts(&mut self) {
        for (kind, counts) in [(Kind::Summary, self.anonymous.take()), (Kind::Connection, self.events.take())] {
            if !counts.is_empty() {
                self.append_with(kind, |object| object.raw("counts", Counts(&counts)));
            }
        }
        let refused = self.health.refused() - self.refused_told;
        if refused > 0 {
            self.refused_told += refused;
            self.append_with(Kind::Gap, |object| object.raw("requests_refused", refused));
        }
    }

    fn append_change(&mut self, change: &ChangeEntry) {
        self.append_with(Kind::Change, |object| {
            object.raw("change_seq", change.seq);
            object.plain("changed_at", &change.at.to_string());
            object.text("actor", change.actor.as_bytes(), 256);
            object.plain("action", change.action);
            object.raw("before", change.before.as_deref().unwrap_or("null"));
            object.raw("after", &change.after);
        });
    }

    /// Writes what is new, and syncs when it is time. After a failure the descriptor is never used again: the next attempt
    /// writes everything unsynced into a new segment, under the same numbers.
    fn persist(&mut self, stopping: bool) {
        let due = monotonic().saturating_duration_since(self.synced_at) >= SYNC_AFTER
            || self.retained.len() >= SYNC_BYTES
            || stopping;
        let result = self.write().and_then(|()| if due { self.sync() } else { Ok(()) });
        match result {
            Ok(()) if !self.health.is_healthy() => {
                tracing::info!("the audit journal can be written again");
                self.health.set_healthy(true);
            }
            Ok(()) => {}
            Err(error) => self.fail(&error),
        }
    }

    fn fail(&mut self, error: &io::Error) {
        if self.health.is_healthy() {
            tracing::error!(%error, dir = %self.dir.display(), "the audit journal cannot be written; requests are refused");
        }
        self.health.set_healthy(false);
        self.segment = None;
        self.written = 0;
    }

    fn write(&mut self) -> io::Result<()> {
        let idle = self.segment.is_some() || (self.retained.is_empty() && self.health.is_healthy());
        if self.written == self.retained.len() && idle {
            return Ok(());
        }
        let Some(mut segment) = self.segment.take() else {
            self.segment = Some(create_segment(&self.dir, self.retained_seq, &self.retained)?);
            self.written = self.retained.len();
            return Ok(());
        };
        let new = self.retained.get(self.written..).unwrap_or_default();
        segment.file.write_all(new)?;
        segment.bytes += new.len() as u64;
        self.written = self.retained.len();
        self.segment = Some(segment);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.synced_at = monotonic();
        if self.retained.is_empty() {
            return Ok(());
        }
        let full = match &self.segment {
            Some(segment) => {
                segment.file.sync_data()?;
                segment.bytes >= SEGMENT_BYTES_MAX
            }
            None => return Ok(()),
        };
        self.retained.clear();
        self.written = 0;
        self.retained_seq = self.next_seq;
        if full {
            self.segment = None;
        }
        Ok(())
    }
}

// === impl Segment ===

impl Segment {
    /// Whether the path still leads to the file that is written: one that was removed or replaced takes records that nobody
    /// will ever read.
    fn check_in_place(&self) -> io::Result<()> {
        let (ours, there) = (self.file.metadata()?, fs::metadata(&self.path)?);
        let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        if same { Ok(()) } else { Err(io::Error::other("the segment was replaced by another file")) }
    }
}

/// Takes one record out of a ring. A record is there whole or not at all: its bytes are committed at once.
fn take_record(ring: &mut Consumer<u8>, record: &mut Vec<u8>) -> bool {
    let mut length = [0; LENGTH_BYTES];
    let Ok(chunk) = ring.read_chunk(LENGTH_BYTES) else { return false };
    length.iter_mut().zip(chunk).for_each(|(slot, byte)| *slot = byte);
    let length = u32::from_le_bytes(length) as usize;
    debug_assert!(length <= RECORD_BYTES_MAX);
    record.clear();
    let Ok(chunk) = ring.read_chunk(length) else { return false };
    let (first, second) = chunk.as_slices();
    record.extend_from_slice(first);
    record.extend_from_slice(second);
    chunk.commit_all();
    true
}

/// Creates the segment that begins with `seq` and holds `lines`. It gets its name once they are synced: a segment of that
/// name is whole, so that what it rewrites may be voided in the segment before it.
fn create_segment(dir: &Path, seq: u64, lines: &[u8]) -> io::Result<Segment> {
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
    Ok(Segment { file, path, bytes: lines.len() as u64 })
}

/// Named counts as a JSON object.
struct Counts<'a>(&'a [(&'static str, u64)]);

impl std::fmt::Display for Counts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("{")?;
        for (index, (name, count)) in self.0.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(f, "{comma}\"{name}\":{count}")?;
        }
        f.write_str("}")
    }
}
