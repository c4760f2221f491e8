//! The canonical form of a request's head: what is ambiguous is refused, and what passes is one string that routing,
//! authorization and forwarding all use (the attack classes are in the threat model's page of the manual).

use super::upgrade::{WEBSOCKET, Wanted};
use crate::key::Prefix;
use crate::policy::{Denial, Permit};
use crate::reason::Reason;
use http::header::{self, Entry, HeaderName};
use http::uri::{PathAndQuery, Scheme};
use http::{Extensions, HeaderMap, HeaderValue, Method, Uri, Version, request};

/// A head that was judged. The upstream request is rebuilt from it, so that nothing is forwarded that was not judged.
#[derive(Debug)]
pub struct Judged {
    pub method: Method,
    /// Canonical path and the query as received. What is routed is what is forwarded.
    pub target: PathAndQuery,
    /// The one valid `Host`.
    pub host: HeaderValue,
    pub version: Version,
    /// Every field of the head but `Host` and those that `Connection` listed.
    pub headers: HeaderMap,
    /// What `Connection` listed: the fields of these names, wherever they stand, are the client's connection's alone.
    pub listed: Vec<HeaderName>,
    /// The client can take response trailers (`TE: trailers`).
    pub takes_trailers: bool,
    /// What the client would rather speak than HTTP.
    pub wanted: Option<Box<Wanted>>,
}

/// The bounds of a head that are judged here, where the client still gets an answer it can read.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    pub target_bytes_max: usize,
    pub head_bytes_max: usize,
    pub head_fields_max: usize,
}

// === impl Judged ===

impl Judged {
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// An extended CONNECT is taken only where its protocol is: it is a method of its own then.
    ///
    /// # Errors
    /// [`Denial`].
    pub fn check_connect(&self, permit: &Permit) -> Result<(), Denial> {
        let is_refused =
            self.wanted.as_ref().is_some_and(|wanted| wanted.is_by_connect()) && !permit.route().upgrades_to(WEBSOCKET);
        if is_refused { Err(Denial::method(permit.route())) } else { Ok(()) }
    }

    /// Those of `allowed` that may follow this request's body.
    pub fn trailers(&self, allowed: &[HeaderName]) -> Vec<HeaderName> {
        allowed.iter().filter(|name| !self.listed.contains(name)).cloned().collect()
    }

    /// Those of `trailers` that the client announces.
    pub fn announced<'a>(&self, trailers: &'a [HeaderName]) -> impl Iterator<Item = &'a HeaderName> {
        let is_announced = |name: &&HeaderName| lists(&self.headers, &header::TRAILER, name.as_str().as_bytes());
        trailers.iter().filter(is_announced)
    }

    /// Judges a head.
    ///
    /// # Errors
    /// The reason for the refusal. It is the same on every route, before authentication.
    pub fn judge(head: request::Parts, limits: HeadLimits, prefix: &Prefix) -> Result<Self, Reason> {
        let request::Parts { method, uri, version, mut headers, extensions, .. } = head;
        let (method, connect) = take_connect(method, &extensions, &mut headers);
        check_method(&method)?;
        check_size(&uri, &headers, limits)?;
        let host = take_host(&mut headers)?;
        check_authority(&uri, &host)?;
        let target = canonical_target(&uri)?;
        if prefix.occurs_in(target.as_str().as_bytes()) {
            return Err(Reason::CredentialInTarget);
        }
        check_framing(&headers)?;
        check_expectation(&mut headers)?;
        let takes_trailers = lists(&headers, &header::TE, b"trailers");
        let listed = listed(&headers)?;
        let wanted = connect.or_else(|| Wanted::of(&headers, &listed, version));
        listed.iter().for_each(|name| _ = headers.remove(name));
        Ok(Self { method, target, host, version, headers, listed, takes_trailers, wanted })
    }
}

