//! A body's framing: where it ends.

use super::chunked::Chunked;
use super::{Malformed, Piece};
use bytes::BytesMut;

/// Reads a body out of a buffer, by the framing that its head announced (RFC 9112, section 6.3).
#[derive(Debug, PartialEq, Eq)]
pub enum BodyReader {
    /// So many bytes are still to come; never 0.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

// === impl BodyReader ===

impl BodyReader {
    pub const fn of_length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    pub fn chunked() -> Self {
        Self::Chunked(Chunked::default())
    }

    /// The next piece in `buf`; `None` when more bytes are needed. Once the last byte was given, the body is done.
    ///
    /// # Errors
    /// [`Malformed`] chunks or trailers.
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        match self {
            Self::Done => Ok(Some(Piece::End)),
            _ if buf.is_empty() => Ok(None),
            Self::UntilClose => Ok(Some(Piece::Data(buf.split().freeze()))),
            Self::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
                *self = Self::of_length(*left - len as u64);
                Ok(Some(Piece::Data(buf.split_to(len).freeze())))
            }
            Self::Chunked(chunked) => {
                let piece = chunked.next(buf)?;
                if chunked.is_done() {
                    *self = Self::Done;
                }
                Ok(piece)
            }
        }
    }

    /// The peer sends no more: the end of a body that ends so.
    ///
    /// # Errors
    /// [`Malformed`] when the framing promised more.
    pub const fn end_of_stream(&mut self) -> Result<Piece, Malformed> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(Piece::End)
            }
            Self::Length(_) | Self::Chunked(_) => Err(Malformed("the body ends early")),
        }
    }

    pub const fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The bytes still to come, where the framing tells.
    pub const fn exact_len(&self) -> Option<u64> {
        match self {
            Self::Done => Some(0),
            Self::Length(left) => Some(*left),
            Self::Chunked(_) | Self::UntilClose => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn what_follows_a_body_stays_in_the_buffer() {
        let (mut body, mut buf) = (BodyReader::of_length(5), BytesMut::from("abc"));
        assert_eq!(body.next(&mut buf), Ok(Some(Piece::Data(Bytes::from("abc")))));
        assert_eq!((body.next(&mut buf), body.exact_len()), (Ok(None), Some(2)));
        buf.extend_from_slice(b"deX");
        assert_eq!(body.next(&mut buf), Ok(Some(Piece::Data(Bytes::from("de")))));
        assert!(body.is_done() && &buf[..] == b"X");
        assert_eq!(body.next(&mut buf), Ok(Some(Piece::End)));
    }

    #[test]
    fn the_peers_end_ends_only_a_body_that_ends_so() {
        assert_eq!(BodyReader::UntilClose.end_of_stream(), Ok(Piece::End));
        assert!(BodyReader::of_length(1).end_of_stream().is_err());
        assert!(BodyReader::chunked().end_of_stream().is_err());
    }
}
