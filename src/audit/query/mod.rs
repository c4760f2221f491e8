//! Questions to the journal, or to whatever has kept its records.

mod filter;
mod journals;
mod packed;
mod plain;
mod slot;
mod slot_query;
#[cfg(test)]
mod tests;

pub use filter::{Filter, Kinds, StatusFilter};
pub use journals::JournalSource;

use super::index::IndexError;
use std::fmt;

/// Where records can be asked for, page by page, newest first.
///
/// An implementation gives every record that the filter wants, as [`Filter::wants`] says, once. The records of one journal
/// come in descending order of `seq`; journals are interleaved by `ts` as well as that allows. It need only remember in its
/// cursors: a page that begins at a cursor goes on exactly where the one before ended, however many records have been written
/// meanwhile.
pub trait Source {
    /// At most `limit` records: the newest ones, or those that follow a cursor that this source gave.
    ///
    /// # Errors
    /// [`QueryError`] when the records cannot be read, or the cursor is none of this source's.
    fn page(&mut self, filter: &Filter, after: Option<&Cursor>, limit: usize) -> Result<Page, QueryError>;
}

/// Some of the records that are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Lines of the journal, without their newlines.
    pub lines: Vec<String>,
    /// Where the next page begins; none when there is no more.
    pub next: Option<Cursor>,
    /// What was damaged or missing on the way, in sentences.
    pub warnings: Vec<String>,
}

/// A place among the records of a source, as text that means something to that source alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub String);

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("{0}")]
    Unreadable(#[from] std::io::Error),
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("'{0}' is no cursor; take it from the answer to the same question")]
    NoCursor(Cursor),
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
