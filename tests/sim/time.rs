//! True time, which nobody in the simulation can read, and the clocks of the machines, which drift and are set.

use keygate::clock::{Clock, Hand, Timestamp};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A point of true time: microseconds since the simulation began.
pub type True = u64;

pub const MILLIS: True = 1_000;
pub const SECONDS: True = 1_000_000;

/// True time, and all clocks.
pub struct Time {
    now: AtomicU64,
    clocks: Vec<MachineClock>,
}

/// The clocks of one machine: they outlive its processes.
pub struct MachineClock {
    pub clock: Clock,
    hand: Arc<Hand>,
    /// By how many parts in a million it is fast.
    fast_ppm: i64,
}

// === impl Time ===

impl Time {
    pub fn new(fast_ppm: impl IntoIterator<Item = i64>) -> Self {
        let start = Timestamp::from_micros(1_764_000_000_000_000);
        let clock = |fast_ppm| {
            let (clock, hand) = Clock::manual(start);
            MachineClock { clock, hand, fast_ppm }
        };
        Self { now: AtomicU64::new(0), clocks: fast_ppm.into_iter().map(clock).collect() }
    }

    pub fn now(&self) -> True {
        self.now.load(Ordering::Relaxed)
    }

    /// Time passes, on each machine as its clock goes.
    pub fn pass(&self, micros: True) {
        self.now.fetch_add(micros, Ordering::Relaxed);
        for clock in &self.clocks {
            let nanos = micros * 1000;
            let more = nanos as i64 * clock.fast_ppm / 1_000_000;
            clock.hand.pass(Duration::from_nanos(nanos.saturating_add_signed(more)));
        }
    }

    pub fn clock(&self, machine: usize) -> &Clock {
        &self.clocks[machine].clock
    }

    /// Somebody sets a machine's wall clock, forward or back.
    pub fn jump(&self, machine: usize, micros: i64) {
        let MachineClock { clock, hand, .. } = &self.clocks[machine];
        hand.set_wall(Timestamp::from_micros(clock.now().as_micros() + micros));
    }
}
