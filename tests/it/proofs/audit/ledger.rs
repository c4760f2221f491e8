//! What clients and the upstream saw, written down as they saw it.

use crate::harness::Response;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Parts of a long answer, and the pause after each.
const PARTS: usize = 5;
const PART: &[u8] = b"400\r\n";
const PAUSE: Duration = Duration::from_millis(1);

/// Since the last time that it was taken.
#[derive(Default)]
pub struct Ledger {
    arrived: Mutex<Vec<String>>,
    answered: Mutex<Vec<Answer>>,
    /// Answers that ended before their end, or did not come.
    aborted: AtomicU64,
    /// Requests without a key: begun, and answered whole.
    strangers_sent: AtomicU64,
    strangers_answered: AtomicU64,
    /// Connections that the upstream serves.
    open: AtomicUsize,
}

/// An answer that a client has received whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub id: String,
    pub status: u16,
    /// `code` of a refusal.
    pub code: Option<String>,
    pub at: Instant,
}

/// Strangers' requests: their records are counts beyond a bound.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strangers {
    pub sent: u64,
    pub answered: u64,
}

// === impl Answer ===

impl Answer {
    /// Whether the request was refused because it could not be recorded. The answer to HEAD has no body that would say so.
    pub fn is_unrecordable(&self) -> bool {
        self.code.as_deref().map_or(self.status == 503, |code| code == "audit_unavailable")
    }
}

// === impl Ledger ===

impl Ledger {
    /// Writes down an answer that was received whole.
    pub fn note(&self, response: &Response) {
        let id = response.header("x-request-id").expect("every answer has an id").to_owned();
        let is_own = response.status >= 400 && !response.body.is_empty();
        let code = is_own.then(|| response.code());
        self.answered.lock().unwrap().push(Answer { id, status: response.status, code, at: Instant::now() });
    }

    pub fn note_abort(&self) {
        self.aborted.fetch_add(1, Ordering::SeqCst);
    }

    /// All answers so far that were not received whole.
    pub fn aborted(&self) -> u64 {
        self.aborted.load(Ordering::SeqCst)
    }

    /// How many answers there are that meet a condition, of those that have not been taken.
    pub fn count_answered(&self, condition: impl Fn(&Answer) -> bool) -> usize {
        self.answered.lock().unwrap().iter().filter(|answer| condition(answer)).count()
    }

    pub fn stranger_sends(&self) {
        self.strangers_sent.fetch_add(1, Ordering::SeqCst);
    }

    pub fn stranger_is_answered(&self) {
        self.strangers_answered.fetch_add(1, Ordering::SeqCst);
    }

    pub fn take_answered(&self) -> Vec<Answer> {
        std::mem::take(&mut self.answered.lock().unwrap())
    }

    /// The ids of the requests that have arrived at the upstream.
    pub fn take_arrived(&self) -> Vec<String> {
        std::mem::take(&mut self.arrived.lock().unwrap())
    }

    /// All strangers so far.
    pub fn strangers(&self) -> Strangers {
        let [sent, answered] =
            [&self.strangers_sent, &self.strangers_answered].map(|count| count.load(Ordering::SeqCst));
        Strangers { sent, answered }
    }

    /// Whether the upstream has seen the end of every connection.
    pub fn is_quiet(&self) -> bool {
        self.open.load(Ordering::SeqCst) == 0
    }

    /// Starts an upstream that writes down every request as soon as its head is there.
    pub fn upstream(self: &Arc<Self>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, ledger) = (listener.local_addr().unwrap(), Arc::clone(self));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                ledger.open.fetch_add(1, Ordering::SeqCst);
                let ledger = Arc::clone(&ledger);
                std::thread::spawn(move || {
                    ledger.serve(stream);
                    ledger.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        address
    }

    /// Serves a connection until it ends.
    fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::new(stream);
        loop {
            let head = read_head(&mut reader)?;
            self.arrived.lock().unwrap().push(field(&head, "x-request-id")?.to_owned());
            answer(&head, &mut reader)?;
        }
    }
}

fn read_head(reader: &mut impl std::io::BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    fields.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Answers by the last part of the path; none when the connection has ended.
fn answer(head: &str, reader: &mut BufReader<TcpStream>) -> Option<()> {
    let mut words = head.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let length: u64 = field(head, "content-length").map_or(Some(0), |length| length.parse().ok())?;
    let received = std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink()).ok()?;
    let stream = reader.get_mut();
    match (method, path.rsplit('/').next()?) {
        _ if received < length => None,
        (_, "held") => wait_for_end(stream),
        (_, "long") => write_slowly(stream),
        ("DELETE", _) => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").ok(),
        ("HEAD", _) => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").ok(),
        _ => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").ok(),
    }
}

fn wait_for_end(stream: &mut TcpStream) -> Option<()> {
    while stream.read(&mut [0; 64]).ok()? > 0 {}
    None
}

fn write_slowly(stream: &mut TcpStream) -> Option<()> {
    stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").ok()?;
    for _ in 0..PARTS {
        stream.write_all(&[PART, &[b'x'; 0x400], b"\r\n"].concat()).ok()?;
        std::thread::sleep(PAUSE);
    }
    stream.write_all(b"0\r\n\r\n").ok()
}
