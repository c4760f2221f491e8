//! A worker's ring: what it has recorded and the writer has not synced yet, what it has begun, and what it has counted. In a
//! mapped file it outlives the process, so that a kill loses nothing.
//!
//! One worker stores, one writer reads and frees. A record lies at a position that only grows; its place is the position
//! modulo the ring's size. Every request has a slot from its beginning to its end: before it goes upstream, the slot holds
//! the record that it will leave if the process dies; a record that finds the ring full stays in its slot until there is room.

use super::RECORD_BYTES_MAX;
use super::events::Cause;
use super::words::{self, WORD, Words};
use crate::clock::boot_id;
use crate::reason::Reason;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of records in a ring: what the writer can be late by, some 24,000 records.
pub const RING_BYTES: u64 = 8 * 1024 * 1024;
const RING_WORDS: usize = RING_BYTES as usize / WORD;
/// A slot: its state, the length of what it holds, and the bytes of one record.
const SLOT_WORDS: usize = 2 + RECORD_BYTES_MAX / WORD;
const HEADER_WORDS: usize = 512;
/// What marks a ring whose other words can be trusted, with the number of this layout and that of the records in it.
const MAGIC: u64 = u64::from_le_bytes(*b"kgring\0\x02");

// The header, by word. Who stores what is apart by cache lines.
const AT_MAGIC: usize = 0;
const AT_BOOT: usize = 1;
const AT_SLOTS: usize = 3;
const AT_NAMES_LENGTH: usize = 4;
const AT_CONFIG: usize = 5;
const AT_PRODUCED: usize = 16;
const AT_FREED: usize = 24;
const AT_RUN: usize = 25;
const AT_RUNS: usize = 26;
const AT_DIED: usize = 32;
const AT_TELLING_SEQ: usize = 33;
const AT_SLOTS_USED: usize = 36;
const AT_COUNTS: usize = 40;
const AT_TOLD: usize = AT_COUNTS + COUNTERS_MAX;
const AT_TELLING: usize = AT_TOLD + COUNTERS_MAX;
const AT_NAMES: usize = AT_TELLING + COUNTERS_MAX;
const COUNTERS_MAX: usize = 64;
/// Bytes of the configuration's hash.
const CONFIG_BYTES: usize = 16;

const FREE: u64 = 0;
/// The request may be upstream.
const OPEN: u64 = 1;
/// Its whole record waits for room in the ring.
const KEPT: u64 = 2;
/// Above: its record is in the ring, at this state minus this.
const PLACED: u64 = 8;

/// What is counted instead of recorded: each becomes an exact number in a record of its family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// Requests refused because they could not be recorded.
    Refused,
    /// Records dropped because there was no room, as the operator chose.
    Dropped,
    /// Refusals without a valid key beyond the bound.
    Anonymous(Reason),
    /// Connections that ended without a request.
    Connection(Cause),
}

/// Which record a counter's number goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Gap,
    Summary,
    Connection,
}

/// Records that lie next to each other and are given numbers next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Of the first record; what lies before it is in the journal and synced.
    pub from: u64,
    /// The first record's number.
    pub seq: u64,
    /// Nothing from here on has a number.
    pub end: u64,
}

/// What is in the ring was never a record.
#[derive(Debug, PartialEq, Eq)]
pub struct Damaged;

#[derive(Debug)]
pub struct Ring {
    words: Words,
}

// === impl Counter ===

impl Counter {
    fn all() -> impl Iterator<Item = Self> {
        let anonymous = Reason::ALL.iter().map(|reason| Self::Anonymous(*reason));
        let connections = Cause::ALL.iter().map(|cause| Self::Connection(*cause));
        [Self::Refused, Self::Dropped].into_iter().chain(anonymous).chain(connections)
    }

    const fn index(self) -> usize {
        match self {
            Self::Refused => 0,
            Self::Dropped => 1,
            Self::Anonymous(reason) => 2 + reason as usize,
            Self::Connection(cause) => 2 + Reason::ALL.len() + cause as usize,
        }
    }

    const fn family(self) -> Family {
        match self {
            Self::Refused | Self::Dropped => Family::Gap,
            Self::Anonymous(_) => Family::Summary,
            Self::Connection(_) => Family::Connection,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Refused => "requests_refused",
            Self::Dropped => "records_dropped",
            Self::Anonymous(reason) => reason.as_str(),
            Self::Connection(cause) => cause.as_str(),
        }
    }
}

const _: () = assert!(2 + Reason::ALL.len() + Cause::ALL.len() <= COUNTERS_MAX);

// === impl Family ===

