//! What comes before an answer: 100 to a client that waits for it, and the upstream's hints.

use crate::harness::client::head;
use crate::harness::{Gateway, Http2, Key, Reply, Upstream};
use std::io::Write;

const BOTH: &str = "protocols = [\"h1\", \"h2\"]";

fn start(upstream: &Upstream) -> (Gateway, Key) {
    let gateway = Gateway::builder().live(upstream).listen(BOTH).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    (gateway, key)
}

#[test]
fn row_31_over_http2_continue_is_said_to_who_may_and_when_the_body_is_wanted() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream);
    let (bearer, path) = (key.bearer(), gateway.path("orders"));
    let mut client = Http2::connect(gateway.address);
    let mut exchange = client.begin("POST", &path, &[&bearer, "expect: 100-continue", "content-length: 3"], false);
    assert_eq!(exchange.interim().unwrap().status(), 100);
    exchange.send(b"abc", true);
    assert_eq!(exchange.answer().unwrap().status(), 200);
    let received = upstream.only();
    assert_eq!((received.body.as_slice(), received.header("expect")), (&b"abc"[..], None));
    // Whose body is there already need not be asked for it.
    let mut exchange = client.begin("POST", &path, &[&bearer, "expect: 100-continue"], false);
    exchange.send(b"abc", true);
    assert_eq!(exchange.answer().unwrap().status(), 200);
}

#[test]
fn row_31_a_refusal_comes_without_it_and_the_body_is_not_read() {
    let upstream = Upstream::named("live");
    let (gateway, _) = start(&upstream);
    let poor = gateway.key(&["orders:read"]);
    let path = gateway.path("orders");
    for (line, status) in [("X-Nothing: 1", 401), (poor.bearer().as_str(), 403)] {
        let mut client = Http2::connect(gateway.address);
        let mut exchange = client.begin("POST", &path, &[line, "expect: 100-continue", "content-length: 3"], false);
        assert!(exchange.interim().is_none(), "100 to one that is refused");
        assert_eq!(exchange.answer().unwrap().status(), status);
        assert_eq!(exchange.reset(), h2::Reason::NO_ERROR, "the rest is not wanted");

        let smuggled = head("GET", "/v1/status", &[]);
        let length = format!("Content-Length: {}", smuggled.len());
        let mut client = gateway.client();
        client.send(head("POST", &path, &[line, "Expect: 100-continue", &length]));
        assert_eq!(client.read_one("POST").unwrap().status, status);
        client.send(smuggled);
        assert!(client.read_one("GET").is_none(), "a body was taken for a request");
    }
    assert!(upstream.received().is_empty());
}

#[test]
fn hints_pass_where_the_library_can_send_them() {
    const HINTS: &str = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
        HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\n\r\n\
        HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n";
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            _ = stream.write_all(HINTS.as_bytes());
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood");
        }))
    });
    let (gateway, key) = start(&upstream);
    let mut client = Http2::connect(gateway.address);
    let mut exchange = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    let interim: Vec<_> = std::iter::from_fn(|| exchange.interim()).collect();
    let statuses: Vec<_> = interim.iter().map(|head| head.status().as_u16()).collect();
    assert_eq!(statuses, [102, 103, 103]);
    assert_eq!(interim[1].headers()["link"], "</a.css>; rel=preload");
    assert_eq!(interim[1].headers().len(), 1, "{:?}", interim[1]);
    assert_eq!(interim[2].headers()["link"], "</b.css>; rel=preload");
    assert_eq!(exchange.answer().unwrap().text(), "good");
    // hyper's server has no way to send them.
    let mut client = gateway.client();
    client.send(head("GET", &gateway.path("orders"), &[&key.bearer()]));
    let answer = client.read_one("GET").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "good"));
}

#[test]
fn hints_without_end_are_no_answer() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| while stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").is_ok() {}))
    });
    let (gateway, key) = start(&upstream);
    let mut client = Http2::connect(gateway.address);
    let mut exchange = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    assert_eq!(std::iter::from_fn(|| exchange.interim()).count(), 16);
    assert_eq!(exchange.answer().unwrap().status(), 502);
}
