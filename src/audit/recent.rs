//! What the newest synced records of this process's journal say, in memory: for those that follow the journal and need no lines. One
//! that is further behind, or begins, reads the journal.

use super::draft::{Draft, Text};
use super::hash::Seeded;
use super::json::escape;
use crate::clock::Timestamp;
use crate::key::KeyId;
use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// So many records are held for one that does not take them: those of some seconds.
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
    pub ended_at: Timestamp,
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

/// Of a text in a [`Group`], beginning with 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextNumber(NonZeroU32);

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
    latest: Option<(Box<[u8]>, TextNumber)>,
}

/// Where a journal's writer tells of what it has synced.
#[derive(Debug)]
pub struct Recent {
    slot: PathBuf,
    /// The last number that was told, and who is told.
    told: Mutex<(u64, Vec<Weak<Taker>>)>,
}

/// One that takes groups: those that it has not taken yet.
#[derive(Debug)]
pub struct Taker {
    slot: PathBuf,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    groups: VecDeque<Arc<Group>>,
    records: usize,
    /// The last number before them.
    before: u64,
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
}

// === impl TextNumber ===

impl TextNumber {
    pub const fn place(self) -> usize {
        self.0.get() as usize - 1
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
            ended_at: draft.at.plus(Duration::from_micros(draft.duration_us.unwrap_or(0))),
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
        let mut next = Self::after(&self.group.journal, self.group.last());
        // About as many come as came last.
        next.group.records.reserve(self.group.records.len());
        std::mem::replace(self, next).group
    }
}

// === impl Numbers ===

impl Numbers {
    fn number(&mut self, draft: &Draft<'_>, text: Text, texts: &mut Vec<Box<str>>) -> Option<TextNumber> {
        let bytes = draft.text(text)?;
        if let Some((latest, number)) = &self.latest
            && **latest == *bytes
        {
            return Some(*number);
        }
        let number = self.find(bytes, text, texts);
        self.latest = Some((bytes.into(), number));
        Some(number)
    }

    fn find(&mut self, bytes: &[u8], text: Text, texts: &mut Vec<Box<str>>) -> TextNumber {
        if let Some(number) = self.numbers.get(bytes) {
            return *number;
        }
        let mut escaped = Vec::new();
        escape(&mut escaped, bytes, text.shown_max());
        texts.push(String::from_utf8_lossy(&escaped).into());
        let number = u32::try_from(texts.len()).ok().and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX);
        let number = TextNumber(number);
        self.numbers.insert(bytes.into(), number);
        number
    }
}

// === impl Recent ===

impl Recent {
    /// Of the journal in the directory `slot`, which ends with the record `last`.
    pub const fn new(slot: PathBuf, last: u64) -> Self {
        Self { slot, told: Mutex::new((last, Vec::new())) }
    }

    /// Somebody is told from now on.
    pub fn taker(&self) -> Arc<Taker> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = Waiting { groups: VecDeque::new(), records: 0, before: told.0 };
        let taker = Arc::new(Taker { slot: self.slot.clone(), waiting: Mutex::new(waiting) });
        told.1.push(Arc::downgrade(&taker));
        taker
    }

    /// Tells of what was synced after all that was told.
    pub fn push(&self, group: Group) {
        if group.records.is_empty() {
            return;
        }
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let group = Arc::new(group);
        told.0 = group.last();
        told.1.retain(|taker| taker.upgrade().inspect(|taker| taker.push(&group)).is_some());
    }
}

// === impl Taker ===

impl Taker {
    fn push(&self, group: &Arc<Group>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.groups.push_back(Arc::clone(group));
        waiting.records += group.records.len();
        while waiting.records > RECORDS_MAX {
            waiting.drop_first();
        }
    }

    /// Takes the groups with what follows the record `last` in a slot's journal, up to about so many records: the first may begin with
    /// known ones. `None` where it has to be read from there.
    pub fn take(&self, slot: &Path, last: u64, records_max: usize) -> Option<Vec<Arc<Group>>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if slot != self.slot || last < waiting.before {
            return None;
        }
        while waiting.groups.front().is_some_and(|first| first.last() <= last) {
            waiting.drop_first();
        }
        let (mut taken, mut records) = (Vec::new(), 0);
        while records < records_max {
            let Some(group) = waiting.drop_first() else { break };
            records += group.records.len();
            taken.push(group);
        }
        Some(taken)
    }
}

// === impl Waiting ===

