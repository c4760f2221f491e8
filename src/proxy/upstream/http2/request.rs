//! A request's head for HTTP/2. It is read from the one that was written for HTTP/1.1: only the connection tells which of them
//! is spoken, and what goes upstream is the same either way.

use crate::proxy::h1::Malformed;
use crate::proxy::headers::is_hop_by_hop;
use crate::proxy::upgrade::{self, WEBSOCKET};
use bytes::Bytes;
use h2::ext::Protocol;
use http::header::{HOST, HeaderName, SEC_WEBSOCKET_KEY, TE, TRAILER};
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderValue, Method, Request, Version};

/// Reads a head of ours.
///
/// # Errors
/// [`Malformed`], where HTTP/2 has no way to say it.
pub fn read(head: &[u8], scheme: Scheme) -> Result<Request<()>, Malformed> {
    let head = Bytes::copy_from_slice(head);
    let mut lines = lines(&head);
    let mut request = Request::new(());
    *request.version_mut() = Version::HTTP_2;
    let (method, target) = lines.next().and_then(first).ok_or(Malformed("a request without a first line"))?;
    *request.method_mut() = method;
    let mut host = None;
    for (name, value) in lines.filter_map(|line| field(&head, line)) {
        if name == HOST {
            host = Some(value);
        } else if !is_hop_by_hop(name.as_str()) || name == TE || name == TRAILER {
            request.headers_mut().append(name, value);
        }
    }
    let host = host.ok_or(Malformed("a request without a host"))?;
    *request.uri_mut() = uri(scheme, &host, target).ok_or(Malformed("a host that is no authority"))?;
    Ok(request)
}

/// Makes an extended CONNECT of a WebSocket's request (RFC 8441, section 5.1), which has no key; gives what proves to the client
/// that it was understood. None, and the request as it was, where it has not just one key.
pub fn connect(request: &mut Request<()>) -> Option<HeaderValue> {
    let mut keys = request.headers().get_all(SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else { return None };
    let accept = upgrade::accept_of(key.as_bytes()).try_into().ok()?;
    request.headers_mut().remove(SEC_WEBSOCKET_KEY);
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static(WEBSOCKET));
    Some(accept)
}

/// The lines of a head, the empty one at its end left out.
fn lines(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.is_empty())
}

fn first(line: &[u8]) -> Option<(Method, PathAndQuery)> {
    let mut parts = line.split(|byte| *byte == b' ');
    let method = Method::from_bytes(parts.next()?).ok()?;
    Some((method, PathAndQuery::try_from(parts.next()?).ok()?))
}

/// A field whose value shares the head's bytes.
fn field(head: &Bytes, line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = line.split_at_checked(colon)?;
    let value = value.strip_prefix(b": ")?;
    Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_maybe_shared(head.slice_ref(value)).ok()?))
}

fn uri(scheme: Scheme, host: &HeaderValue, target: PathAndQuery) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(host.as_bytes().try_into().ok()?);
    parts.path_and_query = Some(target);
    Uri::from_parts(parts).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_the_same_without_what_belongs_to_a_connection() {
        let head =
            b"POST /v1/a?b=c%20d HTTP/1.1\r\nhost: erp.example:8443\r\nx-a: 1: 2 \xff\r\nx-a: 3\r\nx-empty: \r\n\
                     te: trailers\r\nconnection: te\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
        let request = read(head, Scheme::HTTPS).unwrap();
        assert_eq!((request.method(), request.version()), (&Method::POST, Version::HTTP_2));
        assert_eq!(request.uri().to_string(), "https://erp.example:8443/v1/a?b=c%20d");
        let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let expected: [(&str, &[u8]); 5] =
            [("x-a", b"1: 2 \xff"), ("x-a", b"3"), ("x-empty", b""), ("te", b"trailers"), ("trailer", b"x-sum")];
        assert_eq!(fields, expected);
    }

    #[test]
    fn an_extended_connect_has_no_key_and_proves_that_it_was_understood() {
        let head = |keys: &str| format!("GET /chat HTTP/1.1\r\nhost: erp\r\nupgrade: websocket\r\n{keys}\r\n");
        let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let mut request = read(head(key).as_bytes(), Scheme::HTTP).unwrap();
        assert_eq!(connect(&mut request).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!((request.method(), request.uri().path()), (&Method::CONNECT, "/chat"));
        assert!(request.headers().is_empty());
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        for keys in ["", &key.repeat(2)] {
            let mut request = read(head(keys).as_bytes(), Scheme::HTTP).unwrap();
            assert!(connect(&mut request).is_none() && request.method() == Method::GET);
        }
    }

    #[test]
    fn every_host_that_is_judged_to_be_one_is_an_authority() {
        for host in ["erp", "a_b.example", "[::1]:80", "10.0.0.5:65535", "EXAMPLE.com"] {
            let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
            assert!(read(head.as_bytes(), Scheme::HTTP).is_ok(), "{host}");
        }
    }
}
