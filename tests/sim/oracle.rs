//! What may be answered: judged on true time, by the history that the server has written.

use super::time::{MILLIS, SECONDS, True};
use keygate::clock::Timestamp;
use keygate::key::{Digest, EntityId, KeyRecord};
use keygate::store::{Change, Record};
use std::collections::{HashMap, HashSet};

/// L of the protocols.
const LEASE: True = 2 * SECONDS;
/// How far the manager's and a gateway's clock may turn `until` into different true times.
const CONVERSION: True = 20 * MILLIS;

/// d of the protocols, for what was measured over `length`.
const fn slack(length: True) -> True {
    250 * MILLIS + length / 1000
}

/// Which process answers: machine, and the how-many-eth there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    pub machine: usize,
    pub number: u64,
}

/// Who answers, and in which state.
#[derive(Clone, Copy, Debug)]
pub struct Witness {
    pub process: Process,
    pub max_stale: True,
    pub wall: Timestamp,
    /// Its own opinion.
    pub is_fresh: bool,
    pub is_stale: bool,
    /// There is or was another machine with its disk: no row speaks for it.
    pub is_cloned: bool,
}

/// An answer to a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// By a record of this version.
    Accepted(u64),
    Revoked,
    Expired,
    Unknown,
    Unavailable,
}

#[derive(Default)]
pub struct Oracle {
    written: Vec<(True, Change)>,
    /// By key, the numbers of its changes.
    keys: HashMap<Digest, Vec<u64>>,
    digests: Vec<Digest>,
    deletions: HashMap<EntityId, u64>,
    /// From when on what was before a change is honoured by nobody, as somebody was told.
    barred: HashMap<u64, (True, String)>,
    /// The changes that all gateways have, as somebody was told: from when on.
    complete: HashMap<u64, True>,
    confirmed: HashMap<usize, u64>,
    /// By machine, when the last poll was sent that was answered.
    contacts: HashMap<usize, True>,
    heard: HashMap<Process, u64>,
    refused: HashSet<(Process, Digest)>,
    known: HashSet<(Process, Digest)>,
    pub accepted: u64,
    pub asked: u64,
}

// === impl Oracle ===

impl Oracle {
    // === What happens ===

    /// The server has written `change`.
    pub fn write(&mut self, now: True, change: Change) {
        match &change.after {
            Record::Key(key) => {
                let changes = self.keys.entry(key.digest).or_default();
                if changes.is_empty() {
                    self.digests.push(key.digest);
                }
                changes.push(change.seq);
            }
            Record::Entity(entity) if entity.deleted_at.is_some() => _ = self.deletions.insert(entity.id, change.seq),
            Record::Entity(_) => {}
        }
        self.written.push((now, change));
    }

    /// A machine's row has told `pos`.
    pub fn confirm(&mut self, machine: usize, pos: u64) {
        let confirmed = self.confirmed.entry(machine).or_default();
        *confirmed = pos.max(*confirmed);
    }

    /// A poll that a machine sent at `sent` was answered.
    pub fn reach(&mut self, machine: usize, sent: True) {
        let contact = self.contacts.entry(machine).or_default();
        *contact = sent.max(*contact);
    }

    /// A machine gets what another's disk says.
    pub fn copy(&mut self, from: usize, to: usize) {
        if let Some(contact) = self.contacts.get(&from) {
            self.contacts.insert(to, *contact);
        }
    }

    /// A process has applied the change `seq`.
    pub fn hear(&mut self, process: Process, seq: u64) {
        self.heard.insert(process, seq);
    }

    /// Somebody was told that nobody honours what was before `seq` from `from` on; with every gateway's word if `complete`.
    pub fn claim(&mut self, seq: u64, from: True, complete: bool, words: String) {
        if complete {
            self.complete.entry(seq).or_insert(from);
        }
        let barred = self.barred.entry(seq).or_insert((from, words.clone()));
        if from < barred.0 {
            *barred = (from, words);
        }
    }

    // === What is asked ===

    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// The key that was changed last.
    pub fn latest(&self) -> Option<Digest> {
        self.written.iter().rev().take(2).find_map(|(_, change)| match &change.after {
            Record::Key(key) => Some(key.digest),
            Record::Entity(_) => None,
        })
    }

    /// The numbers of the changes that ended what version `version` of a key says.
    pub fn superseding(&self, digest: &Digest, version: u64) -> Vec<u64> {
        let Some(changes) = self.keys.get(digest) else { return Vec::new() };
        let deletion = changes.first().and_then(|made| self.deletions.get(&self.key(*made).entity_id));
        changes.iter().filter(|seq| **seq > version).chain(deletion).copied().collect()
    }

    /// Whether the key works now, as far as the store is concerned, on a machine with this wall clock.
    pub fn is_good(&self, digest: &Digest, wall: Timestamp) -> bool {
        let Some(last) = self.keys.get(digest).and_then(|changes| changes.last()) else { return false };
        let key = self.key(*last);
        let deleted = self.deletions.contains_key(&key.entity_id);
        !deleted && key.revoked_at.is_none() && key.expires_at.is_none_or(|end| end > wall)
    }

