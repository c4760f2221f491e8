//! The writer: one thread that numbers what the rings hold, appends it to the slot's segments, and syncs.

use super::appender::Appender;
use super::draft::Draft;
use super::events::{ChangeEntry, Health};
use super::json::ObjectWriter;
use super::line::RequestLines;
use super::recent::{Gathering, Recent};
use super::ring::{Damaged, Family, Ring, Run};
use super::seal::Chain;
use super::segment::{self, Kind, write_line};
use super::slot::{Ended, Slot};
use super::{Durability, Rotation};
use crate::clock::{Clock, Instant, monotonic};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tokio::sync::Notify;

/// Between two looks at the rings: what was recorded is synced within this and the time that a sync takes.
const REST: Duration = Duration::from_millis(10);
/// The same where responses wait for it.
const REST_AWAITED: Duration = Duration::from_millis(1);
/// A sync covers about this many bytes; with more waiting, the next one follows at once.
const BATCH_BYTES: usize = 256 * 1024;
/// Between two attempts at a journal that fails.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// How long a stop waits for a journal that fails.
const SHUTDOWN_MAX: Duration = Duration::from_secs(5);
/// How often counts are told, a group of records is sealed, and the segment is looked after.
const TELL_AFTER: Duration = Duration::from_secs(1);

/// What a writer is made of.
pub struct Parts {
    pub slot: Slot,
    pub gateway: String,
    pub config: String,
    pub clock: Clock,
    pub changes: Receiver<ChangeEntry>,
    pub health: Arc<Health>,
    pub stop: Arc<AtomicBool>,
    pub rotation: Rotation,
    pub durability: Durability,
}

/// The writer of one slot.
pub struct Writer {
    slot: Slot,
    journal: String,
    config: String,
    clock: Clock,
    rings: Vec<Arc<Ring>>,
    synced: Arc<Notify>,
    changes: Receiver<ChangeEntry>,
    health: Arc<Health>,
    stop: Arc<AtomicBool>,
    rotation: Rotation,
    durability: Durability,
    segment: Option<Appender>,
    created_at: Instant,
    /// The segment ends with what is to be written.
    closes: bool,
    chain: Chain,
    next_seq: u64,
    /// Encoded lines that are not synced, and the number of the first: what a new segment must begin with after a failure.
    batch: Vec<u8>,
    batch_seq: u64,
    told_at: Instant,
    /// The same lines' requests, under the configuration in force.
    requests: RequestLines,
    /// What the batch says, for those who are told once it is synced.
    gathering: Gathering,
    recent: Arc<Recent>,
    scratch: Vec<u8>,
}

/// How the process before this one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// There was none.
    Nothing,
    /// It ended in good order.
    Stop,
    /// It died: what it left was recovered.
    Kill,
    /// The machine did: what was not synced may be missing.
    PowerLoss,
}

// === impl After ===

impl After {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::PowerLoss => "power_loss",
        }
    }
}

// === impl Writer: recovery ===

impl Writer {
    /// Makes the slot's journal whole: what a process left in its rings is appended, and synced. Tells the start of this process
    /// there if it goes on with it.
    ///
    /// # Errors
    /// As of reading and writing the slot's directory.
    pub fn recover(parts: Parts, goes_on: bool) -> io::Result<Self> {
        let Parts { slot, gateway, config, clock, changes, health, stop, rotation, durability } = parts;
        let recovered = segment::recover(&slot.dir)?;
        if let Some(torn) = &recovered.torn {
            tracing::warn!(moved_to = %torn.display(), "the journal's last record was torn");
        }
        let last = recovered.last_seq;
        // A number that was told to readers is never given to another record, whatever became of the journal.
        let next_seq = last.max(slot.synced()?) + 1;
        let chain = Chain::recover(&slot.dir, next_seq - 1)?;
        let journal = format!("{gateway}/{}", slot.number);
        let requests = RequestLines::new(&journal, &config);
        let gathering = Gathering::after(&journal, next_seq - 1);
        let recent = Arc::new(Recent::new(slot.dir.clone(), next_seq - 1));
        let mut writer = Self {
            slot,
            journal,
            config,
            clock,
            rings: Vec::new(),
            synced: Arc::default(),
            changes,
            health,
            stop,
            rotation,
            durability,
            segment: None,
            created_at: monotonic(),
            closes: false,
            chain,
            next_seq,
            batch: Vec::new(),
            batch_seq: next_seq,
            told_at: monotonic(),
            requests,
            gathering,
            recent,
            scratch: Vec::new(),
        };
        let (after, left) = writer.left_behind(last)?;
        left.iter().for_each(|ring| writer.adopt(ring, last));
        writer.append_counts(&left);
        if goes_on {
            writer.append_start(after);
        } else {
            writer.append_seal();
        }
        // Written in any case: this also shows that the directory takes records.
        writer.write()?;
        left.iter().for_each(|ring| ring.retire());
        if goes_on {
            writer.slot.begin()?
        } else {
            writer.slot.end()?
        }
        Ok(writer)
    }

