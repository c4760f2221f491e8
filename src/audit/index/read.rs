//! Questions to the index, while another process may write it.

use super::batch::Mark;
use super::open;
use super::postings::Postings;
use super::write::decode;
use super::{FILE, IndexError};
use crate::audit::fields::Fields;
use crate::audit::reader::{Follow, journals};
use crate::audit::usage::{Day, LastUse, Usage};
use crate::clock::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, params};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// The index, for questions.
pub struct IndexReader {
    dir: PathBuf,
    path: PathBuf,
    connection: Connection,
}

/// What the index knows of a slot: the records from `first` to `last`, under one name of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    journal: i64,
    pub first: u64,
    pub last: u64,
    /// Of the last one.
    pub mark: Mark,
}

// === impl IndexReader ===

impl IndexReader {
    /// Opens the index of an audit directory; `None` when there is none.
    ///
    /// # Errors
    /// [`IndexError`] when it cannot be read. Every question can be answered from the journal too.
    pub fn open(dir: &Path) -> Result<Option<Self>, IndexError> {
        let path = dir.join(FILE);
        let connection = open::reader(&path)?;
        Ok(connection.map(|connection| Self { dir: dir.to_owned(), path, connection }))
    }

    /// What a key was used for on the days (UTC) that the time from `since` to `until` touches. What has not reached the
    /// index yet is read from the journal. Days stay when the segments with their records are gone.
    ///
    /// # Errors
    /// [`IndexError`] when index or journal cannot be read.
    pub fn usage(&self, key_id: &str, since: Timestamp, until: Timestamp) -> Result<Usage, IndexError> {
        let days = Day::of(since)..=Day::of(until);
        let (mut usage, positions) =
            self.at_once(|connection| Ok((stored_usage(connection, key_id, &days)?, open::positions(connection)?)))?;
        self.read_rest(&positions, |fields| {
            let is_wanted = fields.key_id.is_some_and(|id| id.is(key_id));
            if is_wanted && fields.at().is_some_and(|at| days.contains(&Day::of(at))) {
                usage.add(fields);
            }
        })?;
        Ok(usage)
    }

    /// The last use of each key that was ever used, by its id.
    ///
    /// # Errors
    /// [`IndexError`] when index or journal cannot be read.
    pub fn last_uses(&self) -> Result<BTreeMap<String, LastUse>, IndexError> {
        let (mut uses, positions) =
            self.at_once(|connection| Ok((stored_last_uses(connection)?, open::positions(connection)?)))?;
        self.read_rest(&positions, |fields| {
            let (Some(id), Some(at)) = (fields.key_id, fields.at().filter(|_| fields.is_request())) else { return };
            let id = id.decoded();
            if uses.get(&*id).is_none_or(|known| known.at <= at) {
                uses.insert(id.into_owned(), LastUse::of(fields, at));
            }
        })?;
        Ok(uses)
    }

    /// What the index knows of a slot, newest first. The numbers of a slot go on when the gateway gets another id, under
    /// another name.
    ///
    /// # Errors
    /// [`IndexError`] when the index cannot be read.
    pub fn spans(&self, slot: &str) -> Result<Vec<Span>, IndexError> {
        self.at_once(|connection| {
            let sql = "SELECT name, id, first, last, mark FROM journals ORDER BY last DESC";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            let mut spans = Vec::new();
            while let Some(row) = rows.next()? {
                if slot_of(&row.get::<_, String>(0)?) == slot {
                    spans.push(Span {
                        journal: row.get(1)?,
                        first: row.get(2)?,
                        last: row.get(3)?,
                        mark: Mark(row.get(4)?),
                    });
                }
            }
            Ok(spans)
        })
    }

    /// A key's records in a span that are at most `upto`, as lists of ascending numbers; those of one list, the last one that
    /// begins there.
    ///
    /// # Errors
    /// [`IndexError`] when the index cannot be read.
    pub fn postings(&self, key_id: &str, span: Span, upto: u64) -> Result<Option<Vec<u64>>, IndexError> {
        self.at_once(|connection| {
            let sql = "SELECT first, last, distances FROM postings
                WHERE key = (SELECT id FROM keys WHERE key = ?1) AND journal = ?2 AND first <= ?3
                ORDER BY first DESC LIMIT 1";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query(params![key_id, span.journal, upto.min(span.last)])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let damaged = || rusqlite::Error::FromSqlConversionFailure(2, Type::Blob, "no list of numbers".into());
            let mut list = Postings::stored(row.get(0)?, row.get(1)?, row.get(2)?).decode().ok_or_else(damaged)?;
            list.truncate(list.partition_point(|seq| *seq <= upto));
            Ok(Some(list))
        })
    }