    fn key(&self, seq: u64) -> &KeyRecord {
        match &self.written[seq as usize - 1].1.after {
            Record::Key(key) => key,
            Record::Entity(entity) => panic!("{} is an entity", entity.id),
        }
    }

    fn written_at(&self, seq: u64) -> True {
        self.written[seq as usize - 1].0
    }

    /// Judges an answer.
    ///
    /// # Errors
    /// The invariant that it breaks.
    pub fn judge(&mut self, now: True, witness: &Witness, digest: &Digest, answer: Answer) -> Result<(), String> {
        self.asked += 1;
        match answer {
            Answer::Accepted(version) => {
                self.accepted += 1;
                self.judge_accepted(now, witness, digest, version)
            }
            Answer::Revoked => self.judge_revoked(witness, digest),
            Answer::Expired => self.judge_expired(witness, digest),
            Answer::Unknown => self.judge_unknown(now, digest),
            Answer::Unavailable if !witness.is_stale && self.known.contains(&(witness.process, *digest)) => {
                Err("I7: a known key is not judged although there is a right to serve".to_owned())
            }
            Answer::Unavailable => Ok(()),
        }
    }

    fn judge_accepted(&mut self, now: True, witness: &Witness, digest: &Digest, version: u64) -> Result<(), String> {
        if !self.keys.get(digest).is_some_and(|changes| changes.contains(&version)) {
            return Err(format!("I7: a key that was never made is accepted as version {version}"));
        }
        if self.refused.contains(&(witness.process, *digest)) {
            return Err("I5: a key that this process told to be revoked is accepted again".to_owned());
        }
        if self.key(version).expires_at.is_some_and(|end| end <= witness.wall) {
            return Err("a key that has expired is accepted".to_owned());
        }
        self.judge_right(now, witness)?;
        self.known.insert((witness.process, *digest));
        self.superseding(digest, version).into_iter().try_for_each(|seq| self.judge_outdated(now, witness, seq))
    }

    /// Judges that somebody serves at all: no machine's clock is off by more than one part in a thousand.
    fn judge_right(&self, now: True, witness: &Witness) -> Result<(), String> {
        let Some(contact) = self.contacts.get(&witness.process.machine) else {
            return Err("I2: served by a machine that never had an answer".to_owned());
        };
        let since = now - contact;
        let within = |length: True| since <= length + length / 500 + MILLIS;
        if !within(witness.max_stale) || witness.is_fresh && !within(LEASE) {
            return Err(format!("I1: the last poll that was answered was sent {since} us ago"));
        }
        Ok(())
    }

    /// Judges that somebody acts without the change `seq`.
    pub fn judge_outdated(&self, now: True, witness: &Witness, seq: u64) -> Result<(), String> {
        let since = self.written_at(seq);
        let late = |what: &str| Err(format!("{what}: change {seq}, written at {since}, is not acted upon"));
        if now > since + witness.max_stale + slack(witness.max_stale) {
            return late("I1");
        }
        if witness.is_fresh && now > since + LEASE + slack(LEASE) {
            return late("I1 strict");
        }
        if self.heard.get(&witness.process).is_some_and(|heard| *heard >= seq) {
            return late("I9: applied by this very process");
        }
        if witness.is_cloned {
            return Ok(());
        }
        if self.confirmed.get(&witness.process.machine).is_some_and(|confirmed| *confirmed >= seq) {
            return late("I3: confirmed by this very machine");
        }
        match self.barred.get(&seq) {
            Some((from, words)) if now > from + CONVERSION => late(&format!("I12: `{words}`")),
            Some(_) | None => Ok(()),
        }
    }

    fn judge_revoked(&mut self, witness: &Witness, digest: &Digest) -> Result<(), String> {
        let last = self.keys.get(digest).and_then(|changes| changes.last()).map(|seq| self.key(*seq));
        let Some(key) = last else { return Err("I7: a key that was never made is called revoked".to_owned()) };
        if key.revoked_at.is_none() && !self.deletions.contains_key(&key.entity_id) {
            return Err("I7: a good key is called revoked".to_owned());
        }
        self.refused.insert((witness.process, *digest));
        Ok(())
    }

    fn judge_expired(&self, witness: &Witness, digest: &Digest) -> Result<(), String> {
        let mut versions = self.keys.get(digest).into_iter().flatten().map(|seq| self.key(*seq));
        let expired = versions.any(|key| key.expires_at.is_some_and(|end| end <= witness.wall));
        if expired { Ok(()) } else { Err("I7: a key that did not expire is called expired".to_owned()) }
    }

    fn judge_unknown(&self, now: True, digest: &Digest) -> Result<(), String> {
        let Some(made) = self.keys.get(digest).and_then(|changes| changes.first()) else { return Ok(()) };
        if now > self.written_at(*made) + LEASE + slack(LEASE) {
            return Err(format!("I7, I11: the key of change {made} is called unknown, L + d after it was made"));
        }
        match self.complete.get(made) {
            Some(from) if now > *from => {
                Err(format!("I11: the key of change {made}, confirmed by all, is called unknown"))
            }
            Some(_) | None => Ok(()),
        }
    }
}
