//! The gateways that follow a store, and how far each has come (protocols, "Rows"; I11).

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who follows a store, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// In the order of the gateways' ids.
    pub members: Vec<Member>,
    /// How long it takes until nobody can be missing: zero but for a while after a restart of the store, which may have lost
    /// rows that their gateways have yet to write again.
    pub settles_in: Duration,
}

/// What a running gateway last told of itself: one for each process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// This process, for as long as it lives.
    pub instance: String,
    /// The process that was in this one's place before, and is known to be gone: its row goes when this one joins.
    #[serde(skip)]
    pub replaces: Option<String>,
    /// `[gateway] id`.
    pub gateway: String,
    /// keygate's version.
    pub version: String,
    /// The hash of the gateway.toml in force.
    pub config: String,
    /// `[cache] max_stale` in milliseconds: for so long it may honour what it knows without contact.
    pub max_stale_ms: u64,
    /// The last `seq` that it has wholly applied, every worker having cut what was in flight.
    pub pos: u64,
    /// That entry's token: a position in another history confirms nothing.
    pub token: u64,
    /// Keys held, revoked ones included.
    pub keys: u64,
    /// Whether it holds every key.
    pub complete: bool,
    /// When it was last caught up, by its own clock, in microseconds since 1970 and to half a second; 0 if never. For
    /// `max_stale` from then it may serve.
    pub caught_up_at: i64,
    /// What it has applied is in its memory alone: a restart needs the store.
    pub volatile: bool,
}

// === impl Member ===

impl Member {
    /// How long after its last contact it may at most act on what it knew: `max_stale`, and what two clocks may differ by in that
    /// time, which is d of the protocols.
    pub fn may_serve_for(&self) -> Duration {
        const CLOCK_SLACK: Duration = Duration::from_millis(250);
        let max_stale = Duration::from_millis(self.max_stale_ms);
        max_stale + max_stale / 1000 + CLOCK_SLACK
    }
}

// === impl Fleet ===

impl Fleet {
    /// From a store that loses no rows.
    pub const fn settled(members: Vec<Member>) -> Self {
        Self { members, settles_in: Duration::ZERO }
    }
}
