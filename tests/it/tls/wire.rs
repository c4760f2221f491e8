//! Bytes on the way: how they are packed, who does not take them, and how a connection ends.

use super::{Scene, wait_for_cause};
use crate::harness::client::head;
use crate::harness::{Authority, Client, Gateway, Reply, Response, TlsClient, Upstream};
use rustls::{ClientConnection, Stream};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A socket that keeps what was read.
struct Kept {
    stream: TcpStream,
    bytes: Vec<u8>,
}

// === impl Kept ===

impl Kept {
    /// The lengths of the records since last time.
    fn records(&mut self) -> Vec<usize> {
        let mut rest = &self.bytes[..];
        let mut lengths = Vec::new();
        while let [_, _, _, high, low, ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            rest = &rest[5 + length..];
            lengths.push(length);
        }
        self.bytes.clear();
        lengths
    }
}

impl Read for Kept {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buf)?;
        self.bytes.extend_from_slice(&buf[..read]);
        Ok(read)
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Sends a request and reads until the answer ends in `end`.
fn ask(session: &mut ClientConnection, socket: &mut Kept, request: &str, end: &str) {
    let mut stream = Stream::new(session, socket);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        let mut part = [0; 4096];
        let read = stream.read(&mut part).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&part[..read]);
    }
}

#[test]
fn a_small_answer_is_one_record() {
    let scene = Scene::new();
    let mut session = scene.client.session("erp.example");
    let stream = TcpStream::connect(scene.gateway.tls_address()).unwrap();
    let mut socket = Kept { stream, bytes: Vec::new() };
    let request = head("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()]);
    for round in 0..3 {
        ask(&mut session, &mut socket, &request, "\r\n\r\nlive");
        let records = socket.records();
        // The first comes with the handshake and its tickets.
        assert!(round == 0 || records.len() == 1, "{records:?}");
    }
}

#[test]
fn a_connection_that_ends_between_requests_says_so() {
    let scene = Scene::with("", "", "[limits]\nidle_timeout = \"300ms\"\nconnections_max = 4");
    let mut idle = scene.connect();
    assert_eq!(scene.status(&mut idle), 200);
    assert_eq!(idle.end().unwrap(), b"", "at the idle timeout");
    let mut many: Vec<_> = (0..8)
        .map(|_| {
            let mut client = scene.connect();
            assert_eq!(scene.status(&mut client), 200);
            client
        })
        .collect();
    assert_eq!(many[0].end().unwrap(), b"", "closed to make room");
    drop(many);
    let mut scene = Scene::new();
    let mut client = scene.connect();
    assert_eq!(scene.status(&mut client), 200);
    scene.gateway.signal("TERM");
    assert_eq!(client.end().unwrap(), b"", "drained");
    assert_eq!(scene.gateway.wait(), Some(0));
}

/// Before an upstream that answers with a body as long as the last segment of the path says.
fn sized(sections: &str) -> Scene {
    let upstream = Upstream::start(|received| {
        let length: usize = received.target().rsplit('/').next().unwrap().parse().unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        Reply::Bytes([head.into_bytes(), vec![b'x'; length]].concat())
    });
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let gateway = Gateway::builder().live(&upstream).tls(&pair).toml(sections).start();
    let key = gateway.key(&["orders:read"]);
    let client = TlsClient::new(&authority);
    Scene { authority, pair, upstream, gateway, key, client }
}

// === impl Scene ===

impl Scene {
    /// A client that has asked for so many bytes, and takes none.
    fn client_of(&self, length: usize) -> Client {
        let mut client = self.connect();
        socket2::SockRef::from(client.stream()).set_recv_buffer_size(64 * 1024).unwrap();
        client.send(head("GET", &self.gateway.path(&format!("orders/{length}")), &[&self.key.bearer()]));
        client
    }
}

/// Takes the answer at last, and fast.
fn take(client: &mut Client) -> Response {
    socket2::SockRef::from(client.stream()).set_recv_buffer_size(1 << 22).unwrap();
    client.read("GET")
}

#[test]
fn an_answer_that_is_not_taken_yet_is_kept_whatever_holds_it() {
    let scene = sized("[limits]\nidle_timeout = \"300ms\"");
    let lengths: Vec<usize> = (1..80).map(|step| step * 48 * 1024).collect();
    let mut clients: Vec<_> = lengths.iter().map(|length| scene.client_of(*length)).collect();
    std::thread::sleep(Duration::from_millis(1500));
    for (client, length) in clients.iter_mut().zip(lengths) {
        let answer = take(client);
        assert_eq!((answer.status, answer.complete, answer.body.len()), (200, true, length));
    }
}

#[test]
fn a_client_that_takes_no_bytes_is_cut_off() {
    let scene = sized("[limits]\nwrite_stall = \"300ms\"");
    let mut client = scene.connect();
    client.send(head("GET", &scene.gateway.path("orders/50000000"), &[&scene.key.bearer()]));
    wait_for_cause(&scene.gateway, "write_stall", 1);
    assert!(!client.read("GET").complete);
}

#[test]
fn a_large_body_passes_both_ways_at_the_pace_of_who_takes_it() {
    let scene = sized("");
    let length = 20_000_000;
    let mut client = scene.connect();
    client.send(head("GET", &scene.gateway.path(&format!("orders/{length}")), &[&scene.key.bearer()]));
    std::thread::sleep(Duration::from_millis(300));
    let resident = std::fs::read_to_string(format!("/proc/{}/statm", scene.gateway.pid())).unwrap();
    let pages: usize = resident.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages / 256 < 200, "{} MiB", pages / 256);
    assert_eq!(client.read("GET").body.len(), length);
    let upload = "y".repeat(3_000_000);
    let key = scene.gateway.key(&["orders:write"]);
    let lines = [&*key.bearer(), "Content-Length: 3000000"];
    client = scene.connect();
    client.send(head("POST", &scene.gateway.path("orders/5"), &lines) + &upload);
    assert_eq!(client.read("POST").status, 200);
    assert_eq!(scene.upstream.received().last().unwrap().body, upload.as_bytes());
}
