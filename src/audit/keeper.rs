//! The keeper of old segments: compresses those that are closed, and deletes those whose time is over.
//!
//! A segment goes as a whole, the oldest of its journal first, and never the newest one, which says what number comes next.
//! Where the seal at its end is what the next one's first seal builds on, that line stays, as a segment of its own: what is
//! left can be verified from its first record on. One process of a directory keeps it, by the lock under which it ships.

use super::block::{Compressing, Step};
use super::pieces::{Piece, Pieces, newest_time};
use super::reader::about;
use super::seal::Seal;
use super::{Settings, reader, segment};
use crate::clock::{Clock, Instant, Moment, Timestamp};
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Nothing is deleted for its age before both clocks have run together for so long: whoever sets the clock must not delete
/// what is young.
const STEADY_AFTER: Duration = Duration::from_secs(3600);
/// How far the clocks may run apart meanwhile.
const DRIFT_MAX: Duration = Duration::from_secs(5);
/// When a segment that could not be compressed is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// How long records are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// After their newest record is this old, segments go, if every durable sink has passed them.
    pub age: Duration,
    /// All segments together are not larger, whatever has not been passed.
    pub bytes: u64,
}

/// How far each durable sink has come, in each journal. A sink that has taken nothing yet belongs in it too.
pub type Passed = BTreeMap<String, BTreeMap<String, u64>>;

/// Records that a sink can never take any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub sink: String,
    pub journal: String,
    pub first: u64,
    pub last: u64,
}

/// Keeps the segments of an audit directory.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    retention: Retention,
    clock: Clock,
    /// Since when both clocks have run together.
    steady: Moment,
    compressing: Option<(PathBuf, Compressing)>,
    /// Segments that could not be compressed, with the time before which they are left alone.
    unfit: HashMap<PathBuf, Instant>,
    /// The times of segments' newest records, as far as somebody had to know them, with the segments' lengths.
    ages: HashMap<PathBuf, (u64, Timestamp)>,
}

/// A segment that nobody writes to.
#[derive(Clone, Debug)]
struct Closed {
    slot: PathBuf,
    path: PathBuf,
    first: u64,
    /// The number of the seal that stayed of the segment before it, or `first`.
    from: u64,
    /// The number before the next segment's first one.
    last: u64,
}

// === impl Keeper ===

impl Keeper {
    pub fn new(settings: &Settings, clock: Clock) -> Self {
        Self {
            dir: settings.dir.clone(),
            retention: settings.retention,
            steady: clock.moment(),
            clock,
            compressing: None,
            unfit: HashMap::new(),
            ages: HashMap::new(),
        }
    }

    /// Does one piece of work: a megabyte is compressed, or a segment deleted. True if there is more to do at once; otherwise
    /// once a minute is enough. What is lost for a sink is told to `lose` before it is deleted, and is not deleted if that
    /// fails; it may be told again.
    ///
    /// # Errors
    /// As of the files, with the one it was about, and as of `lose`. It can be called again.
    pub fn turn(&mut self, passed: &Passed, lose: &mut dyn FnMut(&Lost) -> io::Result<()>) -> io::Result<bool> {
        let now = self.look_at_the_clocks();
        if self.compressing.is_some() {
            return self.compress(now.mono);
        }
        let closed = closed(&self.dir)?;
        let is_there = |path: &Path| closed.iter().any(|segment| segment.path == path);
        self.unfit.retain(|path, _| is_there(path));
        if let Some(segment) = self.outlived(&closed, passed, now)? {
            return delete(&segment).map(|()| true);
        }
        if self.shorten_idle(&closed, passed, now)? {
            return Ok(true);
        }
        // Before anything is deleted for want of room, room is made.
        if let Some(segment) = closed.iter().find(|segment| self.is_compressible(&segment.path, now.mono)) {
            return self.begin(&segment.path, now.mono);
        }
        if total_bytes(&self.dir)? <= self.retention.bytes {
            return Ok(false);
        }
        let Some(segment) = self.oldest(&closed)? else { return Ok(false) };
        for lost in lost(&segment, passed)? {
            lose(&lost)?;
        }
        delete(&segment).map(|()| true)
    }

    /// Notices when somebody sets the wall clock.
    fn look_at_the_clocks(&mut self) -> Moment {
        let now = self.clock.moment();
        let wall = now.wall.as_micros().saturating_sub(self.steady.wall.as_micros());
        let mono = now.mono.saturating_duration_since(self.steady.mono).as_micros();
        if i128::from(wall).abs_diff(i128::try_from(mono).unwrap_or(i128::MAX)) > DRIFT_MAX.as_micros() {
            self.steady = now;
        }
        now
    }

    fn is_compressible(&self, path: &Path, now: Instant) -> bool {
        !segment::is_compressed(path) && self.unfit.get(path).is_none_or(|again| *again <= now)
    }

