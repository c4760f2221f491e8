//! Stopping: what is in flight finishes, nothing new begins, and the journal holds every record.

use crate::harness::client::head;
use crate::harness::{Client, Gateway, Reply, Upstream, eventually};
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

/// Answers when the test says so.
struct Held {
    upstream: Upstream,
    release: std::sync::mpsc::Sender<()>,
}

// === impl Held ===

impl Held {
    fn start() -> Self {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let upstream = Upstream::start(move |_| {
            _ = held.lock().unwrap().recv();
            Reply::ok("late")
        });
        Self { upstream, release }
    }
}

/// Sends one request and waits until the upstream has it.
fn in_flight(gateway: &Gateway, upstream: &Upstream, bearer: &str) -> Client {
    let before = upstream.received().len();
    let mut client = gateway.client();
    client.send(head("GET", &gateway.path("orders"), &[bearer]));
    eventually("the request is at the upstream", || (upstream.received().len() > before).then_some(()));
    client
}

fn refuses_connections(gateway: &Gateway) {
    let refused = || TcpStream::connect(gateway.address).is_err().then_some(());
    eventually("new connections are refused", refused);
}

#[test]
fn requests_in_flight_finish_and_the_journal_has_every_record() {
    let held = Held::start();
    let mut gateway = Gateway::builder().live(&held.upstream).start();
    let key = gateway.key(&["orders:read"]);
    let mut clients: Vec<Client> = (0..8).map(|_| in_flight(&gateway, &held.upstream, &key.bearer())).collect();
    let mut idle = gateway.client();
    assert_eq!(idle.request("GET", "/nothing", &[]).status, 401);
    gateway.signal("TERM");
    refuses_connections(&gateway);
    assert!(idle.is_closed());
    clients.iter().for_each(|_| held.release.send(()).unwrap());
    let mut ids = Vec::new();
    for client in &mut clients {
        let answer = client.read("GET");
        assert_eq!((answer.status, answer.text().as_str()), (200, "late"));
        ids.push(answer.header("x-request-id").unwrap().to_owned());
        assert!(client.is_closed());
    }
    assert_eq!(gateway.wait(), Some(0));
    let records = gateway.records();
    for id in ids {
        let found: Vec<_> = records.iter().filter(|record| record["request_id"] == id.as_str()).collect();
        assert_eq!(found.len(), 1, "{id}");
        assert_eq!(found[0]["status"], 200);
    }
}

#[test]
fn what_hangs_is_cut_at_the_bound_and_the_record_says_so() {
    let held = Held::start();
    let mut gateway = Gateway::builder().live(&held.upstream).toml("[limits]\ndrain = \"300ms\"").start();
    let key = gateway.key(&["orders:read"]);
    let mut client = in_flight(&gateway, &held.upstream, &key.bearer());
    gateway.signal("TERM");
    assert!(client.rest().is_empty());
    assert_eq!(gateway.wait(), Some(0));
    let records = gateway.records();
    let cut: Vec<_> = records.iter().filter(|record| record["reason"] == "drain_expired").collect();
    assert_eq!(cut.len(), 1, "{records:#?}");
    assert_eq!(cut[0]["key_id"], key.id.as_str());
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let held = Held::start();
    let mut gateway = Gateway::builder().live(&held.upstream).toml("[limits]\ndrain = \"1h\"").start();
    let key = gateway.key(&["orders:read"]);
    let _client = in_flight(&gateway, &held.upstream, &key.bearer());
    gateway.signal("TERM");
    refuses_connections(&gateway);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(130), "ended by the second signal, not by the drain");
}

#[test]
fn a_body_that_is_still_coming_is_taken_to_its_end() {
    let upstream = Upstream::named("live");
    let mut gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:write"]);
    let mut client = gateway.client();
    client.send(head("POST", &gateway.path("orders"), &[&key.bearer(), "Content-Length: 6"]) + "abc");
    eventually("the upload has begun", || (upstream.connections() > 0).then_some(()));
    gateway.signal("TERM");
    refuses_connections(&gateway);
    client.send("def");
    assert_eq!(client.read("POST").status, 200);
    assert_eq!(upstream.only().body, b"abcdef");
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn hangup_changes_nothing() {
    let upstream = Upstream::named("live");
    let gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    let mut client = gateway.client();
    for _ in 0..3 {
        gateway.signal("HUP");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
    }
    _ = client.stream().flush();
}

#[test]
fn a_stop_that_comes_with_the_first_sign_of_life_is_a_clean_one() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    for _ in 0..10 {
        gateway.restart();
        gateway.signal("TERM");
        assert_eq!(gateway.wait(), Some(0));
    }
}
