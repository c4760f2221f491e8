//! The key set on this gateway's own disk (protocols I2, I3): a snapshot, and a log of what changed since.
//!
//! It lets a gateway start without its store, keeps what was confirmed through `kill -9` and loss of power, and shows at the
//! next start that a store with another history, or none, is not ours. No secret is in it: digests and rules.

mod frames;
mod log;
mod merge;
mod rebase;
mod wire;

use super::lineage::Lineage;
use crate::clock::{Instant, Moment, boot_id};
use crate::store::{Change, FleetId, Position, Record};
use frames::{FrameReader, FrameWriter, Next};
use log::{Contact, Log, Recorded};
pub use merge::Name;
pub use rebase::Onto;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wire::Frame;

const MAGIC: [u8; 20] = *b"keygate-snapshot 2\n\0";
/// A log of this size is merged into the snapshot.
const LOG_BYTES_MAX: u64 = 32 << 20;
/// How often the time of contact is kept, at most: a start without the store believes the time that was kept.
const STAMP_EVERY: Duration = Duration::from_millis(500);
/// Positions in one frame.
const PAST: usize = 4096;

/// A snapshot and its log. One process at a time owns them.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    log: Option<Log>,
    /// Where nothing is kept: what has changed since a draft was begun, for when it gets its name.
    pending: Option<Log>,
    contact: Option<Contact>,
    /// A write has failed: what is on disk is not what is known, until it has been removed.
    is_broken: bool,
    /// 0, which is never believed, where the system does not tell.
    boot: u128,
    merging: Option<JoinHandle<()>>,
    merge_failed: Arc<AtomicBool>,
    merge_at: u64,
}

/// What was read back.
#[derive(Clone, Debug)]
pub struct Recalled {
    pub position: Position,
    pub lineage: Lineage,
    /// When the process that wrote it was last caught up with the store, as of this process's clocks: none where it must
    /// not be served from without the store.
    pub contact: Option<Moment>,
}

/// What a snapshot and its log hold.
#[derive(Clone, Debug)]
pub struct Kept {
    pub position: Position,
    pub lineage: Lineage,
    /// Each as it was last, in no order.
    pub records: Vec<Record>,
}

/// A snapshot that is being written.
#[derive(Debug)]
pub struct Draft {
    path: PathBuf,
    frames: FrameWriter,
}

// === impl Snapshot ===

impl Snapshot {
    /// The snapshot at `path`, and logs whose names begin with it.
    pub fn at(path: PathBuf) -> Self {
        Self {
            path,
            log: None,
            pending: None,
            contact: None,
            is_broken: false,
            boot: boot_id().unwrap_or(0),
            merging: None,
            merge_failed: Arc::default(),
            merge_at: LOG_BYTES_MAX,
        }
    }

    /// Whether there is anything: then this gateway had a position once.
    pub fn exists(&self) -> bool {
        self.path.exists() || logs(&self.path).is_ok_and(|logs| !logs.is_empty())
    }

    /// Reads everything back, record by record, each at its latest state last; none when nothing is there.
    ///
    /// # Errors
    /// When something is missing, changed or not ours to read. What was handed out before is not to be believed then: it may be
    /// of another history than the store's.
    pub fn recall(&mut self, now: Moment, mut each: impl FnMut(Record)) -> io::Result<Option<Recalled>> {
        let logs = logs(&self.path)?;
        let Some((mut position, mut lineage)) = read_snapshot(&self.path, &mut each)? else {
            return if logs.is_empty() { Ok(None) } else { Err(damaged(&self.path, "it is missing, but not its log")) };
        };
        let mut last = None;
        for path in logs {
            let mut recorded = Recorded::open(&path)?;
            position = follow(&mut recorded, position, &mut lineage, &mut each)?;
            last = Some(recorded);
        }
        let contact = last.as_ref().and_then(|log| log.contact).filter(|contact| contact.position.seq > 0);
        if contact.is_some_and(|contact| contact.position.seq > position.seq) {
            return Err(damaged(&self.path, "its log ends before the position that was reached"));
        }
        self.log = Some(match last {
            Some(recorded) => Log::reopen(recorded.path, recorded.entries.offset())?,
            None => Log::create(log_path(&self.path, position), position)?,
        });
        self.contact = contact.filter(|contact| contact.boot == self.boot);
        let contact = contact.and_then(|contact| as_of(&contact, self.boot, now));
        Ok(Some(Recalled { position, lineage, contact }))
    }

