//! One answer of a server, in RESP2 ("Redis serialization protocol specification"), read within a bound: the client library's
//! parser holds whatever it is sent.

use ::redis::{RedisResult, Value, parse_redis_value};
use std::io::{BufRead, Error, ErrorKind, Result};

/// An answer while it is read.
struct Reading<'a, S> {
    stream: &'a mut S,
    bytes_left: usize,
}

/// What an answer may take in memory: a page of the log is about 1 MiB, and anything beside it small.
const BYTES_MAX: usize = 8 * super::REPLY_BYTES;
/// What a value takes besides its text.
const VALUE_BYTES: usize = size_of::<Value>() + 8;
/// Lists in lists; those of the log are three deep.
const DEPTH_MAX: usize = 8;
/// A number, a word or an error's text.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Reads one answer, which may be an error of the server. After any other error nothing more may be read: what is still to
/// come would be taken for the next answer.
pub fn read(stream: &mut impl BufRead) -> RedisResult<Value> {
    Reading { stream, bytes_left: BYTES_MAX }.value(0)
}

// === impl Reading ===

impl<S: BufRead> Reading<'_, S> {
    fn value(&mut self, depth: usize) -> RedisResult<Value> {
        self.spend(VALUE_BYTES)?;
        let line = self.line()?;
        match line.split_first() {
            Some((b'+' | b'-' | b':', _)) => parse_redis_value(&line),
            Some((b'$', length)) => Ok(self.text(read_length(length)?)?),
            Some((b'*', length)) if depth < DEPTH_MAX => self.list(read_length(length)?, depth),
            _ => Err(garbled("no answer of Redis begins like this").into()),
        }
    }

    fn text(&mut self, length: Option<usize>) -> Result<Value> {
        let Some(length) = length else { return Ok(Value::Nil) };
        self.spend(length)?;
        let mut text = Vec::with_capacity(length);
        while text.len() < length {
            let wanted = length - text.len();
            let piece = self.fill()?;
            let piece = piece.get(..wanted).unwrap_or(piece);
            text.extend_from_slice(piece);
            let taken = piece.len();
            self.stream.consume(taken);
        }
        let is_ended = self.line()? == b"\r\n";
        if is_ended { Ok(Value::BulkString(text)) } else { Err(garbled("a text is longer than it says")) }
    }

    fn list(&mut self, length: Option<usize>, depth: usize) -> RedisResult<Value> {
        let Some(length) = length else { return Ok(Value::Nil) };
        // One at a time: a length that is announced takes no memory yet.
        let mut values = Vec::new();
        for _ in 0..length {
            values.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    /// A line with its end.
    fn line(&mut self) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        loop {
            let piece = self.fill()?;
            let end = memchr::memchr(b'\n', piece);
            let piece = end.and_then(|end| piece.get(..=end)).unwrap_or(piece);
            line.extend_from_slice(piece);
            let taken = piece.len();
            self.stream.consume(taken);
            self.spend(taken)?;
            if end.is_some() {
                return Ok(line);
            }
            if line.len() > LINE_BYTES_MAX {
                return Err(garbled("a line does not end"));
            }
        }
    }

    /// What has come and is not read yet: at least one byte.
    fn fill(&mut self) -> Result<&[u8]> {
        let piece = self.stream.fill_buf()?;
        if piece.is_empty() {
            Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed"))
        } else {
            Ok(piece)
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left =
            left.ok_or_else(|| garbled(&format!("an answer takes more than {} MiB", BYTES_MAX / (1024 * 1024))))?;
        Ok(())
    }
}

/// A length, or none for what is null.
fn read_length(text: &[u8]) -> Result<Option<usize>> {
    if text == b"-1\r\n" {
        return Ok(None);
    }
    let text = text.strip_suffix(b"\r\n").and_then(|text| std::str::from_utf8(text).ok());
    text.and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| garbled("a length is no number"))
}

fn garbled(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::BufReader;

    fn read_in_pieces(text: &[u8], size: usize) -> RedisResult<Value> {
        read(&mut BufReader::with_capacity(size, text))
    }

    /// Values, and how they are written.
    fn written() -> impl Strategy<Value = Vec<u8>> {
        let bulk = proptest::collection::vec(any::<u8>(), 0..40)
            .prop_map(|text| [format!("${}\r\n", text.len()).as_bytes(), &text, b"\r\n"].concat());
        let lines =
            proptest::sample::select(vec!["$-1\r\n", "*-1\r\n", "+OK\r\n", "+a b\r\n", ":-7\r\n", "-ERR no\r\n"]);
        let leaf = prop_oneof![bulk, lines.prop_map(|line| line.as_bytes().to_vec())];
        leaf.prop_recursive(4, 40, 6, |inner| {
            proptest::collection::vec(inner, 0..6)
                .prop_map(|items| [format!("*{}\r\n", items.len()).into_bytes(), items.concat()].concat())
        })
    }

    proptest! {
        #[test]
        fn an_answer_in_any_pieces_is_read_as_the_library_reads_it(text in written(), size in 1..50_usize) {
            prop_assert_eq!(read_in_pieces(&text, size).unwrap(), parse_redis_value(&text).unwrap());
        }

        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..60), size in 1..50_usize) {
            _ = read_in_pieces(&text, size);
        }

        #[test]
        fn a_part_of_an_answer_is_no_answer(text in written(), share in 0.0..1.0) {
            let end = (text.len() as f64 * share) as usize;
            prop_assert!(read_in_pieces(&text[..end], 7).is_err());
        }
    }

    #[test]
    fn what_takes_too_much_is_refused_before_it_has_come() {
        let nested = "*1\r\n".repeat(1000);
        let many = format!("*1000000\r\n{}", ":1\r\n".repeat(1_000_000));
        let long = format!("+{}", "x".repeat(2 * BYTES_MAX));
        for text in ["$8388609\r\n", "$1000000000000000000000\r\n", "$-2\r\n", &nested, &many, &long] {
            let error = read_in_pieces(text.as_bytes(), 64 * 1024).unwrap_err();
            assert!(error.is_io_error() && !error.to_string().contains("closed"), "{error}");
        }
    }
}
