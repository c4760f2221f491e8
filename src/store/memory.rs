//! A store that lives and dies with the process: the contract's reference model, and a quick store for tests.

use super::fleet::Expected;
use super::{
    Account, Accounts, Change, Changes, Conflict, Feed, Fleet, FleetId, Held, JournalAccount, KeyFilter, KeyStore,
    LastUses, Member, Mutation, OperationId, Page, Position, Record, StoreError, Write,
};
use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// All records and the log, under one lock.
#[derive(Debug, Default)]
pub struct MemoryStore {
    data: Arc<Mutex<Data>>,
    expected: Expected,
}

#[derive(Clone, Debug, Default)]
struct Data {
    keys: BTreeMap<KeyId, KeyRecord>,
    entities: BTreeMap<EntityId, EntityRecord>,
    log: Vec<Change>,
    operations: HashMap<OperationId, Vec<u64>>,
    fleet_id: Option<FleetId>,
    adopted: Vec<Held>,
    fleet: BTreeMap<(String, String), Member>,
    journals: BTreeMap<String, JournalAccount>,
    uses: HashMap<KeyId, LastUses>,
}

/// A follower's reader, and its row.
struct MemoryChanges {
    store: MemoryStore,
    row: Option<(String, String)>,
}

// === impl MemoryStore ===

impl MemoryStore {
    fn data(&self) -> MutexGuard<'_, Data> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A store that has what this one has now, and goes its own way from here: a copy that is put back later.
    pub fn copy(&self) -> Self {
        Self { data: Arc::new(Mutex::new(self.data().clone())), expected: Expected::default() }
    }

    /// Puts a copy back: everything since then is lost.
    pub fn put_back(&self, copy: &Self) {
        let copied = copy.data().clone();
        *self.data() = copied;
    }
}

impl KeyStore for MemoryStore {
    fn apply(&self, mutation: &Mutation) -> Result<Vec<u64>, StoreError> {
        let mut data = self.data();
        if let Some(outcome) = data.operations.get(&mutation.operation) {
            return Ok(outcome.clone());
        }
        let id = super::fleet_of(data.fleet_id, self.expected.get())?;
        let mut next = data.clone();
        next.fleet_id = Some(id);
        let seqs = mutation.writes.iter().map(|write| next.write(mutation, write)).collect::<Result<Vec<_>, _>>()?;
        next.operations.insert(mutation.operation, seqs.clone());
        *data = next;
        Ok(seqs)
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        Ok(self.data().keys.get(&id).cloned())
    }

    fn key_by_digest(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        Ok(self.data().keys.values().find(|key| key.digest == *digest).cloned())
    }

