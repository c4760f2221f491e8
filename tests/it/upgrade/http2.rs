//! WebSockets on a stream of HTTP/2 (RFC 8441), from a handshake over HTTP/1.1 with the upstream.

use super::{Scene, end_of};
use crate::harness::http2::{self, Exchange, Wire, kind, request};
use crate::harness::switching::{AGREED, agreed, echo, value_of};
use crate::harness::{Authority, Gateway, Http2, PATIENCE, Switching, TlsClient, Upstream, eventually};
use h2::Reason;
use h2::ext::Protocol;
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::channel;
use std::time::Duration;

const BOTH: &str = "protocols = [\"h1\", \"h2\"]";
/// SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441, section 3).
const ENABLE_CONNECT: u16 = 8;

fn scene(upstream: Switching) -> Scene {
    scene_with(upstream, "")
}

fn scene_with(upstream: Switching, toml: &str) -> Scene {
    Scene::of(upstream, Gateway::builder().listen(BOTH).toml(toml))
}

impl Scene {
    /// Asks for a WebSocket on a stream of its own.
    fn connect(&self, client: &mut Http2, target: &str, lines: &[&str]) -> Exchange {
        self.connect_to(client, "websocket", target, lines)
    }

    fn connect_to(&self, client: &mut Http2, protocol: &str, target: &str, lines: &[&str]) -> Exchange {
        let bearer = self.key.bearer();
        let lines: Vec<&str> =
            [bearer.as_str(), "sec-websocket-version: 13"].into_iter().chain(lines.iter().copied()).collect();
        let mut request = request("CONNECT", &format!("http://erp.example{target}"), &lines);
        request.extensions_mut().insert(Protocol::from(protocol));
        client.begin_with(request, false)
    }

    /// One that the upstream has agreed to.
    fn tunnel(&self, client: &mut Http2) -> Exchange {
        let mut exchange = self.connect(client, "/v1/sockets/1", &[]);
        assert_eq!(exchange.head().unwrap().status, 200);
        exchange
    }

    /// The record of the only tunnel, once it is there.
    fn record_of_connect(&self) -> Value {
        eventually("the tunnel's record", || {
            let of_tunnel = |record: &Value| record["method"] == "CONNECT" && record["status"] == 200;
            let found: Vec<_> = self.gateway.records().into_iter().filter(of_tunnel).collect();
            assert!(found.len() <= 1, "{found:#?}");
            found.into_iter().next()
        })
    }
}

/// Reads so many bytes.
fn read(exchange: &mut Exchange, length: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < length {
        read.extend_from_slice(&exchange.data().expect("more").expect("more"));
    }
    assert_eq!(read.len(), length);
    read
}

fn passes(exchange: &mut Exchange, text: &[u8]) {
    exchange.send(text, false);
    assert_eq!(read(exchange, text.len()), text);
}

#[test]
fn the_upstream_sees_the_handshake_that_it_knows_and_the_client_none() {
    let scene = scene(Switching::echo());
    let mut client = Http2::connect(scene.gateway.address);
    let lines = ["sec-websocket-protocol: chat", "origin: http://erp.example", "sec-websocket-key: mine"];
    let mut exchange = scene.connect(&mut client, "/v1/sockets/1?a=b", &lines);
    let head = exchange.head().unwrap();
    assert_eq!(head.status, 200);
    for name in ["sec-websocket-accept", "connection", "upgrade", "content-length"] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    let sent = scene.upstream.only();
    assert!(sent.starts_with("GET /v1/sockets/1?a=b HTTP/1.1\r\n"), "{sent}");
    let value = |name: &str| value_of(&sent, name);
    assert_eq!(value("connection").as_deref(), Some("upgrade"));
    assert_eq!(value("upgrade").as_deref(), Some("websocket"));
    assert_eq!(value("sec-websocket-version").as_deref(), Some("13"));
    assert_eq!(value("sec-websocket-protocol").as_deref(), Some("chat"));
    assert_eq!(value("host").as_deref(), Some("erp.example"));
    assert_eq!(value("x-key-id").as_deref(), Some(scene.key.id.as_str()));
    assert_eq!(value("sec-websocket-key").map(|key| key.len()), Some(24), "a key of the gateway's own");
    assert_eq!(sent.to_ascii_lowercase().matches("sec-websocket-key").count(), 1);
    for name in ["content-length", "transfer-encoding", "authorization"] {
        assert_eq!(value(name), None);
    }
}

