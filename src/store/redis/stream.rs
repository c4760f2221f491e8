//! A stream of the fleet's audit records, and beside it how far each journal has come: one script moves both.

use super::link::{self, Link};
use super::{REPLY_BYTES, StoreError, Url, codec, schema};
use crate::clock::Timestamp;
use std::collections::BTreeMap;

const APPEND: &str = include_str!("audit.lua");
const RECORDS: &str = include_str!("records.lua");

/// Which stream, where.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    pub url: Url,
    /// The stream's name, behind the prefix of all our keys.
    pub stream: String,
    /// About so many of the newest records are kept.
    pub length_max: u64,
}

/// A writer of the stream, with a connection of its own. Records that the stream has had already it leaves out.
#[derive(Debug)]
pub struct RecordStream {
    link: Link,
    stream: String,
    positions: String,
    length_max: u64,
    /// What the stream is known to have, by journal.
    known: BTreeMap<String, u64>,
}

/// A record of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// Its place: ids ascend in the order in which records arrived. Begins with the time of its arrival.
    pub id: String,
    /// The line.
    pub text: String,
}

/// What came of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The stream has all of them.
    All,
    /// Nothing was written: the stream has lost records of this journal, and ends with this one.
    Behind { journal: String, seq: String },
}

// === impl RecordStream ===

impl RecordStream {
    /// Nothing connects before it is asked.
    pub fn new(settings: &StreamSettings) -> Self {
        let StreamSettings { url, stream, length_max } = settings;
        let positions = format!("{stream}:positions");
        let link = Link::new(url);
        Self { link, stream: stream.clone(), positions, length_max: *length_max, known: BTreeMap::new() }
    }

    /// The last record that the stream has had of each journal of a directory, which an id names: another directory may hold
    /// another journal of the same name, whose numbers begin again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis cannot be asked.
    pub fn positions(&mut self, directory: &str) -> Result<BTreeMap<String, u64>, StoreError> {
        let stored: BTreeMap<String, String> =
            self.link.call(::redis::cmd("HGETALL").arg(schema::name(&self.positions)))?;
        let own = |(field, seq): (String, String)| {
            let journal = field.strip_suffix(directory)?.strip_suffix(' ')?.to_owned();
            Some((journal, seq))
        };
        let read =
            |(journal, seq): (String, String)| Ok((journal, codec::need("position", &seq, |seq| seq.parse().ok())?));
        self.known = stored.into_iter().filter_map(own).map(read).collect::<Result<_, StoreError>>()?;
        Ok(self.known.clone())
    }

    /// Appends records of a directory, each a journal, a `seq` and the text, in order within a journal.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis cannot be asked or does not take them: nobody knows then what was written, and
    /// appending the same again is harmless.
    pub fn append<'a>(
        &mut self,
        directory: &str,
        records: impl Iterator<Item = (&'a str, u64, &'a str)> + Clone,
    ) -> Result<Appended, StoreError> {
        let mut lasts = BTreeMap::<&str, u64>::new();
        records.clone().for_each(|(journal, seq, _)| _ = lasts.insert(journal, seq));
        let mut command = link::script(APPEND, &[&self.stream, &self.positions]);
        command.arg(self.length_max).arg(directory).arg(lasts.len());
        for journal in lasts.keys() {
            command.arg(journal).arg(self.known.get(*journal).unwrap_or(&0));
        }
        // The script counts from 1.
        let numbers: BTreeMap<&str, usize> = lasts.keys().copied().zip(1..).collect();
        for (journal, seq, text) in records {
            command.arg(numbers.get(journal)).arg(seq).arg(text);
        }
        let (outcome, journal, seq): (String, String, String) = self.link.call(&command)?;
        match outcome.as_str() {
            "ok" => {
                self.known.extend(lasts.into_iter().map(|(journal, seq)| (journal.to_owned(), seq)));
                Ok(Appended::All)
            }
            "behind" => Ok(Appended::Behind { journal, seq }),
            _ => Err(codec::corrupt(&format!("an append was answered with '{outcome}'"))),
        }
    }

    /// The newest records, or those before `before`, newest first: at most `limit`, and fewer when they are long.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis cannot be asked.
    pub fn newest(&mut self, before: Option<&str>, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        self.read("newest", before, limit)
    }

    /// The oldest records, or those after `after`, oldest first, as [`Self::newest`].
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when Redis cannot be asked.
    pub fn after(&mut self, after: Option<&str>, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        self.read("after", after, limit)
    }

    fn read(&mut self, way: &str, from: Option<&str>, limit: usize) -> Result<Vec<StoredRecord>, StoreError> {
        let mut command = link::script(RECORDS, &[&self.stream]);
        command.arg(way).arg(from.unwrap_or_default()).arg(limit).arg(REPLY_BYTES);
        let records: Vec<(String, String)> = self.link.call(&command)?;
        Ok(records.into_iter().map(|(id, text)| StoredRecord { id, text }).collect())
    }
}

// === impl StoredRecord ===

impl StoredRecord {
    /// Whether this is an id that a stream could have given.
    pub fn is_id(text: &str) -> bool {
        text.split_once('-').is_some_and(|parts| parts.0.parse::<u64>().is_ok() && parts.1.parse::<u64>().is_ok())
    }

    /// When it arrived, by the server's clock.
    pub fn arrived_at(&self) -> Option<Timestamp> {
        let millis: i64 = self.id.split('-').next()?.parse().ok()?;
        Some(Timestamp::from_micros(millis.checked_mul(1000)?))
    }
}
