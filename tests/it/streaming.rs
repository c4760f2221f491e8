//! Bodies stream both ways, whole or visibly broken, and connections are reused only when that is safe.

use crate::harness::client::head;
use crate::harness::{Client, Gateway, Key, Reply, Upstream, eventually};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::Shutdown;

const LARGE: usize = 64 << 20;
const PIECE: usize = 64 << 10;

fn start(upstream: &Upstream) -> (Gateway, Key) {
    let gateway = Gateway::before(upstream);
    let key = gateway.key(&["orders:read", "orders:write"]);
    (gateway, key)
}

fn orders(gateway: &Gateway, key: &Key, method: &str, lines: &[&str]) -> String {
    let bearer = key.bearer();
    let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines.iter().copied()).collect();
    head(method, &gateway.path("orders"), &lines)
}

/// Bytes that do not repeat within a piece's length.
fn piece(index: usize) -> Vec<u8> {
    (0..PIECE).map(|at| (at.wrapping_mul(31) ^ index.wrapping_mul(17) ^ (at >> 8)) as u8).collect()
}

fn resident_bytes(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

#[test]
fn large_bodies_arrive_byte_for_byte_in_both_framings() {
    let upstream = Upstream::start(|received| {
        let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", received.body.len()).into_bytes();
        response.extend_from_slice(&received.body);
        Reply::Bytes(response)
    });
    let (gateway, key) = start(&upstream);
    let before = resident_bytes(&gateway);
    for chunked in [false, true] {
        let framing =
            if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {LARGE}") };
        let mut client = gateway.client();
        client.send(orders(&gateway, &key, "POST", &[&framing]));
        let mut sent = Sha256::new();
        for index in 0..LARGE / PIECE {
            let piece = piece(index);
            sent.update(&piece);
            if chunked {
                client.send(format!("{PIECE:x}\r\n")).send(&piece).send("\r\n");
            } else {
                client.send(&piece);
            }
        }
        if chunked {
            client.send("0\r\n\r\n");
        }
        let answer = client.read("POST");
        assert!(answer.complete && answer.body.len() == LARGE);
        assert!(Sha256::digest(&answer.body) == sent.finalize());
    }
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more after streaming");
}

#[test]
fn a_reader_that_stops_holds_the_sender_back() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            _ = stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes());
            (0..LARGE / PIECE).for_each(|index| _ = stream.write_all(&piece(index)));
            _ = stream.read(&mut [0]);
        }))
    });
    let (gateway, key) = start(&upstream);
    let before = resident_bytes(&gateway);
    let mut clients: Vec<Client> = (0..4).map(|_| gateway.client()).collect();
    let request = orders(&gateway, &key, "GET", &[]);
    clients.iter_mut().for_each(|client| _ = client.send(&request));
    eventually("all are at the upstream", || (upstream.received().len() == 4).then_some(()));
    std::thread::sleep(std::time::Duration::from_millis(300));
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more for four readers that stopped");
    let answer = clients[0].read("GET");
    assert!(answer.complete && answer.body.len() == LARGE);
}

#[test]
fn trailers_reach_a_client_that_takes_them() {
    let upstream = Upstream::start(|_| {
        Reply::raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
    });
    let (gateway, key) = start(&upstream);
    let answer = gateway.client().send(orders(&gateway, &key, "GET", &["TE: trailers", "Connection: TE"])).read("GET");
    assert_eq!((answer.text().as_str(), answer.complete), ("abc", true));
    assert_eq!(answer.trailers, [("x-sum".to_owned(), "7".to_owned())]);
    assert_eq!(upstream.only().header("te").as_deref(), Some("trailers"));
    let plain = gateway.client().send(orders(&gateway, &key, "GET", &[])).read("GET");
    assert_eq!((plain.text().as_str(), plain.trailers.len()), ("abc", 0));
}

