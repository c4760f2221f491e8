//! Connecting to one address of an upstream: TCP, TLS, and what is spoken then.

use crate::proxy::transport::Stream;
use crate::proxy::{Endpoint, Protocol};
use crate::tls::Tls;
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use std::io;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, TlsStream, client};

const H1: &[u8] = b"http/1.1";
const H2: &[u8] = b"h2";

/// What TLS with one address needs.
#[derive(Clone, Debug)]
pub struct Secured {
    config: Arc<ClientConfig>,
    /// The same, where only HTTP/1.1 will do.
    http1: Arc<ClientConfig>,
    /// Asked for, and what the certificate must be for.
    name: ServerName<'static>,
    /// Whom to trust, for words about it.
    tls: Tls,
}

/// A connection that nothing was said on yet.
pub enum Connected {
    Http1(Stream),
    Http2(Stream),
}

// === impl Secured ===

impl Secured {
    /// # Errors
    /// When this system trusts nobody, and `tls` names nobody.
    pub fn new(tls: &Tls, name: ServerName<'static>, protocol: Protocol) -> io::Result<Self> {
        let mut config = Arc::unwrap_or_clone(tls.client_config()?);
        // Sessions of its own: none that another address began is shown here.
        config.resumption = Resumption::default();
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        let http1 = offering(&[H1]);
        let config = match protocol {
            Protocol::Http1 => Arc::clone(&http1),
            Protocol::Http2 => offering(&[H2]),
            Protocol::Negotiated => offering(&[H2, H1]),
        };
        Ok(Self { config, http1, name, tls: tls.clone() })
    }

    async fn connect(&self, stream: TcpStream, protocol: Protocol) -> io::Result<client::TlsStream<TcpStream>> {
        let config = if protocol == Protocol::Http1 { &self.http1 } else { &self.config };
        let connecting = TlsConnector::from(Arc::clone(config)).connect(self.name.clone(), stream);
        connecting.await.map_err(|error| self.explain(&error))
    }

    /// An error of a new connection in words, for who runs the gateway.
    pub fn explain(&self, error: &io::Error) -> io::Error {
        self.tls.explain(error, true)
    }
}

/// Connects to speak `protocol`, which the endpoint's own takes in. Without a bound in time.
///
/// # Errors
/// In words.
pub async fn connect(endpoint: &Endpoint, protocol: Protocol) -> io::Result<Connected> {
    let stream = TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?;
    stream.set_nodelay(true)?;
    let Some(secured) = &endpoint.secured else {
        let stream = Stream::Tcp(stream);
        return Ok(match protocol {
            Protocol::Http1 | Protocol::Negotiated => Connected::Http1(stream),
            Protocol::Http2 => Connected::Http2(stream),
        });
    };
    let stream = secured.connect(stream, protocol).await?;
    let agreed = stream.get_ref().1.alpn_protocol() == Some(H2);
    let stream = Stream::Tls(Box::new(TlsStream::Client(stream)));
    match protocol {
        // Some servers agree to nothing, and go on with what they always speak.
        Protocol::Http2 if !agreed => Err(io::Error::other("the server did not agree to HTTP/2 (ALPN)")),
        Protocol::Http1 | Protocol::Http2 | Protocol::Negotiated if agreed => Ok(Connected::Http2(stream)),
        Protocol::Http1 | Protocol::Http2 | Protocol::Negotiated => Ok(Connected::Http1(stream)),
    }
}