    fn keys(&self, filter: &KeyFilter, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError> {
        let data = self.data();
        let keys = data.keys.values().filter(|key| after.is_none_or(|after| key.id > after));
        Ok(keys.filter(|key| filter.entity.is_none_or(|entity| key.entity_id == entity)).take(limit).cloned().collect())
    }

    fn entity(&self, id: EntityId) -> Result<Option<EntityRecord>, StoreError> {
        Ok(self.data().entities.get(&id).cloned())
    }

    fn entity_by_code(&self, code: &str) -> Result<Option<EntityRecord>, StoreError> {
        Ok(self.data().live_entity(code).cloned())
    }

    fn entities(&self) -> Result<Vec<EntityRecord>, StoreError> {
        let mut entities: Vec<_> = self.data().entities.values().cloned().collect();
        entities.sort_by(|left, right| (&left.code, left.id).cmp(&(&right.code, right.id)));
        Ok(entities)
    }

    fn count(&self) -> Result<u64, StoreError> {
        Ok(self.data().keys.len() as u64)
    }

    fn holds(&self, position: Position) -> Result<bool, StoreError> {
        Ok(self.data().holds(position))
    }

    fn fleet_id(&self) -> Result<Option<FleetId>, StoreError> {
        Ok(self.data().fleet_id)
    }

    fn begin_fleet(&self, id: FleetId) -> Result<FleetId, StoreError> {
        Ok(*self.data().fleet_id.get_or_insert(id))
    }

    fn expect_fleet(&self, id: FleetId) {
        self.expected.set(id);
    }

    fn check_fleet(&self) -> Result<(), StoreError> {
        super::check_fleet(self.data().fleet_id, self.expected.get())
    }

    fn note_fork(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn adopt(&self, held: &[Held]) -> Result<(), StoreError> {
        self.data().adopted = held.to_vec();
        Ok(())
    }

    fn is_adopted(&self, held: &Held) -> Result<bool, StoreError> {
        Ok(self.data().adopted.contains(held))
    }

    fn fleet(&self) -> Result<Fleet, StoreError> {
        Ok(Fleet::settled(self.data().fleet.values().cloned().collect()))
    }

    fn forget(&self, instance: &str) -> Result<bool, StoreError> {
        let mut data = self.data();
        let known = data.fleet.len();
        data.fleet.retain(|_, member| member.instance != instance);
        Ok(data.fleet.len() < known)
    }

    fn until_quiet(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let data = self.data();
        let waiting = |key: &&KeyRecord| key.until_quiet.is_some() && key.revoked_at.is_none();
        Ok(data.keys.values().filter(waiting).cloned().collect())
    }

    fn account(&self, account: &Account) -> Result<(), StoreError> {
        let mut data = self.data();
        super::check_fleet(data.fleet_id, self.expected.get())?;
        account.uses.iter().for_each(|(key, uses)| data.uses.entry(*key).or_default().merge(uses));
        let told = &account.journal;
        data.journals.entry(told.journal.clone()).or_insert_with(|| told.clone()).merge(told);
        Ok(())
    }

    fn accounts(&self) -> Result<Accounts, StoreError> {
        Ok(Accounts { journals: self.data().journals.values().cloned().collect() })
    }

    fn last_uses(&self, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError> {
        let data = self.data();
        Ok(keys.iter().map(|key| data.uses.get(key).cloned().unwrap_or_default()).collect())
    }

    fn changes(&self) -> Result<Box<dyn Changes>, StoreError> {
        Ok(Box::new(MemoryChanges {
            store: Self { data: Arc::clone(&self.data), expected: Expected::default() },
            row: None,
        }))
    }
}

impl Changes for MemoryChanges {
    fn head(&mut self) -> Result<Position, StoreError> {
        Ok(self.store.data().head())
    }

    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError> {
        let data = self.store.data();
        let latest = data.log.iter().skip(data.log.len().saturating_sub(limit));
        Ok(latest.map(|change| Position { seq: change.seq, token: change.token }).collect())
    }

    fn wait(&mut self, _: Position) {
        std::thread::sleep(Duration::from_millis(1));
    }

    fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        let row = (member.gateway.clone(), member.instance.clone());
        self.store.data().fleet.insert(row.clone(), member.clone());
        self.row = Some(row);
        Ok(())
    }

    fn leave(&mut self, _: &Member) {
        if let Some(row) = self.row.take() {
            self.store.data().fleet.remove(&row);
        }
    }

    fn outlives_process(&self) -> bool {
        false
    }

    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        let data = self.store.data();
        if fleet.is_some() && fleet != data.fleet_id {
            return Ok(Feed::Foreign { fleet: data.fleet_id });
        }
        if !data.holds(from) {
            return Ok(Feed::Diverged { head: data.head() });
        }
        let entries = data.log.iter().filter(|change| change.seq > from.seq).take(limit).cloned().collect();
        Ok(Feed::Entries { head: data.head(), entries })
    }

    fn page(&mut self, after: u64, limit: usize) -> Result<Page, StoreError> {
        let data = self.store.data();
        let keys = data.keys.values().cloned().map(Record::Key);
        let mut records: Vec<_> = keys.chain(data.entities.values().cloned().map(Record::Entity)).collect();
        records.retain(|record| record.version() > after);
        records.sort_by_key(Record::version);
        records.truncate(limit);
        Ok(Page { head: data.head(), records })
    }
}

// === impl Data ===

impl Data {
    fn head(&self) -> Position {
        self.log.last().map_or_else(Position::default, |change| Position { seq: change.seq, token: change.token })
    }

    fn holds(&self, position: Position) -> bool {
        let is_at = |change: &Change| change.seq == position.seq && change.token == position.token;
        position == Position::default() || self.log.iter().any(is_at)
    }

    fn live_entity(&self, code: &str) -> Option<&EntityRecord> {
        self.entities.values().find(|entity| entity.code == code && entity.deleted_at.is_none())
    }

    fn write(&mut self, mutation: &Mutation, write: &Write) -> Result<u64, StoreError> {
        let seq = self.head().seq + 1;
        let mut after = write.record.clone();
        let before = match &mut after {
            Record::Key(key) => {
                key.version = seq;
                self.write_key(key, write.expected)?.map(Record::Key)
            }
            Record::Entity(entity) => {
                entity.version = seq;
                self.write_entity(entity, write.expected)?.map(Record::Entity)
            }
        };
        let (at, actor, action) = (mutation.at, mutation.actor.clone(), write.action);
        self.log.push(Change { seq, token: fastrand::u64(1..), at, actor, action, before, after });
        Ok(seq)
    }

    fn write_key(&mut self, key: &KeyRecord, expected: Option<u64>) -> Result<Option<KeyRecord>, StoreError> {
        let before = self.keys.get(&key.id).cloned();
        super::check_key(before.as_ref(), key, expected)?;
        if self.entities.get(&key.entity_id).is_none_or(|entity| entity.deleted_at.is_some())
            && key.revoked_at.is_none()
        {
            return Err(StoreError::Conflict(Conflict::EntityGone(key.entity_id)));
        }
        if let Some(other) = self.keys.values().find(|other| other.digest == key.digest && other.id != key.id) {
            return Err(StoreError::Conflict(Conflict::DigestTaken(other.id)));
        }
        self.keys.insert(key.id, key.clone());
        Ok(before)
    }

    fn write_entity(
        &mut self,
        entity: &EntityRecord,
        expected: Option<u64>,
    ) -> Result<Option<EntityRecord>, StoreError> {
        let before = self.entities.get(&entity.id).cloned();
        super::check_entity(before.as_ref(), entity, expected)?;
        let taken = self.live_entity(&entity.code).is_some_and(|other| other.id != entity.id);
        if taken && entity.deleted_at.is_none() {
            return Err(StoreError::Conflict(Conflict::CodeTaken(entity.code.clone())));
        }
        self.entities.insert(entity.id, entity.clone());
        Ok(before)
    }
}
