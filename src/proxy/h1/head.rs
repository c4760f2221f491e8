//! The head of a response, and how its body is framed (RFC 9112, sections 4 to 6).

use super::body::BodyReader;
use super::{FIELDS_MAX, Malformed, section_len};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use std::mem::MaybeUninit;

/// The largest head that is read.
const HEAD_MAX: usize = 64 * 1024;

/// A response's head and what it says about what follows.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status and fields; `Transfer-Encoding` is taken out, and `Content-Length` is there at most once.
    pub response: Response<()>,
    pub body: BodyReader,
    /// The connection may serve another request after the body.
    pub keeps_alive: bool,
}

/// Takes the head at the front of `buf`; `None` while it is not whole. `to_head` says that the request was a HEAD.
///
/// # Errors
/// [`Malformed`]: not HTTP/1.x, a bare LF, a folded line, too large, or a body whose length is not certain.
pub fn take_response(buf: &mut BytesMut, to_head: bool) -> Result<Option<ResponseHead>, Malformed> {
    let Some(len) = section_len(buf)? else {
        return if buf.len() < HEAD_MAX { Ok(None) } else { Err(Malformed("the head is too large")) };
    };
    let head = buf.split_to(len).freeze();
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let whole = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, &head, &mut fields);
    if !matches!(whole, Ok(httparse::Status::Complete(parsed)) if parsed == len) {
        return Err(Malformed("the head is not HTTP/1.1"));
    }
    let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(Malformed("no such status"))?;
    let is_http_11 = parsed.version == Some(1);
    let mut headers = fields_of(&head, parsed.headers)?;
    let keeps_alive = is_http_11 && !says_close(&headers);
    let body = framing(&mut headers, status, to_head, is_http_11)?;
    let keeps_alive = keeps_alive && !matches!(body, BodyReader::UntilClose);
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(Some(ResponseHead { response, body, keeps_alive }))
}

/// Fields whose values share the bytes they arrived in.
pub(super) fn fields_of(head: &Bytes, parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for field in parsed {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Malformed("a field has no name"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value));
        headers.append(name, value.map_err(|_| Malformed("a field has no value"))?);
    }
    Ok(headers)
}

fn says_close(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::CONNECTION).iter();
    lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b',')).any(|option| {
        let option = option.trim_ascii();
        option.eq_ignore_ascii_case(b"close")
    })
}

/// How the body is framed (RFC 9112, section 6.3). A length beside a transfer coding is an attempt to be read in two ways.
fn framing(
    headers: &mut HeaderMap,
    status: StatusCode,
    to_head: bool,
    is_http_11: bool,
) -> Result<BodyReader, Malformed> {
    let length = one_length(headers)?;
    let is_chunked = take_coding(headers)?;
    if is_chunked && (length.is_some() || !is_http_11) {
        return Err(Malformed("a transfer coding beside a length, or in HTTP/1.0"));
    }
    let has_body = !to_head && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED;
    Ok(match length {
        _ if !has_body => BodyReader::Done,
        Some(length) => BodyReader::of_length(length),
        None if is_chunked => BodyReader::chunked(),
        None => BodyReader::UntilClose,
    })
}

/// The one length that all `Content-Length` lines say; several equal ones become one.
///
/// # Errors
/// [`Malformed`]: something else than digits, or two that differ.
pub fn one_length(headers: &mut HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return Ok(None) };
    let length = digits(first.as_bytes()).ok_or(Malformed("the length is not a number"))?;
    match lines.next() {
        None => return Ok(Some(length)),
        Some(second) if second != first || lines.any(|line| line != first) => {
            return Err(Malformed("two different lengths"));
        }
        Some(_) => {}
    }
    let first = first.clone();
    headers.insert(header::CONTENT_LENGTH, first);
    Ok(Some(length))
}

/// Digits alone: no sign, no blanks, no list.
fn digits(text: &[u8]) -> Option<u64> {
    let all = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| all)?.parse().ok()
}

/// Takes `Transfer-Encoding` out; whether it was `chunked`, the only coding with one meaning here.
fn take_coding(headers: &mut HeaderMap) -> Result<bool, Malformed> {
    let header::Entry::Occupied(coding) = headers.entry(header::TRANSFER_ENCODING) else { return Ok(false) };
    let is_chunked = coding.get().as_bytes().eq_ignore_ascii_case(b"chunked") && coding.iter().nth(1).is_none();
    coding.remove_entry_mult();
    if is_chunked { Ok(true) } else { Err(Malformed("a transfer coding other than chunked")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Option<ResponseHead>, Malformed> {
        take_response(&mut BytesMut::from(text), false)
    }

    #[test]
    fn a_head_is_taken_when_it_is_whole_and_not_a_byte_more() {
        let whole = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: a b\r\n\r\n";
        for len in 0..whole.len() {
            assert!(take(&whole[..len]).unwrap().is_none(), "{len}");
        }
        let mut buf = BytesMut::from(format!("{whole}abc").as_str());
        let head = take_response(&mut buf, false).unwrap().unwrap();
        assert_eq!((head.response.status().as_u16(), &buf[..]), (200, &b"abc"[..]));
        assert_eq!(head.response.headers()["x"], "a b");
        assert!(head.keeps_alive);
        assert_eq!(head.body, BodyReader::of_length(3));
    }

    #[test]
    fn a_body_has_one_length_or_the_response_is_refused() {
        let framing = |lines: &str| take(&format!("HTTP/1.1 200 OK\r\n{lines}\r\n")).map(|head| head.unwrap().body);
        assert_eq!(framing("Content-Length: 0\r\n"), Ok(BodyReader::Done));
        assert_eq!(framing("Content-Length: 7\r\nContent-Length: 7\r\n"), Ok(BodyReader::of_length(7)));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(BodyReader::chunked()));
        assert_eq!(framing(""), Ok(BodyReader::UntilClose));
        for lines in [
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: \r\n",
            "Content-Length: 0x7\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: identity\r\n",
            "X: a\r\n b\r\n",
            "Bad Name: a\r\n",
            "X: a\n",
        ] {
            assert!(framing(lines).is_err(), "{lines:?}");
        }
        assert!(take("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(take("HTTP/1.1 200 OK\n\n").is_err());
    }

    #[test]
    fn responses_that_have_no_body_by_definition_keep_their_length() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
        let head = take_response(&mut BytesMut::from(text), true).unwrap().unwrap();
        assert_eq!((head.body, head.keeps_alive), (BodyReader::Done, true));
        assert_eq!(head.response.headers()["content-length"], "9");
        for status in ["204 No Content", "304 Not Modified"] {
            let head = take(&format!("HTTP/1.1 {status}\r\nContent-Length: 9\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.body, BodyReader::Done, "{status}");
        }
    }

    #[test]
    fn a_connection_is_kept_only_when_both_sides_know_where_the_body_ends() {
        let keeps = |text: &str| take(text).unwrap().unwrap().keeps_alive;
        assert!(keeps("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
        assert!(!keeps("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(!keeps("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"));
        assert!(!keeps("HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n"));
    }

    #[test]
    fn a_head_without_end_is_refused_at_its_bound() {
        let mut buf = BytesMut::from("HTTP/1.1 200 OK\r\n");
        while buf.len() < HEAD_MAX {
            assert!(take_response(&mut buf, false).unwrap().is_none());
            buf.extend_from_slice(format!("X-{}: {}\r\n", buf.len(), "a".repeat(1000)).as_bytes());
        }
        assert!(take_response(&mut buf, false).is_err());
    }
}
