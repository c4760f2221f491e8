//! Applies records to the key cache: versions, tombstones, and the parts that many keys share (protocols I5, I6).

use super::Settings;
use super::cache::KeyCache;
use super::fill::Fills;
use crate::key::principal::{Grant, PrincipalEntity};
use crate::key::{Digest, EntityId, EntityRecord, KeyRecord, Principal, ScopeList};
use crate::store::{Position, Record};
use http::HeaderValue;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The one writer of the cache.
pub struct Applier {
    cache: Arc<KeyCache>,
    settings: Settings,
    entities: HashMap<EntityId, Arc<PrincipalEntity>>,
    grants: HashMap<ScopeList, Arc<Grant>>,
    versions: HashMap<String, Arc<HeaderValue>>,
    undeclared: HashSet<String>,
    fills: Arc<Fills>,
    position: Position,
    ended: Option<Ended>,
    /// A key was left out because there was no room: a miss proves nothing any more.
    overflowed: bool,
    /// Some of what is known goes once the whole set has been read anew, unless the store has it.
    outgoing: bool,
}

/// Something that was in force is not any more: what it let through is to be judged again. An entry that has ended says so
/// itself; but an exchange may hold an older one, which the cache has lost, so changed keys are named as well.
pub type Ended = HashSet<Digest>;

/// Where a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A load of the whole set: what finds no room is left out.
    Page,
    /// The log: it is news, and is held.
    Log,
    /// Somebody asks for this key.
    Fill,
}

// === impl Applier ===

impl Applier {
    pub fn new(cache: Arc<KeyCache>, settings: Settings, fills: Arc<Fills>) -> Self {
        Self {
            cache,
            settings,
            entities: HashMap::new(),
            grants: HashMap::new(),
            versions: HashMap::new(),
            undeclared: HashSet::new(),
            fills,
            position: Position::default(),
            ended: None,
            overflowed: false,
            outgoing: false,
        }
    }

    /// Applies one record.
    pub fn apply(&mut self, record: &Record, origin: Origin) {
        match record {
            Record::Key(key) => self.apply_key(key, origin),
            Record::Entity(entity) => self.apply_entity(entity),
        }
    }

    fn apply_entity(&mut self, record: &EntityRecord) {
        let is_known = self.entities.contains_key(&record.id);
        let entity = self.entity(record.id);
        if record.deleted_at.is_some() {
            entity.delete();
            if is_known {
                self.ended.get_or_insert_default();
            }
        }
    }

    /// Applies a key's record if its version is higher than what is known; a revoked one whatever its version (I5).
    fn apply_key(&mut self, record: &KeyRecord, origin: Origin) {
        if origin == Origin::Log {
            self.ended.get_or_insert_default().insert(record.digest);
            self.fills.touch(&record.digest);
            self.cache.forget_absence(&record.digest);
        }
        let known = self.cache.peek(&record.digest);
        let revoked = record.revoked_at.is_some();
        let outdated = known.as_ref().is_some_and(|known| known.version() >= record.version);
        if !revoked && (outdated || self.cache.is_entombed(&record.digest)) {
            return;
        }
        if revoked {
            self.cache.entomb(record.digest);
        }
        if record.imported {
            self.cache.note_imported();
        }
        if known.is_none() && !self.has_room() {
            self.overflow();
            if origin == Origin::Page {
                return;
            }
        }
        let principal = self.principal(record);
        if revoked {
            principal.end();
        }
        self.cache.publish(record.digest, Arc::new(principal), known.as_deref());
        if known.is_some() {
            self.ended.get_or_insert_default().insert(record.digest);
        }
    }

    /// Whether one more key may be held. What is to go makes room.
    fn has_room(&mut self) -> bool {
        let is_full = |cache: &KeyCache, keys_max| cache.records() >= keys_max;
        if is_full(&self.cache, self.settings.keys_max) {
            self.drop_outgoing();
        }
        !is_full(&self.cache, self.settings.keys_max)
    }

    /// Forgets everything but what was revoked.
    pub fn forget(&mut self) {
        self.cache.end_all();
        self.cache.clear();
        self.entities.clear();
        (self.overflowed, self.outgoing) = (false, false);
        self.ended = Some(Ended::default());
    }

