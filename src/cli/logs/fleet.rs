//! `keygate logs --fleet`: the records of all gateways, from the stream that a sink keeps in Redis.

use crate::audit::fields::Fields;
use crate::audit::query::{Cursor, Filter, Page, QueryError, Source};
use crate::config::{Config, Destination};
use crate::store::StoreError;
use crate::store::redis::{RecordStream, StoredRecord, StreamSettings};
use std::io;
use std::time::Duration;

/// Records that are read at once.
const READ: usize = 500;
/// A record arrives after it was written; whose clock is that far off is not found by time.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(3600);

/// The stream as a source. A cursor is the id of the last entry that was looked at.
pub struct FleetSource {
    stream: RecordStream,
    /// The newest entry that was looked at.
    newest: Option<String>,
}

/// The stream that the configuration's first sink of its kind writes.
pub fn stream(config: &Config) -> Option<&StreamSettings> {
    config.sinks.iter().find_map(|sink| match &sink.destination {
        Destination::Redis(stream) => Some(stream),
        Destination::Sqlite | Destination::Http(_) | Destination::Stdout => None,
    })
}

// === impl FleetSource ===

impl FleetSource {
    pub fn new(settings: &StreamSettings) -> Self {
        Self { stream: RecordStream::new(settings), newest: None }
    }

    /// What arrived since the last call, or since the newest page.
    pub fn read_on(&mut self, filter: &Filter) -> Result<Vec<String>, QueryError> {
        let mut lines = Vec::new();
        loop {
            let records = self.stream.after(self.newest.as_deref(), READ).map_err(unreadable)?;
            let Some(last) = records.last() else { return Ok(lines) };
            self.newest = Some(last.id.clone());
            lines.extend(records.into_iter().filter(|record| wants(filter, record)).map(|record| record.text));
        }
    }
}

impl Source for FleetSource {
    fn page(&mut self, filter: &Filter, after: Option<&Cursor>, limit: usize) -> Result<Page, QueryError> {
        let mut before = after.map(read_cursor).transpose()?;
        let mut page = Page::default();
        loop {
            let records = self.stream.newest(before.as_deref(), READ).map_err(unreadable)?;
            if records.is_empty() {
                return Ok(page);
            }
            for record in records {
                self.newest.get_or_insert_with(|| record.id.clone());
                if is_older(&record, filter) {
                    return Ok(page);
                }
                if wants(filter, &record) {
                    if page.lines.len() == limit {
                        page.next = before.map(Cursor);
                        return Ok(page);
                    }
                    page.lines.push(record.text);
                }
                before = Some(record.id);
            }
        }
    }
}

fn read_cursor(cursor: &Cursor) -> Result<String, QueryError> {
    let is_ours = StoredRecord::is_id(&cursor.0);
    if is_ours { Ok(cursor.0.clone()) } else { Err(QueryError::NoCursor(cursor.clone())) }
}

/// Whether it arrived so early that neither it nor what arrived before it can be wanted.
fn is_older(record: &StoredRecord, filter: &Filter) -> bool {
    let arrived = record.arrived_at().map(|time| time.plus(CLOCKS_APART_MAX));
    filter.since.is_some_and(|since| arrived.is_some_and(|arrived| arrived < since))
}

fn wants(filter: &Filter, record: &StoredRecord) -> bool {
    Fields::read(&record.text).is_some_and(|fields| filter.wants(&fields))
}

fn unreadable(error: StoreError) -> QueryError {
    let (StoreError::Unavailable(why) | StoreError::Refused(why)) = error else {
        return QueryError::Unreadable(io::Error::other(error.to_string()));
    };
    QueryError::Unreadable(io::Error::other(format!("the stream of audit records cannot be read: {why}")))
}