    /// The rings of the process before, and how it ended.
    fn left_behind(&self, last: u64) -> io::Result<(After, Vec<Arc<Ring>>)> {
        let mut left = Vec::new();
        for path in self.slot.rings()? {
            left.extend(Ring::left_behind(&path)?.map(Arc::new));
        }
        let after = match self.slot.ended()? {
            Ended::InOrder if last == 0 => After::Nothing,
            Ended::InOrder => After::Stop,
            Ended::Killed => After::Kill,
            Ended::WithTheMachine => After::PowerLoss,
        };
        Ok((after, left))
    }

    /// Appends what a ring holds and a journal that ends with `last` lacks. Interrupted, it goes on from where it was.
    fn adopt(&mut self, ring: &Ring, last: u64) {
        let config = std::mem::replace(&mut self.config, ring.config());
        let requests = std::mem::replace(&mut self.requests, RequestLines::new(&self.journal, &self.config));
        ring.settle(last);
        match ring.unnumbered(last) {
            Ok(from) => self.number(ring, from, usize::MAX),
            Err(Damaged) => self.append_damage(),
        }
        let left = ring.left_in_slots();
        let done = ring.slots_numbered_from().map_or(0, |first| (last + 1).saturating_sub(first));
        ring.number_slots_from(self.next_seq - done);
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        left.iter().skip(done).for_each(|record| self.append_request(record));
        (self.config, self.requests) = (config, requests);
    }

    /// Takes over the rings of this process.
    pub fn attach(&mut self, rings: Vec<Arc<Ring>>, synced: Arc<Notify>) {
        (self.rings, self.synced) = (rings, synced);
    }

    pub fn dir(&self) -> &Path {
        &self.slot.dir
    }

    /// Where its newest records are told of.
    pub fn recent(&self) -> Arc<Recent> {
        Arc::clone(&self.recent)
    }
}

// === impl Writer: the thread ===

impl Writer {
    pub fn run(mut self) {
        while !self.stop.load(Ordering::SeqCst) {
            let more = self.turn();
            if !more {
                std::thread::sleep(self.rest());
            }
        }
        self.finish();
    }

    fn rest(&self) -> Duration {
        match (self.health.is_healthy(), self.durability.waits_for_sync(&self.health)) {
            (false, _) => RETRY_AFTER,
            (true, true) => REST_AWAITED,
            (true, false) => REST,
        }
    }

    /// Takes what is there and syncs it; true when more is there than one turn takes.
    pub(super) fn turn(&mut self) -> bool {
        let begun = monotonic();
        let collected = self.health.is_healthy();
        let more = collected && self.collect();
        self.persist();
        if collected && !more && self.health.is_healthy() {
            self.health.tell_synced_until(begun);
        }
        more && self.health.is_healthy()
    }

