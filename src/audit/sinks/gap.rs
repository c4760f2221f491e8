//! What a sink is told in place of records that it does not get.

use super::Line;
use crate::audit::segment::{Kind, write_line};
use crate::clock::Timestamp;
use std::sync::Arc;

/// Why records do not reach a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// The journal has them no more: retention removed them before the sink had taken them, or they are damaged.
    NotInJournal,
    /// The destination does not take so long a record, not even alone.
    TooLarge,
}

/// Records that a sink does not get: `first` to `last` of one journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    pub journal: Arc<str>,
    pub first: u64,
    pub last: u64,
    pub why: Lack,
}

// === impl Lack ===

impl Lack {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotInJournal => "not_in_journal",
            Self::TooLarge => "too_large",
        }
    }
}

// === impl Gap ===

impl Gap {
    pub const fn records(&self) -> u64 {
        self.last.saturating_sub(self.first).saturating_add(1)
    }

    /// Whether `line` is the one that takes their place.
    pub fn is_told_by(&self, line: &Line) -> bool {
        self.journal == line.journal && self.last == line.seq
    }

    /// The line that takes their place.
    pub fn line(&self, sink: &str, now: Timestamp) -> Line {
        let Self { journal, first, last, why } = self;
        let body = format!(
            r#""ts":"{now}","sink":"{sink}","reason":"{}","first":{first},"last":{last},"records":{},"#,
            why.as_str(),
            self.records()
        );
        let mut text = Vec::new();
        write_line(&mut text, Kind::Gap, journal, *last, "", body.as_bytes());
        text.pop();
        Line { journal: Arc::clone(journal), seq: *last, text: String::from_utf8(text).unwrap_or_default().into() }
    }
}
