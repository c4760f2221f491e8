//! Leaving HTTP on a connection: what a client wants, what its route allows, and whether the upstream has agreed (RFC 9110,
//! section 7.8; over HTTP/2 RFC 8441).

use super::canonical::{elements, lists};
use super::headers;
use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version};
use sha1::{Digest as _, Sha1};

/// What an extended CONNECT may ask for, and what begins with GET.
pub const WEBSOCKET: &str = "websocket";
const SEC_WEBSOCKET_KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
pub const SEC_WEBSOCKET_ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;
/// What a server adds to the key before it digests both (RFC 6455, section 1.3).
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a client would rather speak than HTTP.
#[derive(Debug)]
pub struct Wanted {
    /// In its order of preference.
    protocols: Vec<HeaderValue>,
    /// It can do nothing without: the request is an extended CONNECT.
    by_connect: bool,
}

/// What the upstream is asked to speak instead of HTTP.
#[derive(Debug)]
pub struct Upgrade {
    protocol: HeaderValue,
    /// The client's request was an extended CONNECT: the handshake with the upstream is ours.
    handshake: Option<Handshake>,
}

/// Of a WebSocket (RFC 6455, section 4).
#[derive(Debug)]
struct Handshake {
    key: String,
    accept: String,
}

// === impl Wanted ===

impl Wanted {
    /// What `Upgrade` says, where it means something: in HTTP/1.1, and listed by `Connection`.
    pub fn of(received: &HeaderMap, listed: &[HeaderName], version: Version) -> Option<Box<Self>> {
        if version != Version::HTTP_11 || !listed.contains(&header::UPGRADE) {
            return None;
        }
        let protocols = elements(received, &header::UPGRADE).filter_map(|name| HeaderValue::from_bytes(name).ok());
        Some(Box::new(Self { protocols: protocols.collect(), by_connect: false }))
    }

    /// What an extended CONNECT asks for, if that is a WebSocket.
    pub fn by_connect(protocol: &Protocol) -> Option<Box<Self>> {
        let is_websocket = protocol.as_str().eq_ignore_ascii_case(WEBSOCKET);
        let protocols = vec![HeaderValue::from_static(WEBSOCKET)];
        is_websocket.then(|| Box::new(Self { protocols, by_connect: true }))
    }

    /// Removes from an extended CONNECT what only a handshake over HTTP/1.1 has.
    pub fn clean(received: &mut HeaderMap) {
        received.remove(SEC_WEBSOCKET_KEY);
        received.remove(SEC_WEBSOCKET_ACCEPT);
    }

    pub const fn is_by_connect(&self) -> bool {
        self.by_connect
    }
}

// === impl Upgrade ===

impl Upgrade {
    /// The first protocol that is wanted and that `is_allowed` lets pass. Without one the request goes on as an ordinary one
    /// (RFC 9110, section 7.8: `Upgrade` may be ignored), as does one with a body, which would have to come before the switch, and a
    /// HEAD.
    pub fn choose(wanted: &Wanted, method: &Method, has_body: bool, is_allowed: impl Fn(&str) -> bool) -> Option<Self> {
        if (has_body && !wanted.by_connect) || *method == Method::HEAD {
            return None;
        }
        let fits = |protocol: &&HeaderValue| {
            protocol.to_str().is_ok_and(|name| is_allowed(name) && (*method == Method::GET || !is_websocket(name)))
        };
        let protocol = wanted.protocols.iter().find(fits)?.clone();
        Some(Self { protocol, handshake: wanted.by_connect.then(Handshake::new) })
    }

    /// The client's request is an extended CONNECT: it knows no answer but a refusal and the tunnel.
    pub const fn is_by_connect(&self) -> bool {
        self.handshake.is_some()
    }

    /// It is one that HTTP/2 knows (RFC 8441).
    pub fn is_websocket(&self) -> bool {
        self.protocol.to_str().is_ok_and(is_websocket)
    }

    /// Writes the fields of the request that ask for it.
    pub fn write(&self, out: &mut Vec<u8>) {
        headers::push(out, "connection: ", b"upgrade");
        headers::push(out, "upgrade: ", self.protocol.as_bytes());
        if let Some(handshake) = &self.handshake {
            headers::push(out, "sec-websocket-key: ", handshake.key.as_bytes());
        }
    }

    /// Whether a 101 agrees to what was asked, and to nothing else.
    pub fn is_agreed(&self, answer: &HeaderMap) -> bool {
        let mut protocols = elements(answer, &header::UPGRADE);
        let is_same = protocols.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(self.protocol.as_bytes()));
        let is_only = protocols.next().is_none();
        let is_proven = self.handshake.as_ref().is_none_or(|handshake| {
            answer.get(SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| accept.as_bytes() == handshake.accept.as_bytes())
        });
        is_same && is_only && is_proven && lists(answer, &header::CONNECTION, b"upgrade")
    }

    /// Makes the client's answer of the upstream's 101, or what stands for it over HTTP/2; its own fields of the connection are gone.
    pub fn answer(&self, response: &mut Response<()>) {
        if self.is_by_connect() {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        } else {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(header::UPGRADE, self.protocol.clone());
        }
    }
}

