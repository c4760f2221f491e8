//! HTTP/1.1 messages as bytes, stricter than the libraries: the head of a response and the framing of a body. No I/O here: bytes
//! go into a buffer, and what they mean comes out.
//!
//! The strictness is the point. Whatever two readers could understand differently is [`Malformed`], and its connection is
//! never used again.

pub mod body;
pub mod chunked;
pub mod head;

pub use body::BodyReader;
pub use head::{ResponseHead, one_length, take_response};

use bytes::Bytes;
use http::HeaderMap;

/// A message that breaks HTTP/1.1 (RFC 9112); what was wrong, for the debug log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    /// The body is whole.
    End,
}

/// The most fields that a head or trailer section may have.
const FIELDS_MAX: usize = 100;

/// Where the first line of `bytes` ends, its CR LF not counted; `None` without a whole line.
///
/// # Errors
/// [`Malformed`] for a line that ends in LF alone.
fn line_end(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match memchr::memchr(b'\n', bytes) {
        None => Ok(None),
        Some(feed) => match feed.checked_sub(1) {
            Some(end) if bytes.get(end) == Some(&b'\r') => Ok(Some(end)),
            Some(_) | None => Err(Malformed("a line ends in LF alone")),
        },
    }
}

/// The length of the section of lines at the front of `bytes`, the empty line that ends it included; `None` while that is
/// missing.
///
/// # Errors
/// [`Malformed`] for a line that ends in LF alone.
fn section_len(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut at = 0;
    while let Some(end) = line_end(bytes.get(at..).unwrap_or_default())? {
        at += end + 2;
        if end == 0 {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
