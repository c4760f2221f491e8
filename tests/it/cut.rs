//! What is in flight with a key ends when the key does (contract, section 5; protocols I8 to I10).

use crate::harness::client::head;
use crate::harness::upstream::EVENT;
use crate::harness::{Client, Gateway, Key, Reply, Upstream, eventually};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// An upstream that answers `/orders` never, `/products` with a stream that does not end, and the rest at once.
fn slow() -> Upstream {
    Upstream::start(|received| match received.target().rsplit('/').next() {
        Some("orders") => Reply::Custom(Box::new(wait_for_the_end)),
        Some("products") => Reply::events_without_end(),
        _ => Reply::ok("good"),
    })
}

fn wait_for_the_end(stream: &mut TcpStream) {
    _ = stream.read(&mut [0; 64]);
}

struct Scene {
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        let upstream = slow();
        let gateway = Gateway::before(&upstream);
        let key = gateway.key(&["orders:read", "orders:write", "products:read", "accounts:read"]);
        Self { upstream, gateway, key }
    }

    /// Sends a request, and waits until it has reached the upstream.
    fn begin(&self, method: &str, rest: &str, lines: &[&str], body: &str) -> Client {
        let reached = self.upstream.received().len();
        let mut client = self.gateway.client();
        let bearer = self.key.bearer();
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines.iter().copied()).collect();
        client.send(head(method, &self.gateway.path(rest), &lines) + body);
        if !lines.iter().any(|line| line.starts_with("Content-Length")) {
            eventually("the request is at the upstream", || (self.upstream.received().len() > reached).then_some(()));
        }
        client
    }

    fn run(&self, args: &[&str]) {
        let output = self.gateway.run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn revoke(&self) {
        self.run(&["keys", "revoke", &self.key.id, "--yes"]);
    }

    /// The only record with this reason.
    fn record(&self, reason: &str) -> serde_json::Value {
        eventually("the cut is recorded", || {
            let found: Vec<_> = self.gateway.records().into_iter().filter(|one| one["reason"] == reason).collect();
            assert!(found.len() <= 1, "{found:#?}");
            found.into_iter().next()
        })
    }
}

#[test]
fn i10_a_request_that_waits_for_the_upstream_is_refused() {
    let scene = Scene::new();
    let mut client = scene.begin("GET", "orders", &[], "");
    scene.revoke();
    let answer = client.read("GET");
    assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_api_key"));
    let record = scene.record("cut_by_revocation");
    assert_eq!(
        (&record["status"], &record["decision"], &record["key_id"]),
        (&401.into(), &"allow".into(), &scene.key.id.as_str().into())
    );
    assert_eq!(record["request_id"], answer.header("x-request-id").unwrap());
}

#[test]
fn i10_a_stream_is_cut_short_and_never_looks_whole() {
    let scene = Scene::new();
    for version in ["HTTP/1.1", "HTTP/1.0"] {
        let key = scene.gateway.key(&["products:read"]);
        let mut client = scene.gateway.client();
        let text = head("GET", &scene.gateway.path("products"), &[&key.bearer()]);
        client.send(text.replace("HTTP/1.1", version));
        let mut buf = [0; 4096];
        eventually("the stream has begun", || {
            let read = client.stream().read(&mut buf).unwrap();
            buf[..read].windows(EVENT.len()).any(|part| part == EVENT).then_some(())
        });
        scene.run(&["keys", "revoke", &key.id, "--yes"]);
        let ended = loop {
            match client.stream().read(&mut buf) {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error.kind()),
            }
        };
        assert_eq!(ended, Err(std::io::ErrorKind::ConnectionReset), "{version}");
    }
    eventually("both cuts are recorded", || {
        let records = scene.gateway.records();
        let cut = records.iter().filter(|one| one["reason"] == "cut_by_revocation" && one["status"] == 200);
        (cut.filter(|one| one["bytes_out"].as_u64() > Some(0)).count() == 2).then_some(())
    });
}

#[test]
fn i10_a_client_that_does_not_read_is_cut_off_all_the_same() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        }))
    });
    let gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    let mut client = gateway.client();
    client.send(head("GET", &gateway.path("orders"), &[&key.bearer()]));
    eventually("the upstream is held back", || (upstream.received().len() == 1).then_some(()));
    std::thread::sleep(Duration::from_millis(200));
    assert!(gateway.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    eventually("the cut is recorded", || {
        gateway.records().iter().any(|one| one["reason"] == "cut_by_revocation").then_some(())
    });
}

