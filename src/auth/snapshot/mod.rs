//! The key set on this gateway's own disk (protocols I2, I3): a snapshot, and a log of what changed since.
//!
//! It lets a gateway start without its store, keeps what was confirmed through `kill -9` and loss of power, and shows at the
//! next start that a store with another history, or none, is not ours. No secret is in it: digests and rules.

mod frames;
mod log;
mod merge;
mod wire;

use crate::clock::{Instant, Moment, boot_id};
use crate::store::{Change, Position, Record};
use frames::{FrameReader, FrameWriter, Next};
use log::{Contact, Log, Recorded};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use wire::Frame;

const MAGIC: [u8; 20] = *b"keygate-snapshot 1\n\0";
/// A log of this size is merged into the snapshot.
const LOG_BYTES_MAX: u64 = 32 << 20;
/// How often the time of contact is kept, at most: a start without the store believes the time that was kept.
const STAMP_EVERY: Duration = Duration::from_millis(500);

/// A snapshot and its log. One process at a time owns them.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    log: Option<Log>,
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
#[derive(Clone, Copy, Debug)]
pub struct Recalled {
    pub position: Position,
    /// When the process that wrote it was last caught up with the store, as of this process's clocks: none where it must
    /// not be served from without the store.
    pub contact: Option<Moment>,
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
        let Some(mut position) = read_snapshot(&self.path, &mut each)? else {
            return if logs.is_empty() { Ok(None) } else { Err(damaged(&self.path, "it is missing, but not its log")) };
        };
        let mut last = None;
        for path in logs {
            let mut recorded = Recorded::open(&path)?;
            position = follow(&mut recorded, position, &mut each)?;
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
        Ok(Some(Recalled { position, contact: contact.and_then(|contact| as_of(&contact, self.boot, now)) }))
    }

    /// Begins another snapshot beside this one.
    ///
    /// # Errors
    /// As of making a file.
    pub fn draft(&self) -> io::Result<Draft> {
        self.merge_failed.store(false, Ordering::SeqCst);
        Draft::create(sibling(&self.path, ".draft"))
    }

    /// Puts `draft` in place of the snapshot: everything up to `position`. Without a log another one begins there.
    ///
    /// # Errors
    /// As of writing.
    pub fn replace(&mut self, draft: Draft, position: Position) -> io::Result<()> {
        self.wait_for_merge();
        draft.finish(position, &self.path)?;
        if self.log.is_some() {
            // It goes on from before that position, and holds what was confirmed since.
            return Ok(());
        }
        let log = Log::create(log_path(&self.path, position), position)?;
        let old = logs(&self.path)?;
        old.iter().filter(|path| **path != log.path).try_for_each(fs::remove_file)?;
        (self.log, self.contact, self.is_broken) = (Some(log), None, false);
        sync_dir(&self.path)
    }

    /// Whether changes are kept.
    pub const fn is_kept(&self) -> bool {
        self.log.is_some()
    }