/// Gives a head of HTTP/2 the form that one of HTTP/1.1 has, before anything reads it: `:authority` is the `Host` where there is
/// no other (RFC 9113, section 8.3.1; where there is, they are compared as with an absolute target), and a `Cookie` that was
/// sent in crumbs is one line again (section 8.2.3).
pub fn gather(head: &mut request::Parts) {
    if !head.headers.contains_key(header::HOST)
        && let Some(authority) = head.uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        head.headers.insert(header::HOST, host);
    }
    let crumbs: Vec<&[u8]> = head.headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if crumbs.len() > 1
        && let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
    {
        head.headers.insert(header::COOKIE, cookie);
    }
}

/// An extended CONNECT (RFC 8441, section 4) asks for what GET and `Upgrade` ask for over HTTP/1.1, and is judged as that.
fn take_connect(method: Method, extensions: &Extensions, headers: &mut HeaderMap) -> (Method, Option<Box<Wanted>>) {
    if method != Method::CONNECT {
        return (method, None);
    }
    match extensions.get().and_then(Wanted::by_connect) {
        Some(wanted) => {
            Wanted::clean(headers);
            (Method::GET, Some(wanted))
        }
        None => (method, None),
    }
}

/// TRACE echoes credentials, CONNECT makes tunnels: never, on no route.
fn check_method(method: &Method) -> Result<(), Reason> {
    let forbidden = *method == Method::TRACE || *method == Method::CONNECT || method.as_str() == "TRACK";
    if forbidden { Err(Reason::MethodForbidden) } else { Ok(()) }
}

fn check_size(uri: &Uri, headers: &HeaderMap, limits: HeadLimits) -> Result<(), Reason> {
    let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target > limits.target_bytes_max {
        return Err(Reason::TargetTooLong);
    }
    let bytes = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    if headers.len() > limits.head_fields_max || bytes + target > limits.head_bytes_max {
        return Err(Reason::HeadTooLarge);
    }
    Ok(())
}

/// Takes the one valid `Host` (RFC 9110, section 7.2): `host` or `host:port`, for HTTP/1.0 as well.
fn take_host(headers: &mut HeaderMap) -> Result<HeaderValue, Reason> {
    let Entry::Occupied(lines) = headers.entry(header::HOST) else { return Err(Reason::HostInvalid) };
    if lines.iter().nth(1).is_some() {
        return Err(Reason::HostInvalid);
    }
    let host = lines.remove();
    if is_host(host.as_bytes()) { Ok(host) } else { Err(Reason::HostInvalid) }
}

fn is_host(host: &[u8]) -> bool {
    let (name, port) = split_port(host);
    let port_valid = port.is_none_or(|port| {
        (1..=5).contains(&port.len()) && std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok())
    });
    port_valid && (is_reg_name(name) || is_ip_literal(name))
}

/// Splits `host:port`; a colon inside brackets belongs to the address.
pub(super) fn split_port(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    match host.iter().rposition(|byte| *byte == b':') {
        Some(colon) if !host.ends_with(b"]") => {
            let (name, port) = host.split_at(colon);
            (name, port.strip_prefix(b":"))
        }
        _ => (host, None),
    }
}

fn is_reg_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

fn is_ip_literal(name: &[u8]) -> bool {
    let inner = name.strip_prefix(b"[").and_then(|rest| rest.strip_suffix(b"]"));
    inner.and_then(|text| std::str::from_utf8(text).ok()).is_some_and(|text| text.parse::<std::net::Ipv6Addr>().is_ok())
}

/// The target must be in origin form, or in absolute form with the authority that `Host` names. Without a scheme an
/// authority is what the library makes of `GET admin HTTP/1.1`.
fn check_authority(uri: &Uri, host: &HeaderValue) -> Result<(), Reason> {
    match (uri.scheme(), uri.authority()) {
        (None, None) => Ok(()),
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {
            let default_port: &[u8] = if *scheme == Scheme::HTTP { b"80" } else { b"443" };
            let same = same_host(authority.as_str().as_bytes(), host.as_bytes(), default_port);
            if same { Ok(()) } else { Err(Reason::HostMismatch) }
        }
        _ => Err(Reason::TargetForm),
    }
}

