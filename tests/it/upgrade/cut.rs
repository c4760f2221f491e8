//! What a connection carries ends with its key (contract, section 5; protocols I10).

use super::{Scene, end_of, exchange};
use crate::harness::switching::{AGREED, echo};
use crate::harness::{PATIENCE, Switching, eventually};
use std::io::{ErrorKind, Read, Write};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// An upstream that tells how each of its connections has ended.
fn telling() -> (Switching, Receiver<Result<(), ErrorKind>>) {
    let (sender, ended) = channel();
    let upstream = Switching::start(move |_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        _ = sender.send(echo(&mut stream));
    });
    (upstream, ended)
}

impl Scene {
    fn run(&self, args: &[&str]) {
        let output = self.gateway.run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn i10_a_revoked_key_ends_it_on_both_sides_before_revoke_returns() {
    let (upstream, ended) = telling();
    let scene = Scene::before(upstream);
    let mut stream = scene.upgraded();
    exchange(&mut stream, b"hello");
    scene.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    stream.set_nonblocking(true).unwrap();
    // What the two processes are told may take the scheduler a moment; no time of the gateway's own passes.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
    let record = scene.record();
    assert_eq!(record["reason"], "cut_by_revocation");
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&5.into(), &5.into()));
}

#[test]
fn i10_a_client_that_does_not_read_is_cut_off_all_the_same() {
    let scene = Scene::before(Switching::start(|_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    }));
    let _stream = scene.upgraded();
    std::thread::sleep(Duration::from_millis(200));
    scene.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    assert_eq!(scene.record()["reason"], "cut_by_revocation");
}

#[test]
fn i10_an_upstream_that_does_not_read_is_cut_off_all_the_same() {
    let (sender, ended) = channel();
    let scene = Scene::before(Switching::start(move |_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        std::thread::sleep(Duration::from_secs(1));
        _ = sender.send(end_of(&mut stream));
    }));
    let mut stream = scene.upgraded();
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    while stream.write_all(&[b'x'; 65536]).is_ok() {}
    scene.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    assert_eq!(scene.record()["reason"], "cut_by_revocation");
    assert_eq!(ended.recv_timeout(PATIENCE).unwrap(), Err(ErrorKind::ConnectionReset));
}

#[test]
fn i10_narrowing_and_the_entitys_end_cut_and_what_is_still_allowed_goes_on() {
    let scene = Scene::before(Switching::echo());
    let mut stream = scene.upgraded();
    scene.run(&["keys", "update", &scene.key.id, "--scope", "orders:read"]);
    exchange(&mut stream, b"still allowed");
    scene.run(&["keys", "update", &scene.key.id, "--scope", "products:read"]);
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.record()["reason"], "insufficient_scope");

    let scene = Scene::before(Switching::echo());
    let mut stream = scene.upgraded();
    scene.run(&["entities", "delete", "acme", "--yes"]);
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
    assert_eq!(scene.record()["reason"], "cut_by_revocation");
}

#[test]
fn i1_it_ends_when_nothing_was_heard_of_the_store_for_too_long() {
    let scene = Scene::with(Switching::echo(), "[cache]\nmax_stale = \"4s\"");
    let mut stream = scene.upgraded();
    let data = scene.gateway.dir.path().join("data");
    std::fs::rename(data.join("keygate.db"), data.join("away.db")).unwrap();
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
    // The store is where the records are asked for.
    std::fs::rename(data.join("away.db"), data.join("keygate.db")).unwrap();
    assert_eq!(scene.record()["reason"], "cut_by_staleness");
}

#[test]
fn i10_no_byte_passes_after_revoke_has_returned() {
    let scene = Scene::before(Switching::start(|_, mut stream| {
        _ = stream.write_all(AGREED.as_bytes());
        let mut count = 0u64;
        while stream.write_all(&count.to_be_bytes()).is_ok() {
            count += 1;
            std::thread::sleep(Duration::from_micros(200));
        }
    }));
    let mut stream = scene.upgraded();
    eventually("it flows", || stream.read(&mut [0; 64]).ok());
    scene.run(&["keys", "revoke", &scene.key.id, "--yes"]);
    std::thread::sleep(Duration::from_millis(20));
    stream.set_nonblocking(true).unwrap();
    // What had arrived may be read; behind it there is the end, not a pause.
    assert_eq!(end_of(&mut stream), Err(ErrorKind::ConnectionReset));
}
