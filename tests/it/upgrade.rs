//! Connections that leave HTTP: what passes, how it ends, and what is written down of it. What must not pass is in `attacks`, what
//! ends with its key in `cut`.

mod attacks;
mod cut;
mod http2;

use crate::harness::client::head;
use crate::harness::switching::{AGREED, agreed, echo, value_of};
use crate::harness::{Authority, Client, Gateway, Key, PATIENCE, Switching, TlsClient, eventually};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

const ROUTES: &str = r#"
[[routes]]
path = "/v1/sockets/**"
upstream = "erp"
read = "orders:read"
write = "orders:write"
upgrades = ["WebSocket", "example/1"]

[[routes]]
path = "/v1/plain/**"
upstream = "erp"
read = "orders:read"
write = "orders:write"
"#;
const HANDSHAKE: [&str; 4] = [
    "Connection: keep-alive, Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
];

/// A gateway before an upstream that leaves HTTP.
pub struct Scene {
    pub upstream: Switching,
    pub gateway: Gateway,
    pub key: Key,
}

// === impl Scene ===

impl Scene {
    pub fn before(upstream: Switching) -> Self {
        Self::with(upstream, "")
    }

    /// The same with more of gateway.toml.
    pub fn with(upstream: Switching, toml: &str) -> Self {
        Self::of(upstream, Gateway::builder().toml(toml))
    }

    pub fn of(upstream: Switching, builder: crate::harness::gateway::Builder) -> Self {
        let gateway = builder.live_at(upstream.address).toml(ROUTES).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { upstream, gateway, key }
    }

    /// The handshake's head, with the key and these lines.
    pub fn handshake(&self, method: &str, target: &str, lines: &[&str]) -> String {
        let bearer = self.key.bearer();
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines.iter().copied()).collect();
        head(method, target, &lines)
    }

    /// A client whose connection has been upgraded.
    pub fn upgraded(&self) -> TcpStream {
        self.upgrade(self.gateway.client())
    }

    pub fn upgrade(&self, mut client: Client) -> TcpStream {
        client.send(self.handshake("GET", "/v1/sockets/1", &HANDSHAKE));
        let answer = client.read_one("GET").expect("an answer");
        assert_eq!(answer.status, 101, "{}", answer.text());
        let stream = client.stream().try_clone().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// The record of the only upgraded connection, once it is there.
    pub fn record(&self) -> Value {
        eventually("the tunnel's record", || {
            let found: Vec<_> = self.gateway.records().into_iter().filter(|record| record["status"] == 101).collect();
            assert!(found.len() <= 1, "{found:#?}");
            found.into_iter().next()
        })
    }
}

/// Sends a text and reads it back.
pub fn exchange(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}

/// How a connection ends that is only read from.
pub fn end_of(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error.kind()),
        }
    }
}