    /// After the stop: empties everything there is into the journal, trying again while that fails, for a bounded time.
    fn finish(&mut self) {
        let deadline = monotonic() + SHUTDOWN_MAX;
        loop {
            let was_healthy = self.health.is_healthy();
            let more = self.turn();
            match (self.health.is_healthy(), was_healthy && !more) {
                (true, true) => return self.retire(),
                // Another turn: more was there, or what had waited for the disk can be taken now.
                (true, false) => {}
                (false, _) if monotonic() >= deadline => {
                    tracing::error!(
                        unsynced = self.next_seq - self.batch_seq,
                        "the audit journal could not be written until the end; what waits in its rings is recovered at the next start"
                    );
                    return;
                }
                (false, _) => std::thread::sleep(RETRY_AFTER),
            }
        }
    }

    /// Nothing is left to be recovered.
    fn retire(&self) {
        self.rings.iter().for_each(|ring| ring.retire());
        if let Err(error) = self.slot.end() {
            tracing::warn!(%error, dir = %self.slot.dir.display(), "the next start will not know that this process ended in good order");
        }
    }

    /// Takes what the rings and the counters hold; true when a ring had more than one turn takes.
    pub(super) fn collect(&mut self) -> bool {
        let mut more = false;
        for ring in self.rings.clone() {
            self.number(&ring, ring.run().end, BATCH_BYTES);
            more |= ring.produced() > ring.run().end;
        }
        while let Ok(change) = self.changes.try_recv() {
            self.append_change(&change);
        }
        let stops = self.stop.load(Ordering::SeqCst);
        if monotonic().saturating_duration_since(self.told_at) >= TELL_AFTER || stops {
            self.told_at = monotonic();
            self.append_counts(&self.rings.clone());
            self.look_after();
            self.append_seal();
        }
        self.closes = self.is_due_to_close();
        if self.closes {
            self.append_seal();
        }
        more
    }

    /// A segment that is not where or what it was takes no more records; what it held is told to be lost.
    fn look_after(&mut self) {
        let Some(segment) = &self.segment else { return };
        if let Err(error) = segment.check_in_place() {
            let (first, last) = (segment.first(), self.batch_seq - 1);
            self.fail(&error);
            self.append_with(Kind::Gap, |object| {
                object.number("first", first);
                object.number("last", last);
            });
        }
    }

    /// Gives numbers to the ring's records from a position on, about `bytes_max` of them.
    fn number(&mut self, ring: &Ring, from: u64, bytes_max: usize) {
        let (mut at, seq, first) = (from, self.next_seq, self.batch.len());
        let mut scratch = std::mem::take(&mut self.scratch);
        while self.batch.len() - first < bytes_max {
            scratch.clear();
            match ring.record(at, &mut scratch) {
                Ok(Some(next)) => {
                    self.append_request(&scratch);
                    at = next;
                }
                Ok(None) => break,
                Err(Damaged) => {
                    self.append_damage();
                    at = ring.produced();
                    break;
                }
            }
        }
        self.scratch = scratch;
        self.health.add_records(self.next_seq - seq);
        if at > from {
            ring.begin_run(Run { from, seq, end: at });
        }
    }

    fn append_request(&mut self, record: &[u8]) {
        let Some(draft) = Draft::read(record) else { return self.append_damage() };
        let start = self.batch.len();
        let crc = self.requests.write(&mut self.batch, self.next_seq, &draft);
        self.next_seq += 1;
        self.gathering.add(&draft, crc);
        self.chain.add(self.batch.get(start..).unwrap_or_default());
    }

    fn append(&mut self, kind: Kind, body: &[u8]) {
        let start = self.write_line(kind, body);
        self.chain.add(self.batch.get(start..).unwrap_or_default());
    }

    /// Chains what has been appended since the last seal.
    fn append_seal(&mut self) {
        if !self.chain.is_empty() {
            let seal = self.chain.seal();
            let start = self.write_line(Kind::Seal, &seal.body(self.clock.now()));
            self.chain = Chain::after(seal.hash, self.next_seq - 1, self.batch.get(start..).unwrap_or_default());
        }
    }

    /// Gives the next number to a line; where it begins in the batch.
    fn write_line(&mut self, kind: Kind, body: &[u8]) -> usize {
        let start = self.batch.len();
        write_line(&mut self.batch, kind, &self.journal, self.next_seq, &self.config, body);
        self.next_seq += 1;
        self.gathering.add_line(self.batch.get(start..).unwrap_or_default());
        start
    }