#[test]
fn bytes_pass_both_ways_until_both_sides_have_ended_and_one_record_says_so() {
    let scene = scene(Switching::start(|head, mut stream| {
        _ = stream.write_all(format!("{}welcome", agreed(head)).as_bytes());
        _ = echo(&mut stream);
        _ = stream.write_all(b"goodbye");
    }));
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    assert_eq!(read(&mut exchange, 7), b"welcome");
    passes(&mut exchange, b"one");
    passes(&mut exchange, &[b'x'; 100_000]);
    exchange.send(b"", true);
    assert_eq!(read(&mut exchange, 7), b"goodbye");
    assert!(exchange.data().is_none_or(|last| last.unwrap().is_empty()));
    let record = scene.record_of_connect();
    assert_eq!((&record["reason"], &record["decision"]), (&Value::Null, &"allow".into()));
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&100_003.into(), &100_017.into()));
    assert_eq!((&record["protocol"], &record["route"]), (&"HTTP/2.0".into(), &"/v1/sockets/**".into()));
}

#[test]
fn it_is_offered_only_where_a_route_allows_it() {
    let offered = |gateway: &Gateway| {
        let settings = Wire::connect(gateway.address, &[]).wait_for(kind::SETTINGS).unwrap().payload;
        settings.chunks(6).any(|one| u16::from_be_bytes([one[0], one[1]]) == ENABLE_CONNECT && one[5] == 1)
    };
    let scene = scene(Switching::echo());
    assert!(offered(&scene.gateway));
    let without = Gateway::builder().live(&Upstream::named("live")).listen(BOTH).start();
    assert!(!offered(&without));
    // Who asks all the same breaks the protocol.
    let mut request = request("CONNECT", "http://erp.example/v1/status", &[]);
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let error = Http2::connect(without.address).begin_with(request, false).answer().unwrap_err();
    assert_eq!((error.reason(), error.is_reset()), (Some(Reason::PROTOCOL_ERROR), true));
}

#[test]
fn row_20_any_other_connect_is_refused() {
    let scene = scene(Switching::echo());
    let mut client = Http2::connect(scene.gateway.address);
    for (protocol, target) in [
        ("websocket", "/v1/plain/1"),
        ("connect-udp", "/v1/sockets/1"),
        ("example/1", "/v1/sockets/1"),
        ("h2c", "/v1/sockets/1"),
    ] {
        let answer = scene.connect_to(&mut client, protocol, target, &[]).answer().unwrap();
        assert_eq!((answer.status(), answer.code().as_str()), (405, "method_not_allowed"), "{protocol} {target}");
    }
    let mut plain = http::Request::builder().method("CONNECT").uri("erp.example:443").body(()).unwrap();
    plain.headers_mut().insert("authorization", scene.key.bearer()["Authorization: ".len()..].parse().unwrap());
    assert_eq!(client.begin_with(plain, false).answer().unwrap().status(), 405);
    assert!(scene.upstream.heads().is_empty());
}

#[test]
fn it_is_judged_like_the_get_that_it_becomes() {
    let scene = scene(Switching::echo());
    let mut client = Http2::connect(scene.gateway.address);
    let poor = scene.gateway.key(&["orders:write"]);
    let connect = |target: &str, bearer: &str| {
        let mut request = request("CONNECT", &format!("http://erp.example{target}"), &[bearer]);
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        request
    };
    for (target, bearer, status, code) in [
        ("/v1/sockets/1", "x: y", 401, "missing_api_key"),
        ("/v1/sockets/1", &poor.bearer(), 403, "insufficient_scope"),
        ("/v1//sockets/1", &scene.key.bearer(), 400, "bad_request"),
        ("/v1/sockets/%2e%2e/1", &scene.key.bearer(), 400, "bad_request"),
        ("/v1/nothing", &scene.key.bearer(), 404, "not_found"),
    ] {
        let answer = client.begin_with(connect(target, bearer), false).answer().unwrap();
        assert_eq!((answer.status(), answer.code().as_str()), (status, code), "{target}");
    }
    assert!(scene.upstream.heads().is_empty());
}

