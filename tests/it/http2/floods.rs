//! Attacks by frames: each is ended soon, costs little, is counted, and harms nobody else.

use super::{is_served, start, wait_for_cause};
use crate::harness::http2::{self, END_HEADERS, Wire, block_of, frame, kind};
use crate::harness::{Gateway, Http2, Key, PATIENCE, Reply, Upstream, eventually};
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How soon a flood is ended, on a machine that does other things too.
const SOON: Duration = Duration::from_secs(5);
/// Of two attacks by all of them at once.
const ATTACKS: u64 = 2 * ATTACKERS as u64;
/// How much more the gateway may hold for one connection, whatever is sent on it.
const CONNECTION_MAX: usize = 1 << 20;

/// How much of it one request may take that has reached an upstream.
const REQUEST_MAX: usize = 8 << 10;

/// What the gateway has allocated: what it has mapped of its own file is no growth.
fn allocated(gateway: &Gateway) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// How many attack at once: memory comes in steps of 2 MiB, which is no single connection's.
const ATTACKERS: usize = 8;

/// How much more the gateway holds at the most for each of those who attack at once. They attack twice: what the allocator
/// takes for whoever comes first, and keeps, is not counted.
fn peak_growth(gateway: &Gateway, attack: impl Fn() + Sync) -> usize {
    let attack_at_once = || {
        std::thread::scope(|scope| {
            for _ in 0..ATTACKERS {
                scope.spawn(&attack);
            }
        });
    };
    attack_at_once();
    let (before, is_over) = (allocated(gateway), AtomicBool::new(false));
    let peak = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = before;
            while !is_over.load(Ordering::Relaxed) {
                peak = peak.max(allocated(gateway));
                std::thread::sleep(Duration::from_millis(1));
            }
            peak
        });
        attack_at_once();
        is_over.store(true, Ordering::Relaxed);
        watch.join().unwrap()
    });
    (peak - before) / ATTACKERS
}

/// Sends until the gateway takes no more, and gives the rounds that went out. Each writes a few kilobytes.
fn flood(wire: &mut Wire, mut round: impl FnMut(u32) -> Vec<u8>) -> u32 {
    let began = Instant::now();
    let mut sent = 0;
    while wire.send(&round(sent)) {
        sent += 1;
        assert!(began.elapsed() < SOON, "it is not ended soon");
    }
    println!("ended after {:.1?}, {sent} rounds", began.elapsed());
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
        let grown = peak_growth(&gateway, || {
            let mut wire = Wire::connect(gateway.address, &[]);
            let rounds = flood(&mut wire, |_| frame.repeat(100));
            assert!(rounds > 5, "{what}: a few are nothing");
        });
        wait_for_cause(&gateway, "flooded", ATTACKS * number);
        assert!(grown <= CONNECTION_MAX, "{what}: {grown} bytes more");
    }
    is_served(&gateway, &key);
}

