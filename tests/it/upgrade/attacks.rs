//! Upgrades that must not be: `bypass.md`, rows 19 and 20.

use super::{HANDSHAKE, Scene, end_of};
use crate::harness::client::head;
use crate::harness::switching::{AGREED, value_of};
use crate::harness::{PATIENCE, Switching};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// An upstream that answers whatever it is sent in HTTP, once.
fn plain() -> Switching {
    Switching::start(|_, mut stream| {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood");
        // Closed over a body that was not read, it would be reset, and the answer lost.
        _ = stream.shutdown(Shutdown::Write);
        _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

/// Sends a head, and gives the head that the upstream got for it.
fn forwarded(scene: &Scene, method: &str, target: &str, lines: &[&str], body: &str) -> String {
    let before = scene.upstream.heads().len();
    let mut client = scene.gateway.client();
    client.send(scene.handshake(method, target, lines) + body);
    let answer = client.read(method);
    assert_eq!(answer.status, 200, "{method} {target} {lines:?}: {}", answer.text());
    let heads = scene.upstream.heads();
    assert_eq!(heads.len(), before + 1, "{heads:#?}");
    heads[before].clone()
}

#[test]
fn row_19_what_is_not_allowed_is_stripped_and_the_request_is_an_ordinary_one() {
    let scene = Scene::before(plain());
    let long = "Content-Length: 3";
    let cases: [(&str, &str, &[&str], &str); 11] = [
        ("GET", "/v1/plain/1", &HANDSHAKE, ""),
        ("GET", "/v1/sockets/1", &["Connection: upgrade", "Upgrade: other"], ""),
        ("GET", "/v1/sockets/1", &["Connection: upgrade", "Upgrade: h2c"], ""),
        ("GET", "/v1/sockets/1", &["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA"], ""),
        ("GET", "/v1/sockets/1", &["Connection: upgrade", "Upgrade: websocketx"], ""),
        ("GET", "/v1/sockets/1", &["Connection: upgrade", "Upgrade:"], ""),
        // Nobody says that the field is for this connection.
        ("GET", "/v1/sockets/1", &["Upgrade: websocket"], ""),
        ("GET", "/v1/sockets/1", &["Connection: keep-alive", "Upgrade: websocket"], ""),
        // A WebSocket begins with GET, and a body would have to come before the switch.
        ("POST", "/v1/sockets/1", &["Connection: upgrade", "Upgrade: websocket", long], "abc"),
        ("GET", "/v1/sockets/1", &["Connection: upgrade", "Upgrade: websocket", long], "abc"),
        ("POST", "/v1/sockets/1", &["Connection: upgrade", "Upgrade: example/1", long], "abc"),
    ];
    for (method, target, lines, body) in cases {
        let sent = forwarded(&scene, method, target, lines, body);
        for name in ["connection", "upgrade", "http2-settings"] {
            assert_eq!(value_of(&sent, name), None, "{lines:?}\n{sent}");
        }
    }
}

#[test]
fn row_19_of_several_only_the_first_allowed_one_is_asked_for() {
    let scene = Scene::before(plain());
    for (line, expected) in [
        ("Upgrade: websocket, h2c", "websocket"),
        ("Upgrade: h2c, WEBSOCKET", "WEBSOCKET"),
        ("Upgrade: TLS/1.0, example/1, websocket", "example/1"),
    ] {
        let sent = forwarded(&scene, "GET", "/v1/sockets/1", &["Connection: upgrade", line], "");
        assert_eq!(value_of(&sent, "upgrade").as_deref(), Some(expected), "{line}");
        assert!(!sent.contains("h2c") && !sent.contains("TLS"), "{sent}");
    }
}

#[test]
fn row_19_http_1_0_knows_no_upgrade() {
    let scene = Scene::before(plain());
    let mut client = scene.gateway.client();
    client.send(scene.handshake("GET", "/v1/sockets/1", &HANDSHAKE).replace("HTTP/1.1", "HTTP/1.0"));
    assert_eq!(client.read("GET").status, 200);
    assert_eq!(value_of(&scene.upstream.only(), "upgrade"), None);
}

#[test]
fn row_19_no_byte_of_the_client_passes_before_the_upstream_has_agreed() {
    let (sender, seen) = std::sync::mpsc::channel();
    let scene = Scene::before(Switching::start(move |_, mut stream| {
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let early = stream.read(&mut [0; 64]);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        _ = stream.write_all(AGREED.as_bytes());
        let mut later = [0; 5];
        _ = sender.send((early.ok(), stream.read_exact(&mut later).map(|()| later)));
        _ = stream.write_all(b"end");
    }));
    let mut client = scene.gateway.client();
    client.send(scene.handshake("GET", "/v1/sockets/1", &HANDSHAKE) + "early");
    let (early, later) = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!((early, later.unwrap()), (None, *b"early"));
    assert_eq!(client.read_one("GET").unwrap().status, 101);
    client.stream().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.rest(), b"end");
}

#[test]
fn row_19_what_follows_a_refused_upgrade_is_a_request_of_its_own() {
    let scene = Scene::before(Switching::start(|_, mut stream| {
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\ngood");
        assert_eq!(end_of(&mut stream), Ok(()));
    }));
    let smuggled = head("GET", "/v1/sockets/secret", &["X-Key-Id: spoofed"]);
    for target in ["/v1/plain/1", "/v1/sockets/1"] {
        let before = scene.upstream.heads().len();
        let mut client = scene.gateway.client();
        client.send(scene.handshake("GET", target, &HANDSHAKE) + &smuggled);
        assert_eq!(client.read("GET").status, 200, "{target}");
        let second = client.read("GET");
        assert_eq!((second.status, second.code().as_str()), (401, "missing_api_key"), "{target}");
        assert_eq!(scene.upstream.heads().len(), before + 1, "{target}");
    }
    // Refused here, not by the upstream: nothing of either goes there.
    let mut client = scene.gateway.client();
    let before = scene.upstream.heads().len();
    client.send(head("GET", "/v1/sockets/1", &HANDSHAKE) + &smuggled);
    assert_eq!((client.read("GET").status, client.read("GET").status), (401, 401));
    assert_eq!(scene.upstream.heads().len(), before);
}

#[test]
fn row_19_a_101_that_does_not_agree_to_what_was_asked_is_a_broken_answer() {
    const LIES: [&str; 7] = [
        "Connection: upgrade\r\nUpgrade: example/1\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, example/1\r\n",
        "Connection: upgrade\r\n",
        "Upgrade: websocket\r\n",
        "",
        "Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked\r\n",
    ];
    let (sender, left) = std::sync::mpsc::channel();
    let scene = Scene::before(Switching::start(move |head, mut stream| {
        let lie = head.split(['/', ' ']).find_map(|part| part.parse::<usize>().ok()).unwrap();
        _ = stream.write_all(format!("HTTP/1.1 101 Switching\r\n{}\r\nbytes", LIES[lie]).as_bytes());
        _ = sender.send(stream.read(&mut [0; 64]));
    }));
    for (index, lie) in LIES.iter().enumerate() {
        let mut client = scene.gateway.client();
        client.send(scene.handshake("GET", &format!("/v1/sockets/{index}"), &HANDSHAKE) + "more");
        let answer = client.read_one("GET").unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_unreachable"), "{lie:?}");
        let left = left.recv_timeout(PATIENCE).unwrap();
        assert!(!matches!(left, Ok(1..)), "{lie:?}: bytes went to the upstream");
    }
}

#[test]
fn row_19_a_101_that_nobody_asked_for_is_a_broken_answer() {
    let scene = Scene::before(Switching::start(|_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        _ = stream.read(&mut [0; 64]);
    }));
    for (method, target, lines) in
        [("GET", "/v1/sockets/1", &[][..]), ("GET", "/v1/plain/1", &HANDSHAKE), ("POST", "/v1/sockets/1", &HANDSHAKE)]
    {
        let mut client = scene.gateway.client();
        client.send(scene.handshake(method, target, lines));
        assert_eq!(client.read_one(method).unwrap().status, 502, "{method} {target}");
    }
}

#[test]
fn row_19_it_needs_what_every_request_needs() {
    let scene = Scene::before(plain());
    let poor = scene.gateway.key(&["orders:write"]);
    for (line, status) in [("X: 1", 401), (&poor.bearer(), 403)] {
        let lines: Vec<&str> = HANDSHAKE.into_iter().chain([line]).collect();
        let answer = scene.gateway.client().request("GET", "/v1/sockets/1", &lines);
        assert_eq!(answer.status, status);
    }
    assert!(scene.upstream.heads().is_empty());
}

#[test]
fn row_20_connect_makes_no_tunnel() {
    let scene = Scene::before(plain());
    for target in ["erp.example:443", "/v1/sockets/1", "http://erp.example/v1/sockets/1"] {
        let mut client = scene.gateway.client();
        client.send(scene.handshake("CONNECT", target, &HANDSHAKE));
        let status = client.read_one("CONNECT").map(|answer| answer.status);
        assert!(matches!(status, Some(400 | 405)), "{target}: {status:?}");
    }
    assert!(scene.upstream.heads().is_empty());
}

/// The library keeps an upgrade that it saw asked for in mind, and must not take the connection's end for it.
#[test]
fn an_upgrade_that_was_stripped_does_not_cut_the_last_answer_short() {
    const LENGTH: usize = 32 * 1024 * 1024;
    let scene = Scene::before(Switching::start(|_, mut stream| {
        let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n");
        _ = stream.write_all(head.as_bytes());
        _ = stream.write_all(&vec![b'x'; LENGTH]);
    }));
    for target in ["/v1/plain/1", "/v1/sockets/1"] {
        let mut client = scene.gateway.client();
        client.send(scene.handshake("GET", target, &["Connection: close, upgrade", "Upgrade: websocket"]));
        // Slower than it is sent, to the end: the last of it has to wait for the socket.
        let (mut stream, mut piece, mut read) = (client.stream(), vec![0; 64 * 1024], 0);
        while let Ok(part @ 1..) = stream.read(&mut piece) {
            read += part;
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(read > LENGTH, "{target}: {read}");
    }
}
