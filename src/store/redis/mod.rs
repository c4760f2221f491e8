//! The store in Redis, shared by several gateways: one Lua call is one atomic step. Nothing connects before it is asked.

mod accounts;
mod changes;
mod cluster;
mod connection;
mod fleet;
mod link;
mod reply;
mod roster;
mod safety;
mod schema;
mod sentinel;
mod stream;
mod url;
mod wire;
mod write;

use super::{
    Account, Accounts, Changes, Copies, EntityId, EntityRecord, Fleet, FleetId, Held, KeyFilter, KeyId, KeyRecord,
    KeyStore, LastUses, Member, Mutation, Position, Record, StoreError, codec,
};
use crate::key::Digest;
use crate::store::fleet::Expected;
use link::Link;
pub use safety::warnings;
use std::sync::{Mutex, MutexGuard, PoisonError};
pub use stream::{Appended, RecordStream, StoredRecord, StreamSettings};
pub use url::{Login, Url};

/// Records read by one call of a list.
const PAGE: usize = 500;
/// Bytes of records or log entries one reply may hold, besides its first.
const REPLY_BYTES: usize = 1 << 20;

/// A store at a URL. It connects when it is first asked, and again after a failure.
#[derive(Debug)]
pub struct RedisStore {
    url: Url,
    link: Mutex<Link>,
    expected: Expected,
    /// Who else holds the latest change.
    copies: Mutex<Option<Copies>>,
}

// === impl RedisStore ===

impl RedisStore {
    pub fn new(url: &Url) -> Self {
        let link = Mutex::new(Link::new(url));
        Self { url: url.clone(), link, expected: Expected::default(), copies: Mutex::default() }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.link().call(::redis::cmd("GET").arg(schema::name(name)))
    }

    fn record(&self, kind: &str, id: &str) -> Result<Option<Record>, StoreError> {
        self.text(&format!("{kind}:{id}"))?.as_deref().map(codec::decode).transpose()
    }

    fn key_named(&self, id: &str) -> Result<Option<KeyRecord>, StoreError> {
        self.record("key", id)?.map(as_key).transpose()
    }

    fn entity_named(&self, id: &str) -> Result<Option<EntityRecord>, StoreError> {
        self.record("entity", id)?.map(as_entity).transpose()
    }

    /// Records of an index in the order of their ids, after `after`.
    fn listed(&self, index: &str, kind: &str, after: Option<&str>, limit: usize) -> Result<Vec<Record>, StoreError> {
        let bound = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        Ok(self.link().page(index, kind, ("lex", &bound), limit.min(PAGE))?.1)
    }

    /// Keys of an index in the order of their ids, after `after`.
    fn keys_of(&self, index: &str, mut after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError> {
        let mut keys = Vec::<KeyRecord>::new();
        while keys.len() < limit {
            let bound = after.map(|after| after.to_string());
            let page = self.listed(index, "key:", bound.as_deref(), limit - keys.len())?;
            keys.extend(page.into_iter().map(as_key).collect::<Result<Vec<_>, _>>()?);
            let last = keys.last().map(|key| key.id);
            if last.is_none() || last == after {
                break;
            }
            after = last;
        }
        Ok(keys)
    }
}

impl KeyStore for RedisStore {
    fn apply(&self, mutation: &Mutation) -> Result<Vec<u64>, StoreError> {
        let mut link = self.link();
        let seqs = write::apply(&mut link, mutation, self.expected.get())?;
        *self.copies.lock().unwrap_or_else(PoisonError::into_inner) = link.copies();
        Ok(seqs)
    }

    fn copies(&self) -> Option<Copies> {
        *self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.key_named(&id.to_string())
    }

    fn key_by_digest(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        let id = self.text(&format!("digest:{digest}"))?;
        let Some(id) = id else { return Ok(None) };
        // Never taken for "no such key": one of the two names is missing.
        let missing = || codec::corrupt(&format!("the key {id} is missing, and its digest is there"));
        self.key_named(&id)?.map(Some).ok_or_else(missing)
    }

