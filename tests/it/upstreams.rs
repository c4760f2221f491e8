//! Several addresses of an upstream, and which connection a request may travel on.

use crate::harness::{Gateway, PATIENCE, Reply, Upstream, client, refusing};
use std::io::Read;
use std::net::TcpListener;

#[test]
fn several_addresses_share_the_requests() {
    let upstreams = [Upstream::named("a"), Upstream::named("b"), Upstream::named("c")];
    let gateway = upstreams.iter().fold(Gateway::builder().workers(1), |builder, upstream| builder.live(upstream));
    let gateway = gateway.start();
    let key = gateway.key(&["orders:read"]);
    // All at once, so that no connection is favoured for being idle.
    let mut clients: Vec<_> = (0..30).map(|_| gateway.client()).collect();
    let head = client::head("GET", &gateway.path("orders"), &[&key.bearer()]);
    clients.iter_mut().for_each(|client| _ = client.send(&head));
    assert!(clients.iter_mut().all(|client| client.read("GET").status == 200));
    for upstream in &upstreams {
        let share = upstream.received().len();
        assert!((4..=18).contains(&share), "{share} of 30");
    }
}

#[test]
fn an_address_that_refuses_connections_is_passed_over() {
    let upstream = Upstream::named("alive");
    let gateway = Gateway::builder().live_at(refusing()).live(&upstream).live_at(refusing()).start();
    let key = gateway.key(&["orders:read"]);
    for _ in 0..12 {
        let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert_eq!((answer.status, answer.text().as_str()), (200, "alive"));
    }
    assert_eq!(upstream.received().len(), 12);
}

#[test]
fn when_every_address_refuses_the_request_is_answered_502() {
    let gateway = Gateway::builder().live_at(refusing()).live_at(refusing()).start();
    let key = gateway.key(&["orders:read"]);
    assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 502);
}

#[test]
fn a_key_of_one_mode_never_opens_a_connection_of_the_other() {
    let (live, test) = (Upstream::named("live"), Upstream::named("test"));
    let gateway = Gateway::builder().live(&live).test(&test).start();
    let key = gateway.key_with(&["--mode", "test", "--scope", "orders:read"]);
    for _ in 0..10 {
        let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert_eq!((answer.status, answer.text().as_str()), (200, "test"));
    }
    assert_eq!(live.connections(), 0);
    let used = test.connections();
    let key = gateway.key(&["orders:read"]);
    assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).text(), "live");
    assert_eq!(test.connections(), used);
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = Gateway::builder().live_at(listener.local_addr().unwrap()).start();
    let upstream = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        read_until(&mut stream, b"\r\n\r\n");
        std::io::Write::write_all(&mut stream, b"HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nearly").unwrap();
        // Held open: what the client gets must not depend on the upstream closing.
        _ = stream.read_to_end(&mut Vec::new());
    });
    let key = gateway.key(&["orders:write"]);
    let mut client = gateway.client();
    client.send(client::head("POST", &gateway.path("orders"), &[&key.bearer(), "Content-Length: 100000"]));
    client.send("the first bytes of many");
    let answer = client.read("POST");
    assert_eq!((answer.status, answer.text().as_str()), (413, "early"));
    drop(client);
    upstream.join().unwrap();
}

fn read_until(stream: &mut impl Read, end: &[u8]) {
    let (mut bytes, mut byte) = (Vec::new(), [0]);
    while !bytes.ends_with(end) {
        stream.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
    }
}

#[test]
fn a_connection_on_which_an_exchange_broke_is_never_used_again() {
    const CUT: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    let upstream = Upstream::start(|received| match received.target().ends_with("/broken") {
        true => Reply::raw(CUT),
        false => Reply::ok("good"),
    });
    let gateway = Gateway::builder().live(&upstream).workers(1).start();
    let key = gateway.key(&["orders:read"]);
    for path in ["orders", "orders/broken", "orders"] {
        let mut client = gateway.client();
        client.send(client::head("GET", &gateway.path(path), &[&key.bearer()]));
        let whole = client.try_read("GET").is_some_and(|answer| answer.status == 200 && answer.complete);
        assert_eq!(whole, path == "orders", "{path}");
    }
    let used: Vec<usize> = upstream.received().iter().map(|received| received.connection).collect();
    assert_eq!(used, [0, 0, 1], "the first is reused until it breaks");
}
