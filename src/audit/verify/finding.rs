//! What is wrong with a journal, as sentences for people and members for scripts.

use serde_json::{Map, Value, json};
use std::fmt;
use std::path::{Path, PathBuf};

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Bytes that are no whole record, or no whole block.
    Damaged {
        segment: PathBuf,
        start: u64,
        bytes: u64,
        /// The records that lack for it: none if no number lacks, and without a last one at the journal's end.
        records: Option<(u64, Option<u64>)>,
    },
    /// Numbers without a record.
    Missing { first: u64, last: u64 },
    /// Records whose numbers had been there before.
    Repeated { segment: PathBuf, first: u64, last: u64 },
    /// Each record is whole, but together they are not what was sealed.
    Altered { first: u64, last: u64, seal: u64 },
    /// The sealed record that is known is not the one that is there.
    Forked { seq: u64 },
    /// The journal came further than it does here.
    Cut { journal: String, last: Option<u64>, known: u64 },
    /// Records of another journal.
    Foreign { segment: PathBuf, journal: String, first: u64, last: u64 },
    /// Records in another version of the format.
    Version { segment: PathBuf, schema: u64 },
    /// A file whose name does not say where it begins: readers do not find its records.
    Misnamed { segment: PathBuf, begins: Option<u64> },
    /// A segment without a byte.
    Empty { segment: PathBuf },
}

/// `record 7`, `records 7 to 9`.
pub fn records(first: u64, last: u64) -> String {
    if first == last { format!("record {first}") } else { format!("records {first} to {last}") }
}

// === impl Finding ===

impl Finding {
    /// What kind of fault it is, for scripts.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Damaged { .. } => "damaged",
            Self::Missing { .. } => "missing",
            Self::Repeated { .. } => "repeated",
            Self::Altered { .. } => "altered",
            Self::Forked { .. } => "forked",
            Self::Cut { .. } => "cut",
            Self::Foreign { .. } => "foreign",
            Self::Version { .. } => "version",
            Self::Misnamed { .. } => "misnamed",
            Self::Empty { .. } => "empty",
        }
    }

    /// The numbers it is about: the first, and the last where it is known.
    pub const fn numbers(&self) -> (Option<u64>, Option<u64>) {
        match self {
            Self::Damaged { records: Some((first, last)), .. } => (Some(*first), *last),
            Self::Missing { first, last }
            | Self::Repeated { first, last, .. }
            | Self::Altered { first, last, .. }
            | Self::Foreign { first, last, .. } => (Some(*first), Some(*last)),
            Self::Forked { seq } => (Some(*seq), Some(*seq)),
            Self::Cut { last: Some(last), known, .. } => (Some(last.saturating_add(1)), Some(*known)),
            Self::Cut { last: None, known, .. } => (None, Some(*known)),
            Self::Damaged { records: None, .. } | Self::Version { .. } | Self::Misnamed { .. } | Self::Empty { .. } => {
                (None, None)
            }
        }
    }

    /// The file it is in, where it is in one.
    pub fn segment(&self) -> Option<&Path> {
        match self {
            Self::Damaged { segment, .. }
            | Self::Repeated { segment, .. }
            | Self::Foreign { segment, .. }
            | Self::Version { segment, .. }
            | Self::Misnamed { segment, .. }
            | Self::Empty { segment } => Some(segment),
            Self::Missing { .. } | Self::Altered { .. } | Self::Forked { .. } | Self::Cut { .. } => None,
        }
    }

    /// As a JSON object.
    pub fn to_json(&self) -> Value {
        let (first, last) = self.numbers();
        let mut members = Map::new();
        let mut put = |name: &str, value: Value| _ = members.insert(name.to_owned(), value);
        put("fault", json!(self.code()));
        put("first", json!(first));
        put("last", json!(last));
        put("segment", json!(self.segment().map(|path| path.display().to_string())));
        if let Self::Damaged { start, bytes, .. } = self {
            put("start", json!(start));
            put("bytes", json!(bytes));
        }
        put("text", json!(self.to_string()));
        Value::Object(members)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged { segment, start, bytes, records: lacking } => {
                write!(f, "{} is damaged: {bytes} bytes from byte {start} are no record", segment.display())?;
                match lacking {
                    Some((first, Some(last))) => write!(f, ", where there should be {}", records(*first, *last)),
                    Some((first, None)) => write!(f, ", where there should be record {first} and what came after it"),
                    None => f.write_str(", and no number lacks"),
                }
            }
            Self::Missing { first, last } => write!(f, "{} missing", lacking(*first, *last)),
            Self::Repeated { segment, first, last } => {
                let records = records(*first, *last);
                write!(f, "{} holds {records}, which came before already", segment.display())
            }
            Self::Altered { first, last, seal } => {
                write!(f, "{}: altered, they are not what record {seal} has sealed", records(*first, *last))
            }
            Self::Forked { seq } => {
                write!(
                    f,
                    "record {seq} is not the seal that is known: the journal was written anew, up to there at least"
                )
            }
            Self::Cut { journal, last: Some(last), known } => {
                write!(f, "the journal {journal} ends with record {last}, and it is known to have come to {known}")
            }
            Self::Cut { journal, last: None, known } => {
                write!(f, "the journal {journal} is not here, and it is known to have come to record {known}")
            }
            Self::Foreign { segment, journal, first, last } => {
                write!(f, "{} holds {} of another journal, {journal}", segment.display(), records(*first, *last))
            }
            Self::Version { segment, schema } => {
                write!(
                    f,
                    "{} is in version {schema} of the format; this keygate reads {}",
                    segment.display(),
                    crate::audit::SCHEMA
                )
            }
            Self::Misnamed { segment, begins: Some(begins) } => {
                write!(f, "{} begins with record {begins}, which its name does not say", segment.display())
            }
            Self::Misnamed { segment, begins: None } => write!(f, "{} has no segment's name", segment.display()),
            Self::Empty { segment } => write!(f, "{} is empty", segment.display()),
        }
    }
}

fn lacking(first: u64, last: u64) -> String {
    format!("{} {}", records(first, last), if first == last { "is" } else { "are" })
}
