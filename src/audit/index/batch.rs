//! What has been taken and not yet written.
//!
//! This is the index's cost for each record. So a record becomes a few numbers in a row, with each text kept once; what
//! belongs to one key is put together when the batch is written, one key after the other.

use super::hash::Seeded;
use super::postings::Postings;
use crate::audit::fields::{Fields, Text};
use crate::audit::usage::{Day, LastUse, More, Route, Seen, Statuses};
use crate::clock::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::num::NonZeroU32;

/// Records whose time range is kept as one.
const STRETCH_RECORDS: u64 = 512;
/// Up to this length a list is searched from its beginning.
const LIST_MAX: usize = 16;

/// A record of a journal.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// The journal's id, `gateway/slot`.
    pub journal: &'a str,
    pub seq: u64,
    /// The line, without its newline.
    pub text: &'a str,
}

#[derive(Debug, Default)]
pub struct Batch {
    journals: Vec<JournalBatch>,
    /// The ids of keys.
    keys: Texts,
    texts: Texts,
    /// The records of keys, in the order in which they came.
    records: Vec<Record>,
    /// How many records of any kind there are.
    count: usize,
}

/// What has been gathered of one journal.
#[derive(Debug)]
pub struct JournalBatch {
    pub name: String,
    /// The first `seq` of this batch.
    pub first: Option<u64>,
    /// The last that was taken, in this batch or before.
    pub last: u64,
    pub stretches: Vec<Stretch>,
}

/// Records that follow each other, and the range of their times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub first: u64,
    pub last: u64,
    /// Of those that have a time.
    pub times: Option<(Timestamp, Timestamp)>,
}

/// What has been gathered of one key.
#[derive(Debug)]
pub struct KeyBatch<'a> {
    pub key_id: &'a str,
    /// By the journal's place in the batch.
    pub postings: Vec<(usize, Postings)>,
    pub days: Vec<(Day, More)>,
}

/// A record of a key.
#[derive(Clone, Copy, Debug)]
struct Record {
    key: TextId,
    journal: u32,
    seq: u64,
    /// Of a request.
    use_: Option<Use>,
}

/// Texts are by number.
#[derive(Clone, Copy, Debug)]
struct Use {
    at: Timestamp,
    client_ip: Option<TextId>,
    method: TextId,
    route: Option<TextId>,
    reason: Option<TextId>,
    status: Option<u16>,
    refused: bool,
}

/// The uses of a key on one day.
#[derive(Debug)]
struct DayBatch {
    first: Timestamp,
    /// The latest, and the place of its journal.
    last: (u32, Use),
    statuses: Statuses,
    refusals: Counts<TextId>,
    addresses: Counts<TextId>,
    routes: Counts<(TextId, Option<TextId>)>,
}

/// Counts in the order in which things were first seen.
#[derive(Debug)]
struct Counts<T> {
    entries: Vec<(T, Seen)>,
    /// Where each is, once there are many.
    places: Option<HashMap<T, usize, Seeded>>,
    latest: usize,
}

/// Each text once.
#[derive(Debug, Default)]
struct Texts {
    numbers: HashMap<Box<str>, TextId, Seeded>,
    /// As JSON has them, between their quotes.
    texts: Vec<Box<str>>,
}

/// Beginning with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct TextId(NonZeroU32);

// === impl Batch ===

impl Batch {
    /// An empty one, for what follows these positions.
    pub fn after(positions: &BTreeMap<String, u64>) -> Self {
        let journal = |(name, last): (&String, &u64)| JournalBatch {
            name: name.clone(),
            first: None,
            last: *last,
            stretches: Vec::new(),
        };
        Self { journals: positions.iter().map(journal).collect(), ..Self::default() }
    }

    pub const fn records(&self) -> usize {
        self.count
    }

    pub fn journals(&self) -> &[JournalBatch] {
        &self.journals
    }