    /// The ranges of a span, newest first, in which there may be records of a time, none of them empty.
    ///
    /// # Errors
    /// [`IndexError`] when the index cannot be read.
    pub fn ranges(
        &self,
        span: Span,
        since: Option<Timestamp>,
        until: Option<Timestamp>,
    ) -> Result<Vec<RangeInclusive<u64>>, IndexError> {
        if since.is_none() && until.is_none() {
            return Ok(vec![span.first..=span.last]);
        }
        self.at_once(|connection| {
            let sql = "SELECT first, last FROM stretches WHERE journal = ?1 AND latest >= ?2 AND earliest <= ?3
                ORDER BY first DESC";
            let mut statement = connection.prepare_cached(sql)?;
            let since = since.map_or(i64::MIN, Timestamp::as_micros);
            let until = until.map_or(i64::MAX, Timestamp::as_micros);
            let mut rows = statement.query(params![span.journal, since, until])?;
            let mut ranges: Vec<RangeInclusive<u64>> = Vec::new();
            while let Some(row) = rows.next()? {
                let (first, last): (u64, u64) = (row.get(0)?, row.get(1)?);
                match ranges.last_mut().filter(|later| *later.start() == last + 1) {
                    Some(later) => *later = first..=*later.end(),
                    None => ranges.push(first..=last),
                }
            }
            Ok(ranges)
        })
    }

    /// Reads as of one moment.
    fn at_once<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, IndexError> {
        let of = |error| IndexError::of(&self.path, &error);
        let _snapshot = self.connection.unchecked_transaction().map_err(of)?;
        read(&self.connection).map_err(of)
    }

    /// Gives the records that are not in the index yet, in the order of each journal.
    fn read_rest(
        &self,
        positions: &BTreeMap<String, u64>,
        mut take: impl FnMut(&Fields<'_>),
    ) -> Result<(), IndexError> {
        let unavailable =
            |error: std::io::Error| IndexError::Unavailable { path: self.path.clone(), why: error.to_string() };
        for slot in journals(&self.dir).map_err(unavailable)? {
            let number = slot.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let here = positions.iter().filter(|(name, _)| slot_of(name) == number);
            let last = here.map(|(_, last)| *last).max();
            let mut follow = last.map_or_else(|| Follow::new(slot.clone()), |last| Follow::after(slot.clone(), last));
            follow.read(|line| Fields::read(line.text).iter().for_each(&mut take)).map_err(unavailable)?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for IndexReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexReader").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The slot in a journal's name, `gateway/slot`.
fn slot_of(journal: &str) -> &str {
    journal.rsplit('/').next().unwrap_or_default()
}

fn stored_usage(connection: &Connection, key_id: &str, days: &RangeInclusive<Day>) -> rusqlite::Result<Usage> {
    let sql = "SELECT day, usage FROM days WHERE key = (SELECT id FROM keys WHERE key = ?1) AND day BETWEEN ?2 AND ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![key_id, days.start().number(), days.end().number()])?;
    let mut usage = Usage::default();
    while let Some(row) = rows.next()? {
        usage.set_day(Day::from_number(row.get(0)?), decode(row.get_ref(1)?.as_blob()?)?);
    }
    Ok(usage)
}

fn stored_last_uses(connection: &Connection) -> rusqlite::Result<BTreeMap<String, LastUse>> {
    let sql = "SELECT key, (SELECT usage FROM days WHERE days.key = keys.id ORDER BY day DESC LIMIT 1) FROM keys";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([])?;
    let mut uses = BTreeMap::new();
    while let Some(row) = rows.next()? {
        if let Some(bytes) = row.get_ref(1)?.as_blob_or_null()? {
            uses.insert(row.get(0)?, decode(bytes)?.last);
        }
    }
    Ok(uses)
}