fn is_websocket(name: &str) -> bool {
    name.eq_ignore_ascii_case(WEBSOCKET)
}

// === impl Handshake ===

impl Handshake {
    fn new() -> Self {
        // It proves that the upstream has understood, and is no secret.
        Self::of(base64(&fastrand::u128(..).to_be_bytes()))
    }

    fn of(key: String) -> Self {
        let accept = accept_of(key.as_bytes());
        Self { key, accept }
    }
}

/// What a server answers to a key, which proves that it has understood.
pub fn accept_of(key: &[u8]) -> String {
    base64(&Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize())
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0u32, |bits, byte| (bits << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = DIGITS.get((bits >> (18 - 6 * place)) as usize & 63).copied().unwrap_or(b'=');
            text.push(if place <= group.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn wanted(protocols: &'static str) -> Box<Wanted> {
        Wanted::of(&map(&[("upgrade", protocols)]), &[header::UPGRADE], Version::HTTP_11).unwrap()
    }

    fn chosen(wanted: &Wanted, method: &Method, has_body: bool) -> Option<Upgrade> {
        Upgrade::choose(wanted, method, has_body, |name| ["websocket", "x"].contains(&&*name.to_ascii_lowercase()))
    }

    #[test]
    fn an_upgrade_is_wanted_only_where_the_field_means_something() {
        let lines = map(&[("upgrade", "websocket")]);
        assert!(Wanted::of(&lines, &[header::UPGRADE], Version::HTTP_11).is_some());
        assert!(Wanted::of(&lines, &[], Version::HTTP_11).is_none());
        assert!(Wanted::of(&lines, &[header::UPGRADE], Version::HTTP_10).is_none());
        assert!(Wanted::of(&lines, &[header::UPGRADE], Version::HTTP_2).is_none());
    }

    #[test]
    fn the_first_that_is_allowed_is_asked_for_alone() {
        for (protocols, expected) in [
            ("websocket", Some("websocket")),
            ("WebSocket, h2c", Some("WebSocket")),
            ("h2c, x, websocket", Some("x")),
            ("h2c", None),
            ("", None),
            ("websocket/13", None),
        ] {
            let chosen = chosen(&wanted(protocols), &Method::GET, false);
            assert_eq!(chosen.map(|upgrade| upgrade.protocol), expected.map(HeaderValue::from_static), "{protocols}");
        }
        assert!(chosen(&wanted("websocket"), &Method::POST, false).is_none());
        assert!(chosen(&wanted("x"), &Method::POST, false).is_some());
        assert!(chosen(&wanted("x"), &Method::POST, true).is_none());
        assert!(chosen(&wanted("x"), &Method::HEAD, false).is_none());
    }

    #[test]
    fn only_the_protocol_that_was_asked_for_is_agreed_to() {
        let upgrade = chosen(&wanted("websocket"), &Method::GET, false).unwrap();
        let agreed = |lines: &[(&'static str, &'static str)]| upgrade.is_agreed(&map(lines));
        assert!(agreed(&[("connection", "Upgrade"), ("upgrade", "WebSocket")]));
        assert!(agreed(&[("connection", "keep-alive, upgrade"), ("upgrade", "websocket")]));
        for lines in [
            &[("connection", "upgrade")][..],
            &[("upgrade", "websocket")],
            &[("connection", "upgrade"), ("upgrade", "x")],
            &[("connection", "upgrade"), ("upgrade", "websocket, x")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("upgrade", "h2c")],
        ] {
            assert!(!agreed(lines), "{lines:?}");
        }
    }

    #[test]
    fn the_handshake_is_that_of_rfc_6455() {
        assert_eq!(Handshake::of("dGhlIHNhbXBsZSBub25jZQ==".into()).accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(Handshake::new().key.len(), 24);
        for (bytes, text) in
            [(&b""[..], ""), (b"f", "Zg=="), (b"fo", "Zm8="), (b"foo", "Zm9v"), (b"foobar", "Zm9vYmFy")]
        {
            assert_eq!(base64(bytes), text);
        }
    }

    #[test]
    fn an_extended_connect_is_proven_by_the_upstreams_digest() {
        let wanted = Wanted::by_connect(&Protocol::from_static("websocket")).unwrap();
        let upgrade = chosen(&wanted, &Method::GET, true).unwrap();
        let mut answer = map(&[("connection", "upgrade"), ("upgrade", "websocket")]);
        assert!(!upgrade.is_agreed(&answer));
        answer.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(!upgrade.is_agreed(&answer));
        let accept = &upgrade.handshake.as_ref().unwrap().accept;
        answer.insert(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_str(accept).unwrap());
        assert!(upgrade.is_agreed(&answer));
        assert!(Wanted::by_connect(&Protocol::from_static("connect-udp")).is_none());
    }
}