    /// Everything that was kept under a version above `seq`, each record as it was last; in no order.
    ///
    /// # Errors
    /// As of reading the files.
    pub fn changed_after(&mut self, seq: u64) -> io::Result<Vec<Record>> {
        self.wait_for_merge();
        Ok(read_after(&self.path, seq)?.map(|kept| kept.records).unwrap_or_default())
    }

    /// What is kept, without touching it: another process may own it, and merge a log into it meanwhile.
    ///
    /// # Errors
    /// As of reading the files.
    pub fn read(&self) -> io::Result<Option<Kept>> {
        read_after(&self.path, 0).or_else(|_| read_after(&self.path, 0))
    }

    /// Of which fleet it is, without reading all of it; none when nothing is there, or it does not say so.
    ///
    /// # Errors
    /// As of reading the files.
    pub fn fleet(&self) -> io::Result<Option<FleetId>> {
        let Some(mut frames) = open_frames(&self.path)? else { return Ok(None) };
        if let Next::Frame(bytes) = frames.read()?
            && let Ok(Frame::Fleet(fleet)) = wire::decode_frame(bytes)
        {
            return Ok(Some(fleet));
        }
        // An older version wrote it behind the records.
        Ok(self.read()?.and_then(|kept| kept.lineage.fleet))
    }

    /// Begins another snapshot beside this one, of everything that a fleet has up to `position`.
    ///
    /// # Errors
    /// As of making files.
    pub fn draft(&mut self, position: Position, fleet: Option<FleetId>) -> io::Result<Draft> {
        self.merge_failed.store(false, Ordering::SeqCst);
        self.pending = None;
        let draft = Draft::create(sibling(&self.path, ".draft"), fleet)?;
        if self.log.is_none() {
            self.pending = Some(Log::create(sibling(&self.path, ".draft.log"), position)?);
        }
        Ok(draft)
    }

    /// Puts `draft` in place of the snapshot: everything up to `position`, to which that lineage led. Beside it is what has
    /// changed since then, which it may lack.
    ///
    /// # Errors
    /// As of writing.
    pub fn replace(&mut self, draft: Draft, position: Position, lineage: &Lineage) -> io::Result<()> {
        self.wait_for_merge();
        if self.log.is_some() {
            // It goes on from before that position, and holds what was confirmed since.
            return draft.finish(position, lineage, &self.path);
        }
        let pending = self.pending.take().ok_or_else(|| io::Error::other("there is no log for it"))?;
        logs(&self.path)?.iter().try_for_each(fs::remove_file)?;
        // Before the snapshot, which is never to be taken for whole without it.
        let log = pending.rename(log_path(&self.path, position))?;
        draft.finish(position, lineage, &self.path)?;
        (self.log, self.contact, self.is_broken) = (Some(log), None, false);
        Ok(())
    }

    /// Goes over to another history. With nothing kept, does nothing.
    ///
    /// # Errors
    /// As of reading and writing. What is on disk is not what is known any more then: [`Self::abandon`] it.
    pub fn rebase(&mut self, onto: Onto<'_>) -> io::Result<()> {
        self.wait_for_merge();
        self.pending = None;
        if self.log.take().is_none() {
            return Ok(());
        }
        let rebased = rebase::rebase(&self.path, onto).inspect_err(|_| self.is_broken = true);
        (self.log, self.contact, self.merge_at) = (Some(rebased?), None, LOG_BYTES_MAX);
        sync_dir(&self.path)
    }

    /// Whether changes are kept.
    pub const fn is_kept(&self) -> bool {
        self.log.is_some()
    }

    /// Keeps `entries`, with which `lineage` ends; they are on disk when this returns (protocols I3). With nothing to add them to,
    /// does nothing.
    ///
    /// # Errors
    /// As of writing. What is on disk is not what is known any more then: [`Self::abandon`] it.
    pub fn append(&mut self, entries: &[Change], lineage: &Lineage) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        if let Some(pending) = &mut self.pending
            && let Err(error) = pending.append(entries)
        {
            tracing::error!(%error, "changes of keys cannot be written beside a snapshot that is being written");
            self.pending = None;
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(entries).inspect_err(|_| self.is_broken = true)?;
        if let Some(last) = entries.last().filter(|_| log.len() >= self.merge_at) {
            self.merge(Position { seq: last.seq, token: last.token }, lineage)?;
        }
        Ok(())
    }

