//! How much is known of the calls of a whole fleet, and the verdict on a key that rests on it.

use crate::clock::Timestamp;
use crate::key::KeyRecord;
use crate::store::{Accounts, Fleet, JournalAccount, LastUses, Use};
use std::fmt;
use std::time::Duration;

/// From when until when every call on every gateway is known.
#[derive(Clone, Debug)]
pub struct Coverage {
    now: Timestamp,
    from: Timestamp,
    through: Timestamp,
    /// The same to the second, where `through` takes seconds ago for now.
    reported: Timestamp,
    lacks: Vec<Lack>,
}

/// Why calls may be unknown. Its text is a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lack {
    /// No gateway has reported anything yet.
    Nothing,
    /// The store started again, was put back or lost changes not long ago: gateways may be missing.
    Settling,
    /// A gateway runs, and no journal of it is reported.
    Silent { gateway: String },
    /// Nothing is known of the time before the first record of all.
    Before { first: Timestamp },
    /// Before `end`, a journal lacks records or the names of keys.
    Hole { journal: String, end: Timestamp },
    /// What a journal has got since `through` is not reported.
    Late { journal: String, through: Timestamp },
}

/// Whether a key can be done without, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No call with it, refused or not, on any gateway in the whole period.
    SafeToDelete,
    InUse,
    /// No call with it is known, but only so much of the period is, in percent.
    Unknown {
        percent: u8,
    },
}

/// A journal that was reported up to so long ago counts as reported up to now: gateways report every few seconds.
const REPORTED_WITHIN: Duration = Duration::from_secs(15);

// === impl Coverage ===

impl Coverage {
    pub fn of(accounts: &Accounts, fleet: &Fleet, now: Timestamp) -> Self {
        let journals = &accounts.journals;
        let mut lacks = silent(journals, fleet);
        if !fleet.settles_in.is_zero() {
            lacks.push(Lack::Settling);
        }
        let first = journals.iter().map(|journal| journal.since).min();
        lacks.push(first.map_or(Lack::Nothing, |first| Lack::Before { first }));
        lacks.extend(journals.iter().filter_map(Lack::hole));
        lacks.extend(journals.iter().filter_map(|journal| Lack::late(journal, now)));
        let from = lacks.iter().map(|lack| lack.hides_until(now)).max().unwrap_or(now);
        let through = lacks.iter().map(|lack| lack.hides_from(now)).min().unwrap_or(now);
        let open = journals.iter().filter(|journal| !journal.is_closed());
        let reported = open.map(|journal| journal.through).min().map_or(through, |last| last.min(through));
        Self { now, from, through, reported, lacks }
    }

    /// How much of the time from `begin` until now is known, in percent; 100 only if all of it is.
    pub fn percent(&self, begin: Timestamp) -> u8 {
        let begin = begin.min(self.now);
        if self.is_whole(begin) {
            return 100;
        }
        let known = self.through.since(self.from.max(begin)).as_micros();
        let percent = (known * 100).checked_div(self.now.since(begin).as_micros()).unwrap_or(0);
        u8::try_from(percent).unwrap_or(99).min(99)
    }

    /// Whether every call since `begin` is known.
    pub fn is_whole(&self, begin: Timestamp) -> bool {
        self.from <= begin.min(self.now) && self.through >= self.now
    }

    /// From when on every call is known.
    pub const fn from(&self) -> Timestamp {
        self.from
    }

    /// Up to when every journal is reported; seconds ago, if all are reported up to now.
    pub const fn reported_through(&self) -> Timestamp {
        self.reported
    }

    /// Why not all of the time from `begin` until now is known.
    pub fn lacks(&self, begin: Timestamp) -> impl Iterator<Item = &Lack> {
        let begin = begin.min(self.now);
        self.lacks.iter().filter(move |lack| lack.hides_until(self.now) > begin || lack.hides_from(self.now) < self.now)
    }
}

/// Running gateways of which fewer journals are open in the store than processes run.
fn silent(journals: &[JournalAccount], fleet: &Fleet) -> Vec<Lack> {
    let mut open: Vec<&str> =
        journals.iter().filter(|journal| !journal.is_closed()).map(JournalAccount::gateway).collect();
    let mut lacks = Vec::new();
    for member in &fleet.members {
        match open.iter().position(|gateway| *gateway == member.gateway) {
            Some(at) => _ = open.swap_remove(at),
            None => lacks.push(Lack::Silent { gateway: member.gateway.clone() }),
        }
    }
    lacks
}

// === impl Lack ===

impl Lack {
    fn hole(journal: &JournalAccount) -> Option<Self> {
        let end = journal.whole_since;
        (end.as_micros() > 0).then(|| Self::Hole { journal: journal.journal.clone(), end })
    }

    fn late(journal: &JournalAccount, now: Timestamp) -> Option<Self> {
        let through = journal.through;
        let is_late = !journal.is_closed() && through.plus(REPORTED_WITHIN) < now;
        is_late.then(|| Self::Late { journal: journal.journal.clone(), through })
    }

    /// Calls before this time may be unknown.
    fn hides_until(&self, now: Timestamp) -> Timestamp {
        match self {
            Self::Nothing | Self::Settling | Self::Silent { .. } => now,
            Self::Before { first } => *first,
            Self::Hole { end, .. } => *end,
            Self::Late { .. } => Timestamp::from_micros(i64::MIN),
        }
    }

    /// Calls after this time may be unknown.
    const fn hides_from(&self, now: Timestamp) -> Timestamp {
        match self {
            Self::Late { through, .. } => *through,
            Self::Nothing | Self::Settling | Self::Silent { .. } | Self::Before { .. } | Self::Hole { .. } => now,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no gateway has reported its journal yet"),
            Self::Settling => f.write_str(
                "the store started again, was put back or lost changes not long ago, and gateways may be missing",
            ),
            Self::Silent { gateway } => write!(f, "{gateway} runs and has not reported its journal"),
            Self::Before { first } => write!(f, "the first record of all is of {first}"),
            Self::Hole { journal, end } => write!(f, "the journal {journal} lacks calls before {end}"),
            Self::Late { journal, through } => write!(f, "the journal {journal} is reported only up to {through}"),
        }
    }
}

// === impl Verdict ===

impl Verdict {
    /// Judges a key by the time from `since`, or from its making if that was later, until now.
    pub fn on(key: &KeyRecord, uses: &LastUses, coverage: &Coverage, since: Timestamp) -> Self {
        let begin = begin(key, since);
        if last(uses).is_some_and(|call| call.ended_at >= begin) {
            return Self::InUse;
        }
        if coverage.is_whole(begin) {
            return Self::SafeToDelete;
        }
        Self::Unknown { percent: coverage.percent(begin) }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SafeToDelete => "safe to delete",
            Self::InUse => "in use",
            Self::Unknown { .. } => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { percent } => write!(f, "unknown: coverage {percent} %"),
            Self::SafeToDelete | Self::InUse => f.write_str(self.as_str()),
        }
    }
}

/// When the time begins by which a key is judged: before it was made it was not used.
pub fn begin(key: &KeyRecord, since: Timestamp) -> Timestamp {
    since.max(key.created_at)
}

/// The last call of all. One that was allowed may have ended later than any that the account of all calls has from before.
pub fn last(uses: &LastUses) -> Option<&Use> {
    uses.any.iter().chain(&uses.allowed).max_by_key(|call| call.ended_at)
}

#[cfg(test)]
mod tests;
