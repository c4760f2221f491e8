//! The chunked transfer coding (RFC 9112, section 7.1).

use super::head::fields_of;
use super::{FIELDS_MAX, Malformed, Piece, line_end, section_len};
use bytes::{Buf as _, BytesMut};
use http::HeaderMap;

/// The longest chunk-size line, extensions included: nobody who means well needs more.
const LINE_MAX: usize = 1024;
/// The largest trailer section.
const TRAILERS_MAX: usize = 16 * 1024;

/// A decoder of the coding. Extensions are dropped; the chunks are written anew for the other side.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunked {
    state: State,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    /// A chunk-size line is next.
    #[default]
    Size,
    /// So many bytes of the chunk are still to come; never 0.
    Data(u64),
    /// The CR LF after a chunk's data is next.
    DataEnd,
    /// The trailer section is next.
    Trailers,
    Done,
}

// === impl Chunked ===

impl Chunked {
    pub const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The next piece in `buf`; `None` when more bytes are needed. The end is looked for as soon as a chunk's data has
    /// been taken: who is given the last data then knows that it is the last.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Piece>, Malformed> {
        loop {
            match self.state {
                State::Size => match take_size(buf)? {
                    None => return Ok(None),
                    Some(0) => self.state = State::Trailers,
                    Some(size) => self.state = State::Data(size),
                },
                State::Data(_) if buf.is_empty() => return Ok(None),
                State::Data(left) => {
                    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    let data = buf.split_to(len).freeze();
                    let left = left - len as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    self.skip_plain_end(buf);
                    return Ok(Some(Piece::Data(data)));
                }
                State::DataEnd if buf.len() < 2 => return Ok(None),
                State::DataEnd => {
                    if !buf.starts_with(b"\r\n") {
                        return Err(Malformed("a chunk is longer than it says"));
                    }
                    buf.advance(2);
                    self.state = State::Size;
                }
                State::Trailers => {
                    let Some(trailers) = take_trailers(buf)? else { return Ok(None) };
                    self.state = State::Done;
                    return Ok(Some(if trailers.is_empty() { Piece::End } else { Piece::Trailers(trailers) }));
                }
                State::Done => return Ok(Some(Piece::End)),
            }
        }
    }

    /// The usual end, without trailers, when it is there already.
    fn skip_plain_end(&mut self, buf: &mut BytesMut) {
        const END: &[u8] = b"\r\n0\r\n\r\n";
        if self.state == State::DataEnd && buf.starts_with(END) {
            buf.advance(END.len());
            self.state = State::Done;
        }
    }
}

/// Takes a chunk-size line: hexadecimal digits, blanks that some servers add, extensions.
fn take_size(buf: &mut BytesMut) -> Result<Option<u64>, Malformed> {
    let Some(end) = line_end(buf)? else {
        return if buf.len() < LINE_MAX { Ok(None) } else { Err(Malformed("a chunk-size line is too long")) };
    };
    let line = buf.get(..end).unwrap_or_default();
    if line.len() > LINE_MAX || line.iter().any(|byte| matches!(byte, b'\r' | 0)) {
        return Err(Malformed("a chunk-size line is too long, or has a control in it"));
    }
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, rest) = line.split_at_checked(digits).unwrap_or_default();
    let rest = rest.trim_ascii_start();
    if !rest.is_empty() && !rest.starts_with(b";") {
        return Err(Malformed("a chunk's size is not a number"));
    }
    let size = parse_hex(digits).ok_or(Malformed("a chunk's size is not a number"))?;
    buf.advance(end + 2);
    Ok(Some(size))
}

/// One to sixteen hexadecimal digits.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok().filter(|text| (1..=16).contains(&text.len()))?;
    u64::from_str_radix(text, 16).ok()
}

fn take_trailers(buf: &mut BytesMut) -> Result<Option<HeaderMap>, Malformed> {
    let Some(len) = section_len(buf)? else {
        return if buf.len() < TRAILERS_MAX { Ok(None) } else { Err(Malformed("the trailers are too large")) };
    };
    let section = buf.split_to(len).freeze();
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    match httparse::parse_headers(&section, &mut fields) {
        Ok(httparse::Status::Complete((parsed, fields))) if parsed == len => fields_of(&section, fields).map(Some),
        Ok(_) | Err(_) => Err(Malformed("the trailers are not fields")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `text` in steps of `step` bytes; the data, the trailers, and what was left over.
    fn decode(text: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, bool), Malformed> {
        let (mut chunked, mut buf, mut fed) = (Chunked::default(), BytesMut::new(), 0);
        let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
        while !chunked.is_done() {
            match chunked.next(&mut buf)? {
                Some(Piece::Data(piece)) => data.extend_from_slice(&piece),
                Some(Piece::Trailers(map)) => trailers = map,
                Some(Piece::End) => {}
                None if fed == text.len() => return Ok((data, trailers, false)),
                None => {
                    let end = text.len().min(fed + step);
                    buf.extend_from_slice(&text[fed..end]);
                    fed = end;
                }
            }
        }
        Ok((data, trailers, true))
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        for text in [
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabcd\r\n0\r\n\r\n",
            "zz\r\n",
            "\r\nabc",
            "-3\r\nabc\r\n",
            "+3\r\nabc\r\n",
            "0x3\r\nabc\r\n",
            " 3\r\nabc\r\n",
            "3 x\r\nabc\r\n",
            "3\rx\r\nabc\r\n",
            "11111111111111111\r\n",
            "0\r\nBad Name: x\r\n\r\n",
            "0\r\n folded\r\n\r\n",
            "0\r\nX: a\n\r\n",
        ] {
            assert!(decode(text.as_bytes(), 1).is_err(), "{text:?} byte by byte");
            assert!(decode(text.as_bytes(), text.len()).is_err(), "{text:?}");
        }
        let long = format!("3;{}", "a".repeat(2 * LINE_MAX));
        assert!(decode(long.as_bytes(), 100).is_err());
        let many = format!("0\r\n{}", "X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(1000));
        assert!(decode(many.as_bytes(), 100).is_err());
    }

    #[test]
    fn sizes_extensions_and_trailers() {
        let text = b"3;name=value\r\nabc\r\n00A \r\n0123456789\r\n0\r\nX-Sum: 7\r\n\r\n";
        for step in 1..text.len() {
            let (data, trailers, done) = decode(text, step).unwrap();
            assert!(done && data == b"abc0123456789" && trailers["x-sum"] == "7", "{step}");
        }
    }

    #[test]
    fn the_last_data_is_known_to_be_the_last_when_the_end_is_there() {
        let (mut chunked, mut buf) = (Chunked::default(), BytesMut::from("3\r\nabc\r\n0\r\n\r\nnext"));
        assert_eq!(chunked.next(&mut buf), Ok(Some(Piece::Data("abc".into()))));
        assert!(chunked.is_done() && &buf[..] == b"next");
    }

    proptest! {
        #[test]
        fn any_body_in_any_chunks_comes_out_whole_however_it_arrives(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            step in 1usize..400,
        ) {
            let mut text = Vec::new();
            for chunk in &chunks {
                text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                text.extend_from_slice(chunk);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\n\r\n");
            let (data, _, done) = decode(&text, step).unwrap();
            prop_assert!(done && data == chunks.concat());
            // Cut anywhere, it is never taken for whole.
            let cut = text.len() - 1 - step % text.len();
            prop_assert!(!decode(&text[..cut], 7).unwrap().2);
        }

        #[test]
        fn whatever_arrives_nothing_panics(text in prop::collection::vec(any::<u8>(), 0..200), step in 1usize..50) {
            _ = decode(&text, step);
        }
    }
}
