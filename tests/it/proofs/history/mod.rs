//! One history: a store loses changes that every gateway had acknowledged, goes another way, and nothing that was acknowledged
//! is lost for it (protocols I4, I5).

mod book;
mod loss;
mod operator;
mod redis;
mod site;
mod sqlite;

pub use redis::prove as prove_on_redis;
pub use sqlite::prove as prove_on_sqlite;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How soon the gateways have given a store back what it lost, with nobody's help.
const REPAIRED_WITHIN: Duration = Duration::from_secs(6);

/// Proves it once for each of these seeds, `at_once` at a time: a run mostly waits for a store to settle.
pub fn prove_all(seeds: std::ops::Range<u64>, at_once: usize, prove: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end {
                        return;
                    }
                    prove(seed);
                }
            });
        }
    });
}
