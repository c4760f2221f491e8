//! What the newest synced records of this process's journal say, in memory: for those that follow the journal and need no lines. One
//! that is further behind, or begins, reads the journal.

use super::draft::{Draft, Text};
use super::hash::Seeded;
use super::json::escape;
use crate::clock::Timestamp;
use crate::key::KeyId;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// So many records are held: those of some seconds.
const RECORDS_MAX: usize = 100_000;

/// Records that follow each other in a journal and were synced together.
#[derive(Debug)]
pub struct Group {
    /// The journal's id, such as `edge-1/0`.
    pub journal: Arc<str>,
    /// The first record's number.
    pub first: u64,
    pub records: Vec<Record>,
    /// Each once, as JSON has them between their quotes.
    texts: Vec<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Call(Call),
    /// The line of any other record, without its newline.
    Line(Box<str>),
}

/// What a request's record says, as far as those who need no line look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    pub at: Timestamp,
    pub duration_us: Option<u64>,
    pub key: Option<KeyId>,
    pub client_ip: Option<IpAddr>,
    pub method: Option<TextNumber>,
    pub route: Option<TextNumber>,
    pub reason: Option<TextNumber>,
    pub status: Option<u16>,
    pub allowed: bool,
    /// Its line's checksum.
    pub crc: u32,
}

/// Of a text in a [`Group`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextNumber(u32);

/// Gathers the next group.
#[derive(Debug)]
pub struct Gathering {
    group: Group,
    methods: Numbers,
    routes: Numbers,
    reasons: Numbers,
}

/// The numbers of texts of one kind, by what they were before they were escaped and cut.
#[derive(Debug, Default)]
struct Numbers {
    numbers: HashMap<Box<[u8]>, TextNumber, Seeded>,
    /// The last one: the next is often the same.
    latest: (Vec<u8>, TextNumber),
}

/// The newest groups of a journal.
#[derive(Debug)]
pub struct Recent {
    slot: PathBuf,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    groups: VecDeque<Arc<Group>>,
    records: usize,
}

// === impl Group ===

impl Group {
    const fn after(journal: Arc<str>, last: u64) -> Self {
        Self { journal, first: last + 1, records: Vec::new(), texts: Vec::new() }
    }

    /// The last record's number.
    pub const fn last(&self) -> u64 {
        self.first + self.records.len() as u64 - 1
    }

    /// The records with their numbers, beginning with the one after `last`.
    pub fn after_record(&self, last: u64) -> impl Iterator<Item = (u64, &Record)> {
        let known = usize::try_from((last + 1).saturating_sub(self.first)).unwrap_or(usize::MAX);
        (self.first..).zip(&self.records).skip(known)
    }

    /// Each text once, as JSON has it between its quotes, in the order of their numbers.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|text| &**text)
    }

    /// One of them.
    pub fn text(&self, number: TextNumber) -> Option<&str> {
        self.texts.get(number.place()).map(|text| &**text)
    }
}

// === impl TextNumber ===

impl TextNumber {
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

// === impl Gathering ===

impl Gathering {
    /// What follows the record `last`.
    pub fn after(journal: &str, last: u64) -> Self {
        let group = Group::after(journal.into(), last);
        Self { group, methods: Numbers::default(), routes: Numbers::default(), reasons: Numbers::default() }
    }

    /// Adds the next record, whose line has this checksum.
    pub fn add(&mut self, draft: &Draft<'_>, crc: u32) {
        let texts = &mut self.group.texts;
        let call = Call {
            at: draft.at,
            duration_us: draft.duration_us,
            key: draft.key.map(|(id, _)| id),
            client_ip: draft.client_ip,
            method: self.methods.number(draft, Text::Method, texts),
            route: self.routes.number(draft, Text::Route, texts),
            reason: self.reasons.number(draft, Text::Reason, texts),
            status: draft.status,
            allowed: draft.allowed,
            crc,
        };
        self.group.records.push(Record::Call(call));
    }

    /// Adds the line of the next record, with its newline.
    pub fn add_line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
        self.group.records.push(Record::Line(text.into()));
    }

    /// Gives what was gathered; the next group follows.
    pub fn take(&mut self) -> Group {
        let next = Self::after(&self.group.journal, self.group.last());
        std::mem::replace(self, next).group
    }
}

// === impl Numbers ===

impl Numbers {
    fn number(&mut self, draft: &Draft<'_>, text: Text, texts: &mut Vec<Box<str>>) -> Option<TextNumber> {
        let bytes = draft.text(text)?;
        if self.numbers.is_empty() || self.latest.0 != bytes {
            self.latest = (bytes.to_owned(), self.find(bytes, text, texts));
        }
        Some(self.latest.1)
    }

    fn find(&mut self, bytes: &[u8], text: Text, texts: &mut Vec<Box<str>>) -> TextNumber {
        if let Some(number) = self.numbers.get(bytes) {
            return *number;
        }
        let number = TextNumber(u32::try_from(texts.len()).unwrap_or(u32::MAX));
        let mut escaped = Vec::new();
        escape(&mut escaped, bytes, text.shown_max());
        texts.push(String::from_utf8_lossy(&escaped).into());
        self.numbers.insert(bytes.into(), number);
        number
    }
}

// === impl Recent ===

impl Recent {
    /// Of the journal in the directory `slot`.
    pub fn new(slot: PathBuf) -> Self {
        Self { slot, held: Mutex::default() }
    }

    /// Adds what was synced after all that is held. The oldest goes when it is too much.
    pub fn push(&self, group: Group) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.records += group.records.len();
        held.groups.push_back(Arc::new(group));
        while held.records > RECORDS_MAX {
            let Some(oldest) = held.groups.pop_front() else { break };
            held.records -= oldest.records.len();
        }
    }

    /// The groups with what follows the record `last` in a slot's journal, up to about so many records: the first may begin with known ones.
    /// `None` where that is not held.
    pub fn after(&self, slot: &Path, last: u64, records_max: usize) -> Option<Vec<Arc<Group>>> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.groups.front().filter(|oldest| slot == self.slot && oldest.first <= last.saturating_add(1))?;
        let begin = held.groups.partition_point(|group| group.last() <= last);
        let mut room = records_max;
        let fits = |group: &&Arc<Group>| {
            let has_room = room > 0;
            room = room.saturating_sub(group.records.len());
            has_room
        };
        Some(held.groups.range(begin..).take_while(fits).cloned().collect())
    }
}
