//! The wanted records of one slot, newest first: which ones to look at, by the index where it helps.

use super::QueryError;
use super::filter::Filter;
use super::slot::{Pace, Slot};
use crate::audit::fields::Fields;
use crate::audit::index::{IndexReader, Mark, Span};
use crate::audit::reader::Fault;
use memchr::memmem::Finder;
use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};
use std::path::Path;

/// A question to one slot.
pub struct SlotQuery<'a> {
    slot: Slot,
    filter: &'a Filter,
    needle: Option<Finder<'a>>,
    /// The last number of the slot when it was opened; 0 if it is empty.
    last: u64,
    /// What is still to be looked at, newest first.
    parts: VecDeque<Part<'a>>,
}

/// A wanted record.
pub struct Found {
    pub seq: u64,
    pub ts: String,
    pub text: String,
}

/// Records to look at, from the end of their range down.
enum Part<'a> {
    All(RangeInclusive<u64>),
    OfKey(OfKey<'a>),
}

/// Those of a key, by the index.
struct OfKey<'a> {
    index: &'a IndexReader,
    key_id: &'a str,
    span: Span,
    /// Newest first.
    ranges: VecDeque<RangeInclusive<u64>>,
    /// What is left of the list that was read last, in ascending order.
    list: Vec<u64>,
}

/// A record's number and its place in the slot's window.
type Candidate = (u64, Range<usize>);

// === impl SlotQuery ===

impl<'a> SlotQuery<'a> {
    /// Asks a slot for records of at most `upto`.
    ///
    /// # Errors
    /// [`QueryError`] when the segments or the index cannot be read.
    pub fn open(dir: &Path, filter: &'a Filter, index: Option<&'a IndexReader>, upto: u64) -> Result<Self, QueryError> {
        let mut slot = Slot::open(dir)?;
        let last = slot.last()?.unwrap_or(0);
        let number = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let spans = index.map_or(Ok(Vec::new()), |index| index.spans(number))?;
        let index = if is_of(&mut slot, &spans, last)? { index } else { None };
        let parts = match index {
            Some(index) => plan(filter, index, &spans, upto)?,
            None => VecDeque::from([Part::All(1..=upto)]),
        };
        let needle = filter.needle().map(Finder::new);
        Ok(Self { slot, filter, needle, last, parts })
    }

    pub const fn last(&self) -> u64 {
        self.last
    }

    pub const fn bytes_read(&self) -> u64 {
        self.slot.bytes_read()
    }

    pub fn take_faults(&mut self) -> Vec<Fault> {
        self.slot.take_faults()
    }

    /// The next wanted record.
    ///
    /// # Errors
    /// [`QueryError`] when the segments or the index cannot be read.
    pub fn next(&mut self) -> Result<Option<Found>, QueryError> {
        while let Some((seq, text)) = self.candidate()? {
            let line = self.slot.line(&text);
            if self.needle.as_ref().is_some_and(|needle| needle.find(line).is_none()) {
                continue;
            }
            let line = str::from_utf8(line).unwrap_or_default();
            if let Some(fields) = Fields::read(line).filter(|fields| self.filter.wants(fields)) {
                let ts = fields.ts.map(|ts| ts.raw().to_owned()).unwrap_or_default();
                return Ok(Some(Found { seq, ts, text: line.to_owned() }));
            }
        }
        Ok(None)
    }

    /// The next record that may be wanted.
    fn candidate(&mut self) -> Result<Option<Candidate>, QueryError> {
        while let Some(part) = self.parts.front_mut() {
            let found = match part {
                Part::All(range) => scan(&mut self.slot, range)?,
                Part::OfKey(of_key) => look_up(&mut self.slot, of_key)?,
            };
            if found.is_some() {
                return Ok(found);
            }
            self.slot.end_scan();
            self.parts.pop_front();
        }
        Ok(None)
    }
}

/// Whether the index was made from this slot, and not from one that was removed: it knows no more than there is, and its last
/// record is the same.
fn is_of(slot: &mut Slot, spans: &[Span], last: u64) -> Result<bool, QueryError> {
    let Some(span) = spans.first() else { return Ok(true) };
    let found = slot.newest(span.last, Pace::Lookup)?.filter(|(seq, _)| *seq == span.last);
    // One that is damaged or gone proves nothing.
    let is_same = found
        .is_none_or(|(_, text)| str::from_utf8(slot.line(&text)).is_ok_and(|line| Mark::of(line).may_be(span.mark)));
    slot.forget();
    Ok(span.last <= last && is_same)
}

/// The newest record of the range, which ends below it afterwards.
fn scan(slot: &mut Slot, range: &mut RangeInclusive<u64>) -> Result<Option<Candidate>, QueryError> {
    if range.is_empty() {
        return Ok(None);
    }
    let found = slot.newest(*range.end(), Pace::Scan)?.filter(|(seq, _)| range.contains(seq));
    if let Some((seq, _)) = &found {
        *range = *range.start()..=seq.saturating_sub(1);
    }
    Ok(found)
}

/// The next record of a key. One that is gone is told, unless its segment is.
fn look_up(slot: &mut Slot, of_key: &mut OfKey<'_>) -> Result<Option<Candidate>, QueryError> {
    while let Some(seq) = of_key.next()? {
        let found = slot.newest(seq, Pace::Lookup)?.filter(|(found, _)| *found == seq);
        if found.is_some() {
            return Ok(found);
        }
        match slot.oldest() {
            Some(oldest) if oldest <= seq => slot.add_missing(seq),
            Some(_) | None => return Ok(None),
        }
    }
    Ok(None)
}

/// What of a slot must be looked at, newest first.
fn plan<'a>(
    filter: &'a Filter,
    index: &'a IndexReader,
    spans: &[Span],
    mut upto: u64,
) -> Result<VecDeque<Part<'a>>, QueryError> {
    let mut parts = VecDeque::new();
    for span in spans.iter().copied().filter(|span| span.first <= span.last) {
        if span.first > upto {
            continue;
        }
        parts.push_back(Part::All(span.last.saturating_add(1)..=upto));
        let ranges = index.ranges(span, filter.since, filter.until)?.into_iter();
        let ranges = ranges.filter(|range| *range.start() <= upto).map(|range| *range.start()..=upto.min(*range.end()));
        match &filter.key_id {
            Some(key_id) => {
                let ranges = ranges.collect();
                parts.push_back(Part::OfKey(OfKey { index, key_id, span, ranges, list: Vec::new() }));
            }
            None => parts.extend(ranges.map(Part::All)),
        }
        upto = span.first.saturating_sub(1);
    }
    parts.push_back(Part::All(1..=upto));
    Ok(parts)
}

// === impl OfKey ===

impl OfKey<'_> {
    /// The next number of the key that is in a range.
    fn next(&mut self) -> Result<Option<u64>, QueryError> {
        while let Some(range) = self.ranges.front_mut() {
            while self.list.last().is_some_and(|seq| seq > range.end()) {
                self.list.pop();
            }
            match self.list.last().copied() {
                Some(seq) if seq < *range.start() => _ = self.ranges.pop_front(),
                Some(seq) => {
                    *range = *range.start()..=seq.saturating_sub(1);
                    return Ok(Some(seq));
                }
                None => match self.index.postings(self.key_id, self.span, *range.end())? {
                    Some(list) => self.list = list,
                    None => return Ok(None),
                },
            }
        }
        Ok(None)
    }
}
