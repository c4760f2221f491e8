//! Use cases of key managers: create, list, show, update, rotate, revoke, import; entities. Knows no HTTP.

mod confirm;
pub mod coverage;
mod entities;
mod grant;
mod keys;
pub mod quiet;
pub mod report;
pub mod reporter;
mod rotate;
pub mod usage;

pub use confirm::{Confirmation, Silent, Standing};
pub use entities::NewEntity;
pub use keys::{Created, ImportKey, NewKey, UpdateKey};
pub use rotate::{Overlap, Revoked};

use crate::clock::Clock;
use crate::key::{EntityRecord, KeyId, KeyRecord, Prefix, Vocabulary};
use crate::store::{Copies, KeyStore, Mutation, OperationId, StoreError, Write};
use std::collections::BTreeMap;

/// What the use cases need of gateway.toml.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[keys] prefix`.
    pub prefix: Prefix,
    /// `[scopes]`: what can be granted.
    pub vocabulary: Vocabulary,
    /// `[presets]`: name to scopes.
    pub presets: BTreeMap<String, Vec<String>>,
    /// The tiers a key can be given.
    pub tiers: Vec<String>,
    /// `[versions] current`: the version pinned on a new key; `None` without `[versions]`.
    pub api_version: Option<String>,
}

/// Why a use case did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// What was asked for does not make sense; the sentence says what would.
    #[error("{0}")]
    Invalid(String),
    #[error("there is no {0}")]
    NotFound(String),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the machine gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

/// The use cases on one store, on behalf of one actor.
pub struct Manage<'a> {
    store: &'a dyn KeyStore,
    settings: &'a Settings,
    clock: &'a Clock,
    actor: String,
}

/// How often a change is decided anew when somebody else changed the record meanwhile.
const ATTEMPTS: usize = 5;

// === impl Manage ===

impl<'a> Manage<'a> {
    /// `actor` is who asks, such as `cli:alice`: it stands in the change log.
    pub const fn new(store: &'a dyn KeyStore, settings: &'a Settings, clock: &'a Clock, actor: String) -> Self {
        Self { store, settings, clock, actor }
    }

    /// The key with this id.
    ///
    /// # Errors
    /// [`ManageError::NotFound`], or the store's.
    pub fn key(&self, id: KeyId) -> Result<KeyRecord, ManageError> {
        self.store.key(id)?.ok_or_else(|| ManageError::NotFound(format!("key {id}")))
    }

    /// The live entity with this code.
    ///
    /// # Errors
    /// [`ManageError::NotFound`], with the way to make it; or the store's.
    pub fn entity(&self, code: &str) -> Result<EntityRecord, ManageError> {
        let found = self.store.entity_by_code(code)?;
        found.ok_or_else(|| {
            ManageError::NotFound(format!("entity '{code}'; make it with: keygate entities create --code {code}"))
        })
    }

    /// Which replicas hold the latest change, where that matters.
    pub fn copies(&self) -> Option<Copies> {
        self.store.copies()
    }

    /// Applies writes as one step.
    fn apply(&self, writes: Vec<Write>) -> Result<Vec<u64>, ManageError> {
        let mut operation = [0; 16];
        getrandom::fill(&mut operation)?;
        let operation = OperationId(u128::from_be_bytes(operation));
        let mutation = Mutation { operation, actor: self.actor.clone(), at: self.clock.now(), writes };
        Ok(self.store.apply(&mutation)?)
    }

    /// Runs `attempt` again while somebody else is quicker.
    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, ManageError>) -> Result<T, ManageError> {
        for _ in 1..ATTEMPTS {
            match attempt() {
                Err(ManageError::Store(StoreError::Conflict(crate::store::Conflict::Version))) => {}
                result => return result,
            }
        }
        attempt()
    }
}
