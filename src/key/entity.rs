//! Entities: the ERP's tenants. A key belongs to exactly one.

use crate::clock::Timestamp;
use std::fmt;
use uuid::Uuid;

/// An entity's UUID. In a request's path it is compared as its lower-case text (contract, section 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntityId(Uuid);

/// An entity as stored. Deleting one leaves the record as a stub, because a deletion is final.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntityRecord {
    pub id: EntityId,
    /// The `seq` of the record's last change; 0 before the store has assigned one.
    pub version: u64,
    /// The short code inside the entity's keys: `[a-z0-9]{2,16}`, unique among live entities.
    pub code: String,
    pub name: String,
    pub created_at: Timestamp,
    pub deleted_at: Option<Timestamp>,
}

/// Whether `code` is a valid short code: `[a-z0-9]{2,16}`.
pub fn is_code(code: &str) -> bool {
    (2..=16).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

// === impl EntityId ===

impl EntityId {
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    pub const fn from_bits(bits: u128) -> Self {
        Self(Uuid::from_u128(bits))
    }

    pub const fn to_bits(self) -> u128 {
        self.0.as_u128()
    }

    /// Reads a UUID in its hyphenated form, either case.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 36).then(|| Uuid::try_parse(text).ok().map(Self)).flatten()
    }
}

impl fmt::Display for EntityId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hyphenated(), f)
    }
}
