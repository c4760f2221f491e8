//! The principal: who a request acts as, once its credential has been verified.

use super::{EntityId, KeyId, KeyRecord, Mode, ScopeSet};
use crate::clock::Timestamp;
use crate::net::Networks;
use crate::sync::AtomicBool;
use http::HeaderValue;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What policy and forwarding need to know of a key, in the form they need it. A gateway holds one for each key, so
/// whatever many keys have in common is shared behind an `Arc`. Immutable but for its state word.
#[derive(Debug)]
pub struct Principal {
    pub id: KeyId,
    /// Its record's version, which only the one writer looks at.
    version: AtomicU64,
    pub name: Box<str>,
    pub mode: Mode,
    /// `None` means any address.
    pub allowlist: Option<Box<Networks>>,
    pub expires_at: Option<Timestamp>,
    pub entity: Arc<PrincipalEntity>,
    pub grant: Arc<Grant>,
    pub api_version: Option<Arc<HeaderValue>>,
    /// Set once, when the key is revoked or its record replaced: whoever still holds this entry must look again.
    ended: AtomicBool,
}

/// The entity's part of a principal, shared by all its keys.
#[derive(Debug)]
pub struct PrincipalEntity {
    /// The UUID's lower-case text, compared with the path and sent as `X-Entity-Id`.
    pub id: Box<str>,
    deleted: AtomicBool,
}

/// What a key may do, shared by all keys with the same scopes.
#[derive(Debug)]
pub struct Grant {
    pub scopes: ScopeSet,
    /// Sorted and separated by spaces, as sent in `X-Key-Scopes`.
    pub header: HeaderValue,
}

// === impl Principal ===

impl Principal {
    /// Builds the principal of `record` from the parts it shares with others.
    pub fn new(
        record: &KeyRecord,
        entity: Arc<PrincipalEntity>,
        grant: Arc<Grant>,
        api_version: Option<Arc<HeaderValue>>,
    ) -> Self {
        Self {
            id: record.id,
            version: AtomicU64::new(record.version),
            name: record.name.as_str().into(),
            mode: record.mode,
            allowlist: (!record.allowlist.is_empty()).then(|| Box::new(record.allowlist.clone())),
            expires_at: record.expires_at,
            entity,
            grant,
            api_version,
            ended: AtomicBool::new(false),
        }
    }

    /// Whether this entry still says what the key is: not revoked, not replaced, its entity not deleted.
    pub fn is_live(&self) -> bool {
        !self.ended.load(Ordering::Acquire) && !self.entity.is_deleted()
    }

    /// The version of its record.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// What was changed after `seq` is not in the store's history: whatever that has instead is newer. Only the one writer calls
    /// this.
    pub fn lower(&self, seq: u64) {
        self.version.fetch_min(seq, Ordering::Relaxed);
    }

    /// Ends this entry for good. Only the one writer that applies changes calls this.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

// === impl PrincipalEntity ===

impl PrincipalEntity {
    pub fn new(id: EntityId) -> Self {
        Self { id: id.to_string().into(), deleted: AtomicBool::new(false) }
    }

    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }

    /// Ends every key of the entity at once, for good.
    pub fn delete(&self) {
        self.deleted.store(true, Ordering::Release);
    }
}
