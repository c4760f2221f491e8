//! What a line of a journal tells of keys, and of what is not known.

use crate::audit::fields::{Fields, Text};
use crate::audit::hash::Seeded;
use crate::audit::recent::{Call, Group, TextNumber};
use crate::audit::texts::{TextId, Texts};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::reason::Reason;
use crate::store::{JournalAccount, Seal, Use};
use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::time::Duration;

/// A line, read. Texts are as JSON has them between their quotes.
pub struct Told<'a> {
    pub journal: Cow<'a, str>,
    at: Timestamp,
    pub place: Place,
    /// Of a request with a key.
    key: Option<KeyId>,
    client_ip: Option<IpAddr>,
    method: &'a str,
    route: Option<&'a str>,
    reason: Option<&'a str>,
    is_allowed: bool,
    /// A sink's word for what the journal lacks.
    is_sinks: bool,
    /// Of a seal.
    hash: Option<Cow<'a, str>>,
}

/// Where a record stands in what is known of its journal.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub seq: u64,
    /// When what it tells of was over.
    pub ended_at: Timestamp,
    /// Calls may have been made before it of which no record names the key.
    pub is_hole: bool,
}

/// The numbers that a group's texts have among those of the [`Latest`].
pub struct Numbers {
    journal: TextId,
    texts: Vec<TextId>,
    /// By the same places: the reasons for which nobody is named.
    names_nobody: Vec<bool>,
}

/// The latest calls with each key.
#[derive(Debug, Default)]
pub struct Latest {
    texts: Texts,
    calls: Calls,
}

/// By key, of calls that were refused and of those that were allowed.
type Calls = HashMap<(KeyId, bool), Kept, Seeded>;

/// A call, its texts by number.
#[derive(Debug)]
struct Kept {
    at: Timestamp,
    ended_at: Timestamp,
    seq: u64,
    client_ip: Option<IpAddr>,
    journal: TextId,
    method: TextId,
    route: Option<TextId>,
    reason: Option<TextId>,
}

/// A record that is so much younger than all that was reported, and has a number that was reported, is another journal's.
const REPEATED_WITHIN: Duration = Duration::from_secs(60);
/// Why nobody is named in the record of a refused call that may have presented a good key: nobody could tell.
const UNNAMED: [Reason; 3] = [Reason::StoreUnavailable, Reason::Overloaded, Reason::Internal];
/// What stands in a sink's line for records that the journal lacks; the next record's number shows that too.
const SINK_GAPS: [&str; 2] = ["not_in_journal", "too_large"];
/// In a `start`: what was not synced when the power went is lost, and nobody knows what it was.
const POWER_LOSS: &str = r#""after":"power_loss""#;

// === impl Told ===

impl<'a> Told<'a> {
    /// Reads a line; `None` for what is none of a version that we know.
    pub fn read(text: &'a str) -> Option<Self> {
        let fields = Fields::read(text)?;
        let at = fields.at()?;
        let is = |kind: &str| fields.kind.is_some_and(|own| own.is(kind));
        let is_sinks_gap = |reason: Text<'_>| SINK_GAPS.iter().any(|gap| reason.is(gap));
        Some(Self {
            journal: fields.journal?.decoded(),
            at,
            place: Place {
                seq: fields.seq?,
                ended_at: at.plus(Duration::from_micros(fields.duration_us.unwrap_or(0))),
                is_hole: is_hole(&fields, text),
            },
            key: fields.key_id.filter(|_| fields.is_request()).and_then(|id| KeyId::parse(id.raw())),
            client_ip: fields.client_ip.and_then(|ip| ip.raw().parse().ok()),
            method: fields.method.map_or("", Text::raw),
            route: fields.route.map(Text::raw),
            reason: fields.reason.map(Text::raw),
            is_allowed: !is_denied(&fields),
            is_sinks: is("gap") && fields.reason.is_some_and(is_sinks_gap),
            hash: fields.hash.filter(|_| is("seal")).map(Text::decoded),
        })
    }

    /// Adds what it tells of its journal.
    pub fn add_to(&self, journal: &mut JournalAccount) {
        if self.is_sinks {
            return;
        }
        self.place.add_to(journal);
        if let Some(hash) = &self.hash {
            let seal = Seal { seq: self.place.seq, hash: hash.to_string() };
            journal.seal = journal.seal.take().max(Some(seal));
        }
    }

    /// The call with a key that it tells of.
    pub fn call(&self) -> Option<(KeyId, Use)> {
        let mut latest = Latest::default();
        latest.add(self);
        latest.take().next()
    }
}

// === impl Place ===

