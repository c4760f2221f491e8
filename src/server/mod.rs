//! Worker threads, listeners, connections, drain.

mod bare;
pub mod connection;
pub mod deadline;
pub mod greeting;
pub mod http1;
pub mod http2;
pub mod io;
pub mod listener;
pub mod proxy_header;
pub mod registry;
pub mod tls;
pub mod unix;
pub mod worker;

use crate::net::Networks;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Heads up to these multiples of the operator's limits are still parsed, so that their refusal is one the client can read;
/// beyond them the library answers by itself, and nothing is recorded but a count.
const HEAD_SLACK: usize = 2;

/// `[[listen]]` and the connection part of `[limits]`.
#[derive(Clone, Debug)]
pub struct Settings {
    pub listen: Vec<Listen>,
    /// `[gateway] workers`; default: one a core.
    pub workers: usize,
    pub limits: Limits,
}

/// One `[[listen]]` table: where clients connect, and how.
#[derive(Clone, Debug)]
pub struct Listen {
    pub address: Address,
    pub protocols: Protocols,
    /// `proxy_protocol`: every connection begins with a header that names the client; from whom it is believed.
    pub proxies: Option<Networks>,
    /// `tls`: what connections are secured with; behind a PROXY header, if there is one.
    pub tls: Option<Arc<tls::Tls>>,
}

/// `protocols` in `[[listen]]`: what clients may speak. With TLS they choose by ALPN; without, HTTP/2 is spoken with prior
/// knowledge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    pub http1: bool,
    pub http2: bool,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// `[limits]`, the connection's part.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `connections_max`: open downstream connections in this process.
    pub connections_max: usize,
    /// `head_max`: bytes of a request's head.
    pub head_bytes_max: usize,
    /// `fields_max`: header fields of a request.
    pub head_fields_max: usize,
    /// `head_timeout`: from a request's first byte, or from accept, to its complete head.
    pub head_timeout: Duration,
    /// `handshake_timeout`: from accept until the first request may begin.
    pub handshake_timeout: Duration,
    /// `handshakes_max`: TLS handshakes that are computed at the same time in this process.
    pub handshakes_max: usize,
    /// `streams_max`: requests at the same time on one HTTP/2 connection.
    pub streams_max: u32,
    /// `idle_timeout`: how long a kept-alive connection may stay silent between requests.
    pub idle_timeout: Duration,
    /// `write_stall`: how long a client may refuse to take a byte.
    pub write_stall: Duration,
    /// `drain`: how long SIGTERM lets requests in flight finish.
    pub drain: Duration,
}

// === impl Protocols ===

impl Protocols {
    pub const HTTP1: Self = Self { http1: true, http2: false };
    pub const BOTH: Self = Self { http1: true, http2: true };
}

// === impl Listen ===

impl Listen {
    /// Whether a connection begins with its first request.
    pub const fn is_plain(&self) -> bool {
        self.proxies.is_none() && self.tls.is_none() && self.protocols.http1 && !self.protocols.http2
    }
}

// === impl Address ===

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            head_bytes_max: 16 * 1024,
            head_fields_max: 64,
            head_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(5),
            handshakes_max: 16,
            streams_max: 100,
            idle_timeout: Duration::from_secs(60),
            write_stall: Duration::from_secs(30),
            drain: Duration::from_secs(25),
        }
    }
}