#[test]
fn requests_that_are_taken_back_at_once_never_reach_the_upstream() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let sent = AtomicU32::new(0);
    let grown = peak_growth(&gateway, || {
        for _ in 0..5 {
            let mut wire = Wire::connect(gateway.address, &[]);
            let round = |number: u32| -> Vec<u8> {
                let streams = (number * 100..(number + 1) * 100).map(|index| index * 2 + 1);
                let pairs = streams.map(|stream| {
                    let head = http2::get(stream, &path, &[("authorization", &bearer)]);
                    [head, frame(kind::RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
                });
                pairs.collect::<Vec<_>>().concat()
            };
            sent.fetch_add((flood(&mut wire, round) + 1) * 100, Ordering::Relaxed);
        }
    });
    wait_for_cause(&gateway, "flooded", 5 * ATTACKS);
    let (reached, sent) = (upstream.received().len(), sent.into_inner() as usize);
    assert!(reached * 100 <= sent, "{reached} of {sent}");
    assert!(grown <= CONNECTION_MAX, "{grown} bytes more");
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
    for (what, mistake) in mistakes {
        let grown = peak_growth(&gateway, || {
            let mut wire = Wire::connect(gateway.address, &[]);
            flood(&mut wire, |number| {
                let streams = (number * 20..(number + 1) * 20).map(|index| index * 2 + 1);
                let fields = [("authorization", bearer.as_str()), ("content-length", "5")];
                let made = streams
                    .map(|stream| [http2::head("POST", stream, &path, &fields, END_HEADERS), mistake(stream)].concat());
                made.collect::<Vec<_>>().concat()
            });
        });
        assert!(grown <= CONNECTION_MAX, "{what}: {grown} bytes more");
        let records = gateway.records().len();
        assert!(records < 1000 * ATTACKERS, "{what}: {records} records");
    }
    assert!(upstream.received().is_empty());
    is_served(&gateway, &key);
}

#[test]
fn a_head_without_end_and_one_that_unpacks_to_too_much_end_the_connection() {
    let (gateway, key) = start(&Upstream::named("live"), "");
    let pseudo = [(":method", "GET"), (":scheme", "http"), (":authority", "erp.example"), (":path", "/")];
    for part in [Vec::new(), block_of(&[("a", "b")]), block_of(&[("a", &"b".repeat(8000))])] {
        let grown = peak_growth(&gateway, || {
            let mut wire = Wire::connect(gateway.address, &[]);
            wire.send(&frame(kind::HEADERS, 0, 1, &block_of(&pseudo)));
            flood(&mut wire, |_| frame(kind::CONTINUATION, 0, 1, &part).repeat(10));
        });
        assert!(grown <= CONNECTION_MAX, "parts of {}: {grown} bytes more", part.len());
    }
    // One large field is put into the table of names and values, and then named again and again (RFC 7541, section 6.1).
    let mut bomb = block_of(&pseudo);
    let field = block_of(&[("x-bomb", &"b".repeat(3900))]);
    bomb.push(0x40);
    bomb.extend_from_slice(&field[1..]);
    bomb.extend(std::iter::repeat_n(0xbe, 10_000));
    let grown = peak_growth(&gateway, || {
        let mut wire = Wire::connect(gateway.address, &[]);
        wire.send(&frame(kind::HEADERS, END_HEADERS, 1, &bomb));
        let goaway = wire.wait_for(kind::GOAWAY);
        assert!(goaway.is_none_or(|goaway| goaway.error() == u32::from(h2::Reason::ENHANCE_YOUR_CALM)));
    });
    assert!(grown <= CONNECTION_MAX, "{grown} bytes more");
    wait_for_cause(&gateway, "flooded", 4 * ATTACKS);
    is_served(&gateway, &key);
}

#[test]
fn parts_of_a_body_that_hold_nothing_end_the_connection() {
    let (gateway, key) = start(&Upstream::named("live"), "");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    // Empty ones, and ones of padding alone.
    for part in [frame(kind::DATA, 0, 1, &[]), frame(kind::DATA, 8, 1, &[3, 0, 0, 0])] {
        let grown = peak_growth(&gateway, || {
            let mut wire = Wire::connect(gateway.address, &[]);
            wire.send(&http2::head("POST", 1, &path, &[("authorization", &bearer)], END_HEADERS));
            flood(&mut wire, |_| part.repeat(100));
        });
        assert!(grown <= CONNECTION_MAX, "{grown} bytes more");
    }
    wait_for_cause(&gateway, "flooded", 2 * ATTACKS);
    is_served(&gateway, &key);
}

#[test]
fn shut_windows_hold_little_and_not_for_ever() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            // What the kernel holds of it is not the gateway's.
            socket2::SockRef::from(&*stream).set_send_buffer_size(64 * 1024).unwrap();
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
        }))
    });
    let (gateway, key) = start(&upstream, "[limits]\nwrite_stall = \"4s\"");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let grown = peak_growth(&gateway, || {
        let mut wire = Wire::connect(gateway.address, &[(4, 0)]);
        for index in 0..100 {
            wire.send(&http2::get(index * 2 + 1, &path, &[("authorization", &bearer)]));
        }
        for kind in [kind::HEADERS, kind::RST_STREAM] {
            for _ in 0..100 {
                wire.wait_for(kind).unwrap();
            }
        }
    });
    // A hundred requests at a hundred connections to the upstream, in a program that is not optimized.
    assert!(grown <= CONNECTION_MAX + 100 * REQUEST_MAX, "{grown} bytes more for a hundred streams");
    wait_for_cause(&gateway, "write_stall", 100 * ATTACKS);
    assert_eq!(Http2::connect(gateway.address).request("GET", "/v1/nothing", &[], b"").status(), 401);
}

#[test]
fn a_client_that_asks_and_never_reads_is_cut_off() {
    let (gateway, key) = start(&Upstream::named("live"), "[limits]\nwrite_stall = \"500ms\"");
    let (path, bearer) = (gateway.path("orders"), authorized(&key));
    let grown = peak_growth(&gateway, || {
        let mut wire = Wire::connect(gateway.address, &[]);
        wire.stream().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut stream = 1;
        flood(&mut wire, |_| {
            let streams = (0..20).map(|index| stream + index * 2);
            let round = streams.flat_map(|stream| http2::get(stream, &path, &[("authorization", &bearer)]));
            let round = round.collect();
            stream += 40;
            round
        });
    });
    assert!(grown <= CONNECTION_MAX, "{grown} bytes more");
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