#[test]
fn both_heads_say_that_the_connection_changes_and_the_rest_is_as_always() {
    let scene = Scene::before(Switching::echo());
    let mut client = scene.gateway.client();
    client.send(scene.handshake("GET", "/v1/sockets/1?a=b", &HANDSHAKE));
    let answer = client.read_one("GET").unwrap();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("connection"), Some("upgrade"));
    assert_eq!(answer.header("upgrade"), Some("websocket"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")));
    for name in ["content-length", "transfer-encoding"] {
        assert_eq!(answer.header(name), None, "RFC 9110, section 8.6");
    }
    let sent = scene.upstream.only();
    assert!(sent.starts_with("GET /v1/sockets/1?a=b HTTP/1.1\r\n"), "{sent}");
    let value = |name: &str| value_of(&sent, name);
    assert_eq!(value("connection").as_deref(), Some("upgrade"));
    assert_eq!(value("upgrade").as_deref(), Some("websocket"));
    assert_eq!(value("sec-websocket-key").as_deref(), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(value("sec-websocket-version").as_deref(), Some("13"));
    assert_eq!(value("x-key-id").as_deref(), Some(scene.key.id.as_str()));
    assert_eq!(value("x-request-id").as_deref(), answer.header("x-request-id"));
    assert_eq!(value("authorization"), None);
    assert_eq!(sent.to_ascii_lowercase().matches("\r\nconnection:").count(), 1, "{sent}");
}

#[test]
fn bytes_pass_both_ways_until_both_sides_have_ended_and_one_record_says_so() {
    let scene = Scene::before(Switching::start(|head, mut stream| {
        // The first of them with the head itself.
        _ = stream.write_all(format!("{}welcome", agreed(head)).as_bytes());
        _ = echo(&mut stream);
        _ = stream.write_all(b"goodbye");
    }));
    let mut stream = scene.upgraded_raw("welcome");
    exchange(&mut stream, b"one");
    exchange(&mut stream, b"HTTP/1.1 400 Bad\r\n\r\n");
    assert!(scene.gateway.records().iter().all(|record| record["status"] != 101), "recorded before its end");
    // Its own end passes; the other side may still speak.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"goodbye");
    let record = scene.record();
    let of = |name: &str| record[name].clone();
    assert_eq!((of("reason"), of("decision")), (Value::Null, "allow".into()), "{record:#}");
    assert_eq!((of("bytes_in"), of("bytes_out")), (23.into(), (23 + 14).into()), "{record:#}");
    assert_eq!((of("method"), of("route")), ("GET".into(), "/v1/sockets/**".into()));
    assert_eq!((of("key_id"), of("upstream")), (scene.key.id.as_str().into(), "erp".into()));
    assert_eq!(scene.gateway.records().iter().filter(|one| one["path"] == "/v1/sockets/1").count(), 1);
}

impl Scene {
    /// An upgraded client that has read this text, byte for byte, behind the head.
    fn upgraded_raw(&self, expected: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.gateway.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(self.handshake("GET", "/v1/sockets/1", &HANDSHAKE).as_bytes()).unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        let mut text = vec![0; expected.len()];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(text, expected.as_bytes());
        stream
    }
}

#[test]
fn the_upstream_may_end_first() {
    let scene = Scene::before(Switching::start(|_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        _ = stream.shutdown(Shutdown::Write);
        let mut rest = Vec::new();
        _ = stream.read_to_end(&mut rest);
        assert_eq!(rest, b"late");
    }));
    let mut stream = scene.upgraded();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    stream.write_all(b"late").unwrap();
    drop(stream);
    let record = scene.record();
    assert_eq!((&record["reason"], &record["bytes_in"]), (&Value::Null, &4.into()), "{record:#}");
}

#[test]
fn another_answer_is_an_ordinary_one_and_the_connection_serves_on() {
    let scene = Scene::before(Switching::start(|head, mut stream| {
        let answer = match head.contains("upgrade: websocket") {
            true => "HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 8\r\nContent-Length: 3\r\n\r\nold",
            false => "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood",
        };
        _ = stream.write_all(answer.as_bytes());
    }));
    let mut client = scene.gateway.client();
    client.send(scene.handshake("GET", "/v1/sockets/1", &HANDSHAKE));
    let answer = client.read("GET");
    assert_eq!((answer.status, answer.text().as_str()), (426, "old"));
    assert_eq!(answer.header("sec-websocket-version"), Some("8"));
    let next = client.request("GET", "/v1/plain/1", &[&scene.key.bearer()]);
    assert_eq!((next.status, next.text().as_str()), (200, "good"));
    assert!(scene.gateway.record_of(answer.header("x-request-id").unwrap())["reason"].is_null());
}

#[test]
fn an_upstream_that_breaks_off_is_told_from_one_that_ends() {
    let scene = Scene::before(Switching::start(|_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        _ = stream.read(&mut [0; 64]);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }));
    let mut stream = scene.upgraded();
    stream.write_all(b"x").unwrap();
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.record()["reason"], "upstream_aborted");
}

#[test]
fn a_client_that_breaks_off_is_told_to_the_upstream() {
    let (sender, ended) = std::sync::mpsc::channel();
    let scene = Scene::before(Switching::start(move |_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        _ = sender.send(end_of(&mut stream));
    }));
    let stream = scene.upgraded();
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.record()["reason"], "client_aborted");
}

#[test]
fn one_on_which_nothing_passes_is_ended() {
    let scene = Scene::with(Switching::echo(), "[limits]\ntunnel_idle = \"500ms\"\nidle_timeout = \"100ms\"");
    let mut stream = scene.upgraded();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        exchange(&mut stream, b"alive");
    }
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.record()["reason"], "tunnel_idle");
}