    /// The whole set is read anew, from a store with another history: whatever that has is newer, and what it has not goes in the
    /// end, by [`Self::drop_outgoing`]. Until then it is served as long as it may be. What has ended stays so, an entity too (I5).
    pub fn renew(&mut self) {
        self.cache.lower(0);
        self.cache.forget_overflow();
        (self.overflowed, self.outgoing) = (false, true);
    }

    /// The whole set has been read anew: what it lacks goes, except that what was revoked stays so.
    pub fn drop_outgoing(&mut self) {
        if std::mem::take(&mut self.outgoing) {
            let gone = self.cache.drop_outgoing();
            self.ended.get_or_insert_default().extend(gone);
        }
    }

    /// The store's history parted from this gateway's at `seq`: what it has from there on is newer than what is known.
    pub fn part_at(&mut self, seq: u64) {
        self.cache.lower(seq);
    }

    /// The same for a gateway that cannot give back what it knew after `seq`, because it keeps nothing: what it knew of those keys
    /// is lost, as after an eviction, and loaded again.
    pub fn lose_after(&mut self, seq: u64) {
        let lost = self.cache.lose_after(seq);
        if !lost.is_empty() {
            self.ended.get_or_insert_default().extend(lost);
        }
    }

    /// A key that the store does not have, and does not take: it has never been.
    pub fn refuse(&mut self, digest: Digest) {
        self.cache.entomb(digest);
        if let Some(known) = self.cache.peek(&digest) {
            known.end();
            self.ended.get_or_insert_default().insert(digest);
        }
    }

    /// Up to where the log was applied.
    pub const fn position(&self) -> Position {
        self.position
    }

    pub const fn stand_at(&mut self, position: Position) {
        self.position = position;
    }

    /// What has ended since this was last asked.
    pub fn take_ended(&mut self) -> Option<Ended> {
        self.ended.take()
    }

    /// Whether everything that was applied found room.
    pub const fn is_whole(&self) -> bool {
        !self.overflowed
    }

    fn overflow(&mut self) {
        self.cache.set_overflowed();
        if !std::mem::replace(&mut self.overflowed, true) {
            let keys_max = self.settings.keys_max;
            tracing::warn!(
                keys_max,
                "more keys than cache.keys_max; the store is asked for those that do not fit, a bounded number in a second"
            );
        }
    }

    fn principal(&mut self, record: &KeyRecord) -> Principal {
        let entity = self.entity(record.entity_id);
        let grant = self.grant(&record.scopes);
        let api_version = record.api_version.as_deref().and_then(|version| self.api_version(version));
        Principal::new(record, entity, grant, api_version)
    }

    fn entity(&mut self, id: EntityId) -> Arc<PrincipalEntity> {
        Arc::clone(self.entities.entry(id).or_insert_with(|| Arc::new(PrincipalEntity::new(id))))
    }

    fn grant(&mut self, scopes: &ScopeList) -> Arc<Grant> {
        if let Some(grant) = self.grants.get(scopes) {
            return Arc::clone(grant);
        }
        let (set, undeclared) = self.settings.vocabulary.resolve(scopes);
        for scope in undeclared {
            if self.undeclared.insert(scope.to_owned()) {
                tracing::warn!(
                    scope,
                    "a stored key holds a scope that gateway.toml does not declare; it grants nothing"
                );
            }
        }
        let declared = scopes.iter().filter(|scope| self.settings.vocabulary.contains(scope));
        let text = declared.collect::<Vec<_>>().join(" ");
        let header = HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""));
        let grant = Arc::new(Grant { scopes: set, header });
        self.grants.insert(scopes.clone(), Arc::clone(&grant));
        grant
    }

    fn api_version(&mut self, version: &str) -> Option<Arc<HeaderValue>> {
        if let Some(header) = self.versions.get(version) {
            return Some(Arc::clone(header));
        }
        let header = Arc::new(HeaderValue::from_str(version).ok()?);
        self.versions.insert(version.to_owned(), Arc::clone(&header));
        Some(header)
    }
}
