//! What may be answered: judged on true time, by the histories that the servers have written, and by what was promised whatever
//! a server forgets.

use super::log::{Log, Saying, Standing, Successor};
use super::time::{MILLIS, SECONDS, True};
use keygate::clock::Timestamp;
use keygate::key::{Digest, EntityId, KeyRecord};
use keygate::store::{Change, FleetId, Position, Record};
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
    /// Which server it is led to.
    pub site: usize,
    pub max_stale: True,
    pub wall: Timestamp,
    /// Its own opinion.
    pub is_fresh: bool,
    pub is_stale: bool,
    /// There is or was another machine with its disk: no row speaks for it.
    pub is_cloned: bool,
    /// There is a snapshot from which it can give back what its store loses.
    pub keeps: bool,
}

/// An answer to a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// By a record that says this.
    Accepted(Saying),
    Revoked,
    Expired,
    Unknown,
    Unavailable,
}

/// What somebody was told: from when on it holds, of which fleet's gateways, in which words.
#[derive(Clone, Debug)]
pub struct Claim {
    pub from: True,
    pub fleet: FleetId,
    pub words: String,
}

#[derive(Default)]
pub struct Oracle {
    pub logs: [Log; 2],
    /// Everything that was ever written anywhere, by key.
    ever: HashMap<Digest, Vec<KeyRecord>>,
    digests: Vec<Digest>,
    ever_deleted: HashSet<EntityId>,
    /// The tokens of the changes that ended a key, or deleted an entity.
    ends: HashMap<Digest, HashSet<u64>>,
    deletions: HashMap<EntityId, HashSet<u64>>,
    /// By token: from when on what was before that change is honoured by nobody.
    barred: HashMap<u64, Claim>,
    /// What every gateway had, as somebody was told: keys that were there, and keys and entities that had ended.
    made: HashMap<Digest, Claim>,
    ended: HashMap<Digest, Claim>,
    deleted: HashMap<EntityId, Claim>,
    /// Deleted in what a person has let go: a store that never had one need not say so.
    let_go: HashSet<EntityId>,
    /// The tokens of changes that all gateways had.
    complete: HashMap<u64, FleetId>,
    /// By machine, when it confirmed what, by token; and the position that did so last.
    confirmed: HashMap<usize, (Position, HashMap<u64, True>)>,
    /// What a process has confirmed since it took a store for its own.
    own: HashMap<Process, HashSet<u64>>,
    /// By machine, when the last poll was sent that was answered.
    contacts: HashMap<usize, True>,
    heard: HashMap<Process, HashMap<u64, True>>,
    refused: HashSet<(Process, Digest)>,
    known: HashMap<Process, HashSet<Digest>>,
    /// Who loads another store than the one that it knew: what only that one had goes, at a time of its own.
    renewing: HashSet<Process>,
    /// Whose keys each process knows, and knew before.
    fleets: HashMap<Process, Vec<FleetId>>,
    pub accepted: u64,
    pub asked: u64,
}

// === impl Oracle ===

impl Oracle {
    // === What happens ===

    /// A server has written `change`.
    pub fn write(&mut self, now: True, site: usize, change: Change) {
        self.note(&change);
        self.logs[site].write(now, change);
    }

    fn note(&mut self, change: &Change) {
        match &change.after {
            Record::Key(key) => {
                if key.revoked_at.is_some() {
                    self.ends.entry(key.digest).or_default().insert(change.token);
                }
                let known = self.ever.entry(key.digest).or_default();
                if known.is_empty() {
                    self.digests.push(key.digest);
                }
                known.push(key.clone());
            }
            Record::Entity(entity) if entity.deleted_at.is_some() => {
                self.ever_deleted.insert(entity.id);
                self.deletions.entry(entity.id).or_default().insert(change.token);
            }
            Record::Entity(_) => {}
        }
    }

    /// A server's history is another one from now on. The tokens of what it has lost.
    pub fn replace(&mut self, now: True, site: usize, changes: Vec<Change>) -> Vec<u64> {
        changes.iter().for_each(|change| self.note(change));
        self.confirmed.values_mut().for_each(|(last, _)| *last = Position::default());
        let lost = self.logs[site].replace(now, changes);
        self.lose(now, site);
        lost
    }

    /// A server's history takes the place of the other's, who is discarded. The tokens of what is lost with that one.
    pub fn take_over(&mut self, now: True, site: usize) -> Vec<u64> {
        let old = self.logs[1 - site].clone();
        let lost = self.logs[site].take_over(now, &old);
        self.lose(now, site);
        lost
    }

    /// What a server has lost just now a gateway that keeps nothing loads again.
    fn lose(&mut self, now: True, site: usize) {
        for known in self.known.values_mut() {
            known.retain(|digest| !self.logs[site].has_lost(digest, now));
        }
    }

