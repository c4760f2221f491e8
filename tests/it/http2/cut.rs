//! What a stream has in flight ends when its key does, and what the others have does not (protocols I8 to I10).

use super::{BOTH, record_for};
use crate::harness::http2::{self, Wire, kind};
use crate::harness::{Gateway, Http2, Key, Reply, Upstream, eventually};
use h2::Reason;
use std::io::{Read, Write};

/// One connection with a request of each of two keys.
struct Scene {
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
    other: Key,
}

// === impl Scene ===

impl Scene {
    /// The upstream answers `/orders` never, `/products` with a stream that does not end, and the rest at once.
    fn new() -> Self {
        let upstream = Upstream::start(|received| match received.target().rsplit('/').next() {
            Some("orders") => Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))),
            Some("products") => Reply::events_without_end(),
            _ => Reply::ok("good"),
        });
        let gateway = Gateway::builder().live(&upstream).listen(BOTH).start();
        let scopes = ["orders:read", "orders:write", "products:read"];
        let (key, other) = (gateway.key(&scopes), gateway.key(&scopes));
        Self { upstream, gateway, key, other }
    }

    fn revoke(&self) {
        let output = self.gateway.run(&["keys", "revoke", &self.key.id, "--yes"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn begin(&self, client: &mut Http2, key: &Key, rest: &str) -> http2::Exchange {
        let reached = self.upstream.received().len();
        let exchange = client.begin("GET", &self.gateway.path(rest), &[&key.bearer()], true);
        eventually("the request is at the upstream", || (self.upstream.received().len() > reached).then_some(()));
        exchange
    }

    fn sibling_goes_on(&self, client: &mut Http2, sibling: &mut http2::Exchange) {
        for _ in 0..20 {
            assert!(sibling.data().unwrap().is_ok(), "the sibling's stream goes on");
        }
        let answer = client.request("GET", &self.gateway.path("orders/1"), &[&self.other.bearer()], b"");
        assert_eq!((answer.status(), answer.text().as_str()), (200, "good"));
    }
}

#[test]
fn i10_one_that_waits_is_refused() {
    let scene = Scene::new();
    let mut client = Http2::connect(scene.gateway.address);
    let mut sibling = scene.begin(&mut client, &scene.other, "products");
    sibling.head().unwrap();
    let mut waiting = scene.begin(&mut client, &scene.key, "orders");
    scene.revoke();
    let answer = waiting.answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (401, "invalid_api_key"));
    let record = record_for(&scene.gateway, "cut_by_revocation");
    assert_eq!(record["request_id"], answer.header("x-request-id").unwrap());
    assert_eq!((&record["status"], &record["key_id"]), (&401.into(), &scene.key.id.as_str().into()));
    scene.sibling_goes_on(&mut client, &mut sibling);
}

#[test]
fn i10_a_download_is_reset_and_never_looks_whole() {
    let scene = Scene::new();
    let mut client = Http2::connect(scene.gateway.address);
    let mut sibling = scene.begin(&mut client, &scene.other, "products");
    sibling.head().unwrap();
    let mut stream = scene.begin(&mut client, &scene.key, "products");
    stream.head().unwrap();
    assert!(stream.data().unwrap().is_ok());
    scene.revoke();
    let error = loop {
        match stream.data().expect("no end") {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    assert_eq!(record_for(&scene.gateway, "cut_by_revocation")["status"], 200);
    scene.sibling_goes_on(&mut client, &mut sibling);
}

#[test]
fn i10_an_upload_is_refused_and_its_rest_is_not_wanted() {
    let scene = Scene::new();
    let mut client = Http2::connect(scene.gateway.address);
    let mut sibling = scene.begin(&mut client, &scene.other, "products");
    sibling.head().unwrap();
    let connections = scene.upstream.connections();
    let mut upload = client.begin("POST", &scene.gateway.path("orders"), &[&scene.key.bearer()], false);
    upload.send(b"abc", false);
    eventually("the upload has begun", || (scene.upstream.connections() > connections).then_some(()));
    scene.revoke();
    let answer = upload.answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (401, "invalid_api_key"));
    assert_eq!(upload.reset(), Reason::NO_ERROR);
    assert_eq!(record_for(&scene.gateway, "cut_by_revocation")["bytes_in"], 3);
    scene.sibling_goes_on(&mut client, &mut sibling);
}

/// With the window shut, a long response has an upstream that is held back, and a short one has none any more.
#[test]
fn i10_a_client_that_takes_nothing_is_reset_all_the_same() {
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("orders") {
            return Reply::ok("short");
        }
        Reply::Custom(Box::new(|stream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        }))
    });
    let gateway = Gateway::builder().live(&upstream).listen(BOTH).start();
    let key = gateway.key(&["orders:read", "products:read"]);
    let bearer = format!("Bearer {}", key.text);
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut wire = Wire::connect(gateway.address, &[(4, 0)]);
    wire.send(&http2::get(1, &gateway.path("products"), &[("authorization", &bearer)]));
    wire.send(&http2::get(3, &gateway.path("orders"), &[("authorization", &bearer)]));
    for _ in 0..2 {
        wire.wait_for(kind::HEADERS).unwrap();
    }
    assert!(gateway.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    let mut reset: Vec<_> = (0..2).map(|_| wire.wait_for(kind::RST_STREAM).unwrap().stream).collect();
    reset.sort_unstable();
    assert_eq!(reset, [1, 3]);
    // Too late: nothing comes through a window that opens now.
    for stream in [0, 1, 3] {
        wire.send(&http2::frame(kind::WINDOW_UPDATE, 0, stream, &[0, 1, 0, 0]));
    }
    wire.send(&http2::frame(kind::PING, 0, 0, &[7; 8]));
    let frames: Vec<_> = std::iter::from_fn(|| wire.next()).take_while(|frame| frame.kind != kind::PING).collect();
    assert!(frames.iter().all(|frame| frame.kind != kind::DATA), "{frames:?}");
    assert_eq!(record_for(&gateway, "cut_by_revocation")["status"], 200);
}

#[test]
fn i1_what_is_in_flight_ends_when_nothing_was_heard_of_the_store_for_too_long() {
    let upstream = Upstream::start(|received| {
        let begins = received.target().ends_with("products");
        Reply::Custom(Box::new(move |stream| {
            if begins {
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
            }
            _ = stream.read(&mut [0; 64]);
        }))
    });
    let gateway = Gateway::builder().live(&upstream).listen(BOTH).toml("[cache]\nmax_stale = \"4s\"").start();
    let key = gateway.key(&["orders:read", "products:read"]);
    let mut client = Http2::connect(gateway.address);
    let mut waiting = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    let mut stream = client.begin("GET", &gateway.path("products"), &[&key.bearer()], true);
    stream.head().unwrap();
    eventually("both are at the upstream", || (upstream.received().len() == 2).then_some(()));
    std::fs::rename(gateway.dir.path().join("data/keygate.db"), gateway.dir.path().join("data/away.db")).unwrap();
    let answer = waiting.answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (503, "key_store_unavailable"));
    let error = std::iter::from_fn(|| stream.data()).find_map(Result::err).expect("it is reset");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    eventually("both are recorded", || {
        let records = gateway.records();
        let cut = records.iter().filter(|one| one["reason"] == "cut_by_staleness").count();
        (cut == 2).then_some(())
    });
}
