//! A proxy in front of a store whose network can be made to misbehave while it runs.

use std::collections::HashMap;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Way {
    /// They arrive.
    #[default]
    Whole,
    /// They are taken and arrive nowhere.
    Lost,
    /// Each piece arrives twice.
    Twice,
    /// As many other bytes arrive in their place.
    Garbage,
    /// Half of a piece arrives, then the connection ends.
    Truncated,
    /// The first text arrives in their place, and then the second again and again.
    Endless(&'static str, &'static str),
}

/// How the network is. The default is well.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// What every piece waits for, in each direction.
    pub latency: Duration,
    /// For each connection and direction; no limit unless given.
    pub bytes_per_second: Option<usize>,
    /// New connections are closed at once.
    pub refuses: bool,
    /// From the clients to the server.
    pub requests: Way,
    /// From the server to the clients.
    pub replies: Way,
}

/// A running proxy. Dropped: its connections are cut and its threads have ended.
pub struct FaultProxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    network: Mutex<Network>,
    /// Both ends of every connection, to be cut.
    open: Mutex<HashMap<usize, [TcpStream; 2]>>,
    made: AtomicUsize,
    pumps: Mutex<Vec<JoinHandle<()>>>,
    stopping: AtomicBool,
}

/// The most bytes that are passed on as one piece.
const PIECE: usize = 64 * 1024;
/// How finely a limited rate is spread.
const TICK: Duration = Duration::from_millis(50);

// === impl FaultProxy ===

impl FaultProxy {
    /// A proxy in front of `server`, on a free port.
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            network: Mutex::default(),
            open: Mutex::default(),
            made: AtomicUsize::default(),
            pumps: Mutex::default(),
            stopping: AtomicBool::default(),
        });
        let accepting = Arc::clone(&shared);
        let acceptor = Some(std::thread::spawn(move || accepting.accept(&listener)));
        Self { address, shared, acceptor }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// From now on the network is like this, for the connections there are as well.
    pub fn set(&self, network: Network) {
        *self.shared.network.lock().unwrap() = network;
    }

    /// From now on replies fare like this, and all else is well.
    pub fn replies(&self, replies: Way) {
        self.set(Network { replies, ..Network::default() });
    }

    /// From now on bytes are taken and arrive nowhere, in both directions.
    pub fn swallow(&self) {
        self.set(Network { requests: Way::Lost, replies: Way::Lost, ..Network::default() });
    }

    /// From now on the network is well.
    pub fn heal(&self) {
        self.set(Network::default());
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.shared.open.lock().unwrap().values().flatten().for_each(|stream| _ = stream.shutdown(Shutdown::Both));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // The acceptor looks up when somebody comes.
        _ = TcpStream::connect(self.address);
        self.acceptor.take().into_iter().for_each(|acceptor| _ = acceptor.join());
        self.cut();
        let pumps = std::mem::take(&mut *self.shared.pumps.lock().unwrap());
        pumps.into_iter().for_each(|pump| _ = pump.join());
    }
}

// === impl Shared ===

impl Shared {
    fn network(&self) -> Network {
        self.network.lock().unwrap().clone()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for client in listener.incoming().flatten() {
            if self.is_stopping() {
                return;
            }
            if !self.network().refuses {
                // A server that is not there is met by the client as a connection that ends.
                _ = self.connect(client);
            }
        }
    }

    fn connect(self: &Arc<Self>, client: TcpStream) -> Result<()> {
        let server = TcpStream::connect(self.server)?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let connection = self.made.fetch_add(1, Ordering::SeqCst);
        let ends = [client.try_clone()?, server.try_clone()?];
        let requests = (client.try_clone()?, server.try_clone()?);
        self.open.lock().unwrap().insert(connection, ends);
        self.pump(connection, requests, |network| network.requests);
        self.pump(connection, (server, client), |network| network.replies);
        Ok(())
    }

    /// Starts a thread that passes on one direction of a connection, and ends the connection when that ends.
    fn pump(self: &Arc<Self>, connection: usize, mut ends: (TcpStream, TcpStream), way: fn(&Network) -> Way) {
        let shared = Arc::clone(self);
        let pump = std::thread::spawn(move || {
            let mut piece = vec![0; PIECE];
            while let Ok(read @ 1..) = ends.0.read(&mut piece) {
                if shared.pass(&piece[..read], &mut ends.1, way).is_err() {
                    break;
                }
            }
            _ = (ends.0.shutdown(Shutdown::Both), ends.1.shutdown(Shutdown::Both));
            shared.open.lock().unwrap().remove(&connection);
        });
        let mut pumps = self.pumps.lock().unwrap();
        pumps.retain(|pump| !pump.is_finished());
        pumps.push(pump);
    }

    fn pass(&self, piece: &[u8], to: &mut TcpStream, way: fn(&Network) -> Way) -> Result<()> {
        let network = self.network();
        std::thread::sleep(network.latency);
        let mut write = |bytes: &[u8]| write_at(network.bytes_per_second, bytes, to);
        match way(&network) {
            Way::Whole => write(piece),
            Way::Lost => Ok(()),
            Way::Twice => write(piece).and_then(|()| write(piece)),
            Way::Garbage => write(&piece.iter().map(|_| fastrand::u8(..)).collect::<Vec<_>>()),
            Way::Truncated => {
                write(&piece[..piece.len() / 2])?;
                Err(Error::from(ErrorKind::UnexpectedEof))
            }
            Way::Endless(first, again) => {
                write(first.as_bytes())?;
                let again = again.repeat(PIECE / again.len());
                while way(&self.network()) == way(&network) && !self.is_stopping() {
                    write(again.as_bytes())?;
                }
                // What would come now is no whole reply.
                Err(Error::from(ErrorKind::InvalidData))
            }
        }
    }
}

fn write_at(bytes_per_second: Option<usize>, bytes: &[u8], to: &mut TcpStream) -> Result<()> {
    let Some(rate) = bytes_per_second else { return to.write_all(bytes) };
    for piece in bytes.chunks((rate / 20).max(1)) {
        to.write_all(piece)?;
        std::thread::sleep(TICK);
    }
    Ok(())
}
