//! What comes to a port with TLS and is none, or is bad, or stops: closed, and counted by its cause.

use super::{Scene, wait_for_cause};
use crate::harness::{Authority, Client, TlsClient};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

// === impl Scene ===

impl Scene {
    fn bare(&self) -> TcpStream {
        let stream = TcpStream::connect(self.gateway.tls_address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    /// What comes back for these bytes until the connection ends.
    fn answer(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = self.bare();
        // It may be closed before it is all sent.
        _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        answer
    }

    fn is_served(&self) {
        assert_eq!(self.status(&mut self.connect()), 200);
    }
}

/// The first words of a client that means it.
fn hello(scene: &Scene) -> Vec<u8> {
    let mut bytes = Vec::new();
    scene.client.session("erp.example").write_tls(&mut bytes).unwrap();
    bytes
}

/// A record with the beginning of a handshake that says it is this long.
fn record(length: [u8; 2], message: [u8; 4], filling: usize) -> Vec<u8> {
    [&[22, 3, 1][..], &length, &message, &vec![0; filling]].concat()
}

#[test]
fn what_is_not_tls_is_closed_without_an_answer() {
    let scene = Scene::new();
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: erp.example\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n",
        // A hello of SSL 2.
        b"\x80\x2e\x01\x03\x01",
        b"\0",
    ] {
        assert_eq!(scene.answer(bytes), b"");
    }
    wait_for_cause(&scene.gateway, "not_tls", 5);
    // Who looks whether the port is open is no mistake.
    drop(scene.bare());
    scene.is_served();
    wait_for_cause(&scene.gateway, "tls_broken_off", 0);
}

#[test]
fn hellos_that_are_none_are_closed_at_once() {
    let scene = Scene::new();
    let whole = hello(&scene);
    let oversized = record([0xff, 0xff], [1, 0xff, 0xff, 0xff], 1 << 20);
    let endless: Vec<u8> = (0..200).flat_map(|_| record([0x40, 0], [1, 0xff, 0xff, 0xff], 0x4000 - 4)).collect();
    let empty = record([0, 0], [22, 3, 1, 0], 100);
    let not_a_hello = record([0, 8], [2, 0, 0, 4], 4);
    for bytes in [oversized, endless, empty, not_a_hello] {
        let begun = Instant::now();
        // An alert, if anything: no record of it is longer.
        assert!(scene.answer(&bytes).len() <= 7, "{:?}", &bytes[..9]);
        assert!(begun.elapsed() < Duration::from_secs(4));
    }
    wait_for_cause(&scene.gateway, "tls_malformed", 4);
    for end in [1, 5, 6, whole.len() / 2, whole.len() - 1] {
        scene.bare().write_all(&whole[..end]).unwrap();
    }
    wait_for_cause(&scene.gateway, "tls_broken_off", 5);
    scene.is_served();
}

#[test]
fn a_damaged_hello_is_refused_or_answered_and_harms_nobody() {
    let scene = Scene::with("", "", "[limits]\nhandshake_timeout = \"200ms\"");
    let whole = hello(&scene);
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (scene, whole) = (&scene, &whole);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..50 {
                    let mut damaged = whole.clone();
                    for _ in 0..random.usize(1..6) {
                        let at = random.usize(5..damaged.len());
                        damaged[at] = random.u8(..);
                    }
                    scene.answer(&damaged);
                }
            });
        }
    });
    scene.is_served();
    assert!(!scene.gateway.log_text().contains("panicked"));
}

#[test]
fn who_stops_before_the_end_is_closed_at_the_deadline() {
    let scene = Scene::with("", "", "[limits]\nhandshake_timeout = \"500ms\"\nhandshakes_max = 1");
    let whole = hello(&scene);
    let begun = Instant::now();
    let parts = [&[][..], &whole[..1], &whole[..whole.len() / 2], &whole];
    let mut stopped: Vec<_> = parts
        .iter()
        .flat_map(|part| [part; 50])
        .map(|part| {
            let mut stream = scene.bare();
            stream.write_all(part).unwrap();
            stream
        })
        .collect();
    // They hold nobody up: who waits for its client does not compute.
    scene.is_served();
    assert!(begun.elapsed() < Duration::from_millis(450), "{:?}", begun.elapsed());
    for stream in &mut stopped {
        _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    wait_for_cause(&scene.gateway, "handshake_timeout", 200);
}

#[test]
fn a_client_that_does_not_trust_the_certificate_is_told_apart() {
    let scene = Scene::new();
    let stranger = TlsClient::new(&Authority::named("stranger"));
    let refused = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &stranger);
    assert!(refused.err().unwrap().to_string().contains("UnknownIssuer"));
    wait_for_cause(&scene.gateway, "tls_refused", 1);
}