fn same_host(left: &[u8], right: &[u8], default_port: &[u8]) -> bool {
    let (left, left_port) = split_port(left);
    let (right, right_port) = split_port(right);
    left.eq_ignore_ascii_case(right) && left_port.unwrap_or(default_port) == right_port.unwrap_or(default_port)
}

/// The canonical path and the query as received. The common case, a path without escapes, is the received one.
fn canonical_target(uri: &Uri) -> Result<PathAndQuery, Reason> {
    let target = uri.path_and_query().ok_or(Reason::TargetForm)?;
    let path = target.path();
    if !path.starts_with('/') {
        return Err(Reason::TargetForm);
    }
    let Some(rewritten) = canonical_path(path)? else { return Ok(target.clone()) };
    let text = match target.query() {
        Some(query) => format!("{rewritten}?{query}"),
        None => rewritten,
    };
    PathAndQuery::try_from(text).map_err(|_| Reason::PathAmbiguous)
}

/// The canonical form of `path`; `None` when it is canonical already. Escaped unreserved characters are decoded, once;
/// the escapes that stay are written in upper case (RFC 3986, section 6.2.2).
///
/// # Errors
/// [`Reason::PathAmbiguous`] for whatever two readers could read differently: empty and dot segments, escaped
/// separators, escapes of escapes, controls, bytes that are not UTF-8, `;`, `\` and what is no path character at all.
pub fn canonical_path(path: &str) -> Result<Option<String>, Reason> {
    if is_evidently_canonical(path.as_bytes()) {
        return Ok(None);
    }
    let canonical = decode_unreserved(path.as_bytes())?;
    check_segments(&canonical)?;
    Ok((canonical != path).then_some(canonical))
}

/// Whether every byte is plain and no segment is empty or begins with a dot: nearly all paths, and one look at each byte.
fn is_evidently_canonical(path: &[u8]) -> bool {
    let (plain, _) = path.iter().fold((path.first() == Some(&b'/'), 0), |(plain, before), &byte| {
        let begins_badly = (before == b'/') & ((byte == b'/') | (byte == b'.'));
        (plain & PLAIN[usize::from(byte)] & !begins_badly, byte) // tidy: allow(a byte indexes 256 entries)
    });
    plain
}

/// [`is_plain`] of each byte.
const PLAIN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = is_plain(byte as u8); // tidy: allow(bounded by the loop)
        byte += 1;
    }
    table
};

/// Path characters that need no second look: `pchar` of RFC 3986 but `%` and `;`, and the slash.
const fn is_plain(byte: u8) -> bool {
    is_unreserved(byte)
        || matches!(byte, b'/' | b':' | b'@' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=')
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// No segment may be empty, `.` or `..`; a trailing slash is part of the path.
fn check_segments(path: &str) -> Result<(), Reason> {
    let inner = path.strip_prefix('/').ok_or(Reason::TargetForm)?;
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if path == "/" {
        return Ok(());
    }
    let mut segments = inner.as_bytes().split(|byte| *byte == b'/');
    let ambiguous = segments.any(|segment| matches!(segment, b"" | b"." | b".."));
    if ambiguous { Err(Reason::PathAmbiguous) } else { Ok(()) }
}

fn decode_unreserved(path: &[u8]) -> Result<String, Reason> {
    let mut canonical = String::with_capacity(path.len());
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            if !is_plain(byte) {
                return Err(Reason::PathAmbiguous);
            }
            canonical.push(char::from(byte));
            decoded.push(byte);
            continue;
        }
        let (value, tail) = take_escape(rest)?;
        if is_refused_escape(value) {
            return Err(Reason::PathAmbiguous);
        }
        if is_unreserved(value) {
            canonical.push(char::from(value));
        } else {
            push_escape(&mut canonical, value);
        }
        decoded.push(value);
        rest = tail;
    }
    // The escapes must spell UTF-8: an overlong form of a separator is a separator to some readers.
    std::str::from_utf8(&decoded).map_err(|_| Reason::PathAmbiguous)?;
    if hides_an_escape(&canonical) { Err(Reason::PathAmbiguous) } else { Ok(canonical) }
}

