//! Breaches of the protocol's rules, and attacks by frames from others' libraries: a connection that breaks a rule is told why and
//! closed, counted once, and reaches nobody.

use super::{is_served, start, wait_for_cause};
use crate::harness::http2::{self, END_HEADERS, END_STREAM, Frame, Wire, frame, kind};
use crate::harness::{Gateway, Reply, Upstream, eventually};
use crate::interop::programs::{python, run_within};
use serde_json::Value;
use std::io::Read;
use std::time::{Duration, Instant};

/// How soon a connection is closed, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(5);
const PUSH_PROMISE: u8 = 5;

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

fn window(stream: u32, increment: u32) -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

/// What is sent after the first words (RFC 9113, sections 4 to 6; RFC 7541).
fn breaches() -> Vec<(&'static str, Vec<u8>)> {
    let get = |stream| http2::get(stream, "/v1/nothing", &[]);
    let begun = |stream| http2::head("GET", stream, "/v1/nothing", &[], END_STREAM);
    let block = |block: &[u8]| frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, block);
    vec![
        ("a frame that is too long", frame(kind::DATA, 0, 1, &[0; 16_385])),
        ("half a setting", frame(kind::SETTINGS, 0, 0, &[0, 4, 0])),
        ("settings of a stream", frame(kind::SETTINGS, 0, 1, &[])),
        ("an answer to settings that says more", frame(kind::SETTINGS, 1, 0, &[0; 6])),
        ("windows beyond all bounds", setting(4, 1 << 31)),
        ("frames that are too short", setting(5, 1)),
        ("push that is neither on nor off", setting(2, 2)),
        ("a short ping", frame(kind::PING, 0, 0, &[0; 7])),
        ("a ping on a stream", frame(kind::PING, 0, 1, &[0; 8])),
        ("a window that overflows", window(0, 0x7fff_ffff)),
        ("a window that does not grow", window(0, 0)),
        ("a window of no stream", window(1, 1)),
        ("a body of no stream", frame(kind::DATA, 0, 1, b"abc")),
        ("a body on stream 0", frame(kind::DATA, 0, 0, b"abc")),
        ("a head on stream 0", get(0)),
        ("a head on the server's stream", get(2)),
        ("streams that go back", [get(5), get(3)].concat()),
        ("streams that have run out", [get(0x7fff_ffff), get(1)].concat()),
        ("a reset of no stream", frame(kind::RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        ("a short reset", [get(1), frame(kind::RST_STREAM, 0, 1, &[0, 0, 8])].concat()),
        ("a second part without a first", frame(kind::CONTINUATION, END_HEADERS, 1, &[])),
        ("something within a head", [begun(1), frame(kind::PING, 0, 0, &[0; 8])].concat()),
        ("another head within a head", [begun(1), get(3)].concat()),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("padding beyond the frame", frame(kind::HEADERS, 8 | END_HEADERS, 1, &[9, 0])),
        ("a field of no table", block(&[0xff, 0xff, 0x01])),
        ("field 0", block(&[0x80])),
        ("a table larger than allowed", block(&[0x3f, 0xe1, 0xff, 0x03])),
        ("a text that never ends", block(&[0x00, 0x7f, 0xff, 0xff, 0xff, 0x07])),
    ]
}

#[test]
fn whoever_breaks_a_rule_is_told_so_and_is_counted_once() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let cases = breaches();
    for (what, sent) in &cases {
        let mut wire = Wire::connect(gateway.address, &[]);
        let began = Instant::now();
        wire.send(sent);
        let frames = wire.rest();
        let goaway = frames.iter().rfind(|frame| frame.kind == kind::GOAWAY);
        // The library says PROTOCOL_ERROR where another would say more.
        assert!(goaway.map(Frame::error).is_some_and(|error| error != 0), "{what}: {goaway:?}");
        assert!(began.elapsed() < SOON, "{what}: {:?}", began.elapsed());
    }
    wait_for_cause(&gateway, "unparseable", cases.len() as u64);
    assert_eq!(gateway.metric("keygate_connections_ended_total{cause=\"unparseable\"}"), cases.len() as f64);
    assert!(upstream.received().is_empty());
    is_served(&gateway, &key);
}

/// Each stream is at the upstream before the client makes the gateway reset it.
#[test]
fn streams_that_are_reset_for_mistakes_once_they_have_begun_end_the_connection() {
    let upstream = Upstream::start(|_| Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))));
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), format!("Bearer {}", key.text));
    let mut wire = Wire::connect(gateway.address, &[]);
    let began = Instant::now();
    for stream in (1..).step_by(2) {
        if !wire.send(&http2::get(stream, &path, &[("authorization", &bearer)])) {
            break;
        }
        let until = Instant::now() + Duration::from_millis(500);
        while upstream.received().len() < (stream as usize).div_ceil(2) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        wire.send(&window(stream, if stream % 4 == 1 { 0x7fff_ffff } else { 0 }));
        assert!(began.elapsed() < SOON * 4, "it is never ended");
    }
    eventually("it is counted", || (ended(&gateway) == 1.0).then_some(()));
    assert!(upstream.connections() < 100, "{}", upstream.connections());
    eventually("nothing is left at the upstream", || {
        let ended = gateway.records().iter().filter(|one| one["protocol"] == "HTTP/2.0").count();
        (ended == upstream.received().len()).then_some(())
    });
}

/// How many connections have ended for what their clients sent.
fn ended(gateway: &Gateway) -> f64 {
    let count = |cause: &str| gateway.metric(&format!("keygate_connections_ended_total{{cause=\"{cause}\"}}"));
    count("flooded") + count("unparseable")
}

/// One connection of `tests/interop/attacks.py`.
fn attack(gateway: &Gateway, path: &str, bearer: &str, kind: &str) -> Value {
    let mut command = python("attacks.py");
    command.arg(gateway.address.to_string()).args([path, bearer, kind]);
    let output = run_within("30", &command);
    let errors = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{kind}: {error}: {errors}"))
}

#[test]
fn attacks_by_the_libraries_of_others_end_soon_and_spare_the_upstream() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let path = gateway.path("orders");
    let kinds = [
        "rapid reset",
        "made you reset",
        "head without end",
        "table bomb",
        "empty data",
        "padding alone",
        "settings",
        "ping",
        "priority",
        "windows",
        "requests beyond the bound",
    ];
    for kind in kinds {
        let before = ended(&gateway);
        upstream.forget();
        let told = attack(&gateway, &path, &key.text, kind);
        let seconds = told["seconds"].as_f64().unwrap();
        println!("{told}, {} at the upstream", upstream.received().len());
        assert!(told["ended"] == true && seconds < SOON.as_secs_f64(), "{told}");
        eventually(kind, || (ended(&gateway) == before + 1.0).then_some(()));
        let (reached, sent) = (upstream.received().len() as u64, told["sent"].as_u64().unwrap());
        assert!(reached * 100 <= sent, "{kind}: {reached} of {sent}");
    }
    is_served(&gateway, &key);
}
