//! Commands and answers on a stream, within bounds: the client library's own connection holds whatever it is sent, and waits
//! for as long as something comes.

use crate::clock::monotonic;
use ::redis::{Cmd, FromRedisValue, RedisResult, Value, from_redis_value, parse_redis_value};
use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A server that answers one command after the other, over whatever carries them.
pub trait Ask: Send {
    /// Sends a command and reads its answer, which may be an error of the server. After any other error nothing more may be
    /// asked: what is still to come would be taken for the next answer.
    fn ask(&mut self, command: &Cmd) -> RedisResult<Value>;
}

/// A connection that speaks RESP2, the protocol of Redis ("Redis serialization protocol specification").
pub struct Wire<S> {
    stream: BufReader<S>,
    /// What `S` reads from in the end, for its timeouts.
    socket: TcpStream,
    bounds: Bounds,
}

/// What one answer may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Until its first byte, and from each to the next.
    pub silence: Duration,
    /// From the command to its last byte.
    pub answer: Duration,
    /// In memory.
    pub bytes: usize,
}

/// One answer while it is read.
struct Reading<'a, S> {
    wire: &'a mut Wire<S>,
    deadline: Instant,
    bytes_left: usize,
}

/// What a value takes besides its text.
const VALUE_BYTES: usize = size_of::<Value>() + 8;
/// Lists in lists; those of the log are three deep.
const DEPTH_MAX: usize = 8;
/// A number, a word or an error's text.
const LINE_BYTES_MAX: usize = 64 * 1024;
const BUFFER: usize = 64 * 1024;

// === impl Wire ===

impl<S: Read + Write> Wire<S> {
    /// # Errors
    /// When the socket takes no timeout.
    pub fn new(stream: S, socket: TcpStream, bounds: Bounds) -> Result<Self> {
        socket.set_write_timeout(Some(bounds.silence))?;
        Ok(Self { stream: BufReader::with_capacity(BUFFER, stream), socket, bounds })
    }

    fn send(&mut self, command: &[u8]) -> Result<()> {
        let stream = self.stream.get_mut();
        stream.write_all(command)?;
        stream.flush()
    }

    fn answer(&mut self) -> RedisResult<Value> {
        let (deadline, bytes_left) = (monotonic() + self.bounds.answer, self.bounds.bytes);
        Reading { wire: self, deadline, bytes_left }.value(0)
    }
}

impl<S: Read + Write + Send> Ask for Wire<S> {
    fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(&command.get_packed_command())?;
        self.answer()
    }
}

impl dyn Ask {
    /// Sends a command and reads its answer as what is wanted.
    pub fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        Ok(from_redis_value(self.ask(command)?.extract_error()?)?)
    }
}

// === impl Reading ===

impl<S: Read> Reading<'_, S> {
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
            self.wire.stream.consume(taken);
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
            self.wire.stream.consume(taken);
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
        if self.wire.stream.buffer().is_empty() {
            let left = self.deadline.saturating_duration_since(monotonic());
            let patience = left.min(self.wire.bounds.silence);
            if patience.is_zero() {
                return Err(late());
            }
            self.wire.socket.set_read_timeout(Some(patience))?;
        }
        let piece = self.wire.stream.fill_buf().map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => late(),
            _ => error,
        })?;
        if piece.is_empty() {
            Err(Error::new(ErrorKind::UnexpectedEof, "the connection was closed"))
        } else {
            Ok(piece)
        }
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes);
        self.bytes_left = left.ok_or_else(|| {
            garbled(&format!("an answer takes more than {} MiB", self.wire.bounds.bytes / (1024 * 1024)))
        })?;
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

fn late() -> Error {
    Error::new(ErrorKind::TimedOut, "no answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    const BOUNDS: Bounds =
        Bounds { silence: Duration::from_secs(5), answer: Duration::from_secs(5), bytes: 1024 * 1024 };

    /// Gives a text in pieces of a size, and takes whatever it is sent.
    struct Pieces {
        text: Vec<u8>,
        size: usize,
    }

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
            let count = self.size.min(self.text.len()).min(buffer.len());
            buffer[..count].copy_from_slice(&self.text[..count]);
            self.text.drain(..count);
            Ok(count)
        }
    }

    impl Write for Pieces {
        fn write(&mut self, bytes: &[u8]) -> Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }

    fn wire(stream: Pieces) -> Wire<Pieces> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        Wire::new(stream, socket, BOUNDS).unwrap()
    }

    fn read(text: &[u8], size: usize) -> RedisResult<Value> {
        wire(Pieces { text: text.to_vec(), size }).ask(&::redis::cmd("PING"))
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
            prop_assert_eq!(read(&text, size).unwrap(), parse_redis_value(&text).unwrap());
        }

        #[test]
        fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..60), size in 1..50_usize) {
            _ = read(&text, size);
        }

        #[test]
        fn a_part_of_an_answer_is_no_answer(text in written(), share in 0.0..1.0) {
            let end = (text.len() as f64 * share) as usize;
            prop_assert!(read(&text[..end], 7).is_err());
        }
    }

    #[test]
    fn what_takes_too_much_is_refused_before_it_has_come() {
        let nested = "*1\r\n".repeat(1000);
        let many = format!("*1000000\r\n{}", ":1\r\n".repeat(1_000_000));
        let long = format!("+{}", "x".repeat(2 * BOUNDS.bytes));
        for text in ["$1048577\r\n", "$1000000000000000000000\r\n", "$-2\r\n", &nested, &many, &long] {
            let error = read(text.as_bytes(), BUFFER).unwrap_err();
            assert!(error.is_io_error() && !error.to_string().contains("closed"), "{error}");
        }
    }

    #[test]
    fn whoever_sends_a_byte_now_and_then_is_given_up_as_well() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let drip = std::thread::spawn(move || {
            while server.write_all(b"+").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let bounds = Bounds { answer: Duration::from_millis(200), ..BOUNDS };
        let mut wire = Wire::new(socket.try_clone().unwrap(), socket, bounds).unwrap();
        assert!(wire.ask(&::redis::cmd("PING")).unwrap_err().is_timeout());
        drop(wire);
        drip.join().unwrap();
    }
}
