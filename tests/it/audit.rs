//! One record for every request, and in it what the request was (contract, section 6).

use crate::harness::canary::files_below;
use crate::harness::client::head;
use crate::harness::gateway::ENTITY;
use crate::harness::upstream::EVENT;
use crate::harness::{Client, Gateway, Key, Reply, Response, Upstream, eventually};
use serde_json::{Value, json};
use std::io::Read;

const ORDERS: &str = "/v1/entities/{entity_id}/orders/**";

/// An upstream whose answer the last segment of the path names.
fn erp() -> Upstream {
    Upstream::start(|received| match received.target().rsplit('/').next() {
        Some("empty") => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        Some("long") => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        Some("chunked") => {
            Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        }
        Some("short") => Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".to_vec()),
        Some("mute") => Reply::Close,
        Some("endless") => Reply::events_without_end(),
        Some("silent") => Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))),
        _ => Reply::ok("good"),
    })
}

/// A gateway with one worker: its records stand in the order in which they were made.
struct Scene {
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        Self::with("")
    }

    fn with(toml: &str) -> Self {
        let upstream = erp();
        let gateway = Gateway::builder().live(&upstream).workers(1).toml(toml).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { upstream, gateway, key }
    }

    /// A request's head with the key.
    fn head(&self, method: &str, rest: &str, lines: &[&str]) -> String {
        let bearer = self.key.bearer();
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines.iter().copied()).collect();
        head(method, &self.gateway.path(rest), &lines)
    }

    fn ask(&self, method: &str, rest: &str) -> Response {
        self.gateway.client().send(self.head(method, rest, &[])).read(method)
    }

    /// All records of this path, once `count` are there and one of a later request: by then a surplus one would be there.
    fn records(&self, path: &str, count: usize) -> Vec<Value> {
        let of_path =
            || -> Vec<Value> { self.gateway.records().into_iter().filter(|record| record["path"] == path).collect() };
        eventually("the records", || (of_path().len() >= count).then_some(()));
        let later = self.gateway.client().request("GET", "/v1/status", &[]);
        self.gateway.record_of(later.header("x-request-id").unwrap());
        let records = of_path();
        assert_eq!(records.len(), count, "{records:#?}");
        records
    }

    /// The only record of this path below the entity.
    fn only(&self, rest: &str) -> Value {
        self.records(&self.gateway.path(rest), 1).remove(0)
    }
}

fn id(answer: &Response) -> &str {
    answer.header("x-request-id").unwrap()
}

/// Whether a record has these members, with these values.
#[track_caller]
fn assert_has(record: &Value, members: Value) {
    for (name, wanted) in members.as_object().unwrap() {
        assert_eq!(record.get(name), Some(wanted), "{name} of {record:#}");
    }
}

#[test]
fn an_allowed_request_leaves_one_record_with_everything_in_it() {
    let scene = Scene::new();
    let lines = ["Content-Length: 5", "User-Agent: shop/1.2"];
    let answer = scene.gateway.client().send(scene.head("POST", "orders/7?x=1", &lines) + "hello").read("POST");
    let record = scene.only("orders/7");
    assert_has(
        &record,
        json!({
            "schema": 1, "kind": "request", "journal": "edge-1/0", "gateway": "edge-1",
            "request_id": id(&answer), "decision": "allow", "reason": null, "status": 200,
            "key_id": scene.key.id, "key_name": "test key", "entity_id": ENTITY, "mode": "live",
            "client_ip": "127.0.0.1", "peer_ip": "127.0.0.1",
            "method": "POST", "host": "erp.example", "path": scene.gateway.path("orders/7"), "route": ORDERS,
            "protocol": "HTTP/1.1", "user_agent": "shop/1.2", "client_identity": null,
            "bytes_in": 5, "bytes_out": 4, "upstream": "erp",
        }),
    );
    let received = scene.upstream.received().remove(0);
    assert_eq!(received.header("x-request-id").as_deref(), record["request_id"].as_str());
    let trace = received.header("traceparent").unwrap();
    assert_eq!(trace.split('-').nth(1), record["trace_id"].as_str());
    assert!(record["upstream_us"].as_u64().unwrap() <= record["duration_us"].as_u64().unwrap());
}

#[test]
fn a_request_without_a_key_leaves_one_record_that_names_nobody() {
    let scene = Scene::new();
    let path = scene.gateway.path("orders/nobody");
    let answer = scene.gateway.client().request("GET", &path, &[]);
    assert_eq!(answer.status, 401);
    assert_has(
        &scene.only("orders/nobody"),
        json!({
            "request_id": id(&answer), "decision": "deny", "reason": "missing_api_key", "status": 401,
            "key_id": null, "key_name": null, "entity_id": null, "mode": null, "client_ip": "127.0.0.1",
            "method": "GET", "path": path, "route": null, "bytes_in": 0, "bytes_out": answer.body.len(),
            "upstream": null, "upstream_us": null,
        }),
    );
    assert!(scene.upstream.received().iter().all(|received| received.target() == "/v1/status"));
}

