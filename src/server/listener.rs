//! Listening sockets: one for each worker on the same address, so that the kernel spreads connections. A Unix socket is one
//! for all workers, and whoever comes first accepts.

use super::Address;
use super::registry::Registry;
use super::unix::{self, SocketFile};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::mpsc;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;
/// What the kernel takes of a response before it may be sent: without a bound, megabytes for a client that does not read.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;
/// How long accepting rests when the process is out of descriptors.
const EXHAUSTED_REST: Duration = Duration::from_millis(50);
/// How many more connections than the least busy worker one may have before it hands new ones over.
const IMBALANCE_MAX: usize = 8;

/// Whom a Unix socket's peer counts as: a process on this machine.
const UNIX_PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// An address that is listened on.
pub struct Bound {
    /// With the port that was given.
    pub address: Address,
    /// One for each worker.
    pub listeners: Vec<StdListener>,
    /// Of a Unix socket; to be kept for as long as it is listened on.
    pub file: Option<SocketFile>,
}

/// A listening socket, before a worker has it.
pub enum StdListener {
    Tcp(StdTcpListener),
    Unix(StdUnixListener),
}

/// A worker's listening socket.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A connection's socket.
pub enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Binds `address` for so many workers.
///
/// # Errors
/// As of `bind` and `listen`: the address is in use, not ours, or needs a privilege.
pub fn bind(address: &Address, workers: usize) -> io::Result<Bound> {
    match address {
        Address::Tcp(address) => bind_tcp(*address, workers),
        Address::Unix(path) => {
            let (listener, file) = unix::bind(path, BACKLOG)?;
            let shared = (1..workers).map(|_| listener.try_clone()).collect::<io::Result<Vec<_>>>()?;
            let listeners = std::iter::once(listener).chain(shared).map(StdListener::Unix).collect();
            Ok(Bound { address: address.clone(), listeners, file: Some(file) })
        }
    }
}

fn bind_tcp(address: SocketAddr, workers: usize) -> io::Result<Bound> {
    // Shared ports are for our own workers: another process that listens here, a second gateway too, is an error.
    drop(StdTcpListener::bind(address)?);
    let first = bind_one(address)?;
    let bound = first.local_addr()?;
    let rest = (1..workers).map(|_| bind_one(bound));
    let listeners = std::iter::once(Ok(first)).chain(rest).map(|listener| listener.map(StdListener::Tcp));
    Ok(Bound { address: Address::Tcp(bound), listeners: listeners.collect::<io::Result<_>>()?, file: None })
}

fn bind_one(address: SocketAddr) -> io::Result<StdTcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Where accepted connections go: to this worker, or to one that has far fewer.
#[derive(Clone)]
pub struct Spread {
    pub mine: usize,
    pub open: Arc<[AtomicUsize]>,
    pub senders: Arc<[mpsc::UnboundedSender<HandedOver>]>,
}

/// A connection for another worker to serve.
pub struct HandedOver {
    /// Which `[[listen]]` it came by, first is 0.
    pub listen: usize,
    socket: HandedSocket,
    pub peer: IpAddr,
}

enum HandedSocket {
    Tcp(StdTcpStream),
    Unix(StdUnixStream),
}

// === impl Listener ===

impl Listener {
    /// Takes a listening socket for this worker.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn new(listener: StdListener) -> io::Result<Self> {
        match listener {
            StdListener::Tcp(listener) => TcpListener::from_std(listener).map(Self::Tcp),
            StdListener::Unix(listener) => UnixListener::from_std(listener).map(Self::Unix),
        }
    }

    async fn accept(&self) -> io::Result<(Accepted, IpAddr)> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| (Accepted::Tcp(stream), peer.ip())),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| (Accepted::Unix(stream), UNIX_PEER)),
        }
    }
}

// === impl HandedOver ===

impl HandedOver {
    /// # Errors
    /// When the socket cannot be taken from this worker's runtime.
    fn new(listen: usize, socket: Accepted, peer: IpAddr) -> io::Result<Self> {
        let socket = match socket {
            Accepted::Tcp(stream) => HandedSocket::Tcp(stream.into_std()?),
            Accepted::Unix(stream) => HandedSocket::Unix(stream.into_std()?),
        };
        Ok(Self { listen, socket, peer })
    }

    /// The socket, for the worker that it was handed to.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn into_socket(self) -> io::Result<Accepted> {
        match self.socket {
            HandedSocket::Tcp(stream) => TcpStream::from_std(stream).map(Accepted::Tcp),
            HandedSocket::Unix(stream) => UnixStream::from_std(stream).map(Accepted::Unix),
        }
    }
}

// === impl Spread ===

impl Spread {
    /// The worker that should take one more connection. Connections change worker only here, before their first byte.
    fn choose(&self) -> usize {
        let count = |index: usize| self.open.get(index).map_or(0, |open| open.load(Ordering::Relaxed));
        let least = (0..self.open.len()).min_by_key(|index| count(*index)).unwrap_or(self.mine);
        let imbalance = count(self.mine).saturating_sub(count(least));
        if imbalance > IMBALANCE_MAX.max(count(least) / 4) { least } else { self.mine }
    }

    /// Publishes how many connections this worker has.
    pub fn publish(&self, open: usize) {
        if let Some(mine) = self.open.get(self.mine) {
            mine.store(open, Ordering::Relaxed);
        }
    }

    fn hand_over(&self, to: usize, listen: usize, socket: Accepted, peer: IpAddr) -> Option<()> {
        self.senders.get(to)?.send(HandedOver::new(listen, socket, peer).ok()?).ok()?;
        // Until that worker says so itself: a burst would be handed to it whole.
        self.open.get(to)?.fetch_add(1, Ordering::Relaxed);
        Some(())
    }
}

/// Accepts at the `[[listen]]` of number `listen` until the task is dropped; `serve` is given each connection that stays here.
pub async fn accept(
    listen: usize,
    listener: Listener,
    registry: Rc<Registry>,
    spread: Spread,
    serve: impl Fn(usize, Accepted, IpAddr),
) {
    loop {
        registry.room().await;
        match listener.accept().await {
            Ok((socket, peer)) => {
                spread.publish(registry.open());
                let to = spread.choose();
                if to == spread.mine {
                    serve(listen, socket, peer);
                } else {
                    spread.hand_over(to, listen, socket, peer);
                }
            }
            Err(error) if is_exhausted(&error) => {
                tracing::warn!(%error, "cannot accept; out of descriptors");
                registry.evict_idle();
                tokio::time::sleep(EXHAUSTED_REST).await;
            }
            // The connection went away before it was accepted.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    let limits =
        [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::NOBUFS, rustix::io::Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| limits.iter().any(|limit| limit.raw_os_error() == code))
}
