//! Where key records live: the [`KeyStore`] trait, its ordered change log, and the engines behind it.
//!
//! Every mutation is one atomic step that writes records and appends to the log (`seq` + 1 for each write). A record's
//! version is the `seq` of its last change; keys and entities share one sequence. Calls block: they belong on the
//! control plane or in the CLI, never on a worker.

pub mod account;
pub mod codec;
mod fleet;
pub mod memory;
pub mod redis;
pub mod sqlite;

use crate::clock::Timestamp;
use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use account::{Account, Accounts, JournalAccount, LastUses, Seal, Use};
pub use fleet::{Fleet, FleetId, Held, Member};

/// Which store, from `[store]` in gateway.toml.
#[derive(Clone, Debug)]
pub enum Settings {
    /// `sqlite:<path>`: the embedded default.
    Sqlite { path: PathBuf },
    /// `redis://...`, `rediss://...`: shared by several gateways.
    Redis { url: redis::Url },
    /// Nothing outlives the process; for tests.
    Memory,
}

/// Opens the store, making it when it is not there yet. Redis is not asked yet: a gateway starts without it.
///
/// # Errors
/// [`StoreError`] when it is not ours to use or cannot be asked.
pub fn open(settings: &Settings) -> Result<Arc<dyn KeyStore>, StoreError> {
    Ok(match settings {
        Settings::Sqlite { path } => Arc::new(sqlite::SqliteStore::open(path)?),
        Settings::Redis { url } => Arc::new(redis::RedisStore::new(url)),
        Settings::Memory => Arc::new(memory::MemoryStore::default()),
    })
}

/// Opens a store that must be there already: who only reads or changes keys must not make an empty one in its place.
///
/// # Errors
/// As of [`open`]; [`StoreError::Unavailable`] when there is none.
pub fn open_existing(settings: &Settings) -> Result<Arc<dyn KeyStore>, StoreError> {
    match settings {
        Settings::Sqlite { path } if !path.exists() => Err(StoreError::Unavailable(format!(
            "there is no {}; `keygate entities create` or `keygate serve` makes it",
            path.display()
        ))),
        Settings::Sqlite { .. } | Settings::Redis { .. } | Settings::Memory => open(settings),
    }
}

/// What went wrong in a store, told apart by what a caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Cannot be asked now: locked, full, failing, corrupt. Never to be read as "empty".
    #[error("the key store is not available: {0}")]
    Unavailable(String),
    /// Refused, because what is there is not ours to use: wrong owner, newer schema, not a database.
    #[error("{0}")]
    Refused(String),
    /// The mutation contradicts what the store holds; nothing was written.
    #[error("{0}")]
    Conflict(Conflict),
}

/// Why a mutation was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// The record is not at the version the mutation was made for: read again, decide again.
    #[error("the record was changed meanwhile")]
    Version,
    /// Another key has this digest.
    #[error("a key with this digest exists already: {0}")]
    DigestTaken(KeyId),
    /// Another live entity has this code.
    #[error("the entity code '{0}' is taken")]
    CodeTaken(String),
    /// Another entity, live or deleted, has this id.
    #[error("the entity id {0} is taken")]
    EntityIdTaken(EntityId),
    /// The key's entity does not exist or was deleted.
    #[error("the entity {0} does not exist or was deleted")]
    EntityGone(EntityId),
    /// Revoked and deleted are final (invariant I5).
    #[error("the record was revoked or deleted, which is final")]
    Final,
}

/// Repeating a mutation under the same id gives the first outcome again and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OperationId(pub u128);

/// One atomic step.
#[derive(Clone, Debug)]
pub struct Mutation {
    pub operation: OperationId,
    /// Who asked, such as `cli:root`.
    pub actor: String,
    pub at: Timestamp,
    /// At least one; all are applied, in order, or none.
    pub writes: Vec<Write>,
}

/// One record written by a mutation.
#[derive(Clone, Debug)]
pub struct Write {
    pub action: Action,
    /// The version the record must have now; `None`: it must not exist.
    pub expected: Option<u64>,
    /// The record as it will stand. Its `version` is assigned by the store.
    pub record: Record,
}

/// A key or an entity. Not boxed: a load moves a million of the larger one, and hardly any of the smaller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "nearly all records are keys")]
pub enum Record {
    Key(KeyRecord),
    Entity(EntityRecord),
}

/// What was done to a record: the `action` of its change entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    KeyCreated,
    KeyImported,
    KeyUpdated,
    KeyRotated,
    KeyRevoked,
    EntityCreated,
    EntityDeleted,
}

/// One entry of the ordered log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub seq: u64,
    /// 64 random bits: proves that two logs which hold the same `seq` share a history.
    pub token: u64,
    pub at: Timestamp,
    pub actor: String,
    pub action: Action,
    pub before: Option<Record>,
    pub after: Record,
}

/// How far a follower has read: the last `seq` it has wholly applied and that entry's token. The start is (0, 0).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    pub seq: u64,
    pub token: u64,
}

