//! HTTP/2 from clients: requests, bodies, deadlines, drain.

mod breaches;
mod cut;
mod floods;
mod hygiene;

use crate::harness::http2::{self, Wire, kind};
use crate::harness::{Gateway, Http2, Key, Reply, Upstream, client, eventually};
use h2::Reason;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

const BOTH: &str = "protocols = [\"h1\", \"h2\"]";

/// A gateway that speaks both, before `upstream`.
fn start(upstream: &Upstream, sections: &str) -> (Gateway, Key) {
    let gateway = Gateway::builder().live(upstream).listen(BOTH).toml(sections).start();
    let key = gateway.key(&["orders:read", "orders:write", "products:read", "products:write"]);
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

/// An upstream that gets requests of any kind, complete or not, and does with each what it is told.
fn bare_upstream(act: impl Fn(&mut std::net::TcpStream) + Send + Sync + 'static) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let act = std::sync::Arc::new(act);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let act = std::sync::Arc::clone(&act);
            std::thread::spawn(move || {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap_or_default();
                    head.push(byte[0]);
                }
                act(&mut stream);
            });
        }
    });
    address
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

/// The only record with this reason.
fn record_for(gateway: &Gateway, reason: &str) -> serde_json::Value {
    eventually(reason, || {
        let found: Vec<_> = gateway.records().into_iter().filter(|one| one["reason"] == reason).collect();
        assert!(found.len() <= 1, "{found:#?}");
        found.into_iter().next()
    })
}

fn is_served(gateway: &Gateway, key: &Key) {
    let answer = Http2::connect(gateway.address).request("GET", &gateway.path("orders"), &[&key.bearer()], b"");
    assert_eq!(answer.status(), 200);
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

#[test]
fn what_is_no_preface_is_http1_and_nothing_of_it_is_lost() {
    let upstream = echo();
    let (gateway, key) = start(&upstream, "");
    // Each begins as the preface does, byte by byte.
    for method in ["PUT", "POST", "PATCH"] {
        let mut client = gateway.client();
        let text = client::head(method, &gateway.path("orders"), &[&key.bearer(), "Content-Length: 3"]) + "abc";
        for byte in text.as_bytes() {
            client.send([*byte]);
            std::thread::sleep(Duration::from_micros(200));
        }
        assert_eq!(client.read(method).text(), "abc", "{method}");
    }
    assert_eq!(gateway.client().send("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n").rest().get(..12), Some(&b"HTTP/1.1 400"[..]));
}

#[test]
fn where_only_http2_is_spoken_nothing_else_is_answered() {
    let gateway = Gateway::builder().live(&echo()).listen("protocols = [\"h2\"]").start();
    let mut client = gateway.client();
    client.send(client::head("GET", "/v1/status", &[]));
    assert!(client.rest().is_empty());
    assert_eq!(Http2::connect(gateway.address).request("GET", "/v1/status", &[], b"").status(), 200);
    wait_for_cause(&gateway, "unparseable", 1);
}

#[test]
fn bodies_pass_both_ways_through_small_windows() {
    let (gateway, key) = start(&echo(), "");
    let body: Vec<u8> = (0..1 << 20).map(|at: usize| (at.wrapping_mul(31) ^ (at >> 9)) as u8).collect();
    let mut builder = h2::client::Builder::new();
    for window in [1000, 65_535, 1 << 20] {
        builder.initial_window_size(window);
        let mut client = Http2::connect_with(gateway.address, &builder);
        let answer = client.request("POST", &gateway.path("orders"), &[&key.bearer()], &body);
        assert_eq!(answer.status(), 200);
        assert!(answer.body == body, "{window}: {} bytes", answer.body.len());
        let record = gateway.record_of(answer.header("x-request-id").unwrap());
        assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&(1 << 20).into(), &(1 << 20).into()));
    }
}

#[test]
fn many_requests_share_a_connection() {
    let upstream = echo();
    let (gateway, key) = start(&upstream, "");
    let mut client = Http2::connect(gateway.address);
    let bearer = key.bearer();
    let path = gateway.path("orders");
    let mut open: Vec<_> = (0..100).map(|_| client.begin("POST", &path, &[&bearer], false)).collect();
    for (number, exchange) in open.iter_mut().enumerate() {
        exchange.send(format!("number {number}").as_bytes(), true);
    }
    for (number, exchange) in open.iter_mut().enumerate() {
        assert_eq!(exchange.answer().unwrap().text(), format!("number {number}"));
    }
    assert_eq!(upstream.received().len(), 100);
}