    /// Keeps `entries`; they are on disk when this returns (protocols I3). With nothing to add them to, does nothing.
    ///
    /// # Errors
    /// As of writing. What is on disk is not what is known any more then: [`Self::abandon`] it.
    pub fn append(&mut self, entries: &[Change]) -> io::Result<()> {
        if self.is_broken {
            return Err(io::Error::other("an earlier write failed"));
        }
        let Some(log) = &mut self.log else { return Ok(()) };
        log.append(entries).inspect_err(|_| self.is_broken = true)?;
        if let Some(last) = entries.last().filter(|_| log.len() >= self.merge_at) {
            self.merge(Position { seq: last.seq, token: last.token })?;
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
        self.is_broken = true;
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
    fn merge(&mut self, position: Position) -> io::Result<()> {
        if self.merging.as_ref().is_some_and(|merging| !merging.is_finished()) {
            self.merge_at = self.merge_at.saturating_add(LOG_BYTES_MAX);
            return Ok(());
        }
        self.wait_for_merge();
        let log = Log::create(log_path(&self.path, position), position)?;
        log.stamp(self.contact.as_ref())?;
        (self.log, self.merge_at) = (Some(log), LOG_BYTES_MAX);
        let (path, failed) = (self.path.clone(), Arc::clone(&self.merge_failed));
        let merge = move || {
            if let Err(error) = merge::merge(&path, position) {
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
    fn create(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(directory(&path))?;
        // Another file, not the same one emptied: an earlier writer that was given up may still hold that.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        io::Write::write_all(&mut &file, &MAGIC)?;
        Ok(Self { path, frames: FrameWriter::new(file) })
    }

    /// Adds a record.
    ///
    /// # Errors
    /// As of writing.
    pub fn add(&mut self, record: &Record) -> io::Result<()> {
        self.frames.write(&wire::encode_record(record).map_err(io::Error::other)?)
    }

    /// Gives it its name once it is whole and on disk.
    fn finish(mut self, position: Position, path: &Path) -> io::Result<()> {
        self.frames.write(&wire::encode_end(position).map_err(io::Error::other)?)?;
        self.frames.finish()?;
        fs::rename(&self.path, path)?;
        sync_dir(path)
    }
}

/// Hands out a snapshot's records; its position, or none when there is no file.
fn read_snapshot(path: &Path, each: &mut impl FnMut(Record)) -> io::Result<Option<Position>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut magic = [0; MAGIC.len()];
    if file.read_exact(&mut magic).is_err() || magic != MAGIC {
        return Err(damaged(path, "it is no snapshot of this version"));
    }
    let mut frames = FrameReader::new(file, MAGIC.len() as u64);
    loop {
        let offset = frames.offset();
        let Next::Frame(bytes) = frames.read()? else {
            return Err(damaged(path, &format!("it is torn at byte {offset}")));
        };
        match wire::decode_frame(bytes).map_err(|error| damaged(path, &format!("at byte {offset}: {error}")))? {
            Frame::Record(record) => each(record),
            Frame::End(position) => return Ok(Some(position)),
        }
    }
}

/// Hands out what a log adds after `position`; the position after that.
fn follow(log: &mut Recorded, mut position: Position, each: &mut impl FnMut(Record)) -> io::Result<Position> {
    let breaks = |reached: Position| reached.seq == position.seq && reached.token != position.token;
    if log.base.seq > position.seq || breaks(log.base) {
        return Err(damaged(&log.path, "it does not follow the snapshot"));
    }
    while let Some(change) = log.entries.read()? {
        let reached = Position { seq: change.seq, token: change.token };
        if reached.seq == position.seq + 1 {
            position = reached;
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
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::key::{EntityId, EntityRecord};
    use crate::store::Action;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// What a snapshot should hold: by record, its latest version.
    type Model = BTreeMap<u128, u64>;

    fn change(seq: u64, number: u128) -> Change {
        let (id, created_at) = (EntityId::from_bits(number), Timestamp::from_micros(1));
        let entity =
            EntityRecord { id, version: seq, code: "acme".into(), name: "Acme".into(), created_at, deleted_at: None };
        let (actor, action, after) = ("test".to_owned(), Action::EntityCreated, Record::Entity(entity));
        Change { seq, token: seq * 7, at: created_at, actor, action, before: None, after }
    }

    fn at(seq: u64) -> Position {
        Position { seq, token: seq * 7 }
    }

    /// A snapshot of nothing at position 0.
    fn begin(dir: &Path) -> Snapshot {
        let mut snapshot = Snapshot::at(dir.join("keys.snapshot"));
        let draft = snapshot.draft().unwrap();
        snapshot.replace(draft, at(0)).unwrap();
        snapshot
    }

    fn recall(dir: &Path) -> io::Result<Option<(Recalled, Model)>> {
        let (mut model, mut snapshot) = (Model::new(), Snapshot::at(dir.join("keys.snapshot")));
        let recalled = snapshot.recall(Clock::system().moment(), |record| {
            let Record::Entity(entity) = record else { panic!("a key") };
            let version = model.entry(entity.id.to_bits()).or_insert(0);
            assert!(*version < entity.version, "an older state after a newer one");
            *version = entity.version;
        })?;
        Ok(recalled.map(|recalled| (recalled, model)))
    }

    #[derive(Clone, Debug)]
    enum Step {
        Append(Vec<u8>),
        Stamp,
        Merge,
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => prop::collection::vec(0..20_u8, 1..5).prop_map(Step::Append),
            2 => Just(Step::Stamp),
            1 => Just(Step::Merge),
            1 => Just(Step::Reopen),
        ];
        prop::collection::vec(step, 1..30)
    }

    /// Runs the steps; what should be there, and the last position that was stamped.
    fn run(dir: &Path, steps: &[Step]) -> (Position, Model, u64) {
        let (mut snapshot, mut seq, mut model, mut stamped) = (begin(dir), 0, Model::new(), 0);
        for step in steps {
            match step {
                Step::Append(records) => {
                    let changes: Vec<_> =
                        (seq + 1..).zip(records).map(|(seq, n)| change(seq, u128::from(*n))).collect();
                    changes.iter().zip(records).for_each(|(change, n)| _ = model.insert(u128::from(*n), change.seq));
                    seq += records.len() as u64;
                    snapshot.append(&changes).unwrap();
                }
                Step::Stamp => {
                    snapshot.contact = None;
                    snapshot.stamp(Clock::system().moment(), at(seq)).unwrap();
                    stamped = seq;
                }
                Step::Merge
                    if snapshot.log.as_ref().is_some_and(|log| log.path != log_path(&snapshot.path, at(seq))) =>
                {
                    snapshot.merge(at(seq)).unwrap();
                }
                Step::Merge => {}
                Step::Reopen => {
                    snapshot.wait_for_merge();
                    snapshot = Snapshot::at(dir.join("keys.snapshot"));
                    snapshot.recall(Clock::system().moment(), |_| {}).unwrap().unwrap();
                }
            }
        }
        snapshot.wait_for_merge();
        (at(seq), model, stamped)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn i3_what_was_appended_is_read_back_whatever_was_merged_and_reopened(steps in steps()) {
            let dir = tempfile::tempdir().unwrap();
            let (position, model, stamped) = run(dir.path(), &steps);
            let (recalled, found) = recall(dir.path()).unwrap().unwrap();
            prop_assert_eq!((recalled.position, &found), (position, &model));
            prop_assert_eq!(recalled.contact.is_some(), stamped > 0);
            let files = std::fs::read_dir(dir.path()).unwrap().count();
            prop_assert_eq!(files, 2, "a snapshot and one log");
        }

        #[test]
        fn a_changed_byte_a_cut_end_or_zeros_give_no_right_to_serve_what_is_not_whole(
            steps in steps(), file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in 0..10_u32
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (_, model, stamped) = run(dir.path(), &steps);
            let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
            files.sort();
            let path = &files[file.index(files.len())];
            let mut bytes = std::fs::read(path).unwrap();
            let place = at.index(bytes.len());
            match flip {
                8 => bytes.truncate(place),
                9 => bytes[place..].fill(0),
                bit => bytes[place] ^= 1 << bit,
            }
            std::fs::write(path, bytes).unwrap();
            if let Ok(Some((recalled, found))) = recall(dir.path()) {
                prop_assert!(recalled.contact.is_none() || recalled.position.seq >= stamped);
                let lost = model.iter().filter(|(id, version)| found.get(id) != Some(version));
                prop_assert!(lost.into_iter().all(|(_, version)| *version > recalled.position.seq));
            }
        }
    }

    #[test]
    fn i2_a_contact_is_as_old_as_it_is_on_both_clocks_and_after_another_start_on_the_wall_clock() {
        let (clock, hand) = Clock::manual(Timestamp::from_micros(1_000_000_000));
        let contact = Contact { boot: 5, at: clock.moment(), position: at(1) };
        let minute = Duration::from_secs(60);
        hand.pass(minute);
        let now = clock.moment();
        assert_eq!(as_of(&contact, 5, now), Some(contact.at));
        let other = as_of(&contact, 6, now).unwrap();
        assert_eq!((now.wall.since(other.wall), now.mono.saturating_duration_since(other.mono)), (minute, minute));
        hand.set_wall(Timestamp::from_micros(999_999_999));
        assert_eq!((as_of(&contact, 5, clock.moment()), as_of(&contact, 6, clock.moment())), (None, None));
    }

    #[test]
    fn i3_what_cannot_be_kept_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut snapshot = begin(dir.path());
        snapshot.append(&[change(1, 1)]).unwrap();
        snapshot.close_for_writing();
        assert!(snapshot.append(&[change(2, 2)]).is_err());
        snapshot.abandon().unwrap();
        assert!(!snapshot.exists() && !snapshot.is_kept());
        assert!(recall(dir.path()).unwrap().is_none());
    }
}