#[test]
fn responses_without_a_body_keep_their_length_and_their_connection() {
    let upstream = Upstream::start(|received| match received.head.split(' ').next() {
        Some("HEAD") => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        Some("DELETE") => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        _ => Reply::raw("HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\nETag: \"a\"\r\n\r\n"),
    });
    let (gateway, key) = start(&upstream);
    let mut client = gateway.client();
    // The library sends no length with a 304, where RFC 9110, section 15.4.5, leaves it open.
    for (method, status, length) in [("HEAD", 200, Some("1234")), ("DELETE", 204, None), ("GET", 304, None)] {
        let answer = client.send(orders(&gateway, &key, method, &[])).read(method);
        assert_eq!((answer.status, answer.header("content-length")), (status, length), "{method}");
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn continue_is_said_only_to_a_caller_who_may() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream);
    let expecting = orders(&gateway, &key, "POST", &["Expect: 100-continue", "Content-Length: 3"]);
    let mut client = gateway.client();
    client.send(&expecting);
    assert_eq!(client.read_one("POST").unwrap().status, 100);
    client.send("abc");
    assert_eq!(client.read_one("POST").unwrap().status, 200);
    let stranger = expecting.replace(&key.bearer(), "X-Nothing: 1");
    let mut client = gateway.client();
    client.send(stranger);
    assert_eq!(client.read_one("POST").unwrap().status, 401);
}

#[test]
fn an_abort_on_one_side_ends_the_other() {
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("orders") {
            Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec())
        } else {
            Reply::ok("good")
        }
    });
    let (gateway, key) = start(&upstream);
    let answer = gateway.client().send(orders(&gateway, &key, "GET", &[])).read("GET");
    assert!(!answer.complete);
    let record = gateway.record_of(answer.header("x-request-id").unwrap());
    assert_eq!(record["reason"], "upstream_aborted");
    let mut client = gateway.client();
    client.send(orders(&gateway, &key, "POST", &["Content-Length: 10"]) + "abc");
    eventually("the upload has begun", || (upstream.connections() == 2).then_some(()));
    client.stream().shutdown(Shutdown::Both).unwrap();
    eventually("the abort is recorded", || {
        gateway.records().iter().any(|record| record["reason"] == "client_aborted").then_some(())
    });
    assert_eq!(upstream.received().len(), 1, "half a body is no request");
}

#[test]
fn a_response_that_breaks_off_never_looks_whole_to_a_client_that_knows_only_the_end_of_the_connection() {
    let upstream = Upstream::start(|_| {
        Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec())
    });
    let (gateway, key) = start(&upstream);
    let mut client = gateway.client();
    client.send(orders(&gateway, &key, "GET", &[]).replace("HTTP/1.1", "HTTP/1.0"));
    let mut received = Vec::new();
    let ended = client.stream().read_to_end(&mut received);
    assert_eq!(ended.map_err(|error| error.kind()), Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn an_upload_that_moves_is_not_a_response_that_stands_still() {
    // It answers with its head before it reads the body, and with its own body after it.
    let early = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = early.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = early.accept().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n").unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"0\r\n\r\n") {
            let mut buf = [0; 1024];
            let read = stream.read(&mut buf).unwrap();
            received.extend_from_slice(&buf[..read]);
        }
        stream.write_all(b"done").unwrap();
        _ = stream.read(&mut [0]);
    });
    let gateway = Gateway::builder().live_at(address).toml("[limits]\nbody_idle = \"1s\"").start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let mut client = gateway.client();
    client.send(orders(&gateway, &key, "POST", &["Transfer-Encoding: chunked"]));
    for _ in 0..8 {
        client.send("3\r\nabc\r\n");
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    client.send("0\r\n\r\n");
    let answer = client.read("POST");
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "done", true));
}

#[test]
fn connections_are_reused_on_both_sides_until_the_upstream_closes() {
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("last") {
            Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_vec())
        } else {
            Reply::ok("good")
        }
    });
    let (gateway, key) = start(&upstream);
    let mut client = gateway.client();
    for rest in ["orders", "orders", "orders/last", "orders", "orders/last", "orders"] {
        assert_eq!(client.request("GET", &gateway.path(rest), &[&key.bearer()]).status, 200, "{rest}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!((upstream.connections(), upstream.received().len()), (3, 6));
}
