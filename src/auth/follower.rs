//! The follower: the one writer of the key cache. It loads the whole set, then applies the change log as it grows.

use super::Settings;
use super::cache::KeyCache;
use crate::clock::{Clock, Moment};
use crate::key::principal::{Grant, PrincipalEntity};
use crate::key::{Digest, EntityId, EntityRecord, KeyRecord, Principal, ScopeList};
use crate::store::{Change, Changes, Feed, Position, Record, StoreError};
use http::HeaderValue;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Records read at a time during a load.
const PAGE: usize = 4096;
/// Log entries read at a time.
const ENTRIES: usize = 500;

/// Keeps one [`KeyCache`] true. Owned by one thread.
pub struct Follower {
    cache: Arc<KeyCache>,
    changes: Box<dyn Changes>,
    settings: Settings,
    clock: Clock,
    position: Position,
    generation: u64,
    entities: HashMap<EntityId, Arc<PrincipalEntity>>,
    grants: HashMap<ScopeList, Arc<Grant>>,
    versions: HashMap<String, Arc<HeaderValue>>,
    /// What was revoked, by digest. Beside the cache, because moka may evict: revoked is final (protocols I5).
    tombstones: HashSet<Digest>,
    undeclared: HashSet<String>,
}

/// What one turn of the follower found.
#[derive(Debug)]
pub enum Turn {
    /// Nothing new, or everything new has been applied: the entries, for the journal.
    CaughtUp(Vec<Change>),
    /// There is more; take another turn at once.
    Behind(Vec<Change>),
    /// The log does not hold our position. Nothing was applied; unknown keys are answered 503 from now on.
    Diverged,
}

// === impl Follower ===

impl Follower {
    pub fn new(cache: Arc<KeyCache>, changes: Box<dyn Changes>, settings: Settings, clock: Clock) -> Self {
        Self {
            cache,
            changes,
            settings,
            clock,
            position: Position::default(),
            generation: 0,
            entities: HashMap::new(),
            grants: HashMap::new(),
            versions: HashMap::new(),
            tombstones: HashSet::new(),
            undeclared: HashSet::new(),
        }
    }

    /// Loads the whole set, page by page in the order of versions, and stands at the log's head from before the load:
    /// what changed meanwhile comes again through the log, and versions sort it out.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read; what was loaded so far stays, the cache is not complete.
    pub fn load(&mut self) -> Result<(), StoreError> {
        self.cache.set_incomplete();
        let head = self.changes.head()?;
        let mut after = 0;
        loop {
            let page = self.changes.page(after, PAGE)?;
            let Some(last) = page.last() else { break };
            after = last.version();
            page.iter().for_each(|record| self.apply(record));
        }
        self.position = head;
        while let Turn::Behind(_) = self.turn()? {}
        self.complete();
        Ok(())
    }

    /// Reads the log once and applies what is new.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be asked: the right to serve is not renewed.
    pub fn turn(&mut self) -> Result<Turn, StoreError> {
        let sent = self.clock.moment();
        let (head, entries) = match self.changes.poll(self.position, ENTRIES)? {
            Feed::Entries { head, entries } => (head, entries),
            Feed::Diverged { .. } => {
                self.cache.set_incomplete();
                return Ok(Turn::Diverged);
            }
        };
        for change in &entries {
            self.apply(&change.after);
            self.position = Position { seq: change.seq, token: change.token };
        }
        Ok(self.conclude(head, entries, sent))
    }

    fn conclude(&self, head: Position, entries: Vec<Change>, sent: Moment) -> Turn {
        if self.position.seq < head.seq {
            return Turn::Behind(entries);
        }
        self.cache.mark_caught_up(sent);
        Turn::CaughtUp(entries)
    }

    /// Declares the cache complete, unless the set has outgrown it.
    fn complete(&mut self) {
        self.generation += 1;
        if self.cache.records() <= self.settings.keys_max {
            self.cache.set_complete(self.generation);
        } else {
            tracing::error!(
                keys_max = self.settings.keys_max,
                "more keys than cache.keys_max; keys that did not fit are answered 503"
            );
        }
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Key(key) => self.apply_key(key),
            Record::Entity(entity) => self.apply_entity(entity),
        }
    }

    fn apply_entity(&mut self, record: &EntityRecord) {
        let entity = self.entity(record.id);
        if record.deleted_at.is_some() {
            entity.delete();
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
        if known.is_none() && self.cache.records() >= self.settings.keys_max {
            self.cache.set_incomplete();
            return;
        }
        if revoked {
            self.tombstones.insert(record.digest);
        }
        if record.imported {
            self.cache.note_imported();
        }
        let principal = self.principal(record);
        if revoked {
            principal.end();
        }
        self.cache.publish(record.digest, Arc::new(principal), known.as_deref());
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
