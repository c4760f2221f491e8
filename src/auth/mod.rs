//! Credential to principal: what was presented, the key cache, the follower that keeps the cache true, and the snapshot that
//! lets it start without the store.

mod applier;
pub mod authenticator;
pub mod cache;
pub mod credential;
pub mod fill;
pub mod follower;
mod kept;
pub mod lineage;
mod load;
pub mod snapshot;

use crate::key::{Prefix, Vocabulary};
use std::sync::Arc;
use std::time::Duration;

pub use authenticator::{Authentication, Authenticator, Unavailable};
pub use cache::KeyCache;
pub use credential::{Credential, Presented};
pub use fill::{Filler, Fills, Overloaded};
pub use follower::Follower;
pub use snapshot::Snapshot;

/// `[keys]` and `[cache]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[keys] prefix`.
    pub prefix: Prefix,
    /// `[cache] keys_max`: beyond this many keys the cache is no longer complete.
    pub keys_max: u64,
    /// `[cache] max_stale`: how long known keys work while the store cannot be asked.
    pub max_stale: Duration,
    /// `[scopes]`, to turn stored names into bits.
    pub vocabulary: Arc<Vocabulary>,
}