impl Place {
    pub fn add_to(self, journal: &mut JournalAccount) {
        let Self { seq, ended_at, is_hole } = self;
        let is_new = seq > journal.seq;
        let is_another = !is_new && ended_at > journal.through.max(journal.whole_since).plus(REPEATED_WITHIN);
        let is_missing = is_new && seq != journal.seq + 1;
        if is_missing || is_another || is_hole {
            journal.whole_since = journal.whole_since.max(ended_at);
        }
        journal.since = journal.since.min(ended_at);
        journal.seq = journal.seq.max(seq);
    }
}

// === impl Numbers ===

impl Numbers {
    /// Where a call stands.
    pub fn place(&self, seq: u64, call: &Call) -> Place {
        let names_nobody = |reason: TextNumber| self.names_nobody.get(reason.place()) == Some(&true);
        let is_hole = call.key.is_none() && !call.allowed && call.reason.is_some_and(names_nobody);
        Place { seq, ended_at: call.ended_at, is_hole }
    }

    fn of(&self, text: Option<TextNumber>) -> Option<TextId> {
        self.texts.get(text?.place()).copied()
    }
}

fn is_denied(fields: &Fields<'_>) -> bool {
    fields.decision.is_some_and(|decision| decision.is("deny"))
}

fn is_hole(fields: &Fields<'_>, line: &str) -> bool {
    let kind = fields.kind.map(Text::decoded).unwrap_or_default();
    match &*kind {
        "request" => {
            fields.key_id.is_none() && is_denied(fields) && fields.reason.is_some_and(|own| names_nobody(own.raw()))
        }
        "summary" => UNNAMED.iter().any(|why| line.contains(&format!("\"{}\":", why.as_str()))),
        "start" => line.contains(POWER_LOSS),
        "change" | "connection" | "seal" => false,
        // A gap, or what only a newer version can read.
        _ => true,
    }
}

fn names_nobody(reason: &str) -> bool {
    UNNAMED.iter().any(|why| why.as_str() == reason)
}

// === impl Latest ===

impl Latest {
    /// Adds a line's call. Of two that ended at the same moment the one that was recorded later counts.
    pub fn add(&mut self, told: &Told<'_>) {
        let Some(key) = told.key else { return };
        let Self { texts, calls } = self;
        keep(calls, (key, told.is_allowed), told.place.ended_at, || Kept {
            at: told.at,
            ended_at: told.place.ended_at,
            seq: told.place.seq,
            client_ip: told.client_ip,
            journal: texts.number(&told.journal),
            method: texts.number(told.method),
            route: told.route.map(|route| texts.number(route)),
            reason: told.reason.map(|reason| texts.number(reason)),
        });
    }

    /// The numbers of a group's texts, which stay until the calls are taken.
    pub fn numbers(&mut self, group: &Group) -> Numbers {
        Numbers {
            journal: self.texts.number(&group.journal),
            texts: group.texts().map(|text| self.texts.number(text)).collect(),
            names_nobody: group.texts().map(names_nobody).collect(),
        }
    }

    /// Adds a call of that group.
    pub fn add_call(&mut self, seq: u64, call: &Call, numbers: &Numbers) {
        let Some(key) = call.key else { return };
        let Self { texts, calls } = self;
        keep(calls, (key, call.allowed), call.ended_at, || Kept {
            at: call.at,
            ended_at: call.ended_at,
            seq,
            client_ip: call.client_ip,
            journal: numbers.journal,
            method: numbers.of(call.method).unwrap_or_else(|| texts.number("")),
            route: numbers.of(call.route),
            reason: numbers.of(call.reason),
        });
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Gives the calls, and forgets them.
    pub fn take(&mut self) -> impl Iterator<Item = (KeyId, Use)> + use<> {
        let Self { texts, calls } = std::mem::take(self);
        calls.into_iter().map(move |((key, allowed), kept)| {
            let journal = texts.text(kept.journal);
            let call = Use {
                at: kept.at,
                ended_at: kept.ended_at,
                gateway: journal.split('/').next().unwrap_or_default().to_owned(),
                journal,
                seq: kept.seq,
                client_ip: kept.client_ip,
                method: texts.text(kept.method),
                route: kept.route.map(|route| texts.text(route)),
                allowed,
                reason: kept.reason.map(|reason| texts.text(reason)),
            };
            (key, call.bounded())
        })
    }
}

/// Keeps a call if no later one is known.
fn keep(calls: &mut Calls, which: (KeyId, bool), ended_at: Timestamp, call: impl FnOnce() -> Kept) {
    match calls.entry(which) {
        Entry::Vacant(place) => _ = place.insert(call()),
        Entry::Occupied(mut place) if ended_at >= place.get().ended_at => _ = place.insert(call()),
        Entry::Occupied(_) => {}
    }
}