#[test]
fn a_client_that_takes_nothing_is_ended_by_the_same_deadline_as_always() {
    let scene = Scene::with(
        Switching::start(|_, mut stream| {
            _ = stream.write_all(AGREED.as_bytes());
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        }),
        "[limits]\nwrite_stall = \"300ms\"",
    );
    let _stream = scene.upgraded();
    assert_eq!(scene.record()["reason"], "client_aborted");
}

#[test]
fn a_drain_waits_for_it_up_to_its_bound() {
    let mut scene = Scene::with(Switching::echo(), "[limits]\ndrain = \"1s\"");
    let mut stream = scene.upgraded();
    scene.gateway.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    exchange(&mut stream, b"still here");
    _ = end_of(&mut stream);
    assert_eq!(scene.gateway.wait(), Some(0));
    assert_eq!(scene.record()["reason"], "drain_expired");
}

#[test]
fn it_counts_as_a_connection() {
    let scene = Scene::of(
        Switching::echo(),
        Gateway::builder().workers(1).toml("[limits]\nconnections_max = 2\nidle_timeout = \"1h\""),
    );
    let (mut first, mut second) = (scene.upgraded(), scene.upgraded());
    let third = scene.gateway.client();
    third.stream().set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut third = third;
    third.send(head("GET", "/v1/status", &[]));
    assert!(third.read_one("GET").is_none(), "a third was served");
    exchange(&mut first, b"not closed for it");
    exchange(&mut second, b"nor this one");
}

#[test]
fn a_hundred_megabytes_pass_in_bounded_memory() {
    const SENT: usize = 100 * 1024 * 1024;
    let scene = Scene::before(Switching::echo());
    let mut stream = scene.upgraded();
    let before = resident(&scene.gateway);
    let mut writer = stream.try_clone().unwrap();
    let byte_at = |at: usize| (at % 251) as u8;
    let writing = std::thread::spawn(move || {
        for start in (0..SENT).step_by(1024 * 1024) {
            let piece: Vec<u8> = (start..start + 1024 * 1024).map(byte_at).collect();
            writer.write_all(&piece).unwrap();
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    // Nothing is read for a while: it must be the client that waits.
    std::thread::sleep(Duration::from_millis(500));
    assert!(!writing.is_finished());
    let (mut at, mut piece) = (0, vec![0; 256 * 1024]);
    while let Ok(read @ 1..) = stream.read(&mut piece) {
        assert!(piece[..read].iter().zip(at..).all(|(byte, at)| *byte == byte_at(at)), "differs after {at}");
        at += read;
    }
    assert_eq!(at, SENT);
    let grown = resident(&scene.gateway).saturating_sub(before);
    assert!(grown < 8 * 1024 * 1024, "{grown} bytes more");
    let record = scene.record();
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&SENT.into(), &SENT.into()));
}

fn resident(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn tls_carries_it_as_it_carries_the_rest() {
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let upstream = Switching::start(|head, mut stream| {
        _ = stream.write_all(agreed(head).as_bytes());
        let mut piece = vec![0; TLS_SENT];
        _ = stream.read_exact(&mut piece);
        _ = stream.write_all(&piece);
    });
    let scene = Scene::of(upstream, Gateway::builder().tls(&pair));
    let tls = TlsClient::new(&authority);
    let mut client = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &tls).unwrap();
    client.send(scene.handshake("GET", "/v1/sockets/1", &HANDSHAKE));
    assert_eq!(client.read_one("GET").unwrap().status, 101);
    assert_eq!(value_of(&scene.upstream.only(), "x-forwarded-proto").as_deref(), Some("https"));
    let sent: Vec<u8> = (0..=255).cycle().take(TLS_SENT).collect();
    client.send(&sent);
    assert!(client.rest() == sent, "not what was sent");
    drop(client);
    let record = scene.record();
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&TLS_SENT.into(), &TLS_SENT.into()), "{record:#}");

    // And ends with its key.
    let mut client = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &tls).unwrap();
    client.send(scene.handshake("GET", "/v1/sockets/1", &HANDSHAKE));
    assert_eq!(client.read_one("GET").unwrap().status, 101);
    assert!(scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]).status.success());
    assert!(client.is_closed());
}

/// More than fits any buffer on the way.
const TLS_SENT: usize = 300_000;
