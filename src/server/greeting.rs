//! What comes between a connection's accept and its first request: who the peer is, and what it speaks.

use super::Listen;
use crate::audit::Cause;
use crate::proxy::downstream::Downstream;
use crate::proxy::transport::Stream;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// A connection that is ready for requests.
pub struct Greeted {
    pub stream: Stream,
    pub downstream: Downstream,
    pub protocol: Protocol,
}

/// How a connection carries requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
}

/// Learns what a listener wants to know of a connection before its first request.
///
/// # Errors
/// Why there will be none.
pub async fn greet(stream: TcpStream, peer: SocketAddr, _listen: &Listen) -> Result<Greeted, Cause> {
    let downstream = Downstream { peer: peer.ip(), tls: None };
    Ok(Greeted { stream: Stream::Tcp(stream), downstream, protocol: Protocol::Http1 })
}