/// Current records in the order of their versions, and the log's head, as of one moment: what is not among them is told of by
/// the log up to there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    pub head: Position,
    pub records: Vec<Record>,
}

/// The answer to a poll.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Entries after the follower's position, at most the limit asked for, and the log's head.
    Entries { head: Position, entries: Vec<Change> },
    /// The log does not hold the follower's position: it has lost entries, or has gone another way from some point on (FORK of
    /// the protocols).
    Diverged { head: Position },
    /// The store is another fleet's, or none was begun in it (FOREIGN of the protocols).
    Foreign { fleet: Option<FleetId> },
}

/// How many replicas of a store hold what was written last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copies {
    /// At least so many do: no more than the first is waited for.
    pub held: u64,
    pub replicas: u64,
}

/// Which keys to list.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    pub entity: Option<EntityId>,
}

/// A store of key and entity records with an ordered change log. Passes `tests/store_contract.rs`.
pub trait KeyStore: Send + Sync {
    /// Applies one mutation and returns the `seq` of each of its writes. The first one in a store begins a fleet, unless one is
    /// expected.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a write contradicts what is stored, [`StoreError::Refused`] when the store is not the
    /// [expected](Self::expect_fleet) fleet's: nothing was written then.
    fn apply(&self, mutation: &Mutation) -> Result<Vec<u64>, StoreError>;

