//! A connection's TLS handshake: who the client is, what it asked for, or why it did not come to that.

use super::Tls;
use crate::audit::Cause;
use crate::clock::Clock;
use crate::proxy::downstream::Secured;
use crate::server::Protocols;
use crate::server::greeting::{Protocol, Ungreeted};
use crate::tls::x509::Facts;
use rustls::ServerConnection;
use rustls::server::Acceptor;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// The first byte of a TLS connection: a record with a part of a handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 22;

/// A connection whose handshake is done.
pub struct Shaken {
    pub stream: TlsStream<TcpStream>,
    pub secured: Secured,
    pub protocol: Protocol,
}

/// Does the handshake. What of it is work waits for one of `turns`, and gives it back before the client is waited for: however
/// many arrive at once, what is served has its turn in between, and who says nothing holds none.
///
/// # Errors
/// [`Ungreeted`].
pub async fn shake(stream: TcpStream, tls: &Tls, protocols: Protocols, turns: &Semaphore) -> Result<Shaken, Ungreeted> {
    let mut first = [0];
    match stream.peek(&mut first).await {
        Ok(0) | Err(_) => return Err(Ungreeted::Left),
        Ok(_) if first != [HANDSHAKE] => return Err(Ungreeted::Counted(Cause::NotTls)),
        Ok(_) => {}
    }
    let current = tls.current();
    let accepted = async {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        // Closed by nobody.
        let turn = turns.acquire().await.ok();
        let mut accepting = hello.into_stream(Arc::clone(&current.config));
        let first = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut accepting).poll(cx))).await;
        tokio::task::yield_now().await;
        drop(turn);
        match first {
            Poll::Ready(result) => result,
            Poll::Pending => accepting.await,
        }
    };
    let stream = accepted.await.map_err(|error: io::Error| {
        let cause = cause_of(&error);
        tracing::debug!(cause = cause.as_str(), %error, "no TLS handshake");
        Ungreeted::Counted(cause)
    })?;
    let session = stream.get_ref().1;
    let identity = identity(session).map_err(Ungreeted::Counted)?;
    let server_name = session.server_name().map(|name| name.trim_end_matches('.').to_ascii_lowercase().into());
    let certificates = server_name.as_deref().map(|name| current.certificates.facts_of(name)).unwrap_or_default();
    let protocol = protocol(session, protocols);
    Ok(Shaken { secured: Secured { server_name, certificates, identity }, protocol, stream })
}

/// What ALPN has chosen. A client without ALPN speaks HTTP/1.1, unless it may not.
fn protocol(session: &ServerConnection, protocols: Protocols) -> Protocol {
    match session.alpn_protocol() {
        Some(b"h2") => Protocol::Http2,
        None if !protocols.http1 => Protocol::Http2,
        Some(_) | None => Protocol::Http1,
    }
}

/// Whom the client's certificate names. One that has run out since the session began that is resumed here is refused.
fn identity(session: &ServerConnection) -> Result<Option<Arc<str>>, Cause> {
    let Some(certificate) = session.peer_certificates().and_then(<[_]>::first) else { return Ok(None) };
    let facts = Facts::read(certificate).ok_or(Cause::TlsClientCertificate)?;
    let now = Clock::system().now().as_millis() / 1000;
    if now > facts.not_after {
        return Err(Cause::TlsClientCertificate);
    }
    Ok(facts.identity().map(Arc::from))
}

/// Why there is no handshake, from what the library says.
fn cause_of(error: &io::Error) -> Cause {
    use rustls::Error as Fault;
    let fault = error.get_ref().and_then(|inner| inner.downcast_ref::<Fault>());
    match fault {
        None if error.kind() == ErrorKind::InvalidData => Cause::TlsMalformed,
        None => Cause::TlsBrokenOff,
        Some(Fault::PeerIncompatible(_) | Fault::NoApplicationProtocol) => Cause::TlsUnsupported,
        Some(Fault::AlertReceived(_)) => Cause::TlsRefused,
        Some(Fault::NoCertificatesPresented | Fault::InvalidCertificate(_) | Fault::InvalidCertRevocationList(_)) => {
            Cause::TlsClientCertificate
        }
        // The rest is what no client may say.
        Some(_) => Cause::TlsMalformed,
    }
}