    /// What has been gathered, key by key.
    pub fn keys(&self) -> impl Iterator<Item = KeyBatch<'_>> {
        let mut lists: Vec<Vec<&Record>> = vec![Vec::new(); self.keys.texts.len()];
        for record in &self.records {
            if let Some(list) = lists.get_mut(record.key.place()) {
                list.push(record);
            }
        }
        self.keys.texts.iter().zip(lists).map(|(key_id, list)| self.key(key_id, &list))
    }

    pub fn positions(&self) -> BTreeMap<String, u64> {
        self.journals.iter().map(|journal| (journal.name.clone(), journal.last)).collect()
    }

    pub fn clear(&mut self) {
        self.keys = Texts::default();
        self.texts = Texts::default();
        self.records.clear();
        self.count = 0;
        for journal in &mut self.journals {
            journal.first = None;
            journal.stretches.clear();
        }
    }

    /// Gathers a record, unless it has been taken.
    pub fn add(&mut self, entry: &Entry<'_>) {
        let index = self.journal(entry.journal);
        let Some(journal) = self.journals.get_mut(index).filter(|journal| journal.is_new(entry.seq)) else { return };
        // What cannot be read is no record of a key: it counts as taken.
        let fields = Fields::read(entry.text).unwrap_or_default();
        let at = fields.at();
        journal.add(entry.seq, at);
        self.count += 1;
        let Some(key_id) = fields.key_id else { return };
        let use_ = at.filter(|_| fields.is_request()).map(|at| self.texts.use_of(&fields, at));
        // There are few journals.
        let journal = u32::try_from(index).unwrap_or(u32::MAX);
        self.records.push(Record { key: self.keys.number(key_id.raw()), journal, seq: entry.seq, use_ });
    }

    fn key<'a>(&self, key_id: &'a str, records: &[&Record]) -> KeyBatch<'a> {
        let mut postings: Vec<(usize, Postings)> = Vec::new();
        let mut days: Vec<(Day, DayBatch)> = Vec::new();
        for record in records {
            let journal = record.journal as usize;
            match postings.iter_mut().find(|(index, _)| *index == journal) {
                Some((_, postings)) => postings.push(record.seq),
                None => postings.push((journal, Postings::new(record.seq))),
            }
            let Some(use_) = record.use_ else { continue };
            let day = Day::of(use_.at);
            match days.iter_mut().rev().find(|(there, _)| *there == day) {
                Some((_, uses)) => uses.add(record.journal, use_),
                None => days.push((day, DayBatch::of(record.journal, use_))),
            }
        }
        let days = days.into_iter().map(|(day, uses)| (day, self.more(&uses))).collect();
        KeyBatch { key_id, postings, days }
    }

    fn more(&self, uses: &DayBatch) -> More {
        let route = |(method, pattern): (TextId, Option<TextId>)| Route {
            method: self.texts.text(method),
            pattern: pattern.map(|pattern| self.texts.text(pattern)),
        };
        let ip = |ip| self.texts.text(ip).parse().ok();
        let (journal, last) = uses.last;
        let Route { method, pattern } = route((last.method, last.route));
        let refusals = uses.refusals.entries.iter();
        More {
            first: uses.first,
            last: LastUse {
                at: last.at,
                gateway: self.journals.get(journal as usize).map(JournalBatch::gateway).unwrap_or_default().to_owned(),
                client_ip: last.client_ip.and_then(ip),
                method,
                route: pattern,
                refused: last.refused,
            },
            statuses: uses.statuses,
            refusals: refusals.map(|(reason, seen)| (self.texts.text(*reason), seen.count)).collect(),
            addresses: uses.addresses.entries.iter().filter_map(|(from, seen)| Some((ip(*from)?, *seen))).collect(),
            routes: uses.routes.entries.iter().map(|(what, seen)| (route(*what), *seen)).collect(),
        }
    }

    /// The place of a journal.
    fn journal(&mut self, name: &str) -> usize {
        if let Some(index) = self.journals.iter().position(|journal| journal.name == name) {
            return index;
        }
        self.journals.push(JournalBatch { name: name.to_owned(), first: None, last: 0, stretches: Vec::new() });
        self.journals.len() - 1
    }
}

// === impl JournalBatch ===

impl JournalBatch {
    fn gateway(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }

    /// Numbers begin with 1.
    const fn is_new(&self, seq: u64) -> bool {
        seq > self.last
    }