    fn keys(&self, filter: &KeyFilter, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError> {
        let index = filter.entity.map_or_else(|| "keys".to_owned(), |entity| format!("keys:{entity}"));
        self.keys_of(&index, after, limit)
    }

    fn entity(&self, id: EntityId) -> Result<Option<EntityRecord>, StoreError> {
        self.entity_named(&id.to_string())
    }

    fn entity_by_code(&self, code: &str) -> Result<Option<EntityRecord>, StoreError> {
        let id = self.text(&format!("code:{code}"))?;
        let found = id.map_or(Ok(None), |id| self.entity_named(&id))?;
        // Between the two reads the code may have been given up.
        Ok(found.filter(|entity| entity.deleted_at.is_none() && entity.code == code))
    }

    fn entities(&self) -> Result<Vec<EntityRecord>, StoreError> {
        let (mut entities, mut after) = (Vec::<EntityRecord>::new(), None::<String>);
        loop {
            let page = self.listed("entities", "entity:", after.as_deref(), PAGE)?;
            entities.extend(page.into_iter().map(as_entity).collect::<Result<Vec<_>, _>>()?);
            let last = entities.last().map(|entity| entity.id.to_string());
            if last == after {
                break;
            }
            after = last;
        }
        entities.sort_by(|left, right| (&left.code, left.id).cmp(&(&right.code, right.id)));
        Ok(entities)
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.link().call(::redis::cmd("ZCARD").arg(schema::name("keys")))
    }

    fn holds(&self, position: Position) -> Result<bool, StoreError> {
        changes::holds(&mut self.link(), position)
    }

    fn fleet_id(&self) -> Result<Option<FleetId>, StoreError> {
        fleet::id(&mut self.link())
    }

    fn begin_fleet(&self, id: FleetId) -> Result<FleetId, StoreError> {
        fleet::begin(&mut self.link(), id)
    }

    fn expect_fleet(&self, id: FleetId) {
        self.expected.set(id);
    }

    fn check_fleet(&self) -> Result<(), StoreError> {
        super::check_fleet(self.fleet_id()?, self.expected.get())
    }

    fn note_fork(&self) -> Result<(), StoreError> {
        roster::note_fork(&mut self.link())
    }

    fn adopt(&self, held: &[Held]) -> Result<(), StoreError> {
        fleet::adopt(&mut self.link(), held)
    }

    fn is_adopted(&self, held: &Held) -> Result<bool, StoreError> {
        fleet::is_adopted(&mut self.link(), held)
    }

    fn fleet(&self) -> Result<Fleet, StoreError> {
        roster::fleet(&mut self.link())
    }

    fn forget(&self, instance: &str) -> Result<bool, StoreError> {
        roster::remove(&mut self.link(), instance)
    }

    fn until_quiet(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.keys_of("quiet", None, usize::MAX)
    }

    fn account(&self, account: &Account) -> Result<(), StoreError> {
        accounts::account(&mut self.link(), account, self.expected.get())
    }

    fn accounts(&self) -> Result<Accounts, StoreError> {
        accounts::accounts(&mut self.link())
    }

    fn last_uses(&self, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError> {
        accounts::last_uses(&mut self.link(), keys)
    }

    fn changes(&self) -> Result<Box<dyn Changes>, StoreError> {
        Ok(Box::new(changes::RedisChanges::new(Link::new(&self.url))))
    }
}

fn as_key(record: Record) -> Result<KeyRecord, StoreError> {
    match record {
        Record::Key(key) => Ok(key),
        Record::Entity(entity) => Err(codec::corrupt(&format!("{} is an entity, not a key", entity.id))),
    }
}

fn as_entity(record: Record) -> Result<EntityRecord, StoreError> {
    match record {
        Record::Entity(entity) => Ok(entity),
        Record::Key(key) => Err(codec::corrupt(&format!("{} is a key, not an entity", key.id))),
    }
}
