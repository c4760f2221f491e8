//! The end of a key: rotation with an overlap, and revocation.

use super::grant::invalid;
use super::keys::Created;
use super::{Manage, ManageError};
use crate::clock::Timestamp;
use crate::key::{KeyId, KeyRecord, KeyState, Token};
use crate::store::{Action, Record, Write};
use std::time::Duration;

/// How long a rotated key goes on working.
#[derive(Clone, Copy, Debug)]
pub struct Overlap(pub Duration);

/// What a revocation found.
#[derive(Debug)]
pub enum Revoked {
    Now(KeyRecord),
    /// It had been revoked before; nothing was changed.
    Before(KeyRecord),
}

impl Default for Overlap {
    fn default() -> Self {
        Self(Duration::from_secs(24 * 3600))
    }
}

impl Manage<'_> {
    /// Makes a successor with everything the old key has, and ends the old key after `overlap`, never later than its own
    /// expiry. The successor gets the old key's lifetime, counted from now.
    ///
    /// # Errors
    /// [`ManageError::Invalid`] for a key that has ended, was rotated before or was imported without an entity.
    pub fn rotate_key(&self, id: KeyId, overlap: Overlap) -> Result<(Created, KeyRecord), ManageError> {
        self.retry(|| {
            let now = self.clock.now();
            let old = self.key(id)?;
            check_in_force(&old, now)?;
            if let Some(successor) = old.rotated_to {
                return Err(invalid(&format!("{id} was rotated already; its successor is {successor}")));
            }
            let code = self.code_of(&old)?;
            let token = Token::generate(&self.settings.prefix, old.mode, &code)?;
            let successor = successor(&old, self.new_id()?, &token, now);
            let ended = ended(&old, successor.id, now, overlap);
            let (successor, ended) = self.write_rotation(successor, ended, old.version)?;
            let warnings = self.settings.warnings(&successor.scopes, &successor.allowlist);
            Ok((Created { record: successor, text: token.text, warnings }, ended))
        })
    }

    fn code_of(&self, key: &KeyRecord) -> Result<String, ManageError> {
        let entity = self.store.entity(key.entity_id)?.filter(|entity| entity.deleted_at.is_none());
        entity.map(|entity| entity.code).ok_or_else(|| ManageError::NotFound(format!("entity {}", key.entity_id)))
    }

    fn write_rotation(
        &self,
        mut successor: KeyRecord,
        mut ended: KeyRecord,
        version: u64,
    ) -> Result<(KeyRecord, KeyRecord), ManageError> {
        let created = Write { action: Action::KeyCreated, expected: None, record: Record::Key(successor.clone()) };
        let rotated = Write { action: Action::KeyRotated, expected: Some(version), record: Record::Key(ended.clone()) };
        if let [first, second] = self.apply(vec![created, rotated])?.as_slice() {
            (successor.version, ended.version) = (*first, *second);
        }
        Ok((successor, ended))
    }

    /// Ends a key, at once and for good.
    ///
    /// # Errors
    /// [`ManageError::NotFound`], or the store's. A key that was revoked before is not an error.
    pub fn revoke_key(&self, id: KeyId) -> Result<Revoked, ManageError> {
        self.retry(|| {
            let mut record = self.key(id)?;
            if record.revoked_at.is_some() {
                return Ok(Revoked::Before(record));
            }
            let version = record.version;
            record.revoked_at = Some(self.clock.now());
            self.replace(record, version, Action::KeyRevoked).map(Revoked::Now)
        })
    }
}

fn successor(old: &KeyRecord, id: KeyId, token: &Token, now: Timestamp) -> KeyRecord {
    KeyRecord {
        id,
        version: 0,
        digest: token.digest,
        last4: token.last4.clone(),
        imported: false,
        created_at: now,
        expires_at: old.lifetime().map(|lifetime| now.plus(lifetime)),
        rotated_from: Some(old.id),
        rotated_to: None,
        ..old.clone()
    }
}

fn ended(old: &KeyRecord, successor: KeyId, now: Timestamp, overlap: Overlap) -> KeyRecord {
    let end = now.plus(overlap.0);
    KeyRecord {
        rotated_to: Some(successor),
        expires_at: Some(old.expires_at.map_or(end, |expiry| expiry.min(end))),
        ..old.clone()
    }
}

/// Only a key that still works can be changed.
pub(super) fn check_in_force(key: &KeyRecord, now: Timestamp) -> Result<(), ManageError> {
    match key.state(now) {
        KeyState::Active | KeyState::Expiring => Ok(()),
        KeyState::Expired => Err(invalid(&format!("{} has expired; make a new key", key.id))),
        KeyState::Revoked => Err(invalid(&format!("{} was revoked, which is final; make a new key", key.id))),
    }
}
