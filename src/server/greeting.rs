//! What comes between a connection's accept and its first request: who the peer is, and what it speaks.

use super::{Limits, Listen, Protocols};
use crate::audit::Cause;
use crate::proxy::downstream::Downstream;
use crate::proxy::transport::Stream;
use bytes::{Bytes, BytesMut};
use std::net::SocketAddr;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What an HTTP/2 client says first (RFC 9113, section 3.4). No HTTP/1.1 client does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection that is ready for requests.
pub struct Greeted {
    pub stream: Stream,
    /// Was read already, and belongs to what the client speaks.
    pub read: Bytes,
    pub downstream: Downstream,
    pub protocol: Protocol,
}

/// How a connection carries requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// Learns what a listener wants to know of a connection before its first request.
///
/// # Errors
/// Why there will be none.
pub async fn greet(stream: TcpStream, peer: SocketAddr, listen: &Listen, limits: &Limits) -> Result<Greeted, Cause> {
    let downstream = Downstream { peer: peer.ip(), tls: None };
    let stream = Stream::Tcp(stream);
    if listen.protocols == Protocols::HTTP1 {
        return Ok(Greeted { stream, read: Bytes::new(), downstream, protocol: Protocol::Http1 });
    }
    let greeting = tokio::time::timeout(limits.handshake_timeout, detect(stream, downstream, listen.protocols));
    greeting.await.unwrap_or(Err(Cause::HandshakeTimeout))
}

/// Tells HTTP/2 with prior knowledge from HTTP/1.1 by its first bytes.
async fn detect(mut stream: Stream, downstream: Downstream, protocols: Protocols) -> Result<Greeted, Cause> {
    let mut read = BytesMut::with_capacity(PREFACE.len());
    let protocol = loop {
        if read.len() == PREFACE.len() {
            break Protocol::Http2;
        }
        let is_more = (&mut stream).take((PREFACE.len() - read.len()) as u64).read_buf(&mut read).await;
        // Whatever it is, it is not an HTTP/2 client's preface any more.
        if !is_more.is_ok_and(|bytes| bytes > 0) || !PREFACE.starts_with(&read) {
            break Protocol::Http1;
        }
    };
    let protocol = match protocol {
        Protocol::Http1 if protocols.http1 => Protocol::Http1,
        Protocol::Http1 if !read.is_empty() => return Err(Cause::Unparseable),
        // Who went away without a word is no mistake.
        Protocol::Http1 | Protocol::Http2 => Protocol::Http2,
    };
    Ok(Greeted { stream, read: read.freeze(), downstream, protocol })
}
