//! Which keys deserve a second look: unused, powerful, old, or still in use though they should not be.

use super::coverage::{self, Coverage};
use super::{Manage, ManageError, Settings};
use crate::clock::Timestamp;
use crate::key::{EntityId, KeyId, KeyRecord, KeyState};
use crate::store::{LastUses, Use};
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// What is wrong with a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// No call with it in all its life, and every call is known.
    NeverUsed,
    /// No call with it for longer than was asked for.
    Idle {
        last: Option<Box<Use>>,
    },
    /// No call with it is known, but not every call is.
    Unknown {
        last: Option<Box<Use>>,
        percent: u8,
    },
    NoExpiry,
    /// Works from any address, though it holds elevated scopes or may write everything.
    AnyAddress,
    /// Older than [`OLD`].
    Old,
    /// Holds scopes of a migration, which should be over some day.
    Migration,
    /// Somebody has not moved to its successor.
    OldKeyInUse {
        successor: KeyId,
        last: Box<Use>,
    },
}

/// A key and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub key: KeyRecord,
    pub finding: Finding,
}

/// All findings, in the order of the keys' making, and how much is known.
#[derive(Clone, Debug)]
pub struct KeyReport {
    pub coverage: Coverage,
    pub found: Vec<Found>,
}

/// A key that is older should be rotated.
pub const OLD: Duration = Duration::from_secs(90 * 86_400);
/// The resource whose scopes are made for moving a company's data once.
const MIGRATION: &str = "migration:";
/// Keys whose last uses are read at a time.
const PAGE: usize = 500;

// === impl Manage ===

impl Manage<'_> {
    /// What is known of all calls now.
    ///
    /// # Errors
    /// The store's.
    pub fn coverage(&self) -> Result<Coverage, ManageError> {
        // The fleet first: a gateway that joins in between has reported by then or is not asked for.
        let fleet = self.store.fleet()?;
        Ok(Coverage::of(&self.store.accounts()?, &fleet, self.clock.now()))
    }

    /// What deserves a second look in all keys that have not ended, or in those of one entity. A key is idle when it was not
    /// used for `idle`.
    ///
    /// # Errors
    /// The store's.
    pub fn key_report(&self, entity: Option<EntityId>, idle: Duration) -> Result<KeyReport, ManageError> {
        let now = self.clock.now();
        // Before the uses: what is reported meanwhile is known beyond that.
        let coverage = self.coverage()?;
        let live: HashSet<_> = self.entities()?.into_iter().map(|entity| entity.id).collect();
        let mut keys = self.keys(entity)?;
        keys.retain(|key| live.contains(&key.entity_id));
        let made: HashMap<_, _> = keys.iter().map(|key| (key.id, key.created_at)).collect();
        let examined = Examined { settings: self.settings, coverage: &coverage, now, idle };
        let mut found = Vec::new();
        for page in keys.chunks(PAGE) {
            let ids: Vec<_> = page.iter().map(|key| key.id).collect();
            for (key, uses) in page.iter().zip(self.store.last_uses(&ids)?) {
                let rotated_at = key.rotated_to.and_then(|successor| made.get(&successor)).copied();
                let findings = examined.findings(key, &uses, rotated_at);
                found.extend(findings.into_iter().map(|finding| Found { key: key.clone(), finding }));
            }
        }
        Ok(KeyReport { coverage, found })
    }
}

/// By what keys are examined.
struct Examined<'a> {
    settings: &'a Settings,
    coverage: &'a Coverage,
    now: Timestamp,
    idle: Duration,
}

// === impl Examined ===

