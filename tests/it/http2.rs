//! HTTP/2 from clients: requests, bodies, refusals, and what ends a stream without ending its connection.

use crate::harness::http2::{self, Wire, kind};
use crate::harness::upstream::EVENT;
use crate::harness::{Gateway, Http2, Key, Reply, Upstream, eventually};
use h2::Reason;
use std::io::{Read, Write};
use std::process::Command;

/// A gateway that speaks both, before `upstream`.
fn start(upstream: &Upstream, sections: &str) -> (Gateway, Key) {
    let gateway = Gateway::builder().live(upstream).listen("protocols = [\"h1\", \"h2\"]").toml(sections).start();
    let key = gateway.key(&["orders:read", "orders:write", "products:read"]);
    (gateway, key)
}

/// Answers with the body it was sent.
fn echo() -> Upstream {
    Upstream::start(|received| {
        let mut response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", received.body.len()).into_bytes();
        response.extend_from_slice(&received.body);
        Reply::Bytes(response)
    })
}

#[test]
fn both_protocols_are_served_on_one_port() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).text(), "live");
    let mut client = Http2::connect(gateway.address);
    let answer = client.request("GET", &gateway.path("orders?a=1"), &[&key.bearer()], b"");
    assert_eq!((answer.status(), answer.text().as_str()), (200, "live"));
    assert_eq!(answer.header("content-length"), Some("4"));
    assert!(answer.header("date").is_some_and(|date| date.ends_with(" GMT")));
    let received = &upstream.received()[1];
    assert_eq!(received.target(), gateway.path("orders?a=1"));
    assert_eq!(received.header("host").as_deref(), Some("erp.example"));
    let record = gateway.record_of(answer.header("x-request-id").unwrap());
    assert_eq!(record["protocol"], "HTTP/2.0");
    assert_eq!((&record["host"], &record["status"]), (&"erp.example".into(), &200.into()));
    assert_eq!((&record["bytes_out"], &record["key_id"]), (&4.into(), &key.id.as_str().into()));
}

#[test]
fn curl_is_served() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let url = format!("http://{}{}", gateway.address, gateway.path("orders"));
    let output = Command::new("curl")
        .args(["-sS", "--http2-prior-knowledge", "-w", " %{http_version}", "-H", &key.bearer(), &url])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "live 2", "{}", String::from_utf8_lossy(&output.stderr));
}
