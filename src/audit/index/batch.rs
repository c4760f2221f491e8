//! What has been taken and not yet written.
//!
//! This is the index's cost for each record. So it is added to what is known of its key at once, and each text is kept once.

use super::postings::Postings;
use crate::audit::fields::{Fields, Text};
use crate::audit::hash::Seeded;
use crate::audit::recent::{Call, Group, Record as Told, TextNumber};
use crate::audit::segment::{self, Kind};
use crate::audit::texts::{TextId, Texts};
use crate::audit::usage::{Day, LastUse, More, Route, Seen, Statuses};
use crate::clock::Timestamp;
use crate::key::KeyId;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::net::IpAddr;

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

/// The end of a line, where its checksum is: what tells a record from one of another journal under the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub [u8; 10]);

#[derive(Debug, Default)]
pub struct Batch {
    journals: Vec<JournalBatch>,
    /// The ids of keys.
    keys: Texts,
    /// The same by what they stand for, of those that were told of in groups.
    key_numbers: HashMap<KeyId, TextId, Seeded>,
    texts: Texts,
    /// By the keys' numbers.
    gathered: Vec<Gathered>,
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
    pub mark: Mark,
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
    pub postings: &'a [(usize, Postings)],
    pub days: Vec<(Day, More)>,
}

/// The same, its texts by number.
#[derive(Debug, Default)]
struct Gathered {
    postings: Vec<(usize, Postings)>,
    days: Vec<(Day, DayBatch)>,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    at: Timestamp,
    client_ip: Option<IpAddr>,
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
    last: (usize, Use),
    statuses: Statuses,
    refusals: Counts<TextId>,
    addresses: Counts<IpAddr>,
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

// === impl Batch ===

impl Batch {
    /// An empty one, for what follows these records.
    pub fn after(lasts: impl IntoIterator<Item = (String, u64, Mark)>) -> Self {
        let journals =
            lasts.into_iter().map(|(name, last, mark)| JournalBatch { last, mark, ..JournalBatch::new(name) });
        Self { journals: journals.collect(), ..Self::default() }
    }

    pub const fn records(&self) -> usize {
        self.count
    }

    pub fn journals(&self) -> &[JournalBatch] {
        &self.journals
    }

    /// What has been gathered, key by key.
    pub fn keys(&self) -> impl Iterator<Item = KeyBatch<'_>> {
        self.keys.iter().zip(&self.gathered).map(|(key_id, Gathered { postings, days })| KeyBatch {
            key_id,
            postings,
            days: days.iter().map(|(day, uses)| (*day, self.more(uses))).collect(),
        })
    }

    pub fn positions(&self) -> BTreeMap<String, u64> {
        self.journals.iter().map(|journal| (journal.name.clone(), journal.last)).collect()
    }

    pub fn clear(&mut self) {
        (self.keys, self.texts) = Default::default();
        self.key_numbers.clear();
        self.gathered.clear();
        self.count = 0;
        for journal in &mut self.journals {
            journal.first = None;
            journal.stretches.clear();
        }
    }

    /// Gathers a record, unless it has been taken. False when another record was taken under the same number: then all that
    /// was taken is of another journal.
    pub fn add(&mut self, entry: &Entry<'_>) -> bool {
        let index = self.journal(entry.journal);
        let Some(journal) = self.journals.get_mut(index) else { return true };
        if entry.seq <= journal.last {
            return entry.seq < journal.last || Mark::of(entry.text).may_be(journal.mark);
        }
        // What cannot be read is no record of a key: it counts as taken.
        let fields = Fields::read(entry.text).unwrap_or_default();
        let at = fields.at();
        journal.add(entry.seq, at);
        journal.mark = if fields.kind.is_some_and(is_word) { Mark::default() } else { Mark::end_of(entry.text) };
        self.count += 1;
        let Some(key_id) = fields.key_id else { return true };
        let use_ = at.filter(|_| fields.is_request()).map(|at| Use::of(&fields, at, &mut self.texts));
        let key = self.keys.number(key_id.raw());
        self.gathered(key).add(index, entry.seq, use_);
        true
    }

    /// The same for each record of a group.
    pub fn add_group(&mut self, group: &Group) -> bool {
        let index = self.journal(&group.journal);
        let last = self.journals.get(index).map_or(0, |journal| journal.last);
        let texts: Vec<TextId> = group.texts().map(|raw| self.texts.number(raw)).collect();
        // The last one that is known, too: whether it is the same is seen.
        group.after_record(last.saturating_sub(1)).all(|(seq, record)| match record {
            Told::Call(call) => self.add_call(index, seq, call, &texts),
            Told::Line(text) => self.add(&Entry { journal: &group.journal, seq, text }),
        })
    }