#[test]
fn an_upstream_that_has_not_understood_makes_no_tunnel() {
    const ANSWERS: [(&str, u16); 5] = [
        (AGREED, 502),
        ("HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\n\r\n", 502),
        // Over HTTP/2 it would be the tunnel.
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml", 502),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nhtml", 404),
        ("HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", 302),
    ];
    let (sender, left) = channel();
    let scene = scene(Switching::start(move |head, mut stream| {
        let answer = head.split(['/', ' ']).find_map(|part| part.parse::<usize>().ok()).unwrap();
        _ = stream.write_all(ANSWERS[answer].0.as_bytes());
        _ = stream.shutdown(Shutdown::Write);
        _ = sender.send(stream.read(&mut [0; 64]));
    }));
    let mut client = Http2::connect(scene.gateway.address);
    for (index, (answer, status)) in ANSWERS.iter().enumerate() {
        let mut exchange = scene.connect(&mut client, &format!("/v1/sockets/{index}"), &[]);
        exchange.send(b"premature", false);
        assert_eq!(exchange.answer().unwrap().status(), *status, "{answer}");
        let left = left.recv_timeout(PATIENCE).unwrap();
        assert!(!matches!(left, Ok(1..)), "{answer}: bytes went to the upstream");
    }
}

#[test]
fn i10_its_keys_end_resets_its_stream_alone() {
    let (sender, ended) = channel();
    let scene = scene(Switching::start(move |head, mut stream| {
        _ = stream.write_all(agreed(head).as_bytes());
        _ = sender.send(echo(&mut stream));
    }));
    let other = scene.gateway.key(&["orders:read"]);
    let mut client = Http2::connect(scene.gateway.address);
    let mut mine = scene.tunnel(&mut client);
    let mut request = request("CONNECT", "http://erp.example/v1/sockets/1", &[&other.bearer()]);
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let mut sibling = client.begin_with(request, false);
    assert_eq!(sibling.head().unwrap().status, 200);
    passes(&mut mine, b"mine");
    passes(&mut sibling, b"its");
    assert!(scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]).status.success());
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    assert_eq!(mine.data().unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    let cut = |record: &Value| record["reason"] == "cut_by_revocation" && record["status"] == 200;
    eventually("the cut is recorded", || scene.gateway.records().iter().any(cut).then_some(()));
    passes(&mut sibling, b"goes on");
}

#[test]
fn i10_a_client_whose_window_is_shut_is_cut_off_all_the_same() {
    let scene = scene(Switching::start(|head, mut stream| {
        _ = stream.write_all(agreed(head).as_bytes());
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    }));
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    std::thread::sleep(Duration::from_millis(200));
    assert!(scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]).status.success());
    assert_eq!(scene.record_of_connect()["reason"], "cut_by_revocation");
    assert_eq!(exchange.reset(), Reason::CANCEL);
}

#[test]
fn whoever_breaks_off_is_told_to_the_other_side() {
    let scene = scene(Switching::start(|head, mut stream| {
        _ = stream.write_all(agreed(head).as_bytes());
        _ = stream.read(&mut [0; 64]);
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    }));
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    exchange.send(b"x", false);
    assert_eq!(exchange.data().unwrap().unwrap_err().reason(), Some(Reason::CANCEL));
    assert_eq!(scene.record_of_connect()["reason"], "upstream_aborted");

    let (sender, ended) = channel();
    let scene = self::scene(Switching::start(move |head, mut stream| {
        _ = stream.write_all(agreed(head).as_bytes());
        _ = sender.send(end_of(&mut stream));
    }));
    let mut client = Http2::connect(scene.gateway.address);
    scene.tunnel(&mut client).take_back();
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.record_of_connect()["reason"], "client_aborted");
}

#[test]
fn its_deadlines_are_those_of_any_tunnel() {
    let scene = scene_with(Switching::echo(), "[limits]\ntunnel_idle = \"300ms\"\nidle_timeout = \"1h\"");
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    assert_eq!(exchange.reset(), Reason::CANCEL);
    assert_eq!(scene.record_of_connect()["reason"], "tunnel_idle");

    let stalled = scene_with(
        Switching::start(|head, mut stream| {
            _ = stream.write_all(agreed(head).as_bytes());
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        }),
        "[limits]\nwrite_stall = \"300ms\"",
    );
    let mut client = Http2::connect(stalled.gateway.address);
    let mut exchange = stalled.tunnel(&mut client);
    assert_eq!(exchange.reset(), Reason::CANCEL);
    assert_eq!(stalled.record_of_connect()["reason"], "client_aborted");
}

