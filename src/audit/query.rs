//! Questions to the journal.

use crate::clock::Timestamp;
use serde_json::Value;

/// Which records are wanted; every part that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub key_id: Option<String>,
    /// Of any of these.
    pub entity_ids: Option<Vec<String>>,
    pub status: Option<StatusFilter>,
    pub decision: Option<String>,
    pub reason: Option<String>,
    pub method: Option<String>,
    pub path_prefix: Option<String>,
    pub since: Option<Timestamp>,
}

/// A status, or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    /// Such as 403.
    Exactly(u64),
    /// Such as 4xx: the first digit.
    Class(u64),
}

// === impl StatusFilter ===

impl StatusFilter {
    /// Reads `403` or `4xx`.
    ///
    /// # Errors
    /// A sentence for whoever wrote it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let class =
            text.strip_suffix("xx").and_then(|digit| digit.parse().ok()).filter(|digit| (1..=5).contains(digit));
        let exactly = text.parse().ok().filter(|status| (100..=599).contains(status));
        class
            .map(Self::Class)
            .or(exactly.map(Self::Exactly))
            .ok_or_else(|| format!("'{text}' is not a status; write 403 or 4xx"))
    }

    const fn holds(self, status: u64) -> bool {
        match self {
            Self::Exactly(wanted) => status == wanted,
            Self::Class(wanted) => status / 100 == wanted,
        }
    }
}

// === impl Filter ===

impl Filter {
    /// Whether a record is wanted. Only requests have what is asked for: with any filter but `since`, others are not.
    pub fn wants(&self, record: &Value) -> bool {
        let text = |member: &str| record.get(member).and_then(Value::as_str);
        let is =
            |member: &str, wanted: &Option<String>| wanted.as_ref().is_none_or(|wanted| text(member) == Some(wanted));
        let status = record.get("status").and_then(Value::as_u64);
        let is_one_of = |ids: &Vec<String>| text("entity_id").is_some_and(|id| ids.iter().any(|wanted| wanted == id));
        let is_since = |since: Timestamp| text("ts").and_then(Timestamp::parse).is_some_and(|time| time >= since);
        is("key_id", &self.key_id)
            && self.entity_ids.as_ref().is_none_or(is_one_of)
            && is("decision", &self.decision)
            && is("reason", &self.reason)
            && is("method", &self.method)
            && self.status.is_none_or(|wanted| status.is_some_and(|status| wanted.holds(status)))
            && self.path_prefix.as_ref().is_none_or(|prefix| text("path").is_some_and(|path| path.starts_with(prefix)))
            && self.since.is_none_or(is_since)
    }
}