#[test]
fn trailers_and_answers_without_a_body() {
    let upstream = Upstream::start(|received| match received.head.split(' ').next() {
        Some("HEAD") => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 1234\r\n\r\n"),
        Some("DELETE") => Reply::raw("HTTP/1.1 204 No Content\r\nConnection: X-Hop\r\nX-Hop: 1\r\n\r\n"),
        Some("PUT") => Reply::raw("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n"),
        Some("PATCH") => Reply::raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        _ => Reply::raw(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\nX-Key-Id: no\r\n\r\n",
        ),
    });
    let (gateway, key) = start(&upstream, "");
    let mut client = Http2::connect(gateway.address);
    let (bearer, path) = (key.bearer(), gateway.path("orders"));
    let answer = client.request("GET", &path, &[&bearer], b"");
    assert_eq!((answer.text().as_str(), answer.header("transfer-encoding")), ("abc", None));
    let trailers = answer.trailers.unwrap();
    assert_eq!((trailers.len(), &trailers["x-sum"]), (1, &"7".parse().unwrap()));
    for (method, status, length) in
        [("HEAD", 200, Some("1234")), ("DELETE", 204, None), ("PUT", 304, None), ("PATCH", 200, Some("0"))]
    {
        let mut exchange = client.begin(method, &path, &[&bearer], true);
        let head = exchange.head().unwrap();
        assert_eq!(head.status, status, "{method}");
        assert!(exchange.body.as_ref().unwrap().is_end_stream(), "{method}: the head is the end");
        let given = head.headers.get("content-length").map(|length| length.to_str().unwrap());
        assert_eq!(given, length, "{method}");
        assert!(!head.headers.contains_key("connection") && !head.headers.contains_key("x-hop"));
        let record = gateway.record_of(head.headers["x-request-id"].to_str().unwrap());
        assert_eq!((&record["status"], &record["bytes_out"]), (&status.into(), &0.into()));
    }
    // A refusal of HEAD has no body either.
    let mut exchange = client.begin("HEAD", &path, &[], true);
    assert_eq!(exchange.head().unwrap().status, 401);
    assert!(exchange.body.as_ref().unwrap().is_end_stream());
}

#[test]
fn a_refusal_says_what_it_says_over_http1_and_the_connection_goes_on() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let mut client = Http2::connect(gateway.address);
    let refused = client.request("GET", &gateway.path("orders%2f"), &[&key.bearer()], b"");
    assert_eq!((refused.status(), refused.code().as_str()), (400, "bad_request"));
    assert_eq!((refused.header("connection"), refused.header("cache-control")), (None, Some("no-store")));
    let mut upload = client.begin("POST", &gateway.path("orders"), &[], false);
    upload.send(b"abc", false);
    let refused = upload.answer().unwrap();
    assert_eq!((refused.status(), refused.code().as_str()), (401, "missing_api_key"));
    // Nobody wants the rest (RFC 9113, section 8.1).
    assert_eq!(upload.reset(), Reason::NO_ERROR);
    assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()], b"").status(), 200);
    assert_eq!(upstream.received().len(), 1);
}

#[test]
fn an_answer_that_comes_before_the_request_is_whole_is_passed_on() {
    let address = bare_upstream(|stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly").unwrap();
        _ = stream.read(&mut [0; 64]);
    });
    let gateway = Gateway::builder().live_at(address).listen(BOTH).start();
    let key = gateway.key(&["orders:write"]);
    let mut client = Http2::connect(gateway.address);
    let mut upload = client.begin("POST", &gateway.path("orders"), &[&key.bearer()], false);
    upload.send(b"abc", false);
    let answer = upload.answer().unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "early"));
    assert_eq!(upload.reset(), Reason::NO_ERROR);
}

#[test]
fn a_client_that_takes_its_request_back_ends_it_at_the_upstream() {
    let ended = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&ended);
    let upstream = Upstream::start(move |received| {
        let (count, is_stream) = (std::sync::Arc::clone(&count), received.target().ends_with("products"));
        Reply::Custom(Box::new(move |stream| {
            if is_stream {
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
            }
            while stream.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }))
    });
    let (gateway, key) = start(&upstream, "");
    let mut client = Http2::connect(gateway.address);
    let waiting = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    let mut streaming = client.begin("GET", &gateway.path("products"), &[&key.bearer()], true);
    streaming.head().unwrap();
    eventually("both are at the upstream", || (upstream.received().len() == 2).then_some(()));
    waiting.take_back();
    streaming.take_back();
    eventually("the upstream knows", || (ended.load(std::sync::atomic::Ordering::SeqCst) == 2).then_some(()));
    eventually("both are recorded", || {
        let records = gateway.records();
        let mut statuses: Vec<_> = records.iter().filter(|one| one["reason"] == "client_aborted").collect();
        statuses.sort_by_key(|one| one["status"].as_u64());
        (statuses.len() == 2).then(|| assert!(statuses[0]["status"].is_null() && statuses[1]["status"] == 200))
    });
}

