//! Which records are wanted.

use crate::audit::fields::{Fields, Text};
use crate::audit::segment::Kind;
use crate::clock::Timestamp;
use crate::net::Networks;
use std::net::IpAddr;
use std::time::Duration;

/// Which records are wanted; every part that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub kinds: Kinds,
    pub key_id: Option<String>,
    /// Of any of these.
    pub entity_ids: Option<Vec<String>>,
    /// `test` or `live`.
    pub mode: Option<String>,
    pub status: Option<StatusFilter>,
    pub decision: Option<String>,
    pub reason: Option<String>,
    pub method: Option<String>,
    pub path_prefix: Option<String>,
    /// A route's pattern.
    pub route: Option<String>,
    /// From an address in these.
    pub client_ip: Option<Networks>,
    pub request_id: Option<String>,
    /// That took longer.
    pub slower_than: Option<Duration>,
    /// Not older.
    pub since: Option<Timestamp>,
    /// Older.
    pub until: Option<Timestamp>,
}

/// Which kinds of record. Another version may write kinds that this one does not know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Kinds {
    /// Every record, those included that only prove others.
    #[default]
    All,
    /// What happened: all but seals, of which a busy journal has one every second.
    Events,
    /// These.
    Of(Vec<String>),
}

/// A status, or a class of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusFilter {
    /// Such as 403.
    Exactly(u64),
    /// Such as 4xx: the first digit.
    Class(u64),
}

// === impl Kinds ===

impl Kinds {
    fn hold(&self, kind: Option<Text<'_>>) -> bool {
        match self {
            Self::All => true,
            Self::Events => !kind.is_some_and(|kind| kind.is(Kind::Seal.as_str())),
            Self::Of(wanted) => kind.is_some_and(|kind| wanted.iter().any(|wanted| kind.is(wanted))),
        }
    }
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
    /// Whether a record is wanted. With any filter but those by kind and by time only requests are: others lack what is asked
    /// for.
    pub fn wants(&self, record: &Fields<'_>) -> bool {
        self.kinds.hold(record.kind)
            && is(&self.key_id, record.key_id)
            && is(&self.mode, record.mode)
            && is(&self.decision, record.decision)
            && is(&self.reason, record.reason)
            && is(&self.method, record.method)
            && is(&self.route, record.route)
            && is(&self.request_id, record.request_id)
            && holds(self.status, record.status, StatusFilter::holds)
            && holds(self.path_prefix.as_deref(), record.path, |prefix, path| path.starts_with(prefix))
            && holds(self.entity_ids.as_ref(), record.entity_id, |ids, id| ids.iter().any(|wanted| id.is(wanted)))
            && holds(self.client_ip.as_ref(), record.client_ip, contains)
            && holds(self.slower_than, record.duration_us, |than, micros| Duration::from_micros(micros) > than)
            && self.is_in_time(record)
    }

    /// A text that stands in every line that is wanted: looking for it is cheaper than reading the line.
    pub(super) fn needle(&self) -> Option<&str> {
        let is_written_plainly = |text: &&str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        self.request_id.as_deref().or(self.key_id.as_deref()).filter(is_written_plainly)
    }

    fn is_in_time(&self, record: &Fields<'_>) -> bool {
        let is_open = self.since.is_none() && self.until.is_none();
        let is_within = |at| self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until);
        is_open || record.at().is_some_and(is_within)
    }
}

fn is(wanted: &Option<String>, text: Option<Text<'_>>) -> bool {
    holds(wanted.as_deref(), text, |wanted, text| text.is(wanted))
}

/// What nobody asks for holds; what a record lacks does not.
fn holds<W, T>(wanted: Option<W>, has: Option<T>, is: impl FnOnce(W, T) -> bool) -> bool {
    wanted.is_none_or(|wanted| has.is_some_and(|has| is(wanted, has)))
}

fn contains(networks: &Networks, ip: Text<'_>) -> bool {
    ip.raw().parse::<IpAddr>().is_ok_and(|ip| networks.contains(ip))
}