#[test]
fn a_refused_key_leaves_one_record_that_names_it() {
    let scene = Scene::new();
    let answer = scene.ask("GET", "products/9");
    assert_eq!((answer.status, answer.code().as_str()), (403, "insufficient_scope"));
    assert_has(
        &scene.only("products/9"),
        json!({
            "request_id": id(&answer), "decision": "deny", "reason": "insufficient_scope", "status": 403,
            "key_id": scene.key.id, "entity_id": ENTITY, "mode": "live",
            "route": "/v1/entities/{entity_id}/products/**", "bytes_out": answer.body.len(), "upstream": null,
        }),
    );
}

#[test]
fn a_revoked_key_is_told_from_an_unknown_one_in_the_record_alone() {
    let scene = Scene::new();
    scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    let answer = scene.ask("GET", "orders/1");
    assert_eq!((answer.status, answer.code().as_str()), (401, "invalid_api_key"));
    let revoked = scene.only("orders/1");
    assert_has(&revoked, json!({"request_id": id(&answer), "decision": "deny", "reason": "key_revoked"}));
    let line = "Authorization: Bearer of-no-form";
    scene.gateway.client().request("GET", &scene.gateway.path("orders/2"), &[line]);
    let malformed = scene.only("orders/2");
    assert_has(&malformed, json!({"decision": "deny", "reason": "key_malformed", "key_id": null, "status": 401}));
}

#[test]
fn j5_head_and_an_empty_answer_are_recorded_without_bytes() {
    let scene = Scene::new();
    for (method, rest, status) in [("HEAD", "orders/long", 200), ("DELETE", "orders/empty", 204)] {
        let answer = scene.ask(method, rest);
        assert_has(
            &scene.only(rest),
            json!({
                "request_id": id(&answer), "decision": "allow", "reason": null, "status": status,
                "method": method, "bytes_in": 0, "bytes_out": 0, "upstream": "erp",
            }),
        );
    }
}

#[test]
fn a_chunked_answer_is_recorded_by_the_bytes_of_its_body() {
    let scene = Scene::new();
    let upload = scene.head("POST", "orders/chunked", &["Transfer-Encoding: chunked"]);
    let answer = scene.gateway.client().send(upload + "2\r\nab\r\n0\r\n\r\n").read("POST");
    assert!(answer.complete);
    let expected = json!({"request_id": id(&answer), "reason": null, "status": 200, "bytes_in": 2, "bytes_out": 7});
    assert_has(&scene.only("orders/chunked"), expected);
}

#[test]
fn j5_a_client_that_leaves_a_stream_is_recorded_with_what_it_got() {
    let scene = Scene::new();
    let mut client = scene.gateway.client();
    client.send(scene.head("GET", "orders/endless", &[]));
    wait_for_piece(&client);
    drop(client);
    let record = scene.only("orders/endless");
    assert_has(
        &record,
        json!({"decision": "allow", "reason": "client_aborted", "status": 200, "key_id": scene.key.id}),
    );
    assert!(record["bytes_out"].as_u64().unwrap() >= EVENT.len() as u64, "{record:#}");
    let told = scene.upstream.received()[0].header("x-request-id");
    assert_eq!(told.as_deref(), record["request_id"].as_str());
}

fn wait_for_piece(client: &Client) {
    let mut seen = Vec::new();
    eventually("a piece of the stream", || {
        let mut buf = [0; 4096];
        let read = client.stream().read(&mut buf).unwrap();
        seen.extend_from_slice(&buf[..read]);
        seen.windows(EVENT.len()).any(|part| part == EVENT).then_some(())
    });
}

#[test]
fn j5_a_client_that_leaves_before_the_answer_is_recorded_without_a_status() {
    let scene = Scene::new();
    let mut client = scene.gateway.client();
    client.send(scene.head("GET", "orders/silent", &[]));
    eventually("the request is at the upstream", || (scene.upstream.received().len() == 1).then_some(()));
    drop(client);
    let expected = json!({
        "decision": "allow", "reason": "client_aborted", "status": null, "bytes_out": 0, "upstream": "erp",
        "upstream_us": null,
    });
    assert_has(&scene.only("orders/silent"), expected);
}

#[test]
fn j5_an_upstream_that_dies_in_its_answer_is_recorded_with_what_came() {
    let scene = Scene::new();
    let answer = scene.ask("GET", "orders/short");
    assert!(!answer.complete);
    let expected = json!({
        "request_id": id(&answer), "decision": "allow", "reason": "upstream_aborted", "status": 200, "bytes_out": 3,
    });
    assert_has(&scene.only("orders/short"), expected);
}

#[test]
fn an_upstream_that_does_not_answer_is_recorded_as_the_refusal_it_was() {
    let scene = Scene::new();
    let answer = scene.ask("GET", "orders/mute");
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"));
    let expected = json!({
        "request_id": id(&answer), "decision": "allow", "reason": "upstream_unreachable", "status": 502,
        "bytes_out": answer.body.len(), "upstream": "erp", "upstream_us": null,
    });
    assert_has(&scene.only("orders/mute"), expected);
}