impl Family {
    pub const ALL: [Self; 3] = [Self::Gap, Self::Summary, Self::Connection];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Gap => "gap",
            Self::Summary => "summary",
            Self::Connection => "connection",
        }
    }
}

/// The counters by name, `family:name` in lines, as the header has it: another version of this program reads them by that.
fn names() -> String {
    let lines: Vec<_> =
        Counter::all().map(|counter| format!("{}:{}", counter.family().as_str(), counter.name())).collect();
    lines.join("\n")
}

// === impl Ring ===

impl Ring {
    /// An empty ring with so many slots, in this file or in memory alone.
    ///
    /// # Errors
    /// As of making and mapping the file.
    pub fn create(file: Option<&Path>, slots: usize, config: &str) -> io::Result<Self> {
        let count = HEADER_WORDS + RING_WORDS + slots * SLOT_WORDS;
        let words = match file {
            Some(path) => Words::of_file(path, count).or_else(|_| {
                // Of another size: it has been recovered, and is made anew.
                std::fs::remove_file(path)?;
                Words::of_file(path, count)
            })?,
            None => Words::anonymous(count)?,
        };
        let ring = Self { words };
        ring.reset(slots, config);
        Ok(ring)
    }

    /// A ring that a process left behind; none if it holds nothing, or is of another start of the machine: then it is no whole
    /// picture, and what counts is what was synced.
    ///
    /// # Errors
    /// As of mapping the file.
    pub fn left_behind(path: &Path) -> io::Result<Option<Self>> {
        let ring = Self { words: Words::of_existing(path)? };
        let is_whole = ring.all().len() >= HEADER_WORDS + RING_WORDS && ring.load(AT_MAGIC) == MAGIC;
        Ok((is_whole && ring.boot() == boot_id()).then_some(ring))
    }

    fn reset(&self, slots: usize, config: &str) {
        self.retire();
        // No more of them is touched than have been: memory is taken by what is used.
        (0..self.slots_used()).for_each(|slot| self.set_state(slot, FREE));
        self.all().iter().take(AT_NAMES).for_each(|word| word.store(0, Ordering::Relaxed));
        let boot = boot_id().unwrap_or(0);
        self.store(AT_BOOT, (boot >> 64) as u64);
        self.store(AT_BOOT + 1, boot as u64);
        self.store(AT_SLOTS, slots as u64);
        words::store(self.all(), AT_CONFIG, config.as_bytes().get(..CONFIG_BYTES).unwrap_or_default());
        let names = names();
        self.store(AT_NAMES_LENGTH, names.len() as u64);
        words::store(self.all(), AT_NAMES, names.as_bytes());
        self.store(AT_MAGIC, MAGIC);
    }

    /// Nothing in it counts any more.
    pub fn retire(&self) {
        self.store(AT_MAGIC, 0);
    }

    fn all(&self) -> &[AtomicU64] {
        self.words.as_slice()
    }

    fn ring(&self) -> &[AtomicU64] {
        self.all().get(HEADER_WORDS..HEADER_WORDS + RING_WORDS).unwrap_or_default()
    }

    fn slot(&self, slot: usize) -> &[AtomicU64] {
        let at = HEADER_WORDS + RING_WORDS + slot * SLOT_WORDS;
        self.all().get(at..at + SLOT_WORDS).unwrap_or_default()
    }

    fn load(&self, at: usize) -> u64 {
        self.all().get(at).map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn store(&self, at: usize, value: u64) {
        if let Some(word) = self.all().get(at) {
            word.store(value, Ordering::Release);
        }
    }

    fn boot(&self) -> Option<u128> {
        let boot = u128::from(self.load(AT_BOOT)) << 64 | u128::from(self.load(AT_BOOT + 1));
        (boot != 0).then_some(boot)
    }

    /// The configuration under which it was filled.
    pub fn config(&self) -> String {
        let mut bytes = Vec::new();
        words::load(self.all(), AT_CONFIG, CONFIG_BYTES, &mut bytes);
        String::from_utf8_lossy(&bytes).chars().filter(char::is_ascii_hexdigit).collect()
    }

    pub fn slots(&self) -> usize {
        let room = self.all().len().saturating_sub(HEADER_WORDS + RING_WORDS) / SLOT_WORDS;
        usize::try_from(self.load(AT_SLOTS)).map_or(room, |slots| slots.min(room))
    }

    /// The slots from here on have never held anything.
    fn slots_used(&self) -> usize {
        usize::try_from(self.load(AT_SLOTS_USED)).map_or(self.slots(), |used| used.min(self.slots()))
    }
}

// === impl Ring: the worker's side ===

impl Ring {
    /// The position after the last record.
    pub fn produced(&self) -> u64 {
        self.load(AT_PRODUCED)
    }

