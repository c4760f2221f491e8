//! Attacks by frames: each is ended soon, costs little, is counted, and harms nobody else.

use super::{is_served, start, wait_for_cause};
use crate::harness::http2::{self, END_HEADERS, Wire, block_of, frame, kind};
use crate::harness::{Gateway, Http2, Key, PATIENCE, Reply, Upstream, eventually};
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// How soon a flood is ended, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(5);
/// How much more the gateway may hold after an attack by one connection: what the allocator keeps, too.
const GROWTH_MAX: usize = 8 << 20;

fn resident_bytes(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// Sends until the gateway takes no more, and gives the rounds that went out. Each writes a few kilobytes.
fn flood(wire: &mut Wire, mut round: impl FnMut(u32) -> Vec<u8>) -> u32 {
    let began = Instant::now();
    let mut sent = 0;
    while wire.send(&round(sent)) {
        sent += 1;
        assert!(began.elapsed() < SOON, "it is not ended soon");
    }
    sent
}

/// The frame that a client gets a stream reset with.
type Mistake = fn(u32) -> Vec<u8>;

fn authorized(key: &Key) -> String {
    format!("Bearer {}", key.text)
}

#[test]
fn frames_that_carry_nothing_end_the_connection() {
    let (gateway, key) = start(&Upstream::named("live"), "");
    let before = resident_bytes(&gateway);
    let frames = [
        ("PING", frame(kind::PING, 0, 0, &[0; 8])),
        ("PING answers", frame(kind::PING, 1, 0, &[0; 8])),
        ("SETTINGS", frame(kind::SETTINGS, 0, 0, &[])),
        ("SETTINGS with a value", frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("PRIORITY", frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 3, 16])),
        ("WINDOW_UPDATE", frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("an unknown kind", frame(0xee, 0, 0, &[0; 8])),
    ];
    for (number, (what, frame)) in (1..).zip(frames) {
        let mut wire = Wire::connect(gateway.address, &[]);
        let rounds = flood(&mut wire, |_| frame.repeat(100));
        assert!(rounds > 5, "{what}: a few are nothing");
        wait_for_cause(&gateway, "flooded", number);
    }
    assert!(resident_bytes(&gateway).saturating_sub(before) < GROWTH_MAX);
    is_served(&gateway, &key);
}

#[test]
fn requests_that_are_taken_back_at_once_never_reach_the_upstream() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let before = resident_bytes(&gateway);
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let mut sent = 0;
    for _ in 0..50 {
        let mut wire = Wire::connect(gateway.address, &[]);
        let round = |number: u32| -> Vec<u8> {
            let streams = (number * 100..(number + 1) * 100).map(|index| index * 2 + 1);
            let pairs = streams.map(|stream| {
                let head = http2::get(stream, &path, &[("authorization", &bearer)]);
                [head, frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
            });
            pairs.collect::<Vec<_>>().concat()
        };
        sent += (flood(&mut wire, round) + 1) * 100;
    }
    wait_for_cause(&gateway, "flooded", 50);
    let reached = upstream.received().len();
    assert!(reached * 100 <= sent as usize, "{reached} of {sent}");
    assert!(resident_bytes(&gateway).saturating_sub(before) < 16 << 20);
    is_served(&gateway, &key);
}

#[test]
fn a_request_that_is_taken_back_before_it_was_looked_at_is_never_begun() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let mut wire = Wire::connect(gateway.address, &[]);
    wire.wait_for(kind::SETTINGS).unwrap();
    wire.wait_for(kind::SETTINGS).unwrap();
    let get = |stream| http2::get(stream, &path, &[("authorization", &bearer)]);
    let pair = |stream| [get(stream), frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat();
    let mut all: Vec<u8> = (0..10).flat_map(|index| pair(index * 2 + 1)).collect();
    all.extend(get(21));
    wire.send(&all);
    assert_eq!(wire.wait_for(kind::DATA).unwrap().stream, 21);
    assert_eq!(upstream.received().len(), 1);
    let of_http2 = |record: &&serde_json::Value| record["protocol"] == "HTTP/2.0";
    let recorded = || gateway.records().iter().filter(of_http2).count();
    eventually("it is recorded", || (recorded() > 0).then_some(()));
    assert_eq!(recorded(), 1, "the others were no requests yet");
}

#[test]
fn requests_that_are_taken_back_once_they_have_begun_end_the_connection() {
    let upstream = Upstream::start(|_| Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))));
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let mut wire = Wire::connect(gateway.address, &[]);
    let began = Instant::now();
    let mut stream = 1;
    while wire.send(&http2::get(stream, &path, &[("authorization", &bearer)])) {
        // Each reaches the upstream first, or the connection has ended.
        let reached = (stream as usize).div_ceil(2);
        let until = Instant::now() + Duration::from_millis(500);
        while upstream.received().len() < reached && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        wire.send(&frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        stream += 2;
        assert!(began.elapsed() < PATIENCE, "it is never ended");
    }
    wait_for_cause(&gateway, "flooded", 1);
    assert!(upstream.connections() <= 300, "{}", upstream.connections());
}

