//! The bytes between here and the server, plain or encrypted: no step takes longer than it was given in all.

use super::reply;
use crate::clock::{Instant, monotonic};
use crate::tls::Tls;
use ::redis::{RedisError, Value};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long connecting, and each answer, may take.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be idle before the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
const BUFFER: usize = 64 * 1024;

/// How bytes reach the server.
#[derive(Clone, Debug)]
pub enum Transport {
    Plain,
    /// Encrypted, to a server that proves this name.
    Encrypted {
        name: ServerName<'static>,
        tls: Tls,
    },
}

/// One connection, on which a command is answered before the next is sent.
pub struct Wire {
    stream: BufReader<Stream>,
}

enum Stream {
    Plain(Timed),
    Encrypted(Box<Encrypted>),
}

struct Encrypted {
    stream: StreamOwned<ClientConnection, Timed>,
    tls: Tls,
    /// Whether the server has said anything yet, beyond the handshake.
    is_new: bool,
}

/// A socket with a deadline for whatever is done on it. A time-out for each read alone would let a server that sends a byte
/// now and then hold us for ever.
struct Timed {
    socket: TcpStream,
    until: Instant,
}

// === impl Wire ===

impl Wire {
    /// Connects, and sets up TLS if that is wanted.
    ///
    /// # Errors
    /// Why not, in words for who runs the gateway.
    pub fn connect(host: &str, port: u16, transport: &Transport) -> io::Result<Self> {
        let until = monotonic() + PATIENCE;
        let socket = reach(host, port)?;
        socket.set_nodelay(true)?;
        // Whoever went away without a word is noticed although nothing is asked, and its socket is given back.
        SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let socket = Timed { socket, until };
        let stream = match transport {
            Transport::Plain => Stream::Plain(socket),
            Transport::Encrypted { name, tls } => {
                Stream::Encrypted(Box::new(Encrypted::shake_hands(socket, name, tls)?))
            }
        };
        Ok(Self { stream: BufReader::with_capacity(BUFFER, stream) })
    }

    /// Sends a command in Redis' own form and reads its answer. After an error the connection is of no more use.
    pub fn ask(&mut self, command: &[u8]) -> Result<Value, RedisError> {
        let stream = self.stream.get_mut();
        stream.socket().until = monotonic() + PATIENCE;
        stream.write_all(command)?;
        stream.flush()?;
        reply::read(&mut self.stream)
    }
}

/// A TCP connection to the first of the host's addresses that takes one; each gets its share of the time.
fn reach(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let share = PATIENCE / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut last = io::Error::new(ErrorKind::NotFound, format!("{host} has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, share) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

// === impl Stream ===

impl Stream {
    fn socket(&mut self) -> &mut Timed {
        match self {
            Self::Plain(socket) => socket,
            Self::Encrypted(encrypted) => &mut encrypted.stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::Encrypted(encrypted) => encrypted.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Encrypted(encrypted) => encrypted.explained(|stream| stream.write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Encrypted(encrypted) => encrypted.explained(Write::flush),
        }
    }
}

// === impl Encrypted ===

impl Encrypted {
    fn shake_hands(socket: Timed, name: &ServerName<'static>, tls: &Tls) -> io::Result<Self> {
        let connection = ClientConnection::new(tls.client_config()?, name.clone()).map_err(io::Error::other)?;
        let mut encrypted = Self { stream: StreamOwned::new(connection, socket), tls: tls.clone(), is_new: true };
        let done = encrypted.explained(|stream| stream.conn.complete_io(&mut stream.sock).map(drop));
        done.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => io::Error::new(
                ErrorKind::TimedOut,
                format!("TLS was not set up within {PATIENCE:?}: does the server speak TLS on this port?"),
            ),
            _ => error,
        })?;
        Ok(encrypted)
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.explained(|stream| stream.read(buffer))?;
        self.is_new &= count == 0;
        Ok(count)
    }

    fn explained<T>(
        &mut self,
        step: impl FnOnce(&mut StreamOwned<ClientConnection, Timed>) -> io::Result<T>,
    ) -> io::Result<T> {
        step(&mut self.stream).map_err(|error| self.tls.explain(&error, self.is_new))
    }
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

/// The system calls a time-out "would block", which rustls takes for an invitation to come again.
fn named(error: io::Error) -> io::Error {
    if error.kind() == ErrorKind::WouldBlock { too_late() } else { error }
}

fn too_late() -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}"))
}
