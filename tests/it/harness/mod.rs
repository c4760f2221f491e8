//! What every theme needs: a gateway process, upstreams that record, a client that sends exactly the bytes it is told.

#![allow(dead_code, unused_imports, reason = "a harness is written before the themes that use all of it")]

pub mod canary;
pub mod client;
pub mod cluster;
pub mod fault_proxy;
pub mod gateway;
pub mod http2;
pub mod redis;
pub mod resp;
pub mod sentinel;
pub mod switching;
pub mod tls;
pub mod tls_client;
pub mod trace;
pub mod upstream;

pub use canary::Canary;
pub use client::{Client, Response};
pub use fault_proxy::{FaultProxy, Network, Way};
pub use gateway::{Gateway, Key};
pub use http2::Http2;
pub use switching::Switching;
pub use tls::{Authority, Pair};
pub use tls_client::TlsClient;
pub use trace::Trace;
pub use upstream::{Received, Reply, Upstream};

use std::time::{Duration, Instant};

/// The longest any single wait of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` gives a value, or fails the test.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