#[test]
fn thousands_of_small_messages_pass() {
    let scene = scene(Switching::echo());
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    for number in 0u32..3000 {
        passes(&mut exchange, &number.to_be_bytes());
    }
}

#[test]
fn megabytes_pass_and_the_slower_side_is_waited_for() {
    const SENT: usize = 20 * 1024 * 1024;
    let scene = scene(Switching::start(|head, mut stream| {
        _ = stream.write_all(agreed(head).as_bytes());
        let piece: Vec<u8> = (0..=255).cycle().take(64 * 1024).collect();
        (0..SENT / piece.len()).for_each(|_| stream.write_all(&piece).unwrap());
    }));
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    exchange.send(b"", true);
    std::thread::sleep(Duration::from_millis(300));
    let mut at = 0;
    while let Some(data) = exchange.data() {
        let data = data.unwrap();
        assert!(data.iter().zip(at..).all(|(byte, at)| usize::from(*byte) == at % 256));
        at += data.len();
    }
    assert_eq!(at, SENT);
    assert_eq!(scene.record_of_connect()["bytes_out"], SENT);
}

#[test]
fn a_stream_that_is_ended_at_once_is_half_a_tunnel() {
    let scene = scene(Switching::echo());
    let mut wire = Wire::connect(scene.gateway.address, &[]);
    let bearer = &scene.key.bearer()["Authorization: ".len()..];
    let lines = [(":protocol", "websocket"), ("authorization", bearer)];
    wire.send(&http2::head("CONNECT", 1, "/v1/sockets/1", &lines, http2::END_STREAM | http2::END_HEADERS));
    let end = std::iter::from_fn(|| wire.next()).find(|frame| frame.kind == kind::DATA).unwrap();
    assert_eq!((end.flags & http2::END_STREAM, end.payload.len()), (http2::END_STREAM, 0));
    assert!(scene.record_of_connect()["reason"].is_null());
}

#[test]
fn a_drain_waits_for_it_up_to_its_bound() {
    let mut scene = scene_with(Switching::echo(), "[limits]\ndrain = \"1s\"");
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    scene.gateway.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    passes(&mut exchange, b"still here");
    assert!(exchange.data().is_none_or(|last| last.is_err()));
    assert_eq!(scene.gateway.wait(), Some(0));
    assert_eq!(scene.record_of_connect()["reason"], "drain_expired");
}

#[test]
fn i10_narrowing_cuts_it_and_what_is_still_allowed_goes_on() {
    let scene = scene(Switching::echo());
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    let narrow = |scope| {
        assert!(scene.gateway.run(&["keys", "update", &scene.key.id, "--scope", scope]).status.success());
    };
    narrow("orders:read");
    passes(&mut exchange, b"still allowed");
    narrow("products:read");
    assert_eq!(exchange.reset(), Reason::CANCEL);
    assert_eq!(scene.record_of_connect()["reason"], "insufficient_scope");
}

#[test]
fn i1_it_ends_when_nothing_was_heard_of_the_store_for_too_long() {
    let scene = scene_with(Switching::echo(), "[cache]\nmax_stale = \"4s\"");
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.tunnel(&mut client);
    let data = scene.gateway.dir.path().join("data");
    std::fs::rename(data.join("keygate.db"), data.join("away.db")).unwrap();
    assert_eq!(exchange.reset(), Reason::CANCEL);
    // The store is where the records are asked for.
    std::fs::rename(data.join("away.db"), data.join("keygate.db")).unwrap();
    assert_eq!(scene.record_of_connect()["reason"], "cut_by_staleness");
}

#[test]
fn tls_carries_it_as_it_carries_the_rest() {
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let builder = Gateway::builder().tls(&pair);
    let scene = Scene::of(Switching::echo(), builder);
    let mut client = Http2::connect_tls(scene.gateway.tls_address(), "erp.example", &TlsClient::new(&authority));
    let mut request = request("CONNECT", "https://erp.example/v1/sockets/1", &[&scene.key.bearer()]);
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let mut exchange = client.begin_with(request, false);
    assert_eq!(exchange.head().unwrap().status, 200);
    assert_eq!(value_of(&scene.upstream.only(), "x-forwarded-proto").as_deref(), Some("https"));
    passes(&mut exchange, &[b'x'; 60_000]);
    assert!(scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]).status.success());
    assert_eq!(exchange.reset(), Reason::CANCEL);
    assert_eq!(scene.record_of_connect()["reason"], "cut_by_revocation");
}