    fn begin(&mut self, path: &Path, now: Instant) -> io::Result<bool> {
        // Until it is done; then it has another name.
        self.unfit.insert(path.to_owned(), now + AGAIN_AFTER);
        let compressing = Compressing::begin(path).map_err(|error| about("compress", path, &error))?;
        self.compressing = Some((path.to_owned(), compressing));
        self.compress(now)
    }

    fn compress(&mut self, now: Instant) -> io::Result<bool> {
        let Some((path, mut compressing)) = self.compressing.take() else { return Ok(true) };
        match compressing.step().map_err(|error| about("compress", &path, &error))? {
            Step::More => self.compressing = Some((path, compressing)),
            Step::Done => _ = self.unfit.remove(&path),
            Step::Unfit => {
                tracing::warn!(segment = %path.display(), "a segment stays uncompressed: keygate audit verify says whether it is damaged");
                self.unfit.insert(path, now + AGAIN_AFTER);
            }
        }
        Ok(true)
    }

    /// A segment whose time is over and that every durable sink has passed.
    fn outlived(&mut self, closed: &[Closed], passed: &Passed, now: Moment) -> io::Result<Option<Closed>> {
        for segment in oldest_each(closed) {
            if self.is_outlived(segment, passed, now)? {
                return Ok(Some(segment.clone()));
            }
        }
        Ok(None)
    }

    fn is_outlived(&mut self, segment: &Closed, passed: &Passed, now: Moment) -> io::Result<bool> {
        let is_steady = now.mono.saturating_duration_since(self.steady.mono) >= STEADY_AFTER;
        let is_old = is_steady && now.wall.since(self.newest_time(segment)?) > self.retention.age;
        Ok(is_old && lost(segment, passed)?.is_empty())
    }

    /// Deletes what is too old in a slot that nobody writes to: but for its last seal, which says what number comes next.
    /// Whether there was one.
    fn shorten_idle(&mut self, closed: &[Closed], passed: &Passed, now: Moment) -> io::Result<bool> {
        for slot in reader::journals(&self.dir)? {
            let is_next = closed.iter().all(|segment| segment.slot != slot);
            let Some(segment) = is_next.then(|| newest(&slot)).transpose()?.flatten() else { continue };
            if !self.is_outlived(&segment, passed, now)? {
                continue;
            }
            let Some(_held) = reader::hold(&slot)? else { continue };
            // Who held it a moment ago may have written.
            if newest(&slot)?.is_some_and(|now| now.path == segment.path && now.last == segment.last) {
                return delete(&segment).map(|()| true);
            }
        }
        Ok(false)
    }

    /// The segment that has been closed for longest, of all journals.
    fn oldest(&mut self, closed: &[Closed]) -> io::Result<Option<Closed>> {
        let mut oldest: Option<(Timestamp, &Closed)> = None;
        for segment in oldest_each(closed) {
            let time = self.newest_time(segment)?;
            if oldest.is_none_or(|(other, _)| time < other) {
                oldest = Some((time, segment));
            }
        }
        Ok(oldest.map(|(_, segment)| segment.clone()))
    }

    fn newest_time(&mut self, segment: &Closed) -> io::Result<Timestamp> {
        let path = &segment.path;
        let length = fs::metadata(path).map_err(|error| about("read", path, &error))?.len();
        match self.ages.get(path) {
            Some((known, time)) if *known == length => Ok(*time),
            Some(_) | None => {
                let time = newest_time(path).map_err(|error| about("read", path, &error))?;
                self.ages.retain(|path, _| path.exists());
                self.ages.insert(path.clone(), (length, time));
                Ok(time)
            }
        }
    }
}

/// Deletes a segment, the oldest of its slot, with everything else that is left of its numbers and of older ones. Its last
/// seal stays.
fn delete(segment: &Closed) -> io::Result<()> {
    let Closed { slot, path, first, last, .. } = segment;
    if let Some(seal) = last_seal(segment)? {
        write_segment(&slot.join(segment::file_name(*last)), &seal).map_err(|error| about("shorten", path, &error))?;
    }
    for entry in fs::read_dir(slot)? {
        let path = entry?.path();
        if number_of(&path).is_some_and(|number| number <= *first) {
            fs::remove_file(&path).map_err(|error| about("delete", &path, &error))?;
        }
    }
    tracing::info!(segment = %path.display(), first, last, "audit segment deleted");
    segment::sync_dir(path)
}

/// The line with which a segment ends, if it is a seal.
fn last_seal(segment: &Closed) -> io::Result<Option<String>> {
    let (mut pieces, mut seal) = (Pieces::open_near_end(&segment.path)?, None);
    while let Some(piece) = pieces.read()? {
        if let Piece::Record { seq, line } = piece {
            let is_last = seq == segment.last && seq > segment.first && Seal::read(line).is_some();
            seal = is_last.then(|| line.to_owned());
        }
    }
    Ok(seal)
}