    /// Keeps when this gateway was last caught up, at `position`. From time to time only: an older time is a shorter right.
    ///
    /// # Errors
    /// As of writing.
    pub fn stamp(&mut self, at: Moment, position: Position) -> io::Result<()> {
        let is_due = |last: Contact| at.mono.saturating_duration_since(last.at.mono) >= STAMP_EVERY;
        let Some(log) = self.log.as_ref().filter(|_| self.contact.is_none_or(is_due)) else { return Ok(()) };
        let contact = Contact { boot: self.boot, at, position };
        self.contact = Some(contact);
        log.stamp(Some(&contact))
    }

    /// Whoever starts from this needs the store first: nobody waits for this gateway any more.
    ///
    /// # Errors
    /// As of writing.
    pub fn retire(&mut self) -> io::Result<()> {
        self.wait_for_merge();
        match &self.log {
            Some(log) if !self.is_broken => log.stamp(None).and_then(|()| log.sync()),
            Some(_) | None => self.abandon(),
        }
    }

    /// Removes everything: what is on disk is not what is known.
    ///
    /// # Errors
    /// When it may still be there.
    pub fn abandon(&mut self) -> io::Result<()> {
        self.wait_for_merge();
        (self.is_broken, self.pending) = (true, None);
        for path in std::iter::once(self.path.clone()).chain(logs(&self.path)?) {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        sync_dir(&self.path)?;
        (self.log, self.contact, self.is_broken) = (None, None, false);
        Ok(())
    }

    /// Whether the snapshot is to be written anew from the store: its log could not be merged into it.
    pub fn is_to_be_replaced(&self) -> bool {
        self.merge_failed.load(Ordering::SeqCst)
    }

    /// Begins a new log at `position`, and has what is before it merged into the snapshot meanwhile.
    fn merge(&mut self, position: Position, lineage: &Lineage) -> io::Result<()> {
        if self.merging.as_ref().is_some_and(|merging| !merging.is_finished()) {
            self.merge_at = self.merge_at.saturating_add(LOG_BYTES_MAX);
            return Ok(());
        }
        self.wait_for_merge();
        let log = Log::create(log_path(&self.path, position), position)?;
        log.stamp(self.contact.as_ref())?;
        (self.log, self.merge_at) = (Some(log), LOG_BYTES_MAX);
        let (path, lineage, failed) = (self.path.clone(), lineage.clone(), Arc::clone(&self.merge_failed));
        let merge = move || {
            if let Err(error) = merge::merge(&path, position, &lineage) {
                failed.store(true, Ordering::SeqCst);
                tracing::error!(%error, path = %path.display(), "the log of key changes could not be merged into the snapshot, which is written anew");
            }
        };
        self.merging = Some(std::thread::Builder::new().name("snapshot".into()).spawn(merge)?);
        Ok(())
    }

    /// Every write fails from now on, as after an error of the disk.
    #[cfg(test)]
    pub fn close_for_writing(&mut self) {
        self.log.iter_mut().for_each(Log::close_for_writing);
    }

    fn wait_for_merge(&mut self) {
        if self.merging.take().is_some_and(|merging| merging.join().is_err()) {
            tracing::error!("merging the log of key changes into the snapshot panicked");
        }
    }
}

// === impl Draft ===

impl Draft {
    fn create(path: PathBuf, fleet: Option<FleetId>) -> io::Result<Self> {
        fs::create_dir_all(directory(&path))?;
        // Another file, not the same one emptied: an earlier writer that was given up may still hold that.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut &file, &MAGIC)?;
        let mut frames = FrameWriter::new(file);
        if let Some(fleet) = fleet {
            frames.write(&wire::encode_fleet(fleet).map_err(io::Error::other)?)?;
        }
        Ok(Self { path, frames })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// As of writing.
    pub fn add(&mut self, record: &Record) -> io::Result<()> {
        self.frames.write(&wire::encode_record(record).map_err(io::Error::other)?)
    }

    /// Gives it its name once it is whole and on disk.
    fn finish(mut self, position: Position, lineage: &Lineage, path: &Path) -> io::Result<()> {
        let past: Vec<_> = lineage.up_to(position.seq).collect();
        for past in past.chunks(PAST) {
            self.frames.write(&wire::encode_past(past).map_err(io::Error::other)?)?;
        }
        self.frames.write(&wire::encode_end(position).map_err(io::Error::other)?)?;
        self.frames.finish()?;
        fs::rename(&self.path, path)?;
        sync_dir(path)
    }
}

fn read_after(path: &Path, seq: u64) -> io::Result<Option<Kept>> {
    let mut records = HashMap::new();
    let mut each = |record: Record| {
        if record.version() > seq {
            records.insert(Name::of(&record), record);
        }
    };
    let Some((mut position, mut lineage)) = read_snapshot(path, &mut each)? else { return Ok(None) };
    for path in logs(path)? {
        position = follow(&mut Recorded::open(&path)?, position, &mut lineage, &mut each)?;
    }
    Ok(Some(Kept { position, lineage, records: records.into_values().collect() }))
}

/// Hands out a snapshot's records; its position and what led there, or none when there is no file.
fn read_snapshot(path: &Path, each: &mut impl FnMut(Record)) -> io::Result<Option<(Position, Lineage)>> {
    let Some(mut frames) = open_frames(path)? else { return Ok(None) };
    let mut lineage = Lineage::default();
    loop {
        let offset = frames.offset();
        let Next::Frame(bytes) = frames.read()? else {
            return Err(damaged(path, &format!("it is torn at byte {offset}")));
        };
        match wire::decode_frame(bytes).map_err(|error| damaged(path, &format!("at byte {offset}: {error}")))? {
            Frame::Record(record) => each(record),
            Frame::Fleet(fleet) => lineage.fleet = Some(fleet),
            Frame::Past(past) => lineage.extend(past),
            Frame::End(position) => {
                lineage.extend([position]);
                return Ok(Some((position, lineage)));
            }
        }
    }
}

/// What follows the head of a snapshot; none when there is no file.
fn open_frames(path: &Path) -> io::Result<Option<FrameReader>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Err(damaged(path, "it is no snapshot of this version"));
    }
    Ok(Some(FrameReader::new(file, MAGIC.len() as u64)))
}

