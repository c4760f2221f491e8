//! The gateways that follow a store, and how far each has come (protocols, "Rows"; I11).

use super::{Position, StoreError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Which fleet a store is of: 128 random bits, given once, when the first gateway or command of a new fleet comes to an empty
/// store (protocols I4). A store with another one, or none, holds another history than a gateway's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FleetId(u128);

/// The fleet to whose store alone a process writes, if it knows one.
#[derive(Debug, Default)]
pub struct Expected(Mutex<Option<FleetId>>);

/// Where a gateway stands that follows no store: it found another fleet's, or one whose history has nothing in common with its
/// own. What a person gives it leave to adopt is bound to just that (protocols I4, `store adopt`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    pub fleet: FleetId,
    pub position: Position,
}

/// Who follows a store, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fleet {
    /// In the order of the gateways' ids.
    pub members: Vec<Member>,
    /// How long it takes until nobody can be missing: zero but for a while after a restart of the store, which may have lost
    /// rows that their gateways have yet to write again, and after it was put back or found to have lost changes.
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
    /// Where it stands instead, while it follows no store because what it found is not its own history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
}

// === impl FleetId ===

impl FleetId {
    /// One that no other fleet has.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], where the system has no random numbers.
    pub fn random() -> Result<Self, StoreError> {
        let bits = || getrandom::u64().map(u128::from);
        let bits = bits().and_then(|high| bits().map(|low| high << 64 | low));
        bits.map(Self).map_err(|error| StoreError::Unavailable(format!("no random numbers: {error}")))
    }

    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    pub const fn bits(self) -> u128 {
        self.0
    }

    /// Reads what [`fmt::Display`] wrote: 32 lower-case hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let is_ours = text.len() == 32 && text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        is_ours.then(|| u128::from_str_radix(text, 16).ok().map(Self))?
    }
}

impl fmt::Display for FleetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

// === impl Expected ===

impl Expected {
    pub fn set(&self, id: FleetId) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
    }

    pub fn get(&self) -> Option<FleetId> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Held ===

impl Held {
    /// Reads what [`fmt::Display`] wrote: fleet, number and token, with a space between.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let fleet = FleetId::parse(parts.next()?)?;
        let position = Position { seq: parts.next()?.parse().ok()?, token: parts.next()?.parse().ok()? };
        parts.next().is_none().then_some(Self { fleet, position })
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.fleet, self.position.seq, self.position.token)
    }
}

impl Serialize for Held {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Held {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| serde::de::Error::custom("no fleet and position"))
    }
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
