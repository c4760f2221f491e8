//! The keeper's thread: gives the keeper its turns, and tells it what the sinks have taken.

use super::checkpoint::Checkpoint;
use super::shipper::Shared;
use crate::audit::keeper::{Keeper, Lost, Passed};
use crate::clock::monotonic;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks when there was nothing to do.
const IDLE: Duration = Duration::from_secs(2);
/// After a turn the keeper rests this many times as long as it took: disk and processor are there for requests.
const REST_FACTOR: u32 = 4;
const AFTER_ERROR: Duration = Duration::from_secs(10);

/// The keeper and what it needs.
pub struct Keeping {
    keeper: Keeper,
    shared: Arc<Shared>,
    /// The sinks for which the journal keeps what they have not taken.
    durable: Vec<String>,
    /// Told last: the same again is no news.
    trouble: String,
}

// === impl Keeping ===

impl Keeping {
    pub const fn new(keeper: Keeper, shared: Arc<Shared>, durable: Vec<String>) -> Self {
        Self { keeper, shared, durable, trouble: String::new() }
    }

    /// Keeps the segments until the shipper stops.
    pub fn run(&mut self) {
        let mut rest = IDLE;
        while !self.shared.stop.wait(rest) {
            let begun = monotonic();
            rest = match self.keeper.turn(&self.passed(), &mut tell) {
                Ok(true) => monotonic().saturating_duration_since(begun) * REST_FACTOR,
                Ok(false) => IDLE,
                Err(error) => {
                    self.trouble(&error);
                    AFTER_ERROR
                }
            };
        }
    }

    /// How far each sink has come. One whose checkpoint cannot be read has taken nothing.
    fn passed(&self) -> Passed {
        let taken = |name: &String| Checkpoint::of(&self.shared.dir, name).load().ok().flatten().unwrap_or_default();
        self.durable.iter().map(|name| (name.clone(), taken(name))).collect()
    }

    fn trouble(&mut self, error: &io::Error) {
        let trouble = error.to_string();
        if self.trouble != trouble {
            tracing::error!("{trouble}; old audit segments are kept until that is mended");
            self.trouble = trouble;
        }
    }
}

/// What a sink loses is told here by number; the sink itself is told when it comes to the gap.
fn tell(lost: &Lost) -> io::Result<()> {
    let Lost { sink, journal, first, last } = lost;
    tracing::error!(
        sink,
        journal,
        first,
        last,
        "audit records are deleted that a sink has not taken: the journal is larger than audit.retain allows"
    );
    Ok(())
}