#[test]
fn i10_an_upload_with_half_its_body_sent_is_ended() {
    let scene = Scene::new();
    let mut client = scene.begin("POST", "orders", &["Content-Length: 10"], "abc");
    eventually("the upload has begun", || (scene.upstream.connections() == 1).then_some(()));
    scene.revoke();
    let answer = client.read("POST");
    assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_api_key"));
    assert!(client.is_closed(), "the rest of the body must not become a request");
    assert_eq!(scene.record("cut_by_revocation")["bytes_in"], 3);
}

#[test]
fn i10_other_keys_and_what_is_still_allowed_go_on() {
    let scene = Scene::new();
    let stream = scene.begin("GET", "products", &[], "");
    let mut waiting = scene.begin("GET", "orders", &[], "");
    let other = scene.gateway.key(&["products:read"]);
    scene.run(&["keys", "revoke", &other.id, "--yes"]);
    // Without orders:read, with products:read still.
    scene.run(&["keys", "update", &scene.key.id, "--scope", "products:read"]);
    let answer = waiting.read("GET");
    assert_eq!((answer.status, answer.code().as_str()), (403, "insufficient_scope"));
    let mut seen = 0;
    eventually("the stream goes on", || {
        seen += stream.stream().read(&mut [0; 4096]).unwrap();
        (seen > 20 * EVENT.len()).then_some(())
    });
    scene.revoke();
    assert_eq!(scene.record("cut_by_revocation")["status"], 200);
}

#[test]
fn i10_a_rotation_without_overlap_cuts_and_one_with_overlap_does_not() {
    let scene = Scene::new();
    let mut waiting = scene.begin("GET", "orders", &[], "");
    let successor = scene.gateway.json(&["keys", "rotate", &scene.key.id, "--overlap", "1h", "--output", "json"]);
    let stream = scene.begin("GET", "products", &[], "");
    assert_eq!(scene.gateway.records().iter().filter(|one| one["reason"] == "cut_by_revocation").count(), 0);
    drop(stream);
    scene.revoke();
    assert_eq!(waiting.read("GET").status, 401);

    let key = Key { id: successor["id"].as_str().unwrap().into(), text: successor["key"].as_str().unwrap().into() };
    let mut client = scene.gateway.client();
    let reached = scene.upstream.received().len();
    client.send(head("GET", &scene.gateway.path("orders"), &[&key.bearer()]));
    eventually("the request is at the upstream", || (scene.upstream.received().len() > reached).then_some(()));
    scene.run(&["keys", "rotate", &key.id, "--overlap", "0"]);
    assert_eq!(client.read("GET").status, 401);
}

#[test]
fn i10_a_key_on_a_public_route_is_cut_too() {
    const OPEN: &str = "[[routes]]\npath = \"/open/orders\"\nupstream = \"erp\"\npublic = true";
    let upstream = slow();
    let gateway = Gateway::builder().live(&upstream).toml(OPEN).start();
    let key = gateway.key(&["orders:read"]);
    let (mut with_key, mut without) = (gateway.client(), gateway.client());
    with_key.send(head("GET", "/open/orders", &[&key.bearer()]));
    without.send(head("GET", "/open/orders", &[]));
    eventually("both are at the upstream", || (upstream.received().len() == 2).then_some(()));
    assert!(gateway.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    assert_eq!(with_key.read("GET").status, 401);
    without.stream().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(without.stream().read(&mut [0]).is_err(), "who has no key was cut");
}

#[test]
fn i10_deleting_an_entity_cuts_what_its_keys_have_in_flight() {
    let scene = Scene::new();
    let mut client = scene.begin("GET", "orders", &[], "");
    scene.run(&["entities", "delete", "acme", "--yes"]);
    assert_eq!(client.read("GET").status, 401);
    scene.record("cut_by_revocation");
}

#[test]
fn i1_what_is_in_flight_ends_when_nothing_was_heard_of_the_store_for_too_long() {
    let upstream = slow();
    let gateway = Gateway::builder().live(&upstream).toml("[cache]\nmax_stale = \"4s\"").start();
    let key = gateway.key(&["orders:read"]);
    let mut client = gateway.client();
    client.send(head("GET", &gateway.path("orders"), &[&key.bearer()]));
    eventually("the request is at the upstream", || (upstream.received().len() == 1).then_some(()));
    std::fs::rename(gateway.dir.path().join("data/keygate.db"), gateway.dir.path().join("data/away.db")).unwrap();
    let answer = client.read("GET");
    assert_eq!((answer.status, answer.code().as_str()), (503, "key_store_unavailable"));
    let record = gateway.record_of(answer.header("x-request-id").unwrap());
    assert_eq!(record["reason"], "cut_by_staleness");
}
