//! What every theme needs: a gateway process, upstreams that record, a client that sends exactly the bytes it is told.

#![allow(dead_code, unused_imports, reason = "a harness is written before the themes that use all of it")]

pub mod canary;
pub mod client;
pub mod cluster;
pub mod far;
pub mod fault_proxy;
pub mod gateway;
pub mod http2;
pub mod liar;
pub mod near;
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
pub use far::{Far, Script, Speaks};
pub use fault_proxy::{FaultProxy, Network, Way};
pub use gateway::{Gateway, Key};
pub use http2::Http2;
pub use near::{Ask, Got, Near, Upload};
pub use switching::Switching;
pub use tls::{Authority, Pair};
pub use tls_client::TlsClient;
pub use trace::Trace;
pub use upstream::{Received, Reply, Upstream};

use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// The longest any single wait of a test may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// An address at which nobody listens, nor comes to: it stays taken.
pub fn refusing() -> SocketAddr {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    Box::leak(Box::new(socket)).local_addr().unwrap().as_socket().unwrap()
}

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
