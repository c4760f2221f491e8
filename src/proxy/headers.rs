//! Header fields: what a client may not say, and what the gateway says to the upstream in its own name.

use super::client_addr::{ClientAddr, X_FORWARDED_FOR};
use super::request_id::RequestId;
use super::trace::Trace;
use crate::key::{KeyId, Mode, Principal};
use crate::net::{push_ip, push_number};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use std::net::IpAddr;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Names whose content the gateway vouches for; a client's own copies are stripped on every route.
const VOUCHED: [&str; 6] = ["x-request-id", "x-key-id", "x-key-mode", "x-key-scopes", "x-entity-id", "traceparent"];
/// Everything below this name too: `-for`, `-proto`, `-host`, `-port`, `-prefix` and what others invent.
const VOUCHED_FAMILY: &str = "x-forwarded-";
/// Names that make some upstreams see another address, path or method than the one that was judged.
const MISLEADING: [&str; 8] = [
    "forwarded",
    "x-real-ip",
    "x-original-url",
    "x-rewrite-url",
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-api-key",
];

/// What is known of a request when it is forwarded, besides its head.
pub struct Vouched<'a> {
    pub request_id: &'a RequestId,
    pub trace: &'a Trace,
    pub addr: ClientAddr,
    /// What the client's connection speaks: `http` or `https`.
    pub scheme: &'static str,
    pub principal: Option<&'a Principal>,
    pub mode: Mode,
    /// `Host` as received.
    pub host: &'a HeaderValue,
    /// `[versions] header`.
    pub version_header: Option<&'a HeaderName>,
}

/// Whether the gateway sets this field for the upstream. `_` counts as `-`, as some upstreams read it.
pub fn is_vouched_for(name: &str) -> bool {
    VOUCHED.iter().any(|vouched| same_name(name, vouched))
        || name.get(..VOUCHED_FAMILY.len()).is_some_and(|start| same_name(start, VOUCHED_FAMILY))
}

/// Whether a field has a meaning of its own to the gateway or to HTTP, so that it cannot carry anything else.
pub fn is_reserved(name: &HeaderName) -> bool {
    let framing =
        [header::HOST, header::CONTENT_LENGTH, header::EXPECT, header::AUTHORIZATION, header::COOKIE, header::VIA];
    framing.contains(name) || is_hop_by_hop(name.as_str()) || is_stripped(name.as_str())
}

/// What decides how a message is read: too late behind its body (RFC 9110, section 6.5.1).
const NEVER_TRAILING: [&str; 9] = [
    "content-type",
    "content-encoding",
    "content-range",
    "range",
    "cache-control",
    "max-forwards",
    "set-cookie",
    "www-authenticate",
    "authentication-info",
];

/// Whether a route may let a field of this name follow a request's body.
pub fn may_trail(name: &HeaderName) -> bool {
    let plain = name.as_str().replace('_', "-");
    let is_condition = plain.starts_with("if-") || plain.starts_with("proxy-") || plain.starts_with("x-forwarded-");
    let is_reserved = HeaderName::from_bytes(plain.as_bytes()).map_or(true, |name| is_reserved(&name));
    !is_condition && !is_reserved && !NEVER_TRAILING.contains(&plain.as_str())
}

/// Whether a message is one of gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.as_bytes().get(..GRPC.len()));
    kind.is_some_and(|kind| kind.eq_ignore_ascii_case(GRPC))
}

/// Fields of one connection only (RFC 9110, section 7.6.1), besides those that `Connection` lists.
pub fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "transfer-encoding"
            | "te"
            | "trailer"
            | "upgrade"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authorization"
            | "proxy-authenticate"
            | "http2-settings"
    )
}

/// Whether a request's field stays behind. The names in question begin with few letters: most are passed by the first line.
fn is_stripped(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x' | b'f') => is_vouched_for(name) || MISLEADING.iter().any(|misleading| same_name(name, misleading)),
        Some(b'c' | b't' | b'u' | b'k' | b'p' | b'h') => is_hop_by_hop(name) || is_vouched_for(name),
        Some(_) | None => false,
    }
}

/// Compares names, `_` in `name` read as `-`. Both are lower case already.
fn same_name(name: &str, plain: &str) -> bool {
    name.len() == plain.len()
        && name.bytes().zip(plain.bytes()).all(|(left, right)| left == right || (left == b'_' && right == b'-'))
}

/// What forwarding headers a trusted proxy sent, taken before they are stripped.
#[derive(Debug, Default)]
pub struct Forwarded {
    hops: Option<HeaderValue>,
    proto: Option<HeaderValue>,
}

// === impl Forwarded ===

impl Forwarded {
    /// Takes over what a trusted proxy said; nothing from anybody else.
    pub fn take(headers: &HeaderMap, addr: ClientAddr) -> Self {
        if !addr.peer_trusted {
            return Self::default();
        }
        let proto = headers.get(X_FORWARDED_PROTO).filter(|proto| matches!(proto.as_bytes(), b"http" | b"https"));
        Self { hops: joined(headers), proto: proto.cloned() }
    }
}

/// All `X-Forwarded-For` lines as one.
fn joined(headers: &HeaderMap) -> Option<HeaderValue> {
    let lines: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    if lines.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(&lines.join(&b", "[..])).ok()
}

