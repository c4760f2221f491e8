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
pub struct Overlap {
    pub time: Duration,
    /// It ends sooner when it was not used for so long on any gateway, counted from the rotation at the earliest.
    pub until_quiet: Option<Duration>,
}

/// What a revocation found.
#[derive(Debug)]
pub enum Revoked {
    Now(KeyRecord),
    /// It had been revoked before; nothing was changed.
    Before(KeyRecord),
}

impl Default for Overlap {
    fn default() -> Self {
        Self { time: Duration::from_secs(24 * 3600), until_quiet: None }
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
            if overlap.until_quiet.is_some() {
                self.check_fleet_reads_quiet()?;
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

    /// A gateway of an older version may not read such a record, and would follow the store no further.
    fn check_fleet_reads_quiet(&self) -> Result<(), ManageError> {
        let members = self.store.fleet()?.members;
        let older = members.iter().find(|member| version(&member.version) < version(env!("CARGO_PKG_VERSION")));
        older.map_or(Ok(()), |member| {
            let (gateway, version) = (&member.gateway, &member.version);
            Err(invalid(&format!(
                "{gateway} runs keygate {version}, which may not know --until-quiet; update it first"
            )))
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
        until_quiet: None,
        ..old.clone()
    }
}

fn ended(old: &KeyRecord, successor: KeyId, now: Timestamp, overlap: Overlap) -> KeyRecord {
    let end = now.plus(overlap.time);
    KeyRecord {
        rotated_to: Some(successor),
        until_quiet: overlap.until_quiet.map(whole_seconds),
        expires_at: Some(old.expires_at.map_or(end, |expiry| expiry.min(end))),
        ..old.clone()
    }
}

/// As records have it, and never less than what was asked for.
const fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs().saturating_add((time.subsec_nanos() > 0) as u64))
}

/// A version's numbers, for comparing.
fn version(text: &str) -> Vec<u64> {
    text.split(['.', '-', '+']).map_while(|number| number.parse().ok()).collect()
}

/// Only a key that still works can be changed.
pub(super) fn check_in_force(key: &KeyRecord, now: Timestamp) -> Result<(), ManageError> {
    match key.state(now) {
        KeyState::Active | KeyState::Expiring => Ok(()),
        KeyState::Expired => Err(invalid(&format!("{} has expired; make a new key", key.id))),
        KeyState::Revoked => Err(invalid(&format!("{} was revoked, which is final; make a new key", key.id))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::key::{Prefix, Vocabulary};
    use crate::manage::{NewEntity, NewKey, Settings};
    use crate::store::memory::MemoryStore;
    use crate::store::{KeyStore, Member};
    use std::collections::BTreeMap;

    #[test]
    fn no_rotation_until_quiet_while_a_gateway_runs_that_may_not_read_it() {
        let (store, clock) = (MemoryStore::default(), Clock::system());
        let settings = Settings {
            prefix: Prefix::new("ark").unwrap(),
            vocabulary: Vocabulary::new([("orders:read".to_owned(), false)]).unwrap(),
            presets: BTreeMap::new(),
            tiers: vec!["test".to_owned()],
            api_version: None,
        };
        let manage = Manage::new(&store, &settings, &clock, "test".into());
        manage.create_entity(NewEntity { code: "acme".into(), ..NewEntity::default() }).unwrap();
        let scopes = vec!["orders:read".to_owned()];
        let new = NewKey { entity: "acme".into(), name: "key".into(), scopes, ..NewKey::default() };
        let key = manage.create_key(new).unwrap().record.id;
        let mut gateway = store.changes().unwrap();
        let member = |version: &str| Member { gateway: "edge-1".into(), version: version.into(), ..Member::default() };
        gateway.tell(&member("0.0.9")).unwrap();
        let until_quiet = Some(Duration::from_millis(1500));
        let refused = manage.rotate_key(key, Overlap { until_quiet, ..Overlap::default() }).unwrap_err();
        assert!(refused.to_string().starts_with("edge-1 runs keygate 0.0.9"), "{refused}");
        gateway.tell(&member(env!("CARGO_PKG_VERSION"))).unwrap();
        let (created, old) = manage.rotate_key(key, Overlap { until_quiet, ..Overlap::default() }).unwrap();
        assert_eq!((old.until_quiet, created.record.until_quiet), (Some(Duration::from_secs(2)), None));
    }
}
