//! Time as an argument: the only place that reads a clock.

use rustix::time::{ClockId, clock_gettime};
use std::fmt;
use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in wall-clock time: microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// A point on the clock that nobody sets: nanoseconds since the machine started, suspension included (CLOCK_BOOTTIME). For
/// deadlines and durations. Not `std`'s, which stands still while the machine sleeps: a right to serve must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

/// One instant on both clocks, read once for each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    pub wall: Timestamp,
    pub mono: Instant,
}

/// Where the time comes from: the machine, or a test's hand.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<Hand>),
}

/// Moves the two clocks of a [`Clock::manual`].
#[derive(Debug)]
pub struct Hand {
    wall_micros: AtomicI64,
    mono_nanos: AtomicU64,
}

/// The monotonic clock, for deadlines and durations.
pub fn monotonic() -> Instant {
    let time = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    Instant(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// Which start of the machine this is, where the system tells: [`monotonic`] counts from there.
pub fn boot_id() -> Option<u128> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
}

/// A [`Timestamp`] as serde writes it where it is kept: microseconds since the Unix epoch.
pub mod micros {
    use crate::clock::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.as_micros())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp::from_micros)
    }
}

// === impl Timestamp ===

impl Timestamp {
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    pub const fn as_micros(self) -> i64 {
        self.0
    }

    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// This time plus `duration`, saturating at the end of the representable range.
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This time minus `duration`, saturating at the beginning of the representable range.
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// The time that has passed since `earlier`; zero when the clock went back.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads RFC 3339 text, such as `2026-11-24T10:42:10.123456Z`.
    pub fn parse(text: &str) -> Option<Self> {
        text.parse::<jiff::Timestamp>().ok().map(|time| Self(time.as_microsecond()))
    }

    fn to_jiff(self) -> jiff::Timestamp {
        let range = jiff::Timestamp::MIN.as_microsecond()..=jiff::Timestamp::MAX.as_microsecond();
        jiff::Timestamp::from_microsecond(self.0.clamp(*range.start(), *range.end()))
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with exactly six fractional digits, the form of audit records.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.to_jiff())
    }
}

// === impl Instant ===

impl Instant {
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The time that has passed since `earlier`; zero if it is later.
    pub const fn saturating_duration_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

// === impl Hand ===

impl Hand {
    /// Time passes on both clocks.
    pub fn pass(&self, duration: Duration) {
        self.set_wall(Timestamp(self.wall_micros.load(Ordering::Relaxed)).plus(duration));
        let mono = Instant(self.mono_nanos.load(Ordering::Relaxed)) + duration;
        self.mono_nanos.store(mono.0, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub fn set_wall(&self, time: Timestamp) {
        self.wall_micros.store(time.0, Ordering::Relaxed);
    }
}

// === impl Clock ===

impl Clock {
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `start`, an hour after the machine's start, until the returned hand moves it.
    pub fn manual(start: Timestamp) -> (Self, Arc<Hand>) {
        const HOUR_NANOS: u64 = 3600 * 1_000_000_000;
        let hand = Hand { wall_micros: AtomicI64::new(start.0), mono_nanos: AtomicU64::new(HOUR_NANOS) };
        let hand = Arc::new(hand);
        (Self(Source::Manual(Arc::clone(&hand))), hand)
    }

    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => {
                let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp(i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX))
            }
            Source::Manual(hand) => Timestamp(hand.wall_micros.load(Ordering::Relaxed)),
        }
    }

    /// Both clocks, now.
    pub fn moment(&self) -> Moment {
        let mono = match &self.0 {
            Source::System => monotonic(),
            Source::Manual(hand) => Instant(hand.mono_nanos.load(Ordering::Relaxed)),
        };
        Moment { wall: self.now(), mono }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_print_with_microseconds_and_read_back() {
        let time = Timestamp::from_micros(1_764_000_000_120_000);
        assert_eq!(time.to_string(), "2025-11-24T16:00:00.120000Z");
        assert_eq!(Timestamp::parse(&time.to_string()), Some(time));
    }
}