impl Examined<'_> {
    fn findings(&self, key: &KeyRecord, uses: &LastUses, rotated_at: Option<Timestamp>) -> Vec<Finding> {
        let old_key = old_key(key, uses, rotated_at);
        match key.state(self.now) {
            KeyState::Revoked => Vec::new(),
            KeyState::Expired => old_key.into_iter().collect(),
            KeyState::Active | KeyState::Expiring => {
                self.unused(key, uses).into_iter().chain(self.faults(key)).chain(old_key).collect()
            }
        }
    }

    /// Whether nobody uses it.
    fn unused(&self, key: &KeyRecord, uses: &LastUses) -> Option<Finding> {
        let begin = coverage::begin(key, self.now.minus(self.idle));
        let last = coverage::last(uses).cloned().map(Box::new);
        if last.as_ref().is_some_and(|last| last.ended_at >= begin) {
            return None;
        }
        if !self.coverage.is_whole(begin) {
            return Some(Finding::Unknown { last, percent: self.coverage.percent(begin) });
        }
        // It is idle in any case; that it never was used takes knowing all its life.
        let is_never = last.is_none() && self.coverage.is_whole(key.created_at);
        Some(if is_never { Finding::NeverUsed } else { Finding::Idle { last } })
    }

    fn faults(&self, key: &KeyRecord) -> impl Iterator<Item = Finding> {
        let is_powerful = self.settings.is_powerful(&key.scopes);
        let faults = [
            (key.expires_at.is_none(), Finding::NoExpiry),
            (is_powerful && key.allowlist.is_empty(), Finding::AnyAddress),
            (self.now.since(key.created_at) > OLD, Finding::Old),
            (key.scopes.iter().any(|scope| scope.starts_with(MIGRATION)), Finding::Migration),
        ];
        faults.into_iter().filter_map(|(is_so, finding)| is_so.then_some(finding))
    }
}

/// A call with a key after it was rotated.
fn old_key(key: &KeyRecord, uses: &LastUses, rotated_at: Option<Timestamp>) -> Option<Finding> {
    let (successor, rotated_at) = (key.rotated_to?, rotated_at?);
    let last = coverage::last(uses).filter(|last| last.ended_at > rotated_at)?;
    Some(Finding::OldKeyInUse { successor, last: Box::new(last.clone()) })
}

// === impl Finding ===

