//! WebSockets on a stream of a connection that is shared with an upstream (RFC 8441), for clients of either protocol.

use crate::harness::client::{Response, head};
use crate::harness::far::{End, Ended, Seen, pattern};
use crate::harness::http2::{Exchange, request};
use crate::harness::{Client, Far, Gateway, Http2, Key, Script, Speaks, eventually};
use h2::Reason;
use h2::ext::Protocol;
use serde_json::Value;
use std::io::ErrorKind;
use std::net::Shutdown;

const ROUTE: &str = r#"
[[routes]]
path = "/v1/sockets/**"
upstream = "erp"
read = "orders:read"
write = "orders:write"
upgrades = ["websocket"]
"#;
const HANDSHAKE: [&str; 5] = [
    "Connection: Upgrade",
    "Upgrade: WebSocket",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: chat",
];
/// What a tunnel's upstream says first.
const WELCOME: usize = 10;

struct Scene {
    far: Far,
    gateway: Gateway,
    key: Key,
}

// === impl Scene ===

impl Scene {
    /// The upstream sends back what it is sent at `/echo`, breaks off at `/break`, floods at `/flood`, refuses at `/refuse`, and
    /// answers the rest at once.
    fn new() -> Self {
        Self::before(|_| {})
    }

    fn before(prepare: impl FnOnce(&Far)) -> Self {
        let far = Far::start(Speaks::H2, None, |seen| {
            let script = |end, body| Script { end, is_early: true, is_sized: false, ..Script::ok(body) };
            match seen.target.rsplit('/').next().unwrap() {
                "echo" => script(End::Echo, WELCOME as u64),
                "break" => script(End::BreakOff, WELCOME as u64),
                "flood" => script(End::Hang, 100_000_000),
                "refuse" => Script { status: 403, is_early: true, ..Script::ok(5) },
                _ => Script::ok(5),
            }
        });
        prepare(&far);
        let url = format!("http://{}", far.address);
        let builder = Gateway::builder().workers(1).listen("protocols = [\"h1\", \"h2\"]").live_url(url);
        let gateway = builder.upstream("protocol = \"h2\"").toml(ROUTE).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { far, gateway, key }
    }

    /// The answer to a handshake over HTTP/1.1, and the connection.
    fn upgrade(&self, what: &str, lines: &[&str]) -> (Response, Client) {
        let mut client = self.gateway.client();
        let bearer = self.key.bearer();
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines.iter().copied()).collect();
        client.send(head("GET", &format!("/v1/sockets/{what}"), &lines));
        let answer = client.read_one("GET").expect("an answer");
        (answer, client)
    }

    /// The same over HTTP/2.
    fn connect(&self, client: &mut Http2, what: &str) -> Exchange {
        self.connect_by(&self.key, client, what)
    }

    fn connect_by(&self, key: &Key, client: &mut Http2, what: &str) -> Exchange {
        let lines = [&key.bearer(), "sec-websocket-version: 13", "sec-websocket-protocol: chat"];
        let mut request = request("CONNECT", &format!("http://erp.example/v1/sockets/{what}"), &lines);
        request.extensions_mut().insert(Protocol::from_static("websocket"));
        client.begin_with(request, false)
    }

    fn only(&self) -> Seen {
        let mut seen = self.far.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.remove(0)
    }

    fn end_of(&self, at: usize) -> Ended {
        eventually("the upstream knows", || self.far.seen()[at].end.clone())
    }

    fn record(&self, status: u16) -> Value {
        eventually("the tunnel's record", || {
            self.gateway.records().into_iter().find(|record| record["status"] == status)
        })
    }
}

fn field<'a>(seen: &'a Seen, name: &str) -> Option<&'a str> {
    seen.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Reads so many bytes.
fn read(exchange: &mut Exchange, length: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < length {
        read.extend_from_slice(&exchange.data().expect("more").expect("more"));
    }
    read
}

/// What an extended CONNECT must be, whoever has asked for it.
fn is_connect(seen: &Seen, scene: &Scene) {
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("CONNECT", "/v1/sockets/echo"));
    assert_eq!((seen.scheme.as_deref(), seen.authority.as_str()), (Some("http"), "erp.example"));
    assert_eq!(field(seen, ":protocol"), Some("websocket"));
    assert_eq!(field(seen, "sec-websocket-version"), Some("13"));
    assert_eq!(field(seen, "sec-websocket-protocol"), Some("chat"));
    assert_eq!(field(seen, "x-key-id"), Some(scene.key.id.as_str()));
    for name in ["sec-websocket-key", "connection", "upgrade", "authorization", "content-length", "host"] {
        assert_eq!(field(seen, name), None, "{name}");
    }
}

