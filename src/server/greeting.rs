//! What comes between a connection's accept and its first request: who the peer is, TLS, and what it speaks.

use super::listener::Accepted;
use super::proxy_header::{self, Fault, Source};
use super::tls::handshake::{Shaken, shake};
use super::{Limits, Listen, Protocols};
use crate::audit::Cause;
use crate::proxy::downstream::Downstream;
use crate::proxy::transport::Stream;
use bytes::{Bytes, BytesMut};
use std::net::IpAddr;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Semaphore;
use tokio_rustls::TlsStream;

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

/// Why there will be no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ungreeted {
    Counted(Cause),
    /// The client went away without a byte, as whoever looks whether a port is open does.
    Left,
}

/// Learns what a listener wants to know of a connection before its first request, within `limits.handshake_timeout`. `turns` are
/// those of TLS handshakes.
///
/// # Errors
/// [`Ungreeted`].
pub async fn greet(
    socket: Accepted,
    peer: IpAddr,
    listen: &Listen,
    limits: &Limits,
    turns: &Semaphore,
) -> Result<Greeted, Ungreeted> {
    let is_unix = matches!(socket, Accepted::Unix(_));
    let stream = match socket {
        Accepted::Tcp(stream) => {
            // Without it small responses would wait for the client's acknowledgement.
            _ = stream.set_nodelay(true);
            Stream::Tcp(stream)
        }
        Accepted::Unix(stream) => Stream::Unix(stream),
    };
    if listen.is_plain() {
        let downstream = Downstream { peer, tls: None };
        return Ok(Greeted { stream, read: Bytes::new(), downstream, protocol: Protocol::Http1 });
    }
    match tokio::time::timeout(limits.handshake_timeout, introduce(stream, peer, is_unix, listen, turns)).await {
        Ok(result) => result,
        Err(_) => Err(Ungreeted::Counted(Cause::HandshakeTimeout)),
    }
}

async fn introduce(
    mut stream: Stream,
    peer: IpAddr,
    is_unix: bool,
    listen: &Listen,
    turns: &Semaphore,
) -> Result<Greeted, Ungreeted> {
    let peer = match &listen.proxies {
        Some(proxies) if is_unix || proxies.contains(peer) => client_behind(&mut stream, peer).await?,
        Some(_) => return Err(Ungreeted::Counted(Cause::ProxyUntrusted)),
        None => peer,
    };
    match (stream, &listen.tls) {
        (Stream::Tcp(stream), Some(tls)) => {
            let Shaken { stream, secured, protocol } = shake(stream, tls, listen.protocols, turns).await?;
            let stream = Stream::Tls(Box::new(TlsStream::Server(stream)));
            Ok(Greeted { stream, read: Bytes::new(), downstream: Downstream { peer, tls: Some(secured) }, protocol })
        }
        (stream, _) => detect(stream, Downstream { peer, tls: None }, listen.protocols).await,
    }
}

/// For whom the proxy at `peer` has made the connection.
async fn client_behind(stream: &mut Stream, peer: IpAddr) -> Result<IpAddr, Ungreeted> {
    match proxy_header::read(stream).await {
        Ok(Source::Client(client)) => Ok(client),
        Ok(Source::Unsaid) => Ok(peer),
        Err(fault) => {
            tracing::debug!(%peer, %fault, "a connection is closed");
            Err(match fault {
                Fault::Silent => Ungreeted::Left,
                Fault::Missing => Ungreeted::Counted(Cause::ProxyHeaderMissing),
                Fault::Malformed => Ungreeted::Counted(Cause::ProxyHeaderMalformed),
            })
        }
    }
}

/// Tells HTTP/2 with prior knowledge from HTTP/1.1 by its first bytes.
async fn detect(mut stream: Stream, downstream: Downstream, protocols: Protocols) -> Result<Greeted, Ungreeted> {
    if protocols == Protocols::HTTP1 {
        return Ok(Greeted { stream, read: Bytes::new(), downstream, protocol: Protocol::Http1 });
    }
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
        Protocol::Http1 if !read.is_empty() => return Err(Ungreeted::Counted(Cause::Unparseable)),
        // Who went away without a word is no mistake.
        Protocol::Http1 | Protocol::Http2 => Protocol::Http2,
    };
    Ok(Greeted { stream, read: read.freeze(), downstream, protocol })
}
