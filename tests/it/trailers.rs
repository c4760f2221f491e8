//! What follows a request's body: only what its route allows, and nothing that decides how a request is read.

use crate::harness::client::head;
use crate::harness::{Gateway, Key, Received, Upstream};

const ROUTE: &str = "[[routes]]\npath = \"/v1/uploads/**\"\nupstream = \"erp\"\nread = \"orders:read\"\n\
                     write = \"orders:write\"\ntrailers = [\"x-checksum\", \"X-Size\"]\nbody_max = \"1 KiB\"";
const CHUNKED: &str = "Transfer-Encoding: chunked";

struct Scene {
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        let upstream = Upstream::named("live");
        let gateway = Gateway::builder().live(&upstream).toml(ROUTE).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { upstream, gateway, key }
    }

    /// Posts a body of chunks with these lines behind it; what the upstream has got of it.
    fn post(&self, target: &str, lines: &[&str], trailers: &str) -> Received {
        let bearer = self.key.bearer();
        let lines: Vec<&str> = [bearer.as_str(), CHUNKED].into_iter().chain(lines.iter().copied()).collect();
        self.upstream.forget();
        let mut client = self.gateway.client();
        client.send(head("POST", target, &lines) + "3\r\nabc\r\n4\r\ndefg\r\n0\r\n" + trailers + "\r\n");
        assert_eq!(client.read("POST").status, 200, "{trailers:?}");
        // It was read to its end: the connection serves another.
        assert_eq!(client.request("GET", "/v1/uploads/7", &[&bearer]).status, 200, "{trailers:?}");
        let received = self.upstream.received();
        assert_eq!((received.len(), received[0].body.as_slice()), (2, &b"abcdefg"[..]), "{received:#?}");
        received[0].clone()
    }
}

#[test]
fn what_the_route_allows_passes_and_nothing_else() {
    let scene = Scene::new();
    let sent = "X-Checksum: 7f\r\nX-Any: 1\r\nx-size: 7\r\nX-Key-Id: spoofed\r\nCookie: a\r\nX-CHECKSUM: 80\r\n\
                Authorization: Bearer other\r\nContent-Length: 9\r\nx_checksum: 2\r\n";
    let received = scene.post("/v1/uploads/1", &[], sent);
    let mut trailers = received.trailers.clone();
    trailers.sort();
    assert_eq!(trailers, ["x-checksum: 7f", "x-checksum: 80", "x-size: 7"]);
    let of_one_name: Vec<_> = received.trailers.iter().filter(|line| line.starts_with("x-checksum")).collect();
    assert_eq!(of_one_name, ["x-checksum: 7f", "x-checksum: 80"], "their order is kept");
    assert!(!received.head.contains("x-checksum") && !received.head.contains("trailer"), "{}", received.head);
}

#[test]
fn without_leave_none_pass() {
    let scene = Scene::new();
    let received = scene.post(&scene.gateway.path("orders"), &["Trailer: X-Checksum"], "X-Checksum: 7f\r\n");
    assert!(received.trailers.is_empty() && !received.head.contains("trailer"), "{received:#?}");
    let received = scene.post("/v1/uploads/1", &[], "X-Any: 1\r\n");
    assert!(received.trailers.is_empty(), "{received:#?}");
}

#[test]
fn only_what_may_pass_is_announced() {
    let scene = Scene::new();
    let received = scene.post("/v1/uploads/1", &["Trailer: X-Any, X-Size", "Trailer: Cookie"], "X-Size: 7\r\n");
    assert_eq!(received.headers("trailer"), ["x-size"]);
    assert_eq!(received.trailers, ["x-size: 7"]);
}

#[test]
fn what_connection_lists_does_not_follow_the_body_either() {
    let scene = Scene::new();
    let lines = ["Connection: X-Checksum", "Trailer: X-Checksum, X-Size"];
    let received = scene.post("/v1/uploads/1", &lines, "X-Checksum: 7f\r\nX-Size: 7\r\n");
    assert_eq!(received.headers("trailer"), ["x-size"]);
    assert_eq!(received.trailers, ["x-size: 7"]);
}

#[test]
fn trailers_that_are_no_fields_end_the_request() {
    let scene = Scene::new();
    for trailers in ["X-Checksum : 7\r\n", "X Checksum: 7\r\n", ": 7\r\n", "X-Checksum: \0\r\n", "X-Checksum\r\n"] {
        let bearer = scene.key.bearer();
        let mut client = scene.gateway.client();
        scene.upstream.forget();
        client.send(head("POST", "/v1/uploads/1", &[&bearer, CHUNKED]) + "3\r\nabc\r\n0\r\n" + trailers + "\r\n");
        assert_eq!(client.read("POST").status, 400, "{trailers:?}");
        assert!(client.is_closed(), "{trailers:?}");
        assert!(scene.upstream.received().is_empty(), "{trailers:?}");
    }
}

#[test]
fn a_body_with_a_length_has_none() {
    let scene = Scene::new();
    let mut client = scene.gateway.client();
    client.send(head("POST", "/v1/uploads/1", &[&scene.key.bearer(), "Content-Length: 3", "Trailer: X-Size"]) + "abc");
    assert_eq!(client.read("POST").status, 200);
    let received = scene.upstream.only();
    assert!(received.trailers.is_empty() && received.headers("trailer").is_empty(), "{received:#?}");
}
