//! Proofs in two sizes: small in every test run, at full size in `tests/run heavy`.

pub mod audit;
pub mod certificates;
pub mod chaos;
pub mod deaths;
pub mod failover;
pub mod history;
pub mod index;
pub mod large_bodies;
pub mod many_keys;
pub mod matrix;
pub mod outage;
pub mod partition;
pub mod process;
pub mod revocation;
pub mod slow_clients;

/// The benchmark's own way to fill a store.
#[allow(dead_code, reason = "as a module its main is never called")]
#[path = "../../../benches/macro/seed_keys.rs"]
mod seed_keys;