#[test]
fn an_upstream_that_breaks_off_never_looks_whole() {
    let upstream = Upstream::start(|_| {
        Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".to_vec())
    });
    let (gateway, key) = start(&upstream, "");
    let mut client = Http2::connect(gateway.address);
    let mut exchange = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    let error = exchange.answer().unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
    assert_eq!(record_for(&gateway, "upstream_aborted")["bytes_out"], 3);
}

#[test]
fn a_synced_record_is_there_when_the_response_is() {
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("products") {
            return Reply::raw(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n",
            );
        }
        Reply::ok("live")
    });
    let (gateway, key) = start(&upstream, "[audit]\ndurability = \"synced\"");
    let mut client = Http2::connect(gateway.address);
    for path in ["orders", "products", "orders%2f"] {
        let answer = client.request("GET", &gateway.path(path), &[&key.bearer()], b"");
        let id = answer.header("x-request-id").unwrap();
        assert!(gateway.records().iter().any(|record| record["request_id"] == id), "{path}");
    }
}

#[test]
fn what_comes_before_a_first_request_has_its_deadlines() {
    let (gateway, key) = start(
        &Upstream::named("live"),
        "[limits]\nhandshake_timeout = \"300ms\"\nhead_timeout = \"600ms\"\nidle_timeout = \"1h\"",
    );
    let mut silent = Wire::bare(gateway.address);
    let mut half = Wire::bare(gateway.address);
    half.send(&http2::PREFACE[..12]);
    assert!(silent.rest().is_empty() && half.rest().is_empty());
    wait_for_cause(&gateway, "handshake_timeout", 2);
    // The preface alone, the preface and settings, half a head, half a head after a request.
    let mut preface = Wire::bare(gateway.address);
    preface.send(http2::PREFACE);
    let mut settled = Wire::connect(gateway.address, &[]);
    let mut half_head = Wire::connect(gateway.address, &[]);
    let request = http2::get(1, &gateway.path("orders"), &[("authorization", &format!("Bearer {}", key.text))]);
    half_head.send(&request[..20]);
    let mut second = Wire::connect(gateway.address, &[]);
    second.send(&request);
    assert_eq!(second.wait_for(kind::DATA).unwrap().payload, b"live");
    second.send(&http2::head("GET", 3, "/", &[], http2::END_STREAM));
    for wire in [&mut preface, &mut settled, &mut half_head, &mut second] {
        wire.rest();
    }
    wait_for_cause(&gateway, "head_timeout", 4);
    is_served(&gateway, &key);
}

#[test]
fn an_idle_connection_is_told_and_closed_whatever_it_pings() {
    let (gateway, key) = start(&Upstream::named("live"), "[limits]\nidle_timeout = \"500ms\"");
    let mut client = Http2::connect(gateway.address);
    assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()], b"").status(), 200);
    assert!(client.ended().is_ok(), "a GOAWAY without an error");
    let mut wire = Wire::connect(gateway.address, &[]);
    wire.send(&http2::get(1, &gateway.path("orders"), &[("authorization", &format!("Bearer {}", key.text))]));
    wire.wait_for(kind::DATA).unwrap();
    let began = Instant::now();
    while wire.send(&http2::frame(kind::PING, 0, 0, &[7; 8])) && began.elapsed() < crate::harness::PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let goaway = wire.wait_for(kind::GOAWAY);
    assert!(goaway.is_none_or(|goaway| goaway.error() == 0));
    assert!(began.elapsed() < crate::harness::PATIENCE);
}

#[test]
fn a_body_that_stops_is_answered_408() {
    let (gateway, key) = start(&Upstream::named("live"), "[limits]\nbody_idle = \"300ms\"");
    let mut client = Http2::connect(gateway.address);
    let mut upload = client.begin("POST", &gateway.path("orders"), &[&key.bearer()], false);
    upload.send(b"abc", false);
    let answer = upload.answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (408, "request_timeout"));
    assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()], b"").status(), 200);
}

#[test]
fn a_stream_whose_window_stays_shut_is_reset_and_its_siblings_are_not() {
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("products") {
            // A stream with nothing to say yet.
            return Reply::Custom(Box::new(|stream| {
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
                _ = stream.read(&mut [0; 64]);
            }));
        }
        Reply::ok(&"x".repeat(100_000))
    });
    let (gateway, key) = start(&upstream, "[limits]\nwrite_stall = \"400ms\"\nbody_idle = \"1h\"");
    let bearer = format!("Bearer {}", key.text);
    let fields = [("authorization", bearer.as_str())];
    // SETTINGS_INITIAL_WINDOW_SIZE.
    let mut wire = Wire::connect(gateway.address, &[(4, 0)]);
    wire.send(&http2::get(1, &gateway.path("products"), &fields));
    wire.send(&http2::get(3, &gateway.path("orders"), &fields));
    let reset = wire.wait_for(kind::RST_STREAM).unwrap();
    assert_eq!((reset.stream, reset.error()), (3, u32::from(Reason::CANCEL)));
    wait_for_cause(&gateway, "write_stall", 1);
    // The other had nothing to send: it goes on, and so does the connection.
    wire.send(&http2::frame(kind::PING, 0, 0, &[7; 8]));
    std::thread::sleep(Duration::from_millis(900));
    wire.send(&http2::get(5, "/v1/nothing", &[]));
    let next = std::iter::from_fn(|| wire.next()).find(|frame| frame.stream != 0).unwrap();
    assert_eq!((next.stream, next.kind), (5, kind::HEADERS));
    record_for(&gateway, "client_aborted");
}

