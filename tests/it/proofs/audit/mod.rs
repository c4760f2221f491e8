//! What the journal promises, held against what clients and an upstream saw: deaths, lost power, disks that are full or fail,
//! and floods of strangers.

pub mod deaths;
mod disk;
mod failing_sync;
pub mod failures;
pub mod flood;
mod ledger;
mod lines;
mod load;
pub mod power;
mod site;
