//! Requests that share a connection: how many, what each may hold, and how one ends without the others.

use crate::harness::far::{End, Ended, body_of};
use crate::harness::http2::Exchange;
use crate::harness::{Far, Gateway, Http2, Key, Script, Speaks, client, eventually};
use h2::Reason;
use std::io::{Read, Write};
use std::time::Duration;

const BOTH: &str = "protocols = [\"h1\", \"h2\"]";

struct Scene {
    far: Far,
    gateway: Gateway,
    key: Key,
    other: Key,
}

// === impl Scene ===

impl Scene {
    /// The upstream answers `/hang` with a body that does not end, `/silence` never, `/deaf` without reading, `/flood` with a
    /// large body, and the rest at once.
    fn new(sections: &str) -> Self {
        let far = Far::start(Speaks::H2, None, |seen| {
            let script = |end, body| Script { end, is_sized: false, ..Script::ok(body) };
            match seen.target.rsplit('/').next().unwrap() {
                "hang" => script(End::Hang, 100),
                "silence" => script(End::Silence, 0),
                "deaf" => Script { is_early: true, ..script(End::Silence, 0) },
                "flood" => Script::ok(100_000_000),
                _ => Script::ok(10),
            }
        });
        let url = format!("http://{}", far.address);
        let builder = Gateway::builder().workers(1).listen(BOTH).live_url(url).upstream("protocol = \"h2\"");
        let gateway = builder.toml(sections).start();
        let scopes = ["orders:read", "orders:write"];
        let (key, other) = (gateway.key(&scopes), gateway.key(&scopes));
        Self { far, gateway, key, other }
    }

    /// Begins a request, and waits until it is at the upstream.
    fn begin(&self, client: &mut Http2, key: &Key, what: &str, is_end: bool) -> Exchange {
        let reached = self.far.seen().len();
        let method = if is_end { "GET" } else { "POST" };
        let path = self.gateway.path(&format!("orders/{what}"));
        let exchange = client.begin(method, &path, &[&key.bearer()], is_end);
        eventually("the request is at the upstream", || (self.far.seen().len() > reached).then_some(()));
        exchange
    }

    fn answers(&self, key: &Key) {
        let answer = self.gateway.client().request("GET", &self.gateway.path("orders/1"), &[&key.bearer()]);
        assert_eq!((answer.status, answer.body.len()), (200, 10));
    }

    /// How the request at this place has ended for the upstream.
    fn end_of(&self, at: usize) -> Ended {
        eventually("the upstream knows", || self.far.seen()[at].end.clone())
    }
}

#[test]
fn many_requests_share_a_connection_and_no_more_than_the_upstream_takes() {
    let scene = Scene::new("[limits]\nupstream_idle = \"1s\"");
    let mut client = Http2::connect(scene.gateway.address);
    let first: Vec<_> = (0..20).map(|_| scene.begin(&mut client, &scene.key, "hang", true)).collect();
    assert_eq!(scene.far.connections(), 1);
    drop(first);
    drop(client);
    eventually("it closes when nobody uses it", || (scene.far.open() == 0).then_some(()));

    scene.far.take_at_once(3);
    scene.far.forget();
    let before = scene.far.connections();
    let mut client = Http2::connect(scene.gateway.address);
    let _all: Vec<_> = (0..10).map(|_| scene.begin(&mut client, &scene.key, "hang", true)).collect();
    assert_eq!(scene.far.connections() - before, 4, "three at a time");
    let mut by_connection = std::collections::HashMap::<_, usize>::new();
    scene.far.seen().iter().for_each(|seen| *by_connection.entry(seen.connection).or_default() += 1);
    assert!(by_connection.values().all(|count| *count <= 3), "{by_connection:?}");
}

