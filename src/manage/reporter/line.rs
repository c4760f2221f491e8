//! What a line of a journal tells of keys, and of what is not known.

use crate::audit::fields::{Fields, Text};
use crate::clock::Timestamp;
use crate::key::KeyId;
use crate::reason::Reason;
use crate::store::{JournalAccount, Seal, Use};
use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

/// A line, read.
pub struct Told<'a> {
    text: &'a str,
    fields: Fields<'a>,
    pub journal: Cow<'a, str>,
    seq: u64,
    at: Timestamp,
    /// When what it tells of was over.
    pub ended_at: Timestamp,
}

/// The lines of the latest calls with each key: none of the others need be looked at more closely, or kept.
#[derive(Debug, Default)]
pub struct Latest {
    /// By key, of all calls and of those that were allowed.
    calls: HashMap<(KeyId, bool), Kept>,
}

#[derive(Debug)]
struct Kept {
    ended_at: Timestamp,
    text: String,
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
        let duration = Duration::from_micros(fields.duration_us.unwrap_or(0));
        let journal = fields.journal?.decoded();
        Some(Self { text, fields, journal, seq: fields.seq?, at, ended_at: at.plus(duration) })
    }

    /// Adds what it tells of its journal.
    pub fn add_to(&self, journal: &mut JournalAccount) {
        if self.is_sinks() {
            return;
        }
        let ended_at = self.ended_at;
        let is_new = self.seq > journal.seq;
        let is_another = !is_new && ended_at > journal.through.max(journal.whole_since).plus(REPEATED_WITHIN);
        let is_missing = is_new && self.seq != journal.seq + 1;
        if is_missing || is_another || self.is_hole() {
            journal.whole_since = journal.whole_since.max(ended_at);
        }
        journal.since = journal.since.min(ended_at);
        journal.seq = journal.seq.max(self.seq);
        if let Some(hash) = self.fields.hash.filter(|_| self.is("seal")) {
            let seal = Seal { seq: self.seq, hash: hash.decoded().into_owned() };
            journal.seal = journal.seal.take().max(Some(seal));
        }
    }

    /// The call with a key that it tells of.
    pub fn call(&self) -> Option<(KeyId, Use)> {
        let (key, fields) = (self.key()?, &self.fields);
        let call = Use {
            at: self.at,
            ended_at: self.ended_at,
            gateway: self.journal.split('/').next().unwrap_or_default().to_owned(),
            journal: self.journal.clone().into_owned(),
            seq: self.seq,
            client_ip: fields.client_ip.and_then(|ip| ip.raw().parse().ok()),
            method: fields.method.map(owned).unwrap_or_default(),
            route: fields.route.map(owned),
            allowed: !self.is_denied(),
            reason: fields.reason.map(owned),
        };
        Some((key, call.bounded()))
    }

    /// The key of the call that it tells of.
    fn key(&self) -> Option<KeyId> {
        self.fields.key_id.filter(|_| self.fields.is_request()).and_then(|id| KeyId::parse(id.raw()))
    }

    fn is(&self, kind: &str) -> bool {
        self.fields.kind.is_some_and(|own| own.is(kind))
    }

    fn is_denied(&self) -> bool {
        self.fields.decision.is_some_and(|decision| decision.is("deny"))
    }

    /// Whether calls may have been made before it of which no record names the key.
    fn is_hole(&self) -> bool {
        let kind = self.fields.kind.map(Text::decoded).unwrap_or_default();
        match &*kind {
            "request" => self.fields.key_id.is_none() && self.is_denied() && UNNAMED.iter().any(|why| self.is_by(*why)),
            "summary" => UNNAMED.iter().any(|why| self.text.contains(&format!("\"{}\":", why.as_str()))),
            "start" => self.text.contains(POWER_LOSS),
            "change" | "connection" | "seal" => false,
            // A gap, or what only a newer version can read.
            _ => true,
        }
    }

    fn is_by(&self, reason: Reason) -> bool {
        self.fields.reason.is_some_and(|own| own.is(reason.as_str()))
    }

    fn is_sinks(&self) -> bool {
        let is_one = |reason: Text<'_>| SINK_GAPS.iter().any(|gap| reason.is(gap));
        self.is("gap") && self.fields.reason.is_some_and(is_one)
    }
}

// === impl Latest ===

impl Latest {
    /// Adds a line. Of two calls that ended at the same moment the one that was recorded later counts.
    pub fn add(&mut self, told: &Told<'_>) {
        let Some(key) = told.key() else { return };
        let latest = self.calls.entry((key, !told.is_denied()));
        let kept = latest.or_insert_with(|| Kept { ended_at: told.ended_at, text: String::new() });
        if told.ended_at >= kept.ended_at {
            kept.ended_at = told.ended_at;
            // The room of the line before it is used again.
            kept.text.clear();
            kept.text.push_str(told.text);
        }
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Gives the lines, and forgets them.
    pub fn take(&mut self) -> impl Iterator<Item = String> + use<> {
        std::mem::take(&mut self.calls).into_values().map(|kept| kept.text)
    }
}

fn owned(text: Text<'_>) -> String {
    text.decoded().into_owned()
}
