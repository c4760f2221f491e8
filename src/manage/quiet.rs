//! Rotation until quiet: the old key ends when nobody has used it for a while, on any gateway.

use super::coverage::{self, Coverage};
use crate::clock::{Clock, Timestamp};
use crate::key::{Digest, KeyId, KeyRecord, KeyState};
use crate::store::{Action, Conflict, KeyStore, LastUses, Mutation, OperationId, Record, StoreError, Write};

/// Ends the keys that are quiet now, and gives their ids. Called every few seconds by every gateway: which of them is first does
/// not matter, since a key is ended by an ordinary change, for the version that was looked at.
///
/// # Errors
/// The store's; what was not ended is looked at again the next time.
pub fn step(store: &dyn KeyStore, clock: &Clock, gateway: &str) -> Result<Vec<KeyId>, StoreError> {
    let keys = store.until_quiet()?;
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    // Before the uses: what is reported meanwhile is known beyond that.
    let fleet = store.fleet()?;
    let now = clock.now();
    let coverage = Coverage::of(&store.accounts()?, &fleet, now);
    let ids: Vec<_> = keys.iter().map(|key| key.id).collect();
    let mut ended = Vec::new();
    for (key, uses) in keys.into_iter().zip(store.last_uses(&ids)?) {
        let Some(successor) = key.rotated_to.map(|id| store.key(id)).transpose()?.flatten() else { continue };
        if is_quiet(&key, successor.created_at, &uses, &coverage, now) && end(store, &key, now, gateway)? {
            ended.push(key.id);
        }
    }
    Ok(ended)
}

/// Whether nobody has used a key, which was rotated at `rotated_at`, for as long as its end waits for, counted from its rotation
/// at the earliest, and every call of that time is known. What is not known is waited for.
pub fn is_quiet(key: &KeyRecord, rotated_at: Timestamp, uses: &LastUses, coverage: &Coverage, now: Timestamp) -> bool {
    let Some(quiet) = key.until_quiet.filter(|_| key.state(now) == KeyState::Expiring) else { return false };
    let begin = coverage.reported_through().minus(quiet);
    let is_used = coverage::last(uses).is_some_and(|call| call.ended_at > begin);
    begin >= rotated_at && coverage.is_whole(begin) && !is_used
}

