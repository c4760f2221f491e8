//! The bytes between here and the server, plain or encrypted: no step takes longer than it was given in all.

use super::reply;
use super::url::Address;
use crate::clock::{Instant, monotonic};
use crate::tls::Tls;
use ::redis::{RedisError, Value};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use socket2::{SockRef, TcpKeepalive};
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

/// How long connecting, and each answer, may take at a server that holds keys.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be idle before the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
const BUFFER: usize = 64 * 1024;

/// One connection, on which a command is answered before the next is sent.
pub struct Wire {
    stream: BufReader<Stream>,
    patience: Duration,
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
    /// What was given, for the message.
    patience: Duration,
}

// === impl Wire ===

impl Wire {
    /// Connects, and sets up TLS if that is wanted. Connecting, and each answer, may take `patience`.
    ///
    /// # Errors
    /// Why not, in words for who runs the gateway.
    pub fn connect(address: &Address, tls: Option<&Tls>, patience: Duration) -> io::Result<Self> {
        let until = monotonic() + patience;
        let socket = reach(address, patience)?;
        socket.set_nodelay(true)?;
        // Whoever went away without a word is noticed although nothing is asked, and its socket is given back.
        SockRef::from(&socket).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let socket = Timed { socket, until, patience };
        let stream = match tls {
            None => Stream::Plain(socket),
            Some(tls) => Stream::Encrypted(Box::new(Encrypted::shake_hands(socket, &address.host, tls)?)),
        };
        Ok(Self { stream: BufReader::with_capacity(BUFFER, stream), patience })
    }

    /// Sends a command in Redis' own form and reads its answer. After an error the connection is of no more use.
    pub fn ask(&mut self, command: &[u8]) -> Result<Value, RedisError> {
        let stream = self.stream.get_mut();
        stream.socket().until = monotonic() + self.patience;
        stream.write_all(command)?;
        stream.flush()?;
        reply::read(&mut self.stream)
    }
}

/// A TCP connection to the first of the host's addresses that takes one; each gets its share of the time.
fn reach(Address { host, port }: &Address, patience: Duration) -> io::Result<TcpStream> {
    let addresses: Vec<_> = (host.as_str(), *port).to_socket_addrs()?.collect();
    let share = patience / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
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
    fn shake_hands(socket: Timed, host: &str, tls: &Tls) -> io::Result<Self> {
        let patience = socket.patience;
        // An address or a name that a Sentinel or a node told may be none that a certificate can be for.
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(tls.client_config()?, name).map_err(io::Error::other)?;
        let mut encrypted = Self { stream: StreamOwned::new(connection, socket), tls: tls.clone(), is_new: true };
        let done = encrypted.explained(|stream| stream.conn.complete_io(&mut stream.sock).map(drop));
        done.map_err(|error| match error.kind() {
            ErrorKind::TimedOut => io::Error::new(
                ErrorKind::TimedOut,
                format!("TLS was not set up within {patience:?}: does the server speak TLS on this port?"),
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
        if left.is_zero() { Err(self.too_late()) } else { Ok(left) }
    }

    /// The system calls a time-out "would block", which rustls takes for an invitation to come again.
    fn named(&self, error: io::Error) -> io::Error {
        if error.kind() == ErrorKind::WouldBlock { self.too_late() } else { error }
    }

    fn too_late(&self) -> io::Error {
        io::Error::new(ErrorKind::TimedOut, format!("no answer within {:?}", self.patience))
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer).map_err(|error| self.named(error))
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes).map_err(|error| self.named(error))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}
