//! Limits and deadlines: who stands still is sent away, everybody else is served.

use crate::harness::client::head;
use crate::harness::{Authority, Client, Gateway, Key, Reply, TlsClient, Upstream, eventually};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::process::Command;
use std::time::{Duration, Instant};

fn start(limits: &str) -> (Upstream, Gateway, Key) {
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).toml(&format!("[limits]\n{limits}")).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    (upstream, gateway, key)
}

/// Waits until the journal tells of at least `count` connections that ended for `cause`.
fn wait_for_cause(gateway: &Gateway, cause: &str, count: u64) {
    eventually(cause, || {
        let records = gateway.records();
        let events = records.iter().filter(|record| record["kind"] == "connection");
        let counted: u64 = events.filter_map(|record| record["counts"][cause].as_u64()).sum();
        (counted >= count).then_some(())
    });
}

fn is_served(gateway: &Gateway, key: &Key) {
    assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
}

#[test]
fn a_silent_connection_and_a_slow_head_are_closed_at_the_deadline() {
    let (upstream, gateway, key) = start("head_timeout = \"300ms\"");
    let mut silent = gateway.client();
    let mut slow = gateway.client();
    for byte in head("GET", &gateway.path("orders"), &[&key.bearer()]).as_bytes() {
        slow.send([*byte]);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(silent.rest().is_empty());
    let answer = slow.read("GET");
    assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
    assert!(answer.header("x-request-id").is_some_and(|id| id.starts_with("req_")) && slow.is_closed());
    assert!(upstream.received().is_empty());
    wait_for_cause(&gateway, "head_timeout", 2);
    is_served(&gateway, &key);
}

#[test]
fn a_second_head_that_never_ends_is_closed_too() {
    let (_upstream, gateway, key) = start("head_timeout = \"300ms\"");
    let mut client = gateway.client();
    assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
    client.send("GET / HT");
    client.rest();
    wait_for_cause(&gateway, "head_timeout", 1);
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    let (_upstream, gateway, key) = start("idle_timeout = \"200ms\"");
    let mut client = gateway.client();
    assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
    assert!(client.is_closed());
}

#[test]
fn a_body_that_stops_is_answered_408() {
    let (_upstream, gateway, key) = start("body_idle = \"300ms\"");
    for (framing, part) in [("Content-Length: 10", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n")] {
        let mut client = gateway.client();
        client.send(head("POST", &gateway.path("orders"), &[&key.bearer(), framing]) + part);
        let answer = client.read("POST");
        assert_eq!((answer.status, answer.code().as_str()), (408, "request_timeout"));
        assert!(client.is_closed());
        assert_eq!(gateway.record_of(answer.header("x-request-id").unwrap())["reason"], "request_timeout");
    }
    is_served(&gateway, &key);
}

#[test]
fn an_upload_that_is_refused_while_it_comes_does_not_take_its_answer_away() {
    let (_upstream, gateway, _) = start("");
    let mut client = std::net::TcpStream::connect(gateway.address).unwrap();
    client.set_read_timeout(Some(crate::harness::PATIENCE)).unwrap();
    let head = format!("POST {} HTTP/1.1\r\nhost: erp\r\ncontent-length: 100000000\r\n\r\n", gateway.path("orders"));
    client.write_all(head.as_bytes()).unwrap();
    let piece = [b'x'; 16 * 1024];
    for _ in 0..8 {
        client.write_all(&piece).unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
}

#[test]
fn who_goes_on_sending_after_the_end_is_not_listened_to_for_long() {
    let (_upstream, gateway, _) = start("");
    let mut client = std::net::TcpStream::connect(gateway.address).unwrap();
    client.set_write_timeout(Some(crate::harness::PATIENCE)).unwrap();
    let head = format!("POST {} HTTP/1.1\r\nhost: erp\r\ncontent-length: 100000000\r\n\r\n", gateway.path("orders"));
    client.write_all(head.as_bytes()).unwrap();
    let began = Instant::now();
    while client.write_all(b"x").is_ok() && began.elapsed() < crate::harness::PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(began.elapsed() < crate::harness::PATIENCE);
}

#[test]
fn a_client_that_takes_no_bytes_is_cut_off() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            let chunk = [b"10000\r\n".as_slice(), &[b'x'; 65536], b"\r\n"].concat();
            while stream.write_all(&chunk).is_ok() {}
        }))
    });
    let gateway =
        Gateway::builder().live(&upstream).toml("[limits]\nwrite_stall = \"300ms\"\nbody_idle = \"1h\"").start();
    let key = gateway.key(&["orders:read"]);
    let mut client = gateway.client();
    client.send(head("GET", &gateway.path("orders"), &[&key.bearer()]));
    wait_for_cause(&gateway, "write_stall", 1);
    assert!(!client.read("GET").complete);
}

#[test]
fn heads_beyond_the_limits_get_their_own_answers() {
    let (upstream, gateway, key) = start("target_max = \"256 B\"\nfields_max = 16\nhead_max = \"4 KiB\"");
    let bearer = key.bearer();
    let refused = |target: &str, extra: &[String]| {
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(extra.iter().map(String::as_str)).collect();
        let mut client = gateway.client();
        let status = client.request("GET", target, &lines).status;
        assert!(client.is_closed());
        status
    };
    let orders = gateway.path("orders");
    assert_eq!(refused(&format!("{orders}?{}", "q".repeat(300)), &[]), 414);
    assert_eq!(refused(&orders, &(0..20).map(|index| format!("X-{index}: 1")).collect::<Vec<_>>()), 431);
    assert_eq!(refused(&orders, &[format!("X-Long: {}", "a".repeat(5000))]), 431);
    // Beyond what is parsed at all, the library answers by itself.
    assert_eq!(refused(&orders, &(0..200).map(|index| format!("X-{index}: 1")).collect::<Vec<_>>()), 431);
    assert_eq!(refused(&orders, &[format!("X-Long: {}", "a".repeat(7000)), format!("Y: {}", "a".repeat(7000))]), 431);
    assert!(upstream.received().is_empty());
    wait_for_cause(&gateway, "head_too_large", 1);
    gateway.client().send("garbage\r\n\r\n").rest();
    wait_for_cause(&gateway, "unparseable", 1);
    is_served(&gateway, &key);
}