    /// A machine's row has told `position`, which its server holds.
    pub fn confirm(&mut self, now: True, process: Process, site: usize, position: Position) {
        if self.renewing.remove(&process)
            && let Some(known) = self.known.get_mut(&process)
        {
            known.retain(|digest| self.logs[site].made(digest).is_some());
        }
        let (last, confirmed) = self.confirmed.entry(process.machine).or_default();
        if *last != position {
            *last = position;
            let entries = self.logs[site].entries().take_while(|change| change.seq <= position.seq);
            confirmed.extend(entries.clone().map(|change| (change.token, now)));
            self.own.entry(process).or_default().extend(entries.map(|change| change.token));
        }
    }

    /// Whether a machine has confirmed one of these.
    pub fn has_one(&self, machine: usize, tokens: &[u64]) -> bool {
        self.confirmed.get(&machine).is_some_and(|(_, has)| tokens.iter().any(|token| has.contains_key(token)))
    }

    /// Whether a machine has confirmed all that was promised of a fleet.
    pub fn has_all(&self, machine: usize, site: usize, fleet: FleetId) -> bool {
        let has = |token: &u64| self.confirmed.get(&machine).is_some_and(|(_, has)| has.contains_key(token));
        self.complete.iter().all(|(token, of)| *of != fleet || has(token))
            || self.logs[site].entries().all(|change| has(&change.token)) && self.judge_store(site, fleet).is_ok()
    }

    /// Whether a process has confirmed anything that a server's log holds.
    pub fn has_common(&self, process: Process, site: usize) -> bool {
        let Some(has) = self.own.get(&process) else { return false };
        self.logs[site].entries().any(|change| has.contains(&change.token))
    }

    /// A poll that a machine sent at `sent` was answered with entries.
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

    /// A process has applied a change.
    pub fn hear(&mut self, now: True, process: Process, token: u64) {
        self.heard.entry(process).or_default().insert(token, now);
    }

    /// A process takes a fleet's store for its own; if not for the first time, it forgets what it knew.
    pub fn follow(&mut self, process: Process, fleet: FleetId) {
        self.fleets.entry(process).or_default().push(fleet);
        self.known.remove(&process);
        self.own.remove(&process);
        self.renewing.insert(process);
    }

    pub fn fleet_of(&self, process: Process) -> Option<FleetId> {
        self.fleets.get(&process)?.last().copied()
    }

    /// Somebody was told that nobody honours what was before `written` any more; with every gateway's word if `is_complete`.
    pub fn claim(&mut self, site: usize, written: &Record, claim: Claim, is_complete: bool) {
        // What was lost since it was looked at is not promised.
        let Some(change) = self.logs[site].find(written) else { return };
        let (token, is_ended) = (change.token, written.is_ended());
        if is_complete {
            self.complete.insert(token, claim.fleet);
            match written {
                Record::Key(key) if is_ended => _ = self.ended.entry(key.digest).or_insert_with(|| claim.clone()),
                Record::Entity(entity) if is_ended => {
                    self.deleted.entry(entity.id).or_insert_with(|| claim.clone());
                }
                Record::Key(_) | Record::Entity(_) => {}
            }
            if let Record::Key(key) = written {
                self.made.entry(key.digest).or_insert_with(|| claim.clone());
            }
        }
        let barred = self.barred.entry(token).or_insert_with(|| claim.clone());
        if claim.from < barred.from {
            *barred = claim;
        }
    }

    /// A person has taken another store for a fleet's: what it had counts no more, except that what had ended stays so.
    pub fn take_away(&mut self, fleet: FleetId) {
        self.complete.retain(|_, of| *of != fleet);
        self.made.retain(|_, claim| claim.fleet != fleet);
        self.let_go.extend(self.deleted.iter().filter(|(_, claim)| claim.fleet == fleet).map(|(entity, _)| *entity));
    }

    // === What is asked ===

    /// Whether a machine has confirmed one of these tokens.
    fn has_confirmed(&self, machine: usize, tokens: Option<&HashSet<u64>>) -> bool {
        let confirmed = self.confirmed.get(&machine).map(|(_, confirmed)| confirmed);
        confirmed.is_some_and(|confirmed| tokens.into_iter().flatten().any(|token| confirmed.contains_key(token)))
    }

    /// Whether a process, or one before it on its machine, was told of an end of the key.
    fn has_learned_end(&self, process: Process, digest: &Digest) -> bool {
        let of_key = self.ends.get(digest);
        let of_entity = self.entity(digest).and_then(|entity| self.deletions.get(&entity));
        let heard = self.heard.get(&process);
        [of_key, of_entity].into_iter().any(|ends| {
            let has_heard =
                ends.into_iter().flatten().any(|token| heard.is_some_and(|heard| heard.contains_key(token)));
            has_heard || self.has_confirmed(process.machine, ends)
        })
    }