/// The client makes the gateway reset its own streams, by mistakes, and opens new ones in their place.
#[test]
fn streams_that_are_reset_for_mistakes_end_the_connection() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let mistakes: [(&str, Mistake); 4] = [
        ("a window that overflows", |stream| frame(kind::WINDOW_UPDATE, 0, stream, &[0x7f, 255, 255, 255])),
        ("a window that does not grow", |stream| frame(kind::WINDOW_UPDATE, 0, stream, &[0; 4])),
        ("a stream that depends on itself", |stream| {
            frame(kind::PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[16]].concat())
        }),
        ("a body that is too long", |stream| frame(kind::DATA, 0, stream, b"abcdef")),
    ];
    let mut before = 0;
    // What the allocator keeps for whoever comes first, megabytes at a time, is no growth: all are made twice.
    for (number, (what, mistake)) in mistakes.into_iter().cycle().take(2 * mistakes.len()).enumerate() {
        if number == mistakes.len() {
            before = resident_bytes(&gateway);
        }
        let mut wire = Wire::connect(gateway.address, &[]);
        flood(&mut wire, |number| {
            let streams = (number * 20..(number + 1) * 20).map(|index| index * 2 + 1);
            let fields = [("authorization", bearer.as_str()), ("content-length", "5")];
            let made = streams
                .map(|stream| [http2::head("POST", stream, &path, &fields, END_HEADERS), mistake(stream)].concat());
            made.collect::<Vec<_>>().concat()
        });
        let records = gateway.records().len();
        assert!(records < 1000, "{what}: {records} records");
    }
    assert!(upstream.received().is_empty());
    assert!(resident_bytes(&gateway).saturating_sub(before) < GROWTH_MAX);
    is_served(&gateway, &key);
}

#[test]
fn a_head_without_end_and_one_that_unpacks_to_too_much_end_the_connection() {
    let (gateway, key) = start(&Upstream::named("live"), "");
    let before = resident_bytes(&gateway);
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "erp.example"), (":path", "/")];
    for part in [Vec::new(), block_of(&[("a", "b")]), block_of(&[("a", &"b".repeat(8000))])] {
        let mut wire = Wire::connect(gateway.address, &[]);
        wire.send(&frame(kind::HEADERS, 0, 1, &block_of(&pseudo)));
        flood(&mut wire, |_| frame(kind::CONTINUATION, 0, 1, &part).repeat(10));
    }
    // One large field is put into the table of names and values, and then named again and again (RFC 7541, section 6.1).
    let mut bomb = block_of(&pseudo);
    let field = block_of(&[("x-bomb", &"b".repeat(3900))]);
    bomb.push(0x40);
    bomb.extend_from_slice(&field[1..]);
    bomb.extend(std::iter::repeat_n(0xbe, 10_000));
    let mut wire = Wire::connect(gateway.address, &[]);
    wire.send(&frame(kind::HEADERS, END_HEADERS, 1, &bomb));
    assert!(
        wire.wait_for(kind::GOAWAY).is_none_or(|goaway| goaway.error() == u32::from(h2::Reason::ENHANCE_YOUR_CALM))
    );
    wait_for_cause(&gateway, "flooded", 4);
    assert!(resident_bytes(&gateway).saturating_sub(before) < GROWTH_MAX);
    is_served(&gateway, &key);
}

