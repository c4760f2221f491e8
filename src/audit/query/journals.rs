//! The journals of an audit directory as a source: all slots together.

use super::slot_query::{Found, SlotQuery};
use super::{Cursor, Filter, Page, QueryError, Source};
use crate::audit::index::IndexReader;
use crate::audit::reader::{Fault, journals};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

/// Reads the segments, by the index if there is one. With it and without it the answers are the same.
#[derive(Debug)]
pub struct JournalSource {
    dir: PathBuf,
    index: Option<IndexReader>,
    /// What has been told: a page may pass again over what the one before passed.
    told: HashSet<String>,
    lasts: BTreeMap<PathBuf, u64>,
    bytes_read: u64,
}

/// A slot's number, a question to it, and the record it would give next.
struct Asked<'a> {
    number: u32,
    query: SlotQuery<'a>,
    head: Option<Found>,
}

// === impl JournalSource ===

impl JournalSource {
    pub fn new(dir: &Path, index: Option<IndexReader>) -> Self {
        Self { dir: dir.to_owned(), index, told: HashSet::new(), lasts: BTreeMap::new(), bytes_read: 0 }
    }

    /// How many bytes of segments have been read, those included that were read twice.
    pub const fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The last record that each slot had when the last page was asked for; 0 for an empty one. What follows is in no page.
    pub const fn lasts(&self) -> &BTreeMap<PathBuf, u64> {
        &self.lasts
    }

    /// What has not been told yet. The same damage is told once, though the second time less may be known about it.
    fn warnings(&mut self, faults: Vec<Fault>) -> Vec<String> {
        let is_new = |fault: &Fault| {
            let place = match fault {
                Fault::Damage { segment, start, .. } => format!("{} {start}", segment.display()),
                Fault::Missing { .. } => fault.to_string(),
            };
            self.told.insert(place)
        };
        faults.into_iter().filter(is_new).map(|fault| fault.to_string()).collect()
    }
}

impl Source for JournalSource {
    fn page(&mut self, filter: &Filter, after: Option<&Cursor>, limit: usize) -> Result<Page, QueryError> {
        let positions = after.map(parse).transpose()?;
        let slots = journals(&self.dir)
            .map_err(|error| io::Error::new(error.kind(), format!("no journal in {}: {error}", self.dir.display())))?;
        let mut asked = Vec::new();
        self.lasts.clear();
        for dir in slots {
            let number = dir.file_name().and_then(|name| name.to_str()?.parse().ok()).unwrap_or(0);
            // A slot that the cursor does not know is newer than all that it does.
            let known = positions.as_ref().map_or(Some(u64::MAX), |positions| positions.get(&number).copied());
            if let Some(upto) = known {
                let query = SlotQuery::open(&dir, filter, self.index.as_ref(), upto)?;
                self.lasts.insert(dir, query.last());
                asked.push(Asked { number, query, head: None });
            }
        }
        let lines = merge(&mut asked, limit)?;
        let has_more = asked.iter().any(|slot| slot.head.is_some());
        let next = has_more.then(|| cursor(&asked));
        self.bytes_read += asked.iter().map(|slot| slot.query.bytes_read()).sum::<u64>();
        let faults = asked.iter_mut().flat_map(|slot| slot.query.take_faults()).collect();
        Ok(Page { lines, next, warnings: self.warnings(faults) })
    }
}

/// The newest records of all, and for each slot the record that would follow.
fn merge(asked: &mut [Asked<'_>], limit: usize) -> Result<Vec<String>, QueryError> {
    for slot in &mut *asked {
        slot.head = slot.query.next()?;
    }
    let mut lines = Vec::new();
    while lines.len() < limit {
        let heads = asked.iter_mut().filter(|slot| slot.head.is_some());
        let newest = heads.max_by(|left, right| left.ts().cmp(&right.ts()));
        let Some(slot) = newest else { break };
        let next = slot.query.next()?;
        lines.extend(std::mem::replace(&mut slot.head, next).map(|found| found.text));
    }
    Ok(lines)
}

/// Such as `0:123,1:45`: how far down each slot has been read.
fn cursor(asked: &[Asked<'_>]) -> Cursor {
    let places = asked.iter().map(|slot| format!("{}:{}", slot.number, slot.head.as_ref().map_or(0, |head| head.seq)));
    Cursor(places.collect::<Vec<_>>().join(","))
}

fn parse(cursor: &Cursor) -> Result<BTreeMap<u32, u64>, QueryError> {
    let place = |text: &str| {
        let (slot, seq) = text.split_once(':')?;
        Some((slot.parse().ok()?, seq.parse().ok()?))
    };
    cursor.0.split(',').map(place).collect::<Option<_>>().ok_or_else(|| QueryError::NoCursor(cursor.clone()))
}

// === impl Asked ===

impl Asked<'_> {
    fn ts(&self) -> Option<&str> {
        self.head.as_ref().map(|head| &*head.ts)
    }
}