    fn append_with(&mut self, kind: Kind, members: impl FnOnce(&mut ObjectWriter<'_>)) {
        let now = self.clock.now();
        let mut body = Vec::new();
        let mut object = ObjectWriter::new(&mut body);
        object.plain("ts", &now.to_string());
        members(&mut object);
        self.append(kind, &body);
    }

    fn append_start(&mut self, after: After) {
        let version = env!("CARGO_PKG_VERSION");
        self.append_with(Kind::Start, |object| {
            object.plain("version", version);
            object.plain("after", after.as_str());
        });
    }

    /// One record for each family in which something has been counted.
    fn append_counts(&mut self, rings: &[Arc<Ring>]) {
        for (family, kind) in Family::ALL.into_iter().zip([Kind::Gap, Kind::Summary, Kind::Connection]) {
            if rings.iter().all(|ring| ring.untold(family).is_empty()) {
                continue;
            }
            let mut counts = BTreeMap::new();
            for (name, count) in rings.iter().flat_map(|ring| ring.tell(family, self.next_seq)) {
                *counts.entry(name).or_insert(0) += count;
            }
            self.append_with(kind, |object| match family {
                Family::Gap => counts.iter().for_each(|(name, count)| object.number(name, *count)),
                Family::Summary | Family::Connection => object.raw("counts", Counts(&counts)),
            });
        }
    }

    /// Records were there, and cannot be read: how many is not known.
    fn append_damage(&mut self) {
        tracing::error!(dir = %self.slot.dir.display(), "a ring is damaged: audit records are lost");
        self.append_with(Kind::Gap, |object| object.null("records_lost"));
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

    /// Writes and syncs. After a failure the descriptor is never used again: the next attempt writes everything unsynced into a new
    /// segment, under the same numbers.
    pub(super) fn persist(&mut self) {
        match self.write() {
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
            tracing::error!(%error, dir = %self.slot.dir.display(), "the audit journal cannot be written");
        }
        self.health.set_healthy(false);
        self.segment = None;
    }

    fn write(&mut self) -> io::Result<()> {
        match &mut self.segment {
            Some(_) if self.batch.is_empty() => return Ok(()),
            Some(segment) => segment.append(&self.batch)?,
            None if self.batch.is_empty() && self.health.is_healthy() => return Ok(()),
            None => {
                self.restore()?;
                self.segment = Some(Appender::create(&self.slot.dir, self.batch_seq, &self.batch)?);
                self.created_at = monotonic();
            }
        }
        self.slot.tell_synced(self.next_seq - 1)?;
        self.batch.clear();
        self.batch_seq = self.next_seq;
        for ring in &self.rings {
            ring.free_run();
            ring.settle(self.next_seq - 1);
        }
        self.synced.notify_waiters();
        self.recent.push(self.gathering.take());
        if std::mem::take(&mut self.closes) {
            self.segment = None;
        }
        Ok(())
    }

    /// Makes the slot's directory anew where it was removed. The rings' files are gone with it: until the next start, a response
    /// waits for its record to be synced, so that a kill still loses none.
    fn restore(&mut self) -> io::Result<()> {
        if self.slot.restore()? {
            tracing::warn!(dir = %self.slot.dir.display(), "the journal's directory was removed, and is made anew; restart to get rings again");
            self.health.set_rings_lost();
        }
        Ok(())
    }

    /// The next records go to a new segment once this one is large or old.
    fn is_due_to_close(&self) -> bool {
        let Some(segment) = self.segment.as_ref().filter(|_| !self.batch.is_empty()) else { return false };
        let age = monotonic().saturating_duration_since(self.created_at);
        segment.bytes() + self.batch.len() as u64 >= self.rotation.bytes || age >= self.rotation.age
    }
}

#[cfg(test)]
impl Writer {
    /// The next turn tells what was counted.
    pub const fn tell_soon(&mut self) {
        self.told_at = Instant::from_nanos(0);
    }
}

/// Named counts as a JSON object.
struct Counts<'a>(&'a BTreeMap<String, u64>);

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