#[test]
fn parts_of_a_body_that_hold_nothing_end_the_connection() {
    let (gateway, key) = start(&Upstream::named("live"), "");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    // Empty ones, and ones of padding alone.
    for part in [frame(kind::DATA, 0, 1, &[]), frame(kind::DATA, 8, 1, &[3, 0, 0, 0])] {
        let mut wire = Wire::connect(gateway.address, &[]);
        wire.send(&http2::head("POST", 1, &path, &[("authorization", &bearer)], END_HEADERS));
        flood(&mut wire, |_| part.repeat(100));
    }
    wait_for_cause(&gateway, "flooded", 2);
    is_served(&gateway, &key);
}

#[test]
fn shut_windows_hold_little_and_not_for_ever() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
        }))
    });
    let (gateway, key) = start(&upstream, "[limits]\nwrite_stall = \"5s\"");
    let before = resident_bytes(&gateway);
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let mut wire = Wire::connect(gateway.address, &[(4, 0)]);
    for index in 0..100 {
        wire.send(&http2::get(index * 2 + 1, &path, &[("authorization", &bearer)]));
    }
    for _ in 0..100 {
        wire.wait_for(kind::HEADERS).unwrap();
    }
    let grown = resident_bytes(&gateway).saturating_sub(before);
    // A hundred requests at a hundred connections to the upstream, in a program that is not optimized.
    assert!(grown < 16 << 20, "{grown} bytes more for a hundred streams");
    for _ in 0..100 {
        wire.wait_for(kind::RST_STREAM).unwrap();
    }
    wait_for_cause(&gateway, "write_stall", 100);
    assert_eq!(Http2::connect(gateway.address).request("GET", "/v1/nothing", &[], b"").status(), 401);
}

#[test]
fn a_client_that_asks_and_never_reads_is_cut_off() {
    let (gateway, key) = start(&Upstream::named("live"), "[limits]\nwrite_stall = \"500ms\"");
    let before = resident_bytes(&gateway);
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let mut wire = Wire::connect(gateway.address, &[]);
    wire.stream().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut stream = 1;
    flood(&mut wire, |_| {
        let round: Vec<u8> =
            (0..20).flat_map(|index| http2::get(stream + index * 2, &path, &[("authorization", &bearer)])).collect();
        stream += 40;
        round
    });
    assert!(resident_bytes(&gateway).saturating_sub(before) < GROWTH_MAX);
    is_served(&gateway, &key);
}

#[test]
fn what_a_busy_client_sends_is_no_flood() {
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("products") {
            return Reply::ok(&"x".repeat(16 << 20));
        }
        Reply::ok("live")
    });
    let (gateway, key) = start(&upstream, "");
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(4 << 20).initial_connection_window_size(4 << 20);
    let mut client = Http2::connect_with(gateway.address, &builder);
    let (bearer, orders) = (key.bearer(), gateway.path("orders"));
    let answer = client.request("GET", &gateway.path("products"), &[&bearer], b"");
    assert_eq!(answer.body.len(), 16 << 20);
    for _ in 0..300 {
        client.begin("GET", &orders, &[&bearer], true).take_back();
        assert_eq!(client.request("GET", &orders, &[&bearer], b"").status(), 200);
    }
    eventually("all are recorded", || {
        let served = gateway.records().iter().filter(|one| one["status"] == 200 && one["reason"].is_null()).count();
        (served >= 301).then_some(())
    });
}
