//! When the store has lost changes, or is another one (protocols I4).
//!
//! What a gateway has applied was confirmed, so the store must have it again: each record that the gateway knows in a later state
//! than the two histories have in common is offered to the store, by an ordinary change. Where the store cannot be the one that
//! was followed, nothing is applied until a person says what counts.

use super::{ENTRIES, Follower, Reload, Turn};
use crate::auth::snapshot::Name;
use crate::key::{Digest, EntityRecord, KeyRecord};
use crate::store::{
    Action, Change, Conflict, Feed, FleetId, Held, Mutation, OperationId, Position, Record, StoreError, Write, codec,
};
use crate::telemetry;
use std::collections::HashSet;

/// How often a record is offered that others change at the same time.
const ATTEMPTS: usize = 8;

impl Follower {
    /// Whether it is known whose store this is to be. A gateway that never had a position takes it for its own, and begins a fleet
    /// where there is none; one that had, and cannot say of which fleet it was, never does.
    pub(super) fn know_fleet(&mut self) -> Result<bool, StoreError> {
        if self.kept.lineage.fleet.is_some() {
            return Ok(true);
        }
        let id = match self.store.fleet_id()? {
            Some(id) => id,
            None if self.kept.had_position() => return Ok(false),
            None => self.store.begin_fleet(FleetId::random()?)?,
        };
        self.kept.lineage.fleet = Some(id);
        self.store.expect_fleet(id);
        Ok(true)
    }

    /// The log does not hold our position (FORK): gives the store what it has lost, and follows it from the last position that
    /// both have. Broken off, all of it is repeated, which is harmless.
    pub(super) fn part(&mut self) -> Result<Turn, StoreError> {
        self.step_back()?;
        if !self.loaded {
            // Nothing was confirmed: there is nothing to give back, and all is to be loaded anew.
            self.repeat(Reload::Start);
            return Ok(Turn::Behind);
        }
        if !self.fork_noted {
            self.store.note_fork()?;
            self.fork_noted = true;
        }
        let store = &self.store;
        let Some(common) = self.kept.lineage.common(|position| store.holds(position))? else { return self.hold() };
        let stood_at = self.kept.lineage.last();
        tracing::error!(
            common = common.seq,
            stood_at = stood_at.seq,
            "the key store has lost changes: it is given them again, and followed from the last one that it has"
        );
        telemetry::store_forked();
        let (entries, refused) = self.give_back(common)?;
        {
            let keeps_nothing = self.kept.is_volatile();
            let mut applier = self.applier();
            if keeps_nothing {
                applier.lose_after(common.seq);
            }
            applier.part_at(common.seq);
            refused.iter().for_each(|digest| applier.refuse(*digest));
        }
        self.apply(&entries);
        let cut = self.cut_ended();
        let rebased = self.kept.rebase(common, &entries, &refused);
        cut();
        rebased?;
        self.hear(&entries);
        self.stand_at(entries.last().map_or(common, |last| Position { seq: last.seq, token: last.token }));
        Ok(Turn::Behind)
    }

    /// The store is not the one that was followed (FOREIGN): what is known is served as long as it may be, until the store is put
    /// right or a person gives leave to take it as it is.
    pub(super) fn hold(&mut self) -> Result<Turn, StoreError> {
        let fleet = self.kept.lineage.fleet.unwrap_or(FleetId::from_bits(0));
        let held = Held { fleet, position: self.kept.lineage.last() };
        if self.member.held != Some(held) {
            telemetry::store_foreign();
            tracing::error!(
                fleet = %held.fleet,
                change = held.position.seq,
                "the key store is not the one that was followed; nothing is taken from it, and known keys work until max_stale: put the right one back, or say what counts with `keygate store adopt` or `keygate store reseed`"
            );
        }
        self.member.held = Some(held);
        if self.kept.lineage.fleet.is_none() {
            // It is not known whose keys these are: nobody's store is written to.
            self.store.expect_fleet(held.fleet);
        }
        self.step_back()?;
        if self.store.is_adopted(&held)?
            && let Some(fleet) = self.store.fleet_id()?
        {
            return self.adopt(fleet);
        }
        Ok(Turn::Held)
    }

    /// Takes the store as it is: its keys are loaded in place of those that are known, of which only what was revoked stays. Until
    /// all are loaded, those that are known are served as long as they may be.
    fn adopt(&mut self, fleet: FleetId) -> Result<Turn, StoreError> {
        // Told before any of its keys is loaded: whoever changes one waits for this gateway from now on.
        self.member.held = None;
        self.tell_of(Position::default())?;
        tracing::warn!(%fleet, "a person has said that the key store counts as it is: its keys are loaded in place of those that were known");
        self.kept.forget()?;
        self.applier().renew();
        self.kept.lineage = Default::default();
        self.kept.lineage.fleet = Some(fleet);
        self.store.expect_fleet(fleet);
        (self.position, self.loaded) = (None, false);
        Ok(Turn::Behind)
    }

    /// Nothing of the store's history has been applied: a miss proves nothing, and whoever waits for a change of it must wait.
    fn step_back(&mut self) -> Result<(), StoreError> {
        self.cache.set_incomplete();
        self.cache.trust_store(false);
        if let Some(loading) = self.loading.take() {
            self.repeat(loading.reason);
        }
        self.tell_of(Position::default())
    }

