//! Applies records to the key cache: versions, tombstones, and the parts that many keys share (protocols I5, I6).

use super::Settings;
use super::cache::KeyCache;
use crate::key::principal::{Grant, PrincipalEntity};
use crate::key::{Digest, EntityId, EntityRecord, KeyRecord, Principal, ScopeList};
use crate::store::Record;
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
    /// What was revoked, by digest. Beside the cache, because moka may evict: revoked is final (protocols I5).
    tombstones: HashSet<Digest>,
    undeclared: HashSet<String>,
    /// Something that was in force is not any more: what it let through is to be judged again.
    ended: bool,
    /// A key was left out because there was no room: a miss proves nothing any more.
    overflowed: bool,
}

// === impl Applier ===

impl Applier {
    pub fn new(cache: Arc<KeyCache>, settings: Settings) -> Self {
        Self {
            cache,
            settings,
            entities: HashMap::new(),
            grants: HashMap::new(),
            versions: HashMap::new(),
            tombstones: HashSet::new(),
            undeclared: HashSet::new(),
            ended: false,
            overflowed: false,
        }
    }

    /// Applies one record, from a page or from the log.
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Key(key) => self.apply_key(key),
            Record::Entity(entity) => self.apply_entity(entity),
        }
    }

    fn apply_entity(&mut self, record: &EntityRecord) {
        let is_known = self.entities.contains_key(&record.id);
        let entity = self.entity(record.id);
        if record.deleted_at.is_some() {
            entity.delete();
            self.ended |= is_known;
        }
    }

    /// Applies a key's record if its version is higher than what is known; a revoked one whatever its version (I5).
    fn apply_key(&mut self, record: &KeyRecord) {
        let known = self.cache.peek(&record.digest);
        let revoked = record.revoked_at.is_some();
        let outdated = known.as_ref().is_some_and(|known| known.version >= record.version);
        if !revoked && (outdated || self.tombstones.contains(&record.digest)) {
            return;
        }
        if revoked {
            self.tombstones.insert(record.digest);
        }
        if known.is_none() && self.cache.records() >= self.settings.keys_max {
            self.overflow();
            return;
        }
        if record.imported {
            self.cache.note_imported();
        }
        let principal = self.principal(record);
        if revoked {
            principal.end();
        }
        self.cache.publish(record.digest, Arc::new(principal), known.as_deref());
        self.ended |= known.is_some();
    }

    /// Whether anything has ended since this was last asked.
    pub const fn take_ended(&mut self) -> bool {
        std::mem::replace(&mut self.ended, false)
    }

    /// Whether everything that was applied found room.
    pub const fn is_whole(&self) -> bool {
        !self.overflowed
    }

    fn overflow(&mut self) {
        self.cache.set_incomplete();
        if !std::mem::replace(&mut self.overflowed, true) {
            let keys_max = self.settings.keys_max;
            tracing::error!(keys_max, "more keys than cache.keys_max; keys that did not fit are answered 503");
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
