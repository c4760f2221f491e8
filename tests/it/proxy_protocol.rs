//! The PROXY protocol: whom a trusted proxy names is the client; whatever else comes is closed and counted.

use crate::harness::client::head;
use crate::harness::{Client, Gateway, Key, PATIENCE, Upstream, eventually};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;

const V1: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n";
const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// A gateway that also listens for PROXY headers, whose proxies are `trusted`, and a key for one client.
fn start(trusted: &str, limits: &str) -> (Upstream, Gateway, Key) {
    let upstream = Upstream::named("live");
    let settings = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\nproxy_protocol = true\n\
         [[listen]]\naddress = \"unix:keygate.sock\"\nproxy_protocol = true\n\
         [client_ip]\ntrusted_proxies = [{trusted}]\n[limits]\n{limits}"
    );
    let gateway = Gateway::builder().live(&upstream).toml(&settings).start();
    let key = gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--allow", "192.0.2.7"]);
    (upstream, gateway, key)
}

fn connect(gateway: &Gateway) -> Client {
    let address: SocketAddr = gateway.listening()[1].parse().unwrap();
    Client::connect(address)
}

/// The status of a request behind these bytes.
fn status(gateway: &Gateway, key: &Key, header: &[u8], lines: &[&str]) -> u16 {
    let bearer = key.bearer();
    let lines: Vec<&str> = lines.iter().copied().chain([bearer.as_str()]).collect();
    let request = head("GET", &gateway.path("orders"), &lines);
    let mut client = connect(gateway);
    let first = client.send([header, request.as_bytes()].concat()).read("GET").status;
    // The header was the connection's, not the request's.
    assert_eq!(client.send(request).read("GET").status, first);
    first
}

fn v2(client: [u8; 4]) -> Vec<u8> {
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &client, &[198, 51, 100, 1, 0x12, 0x34, 1, 187]].concat()
}

fn counted(gateway: &Gateway, cause: &str) -> u64 {
    let records = gateway.records();
    let events = records.iter().filter(|record| record["kind"] == "connection");
    events.filter_map(|record| record["counts"][cause].as_u64()).sum()
}

/// Each of these is closed without an answer, and counted for this cause.
fn refused(gateway: &Gateway, cause: &str, beginnings: &[&[u8]]) {
    for beginning in beginnings {
        let rest = connect(gateway).send(beginning).rest();
        assert!(rest.is_empty(), "{beginning:?}: {:?}", String::from_utf8_lossy(&rest));
    }
    eventually(cause, || (counted(gateway, cause) == beginnings.len() as u64).then_some(()));
}

#[test]
fn whom_a_trusted_proxy_names_is_the_client() {
    let (upstream, gateway, key) = start("\"127.0.0.1\", \"10.0.0.0/8\"", "");
    for header in [V1, &v2([192, 0, 2, 7])] {
        upstream.forget();
        assert_eq!(status(&gateway, &key, header, &["X-Forwarded-For: 198.51.100.9"]), 200);
        assert_eq!(upstream.received()[0].header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
    }
    assert_eq!(status(&gateway, &key, &v2([192, 0, 2, 8]), &[]), 403);
    // A proxy that forwards for another one: its field counts, from there.
    assert_eq!(status(&gateway, &key, &v2([10, 0, 0, 1]), &["X-Forwarded-For: 192.0.2.7"]), 200);
    assert_eq!(status(&gateway, &key, &v2([10, 0, 0, 1]), &["X-Forwarded-For: 192.0.2.8"]), 403);
    // The proxy speaks for itself.
    for header in [LOCAL, b"PROXY UNKNOWN\r\n"] {
        assert_eq!(status(&gateway, &key, header, &[]), 403);
        assert_eq!(status(&gateway, &key, header, &["X-Forwarded-For: 192.0.2.7"]), 200);
    }
    // The peer is the one that the header names.
    let seen = || gateway.records().iter().filter(|record| record["peer_ip"] == "192.0.2.7").count();
    eventually("all four are recorded", || (seen() == 4).then_some(()));
}

#[test]
fn a_header_may_come_in_any_pieces() {
    let (_upstream, gateway, key) = start("\"127.0.0.1\"", "");
    let mut client = connect(&gateway);
    let request = head("GET", &gateway.path("orders"), &[&key.bearer()]);
    for byte in [V1, request.as_bytes()].concat() {
        client.send([byte]);
    }
    assert_eq!(client.read("GET").status, 200);
}

#[test]
fn a_unix_socket_needs_no_address_to_be_trusted() {
    let (_upstream, gateway, key) = start("\"10.0.0.1\"", "");
    let mut stream = UnixStream::connect(gateway.dir.path().join("keygate.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&v2([192, 0, 2, 7])).unwrap();
    stream.write_all(head("GET", &gateway.path("orders"), &[&key.bearer()]).as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[test]
fn whoever_is_no_trusted_proxy_is_closed_unheard() {
    let (upstream, gateway, key) = start("\"10.0.0.1\"", "");
    let request = head("GET", &gateway.path("orders"), &[&key.bearer()]);
    refused(&gateway, "proxy_untrusted", &[V1, &v2([10, 0, 0, 1]), request.as_bytes(), b""]);
    assert!(upstream.received().is_empty());
}

#[test]
fn without_a_header_there_is_no_request() {
    let (upstream, gateway, key) = start("\"127.0.0.1\"", "");
    let request = head("GET", &gateway.path("orders"), &[&key.bearer()]);
    refused(
        &gateway,
        "proxy_header_missing",
        &[request.as_bytes(), b"\x16\x03\x01\x02\x00\x01", b"PRI * HTTP/2.0\r\n"],
    );
    assert!(upstream.received().is_empty());
}

#[test]
fn a_broken_header_is_no_header() {
    let (upstream, gateway, key) = start("\"127.0.0.1\"", "");
    let request = head("GET", &gateway.path("orders"), &[&key.bearer()]);
    let broken = |header: &str| [header.as_bytes(), request.as_bytes()].concat();
    let beginnings = [
        broken("PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\n"),
        broken("PROXY TCP4 192.0.2.7 198.51.100.1 4711 443 \r\n"),
        broken("PROXY TCP6 192.0.2.7 198.51.100.1 4711 443\r\n"),
        broken(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(100))),
        [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x04\x7f\0\0\x01"[..], request.as_bytes()].concat(),
    ];
    refused(&gateway, "proxy_header_malformed", &beginnings.iter().map(Vec::as_slice).collect::<Vec<_>>());
    assert!(upstream.received().is_empty());
}

#[test]
fn half_a_header_is_waited_for_until_the_deadline_and_silence_too() {
    let (_upstream, gateway, key) = start("\"127.0.0.1\"", "handshake_timeout = \"300ms\"");
    refused(&gateway, "handshake_timeout", &[b"", &V1[..20], &V1[..V1.len() - 1], &v2([192, 0, 2, 7])[..17]]);
    assert_eq!(status(&gateway, &key, V1, &[]), 200);
}

#[test]
fn whoever_only_looks_whether_the_port_is_open_is_not_counted() {
    let (_upstream, gateway, _key) = start("\"127.0.0.1\"", "");
    (0..5).for_each(|_| drop(connect(&gateway)));
    refused(&gateway, "proxy_header_missing", &[b"x"]);
    assert!(!gateway.records().iter().any(|record| record["counts"]["proxy_header_malformed"].is_number()));
}