    /// The position up to which records are synced, their room free again.
    pub fn freed(&self) -> u64 {
        self.load(AT_FREED)
    }

    pub fn used(&self) -> u64 {
        self.produced().saturating_sub(self.freed())
    }

    /// Puts a record in, and frees the slot of its request; false when there is no room.
    pub fn place(&self, record: &[u8], slot: usize) -> bool {
        let position = self.produced();
        let words = 1 + record.len().div_ceil(WORD);
        let size = (words * WORD) as u64;
        if self.used() + size > RING_BYTES {
            return false;
        }
        let ring = self.ring();
        let at = place_of(position);
        words::store(ring, (at + 1) % RING_WORDS, record);
        if let Some(word) = ring.get(at) {
            word.store(seal(record), Ordering::Relaxed);
        }
        // In this order: whoever finds the slot knows whether its record is there.
        self.set_state(slot, PLACED + position);
        self.store(AT_PRODUCED, position + size);
        self.set_state(slot, FREE);
        true
    }

    /// Before its first byte goes upstream: what the request leaves if the process dies.
    pub fn open(&self, slot: usize, record: &[u8]) {
        self.fill(slot, record, OPEN);
    }

    /// The record waits here for room in the ring.
    pub fn keep(&self, slot: usize, record: &[u8]) {
        self.fill(slot, record, KEPT);
    }

    fn fill(&self, slot: usize, record: &[u8], state: u64) {
        let words = self.slot(slot);
        if slot as u64 >= self.load(AT_SLOTS_USED) {
            self.store(AT_SLOTS_USED, slot as u64 + 1);
        }
        self.set_state(slot, FREE);
        words::store(words, 2, record);
        if let Some(word) = words.get(1) {
            word.store(record.len() as u64, Ordering::Relaxed);
        }
        self.set_state(slot, state);
    }

    /// Appends the record in a slot.
    pub fn kept(&self, slot: usize, out: &mut Vec<u8>) {
        let words = self.slot(slot);
        let length = words.get(1).map_or(0, |word| word.load(Ordering::Relaxed));
        let length = usize::try_from(length).map_or(RECORD_BYTES_MAX, |length| length.min(RECORD_BYTES_MAX));
        words::load(words, 2, length, out);
    }

    pub fn release(&self, slot: usize) {
        self.set_state(slot, FREE);
    }

    fn state(&self, slot: usize) -> u64 {
        self.slot(slot).first().map_or(FREE, |word| word.load(Ordering::Acquire))
    }

    fn set_state(&self, slot: usize, state: u64) {
        if let Some(word) = self.slot(slot).first() {
            word.store(state, Ordering::Release);
        }
    }

