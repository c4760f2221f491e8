//! What has been taken and not yet written: everything of a record that the index keeps, gathered by key.
//!
//! This is the index's cost for each record; so texts that come again and again (addresses, methods, routes) are kept once
//! and compared as numbers.

use super::hash::Seeded;
use super::postings::Postings;
use crate::audit::fields::{Fields, Text};
use crate::audit::usage::{Day, LastUse, More, Route, Seen, Statuses};
use crate::clock::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

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
    keys: HashMap<Box<str>, KeyBatch, Seeded>,
    texts: Texts,
    records: usize,
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

#[derive(Debug, Default)]
pub struct KeyBatch {
    /// By the journal's place in the batch.
    pub postings: Vec<(usize, Postings)>,
    days: Vec<(Day, DayBatch)>,
}

/// The uses of a key on one day. Texts are by number.
#[derive(Debug)]
struct DayBatch {
    first: Timestamp,
    last: Use,
    statuses: Statuses,
    refusals: Counts<TextId>,
    addresses: Counts<TextId>,
    routes: Counts<(TextId, Option<TextId>)>,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    at: Timestamp,
    gateway: TextId,
    client_ip: Option<TextId>,
    route: (TextId, Option<TextId>),
    refused: bool,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct TextId(usize);

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
        self.records
    }

    pub fn journals(&self) -> &[JournalBatch] {
        &self.journals
    }

    pub fn keys(&self) -> impl Iterator<Item = (&str, &KeyBatch)> {
        self.keys.iter().map(|(id, key)| (&**id, key))
    }

    /// What a key did on each day of the batch.
    pub fn days(&self, key: &KeyBatch) -> Vec<(Day, More)> {
        key.days.iter().map(|(day, uses)| (*day, uses.more(&self.texts))).collect()
    }

    pub fn positions(&self) -> BTreeMap<String, u64> {
        self.journals.iter().map(|journal| (journal.name.clone(), journal.last)).collect()
    }

    pub fn clear(&mut self) {
        self.keys.clear();
        self.texts = Texts::default();
        self.records = 0;
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
        self.records += 1;
        let Some(key_id) = fields.key_id else { return };
        let key = match self.keys.get_mut(key_id.raw()) {
            Some(key) => key,
            None => self.keys.entry(key_id.raw().into()).or_default(),
        };
        key.post(index, entry.seq);
        if let Some(at) = at.filter(|_| fields.is_request()) {
            key.add(&fields, at, &mut self.texts);
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

// === impl KeyBatch ===

impl KeyBatch {
    fn post(&mut self, journal: usize, seq: u64) {
        match self.postings.iter_mut().find(|(index, _)| *index == journal) {
            Some((_, postings)) => postings.push(seq),
            None => self.postings.push((journal, Postings::new(seq))),
        }
    }

    fn add(&mut self, fields: &Fields<'_>, at: Timestamp, texts: &mut Texts) {
        let route = (texts.number(fields.method), fields.route.map(|route| texts.number(Some(route))));
        let refused = fields.decision.is_some_and(|decision| decision.is("deny"));
        let use_ = Use {
            at,
            gateway: texts.number(fields.gateway),
            client_ip: fields.client_ip.map(|ip| texts.number(Some(ip))),
            route,
            refused,
        };
        let reason = fields.reason.filter(|_| refused).map(|reason| texts.number(Some(reason)));
        self.day(use_).add(use_, fields.status, reason);
    }

    /// The day of a use: the last one in almost every case.
    fn day(&mut self, use_: Use) -> &mut DayBatch {
        let day = Day::of(use_.at);
        let index = self.days.iter().rposition(|(there, _)| *there == day).unwrap_or(self.days.len());
        if index == self.days.len() {
            self.days.push((day, DayBatch::new(use_)));
        }
        &mut self.days[index].1 // tidy: allow(it was found or pushed just now)
    }
}

// === impl DayBatch ===

impl DayBatch {
    fn new(first: Use) -> Self {
        Self {
            first: first.at,
            last: first,
            statuses: Statuses::default(),
            refusals: Counts::default(),
            addresses: Counts::default(),
            routes: Counts::default(),
        }
    }

    fn add(&mut self, use_: Use, status: Option<u64>, reason: Option<TextId>) {
        self.first = self.first.min(use_.at);
        if use_.at >= self.last.at {
            self.last = use_;
        }
        self.statuses.add(status, 1);
        self.routes.add(use_.route, use_.at);
        if let Some(ip) = use_.client_ip {
            self.addresses.add(ip, use_.at);
        }
        if let Some(reason) = reason {
            self.refusals.add(reason, use_.at);
        }
    }

    fn more(&self, texts: &Texts) -> More {
        let route = |(method, pattern): (TextId, Option<TextId>)| Route {
            method: texts.text(method),
            pattern: pattern.map(|pattern| texts.text(pattern)),
        };
        let (last, last_route) = (self.last, route(self.last.route));
        let ip = |ip| texts.text(ip).parse().ok();
        More {
            first: self.first,
            last: LastUse {
                at: last.at,
                gateway: texts.text(last.gateway),
                client_ip: last.client_ip.and_then(ip),
                method: last_route.method,
                route: last_route.pattern,
                refused: last.refused,
            },
            statuses: self.statuses,
            refusals: self.refusals.entries.iter().map(|(reason, seen)| (texts.text(*reason), seen.count)).collect(),
            addresses: self.addresses.entries.iter().filter_map(|(from, seen)| Some((ip(*from)?, *seen))).collect(),
            routes: self.routes.entries.iter().map(|(what, seen)| (route(*what), *seen)).collect(),
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

// === impl Texts ===

impl Texts {
    /// No text is the empty one.
    fn number(&mut self, text: Option<Text<'_>>) -> TextId {
        let raw = text.map_or("", Text::raw);
        if let Some(number) = self.numbers.get(raw) {
            return *number;
        }
        let number = TextId(self.texts.len());
        self.texts.push(raw.into());
        self.numbers.insert(raw.into(), number);
        number
    }

    fn text(&self, number: TextId) -> String {
        self.texts.get(number.0).map(|raw| Text::of(raw).decoded().into_owned()).unwrap_or_default()
    }
}