fn write_segment(path: &Path, line: &str) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = File::create(&part)?;
    file.write_all(line.as_bytes())?;
    file.sync_data()?;
    fs::rename(&part, path)?;
    segment::sync_dir(path)
}

/// Whether the segment at `path` is the seal that stayed of an older one.
fn is_left_seal(path: &Path) -> io::Result<bool> {
    if segment::is_compressed(path) {
        return Ok(false);
    }
    let mut pieces = Pieces::open(path, 0)?;
    let is_seal = matches!(pieces.read()?, Some(Piece::Record { line, .. }) if Seal::read(line).is_some());
    Ok(is_seal && pieces.read()?.is_none())
}

/// The segments that are followed by another one, by slot and number, without what has been left of older ones.
fn closed(dir: &Path) -> io::Result<Vec<Closed>> {
    let mut closed = Vec::new();
    for slot in reader::journals(dir)? {
        let segments = segment::list(&slot)?;
        let mut left = None;
        for ((first, path), (next, _)) in segments.iter().zip(segments.iter().skip(1)) {
            let (first, last) = (*first, next.saturating_sub(1));
            if first == last && is_left_seal(path)? {
                left = Some(first);
                continue;
            }
            let (slot, path, from) = (slot.clone(), path.clone(), left.take().unwrap_or(first));
            closed.push(Closed { slot, path, first, from, last });
        }
    }
    Ok(closed)
}

/// The newest segment of a slot, if it ends with a seal and holds more than that.
fn newest(slot: &Path) -> io::Result<Option<Closed>> {
    let Some((first, path)) = segment::list(slot)?.pop() else { return Ok(None) };
    let mut newest = Closed { slot: slot.to_owned(), path, first, from: first, last: 0 };
    let mut pieces = Pieces::open_near_end(&newest.path)?;
    while let Some(piece) = pieces.read()? {
        match piece {
            Piece::Record { seq, .. } => newest.last = seq,
            Piece::Damage { .. } => {}
            // Recovery moves it aside.
            Piece::Torn { .. } => return Ok(None),
        }
    }
    Ok(last_seal(&newest)?.map(|_| newest))
}

/// The oldest segment of each slot.
fn oldest_each(closed: &[Closed]) -> impl Iterator<Item = &Closed> {
    let follows = |index: usize, slot: &Path| {
        index.checked_sub(1).and_then(|before| closed.get(before)).is_some_and(|before| before.slot == slot)
    };
    closed
        .iter()
        .enumerate()
        .filter(move |(index, segment)| !follows(*index, &segment.slot))
        .map(|(_, segment)| segment)
}

/// What would be lost, for whom, if this segment were deleted.
fn lost(segment: &Closed, passed: &Passed) -> io::Result<Vec<Lost>> {
    let journal = journal_of(segment)?;
    let last = if last_seal(segment)?.is_some() { segment.last - 1 } else { segment.last };
    let lost = passed.iter().filter_map(|(sink, positions)| {
        let first = segment.from.max(position_in(&segment.slot, positions).saturating_add(1));
        let (sink, journal) = (sink.clone(), journal.clone());
        (first <= last).then_some(Lost { sink, journal, first, last })
    });
    Ok(lost.collect())
}

/// How far a sink has come in a slot. Its numbers go on when the gateway gets another id, under another journal's name.
fn position_in(slot: &Path, positions: &BTreeMap<String, u64>) -> u64 {
    let is_here = |journal: &str| journal.rsplit_once('/').is_some_and(|(_, number)| slot.ends_with(number));
    positions.iter().filter(|(journal, _)| is_here(journal)).map(|(_, seq)| *seq).max().unwrap_or(0)
}

/// The journal of a segment; where no record says it, that of its slot's other records.
fn journal_of(segment: &Closed) -> io::Result<String> {
    let others = segment::list(&segment.slot)?.into_iter().map(|(_, path)| path);
    for path in std::iter::once(segment.path.clone()).chain(others) {
        let mut pieces = Pieces::open(&path, 0)?;
        while let Some(piece) = pieces.read()? {
            if let Piece::Record { line, .. } = piece {
                return Ok(segment::journal_of(line.as_bytes()).unwrap_or_default().to_owned());
            }
        }
    }
    Ok(String::new())
}

/// The bytes of all segments, and of what is left of others.
fn total_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for slot in reader::journals(dir)? {
        for entry in fs::read_dir(slot)? {
            let entry = entry?;
            if number_of(&entry.path()).is_some() {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes)
}

/// The number at the beginning of a name: of a segment in any form, and of what was moved aside.
fn number_of(path: &Path) -> Option<u64> {
    let (digits, _) = path.file_name()?.to_str()?.split_once('.')?;
    digits.parse().ok().filter(|number| format!("{number:020}") == digits)
}

#[cfg(test)]
mod tests;