/// Whether decoding once would leave an escape: a reader that decodes twice would see another path.
fn hides_an_escape(canonical: &str) -> bool {
    canonical.split("%25").skip(1).any(|rest| {
        let next = rest.as_bytes().get(..2);
        next.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Reads the two hex digits after a `%`.
fn take_escape(rest: &[u8]) -> Result<(u8, &[u8]), Reason> {
    let (digits, tail) = rest.split_at_checked(2).ok_or(Reason::PathAmbiguous)?;
    let value = digits.iter().try_fold(0u8, |value, digit| {
        let digit = char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        digit.map(|digit| (value << 4) | digit).ok_or(Reason::PathAmbiguous)
    })?;
    Ok((value, tail))
}

/// Escapes that hide a separator, a parameter or a control from whoever looks before decoding.
const fn is_refused_escape(value: u8) -> bool {
    matches!(value, b'/' | b'\\' | b';' | 0x00..=0x1f | 0x7f)
}

fn push_escape(text: &mut String, value: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    text.push('%');
    text.push(char::from(HEX[usize::from(value >> 4)])); // tidy: allow(four bits index 16 digits)
    text.push(char::from(HEX[usize::from(value & 15)])); // tidy: allow(four bits index 16 digits)
}

/// The only transfer coding that has one meaning is exactly `chunked`. With it, the library has dropped any
/// `Content-Length` already; our client frames the body anew.
fn check_framing(headers: &HeaderMap) -> Result<(), Reason> {
    if headers.keys().any(is_framing_in_disguise) {
        return Err(Reason::FramingAmbiguous);
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let chunked = match codings.next() {
        None => return Ok(()),
        Some(coding) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
    };
    if chunked && codings.next().is_none() { Ok(()) } else { Err(Reason::FramingAmbiguous) }
}

/// A server behind us that reads `_` as `-` (CGI and its heirs) would frame the body by a field that we did not judge.
fn is_framing_in_disguise(name: &HeaderName) -> bool {
    matches!(name.as_str(), "content_length" | "transfer_encoding")
}

/// `100-continue` is answered by the library when the body is first asked for, which is after authorization. The field
/// is never forwarded.
fn check_expectation(headers: &mut HeaderMap) -> Result<(), Reason> {
    let Entry::Occupied(lines) = headers.entry(header::EXPECT) else { return Ok(()) };
    let (_, mut lines) = lines.remove_entry_mult();
    match (lines.next(), lines.next()) {
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"100-continue") => Ok(()),
        _ => Err(Reason::ExpectationUnknown),
    }
}

/// What the client's `Connection` lists: to be removed before anything reads the rest.
fn listed(headers: &HeaderMap) -> Result<Vec<HeaderName>, Reason> {
    if !headers.contains_key(header::CONNECTION) {
        return Ok(Vec::new());
    }
    let names = elements(headers, &header::CONNECTION).map(HeaderName::from_bytes);
    let listed = names.collect::<Result<Vec<_>, _>>().map_err(|_| Reason::ConnectionInvalid)?;
    if listed.iter().any(is_relied_on) {
        return Err(Reason::ConnectionInvalid);
    }
    Ok(listed)
}

/// The elements of a field that is a list.
pub fn elements<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(name).iter();
    let elements = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    elements.map(<[u8]>::trim_ascii).filter(|element| !element.is_empty())
}

/// Whether a list has this element; case does not count.
pub fn lists(headers: &HeaderMap, name: &HeaderName, wanted: &[u8]) -> bool {
    headers.contains_key(name) && elements(headers, name).any(|element| element.eq_ignore_ascii_case(wanted))
}

/// Fields that a client may not have removed: the gateway reads them, or sets them for the upstream.
fn is_relied_on(name: &HeaderName) -> bool {
    let relied = [header::AUTHORIZATION, header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::COOKIE];
    relied.contains(name) || *name == "x-api-key" || super::headers::is_vouched_for(name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_plain_stays_as_it_is() {
        for path in ["/", "/v1/entities/1/orders", "/a/", "/a.b/c~d/(e)", "/a:b@c/x=1,2"] {
            assert_eq!(canonical_path(path), Ok(None), "{path}");
        }
    }

    #[test]
    fn unreserved_is_decoded_once_and_other_escapes_are_upper_case() {
        assert_eq!(canonical_path("/%61%2d%7E"), Ok(Some("/a-~".into())));
        assert_eq!(canonical_path("/a%20b%c3%a4"), Ok(Some("/a%20b%C3%A4".into())));
        assert_eq!(canonical_path("/a%20b"), Ok(None));
        assert_eq!(canonical_path("/100%25"), Ok(None));
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let refused = [
            "//",
            "/a//b",
            "//a",
            "/a//",
            "/.",
            "/..",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%2e%2e/a",
            "/%2E/a",
            "/.%2e/a",
            "/a%2fb",
            "/a%2Fb",
            "/a%5cb",
            "/a\\b",
            "/a%00",
            "/a%0d%0a",
            "/a%7f",
            "/a%zz",
            "/a%",
            "/a%2",
            "/a%252fb",
            "/a%252e",
            "/a;b",
            "/a%3bb",
            "/..;/a",
            "/a%c0%af",
            "/a%ff",
            "/a b",
            "/a\"b",
            "/a<b>",
            "/a{b}",
            "/a|b",
            "/a^b",
            "/a`b",
            "/ä",
        ];
        for path in refused {
            assert_eq!(canonical_path(path), Err(Reason::PathAmbiguous), "{path}");
        }
    }

    #[test]
    fn hosts() {
        for host in ["erp.example", "erp.example:8080", "10.0.0.1", "[::1]", "[::1]:80", "a_b"] {
            assert!(is_host(host.as_bytes()), "{host}");
        }
        for host in ["", ":80", "a:b", "a:", "a:99999", "user@host", "a,b", "a b", "[::1", "::1", "[zz]", "a/b", "ä"] {
            assert!(!is_host(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn authorities_compare_by_case_and_default_port() {
        assert!(same_host(b"ERP.example:80", b"erp.example", b"80"));
        assert!(same_host(b"[::1]", b"[::1]:80", b"80"));
        assert!(!same_host(b"erp.example:81", b"erp.example", b"80"));
        assert!(!same_host(b"erp.example", b"erp.example.evil", b"80"));
    }

    proptest! {
        /// What the table routes and what the upstream receives are one string: judging it again changes nothing, and
        /// decoding it with a reader that decodes everything finds no separator that was not there before.
        #[test]
        fn the_canonical_form_is_stable_and_hides_no_separator(path in "/([a-z.;%/\\\\]|%2[ef5F]|%5c|%61|%20|%25|%3[2e]|%c3%a4){0,12}") {
            if let Ok(rewritten) = canonical_path(&path) {
                let canonical = rewritten.unwrap_or(path);
                prop_assert_eq!(canonical_path(&canonical), Ok(None));
                let decoded = naive_decode(canonical.as_bytes());
                let slashes = |text: &[u8]| text.iter().filter(|byte| **byte == b'/').count();
                prop_assert_eq!(slashes(&decoded), slashes(canonical.as_bytes()));
                let segments: Vec<&[u8]> = decoded.split(|byte| *byte == b'/').collect();
                prop_assert!(!segments.iter().any(|segment| matches!(*segment, b"." | b"..")));
            }
        }

        #[test]
        fn judging_a_path_never_panics(path: String) {
            let _ = canonical_path(&path);
        }
    }

    fn naive_decode(text: &[u8]) -> Vec<u8> {
        let mut decoded = Vec::new();
        let mut index = 0;
        while index < text.len() {
            if text[index] == b'%' {
                let digits = std::str::from_utf8(&text[index + 1..index + 3]).unwrap();
                decoded.push(u8::from_str_radix(digits, 16).unwrap());
                index += 3;
            } else {
                decoded.push(text[index]);
                index += 1;
            }
        }
        decoded
    }
}