/// Revokes a key; false when somebody has changed it meanwhile.
fn end(store: &dyn KeyStore, key: &KeyRecord, now: Timestamp, gateway: &str) -> Result<bool, StoreError> {
    let record = Record::Key(KeyRecord { revoked_at: Some(now), ..key.clone() });
    let writes = vec![Write { action: Action::KeyRevoked, expected: Some(key.version), record }];
    let operation = operation(key, gateway);
    match store.apply(&Mutation { operation, actor: format!("gateway:{gateway}"), at: now, writes }) {
        Ok(_) => Ok(true),
        Err(StoreError::Conflict(Conflict::Version | Conflict::Final)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The same for every attempt of a gateway to end this version of a key: an answer that was lost changes nothing.
fn operation(key: &KeyRecord, gateway: &str) -> OperationId {
    let digest = Digest::of(format!("until quiet {} {} {gateway}", key.id, key.version).as_bytes());
    let half = digest.as_bytes().first_chunk().copied().unwrap_or_default();
    OperationId(u128::from_be_bytes(half))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::EntityRecord;
    use crate::manage::samples::{ENTITY, at, call, key};
    use crate::store::memory::MemoryStore;
    use crate::store::{Account, Feed, JournalAccount, Member, Position};
    use std::time::Duration;

    const QUIET: i64 = 100;
    const ROTATED: i64 = 1000;

    /// A store with a key that was rotated, and its successor.
    fn rotated() -> (MemoryStore, KeyRecord) {
        let store = MemoryStore::default();
        let entity = EntityRecord {
            id: ENTITY,
            version: 0,
            code: "acme".into(),
            name: "acme".into(),
            created_at: at(0),
            deleted_at: None,
        };
        let successor = key(2, at(ROTATED));
        let old = KeyRecord {
            rotated_to: Some(successor.id),
            until_quiet: Some(Duration::from_secs(QUIET.unsigned_abs())),
            expires_at: Some(at(10_000)),
            ..key(1, at(10))
        };
        let records = [Record::Entity(entity), Record::Key(old.clone()), Record::Key(successor)];
        let write = |record| Write { action: Action::KeyCreated, expected: None, record };
        let writes = records.into_iter().map(write).collect();
        store.apply(&Mutation { operation: OperationId(1), actor: "test".into(), at: at(0), writes }).unwrap();
        (store, old)
    }

    /// A gateway reports its journal up to `through`, with a call with the old key that ended at `used`.
    fn report(store: &MemoryStore, gateway: &str, through: i64, used: Option<i64>, hole: i64) {
        let journal = JournalAccount {
            seq: 1,
            through: at(through),
            whole_since: at(hole),
            ..JournalAccount::new(format!("{gateway}/0"), at(0))
        };
        let mut account = Account::new(journal);
        used.iter().for_each(|ended| account.add(key(1, at(0)).id, &call(gateway, at(*ended))));
        store.account(&account).unwrap();
    }

    fn steps(store: &MemoryStore, now: i64) -> usize {
        step(store, &Clock::manual(at(now)).0, "edge-1").unwrap().len()
    }

    #[test]
    fn a_key_ends_once_it_was_quiet_for_its_time_on_every_gateway() {
        let (store, old) = rotated();
        // As long as only one of two has reported.
        let mut second = store.changes().unwrap();
        second.tell(&Member { gateway: "edge-2".into(), ..Member::default() }).unwrap();
        report(&store, "edge-1", 2000, Some(ROTATED + 10), 0);
        assert_eq!(steps(&store, 2000), 0);
        // A refused call there counts, and so does time that is not reported.
        report(&store, "edge-2", 1950, Some(1900), 0);
        assert_eq!(steps(&store, 2000), 0);
        report(&store, "edge-2", 1995, None, 0);
        assert_eq!(steps(&store, 2000), 0, "quiet for 95 s of which anybody knows");
        report(&store, "edge-1", 2005, None, 0);
        report(&store, "edge-2", 2001, None, 0);
        assert_eq!(steps(&store, 2005), 1);
        let ended = store.key(old.id).unwrap().unwrap();
        assert_eq!((ended.state(at(2005)), ended.revoked_at), (KeyState::Revoked, Some(at(2005))));
        assert_eq!(steps(&store, 2006), 0);
        let Feed::Entries { entries, .. } = store.changes().unwrap().poll(Position::default(), None, 99).unwrap()
        else {
            panic!()
        };
        let change = entries.last().unwrap();
        assert_eq!((change.actor.as_str(), change.action), ("gateway:edge-1", Action::KeyRevoked));
    }

    #[test]
    fn the_time_begins_with_the_rotation() {
        let (store, _) = rotated();
        report(&store, "edge-1", ROTATED + QUIET - 1, None, 0);
        assert_eq!(steps(&store, ROTATED + QUIET - 1), 0);
        report(&store, "edge-1", ROTATED + QUIET, None, 0);
        assert_eq!(steps(&store, ROTATED + QUIET), 1);
    }

    #[test]
    fn what_is_not_known_is_waited_for() {
        let (store, _) = rotated();
        report(&store, "edge-1", 2000, None, 1950);
        assert_eq!(steps(&store, 2000), 0, "a hole in the time that counts");
        assert_eq!(steps(&store, 2100), 0, "nothing reported for a while");
        report(&store, "edge-1", 2100, None, 0);
        assert_eq!(steps(&store, 2100), 1);
        assert_eq!(steps(&MemoryStore::default(), 2100), 0);
    }

    #[test]
    fn a_key_that_has_expired_is_left_as_it_is() {
        let (store, _) = rotated();
        report(&store, "edge-1", 10_000, None, 0);
        assert_eq!(steps(&store, 10_000), 0);
    }
}
