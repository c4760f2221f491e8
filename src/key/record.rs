//! A key's record, as every store keeps it. No secret is in it.

use super::{Digest, EntityId, ScopeList};
use crate::clock::Timestamp;
use crate::net::Networks;
use crate::ulid::Ulid;
use std::fmt;
use std::time::Duration;

/// A key's public name: `key_` and a ULID. Safe to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(Ulid);

/// Which of the ERP's two worlds a key reaches (contract, section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    Test,
    Live,
}

/// A key as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    pub id: KeyId,
    /// The `seq` of the record's last change; 0 before the store has assigned one.
    pub version: u64,
    pub digest: Digest,
    pub entity_id: EntityId,
    pub name: String,
    pub mode: Mode,
    pub scopes: ScopeList,
    /// Where the key may be used from; empty means anywhere.
    pub allowlist: Networks,
    /// The name of its rate-limit tier.
    pub tier: String,
    /// The API version current when it was made, added to requests that name none.
    pub api_version: Option<String>,
    /// The last four characters of the key, for people; empty for an imported key.
    pub last4: String,
    /// Made by another system and known by its digest alone.
    pub imported: bool,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    /// The successor, once rotated.
    pub rotated_to: Option<KeyId>,
    /// The predecessor, when made by a rotation.
    pub rotated_from: Option<KeyId>,
    /// Once rotated: it ends when it was not used for so long, if that comes before its expiry. Whole seconds.
    pub until_quiet: Option<Duration>,
}

/// Where a key is in its life (contract, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyState {
    Active,
    /// Rotated, inside its overlap.
    Expiring,
    Expired,
    Revoked,
}

// === impl KeyId ===

impl KeyId {
    /// The length of an id's text.
    pub const TEXT_LEN: usize = 4 + crate::ulid::TEXT_LEN;

    pub const fn new(ulid: Ulid) -> Self {
        Self(ulid)
    }

    pub const fn ulid(self) -> Ulid {
        self.0
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.strip_prefix("key_").and_then(Ulid::parse).map(Self)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key_{}", self.0)
    }
}

// === impl Mode ===

impl Mode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Live => "live",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "test" => Some(Self::Test),
            "live" => Some(Self::Live),
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl KeyRecord ===

impl KeyRecord {
    pub fn state(&self, now: Timestamp) -> KeyState {
        if self.revoked_at.is_some() {
            KeyState::Revoked
        } else if self.expires_at.is_some_and(|end| end <= now) {
            KeyState::Expired
        } else if self.rotated_to.is_some() {
            KeyState::Expiring
        } else {
            KeyState::Active
        }
    }

    /// How long the key was made for; `None` when it has no end.
    pub fn lifetime(&self) -> Option<Duration> {
        self.expires_at.map(|end| end.since(self.created_at))
    }
}

// === impl KeyState ===

impl KeyState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expiring => "expiring",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}
