//! What is known of a client's connection before its first request.

use std::net::IpAddr;
use std::sync::Arc;

/// A connection, as its requests see it.
#[derive(Debug)]
pub struct Downstream {
    /// The other end.
    pub peer: IpAddr,
    /// `None` without TLS.
    pub tls: Option<Secured>,
}

/// What the TLS handshake has shown.
#[derive(Debug)]
pub struct Secured {
    /// The name the client asked for (RFC 6066, section 3), in lower case.
    pub server_name: Option<Box<str>>,
    /// Whom the client's certificate names, where one was asked for.
    pub identity: Option<Arc<str>>,
}

// === impl Downstream ===

impl Downstream {
    /// The scheme the client used.
    pub const fn scheme(&self) -> &'static str {
        match self.tls {
            Some(_) => "https",
            None => "http",
        }
    }
}