impl Finding {
    /// Its name in JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::NeverUsed => "never_used",
            Self::Idle { .. } => "idle",
            Self::Unknown { .. } => "unknown",
            Self::NoExpiry => "no_expiry",
            Self::AnyAddress => "any_address",
            Self::Old => "old",
            Self::Migration => "migration",
            Self::OldKeyInUse { .. } => "old_key_in_use",
        }
    }

    /// The call that it rests on.
    pub fn last(&self) -> Option<&Use> {
        match self {
            Self::Idle { last } | Self::Unknown { last, .. } => last.as_deref(),
            Self::OldKeyInUse { last, .. } => Some(last),
            Self::NeverUsed | Self::NoExpiry | Self::AnyAddress | Self::Old | Self::Migration => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Hand};
    use crate::key::{Mode, Prefix, Vocabulary};
    use crate::manage::{NewEntity, NewKey, Overlap, samples};
    use crate::store::memory::MemoryStore;
    use crate::store::{Account, JournalAccount, KeyStore};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    const DAY: Duration = Duration::from_secs(86_400);
    const IDLE: Duration = Duration::from_secs(30 * 86_400);

    /// A store, its clock, and a journal that has been reported since the beginning.
    struct World {
        store: MemoryStore,
        settings: Settings,
        clock: Clock,
        hand: Arc<Hand>,
        journal: JournalAccount,
    }

    impl World {
        fn new() -> Self {
            let names = ["migration:write", "orders:read", "orders:write"];
            let vocabulary = names.map(|name| (name.to_owned(), name.starts_with("migration")));
            let settings = Settings {
                prefix: Prefix::new("ark").unwrap(),
                vocabulary: Vocabulary::new(vocabulary).unwrap(),
                presets: BTreeMap::new(),
                tiers: vec!["standard".to_owned()],
                api_version: None,
            };
            let (clock, hand) = Clock::manual(Timestamp::from_micros(1_700_000_000_000_000));
            let journal = JournalAccount { seq: 1, ..JournalAccount::new("edge-1/0".into(), clock.now()) };
            let world = Self { store: MemoryStore::default(), settings, clock, hand, journal };
            world.manage().create_entity(NewEntity { code: "acme".into(), ..NewEntity::default() }).unwrap();
            world
        }

        fn manage(&self) -> Manage<'_> {
            Manage::new(&self.store, &self.settings, &self.clock, "test".into())
        }

        fn key(&self, scope: &str, expires: Option<Duration>) -> KeyRecord {
            let new = NewKey {
                entity: "acme".into(),
                name: scope.into(),
                mode: Mode::Live,
                scopes: vec![scope.into()],
                expires_at: expires.map(|time| self.clock.now().plus(time)),
                acknowledge_elevated: true,
                ..NewKey::default()
            };
            // Each a moment later, so that ids are in the order of making.
            self.hand.pass(Duration::from_millis(1));
            self.manage().create_key(new).unwrap().record
        }

        fn use_key(&self, key: KeyId) -> Use {
            let call = samples::call("edge-1", self.clock.now());
            let mut account = Account::new(self.journal.clone());
            account.add(key, &call);
            self.store.account(&account).unwrap();
            call
        }

        /// All findings, with everything reported up to now.
        fn found(&self) -> Vec<(KeyId, Finding)> {
            let journal = JournalAccount { through: self.clock.now(), ..self.journal.clone() };
            self.store.account(&Account::new(journal)).unwrap();
            let found = self.manage().key_report(None, IDLE).unwrap().found;
            found.into_iter().map(|found| (found.key.id, found.finding)).collect()
        }
    }

    #[test]
    fn unused_keys_are_told_by_what_is_known_of_them() {
        let world = World::new();
        let [never, once, often] = [(); 3].map(|()| world.key("orders:read", Some(90 * DAY)).id);
        let last = world.use_key(once);
        world.hand.pass(31 * DAY);
        world.use_key(often);
        let idle = Finding::Idle { last: Some(Box::new(last.clone())) };
        assert_eq!(world.found(), [(never, Finding::NeverUsed), (once, idle)]);
        // Nothing is said of keys while a gateway has a hole in its journal.
        let journal = JournalAccount { whole_since: world.clock.now(), ..world.journal.clone() };
        world.store.account(&Account::new(journal)).unwrap();
        let unknown = |last: Option<Use>| Finding::Unknown { last: last.map(Box::new), percent: 0 };
        assert_eq!(world.found(), [(never, unknown(None)), (once, unknown(Some(last.clone())))]);
        // The hole is older than what is asked for now: idle they are, but who knows what was before.
        world.hand.pass(30 * DAY);
        world.use_key(often);
        let idle = |last: Option<Use>| Finding::Idle { last: last.map(Box::new) };
        assert_eq!(world.found(), [(never, idle(None)), (once, idle(Some(last)))]);
    }

    #[test]
    fn powerful_old_and_endless_keys_are_told_and_ended_ones_are_not() {
        let world = World::new();
        let endless = world.key("orders:read", None).id;
        let (writes, moves) =
            (world.key("orders:write", Some(99 * DAY)).id, world.key("migration:write", Some(99 * DAY)).id);
        let revoked = world.key("migration:write", None).id;
        world.manage().revoke_key(revoked).unwrap();
        let use_all = || [endless, writes, moves, revoked].map(|key| world.use_key(key));
        use_all();
        let (any, moving) = (Finding::AnyAddress, Finding::Migration);
        let young = [(endless, Finding::NoExpiry), (writes, any.clone()), (moves, any), (moves, moving)];
        assert_eq!(world.found(), young);
        world.hand.pass(OLD + DAY);
        use_all();
        let old: Vec<_> = world.found().into_iter().filter(|(_, finding)| *finding == Finding::Old).collect();
        assert_eq!(old, [endless, writes, moves].map(|key| (key, Finding::Old)));
        world.hand.pass(9 * DAY);
        use_all();
        assert!(world.found().iter().all(|(key, _)| *key == endless));
    }

    #[test]
    fn who_still_uses_a_key_that_was_rotated_is_told_also_after_its_end() {
        let world = World::new();
        let key = world.key("orders:read", Some(99 * DAY)).id;
        world.use_key(key);
        world.hand.pass(DAY);
        let (created, _) = world.manage().rotate_key(key, Overlap { time: DAY, until_quiet: None }).unwrap();
        let successor = created.record.id;
        world.use_key(successor);
        assert_eq!(world.found(), []);
        world.hand.pass(DAY / 2);
        let told = |last| vec![(key, Finding::OldKeyInUse { successor, last: Box::new(last) })];
        assert_eq!(told(world.use_key(key)), world.found());
        world.hand.pass(DAY);
        assert_eq!(told(world.use_key(key)), world.found());
        world.manage().revoke_key(key).unwrap();
        assert_eq!(world.found(), []);
    }
}
