//! One server's log as the oracle sees it: since when each entry has been there to be read, and what is not there any more.

use super::time::True;
use keygate::clock::Timestamp;
use keygate::key::{Digest, EntityId, KeyRecord};
use keygate::store::{Change, Record};
use std::collections::HashMap;

/// What a key's record says, by which it is known again whatever its version: names are never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Saying {
    pub name: String,
    pub expires_at: Option<Timestamp>,
}

/// What has taken the place of a saying.
#[derive(Clone, Copy, Debug)]
pub struct Successor {
    pub seq: u64,
    /// Of the log's entry; 0: it is not in this history at all.
    pub token: u64,
    /// Since when it could be read.
    pub since: True,
}

/// What became of a saying in this history.
#[derive(Debug)]
pub enum Standing {
    /// It was never there.
    Never,
    /// These took its place; none: it holds.
    Followed(Vec<Successor>),
}

#[derive(Clone, Debug, Default)]
pub struct Log {
    entries: Vec<(True, Change)>,
    keys: HashMap<Digest, Vec<usize>>,
    deletions: HashMap<EntityId, usize>,
    /// When what it said left the log.
    lost: HashMap<(Digest, Saying), True>,
}

// === impl Saying ===

impl Saying {
    pub fn of(key: &KeyRecord) -> Self {
        Self { name: key.name.clone(), expires_at: key.expires_at }
    }
}

// === impl Log ===

impl Log {
    pub fn write(&mut self, now: True, change: Change) {
        let index = self.entries.len();
        match &change.after {
            Record::Key(key) => self.keys.entry(key.digest).or_default().push(index),
            Record::Entity(entity) if entity.deleted_at.is_some() => _ = self.deletions.insert(entity.id, index),
            Record::Entity(_) => {}
        }
        self.entries.push((now, change));
    }

    /// Another history is in its place from now on; what both hold has been there all the time. The tokens of what was lost.
    pub fn replace(&mut self, now: True, changes: Vec<Change>) -> Vec<u64> {
        let before = std::mem::take(self);
        self.lost.clone_from(&before.lost);
        for change in changes {
            let seq = change.seq;
            let since = before.at(seq).filter(|(_, had)| had.token == change.token).map_or(now, |(since, _)| *since);
            self.write(since, change);
        }
        let has = |(_, change): &&(True, Change)| self.at(change.seq).is_none_or(|(_, has)| has.token != change.token);
        let gone: Vec<_> = before.entries.iter().filter(has).map(|(_, change)| change.clone()).collect();
        for change in &gone {
            if let Record::Key(key) = &change.after {
                self.lost.insert((key.digest, Saying::of(key)), now);
            }
        }
        gone.iter().map(|change| change.token).collect()
    }

    /// Those who followed `other` follow this one from now on.
    pub fn take_over(&mut self, now: True, other: &Self) -> Vec<u64> {
        let changes: Vec<_> = self.entries.iter().map(|(_, change)| change.clone()).collect();
        let before = std::mem::replace(self, other.clone());
        self.lost.extend(before.lost);
        self.replace(now, changes)
    }

    fn at(&self, seq: u64) -> Option<&(True, Change)> {
        self.entries.get(usize::try_from(seq).unwrap().checked_sub(1)?)
    }

    pub fn entries(&self) -> impl Iterator<Item = &Change> + Clone {
        self.entries.iter().map(|(_, change)| change)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    fn key(&self, index: usize) -> &KeyRecord {
        match &self.entries[index].1.after {
            Record::Key(key) => key,
            Record::Entity(entity) => panic!("{} is an entity", entity.id),
        }
    }

    /// The key that was changed last.
    pub fn latest(&self) -> Option<Digest> {
        self.entries.iter().rev().take(2).find_map(|(_, change)| match &change.after {
            Record::Key(key) => Some(key.digest),
            Record::Entity(_) => None,
        })
    }

    fn successor(&self, index: usize) -> Successor {
        let (since, change) = &self.entries[index];
        Successor { seq: change.seq, token: change.token, since: *since }
    }

    /// What has taken the place of what a key's record said.
    pub fn standing(&self, digest: &Digest, saying: &Saying) -> Standing {
        let indices = self.keys.get(digest).map_or(&[][..], Vec::as_slice);
        let says = |index: &usize| {
            let key = self.key(*index);
            key.revoked_at.is_none() && Saying::of(key) == *saying
        };
        let Some(last) = indices.iter().rposition(says) else {
            let lost = self.lost.get(&(*digest, saying.clone()));
            return lost.map_or(Standing::Never, |since| {
                Standing::Followed(vec![Successor { seq: u64::MAX, token: 0, since: *since }])
            });
        };
        let deletion = self.deletions.get(&self.key(indices[last]).entity_id);
        Standing::Followed(indices[last + 1..].iter().chain(deletion).map(|index| self.successor(*index)).collect())
    }

    /// The first entry of a key.
    pub fn made(&self, digest: &Digest) -> Option<Successor> {
        self.keys.get(digest)?.first().map(|index| self.successor(*index))
    }

    /// Whether the key works, on a machine with this wall clock.
    pub fn is_good(&self, digest: &Digest, wall: Timestamp) -> bool {
        !self.is_ended(digest)
            && self
                .keys
                .get(digest)
                .and_then(|indices| indices.last())
                .is_some_and(|last| self.key(*last).expires_at.is_none_or(|end| end > wall))
    }

    /// Whether some of what a key's record said left the log at this very time.
    pub fn has_lost(&self, digest: &Digest, at: True) -> bool {
        self.lost.iter().any(|((lost, _), when)| lost == digest && *when == at)
    }

    /// Whether the key is there and has ended.
    pub fn is_ended(&self, digest: &Digest) -> bool {
        let Some(last) = self.keys.get(digest).and_then(|indices| indices.last()) else { return false };
        let key = self.key(*last);
        key.revoked_at.is_some() || self.is_deleted(key.entity_id)
    }

    pub fn has_entity(&self, entity: EntityId) -> bool {
        self.entries().any(|change| matches!(&change.after, Record::Entity(there) if there.id == entity))
    }

    pub fn is_deleted(&self, entity: EntityId) -> bool {
        self.deletions.contains_key(&entity)
    }

    /// The last entry that says what `written` says, whatever its number.
    pub fn find(&self, written: &Record) -> Option<&Change> {
        let is_it = |change: &&Change| match (&change.after, written) {
            (Record::Key(there), Record::Key(key)) => KeyRecord { version: key.version, ..there.clone() } == *key,
            (Record::Entity(there), Record::Entity(entity)) => {
                there.id == entity.id && there.deleted_at.is_some() == entity.deleted_at.is_some()
            }
            (Record::Key(_), Record::Entity(_)) | (Record::Entity(_), Record::Key(_)) => false,
        };
        self.entries.iter().rev().map(|(_, change)| change).find(is_it)
    }
}