    /// Whether a key may be in force in the store that a process has taken for its own, and not with it, who knows that it had ended
    /// (protocols I5). It has no entry of such a key any more: it refuses it by the tombstone alone.
    pub fn has_kept_end(&self, process: Process, digest: &Digest) -> bool {
        let has_adopted = self.fleets.get(&process).is_some_and(|fleets| fleets.len() > 1);
        has_adopted && self.has_learned_end(process, digest)
    }

    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    fn entity(&self, digest: &Digest) -> Option<EntityId> {
        self.ever.get(digest).and_then(|records| records.first()).map(|key| key.entity_id)
    }

    /// Whether a store may refuse to take the key, because somewhere its entity was deleted.
    fn is_entity_gone(&self, digest: &Digest) -> bool {
        self.entity(digest).is_some_and(|entity| self.ever_deleted.contains(&entity))
    }

    /// Whether the key had ended in any history.
    pub fn ever_ended(&self, digest: &Digest) -> bool {
        let records = self.ever.get(digest).map_or(&[][..], Vec::as_slice);
        records.iter().any(|key| key.revoked_at.is_some() || self.ever_deleted.contains(&key.entity_id))
    }

    /// Judges an answer.
    ///
    /// # Errors
    /// The invariant that it breaks.
    pub fn judge(&mut self, now: True, witness: &Witness, digest: &Digest, answer: &Answer) -> Result<(), String> {
        self.asked += 1;
        match answer {
            Answer::Accepted(saying) => {
                self.accepted += 1;
                self.judge_accepted(now, witness, digest, saying)
            }
            Answer::Revoked => self.judge_revoked(witness, digest),
            Answer::Expired => self.judge_expired(witness, digest),
            Answer::Unknown => self.judge_unknown(now, witness, digest),
            Answer::Unavailable if !witness.is_stale && self.is_known(witness, digest) => {
                let id = self.ever.get(digest).and_then(|records| records.first()).map(|key| key.id);
                Err(format!("I7: the known key {id:?} is not judged although there is a right to serve"))
            }
            Answer::Unavailable => Ok(()),
        }
    }

    fn is_known(&self, witness: &Witness, digest: &Digest) -> bool {
        let is_there = !self.renewing.contains(&witness.process) || self.logs[witness.site].made(digest).is_some();
        is_there && self.known.get(&witness.process).is_some_and(|known| known.contains(digest))
    }

    fn judge_accepted(&mut self, now: True, witness: &Witness, digest: &Digest, saying: &Saying) -> Result<(), String> {
        let records = self.ever.get(digest).map_or(&[][..], Vec::as_slice);
        if !records.iter().any(|key| key.revoked_at.is_none() && Saying::of(key) == *saying) {
            return Err(format!("I7: a key that was never made is accepted as {saying:?}"));
        }
        if self.refused.contains(&(witness.process, *digest)) {
            return Err("I5: a key that this process told to be revoked is accepted again".to_owned());
        }
        if saying.expires_at.is_some_and(|end| end <= witness.wall) {
            return Err("a key that has expired is accepted".to_owned());
        }
        self.judge_right(now, witness)?;
        // What its store has lost it may lose as well, if it cannot give it back, or not to this store.
        let is_given_back = witness.keeps && !self.is_entity_gone(digest);
        if is_given_back || self.logs[witness.site].made(digest).is_some() {
            self.known.entry(witness.process).or_default().insert(*digest);
        }
        self.judge_going_on(now, witness, digest, saying)
    }

    /// Judges that a process acts on what a key's record said.
    pub fn judge_going_on(&self, now: True, witness: &Witness, digest: &Digest, saying: &Saying) -> Result<(), String> {
        self.judge_final(now, witness, digest)?;
        match self.logs[witness.site].standing(digest, saying) {
            Standing::Never => Ok(()),
            Standing::Followed(by) => by.iter().try_for_each(|by| self.judge_outdated(now, witness, by)),
        }
    }

    /// What ended and was confirmed by every gateway of a fleet is never honoured by any of them again, whatever the store forgets.
    fn judge_final(&self, now: True, witness: &Witness, digest: &Digest) -> Result<(), String> {
        let deleted = self.entity(digest).and_then(|entity| self.deleted.get(&entity));
        let mut claims = self.ended.get(digest).into_iter().chain(deleted);
        match claims.find(|claim| now > claim.from && self.is_bound(witness, claim)) {
            Some(claim) => Err(format!("I5, I12: `{}`, and it is honoured again", claim.words)),
            None => Ok(()),
        }
    }

