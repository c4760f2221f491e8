//! Listening sockets: one for each worker on the same address, so that the kernel spreads connections.

use super::registry::Registry;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 1024;
/// How long accepting rests when the process is out of descriptors.
const EXHAUSTED_REST: Duration = Duration::from_millis(50);
/// How many more connections than the least busy worker one may have before it hands new ones over.
const IMBALANCE_MAX: usize = 8;

/// Binds `address` once for each of `workers`, all to the same port.
///
/// # Errors
/// As of `bind` and `listen`: the address is in use, not ours, or needs a privilege.
pub fn bind(address: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<StdListener>)> {
    // Shared ports are for our own workers: another process that listens here, a second gateway too, is an error.
    drop(StdListener::bind(address)?);
    let first = bind_one(address)?;
    let bound = first.local_addr()?;
    let rest = (1..workers).map(|_| bind_one(bound));
    let listeners = std::iter::once(Ok(first)).chain(rest).collect::<io::Result<_>>()?;
    Ok((bound, listeners))
}

fn bind_one(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
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
    pub stream: StdStream,
    pub peer: SocketAddr,
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

    fn hand_over(&self, to: usize, listen: usize, stream: TcpStream, peer: SocketAddr) -> Option<()> {
        self.senders.get(to)?.send(HandedOver { listen, stream: stream.into_std().ok()?, peer }).ok()
    }
}

/// Accepts at the `[[listen]]` of number `listen` until the task is dropped; `serve` is given each connection that stays here.
pub async fn accept(
    listen: usize,
    listener: TcpListener,
    registry: Rc<Registry>,
    spread: Spread,
    serve: impl Fn(usize, TcpStream, SocketAddr),
) {
    loop {
        registry.room().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                spread.publish(registry.open());
                let to = spread.choose();
                if to == spread.mine {
                    serve(listen, stream, peer);
                } else {
                    spread.hand_over(to, listen, stream, peer);
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
