//! The data plane: from a request's head to the upstream and back. Read `service` first.

pub mod body;
pub mod canonical;
pub mod catch;
pub mod client_addr;
pub mod deadline;
pub mod downstream;
pub mod exchange;
pub mod forward;
pub mod frames;
pub mod h1;
pub mod headers;
pub mod in_flight;
pub mod incoming;
pub mod request_id;
pub mod respond;
pub mod service;
pub mod stream_io;
pub mod trace;
pub mod transport;
pub mod tunnel;
pub mod upgrade;
pub mod upstream;

pub use upstream::connect::Secured;

use crate::net::Networks;
use std::time::Duration;

/// What the data plane needs of gateway.toml, besides routes and upstreams.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[client_ip] trusted_proxies`: with none, the socket's peer is the client.
    pub trusted_proxies: Networks,
    /// `[versions] header`, such as `arcus-version`; `None` without `[versions]`.
    pub version_header: Option<http::HeaderName>,
    pub limits: Limits,
    pub upstreams: Vec<UpstreamSettings>,
}

/// `[limits]`, the data plane's part.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `target_max`: bytes of the request target.
    pub target_bytes_max: usize,
    /// `body_idle`: how long a body, either way, may stand still.
    pub body_idle: Duration,
    /// `tunnel_idle`: how long an upgraded connection may carry no byte, in neither direction.
    pub tunnel_idle: Duration,
    /// `upstream_connect`: time to connect to an upstream, until it can be sent a request.
    pub upstream_connect: Duration,
    /// `upstream_head`: time from the request's last byte, or from its head while a body streams, to the response's head.
    pub upstream_head: Duration,
    /// `upstream_idle`: how long a connection to an upstream is kept unused; shorter than the upstream's own.
    pub upstream_idle: Duration,
    /// `upstream_requests_max`: requests in flight to one upstream from one worker.
    pub upstream_requests_max: usize,
}

/// `[upstreams.<name>]`: the addresses of each mode. An empty list: no upstream for that mode.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    pub name: String,
    pub live: Vec<Endpoint>,
    pub test: Vec<Endpoint>,
    /// `host`: replaces the client's `Host` when set.
    pub host: Option<http::HeaderValue>,
}

/// One address of an upstream, from `http://host:port` or `https://host:port`.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
    pub protocol: Protocol,
    /// `https`.
    pub secured: Option<Secured>,
}

/// `protocol`: what is spoken with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
    /// What both sides of a TLS handshake can, HTTP/2 first.
    Negotiated,
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            target_bytes_max: 8 * 1024,
            body_idle: Duration::from_secs(30),
            tunnel_idle: Duration::from_secs(5 * 60),
            upstream_connect: Duration::from_secs(1),
            upstream_head: Duration::from_secs(15),
            upstream_idle: Duration::from_secs(4),
            upstream_requests_max: 1024,
        }
    }
}
