//! What gateways tell the store of their journals: how far each is reported, and what every key was last used for. Told again,
//! late or out of order it changes nothing: of two things told the greater stays.

use super::StoreError;
use super::codec::corrupt;
use crate::clock::{Timestamp, micros};
use crate::key::KeyId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One report: how far a journal is reported, and the last uses of the keys in what is reported with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub journal: JournalAccount,
    pub uses: BTreeMap<KeyId, LastUses>,
}

/// What one atomic step of an engine writes.
#[derive(Debug)]
pub struct Step<'a> {
    /// At most [`STEP_USES_MAX`].
    pub uses: Vec<(&'a KeyId, &'a LastUses)>,
    /// Only with the last step: a journal is never reported further than its uses are.
    pub journal: Option<&'a JournalAccount>,
}

/// How far a journal is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalAccount {
    /// Its name, `gateway/slot`.
    pub journal: String,
    /// The last record that is reported; 0: none yet.
    pub seq: u64,
    /// The last seal that is reported: who cuts the journal's end off later is found out.
    pub seal: Option<Seal>,
    /// The time of the first record that was ever reported.
    pub since: Timestamp,
    /// The end of the last hole: before this time records are missing, or calls that nobody can be named for. The epoch: it is
    /// whole from its first record on.
    pub whole_since: Timestamp,
    /// Everything that was recorded up to this time, by the gateway's clock, is reported.
    pub through: Timestamp,
    /// The last record of a process that ended in good order; 0: none ever did.
    pub closed_seq: u64,
}

/// A seal of a journal: its number, and the hash over everything before it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seal {
    pub seq: u64,
    /// Hex.
    pub hash: String,
}

/// How far all journals are reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    /// In the order of their names.
    pub journals: Vec<JournalAccount>,
}

/// What a key was last used for, on any gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastUses {
    /// Refused or not: somebody still presents it.
    pub any: Option<Use>,
    pub allowed: Option<Use>,
}

/// One call with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Use {
    /// When the request's head arrived.
    #[serde(with = "micros")]
    pub at: Timestamp,
    /// When the call was over, which for a long stream is much later, or seen to be under way: the last use is the one that ended
    /// last.
    #[serde(with = "micros")]
    pub ended_at: Timestamp,
    pub gateway: String,
    pub journal: String,
    /// Its record's number in that journal; 0 while it is under way.
    pub seq: u64,
    pub client_ip: Option<IpAddr>,
    pub method: String,
    /// The route's pattern, if one was found.
    pub route: Option<String>,
    pub allowed: bool,
    /// As in its record.
    pub reason: Option<String>,
}

/// The most keys whose uses are written in one step: a step holds up the store's other work for about a millisecond.
pub const STEP_USES_MAX: usize = 200;
/// The longest text of a use that is kept, in bytes; those of a journal's records are shorter.
const TEXT_BYTES_MAX: usize = 256;

// === impl Account ===

impl Account {
    pub const fn new(journal: JournalAccount) -> Self {
        Self { journal, uses: BTreeMap::new() }
    }

    /// Adds a call with a key.
    pub fn add(&mut self, key: KeyId, call: &Use) {
        self.uses.entry(key).or_default().add(call);
    }

    /// The report in steps of a bounded size, in the order in which they have to be written.
    pub fn steps(&self) -> Vec<Step<'_>> {
        let uses: Vec<_> = self.uses.iter().collect();
        let mut steps: Vec<_> =
            uses.chunks(STEP_USES_MAX).map(|uses| Step { uses: uses.to_vec(), journal: None }).collect();
        match steps.last_mut() {
            Some(last) => last.journal = Some(&self.journal),
            None => steps.push(Step { uses, journal: Some(&self.journal) }),
        }
        steps
    }
}

// === impl JournalAccount ===

impl JournalAccount {
    /// A journal of which nothing has been reported yet.
    pub const fn new(journal: String, since: Timestamp) -> Self {
        let whole_since = Timestamp::from_micros(0);
        Self { journal, seq: 0, seal: None, since, whole_since, through: whole_since, closed_seq: 0 }
    }

    /// The gateway whose journal it is.
    pub fn gateway(&self) -> &str {
        self.journal.split('/').next().unwrap_or_default()
    }