impl Waiting {
    fn drop_first(&mut self) -> Option<Arc<Group>> {
        let first = self.groups.pop_front()?;
        self.records -= first.records.len();
        self.before = first.last();
        Some(first)
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::draft::tests::{Sample, sample};
    use super::super::fields::Fields;
    use super::super::line::RequestLines;
    use super::super::segment::{Kind, write_line};
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Records of one journal, beginning with number 1: as lines, and in groups of so many.
    pub type BothForms = (Vec<String>, Vec<Group>);

    pub fn in_both_forms(samples: &[Option<Sample>], group: usize) -> BothForms {
        const JOURNAL: &str = "edge-1/0";
        let (mut lines, mut groups) = (Vec::new(), Vec::new());
        let (mut requests, mut gathering) = (RequestLines::new(JOURNAL, "cfg"), Gathering::after(JOURNAL, 0));
        for (seq, sample) in (1..).zip(samples) {
            let mut line = Vec::new();
            match sample {
                Some(sample) => {
                    let crc = requests.write(&mut line, seq, &sample.draft());
                    gathering.add(&sample.draft(), crc);
                }
                None => {
                    let body = format!("\"ts\":\"{}\",\"requests_refused\":{seq},", Timestamp::from_micros(0));
                    write_line(&mut line, Kind::Gap, JOURNAL, seq, "cfg", body.as_bytes());
                    gathering.add_line(&line);
                }
            }
            lines.push(String::from_utf8(line).unwrap().trim_end().to_owned());
            if lines.len() % group == 0 {
                groups.push(gathering.take());
            }
        }
        groups.push(gathering.take());
        groups.retain(|group| !group.records.is_empty());
        (lines, groups)
    }

    pub fn both_forms() -> impl Strategy<Value = BothForms> {
        let samples = vec(prop_oneof![9 => sample().prop_map(Some), 1 => Just(None)], 1..30);
        (samples, 1_usize..10).prop_map(|(samples, group)| in_both_forms(&samples, group))
    }

    proptest! {
        #[test]
        fn a_group_says_of_each_record_what_its_line_does((lines, groups) in both_forms()) {
            let records = groups.iter().flat_map(|group| group.after_record(0).map(move |(seq, record)| (group, seq, record)));
            let mut count = 0;
            for ((group, seq, record), line) in records.zip(&lines) {
                count += 1;
                let fields = Fields::read(line).unwrap();
                prop_assert_eq!(fields.seq, Some(seq));
                let Record::Call(call) = record else {
                    prop_assert_eq!(record, &Record::Line(line.as_str().into()));
                    continue;
                };
                let text = |number: Option<TextNumber>| number.and_then(|number| group.texts().nth(number.place()));
                let raw = |text: Option<super::super::fields::Text<'_>>| text.map(|text| text.raw().to_owned());
                for (number, field) in [(call.method, fields.method), (call.route, fields.route), (call.reason, fields.reason)] {
                    prop_assert_eq!(text(number).map(str::to_owned), raw(field));
                }
                let duration = Duration::from_micros(fields.duration_us.unwrap_or(0));
                prop_assert_eq!((Some(call.at), call.ended_at), (fields.at(), call.at.plus(duration)));
                prop_assert_eq!(call.status.map(u64::from), fields.status);
                prop_assert_eq!(call.key.map(|key| key.to_string()), raw(fields.key_id));
                prop_assert_eq!(call.client_ip.map(|ip| ip.to_string()), raw(fields.client_ip));
                let decision = if call.allowed { "allow" } else { "deny" };
                prop_assert!(fields.decision.unwrap().is(decision));
                let end = format!("{:08x}\"}}", call.crc);
                prop_assert!(line.ends_with(&end));
            }
            prop_assert_eq!(count, lines.len());
        }

        #[test]
        fn what_waits_is_taken_from_any_record_on((lines, groups) in both_forms(), room in 1_usize..10, known in 0_u64..30) {
            let (slot, end) = (Path::new("audit/0"), lines.len() as u64);
            let recent = Recent::new(slot.to_owned(), 0);
            let taker = recent.taker();
            groups.into_iter().for_each(|group| recent.push(group));
            prop_assert!(taker.take(Path::new("audit/1"), known, room).is_none());
            let mut at = known;
            while let Some(group) = taker.take(slot, at, room).unwrap().last() {
                prop_assert!(group.last() > at);
                at = group.last();
            }
            prop_assert_eq!(at, known.max(end));
            // What was taken does not come again, and what was told before one came has to be read.
            prop_assert!(end == 1 || taker.take(slot, end - 1, room).is_none());
            prop_assert!(recent.taker().take(slot, end - 1, room).is_none());
            prop_assert_eq!(recent.taker().take(slot, end, room).unwrap().len(), 0);
        }
    }

    #[test]
    fn what_nobody_takes_goes_and_is_not_held_to_be_there() {
        let (slot, (lines, _)) = (Path::new("audit/0"), in_both_forms(&[None], 1));
        let recent = Recent::new(slot.to_owned(), 0);
        let taker = recent.taker();
        let mut gathering = Gathering::after("edge-1/0", 0);
        for _ in 0..RECORDS_MAX / 1000 + 2 {
            (0..1000).for_each(|_| gathering.add_line(lines[0].as_bytes()));
            recent.push(gathering.take());
        }
        assert!(taker.take(slot, 1999, 1).is_none());
        assert_eq!(taker.take(slot, 2000, 1).unwrap()[0].first, 2001);
        let rest = taker.take(slot, 3000, usize::MAX).unwrap();
        assert_eq!(rest.iter().map(|group| group.records.len()).sum::<usize>(), RECORDS_MAX - 1000);
        drop(taker);
        gathering.add_line(lines[0].as_bytes());
        recent.push(gathering.take());
        assert!(recent.told.lock().unwrap().1.is_empty());
    }
}