#[test]
fn requests_beyond_the_bound_of_a_connection_are_refused_and_may_be_repeated() {
    let upstream = Upstream::start(|_| Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))));
    let (gateway, key) = start(&upstream, "[limits]\nstreams_max = 4");
    let bearer = format!("Bearer {}", key.text);
    let mut wire = Wire::connect(gateway.address, &[]);
    for stream in [1, 3, 5, 7, 9] {
        wire.send(&http2::get(stream, &gateway.path("orders"), &[("authorization", &bearer)]));
    }
    let reset = wire.wait_for(kind::RST_STREAM).unwrap();
    assert_eq!((reset.stream, reset.error()), (9, u32::from(Reason::REFUSED_STREAM)));
    eventually("four are at the upstream", || (upstream.received().len() == 4).then_some(()));
}

#[test]
fn a_drain_lets_streams_finish_and_ends_connections() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let upstream = Upstream::start(move |received| {
        if received.target().ends_with("orders") {
            _ = held.lock().unwrap().recv();
        }
        Reply::ok("late")
    });
    let (mut gateway, key) = start(&upstream, "");
    let (mut busy, mut idle) = (Http2::connect(gateway.address), Http2::connect(gateway.address));
    assert_eq!(idle.request("GET", &gateway.path("products"), &[&key.bearer()], b"").status(), 200);
    let mut waiting = busy.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    eventually("it is at the upstream", || (upstream.received().len() == 2).then_some(()));
    gateway.signal("TERM");
    assert!(idle.ended().is_ok());
    release.send(()).unwrap();
    let answer = waiting.answer().unwrap();
    assert_eq!((answer.status(), answer.text().as_str()), (200, "late"));
    assert!(busy.ended().is_ok());
    assert_eq!(gateway.wait(), Some(0));
    let records = gateway.records();
    assert_eq!(records.iter().filter(|one| one["protocol"] == "HTTP/2.0" && one["status"] == 200).count(), 2);
}

#[test]
fn a_client_that_still_sends_when_a_drain_ends_its_connection_reads_all_and_an_orderly_end() {
    let (mut gateway, key) = start(&Upstream::named("live"), "");
    let mut wire = Wire::connect(gateway.address, &[]);
    let bearer = format!("Bearer {}", key.text);
    wire.send(&http2::get(1, &gateway.path("orders"), &[("authorization", &bearer)]));
    wire.wait_for(kind::DATA).unwrap();
    gateway.signal("TERM");
    let goaway = wire.wait_for(kind::GOAWAY).unwrap();
    assert_eq!(goaway.error(), 0);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(30));
        assert!(wire.send(&http2::frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])));
    }
    wire.rest();
    let mut stream = wire.stream();
    assert_eq!(std::io::Read::read(&mut stream, &mut [0]).unwrap(), 0);
    drop(wire);
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn what_hangs_is_cut_at_the_drains_bound() {
    let upstream = Upstream::start(|_| Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))));
    let (mut gateway, key) = start(&upstream, "[limits]\ndrain = \"300ms\"");
    let mut client = Http2::connect(gateway.address);
    let mut waiting = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    eventually("it is at the upstream", || (upstream.received().len() == 1).then_some(()));
    gateway.signal("TERM");
    assert!(waiting.answer().is_err());
    assert_eq!(gateway.wait(), Some(0));
    assert_eq!(record_for(&gateway, "drain_expired")["key_id"], key.id.as_str());
}

#[test]
fn at_the_connection_limit_the_longest_idle_makes_room() {
    let (gateway, key) = start(&Upstream::named("live"), "[limits]\nconnections_max = 4");
    let mut first = Http2::connect(gateway.address);
    assert_eq!(first.request("GET", &gateway.path("orders"), &[&key.bearer()], b"").status(), 200);
    let _others: Vec<_> = (0..8)
        .map(|_| {
            let mut client = Http2::connect(gateway.address);
            assert_eq!(client.request("GET", &gateway.path("orders"), &[&key.bearer()], b"").status(), 200);
            client
        })
        .collect();
    assert!(first.ended().is_ok(), "it was told");
    wait_for_cause(&gateway, "evicted", 4);
}