#[test]
fn a_client_of_http1_gets_the_proof_that_the_upstream_cannot_give() {
    let scene = Scene::new();
    let (answer, mut client) = scene.upgrade("echo", &HANDSHAKE);
    assert_eq!(answer.status, 101);
    assert_eq!(answer.header("connection"), Some("upgrade"));
    assert_eq!(answer.header("upgrade"), Some("WebSocket"));
    assert_eq!(answer.header("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!((answer.header("content-length"), answer.header("transfer-encoding")), (None, None));
    is_connect(&scene.only(), &scene);
    client.take(WELCOME);
    for size in [3, 60_000] {
        let sent = vec![b'x'; size];
        assert_eq!(client.send(&sent).take(size), sent);
    }
    client.stream().shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.end().unwrap(), b"");
    assert_eq!(scene.end_of(0), Ended::Whole);
    let record = scene.record(101);
    assert_eq!(
        (&record["reason"], &record["bytes_in"], &record["bytes_out"]),
        (&Value::Null, &60_003.into(), &60_013.into())
    );
}

#[test]
fn a_client_of_http2_gets_its_tunnel_from_a_stream_to_a_stream() {
    let scene = Scene::new();
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.connect(&mut client, "echo");
    let head = exchange.head().unwrap();
    assert_eq!(head.status, 200);
    for name in ["sec-websocket-accept", "connection", "upgrade", "content-length"] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    is_connect(&scene.only(), &scene);
    assert_eq!(read(&mut exchange, WELCOME).len(), WELCOME);
    exchange.send(&[b'x'; 60_000], false);
    assert_eq!(read(&mut exchange, 60_000), [b'x'; 60_000]);
    exchange.send(b"", true);
    assert!(exchange.data().is_none_or(|last| last.unwrap().is_empty()));
    assert_eq!(scene.end_of(0), Ended::Whole);
    let record = scene.record(200);
    assert_eq!((&record["reason"], &record["method"]), (&Value::Null, &"CONNECT".into()));
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&60_000.into(), &60_010.into()));
}

#[test]
fn a_refusal_passes_and_its_stream_ends() {
    let scene = Scene::new();
    let (answer, _) = scene.upgrade("refuse", &HANDSHAKE);
    assert_eq!((answer.status, answer.body.len()), (403, 5));
    let mut client = Http2::connect(scene.gateway.address);
    let answer = scene.connect(&mut client, "refuse").answer().unwrap();
    assert_eq!((answer.status(), answer.body.len()), (403, 5));
    assert_eq!([scene.end_of(0), scene.end_of(1)], [Ended::Whole, Ended::Whole]);
}

#[test]
fn an_upstream_that_takes_none_gets_an_ordinary_request() {
    let scene = Scene::before(Far::take_no_connect);
    let (answer, _) = scene.upgrade("1", &HANDSHAKE);
    assert_eq!((answer.status, answer.body.len()), (200, 5));
    assert_eq!(scene.only().method, "GET");
    // A client of HTTP/2 would take a good answer for the tunnel.
    let mut client = Http2::connect(scene.gateway.address);
    let answer = scene.connect(&mut client, "1").answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (502, "upstream_unreachable"));
    assert_eq!(scene.far.seen()[1].method, "GET");
}

#[test]
fn a_handshake_without_just_one_key_makes_no_tunnel() {
    let scene = Scene::new();
    let twice = [&HANDSHAKE[..], &HANDSHAKE[2..3]].concat();
    for lines in [&HANDSHAKE[..2], &twice] {
        let (answer, _) = scene.upgrade("1", lines);
        assert_eq!((answer.status, answer.body.len()), (200, 5), "{lines:?}");
    }
    assert!(scene.far.seen().iter().all(|seen| seen.method == "GET"));
}

#[test]
fn i10_a_revoked_key_resets_the_streams_and_no_other_of_the_connection() {
    let scene = Scene::new();
    let sibling = scene.gateway.key(&["orders:read", "orders:write"]);
    let (answer, mut cut) = scene.upgrade("echo", &HANDSHAKE);
    assert_eq!(answer.status, 101);
    cut.take(WELCOME);
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.connect(&mut client, "echo");
    assert_eq!(exchange.head().unwrap().status, 200);
    read(&mut exchange, WELCOME);
    let mut kept = scene.connect_by(&sibling, &mut client, "echo");
    assert_eq!(kept.head().unwrap().status, 200);
    read(&mut kept, WELCOME);
    assert_eq!(scene.far.connections(), 1);
    assert!(scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]).status.success());
    assert_eq!(cut.end().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(exchange.reset(), Reason::CANCEL);
    assert_eq!([scene.end_of(0), scene.end_of(1)], [const { Ended::BrokenOff(Some(Reason::CANCEL)) }; 2]);
    kept.send(b"goes on", false);
    assert_eq!(read(&mut kept, 7), b"goes on");
    eventually("both records", || {
        let records = scene.gateway.records();
        let cut = records.iter().filter(|record| record["reason"] == "cut_by_revocation");
        (cut.filter(|record| record["key_id"] == scene.key.id.as_str()).count() == 2).then_some(())
    });
}

#[test]
fn what_the_upstream_breaks_off_is_broken_off_for_the_client() {
    let scene = Scene::new();
    let (answer, mut client) = scene.upgrade("break", &HANDSHAKE);
    assert_eq!(answer.status, 101);
    assert_eq!(client.end().unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(scene.record(101)["reason"], "upstream_aborted");
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = scene.connect(&mut client, "break");
    assert_eq!(exchange.head().unwrap().status, 200);
    assert_eq!(exchange.reset(), Reason::CANCEL);
}

#[test]
fn what_a_client_does_not_read_stays_with_the_upstream_and_holds_up_nobody() {
    let scene = Scene::new();
    let (answer, mut client) = scene.upgrade("flood", &HANDSHAKE);
    assert_eq!(answer.status, 101);
    let mut before = u64::MAX;
    eventually("nothing more is taken", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let sent = scene.far.sent();
        (std::mem::replace(&mut before, sent) == sent).then_some(())
    });
    // The sockets' own buffers, and a window.
    assert!(before < 16 << 20, "{before} bytes were taken");
    let (answer, mut other) = scene.upgrade("echo", &HANDSHAKE);
    assert_eq!((answer.status, scene.far.connections()), (101, 1));
    other.take(WELCOME);
    assert!(client.take(32 << 20) == pattern(0, 32 << 20), "not what was sent");
}
