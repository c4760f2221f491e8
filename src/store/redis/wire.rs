//! The bytes between here and the server: no step takes longer than it was given in all.

use super::reply;
use crate::clock::monotonic;
use ::redis::{RedisError, Value};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

/// How long connecting, and each answer, may take.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be idle before the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
const BUFFER: usize = 64 * 1024;

/// One connection, on which a command is answered before the next is sent.
pub struct Wire {
    stream: BufReader<Timed>,
}

/// A socket with a deadline for whatever is done on it. A time-out for each read alone would let a server that sends a byte
/// now and then hold us for ever.
struct Timed {
    socket: TcpStream,
    until: Instant,
}

// === impl Wire ===

impl Wire {
    /// # Errors
    /// Why there is no connection.
    pub fn connect(host: &str, port: u16) -> io::Result<Self> {
        let socket = reach(host, port)?;
        socket.set_nodelay(true)?;
        // Whoever went away without a word is noticed although nothing is asked, and its socket is given back.
        SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        Ok(Self { stream: BufReader::with_capacity(BUFFER, Timed { socket, until: monotonic() }) })
    }

    /// Sends a command in Redis' own form and reads its answer. After an error the connection is of no more use.
    pub fn ask(&mut self, command: &[u8]) -> Result<Value, RedisError> {
        let stream = self.stream.get_mut();
        stream.until = monotonic() + PATIENCE;
        stream.write_all(command)?;
        stream.flush()?;
        reply::read(&mut self.stream)
    }
}

/// A connection to the first of the host's addresses that takes one.
fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

// === impl Timed ===

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        let left = self.until.saturating_duration_since(monotonic());
        if left.is_zero() { Err(too_late()) } else { Ok(left) }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer).map_err(named)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

/// The system calls a time-out "would block".
fn named(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { too_late() } else { error }
}

fn too_late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"))
}