#[test]
fn what_never_became_a_request_is_refused_in_the_contracts_form_and_counted_once() {
    let (upstream, gateway, key) = start("head_max = \"4 KiB\"");
    let cases: [(&[u8], u16, &str); 8] = [
        (b"garbage\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/3.0\r\n\r\n", 400, "bad_request"),
        (b"GET /a b HTTP/1.1\r\nHost: erp\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: erp\r\nA b: c\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/1.1\r\nHost: erp\r\nX: a\0b\r\n\r\n", 400, "bad_request"),
        // The beginning of a client's first words in TLS.
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (&[b'a'; 20_000], 431, "headers_too_large"),
        (&[&b"GET /"[..], &[b'a'; 70_000]].concat(), 431, "headers_too_large"),
    ];
    for (number, (sent, status, code)) in cases.iter().enumerate() {
        for is_first in [true, false] {
            let mut client = gateway.client();
            if !is_first {
                assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
            }
            let answer = client.send(sent).read("GET");
            assert_eq!((answer.status, answer.code().as_str()), (*status, *code), "{number}");
            let id = answer.header("x-request-id").unwrap().to_owned();
            assert_eq!(answer.json()["request_id"], id);
            assert!(id.starts_with("req_") && answer.header("date").is_some());
            assert_eq!(
                (answer.header("cache-control"), answer.header("connection")),
                (Some("no-store"), Some("close"))
            );
            assert!(client.is_closed());
        }
    }
    for (cause, count) in [("unparseable", 12), ("head_too_large", 4)] {
        wait_for_cause(&gateway, cause, count);
        assert_eq!(gateway.metric(&format!("keygate_connections_ended_total{{cause=\"{cause}\"}}")), count as f64);
    }
    assert_eq!(upstream.received().len(), cases.len());
}

#[test]
fn what_never_became_a_request_is_answered_over_tls_too() {
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).tls(&pair).toml("[limits]\nhead_timeout = \"300ms\"").start();
    let client = TlsClient::new(&authority);
    for (sent, status) in [("garbage\r\n\r\n", 400), ("GET / HT", 408)] {
        let mut client = Client::connect_tls(gateway.tls_address(), "erp.example", &client).unwrap();
        let answer = client.send(sent).read("GET");
        assert_eq!((answer.status, answer.complete), (status, true), "{}", answer.text());
        assert_eq!(answer.json()["request_id"], answer.header("x-request-id").unwrap());
        assert!(client.is_closed());
    }
    wait_for_cause(&gateway, "unparseable", 1);
    wait_for_cause(&gateway, "head_timeout", 1);
}

#[test]
fn at_the_connection_limit_the_longest_idle_makes_room() {
    let (_upstream, gateway, key) = start("connections_max = 8");
    let mut idle: Vec<Client> = (0..16)
        .map(|_| {
            let mut client = gateway.client();
            assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
            client
        })
        .collect();
    is_served(&gateway, &key);
    assert!(idle[0].is_closed());
    wait_for_cause(&gateway, "evicted", 8);
}

#[test]
fn a_thousand_silent_connections_do_not_keep_others_out() {
    let (_upstream, gateway, key) = start("head_timeout = \"2s\"");
    let silent: Vec<Client> = (0..1000).map(|_| gateway.client()).collect();
    for _ in 0..20 {
        is_served(&gateway, &key);
    }
    wait_for_cause(&gateway, "head_timeout", 1000);
    drop(silent);
    is_served(&gateway, &key);
}

#[test]
fn running_out_of_descriptors_passes() {
    let (_upstream, gateway, key) = start("head_timeout = \"500ms\"");
    let pid = gateway.pid().to_string();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() + 8;
    let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={open}:{open}")]).status().unwrap();
    assert!(limited.success());
    let _silent: Vec<Client> = (0..60).map(|_| gateway.client()).collect();
    eventually("the shortage is told", || gateway.log_text().contains("out of descriptors").then_some(()));
    eventually("requests are served again", || {
        let mut client = gateway.client();
        client.send(head("GET", &gateway.path("orders"), &[&key.bearer()]));
        (client.try_read("GET")?.status == 200).then_some(())
    });
}

#[test]
fn an_upstream_that_never_answers_is_a_504() {
    let upstream = Upstream::start(|_| {
        Reply::Custom(Box::new(|stream| {
            _ = stream.read(&mut [0]);
        }))
    });
    let gateway = Gateway::builder().live(&upstream).toml("[limits]\nupstream_head = \"300ms\"").start();
    let key = gateway.key(&["orders:read"]);
    let mut client = gateway.client();
    for _ in 0..2 {
        let answer = client.request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert_eq!((answer.status, answer.code().as_str()), (504, "upstream_timeout"));
    }
    assert_eq!(upstream.received().len(), 2, "a request that was sent is never sent again");
    _ = client.stream().shutdown(Shutdown::Both);
}