    /// Who else holds the latest change of this process, in an engine of which a replica may take over: what none holds is lost
    /// then. None in any other engine, and when it cannot be told.
    fn copies(&self) -> Option<Copies> {
        None
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError>;
    fn key_by_digest(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError>;
    /// Keys in the order of their ids, hence of creation, after `after`; at most `limit`.
    fn keys(&self, filter: &KeyFilter, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError>;
    fn entity(&self, id: EntityId) -> Result<Option<EntityRecord>, StoreError>;
    /// The live entity with this code.
    fn entity_by_code(&self, code: &str) -> Result<Option<EntityRecord>, StoreError>;
    /// All entities, deleted ones included, in the order of their codes.
    fn entities(&self) -> Result<Vec<EntityRecord>, StoreError>;

    /// How many keys there are, revoked ones included.
    fn count(&self) -> Result<u64, StoreError>;

    /// Whether the log holds the entry at `position`; the start is always held.
    fn holds(&self, position: Position) -> Result<bool, StoreError>;

    /// The fleet whose store this is; none while nobody has begun one.
    fn fleet_id(&self) -> Result<Option<FleetId>, StoreError>;
    /// Begins a fleet under this id, unless one was begun: gives the one that counts from now on.
    fn begin_fleet(&self, id: FleetId) -> Result<FleetId, StoreError>;
    /// Has [`Self::apply`] and [`Self::account`] refuse to write to any other fleet's store, or to one without: what this process
    /// knows came from that fleet's.
    fn expect_fleet(&self, id: FleetId);
    /// Whether the store is the expected fleet's, if one is expected.
    ///
    /// # Errors
    /// [`StoreError::Refused`], when it is not.
    fn check_fleet(&self) -> Result<(), StoreError>;
    /// Whoever joins must not take this store's word for the whole truth until all gateways had the time to tell what it has
    /// lost (protocols, Settle): another time of settling begins.
    fn note_fork(&self) -> Result<(), StoreError>;
    /// Gives gateways that are held leave to take this store's history for their own. The leave replaces an earlier one.
    fn adopt(&self, held: &[Held]) -> Result<(), StoreError>;
    /// Whether such leave was given to a gateway that is held there.
    fn is_adopted(&self, held: &Held) -> Result<bool, StoreError>;

    /// The gateways that follow this store.
    fn fleet(&self) -> Result<Fleet, StoreError>;
    /// Removes the row of a gateway that is known to be dead; whether there was one.
    fn forget(&self, instance: &str) -> Result<bool, StoreError>;

    /// The keys that end once they are quiet and were not revoked yet, in no order.
    fn until_quiet(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// Takes a gateway's report of its journal: of two things told the greater stays. Written in steps of a bounded size, the
    /// journal last: after an error some of the uses may be stored, and reporting again is harmless.
    ///
    /// # Errors
    /// [`StoreError::Refused`] when the store is not the [expected](Self::expect_fleet) fleet's.
    fn account(&self, account: &Account) -> Result<(), StoreError>;
    /// How far the journals of all gateways are reported.
    fn accounts(&self) -> Result<Accounts, StoreError>;
    /// What each of these keys was last used for, as far as it is reported, in the order asked for.
    fn last_uses(&self, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError>;

    /// Opens a reader of the change log.
    fn changes(&self) -> Result<Box<dyn Changes>, StoreError>;
}

/// A follower's reader of the change log and of the whole set.
pub trait Changes: Send {
    /// The log's head now.
    fn head(&mut self) -> Result<Position, StoreError>;

    /// Entries after `from`, at most `limit`; of this fleet's store alone, if one is given. Cheap when nothing has changed: it is
    /// called every few milliseconds.
    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError>;

    /// The latest positions in the log, in order, at most `limit`: by these a gateway finds out from where on a history that has
    /// lost entries is not its own any more.
    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError>;

    /// Rests until there may be something after `from`, or for the time within which an engine without a bell must look
    /// again. Nothing rests on it but the delay: the next poll tells.
    fn wait(&mut self, from: Position);

    /// Tells the fleet how far this gateway has come. The first call joins: from then on, who waits for a confirmation waits
    /// for this gateway.
    fn tell(&mut self, member: &Member) -> Result<(), StoreError>;

    /// Leaves the fleet, if it can be told: nobody waits for this gateway any more.
    fn leave(&mut self, member: &Member);

    /// How long it takes until everybody who knows more than the store could have told it, as of the last [`Self::tell`]: see
    /// [`Fleet::settles_in`].
    fn settles_in(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether a gateway that died without leaving is still waited for. Only then may another process take over its right to
    /// serve without asking the store.
    fn outlives_process(&self) -> bool;

    /// Current records with a version above `after`, in the order of their versions, at most `limit`: the full load,
    /// page by page. Absence is never deletion (invariant I6).
    fn page(&mut self, after: u64, limit: usize) -> Result<Page, StoreError>;
}

// === impl Record ===

impl Record {
    pub const fn version(&self) -> u64 {
        match self {
            Self::Key(key) => key.version,
            Self::Entity(entity) => entity.version,
        }
    }

    /// Whether it was revoked or deleted, which is final.
    pub const fn is_ended(&self) -> bool {
        match self {
            Self::Key(key) => key.revoked_at.is_some(),
            Self::Entity(entity) => entity.deleted_at.is_some(),
        }
    }
}

// === impl Action ===

impl Action {
    pub const ALL: &'static [Self] = &[
        Self::KeyCreated,
        Self::KeyImported,
        Self::KeyUpdated,
        Self::KeyRotated,
        Self::KeyRevoked,
        Self::EntityCreated,
        Self::EntityDeleted,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyCreated => "key.created",
            Self::KeyImported => "key.imported",
            Self::KeyUpdated => "key.updated",
            Self::KeyRotated => "key.rotated",
            Self::KeyRevoked => "key.revoked",
            Self::EntityCreated => "entity.created",
            Self::EntityDeleted => "entity.deleted",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|action| action.as_str() == text)
    }
}

/// The fleet in whose store a mutation is made: the one that is there, or another new one where none is and none is expected.
///
/// # Errors
/// [`StoreError::Refused`] when another one is expected there.
fn fleet_of(stored: Option<FleetId>, expected: Option<FleetId>) -> Result<FleetId, StoreError> {
    match (stored, expected) {
        (Some(stored), None) => Ok(stored),
        (Some(stored), Some(expected)) if stored == expected => Ok(stored),
        (Some(_) | None, Some(expected)) => Err(foreign(stored, expected)),
        (None, None) => FleetId::random(),
    }
}

/// Refuses a store that is not the expected fleet's, if one is expected.
fn check_fleet(stored: Option<FleetId>, expected: Option<FleetId>) -> Result<(), StoreError> {
    match expected {
        Some(expected) if stored != Some(expected) => Err(foreign(stored, expected)),
        Some(_) | None => Ok(()),
    }
}

/// The error for a store that is not the expected fleet's.
fn foreign(stored: Option<FleetId>, expected: FleetId) -> StoreError {
    let what = stored.map_or_else(|| "empty".to_owned(), |stored| format!("fleet {stored}'s"));
    StoreError::Refused(format!(
        "the key store is {what}, and this gateway's keys are fleet {expected}'s: nothing was changed; `keygate store status` says what to do"
    ))
}

/// What every engine checks before it writes a key: the version, and that revoked is final (invariant I5).
fn check_key(before: Option<&KeyRecord>, key: &KeyRecord, expected: Option<u64>) -> Result<(), StoreError> {
    if before.map(|before| before.version) != expected {
        return Err(StoreError::Conflict(Conflict::Version));
    }
    let revived = before.is_some_and(|before| before.revoked_at.is_some() && before.revoked_at != key.revoked_at);
    let rekeyed = before.is_some_and(|before| before.digest != key.digest || before.entity_id != key.entity_id);
    if revived || rekeyed { Err(StoreError::Conflict(Conflict::Final)) } else { Ok(()) }
}

/// The same for an entity: deleted is final.
fn check_entity(before: Option<&EntityRecord>, entity: &EntityRecord, expected: Option<u64>) -> Result<(), StoreError> {
    match (before, expected) {
        (Some(_), None) => Err(StoreError::Conflict(Conflict::EntityIdTaken(entity.id))),
        (before, expected) if before.map(|before| before.version) != expected => {
            Err(StoreError::Conflict(Conflict::Version))
        }
        (Some(before), _) if before.deleted_at.is_some() => Err(StoreError::Conflict(Conflict::Final)),
        (Some(_) | None, _) => Ok(()),
    }
}