#[test]
fn pipelined_requests_leave_one_record_each() {
    let scene = Scene::new();
    let mut client = scene.gateway.client();
    client.send(scene.head("GET", "orders/a", &[]) + &scene.head("GET", "orders/b", &[]));
    for rest in ["orders/a", "orders/b"] {
        let answer = client.read("GET");
        assert_has(&scene.only(rest), json!({"request_id": id(&answer), "status": 200, "decision": "allow"}));
    }
}

#[test]
fn a_public_route_records_nobody_or_the_key_that_was_shown() {
    let scene = Scene::new();
    let nobody = scene.gateway.client().request("GET", "/v1/status", &[]);
    let expected = json!({
        "decision": "allow", "reason": null, "status": 200, "key_id": null, "entity_id": null, "mode": null,
        "route": "/v1/status", "path": "/v1/status", "upstream": "erp",
    });
    assert_has(&scene.gateway.record_of(id(&nobody)), expected);
    let known = scene.gateway.client().request("GET", "/v1/status", &[&scene.key.bearer()]);
    let expected = json!({"decision": "allow", "key_id": scene.key.id, "entity_id": ENTITY, "mode": "live"});
    assert_has(&scene.gateway.record_of(id(&known)), expected);
    // Two, and the later request that `records` makes.
    assert_eq!(scene.gateway.records().iter().filter(|record| record["path"] == "/v1/status").count(), 2);
}

#[test]
fn behind_a_trusted_proxy_the_client_is_told_from_the_peer_and_its_request_id_kept() {
    let scene = Scene::with("[client_ip]\ntrusted_proxies = [\"127.0.0.0/8\"]");
    let lines = ["X-Forwarded-For: 203.0.113.9", "X-Request-Id: from-the-edge"];
    let answer = scene.gateway.client().send(scene.head("GET", "orders/5", &lines)).read("GET");
    assert_eq!(id(&answer), "from-the-edge");
    let expected = json!({"request_id": "from-the-edge", "client_ip": "203.0.113.9", "peer_ip": "127.0.0.1"});
    assert_has(&scene.only("orders/5"), expected);
}

#[test]
fn what_a_request_carries_is_never_written_down() {
    const MARKERS: [&str; 3] = ["query-marker-71", "header-marker-72", "body-marker-73"];
    let mut scene = Scene::new();
    let lines = ["X-Note: header-marker-72", "Cookie: a=header-marker-72", "Content-Length: 14"];
    let nobody = [&lines[..], &["Authorization: Basic header-marker-72"]].concat();
    for rest in ["orders/7", "products/7", "orders/short", "nowhere"] {
        let rest = format!("{rest}?q=query-marker-71");
        scene.gateway.client().send(scene.head("POST", &rest, &lines) + MARKERS[2]).read("POST");
        scene.gateway.client().send(head("POST", &scene.gateway.path(&rest), &nobody) + MARKERS[2]).read("POST");
    }
    scene.gateway.client().send(head("GET", "/v1/status?q=query-marker-71", &lines[..2])).read("GET");
    assert!(scene.upstream.heads().contains(MARKERS[0]) && scene.upstream.heads().contains(MARKERS[1]));
    scene.records(&scene.gateway.path("orders/7"), 2);
    scene.gateway.signal("TERM");
    assert_eq!(scene.gateway.wait(), Some(0));

    let mut texts: Vec<Vec<u8>> = ["table", "json", "ndjson"]
        .map(|output| scene.gateway.run(&["logs", "--kind", "all", "--output", output]).stdout)
        .into();
    let files = files_below(&scene.gateway.dir.path().join("data/audit"));
    texts.extend(files.iter().map(|file| std::fs::read(file).unwrap()));
    let texts: Vec<_> = texts.iter().map(|text| String::from_utf8_lossy(text)).collect();
    assert!(texts.iter().filter(|text| text.contains("orders/7")).count() >= 4, "the search finds what is there");
    for marker in MARKERS {
        assert!(texts.iter().all(|text| !text.contains(marker)), "{marker} in {texts:?}");
    }
}

#[test]
fn j9_a_revocation_on_the_command_line_leaves_one_change_record() {
    let scene = Scene::new();
    scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    let changes = || -> Vec<Value> {
        let of_key = |record: &Value| record["kind"] == "change" && record["after"]["id"] == scene.key.id.as_str();
        scene.gateway.records().into_iter().filter(of_key).collect()
    };
    eventually("the change is recorded", || (changes().len() == 2).then_some(()));
    let later = scene.gateway.client().request("GET", "/v1/status", &[]);
    scene.gateway.record_of(id(&later));
    let [created, revoked] = <[Value; 2]>::try_from(changes()).unwrap();
    assert_has(&created, json!({"action": "key.created", "actor": "cli:tester", "before": null}));
    assert_has(&revoked, json!({"action": "key.revoked", "actor": "cli:tester", "before": created["after"]}));
    assert_eq!(revoked["change_seq"].as_u64(), created["change_seq"].as_u64().map(|seq| seq + 1));
    assert_eq!(created["after"]["revoked_at"], Value::Null);
    assert!(revoked["after"]["revoked_at"].is_string(), "{revoked:#}");
    assert!(!revoked.to_string().contains(&scene.key.text), "the digest, never the key");
}