    /// Offers the store everything that was changed after `common`, until it stands in the history that is read back. Gives that,
    /// and the keys that the store neither has nor takes.
    fn give_back(&mut self, common: Position) -> Result<(Vec<Change>, HashSet<Digest>), StoreError> {
        let mut records = self.kept.changed_after(common.seq)?;
        // An entity before its keys, and its deletion after them.
        records.sort_by_key(|record| {
            let rank = match record {
                Record::Entity(entity) if entity.deleted_at.is_none() => 0,
                Record::Key(_) => 1,
                Record::Entity(_) => 2,
            };
            (rank, record.version())
        });
        for _ in 0..ATTEMPTS {
            let mut declined = HashSet::new();
            for record in &records {
                if !self.offer(record, common)? {
                    declined.insert(Name::of(record));
                }
            }
            let entries = self.read_after(common)?;
            let reached = entries.last().map_or(common, |last| Position { seq: last.seq, token: last.token });
            // Looked at once more after that was read: the store may have lost changes again meanwhile.
            let (mut stands, mut refused) = (true, HashSet::new());
            for record in &records {
                let (there, is_declined) = (self.stored(record)?, declined.contains(&Name::of(record)));
                stands &= there.as_ref().map_or(0, Record::version) <= reached.seq;
                stands &= is_declined || there.is_some() && write_of(there.as_ref(), record, common).is_none();
                if let (Record::Key(key), None, true) = (record, &there, is_declined)
                    // Else it has the same key under another name, which counts.
                    && self.store.key_by_digest(&key.digest)?.is_none()
                {
                    refused.insert(key.digest);
                }
            }
            if stands && self.store.holds(reached)? {
                return Ok((entries, refused));
            }
        }
        Err(StoreError::Unavailable("the key store loses changes again and again".to_owned()))
    }

    /// Everything after a position.
    fn read_after(&mut self, common: Position) -> Result<Vec<Change>, StoreError> {
        let (mut read, mut at) = (Vec::new(), common);
        loop {
            match self.changes.poll(at, self.kept.lineage.fleet, ENTRIES)? {
                Feed::Entries { head, entries } => {
                    read.extend(entries);
                    at = read.last().map_or(common, |last: &Change| Position { seq: last.seq, token: last.token });
                    if at.seq >= head.seq {
                        return Ok(read);
                    }
                }
                Feed::Diverged { .. } | Feed::Foreign { .. } => {
                    return Err(StoreError::Unavailable("the key store has lost changes again".to_owned()));
                }
            }
        }
    }

    /// Offers one record; false where the store does not take it, because of what else it holds.
    fn offer(&self, record: &Record, common: Position) -> Result<bool, StoreError> {
        for _ in 0..ATTEMPTS {
            let there = self.stored(record)?;
            let Some(write) = write_of(there.as_ref(), record, common) else { return Ok(true) };
            match self.store.apply(&self.mutation(write, common)?) {
                Ok(_) => return Ok(true),
                Err(StoreError::Conflict(Conflict::Version)) => {}
                Err(StoreError::Conflict(conflict)) => {
                    tracing::error!(%conflict, record = name(record), "the key store has lost a change, and does not take it again");
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Err(StoreError::Unavailable(format!("{} is changed again and again", name(record))))
    }

    fn stored(&self, record: &Record) -> Result<Option<Record>, StoreError> {
        match record {
            Record::Key(key) => Ok(self.store.key(key.id)?.map(Record::Key)),
            Record::Entity(entity) => Ok(self.store.entity(entity.id)?.map(Record::Entity)),
        }
    }

    /// The same from every gateway that offers it: the second one changes nothing.
    fn mutation(&self, write: Write, common: Position) -> Result<Mutation, StoreError> {
        let text = codec::encode(&with_version(&write.record, 0))?;
        let digest = Digest::of(format!("{} {} {text}", common.seq, common.token).as_bytes());
        let operation = digest.as_bytes().first_chunk::<16>().map_or(0, |bits| u128::from_be_bytes(*bits));
        Ok(Mutation {
            operation: OperationId(operation),
            actor: format!("gateway:{}", self.member.gateway),
            at: self.clock.now(),
            writes: vec![write],
        })
    }
}

/// What is to be written in place of `there`, so that what `record` says is not lost; nothing where the store has it, or has a
/// later word. What ends a record is always to be written: revoked is final (I5).
fn write_of(there: Option<&Record>, record: &Record, common: Position) -> Option<Write> {
    let Some(there) = there else {
        return Some(Write { action: action(record, None), expected: None, record: record.clone() });
    };
    let is_news = with_version(there, 0) != with_version(record, 0);
    let record = match (there, record) {
        _ if is_news && !there.is_ended() && there.version() <= common.seq => record.clone(),
        (Record::Key(there), Record::Key(key)) if there.revoked_at.is_none() => {
            let revoked_at = Some(key.revoked_at?);
            Record::Key(KeyRecord { revoked_at, ..there.clone() })
        }
        (Record::Entity(there), Record::Entity(entity)) if there.deleted_at.is_none() => {
            let deleted_at = Some(entity.deleted_at?);
            Record::Entity(EntityRecord { deleted_at, ..there.clone() })
        }
        _ => return None,
    };
    Some(Write { action: action(&record, Some(there)), expected: Some(there.version()), record })
}

fn action(record: &Record, there: Option<&Record>) -> Action {
    match record {
        Record::Key(key) if key.revoked_at.is_some() => Action::KeyRevoked,
        Record::Key(_) if there.is_none() => Action::KeyCreated,
        Record::Key(_) => Action::KeyUpdated,
        Record::Entity(entity) if entity.deleted_at.is_some() => Action::EntityDeleted,
        Record::Entity(_) => Action::EntityCreated,
    }
}

fn with_version(record: &Record, version: u64) -> Record {
    match record.clone() {
        Record::Key(key) => Record::Key(KeyRecord { version, ..key }),
        Record::Entity(entity) => Record::Entity(EntityRecord { version, ..entity }),
    }
}

fn name(record: &Record) -> String {
    match record {
        Record::Key(key) => key.id.to_string(),
        Record::Entity(entity) => format!("entity {}", entity.id),
    }
}
