//! The client's address, decided once (contract, section 3: `X-Forwarded-For`).

use crate::net::{Networks, canonical_ip};
use crate::reason::Reason;
use http::{HeaderMap, HeaderName};
use std::net::{IpAddr, SocketAddr};

/// Who is asking, and who passed it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr {
    /// What allowlists compare.
    pub client: IpAddr,
    /// The socket's other end.
    pub peer: IpAddr,
    /// Whether the peer is a trusted proxy, whose forwarding headers and request ids count.
    pub peer_trusted: bool,
}

/// Where proxies append the address they were called from.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

// === impl ClientAddr ===

impl ClientAddr {
    /// The address of a request that is refused because its hops cannot be read: the peer, trusted for nothing.
    pub const fn unproven(peer: IpAddr) -> Self {
        let peer = canonical_ip(peer);
        Self { client: peer, peer, peer_trusted: false }
    }
}

/// With an untrusted peer, the peer is the client and every forwarding header is noise. Behind trusted proxies, the client
/// is the rightmost hop that is not trusted; when all are trusted, the leftmost.
///
/// # Errors
/// [`Reason::HeaderInvalid`] when a hop that counts cannot be read: guessing past it would let a client choose its address.
pub fn decide(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> Result<ClientAddr, Reason> {
    let peer = canonical_ip(peer);
    let peer_trusted = trusted.contains(peer);
    let client = if peer_trusted { rightmost_untrusted(peer, headers, trusted)? } else { peer };
    Ok(ClientAddr { client, peer, peer_trusted })
}

fn rightmost_untrusted(peer: IpAddr, headers: &HeaderMap, trusted: &Networks) -> Result<IpAddr, Reason> {
    let mut client = peer;
    for line in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        for hop in line.as_bytes().rsplit(|byte| *byte == b',') {
            client = parse_hop(hop.trim_ascii()).ok_or(Reason::HeaderInvalid)?;
            if !trusted.contains(client) {
                return Ok(client);
            }
        }
    }
    Ok(client)
}

/// An address, with or without brackets and port, as proxies write it.
fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = bracketed.unwrap_or(text).parse::<IpAddr>().ok();
    ip.or_else(|| text.parse::<SocketAddr>().ok().map(|addr| addr.ip())).map(canonical_ip)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn client(peer: &str, lines: &[&'static str], trusted: &str) -> Result<String, Reason> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::from_static(line));
        }
        let addr = decide(peer.parse().unwrap(), &headers, &Networks::parse(trusted).unwrap())?;
        Ok(addr.client.to_string())
    }

    #[test]
    fn without_trust_the_peer_is_the_client_whatever_it_says() {
        assert_eq!(client("192.0.2.1", &["10.0.0.1"], "").unwrap(), "192.0.2.1");
        assert_eq!(client("192.0.2.1", &["10.0.0.1"], "10.0.0.0/8").unwrap(), "192.0.2.1");
    }

    #[test]
    fn behind_trusted_proxies_the_rightmost_untrusted_hop_is_the_client() {
        let trusted = "10.0.0.0/8 2001:db8::/32";
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 192.0.2.1, 10.9.9.9"], trusted).unwrap(), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["6.6.6.6", "192.0.2.1:4711"], trusted).unwrap(), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["[2001:db9::1]:80, [2001:db8::1]"], trusted).unwrap(), "2001:db9::1");
        assert_eq!(client("::ffff:10.0.0.1", &["::ffff:192.0.2.1"], trusted).unwrap(), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &["10.0.0.3, 10.0.0.2"], trusted).unwrap(), "10.0.0.3");
        assert_eq!(client("10.0.0.1", &[], trusted).unwrap(), "10.0.0.1");
    }

    #[test]
    fn a_hop_that_cannot_be_read_is_not_skipped() {
        assert_eq!(client("10.0.0.1", &["192.0.2.1, unknown"], "10.0.0.0/8"), Err(Reason::HeaderInvalid));
        assert_eq!(client("10.0.0.1", &["192.0.2.1,"], "10.0.0.0/8"), Err(Reason::HeaderInvalid));
        assert_eq!(client("10.0.0.1", &["garbage, 192.0.2.1"], "10.0.0.0/8").unwrap(), "192.0.2.1");
    }
}