    /// Whether what was told of a fleet binds a process: one that never knew that fleet's keys has no part in it.
    fn is_bound(&self, witness: &Witness, claim: &Claim) -> bool {
        !witness.is_cloned && self.fleets.get(&witness.process).is_some_and(|fleets| fleets.contains(&claim.fleet))
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

    /// Judges that somebody acts without what has taken the place of what it acts on.
    fn judge_outdated(&self, now: True, witness: &Witness, by: &Successor) -> Result<(), String> {
        let Successor { seq, token, since } = *by;
        let late = |what: &str| match token {
            0 => Err(format!("{what}: the store has not had this since {since}")),
            _ => Err(format!("{what}: change {seq}, there since {since}, is not acted upon")),
        };
        if now > since + witness.max_stale + slack(witness.max_stale) {
            return late("I1");
        }
        if witness.is_fresh && now > since + LEASE + slack(LEASE) {
            return late("I1 strict");
        }
        // Before that it was lost, and whoever had it may have lost it as well.
        let is_known_to =
            |known: Option<&HashMap<u64, True>>| known.and_then(|at| at.get(&token)).is_some_and(|at| *at >= since);
        if is_known_to(self.heard.get(&witness.process)) {
            return late("I9: applied by this very process");
        }
        if witness.is_cloned {
            return Ok(());
        }
        if is_known_to(self.confirmed.get(&witness.process.machine).map(|(_, confirmed)| confirmed)) {
            return late("I3: confirmed by this very machine");
        }
        match self.barred.get(&token).filter(|claim| self.is_bound(witness, claim)) {
            Some(claim) if claim.from >= since && now > claim.from + CONVERSION => {
                late(&format!("I12: `{}`", claim.words))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The tokens of what has taken the place of what a key's record said, by number.
    pub fn successors(&self, site: usize, digest: &Digest, saying: &Saying) -> Vec<Successor> {
        match self.logs[site].standing(digest, saying) {
            Standing::Never => Vec::new(),
            Standing::Followed(by) => by,
        }
    }

    fn judge_revoked(&mut self, witness: &Witness, digest: &Digest) -> Result<(), String> {
        if !self.ever.contains_key(digest) {
            return Err("I7: a key that was never made is called revoked".to_owned());
        }
        if !self.ever_ended(digest) {
            return Err("I7: a good key is called revoked".to_owned());
        }
        self.refused.insert((witness.process, *digest));
        Ok(())
    }

    fn judge_expired(&self, witness: &Witness, digest: &Digest) -> Result<(), String> {
        let mut records = self.ever.get(digest).into_iter().flatten();
        let expired = records.any(|key| key.expires_at.is_some_and(|end| end <= witness.wall));
        if expired { Ok(()) } else { Err("I7: a key that did not expire is called expired".to_owned()) }
    }

    fn judge_unknown(&self, now: True, witness: &Witness, digest: &Digest) -> Result<(), String> {
        if self.has_kept_end(witness.process, digest) {
            return Ok(());
        }
        if let Some(made) = self.logs[witness.site].made(digest)
            && now > made.since + LEASE + slack(LEASE)
        {
            return Err(format!("I7, I11: the key of change {} is called unknown, L + d after it was there", made.seq));
        }
        let fleet = self.fleet_of(witness.process);
        if self.is_entity_gone(digest) {
            return Ok(());
        }
        match self.made.get(digest).filter(|claim| Some(claim.fleet) == fleet && now > claim.from) {
            Some(claim) => Err(format!("I11: `{}`, and the key is called unknown", claim.words)),
            None => Ok(()),
        }
    }

    /// Judges what a store holds in the end: everything that every gateway of its fleet had.
    ///
    /// # Errors
    /// What it has lost for good.
    pub fn judge_store(&self, site: usize, fleet: FleetId) -> Result<(), String> {
        let log = &self.logs[site];
        let of = |claim: &&Claim| claim.fleet == fleet;
        let is_lost = |digest: &Digest| log.made(digest).is_none() && !self.is_entity_gone(digest);
        let made = self.made.iter().find(|(digest, claim)| of(claim) && is_lost(digest));
        let is_in_force = |digest: &Digest| log.made(digest).is_some() && !log.is_ended(digest);
        let ended = self.ended.iter().find(|(digest, claim)| of(claim) && is_in_force(digest));
        let is_let_go = |entity: &EntityId| self.let_go.contains(entity) && !log.has_entity(*entity);
        let is_undone = |entity: &EntityId| !log.is_deleted(*entity) && !is_let_go(entity);
        let deleted = self.deleted.iter().find(|(entity, claim)| of(claim) && is_undone(entity));
        let lost = [
            ("the key is not there", made.map(|(_, claim)| claim)),
            ("the key has not ended", ended.map(|(_, claim)| claim)),
            ("the entity is not deleted", deleted.map(|(_, claim)| claim)),
        ];
        match lost.into_iter().find_map(|(what, claim)| Some((what, claim?))) {
            Some((what, claim)) => Err(format!("`{}`, and {what} in the end", claim.words)),
            None => Ok(()),
        }
    }
}
