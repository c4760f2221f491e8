//! Keys and calls for the tests of this module.

use crate::clock::Timestamp;
use crate::key::{Digest, EntityId, KeyId, KeyRecord, Mode, ScopeList};
use crate::net::Networks;
use crate::store::Use;
use crate::ulid::Ulid;

/// Whose keys these are.
pub const ENTITY: EntityId = EntityId::from_bits(7);

/// So many seconds after the epoch.
pub fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(second * 1_000_000)
}

/// A key that nothing was done with since it was made.
pub fn key(number: u128, created_at: Timestamp) -> KeyRecord {
    KeyRecord {
        id: KeyId::new(Ulid::from_bits(number)),
        version: 0,
        digest: Digest::of(&number.to_be_bytes()),
        entity_id: ENTITY,
        name: "key".into(),
        mode: Mode::Live,
        scopes: ScopeList::parse("orders:read"),
        allowlist: Networks::default(),
        tier: "standard".into(),
        api_version: None,
        last4: "abcd".into(),
        imported: false,
        created_at,
        expires_at: None,
        revoked_at: None,
        rotated_to: None,
        rotated_from: None,
        until_quiet: None,
    }
}

/// A refused call that began and ended then, the first record of this gateway's first journal.
pub fn call(gateway: &str, at: Timestamp) -> Use {
    Use {
        at,
        ended_at: at,
        gateway: gateway.into(),
        journal: format!("{gateway}/0"),
        seq: 1,
        client_ip: None,
        method: "GET".into(),
        route: None,
        allowed: false,
        reason: None,
    }
}
