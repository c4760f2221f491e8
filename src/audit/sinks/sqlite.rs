//! The index behind `keygate logs` and the reports of keys, as a sink: `index.db` beside the journals.

use super::{Line, Positions, Sink, SinkError};
use crate::audit::index::{Entry, Index, IndexError};
use crate::audit::recent::Group;
use std::path::PathBuf;

/// Fills the index of an audit directory.
#[derive(Debug)]
pub struct Sqlite {
    name: String,
    dir: PathBuf,
    /// None until it could be opened.
    index: Option<Index>,
}

// === impl Sqlite ===

impl Sqlite {
    /// Nothing is opened before there is something to index.
    pub const fn new(name: String, dir: PathBuf) -> Self {
        Self { name, dir, index: None }
    }

    fn index(&mut self) -> Result<&mut Index, IndexError> {
        let index = match self.index.take() {
            Some(index) => index,
            None => Index::open(&self.dir)?,
        };
        Ok(self.index.insert(index))
    }
}

impl Sink for Sqlite {
    fn name(&self) -> &str {
        &self.name
    }

    fn position(&mut self) -> Result<Option<Positions>, SinkError> {
        // What was gathered and not written is gone with the old one: its records come again.
        self.index = None;
        Ok(Some(self.index()?.positions().clone()))
    }

    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        let entries = batch.iter().map(|line| Entry { journal: &line.journal, seq: line.seq, text: &line.text });
        Ok(self.index()?.deliver(entries)?)
    }

    fn takes_groups(&self) -> bool {
        true
    }

    fn deliver_group(&mut self, group: &Group) -> Result<(), SinkError> {
        Ok(self.index()?.deliver_group(group)?)
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        Ok(self.index.as_mut().map_or(Ok(()), Index::flush)?)
    }

    fn settled(&self) -> Option<Positions> {
        Some(self.index.as_ref().map_or_else(Positions::new, |index| index.positions().clone()))
    }
}

impl From<IndexError> for SinkError {
    fn from(error: IndexError) -> Self {
        let why = error.to_string();
        match error {
            IndexError::Replaced { .. } => Self::Behind { why },
            IndexError::Unavailable { .. } | IndexError::Unusable { .. } => Self::later(why),
        }
    }
}