    fn add_call(&mut self, index: usize, seq: u64, call: &Call, texts: &[TextId]) -> bool {
        let Some(journal) = self.journals.get_mut(index) else { return true };
        let mark = Mark::of_crc(call.crc);
        if seq <= journal.last {
            return mark.may_be(journal.mark);
        }
        journal.add(seq, Some(call.at));
        journal.mark = mark;
        self.count += 1;
        let Some(key_id) = call.key else { return true };
        let key = self.key_numbers.get(&key_id).copied().unwrap_or_else(|| {
            let number = self.keys.number(&key_id.to_string());
            self.key_numbers.insert(key_id, number);
            number
        });
        let text = |number: Option<TextNumber>| number.and_then(|number| texts.get(number.place())).copied();
        let use_ = Use {
            at: call.at,
            client_ip: call.client_ip,
            method: text(call.method).unwrap_or_else(|| self.texts.number("")),
            route: text(call.route),
            reason: text(call.reason).filter(|_| !call.allowed),
            status: call.status,
            refused: !call.allowed,
        };
        self.gathered(key).add(index, seq, Some(use_));
        true
    }

    fn gathered(&mut self, key: TextId) -> &mut Gathered {
        let place = key.place();
        if place >= self.gathered.len() {
            self.gathered.resize_with(place + 1, Gathered::default);
        }
        &mut self.gathered[place] // tidy: allow(there is a place for it now)
    }

    fn more(&self, uses: &DayBatch) -> More {
        let route = |(method, pattern): (TextId, Option<TextId>)| Route {
            method: self.texts.text(method),
            pattern: pattern.map(|pattern| self.texts.text(pattern)),
        };
        let (journal, last) = uses.last;
        let Route { method, pattern } = route((last.method, last.route));
        let refusals = uses.refusals.entries.iter();
        More {
            first: uses.first,
            last: LastUse {
                at: last.at,
                gateway: self.journals.get(journal).map(JournalBatch::gateway).unwrap_or_default().to_owned(),
                client_ip: last.client_ip,
                method,
                route: pattern,
                refused: last.refused,
            },
            statuses: uses.statuses,
            refusals: refusals.map(|(reason, seen)| (self.texts.text(*reason), seen.count)).collect(),
            addresses: uses.addresses.entries.clone(),
            routes: uses.routes.entries.iter().map(|(what, seen)| (route(*what), *seen)).collect(),
        }
    }

    /// The place of a journal.
    fn journal(&mut self, name: &str) -> usize {
        if let Some(index) = self.journals.iter().position(|journal| journal.name == name) {
            return index;
        }
        self.journals.push(JournalBatch::new(name.to_owned()));
        self.journals.len() - 1
    }
}

// === impl Mark ===

impl Mark {
    /// Of a line without its newline. The word that stands for records that the journal lacks has none: it is another one each
    /// time.
    pub fn of(line: &str) -> Self {
        let kind = segment::kind_of(line.as_bytes());
        if kind == Some(Kind::Gap.as_str()) { Self::default() } else { Self::end_of(line) }
    }

    /// Of a line with this checksum.
    pub fn of_crc(crc: u32) -> Self {
        let mut mark = *b"00000000\"}";
        let mut rest = crc;
        for digit in mark.iter_mut().take(8).rev() {
            *digit = char::from_digit(rest & 15, 16).map_or(b'0', |digit| digit as u8);
            rest >>= 4;
        }
        Self(mark)
    }

    /// Whether they may be of the same record.
    pub fn may_be(self, other: Self) -> bool {
        self == other || self == Self::default() || other == Self::default()
    }

    fn end_of(line: &str) -> Self {
        Self(line.as_bytes().last_chunk().copied().unwrap_or_default())
    }
}

fn is_word(kind: Text<'_>) -> bool {
    kind.is(Kind::Gap.as_str())
}

// === impl JournalBatch ===

impl JournalBatch {
    /// Numbers begin with 1.
    const fn new(name: String) -> Self {
        Self { name, first: None, last: 0, mark: Mark([0; 10]), stretches: Vec::new() }
    }

    fn gateway(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
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

// === impl Gathered ===

impl Gathered {
    fn add(&mut self, journal: usize, seq: u64, use_: Option<Use>) {
        match self.postings.iter_mut().find(|(index, _)| *index == journal) {
            Some((_, postings)) => postings.push(seq),
            None => self.postings.push((journal, Postings::new(seq))),
        }
        let Some(use_) = use_ else { return };
        let day = Day::of(use_.at);
        match self.days.iter_mut().rev().find(|(there, _)| *there == day) {
            Some((_, uses)) => uses.add(journal, use_),
            None => self.days.push((day, DayBatch::of(journal, use_))),
        }
    }
}

// === impl DayBatch ===

impl DayBatch {
    fn of(journal: usize, first: Use) -> Self {
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

    fn add(&mut self, journal: usize, use_: Use) {
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

// === impl Use ===

impl Use {
    /// What a request's record says.
    fn of(fields: &Fields<'_>, at: Timestamp, texts: &mut Texts) -> Self {
        let refused = fields.decision.is_some_and(|decision| decision.is("deny"));
        Self {
            at,
            client_ip: fields.client_ip.and_then(|ip| ip.raw().parse().ok()),
            method: texts.number(fields.method.map_or("", Text::raw)),
            route: fields.route.map(|route| texts.number(route.raw())),
            reason: fields.reason.filter(|_| refused).map(|reason| texts.number(reason.raw())),
            status: fields.status.and_then(|status| u16::try_from(status).ok()),
            refused,
        }
    }
}
