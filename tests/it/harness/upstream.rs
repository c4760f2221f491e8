//! An upstream that records the exact bytes of every request and answers as it is told.

use socket2::{Domain, Socket, Type};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Request line and fields, byte for byte, ending in an empty line.
    pub head: String,
    /// The body, chunks joined.
    pub body: Vec<u8>,
    /// The lines behind the last chunk.
    pub trailers: Vec<String>,
    pub at: Instant,
    /// Which connection it came on, first is 0.
    pub connection: usize,
}

/// What to answer.
pub enum Reply {
    /// These bytes, then the connection stays open.
    Bytes(Vec<u8>),
    /// These bytes, then the connection is closed.
    BytesThenClose(Vec<u8>),
    /// Closes without a word.
    Close,
    /// Does what it likes with the socket.
    Custom(Box<dyn FnOnce(&mut TcpStream) + Send>),
}

/// One of the events of [`Reply::events_without_end`].
pub const EVENT: &[u8] = b"data: one\n\n";

type Answer = dyn Fn(&Received) -> Reply + Send + Sync;

/// A running upstream. Its threads end with the test process.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers every request with 200 and its name.
    pub fn named(name: &'static str) -> Self {
        Self::start(move |_| Reply::ok(name))
    }

    pub fn start(answer: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Self {
        let listener = listen();
        let upstream =
            Self { address: listener.local_addr().unwrap(), received: Arc::default(), connections: Arc::default() };
        let (clone, answer): (Self, Arc<Answer>) = (upstream.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (upstream, answer) = (clone.clone(), Arc::clone(&answer));
                std::thread::spawn(move || upstream.serve(stream, &*answer));
            }
        });
        upstream
    }

    /// All requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The heads of all requests so far, one after the other.
    pub fn heads(&self) -> String {
        self.received.lock().unwrap().iter().map(|received| received.head.as_str()).collect()
    }

    /// Forgets all requests so far.
    pub fn forget(&self) {
        self.received.lock().unwrap().clear();
    }

    /// The only request so far.
    pub fn only(&self) -> Received {
        let received = self.received();
        assert_eq!(received.len(), 1, "{received:#?}");
        received[0].clone()
    }

    /// How many connections were ever made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn serve(&self, stream: TcpStream, answer: &Answer) {
        stream.set_nodelay(true).unwrap();
        let connection = self.connections.fetch_add(1, Ordering::SeqCst);
        let mut reader = BufReader::new(stream);
        while let Some(received) = read_request(&mut reader, connection) {
            self.received.lock().unwrap().push(received.clone());
            let stream = reader.get_mut();
            match answer(&received) {
                Reply::Bytes(bytes) => _ = stream.write_all(&bytes),
                Reply::BytesThenClose(bytes) => {
                    _ = stream.write_all(&bytes);
                    return;
                }
                Reply::Close => return,
                Reply::Custom(act) => {
                    act(stream);
                    return;
                }
            }
        }
    }
}

/// A listener for more connections at once than the standard library has room for: the others would try again after a second.
fn listen() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

impl Reply {
    /// 200 with this body.
    pub fn ok(body: &str) -> Self {
        let length = body.len();
        Self::Bytes(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}").into_bytes())
    }

    /// Server-sent events until nobody takes them.
    pub fn events_without_end() -> Self {
        Self::Custom(Box::new(|stream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
            while stream.write_all(EVENT).is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }))
    }

    pub fn raw(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }
}

impl Received {
    pub fn header(&self, name: &str) -> Option<String> {
        self.headers(name).into_iter().next()
    }

    /// All values of a field, in order.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned()).collect()
    }

    /// The request line's target.
    pub fn target(&self) -> String {
        self.head.split(' ').nth(1).unwrap_or_default().to_owned()
    }
}

fn read_request(reader: &mut BufReader<TcpStream>, connection: usize) -> Option<Received> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head).ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut received = Received { head, body: Vec::new(), trailers: Vec::new(), at: Instant::now(), connection };
    if received.header("transfer-encoding").is_some() {
        received.trailers = read_chunks(reader, &mut received.body)?;
    } else if let Some(length) = received.header("content-length") {
        let length: u64 = length.parse().ok()?;
        reader.take(length).read_to_end(&mut received.body).ok()?;
        if received.body.len() as u64 != length {
            return None;
        }
    }
    Some(received)
}

/// Reads chunks into `body`, and gives the trailers.
fn read_chunks(reader: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> Option<Vec<String>> {
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let size = u64::from_str_radix(line.trim().split(';').next()?, 16).ok()?;
        if size > 0 {
            let before = body.len();
            reader.by_ref().take(size).read_to_end(body).ok()?;
            if (body.len() - before) as u64 != size {
                return None;
            }
        }
        let mut end = String::new();
        reader.read_line(&mut end).ok()?;
        if size == 0 {
            let mut trailers = Vec::new();
            while end != "\r\n" {
                trailers.push(end.trim_end().to_owned());
                end.clear();
                if reader.read_line(&mut end).ok()? == 0 {
                    return None;
                }
            }
            return Some(trailers);
        }
    }
}
