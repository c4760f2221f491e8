//! A key's end cuts what is under way over TLS as well: nothing that was cut looks whole.

use super::Scene;
use crate::harness::client::head;
use crate::harness::upstream::EVENT;
use crate::harness::{Authority, Client, Gateway, Http2, Reply, TlsClient, Upstream, eventually};
use std::io::{ErrorKind, Read as _, Write as _};

/// Before an upstream that answers `/orders` never, `/products` with a stream that does not end, and the rest at once.
fn scene() -> Scene {
    let upstream = Upstream::start(|received| match received.target().rsplit('/').next() {
        Some("orders") => Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))),
        Some("products") => Reply::events_without_end(),
        Some("half") => Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".to_vec()),
        _ => Reply::ok("good"),
    });
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let gateway = Gateway::builder().live(&upstream).tls(&pair).start();
    let key = gateway.key(&["orders:read", "products:read"]);
    let client = TlsClient::new(&authority);
    Scene { authority, pair, upstream, gateway, key, client }
}

// === impl Scene ===

impl Scene {
    fn revoke(&self) {
        assert!(self.gateway.run(&["keys", "revoke", &self.key.id, "--yes"]).status.success());
    }

    fn wait_for_upstream(&self, requests: usize) {
        eventually("the requests are at the upstream", || (self.upstream.received().len() == requests).then_some(()));
    }

    /// A download that has begun.
    fn download(&self, version: &str) -> Client {
        let mut client = self.connect();
        let head = head("GET", &self.gateway.path("products"), &[&self.key.bearer()]);
        client.send(head.replace("HTTP/1.1", version));
        self.wait_for_upstream(self.upstream.received().len().max(1));
        let mut begun = Vec::new();
        while !begun.windows(EVENT.len()).any(|part| part == EVENT) {
            begun.extend(client.some());
        }
        client
    }
}

#[test]
fn i10_a_download_is_reset_and_never_looks_whole() {
    let scene = scene();
    let mut clients = [scene.download("HTTP/1.1"), scene.download("HTTP/1.0")];
    scene.revoke();
    for client in &mut clients {
        // Without its last words, which would say that nothing is missing.
        assert_eq!(client.end().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    eventually("both cuts are recorded", || {
        let records = scene.gateway.records();
        (records.iter().filter(|record| record["reason"] == "cut_by_revocation").count() == 2).then_some(())
    });
}

#[test]
fn i10_what_waits_is_refused_and_the_connection_goes_on() {
    let scene = scene();
    let mut client = scene.connect();
    client.send(head("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()]));
    scene.wait_for_upstream(1);
    let other = scene.gateway.key(&["orders:read"]);
    scene.revoke();
    assert_eq!(client.read("GET").status, 401);
    assert_eq!(client.request("GET", &scene.gateway.path("orders/1"), &[&other.bearer()]).status, 200);
}

#[test]
fn i10_a_stream_is_reset_and_its_siblings_go_on() {
    let scene = scene();
    let other = scene.gateway.key(&["products:read"]);
    let mut client = Http2::connect_tls(scene.gateway.tls_address(), "erp.example", &scene.client);
    let path = scene.gateway.path("products");
    let mut streams = [&scene.key, &other].map(|key| client.begin("GET", &path, &[&key.bearer()], true));
    for stream in &mut streams {
        stream.head().unwrap();
        assert!(stream.data().unwrap().is_ok());
    }
    scene.revoke();
    let [cut, sibling] = &mut streams;
    let error = loop {
        match cut.data() {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("it looks whole"),
        }
    };
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    for _ in 0..20 {
        assert!(sibling.data().unwrap().is_ok());
    }
}

#[test]
fn what_the_upstream_breaks_off_looks_broken() {
    let scene = scene();
    let mut client = scene.connect();
    let bearer = scene.key.bearer();
    let head = head("GET", &scene.gateway.path("orders/half"), &[&bearer]);
    let answer = client.send(head.replace("HTTP/1.1", "HTTP/1.0")).read("GET");
    assert!(!answer.complete, "{answer:?}");
    let mut stream = std::net::TcpStream::connect(scene.gateway.tls_address()).unwrap();
    // A client that is gone harms nobody.
    stream.write_all(&[22, 3, 1]).unwrap();
    assert_eq!(scene.connect().request("GET", &scene.gateway.path("orders/1"), &[&bearer]).status, 200);
}