/// Writes the fields of an upstream request: those of `received` that a client may say, then those that the gateway vouches
/// for. A client's own copies of these, what misleads, and what belongs to the client's connection stay behind on every
/// route; the body is framed anew, so its length does too.
pub fn write(out: &mut Vec<u8>, received: &HeaderMap, vouched: &Vouched<'_>, forwarded: &Forwarded) {
    for (name, value) in received {
        if !is_stripped(name.as_str()) && *name != header::CONTENT_LENGTH {
            push_received(out, name, value);
        }
    }
    push(out, "via: ", b"1.1 keygate");
    push(out, "x-request-id: ", vouched.request_id.as_str().as_bytes());
    push_with(out, "traceparent: ", |out| vouched.trace.push(out));
    push_with(out, "x-forwarded-for: ", |out| push_hops(out, vouched.addr.peer, forwarded.hops.as_ref()));
    push(out, "x-forwarded-proto: ", forwarded.proto.as_ref().map_or(vouched.scheme.as_bytes(), HeaderValue::as_bytes));
    push(out, "x-forwarded-host: ", vouched.host.as_bytes());
    push(out, "x-key-mode: ", mode_name(vouched.mode));
    if let Some(principal) = vouched.principal {
        write_identity(out, received, principal, vouched.version_header);
    }
}

fn write_identity(out: &mut Vec<u8>, received: &HeaderMap, principal: &Principal, version_header: Option<&HeaderName>) {
    push_with(out, "x-key-id: ", |out| push_key_id(out, principal.id));
    push(out, "x-key-scopes: ", principal.grant.header.as_bytes());
    push(out, "x-entity-id: ", principal.entity.id.as_bytes());
    if let (Some(name), Some(version)) = (version_header, &principal.api_version)
        && !received.contains_key(name)
    {
        push_received(out, name, version);
    }
}

/// Writes a field as it was received.
pub fn push_received(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    out.extend_from_slice(name.as_str().as_bytes());
    push(out, ": ", value.as_bytes());
}

/// Writes one field; `name` includes the colon and a space.
pub fn push(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    push_with(out, name, |out| out.extend_from_slice(value));
}

/// Writes `Content-Length`.
pub fn push_length(out: &mut Vec<u8>, length: u64) {
    push_with(out, "content-length: ", |out| push_number(out, length));
}

fn push_with(out: &mut Vec<u8>, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(name.as_bytes());
    value(out);
    out.extend_from_slice(b"\r\n");
}

const fn mode_name(mode: Mode) -> &'static [u8] {
    match mode {
        Mode::Test => b"test",
        Mode::Live => b"live",
    }
}

fn push_key_id(out: &mut Vec<u8>, id: KeyId) {
    out.extend_from_slice(b"key_");
    out.extend_from_slice(&id.ulid().text());
}

fn push_hops(out: &mut Vec<u8>, peer: IpAddr, hops: Option<&HeaderValue>) {
    if let Some(hops) = hops {
        out.extend_from_slice(hops.as_bytes());
        out.extend_from_slice(b", ");
    }
    push_ip(out, peer);
}

fn remove_all(headers: &mut HeaderMap, condition: impl Fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| condition(name.as_str())).cloned() {
        headers.remove(name);
    }
}

/// Removes from a response what belongs to the upstream's connection alone, besides what its `Connection` lists.
pub fn clean_response(headers: &mut HeaderMap, request_id: &RequestId) {
    clean_hops(headers);
    headers.insert(X_REQUEST_ID, request_id.to_header());
}

/// The same for what comes before the response.
pub fn clean_hops(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    // `Trailer` stays: towards HTTP/1.1 the library sends only the trailers that it announces.
    remove_all(headers, |name| is_hop_by_hop(name) && name != "trailer");
}

/// Announces the trailers of a gRPC response to a client of HTTP/1.1 that takes them: from HTTP/2 they come unannounced, and
/// the library sends only those that were.
pub fn announce_grpc(headers: &mut HeaderMap) {
    const TRAILERS: HeaderValue = HeaderValue::from_static("grpc-status, grpc-message, grpc-status-details-bin");
    if is_grpc(headers) {
        headers.append(header::TRAILER, TRAILERS);
    }
}

/// Removes from a response what HTTP/2 has no use for, and forbids (RFC 9113, section 8.2.2).
pub fn clean_for_http2(headers: &mut HeaderMap) {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        headers.remove(name);
    }
}

/// Removes from a response's trailers what frames a message, belongs to one connection or is ours to say (RFC 9110, section
/// 6.5.1).
pub fn clean_trailers(trailers: &mut HeaderMap) {
    remove_all(trailers, |name| {
        is_hop_by_hop(name) || is_vouched_for(name) || matches!(name, "content-length" | "host" | "set-cookie")
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_how_a_request_is_read_does_not_follow_it() {
        for name in ["x-checksum", "grpc-status", "digest", "server-timing", "x_sum", "etag"] {
            assert!(may_trail(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "content-length",
            "content_length",
            "transfer-encoding",
            "transfer_encoding",
            "host",
            "authorization",
            "cookie",
            "x-key-id",
            "x_key_id",
            "x-entity-id",
            "x-forwarded-for",
            "x_forwarded_host",
            "x-real-ip",
            "x-api-key",
            "x_api_key",
            "x-request-id",
            "x-http-method-override",
            "connection",
            "upgrade",
            "te",
            "trailer",
            "expect",
            "if-match",
            "if-none-match",
            "range",
            "content-type",
            "content-encoding",
            "content_type",
            "via",
            "proxy-authorization",
            "set-cookie",
            "forwarded",
            "traceparent",
            "keep-alive",
            "cache-control",
        ] {
            assert!(!may_trail(&HeaderName::from_static(name)), "{name}");
        }
    }

    #[test]
    fn underscores_do_not_hide_a_name() {
        for name in ["x-key-id", "x_key_id", "x-forwarded-for", "x_forwarded_host", "x-forwarded-anything", "forwarded"]
        {
            assert!(is_stripped(name), "{name}");
        }
        for name in ["x-key-identity", "x-custom", "accept", "tracestate", "content-type", "from", "x-forward"] {
            assert!(!is_stripped(name), "{name}");
        }
    }
}