/// Hands out what a log adds after `position`; the position after that.
fn follow(
    log: &mut Recorded,
    mut position: Position,
    lineage: &mut Lineage,
    each: &mut impl FnMut(Record),
) -> io::Result<Position> {
    let breaks = |reached: Position| reached.seq == position.seq && reached.token != position.token;
    if log.base.seq > position.seq || breaks(log.base) {
        return Err(damaged(&log.path, "it does not follow the snapshot"));
    }
    while let Some(change) = log.entries.read()? {
        let reached = Position { seq: change.seq, token: change.token };
        if reached.seq == position.seq + 1 {
            position = reached;
            lineage.extend([position]);
            each(change.after);
        } else if reached.seq > position.seq || reached.seq == position.seq && reached.token != position.token {
            return Err(damaged(&log.path, &format!("entry {} does not follow {}", reached.seq, position.seq)));
        }
    }
    Ok(position)
}

/// A time of contact as of this process's clocks (protocols I2): after another start of the machine the wall clock alone
/// can tell how long ago it was, and one that went back cannot.
fn as_of(contact: &Contact, boot: u128, now: Moment) -> Option<Moment> {
    if now.wall < contact.at.wall {
        return None;
    }
    if contact.boot == boot && boot != 0 {
        return (contact.at.mono <= now.mono).then_some(contact.at);
    }
    let age = u64::try_from(now.wall.since(contact.at.wall).as_nanos()).unwrap_or(u64::MAX);
    let mono = Instant::from_nanos(now.mono.as_nanos().saturating_sub(age));
    Some(Moment { wall: contact.at.wall, mono })
}

/// The logs of the snapshot at `path`, in order.
fn logs(path: &Path) -> io::Result<Vec<PathBuf>> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned() + ".").unwrap_or_default();
    let is_log = |found: &PathBuf| {
        let found = found.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let number = found.strip_prefix(&name).and_then(|rest| rest.strip_suffix(".log"));
        number.is_some_and(|number| number.len() == SEQ_DIGITS && number.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let entries = match fs::read_dir(directory(path)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut logs = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?;
    logs.retain(is_log);
    logs.sort();
    Ok(logs)
}

/// Digits of a log's number, so that names sort as numbers do.
const SEQ_DIGITS: usize = 20;

fn log_path(path: &Path, base: Position) -> PathBuf {
    sibling(path, &format!(".{:0SEQ_DIGITS$}.log", base.seq))
}

/// The file beside `path` whose name is longer by `suffix`.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn directory(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(directory(path))?.sync_all()
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests;