#[test]
fn requests_that_come_at_once_do_not_each_open_a_connection() {
    let scene = Scene::new("");
    let mut clients: Vec<_> = (0..50).map(|_| scene.gateway.client()).collect();
    let head = client::head("GET", &scene.gateway.path("orders/1"), &[&scene.key.bearer()]);
    clients.iter_mut().for_each(|client| _ = client.send(&head));
    assert!(clients.iter_mut().all(|client| client.read("GET").status == 200));
    assert_eq!(scene.far.connections(), 1);
}

#[test]
fn more_than_the_first_connection_takes_find_others() {
    let scene = Scene::new("");
    scene.far.take_at_once(1);
    let mut clients: Vec<_> = (0..20).map(|_| scene.gateway.client()).collect();
    let head = client::head("GET", &scene.gateway.path("orders/1"), &[&scene.key.bearer()]);
    clients.iter_mut().for_each(|client| _ = client.send(&head));
    assert!(clients.iter_mut().all(|client| client.read("GET").status == 200));
    assert!((1..=20).contains(&scene.far.connections()), "{} connections", scene.far.connections());
}

#[test]
fn i10_a_revoked_key_ends_its_streams_and_no_other() {
    let scene = Scene::new("");
    let mut client = Http2::connect(scene.gateway.address);
    let mut sibling = scene.begin(&mut client, &scene.other, "hang", true);
    sibling.head().unwrap();
    let mut stream = scene.begin(&mut client, &scene.key, "hang", true);
    stream.head().unwrap();
    let mut waiting = scene.begin(&mut client, &scene.key, "silence", true);
    let mut upload = scene.begin(&mut client, &scene.key, "deaf", false);
    upload.send(b"abc", false);
    let output = scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // It is over there once revoke has returned, but for what the upstream is slow to read.
    for cut in [1, 2, 3] {
        assert_eq!(scene.end_of(cut), Ended::BrokenOff(Some(Reason::CANCEL)), "request {cut}");
    }
    assert_eq!(waiting.answer().unwrap().status(), 401);
    assert_eq!(upload.answer().unwrap().status(), 401);
    assert!(std::iter::from_fn(|| stream.data()).any(|data| data.is_err()), "never looks whole");
    assert_eq!(scene.far.seen()[0].end, None, "the sibling goes on");
    scene.answers(&scene.other);
    assert_eq!(scene.far.connections(), 1, "on the same connection");
}

#[test]
fn a_client_that_goes_away_ends_its_stream_alone() {
    let scene = Scene::new("");
    let mut client = Http2::connect(scene.gateway.address);
    let mut sibling = scene.begin(&mut client, &scene.other, "hang", true);
    sibling.head().unwrap();
    for what in ["hang", "silence"] {
        let at = scene.far.seen().len();
        let reached = scene.begin(&mut client, &scene.key, what, true);
        reached.take_back();
        assert_eq!(scene.end_of(at), Ended::BrokenOff(Some(Reason::CANCEL)), "{what}");
        let at = scene.far.seen().len();
        let mut other = scene.gateway.client();
        other.send(client::head("GET", &scene.gateway.path(&format!("orders/{what}")), &[&scene.key.bearer()]));
        eventually("the request is at the upstream", || (scene.far.seen().len() > at).then_some(()));
        drop(other);
        assert_eq!(scene.end_of(at), Ended::BrokenOff(Some(Reason::CANCEL)), "{what} over HTTP/1.1");
    }
    assert_eq!(scene.far.seen()[0].end, None, "the sibling goes on");
    scene.answers(&scene.key);
    assert_eq!(scene.far.connections(), 1);
}

