//! What is known of a client's connection before its first request.

use super::canonical::split_port;
use crate::reason::Reason;
use crate::tls::x509::Facts;
use http::HeaderValue;
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
    /// What the certificates say of which the client was shown one for that name.
    pub certificates: Vec<Arc<Facts>>,
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

    /// Whom the client's certificate names.
    pub fn identity(&self) -> Option<&Arc<str>> {
        self.tls.as_ref()?.identity.as_ref()
    }

    /// Whether a request for this host belongs on the connection.
    ///
    /// # Errors
    /// [`Reason::Misdirected`] for another host than the one whose certificate the client was shown (RFC 9110, section 7.4).
    pub fn check_host(&self, host: &HeaderValue) -> Result<(), Reason> {
        match &self.tls {
            Some(secured) if !secured.is_for(host.as_bytes()) => Err(Reason::Misdirected),
            Some(_) | None => Ok(()),
        }
    }
}

// === impl Secured ===

impl Secured {
    /// The host that was asked for, or another that the same certificate is for: a client may use one connection for all of
    /// them (RFC 9113, section 9.1.1). Who asked for none cannot have meant another.
    fn is_for(&self, host: &[u8]) -> bool {
        let Some(server_name) = &self.server_name else { return true };
        let (host, _) = split_port(host);
        let host = host.strip_suffix(b".").unwrap_or(host);
        host.eq_ignore_ascii_case(server_name.as_bytes()) || self.is_covered(host)
    }

    fn is_covered(&self, host: &[u8]) -> bool {
        let host = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")).unwrap_or(host);
        let Ok(host) = str::from_utf8(host) else { return false };
        let host = host.to_ascii_lowercase();
        self.certificates.iter().any(|certificate| certificate.covers(&host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::x509::Name;

    fn secured(server_name: Option<&str>, names: &[&str]) -> Secured {
        let names = names.iter().map(|name| Name::Dns((*name).into()));
        let address = Name::Address("::1".parse().unwrap());
        let names = names.chain([address]).collect();
        let facts = Facts { not_before: 0, not_after: 0, common_name: None, names };
        Secured { server_name: server_name.map(Into::into), certificates: vec![Arc::new(facts)], identity: None }
    }

    #[test]
    fn a_connection_is_for_the_host_that_was_asked_for_and_those_of_its_certificate() {
        let here = secured(Some("a.example"), &["a.example", "b.example", "*.c.example"]);
        for host in ["a.example", "A.Example:8443", "a.example.", "b.example", "x.c.example:443", "[::1]:8443", "[::1]"]
        {
            assert!(here.is_for(host.as_bytes()), "{host}");
        }
        for host in ["d.example", "c.example", "x.y.c.example", "a.example.evil", "127.0.0.1", "[::2]"] {
            assert!(!here.is_for(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_name_that_no_certificate_has_is_for_itself() {
        let unknown = secured(Some("z.example"), &["a.example"]);
        assert!(unknown.is_for(b"z.example"));
        assert!(unknown.is_for(b"a.example"));
        assert!(!unknown.is_for(b"y.example"));
        assert!(secured(None, &["a.example"]).is_for(b"y.example"));
    }
}