    pub fn count(&self, counter: Counter) {
        if let Some(word) = self.all().get(AT_COUNTS + counter.index()) {
            word.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// === impl Ring: the writer's side ===

impl Ring {
    /// Appends the record at `position` to `out`; gives the position after it, or none at the end.
    ///
    /// # Errors
    /// [`Damaged`] when what is there was never a record.
    pub fn record(&self, position: u64, out: &mut Vec<u8>) -> Result<Option<u64>, Damaged> {
        if position >= self.produced() {
            return Ok(None);
        }
        let (ring, at) = (self.ring(), place_of(position));
        let word = ring.get(at).map_or(0, |word| word.load(Ordering::Relaxed));
        let length = (word & u64::from(u32::MAX)) as usize;
        if length == 0 || length > RECORD_BYTES_MAX {
            return Err(Damaged);
        }
        let start = out.len();
        words::load(ring, (at + 1) % RING_WORDS, length, out);
        if seal(out.get(start..).unwrap_or_default()) != word {
            out.truncate(start);
            return Err(Damaged);
        }
        Ok(Some(position + ((1 + length.div_ceil(WORD)) * WORD) as u64))
    }

    /// The records that were last given numbers.
    pub fn run(&self) -> Run {
        let at = AT_RUNS + 3 * (self.load(AT_RUN) & 1) as usize;
        Run { from: self.load(at), seq: self.load(at + 1), end: self.load(at + 2) }
    }

    /// Records are given numbers, and are written after this: with one store, so that a kill finds either the last run or this.
    pub fn begin_run(&self, run: Run) {
        let next = (self.load(AT_RUN) & 1) ^ 1;
        let at = AT_RUNS + 3 * next as usize;
        self.store(at, run.from);
        self.store(at + 1, run.seq);
        self.store(at + 2, run.end);
        self.store(AT_RUN, next);
    }

    /// The last run is synced: its room is free.
    pub fn free_run(&self) {
        self.store(AT_FREED, self.run().end);
    }

    /// What has been counted in a family and not told yet, by name; other than zero.
    pub fn untold(&self, family: Family) -> Vec<(String, u64)> {
        let counters = self.counters(family).into_iter();
        let untold = counters.map(|(index, name)| {
            let count = self.load(AT_COUNTS + index).saturating_sub(self.load(AT_TOLD + index));
            (name, count)
        });
        untold.filter(|(_, count)| *count > 0).collect()
    }

    /// The same, told by the record `seq` from now on.
    pub fn tell(&self, family: Family, seq: u64) -> Vec<(String, u64)> {
        let mut untold = Vec::new();
        for (index, name) in self.counters(family) {
            let (count, told) = (self.load(AT_COUNTS + index), self.load(AT_TOLD + index));
            self.store(AT_TELLING + index, count);
            if count > told {
                untold.push((name, count - told));
            }
        }
        self.store(AT_TELLING_SEQ + family as usize, seq);
        untold
    }

    /// Every number up to `seq` is in the journal, synced: what is told there has been told.
    pub fn settle(&self, seq: u64) {
        for family in Family::ALL {
            let at = AT_TELLING_SEQ + family as usize;
            let telling = self.load(at);
            if telling == 0 {
                continue;
            }
            if telling <= seq {
                for (index, _) in self.counters(family) {
                    self.store(AT_TOLD + index, self.load(AT_TELLING + index));
                }
            }
            self.store(at, 0);
        }
    }

    /// The counters of a family: where, and by name, as the file has them.
    fn counters(&self, family: Family) -> Vec<(usize, String)> {
        let length = usize::try_from(self.load(AT_NAMES_LENGTH)).unwrap_or(0);
        let mut names = Vec::new();
        words::load(self.all(), AT_NAMES, length.min((HEADER_WORDS - AT_NAMES) * WORD), &mut names);
        let names = String::from_utf8_lossy(&names).into_owned();
        let of_family = |(index, line): (usize, &str)| {
            let (prefix, name) = line.split_once(':')?;
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            (prefix == family.as_str() && is_plain).then(|| (index, name.to_owned()))
        };
        names.lines().take(COUNTERS_MAX).enumerate().filter_map(of_family).collect()
    }
}

// === impl Ring: recovery ===

impl Ring {
    /// The records without a number in a journal whose last number is `last`: where they begin.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn unnumbered(&self, last: u64) -> Result<u64, Damaged> {
        let run = self.run();
        if self.freed() >= run.end {
            return Ok(run.end);
        }
        let (mut at, mut seq, mut scratch) = (run.from, run.seq, Vec::new());
        while at < run.end && seq <= last {
            scratch.clear();
            let Some(next) = self.record(at, &mut scratch)? else { break };
            (at, seq) = (next, seq + 1);
        }
        Ok(at)
    }

    /// The records that wait in slots, and those of requests that were under way when the process died: each whole or with what
    /// was known. In the same order each time.
    pub fn left_in_slots(&self) -> Vec<Vec<u8>> {
        let produced = self.produced();
        let is_left = |slot: &usize| match self.state(*slot) {
            FREE => false,
            OPEN | KEPT => true,
            placed => placed >= PLACED + produced,
        };
        let record = |slot| {
            let mut record = Vec::new();
            self.kept(slot, &mut record);
            record
        };
        (0..self.slots_used()).filter(is_left).map(record).collect()
    }

    /// The first number given to what was left in slots, if recovery got so far before.
    pub fn slots_numbered_from(&self) -> Option<u64> {
        Some(self.load(AT_DIED)).filter(|seq| *seq > 0)
    }

    pub fn number_slots_from(&self, seq: u64) {
        self.store(AT_DIED, seq);
    }
}

const fn place_of(position: u64) -> usize {
    (position % RING_BYTES) as usize / WORD
}

/// What stands before a record: its length and its checksum.
fn seal(record: &[u8]) -> u64 {
    u64::from(crc32fast::hash(record)) << 32 | record.len() as u64
}

#[cfg(test)]
impl Ring {
    /// What a kill in the middle of [`Ring::place`] leaves: the slot tells where its record is, which is there or is not.
    pub fn stop_in_place(&self, slot: usize, is_published: bool) {
        let position = self.produced();
        self.set_state(slot, PLACED + position);
        if is_published {
            self.store(AT_PRODUCED, position + 16);
        }
    }
}

#[cfg(test)]
mod tests;