/// What an upstream sends waits at the upstream while the client does not read, and nobody else waits for that client.
#[test]
fn clients_that_do_not_read_leave_the_rest_with_the_upstream_and_hold_up_nobody() {
    let scene = Scene::new("");
    let head = client::head("GET", &scene.gateway.path("orders/flood"), &[&scene.key.bearer()]);
    let mut clients: Vec<_> = (0..30).map(|_| scene.gateway.client()).collect();
    clients.iter_mut().for_each(|client| _ = client.send(&head));
    eventually("all are at the upstream", || (scene.far.seen().len() == 30).then_some(()));
    let sent = settled(|| scene.far.sent());
    // Sockets take some of it on this machine; the gateway holds little.
    assert!(sent < 30 * 8 * 1024 * 1024, "{sent} bytes were taken off the upstream");
    scene.answers(&scene.other);
    assert_eq!(scene.far.connections(), 1);
    let mut first = clients.swap_remove(0);
    let answer = first.read("GET");
    assert!(answer.complete && answer.body.len() == 100_000_000);
}

#[test]
fn an_upstream_that_does_not_read_leaves_the_rest_with_the_client() {
    let scene = Scene::new("");
    let client = scene.gateway.client();
    let mut stream = client.stream();
    let (target, bearer) = (scene.gateway.path("orders/deaf"), scene.key.bearer());
    let head = client::head("POST", &target, &[&bearer, "Content-Length: 100000000"]);
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let taken = settled(|| {
        while let Ok(bytes) = stream.write(&[b'a'; 65_536]) {
            sent += bytes as u64;
        }
        sent
    });
    assert!(taken < 16 * 1024 * 1024, "{taken} bytes were taken off the client");
    scene.answers(&scene.other);
    assert_eq!(scene.far.connections(), 1);
}

/// A number once it has stopped growing.
fn settled(mut number: impl FnMut() -> u64) -> u64 {
    let mut last = number();
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = number();
        if now == last {
            return now;
        }
        last = now;
    }
}

#[test]
fn an_upstream_that_is_silent_misses_its_deadline_and_its_connection_is_kept() {
    let scene = Scene::new("[limits]\nupstream_head = \"1s\"\nbody_idle = \"1s\"");
    let ask = |what: &str| {
        let mut client = scene.gateway.client();
        client.send(client::head("GET", &scene.gateway.path(&format!("orders/{what}")), &[&scene.key.bearer()]));
        client.try_read("GET").unwrap()
    };
    assert_eq!(ask("silence").status, 504);
    assert!(!ask("hang").complete);
    assert_eq!(
        (0..2).map(|at| scene.end_of(at)).filter(|end| *end == Ended::BrokenOff(Some(Reason::CANCEL))).count(),
        2
    );
    scene.answers(&scene.key);
    assert_eq!(scene.far.connections(), 1);
}

#[test]
fn a_body_arrives_whole_through_windows_of_any_size() {
    let scene = Scene::new("");
    let mut client = scene.gateway.client();
    let (target, bearer) = (scene.gateway.path("orders/1"), scene.key.bearer());
    client.send(client::head("POST", &target, &[&bearer, "Content-Length: 65535"]));
    client.send(crate::harness::far::pattern(0, 65_535));
    assert_eq!(client.read("POST").status, 200);
    assert_eq!(scene.far.seen()[0].body, body_of(65_535));
    _ = client.stream().read(&mut []);
}

#[test]
fn a_key_of_one_mode_never_opens_a_connection_of_the_other() {
    let [live, test] = ["live", "test"].map(|_| Far::start(Speaks::H2, None, |_| Script::ok(1)));
    let urls = [&live, &test].map(|far| format!("http://{}", far.address));
    let [live_url, test_url] = urls;
    let builder = Gateway::builder().live_url(live_url).test_url(test_url).upstream("protocol = \"h2\"");
    let gateway = builder.start();
    let key = gateway.key_with(&["--mode", "test", "--scope", "orders:read"]);
    for _ in 0..10 {
        let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert_eq!(answer.status, 200);
    }
    assert_eq!((live.connections(), test.seen().len()), (0, 10));
    let used = test.connections();
    let key = gateway.key(&["orders:read"]);
    assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
    assert_eq!((test.connections(), live.seen().len()), (used, 1));
}