    /// Its process ended in good order, and all of it is reported: nothing is to be expected of it until a later record opens it
    /// again.
    pub const fn is_closed(&self) -> bool {
        self.closed_seq > 0 && self.closed_seq == self.seq
    }

    /// Takes over what `other` knows more of the same journal.
    pub fn merge(&mut self, other: &Self) {
        self.seq = self.seq.max(other.seq);
        self.seal = self.seal.take().max(other.seal.clone());
        self.since = self.since.min(other.since);
        self.whole_since = self.whole_since.max(other.whole_since);
        self.through = self.through.max(other.through);
        self.closed_seq = self.closed_seq.max(other.closed_seq);
    }
}

// === impl LastUses ===

impl LastUses {
    /// Adds a call, if it is later than what is known.
    pub fn add(&mut self, call: &Use) {
        take_later(&mut self.any, call);
        if call.allowed {
            take_later(&mut self.allowed, call);
        }
    }

    /// Takes over what `other` knows of later calls.
    pub fn merge(&mut self, other: &Self) {
        other.any.iter().for_each(|call| take_later(&mut self.any, call));
        other.allowed.iter().for_each(|call| take_later(&mut self.allowed, call));
    }
}

fn take_later(known: &mut Option<Use>, call: &Use) {
    if known.as_ref().is_none_or(|known| call.rank() > known.rank()) {
        *known = Some(call.clone());
    }
}

// === impl Use ===

impl Use {
    /// What makes one use the later one: no two records are equal in it.
    fn rank(&self) -> (Timestamp, u64, &str) {
        (self.ended_at, self.seq, &self.journal)
    }

    /// The same with no text longer than what is kept.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let texts = [&mut self.gateway, &mut self.journal, &mut self.method];
        texts.into_iter().chain(&mut self.route).chain(&mut self.reason).for_each(shorten);
        self
    }

    /// The use as JSON text, in the form in which it is stored.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], if it cannot be written as JSON.
    pub fn to_text(&self) -> Result<String, StoreError> {
        serde_json::to_string(self).map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Reads a use. Members that a newer version may have added are passed over: none of them makes a use less of one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] that says what is wrong: a use that cannot be read is never taken for none.
    pub fn from_text(text: &str) -> Result<Self, StoreError> {
        serde_json::from_str(text).map_err(|error| corrupt(&format!("the last use of a key: {error}")))
    }
}

fn shorten(text: &mut String) {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ulid::Ulid;

    fn call(ended_at: i64) -> Use {
        Use {
            at: Timestamp::from_micros(1),
            ended_at: Timestamp::from_micros(ended_at),
            gateway: "edge-1".into(),
            journal: "edge-1/0".into(),
            seq: 1,
            client_ip: Some("2001:db8::1".parse().unwrap()),
            method: "GET".into(),
            route: None,
            allowed: true,
            reason: None,
        }
    }

    #[test]
    fn a_large_report_is_many_small_steps_and_the_journal_comes_last() {
        let mut account = Account::new(JournalAccount::new("edge-1/0".into(), Timestamp::from_micros(0)));
        assert_eq!(account.steps().iter().map(|step| step.journal.is_some()).collect::<Vec<_>>(), [true]);
        (0..=2 * STEP_USES_MAX as u128).for_each(|number| account.add(KeyId::new(Ulid::from_bits(number)), &call(1)));
        let steps = account.steps();
        let sizes: Vec<_> = steps.iter().map(|step| (step.uses.len(), step.journal.is_some())).collect();
        assert_eq!(sizes, [(STEP_USES_MAX, false), (STEP_USES_MAX, false), (1, true)]);
    }

    #[test]
    fn a_use_is_read_back_from_its_text_also_when_a_newer_version_has_added_to_it() {
        let text = call(7).to_text().unwrap();
        assert_eq!(Use::from_text(&text).unwrap(), call(7));
        let newer = format!("{{\"continent\":\"EU\",{}", &text[1..]);
        assert_eq!(Use::from_text(&newer).unwrap(), call(7));
        assert!(Use::from_text("{}").is_err());
    }

    #[test]
    fn a_long_text_is_cut_between_its_characters() {
        let long = Use { route: Some("é".repeat(1000)), ..call(1) }.bounded();
        assert_eq!(long.route.unwrap(), "é".repeat(TEXT_BYTES_MAX / 2));
    }
}
