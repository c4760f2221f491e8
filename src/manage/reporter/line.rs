//! What a line of a journal tells of keys, and of what is not known.

use crate::audit::fields::{Fields, Text};
use crate::audit::hash::Seeded;
use crate::audit::recent::{Call, Group};
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

/// A record, read. Texts are as JSON has them between their quotes.
pub struct Told<'a> {
    pub journal: Cow<'a, str>,
    seq: u64,
    at: Timestamp,
    /// When what it tells of was over.
    pub ended_at: Timestamp,
    /// Of a request with a key.
    key: Option<KeyId>,
    client_ip: Option<IpAddr>,
    method: &'a str,
    route: Option<&'a str>,
    reason: Option<&'a str>,
    is_allowed: bool,
    /// Calls may have been made before it of which no record names the key.
    is_hole: bool,
    /// A sink's word for what the journal lacks.
    is_sinks: bool,
    /// Of a seal.
    hash: Option<Cow<'a, str>>,
}

/// The latest calls with each key.
#[derive(Debug, Default)]
pub struct Latest {
    texts: Texts,
    /// By key, of all calls and of those that were allowed.
    calls: HashMap<(KeyId, bool), Kept, Seeded>,
}

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
            seq: fields.seq?,
            at,
            ended_at: ended_at(at, fields.duration_us),
            key: fields.key_id.filter(|_| fields.is_request()).and_then(|id| KeyId::parse(id.raw())),
            client_ip: fields.client_ip.and_then(|ip| ip.raw().parse().ok()),
            method: fields.method.map_or("", Text::raw),
            route: fields.route.map(Text::raw),
            reason: fields.reason.map(Text::raw),
            is_allowed: !is_denied(&fields),
            is_hole: is_hole(&fields, text),
            is_sinks: is("gap") && fields.reason.is_some_and(is_sinks_gap),
            hash: fields.hash.filter(|_| is("seal")).map(Text::decoded),
        })
    }

    /// A call of a group.
    pub fn of(group: &'a Group, seq: u64, call: &Call) -> Self {
        let text = |number| group.text(number);
        let reason = call.reason.and_then(text);
        Self {
            journal: Cow::Borrowed(&group.journal),
            seq,
            at: call.at,
            ended_at: ended_at(call.at, call.duration_us),
            key: call.key,
            client_ip: call.client_ip,
            method: call.method.and_then(text).unwrap_or_default(),
            route: call.route.and_then(text),
            reason,
            is_allowed: call.allowed,
            is_hole: call.key.is_none() && !call.allowed && reason.is_some_and(names_nobody),
            is_sinks: false,
            hash: None,
        }
    }

    /// Adds what it tells of its journal.
    pub fn add_to(&self, journal: &mut JournalAccount) {
        if self.is_sinks {
            return;
        }
        let ended_at = self.ended_at;
        let is_new = self.seq > journal.seq;
        let is_another = !is_new && ended_at > journal.through.max(journal.whole_since).plus(REPEATED_WITHIN);
        let is_missing = is_new && self.seq != journal.seq + 1;
        if is_missing || is_another || self.is_hole {
            journal.whole_since = journal.whole_since.max(ended_at);
        }
        journal.since = journal.since.min(ended_at);
        journal.seq = journal.seq.max(self.seq);
        if let Some(hash) = &self.hash {
            let seal = Seal { seq: self.seq, hash: hash.to_string() };
            journal.seal = journal.seal.take().max(Some(seal));
        }
    }

    /// The call with a key that it tells of.
    pub fn call(&self) -> Option<(KeyId, Use)> {
        let mut latest = Latest::default();
        latest.add(self);
        latest.take().next().map(|(key, call)| (key, call))
    }
}

fn ended_at(at: Timestamp, duration_us: Option<u64>) -> Timestamp {
    at.plus(Duration::from_micros(duration_us.unwrap_or(0)))
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
    /// Adds a call. Of two that ended at the same moment the one that was recorded later counts.
    pub fn add(&mut self, told: &Told<'_>) {
        let Some(key) = told.key else { return };
        let texts = &mut self.texts;
        let mut kept = || Kept {
            at: told.at,
            ended_at: told.ended_at,
            seq: told.seq,
            client_ip: told.client_ip,
            method: texts.number(told.method),
            route: told.route.map(|route| texts.number(route)),
            reason: told.reason.map(|reason| texts.number(reason)),
            journal: texts.number(&told.journal),
        };
        match self.calls.entry((key, told.is_allowed)) {
            Entry::Vacant(place) => _ = place.insert(kept()),
            Entry::Occupied(mut place) if told.ended_at >= place.get().ended_at => _ = place.insert(kept()),
            Entry::Occupied(_) => {}
        }
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