    fn add(&mut self, seq: u64, at: Option<Timestamp>) {
        self.first.get_or_insert(seq);
        self.last = seq;
        match self.stretches.last_mut().filter(|stretch| seq - stretch.first < STRETCH_RECORDS) {
            Some(stretch) => stretch.add(seq, at),
            None => self.stretches.push(Stretch { first: seq, last: seq, times: at.map(|at| (at, at)) }),
        }
    }
}

// === impl Stretch ===

impl Stretch {
    fn add(&mut self, seq: u64, at: Option<Timestamp>) {
        self.last = seq;
        self.times = match (self.times, at) {
            (Some((earliest, latest)), Some(at)) => Some((earliest.min(at), latest.max(at))),
            (times, at) => times.or(at.map(|at| (at, at))),
        };
    }
}

// === impl DayBatch ===

impl DayBatch {
    fn of(journal: u32, first: Use) -> Self {
        let mut day = Self {
            first: first.at,
            last: (journal, first),
            statuses: Statuses::default(),
            refusals: Counts::default(),
            addresses: Counts::default(),
            routes: Counts::default(),
        };
        day.add(journal, first);
        day
    }

    fn add(&mut self, journal: u32, use_: Use) {
        self.first = self.first.min(use_.at);
        if use_.at >= self.last.1.at {
            self.last = (journal, use_);
        }
        self.statuses.add(use_.status.map(u64::from), 1);
        self.routes.add((use_.method, use_.route), use_.at);
        if let Some(ip) = use_.client_ip {
            self.addresses.add(ip, use_.at);
        }
        if let Some(reason) = use_.reason.filter(|_| use_.refused) {
            self.refusals.add(reason, use_.at);
        }
    }
}

// === impl Counts ===

impl<T: Copy + Eq + Hash> Counts<T> {
    fn add(&mut self, what: T, at: Timestamp) {
        self.latest = self.place(what);
        match self.entries.get_mut(self.latest) {
            Some((_, seen)) => *seen = Seen { count: seen.count + 1, last: seen.last.max(at) },
            None => self.push(what, Seen { count: 1, last: at }),
        }
    }

    /// Where it is, or will be.
    fn place(&self, what: T) -> usize {
        let is_it = |(there, _): &(T, Seen)| *there == what;
        let found = match self.entries.get(self.latest).filter(|entry| is_it(entry)) {
            Some(_) => Some(self.latest),
            None if self.entries.len() <= LIST_MAX => self.entries.iter().position(is_it),
            None => self.places.as_ref().and_then(|places| places.get(&what)).copied(),
        };
        found.unwrap_or(self.entries.len())
    }

    fn push(&mut self, what: T, seen: Seen) {
        self.entries.push((what, seen));
        if self.entries.len() > LIST_MAX {
            let places = self.places.get_or_insert_default();
            let new = self.entries.iter().enumerate().skip(places.len()).map(|(place, (what, _))| (*what, place));
            places.extend(new.collect::<Vec<_>>());
        }
    }
}

impl<T> Default for Counts<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), places: None, latest: 0 }
    }
}

// === impl TextId ===

impl TextId {
    const fn place(self) -> usize {
        self.0.get() as usize - 1
    }
}

// === impl Texts ===

impl Texts {
    fn use_of(&mut self, fields: &Fields<'_>, at: Timestamp) -> Use {
        let refused = fields.decision.is_some_and(|decision| decision.is("deny"));
        Use {
            at,
            client_ip: fields.client_ip.map(|ip| self.number(ip.raw())),
            method: self.number(fields.method.map_or("", Text::raw)),
            route: fields.route.map(|route| self.number(route.raw())),
            reason: fields.reason.filter(|_| refused).map(|reason| self.number(reason.raw())),
            status: fields.status.and_then(|status| u16::try_from(status).ok()),
            refused,
        }
    }

    /// The number of a text; `raw` is what JSON has between its quotes.
    fn number(&mut self, raw: &str) -> TextId {
        if let Some(number) = self.numbers.get(raw) {
            return *number;
        }
        self.texts.push(raw.into());
        // A batch has far fewer records.
        let number = u32::try_from(self.texts.len()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        self.numbers.insert(raw.into(), TextId(number));
        TextId(number)
    }

    fn text(&self, number: TextId) -> String {
        self.texts.get(number.place()).map(|raw| Text::of(raw).decoded().into_owned()).unwrap_or_default()
    }
}
