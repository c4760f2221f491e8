//! Server-sent events: each passes at once and by itself, and silence alone ends them (contract, section 3).

use crate::harness::client::head;
use crate::harness::http2::{self, Wire, kind};
use crate::harness::{Gateway, Http2, Key, PATIENCE, Reply, Upstream, eventually};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

const BOTH: &str = "protocols = [\"h1\", \"h2\"]";

/// An upstream that sends what it is told to, on one stream; the key is allowed to listen.
fn start(toml: &str) -> (Gateway, Key, Sender<String>) {
    let (sender, told) = channel::<String>();
    let told = std::sync::Arc::new(Mutex::new(told));
    let upstream = Upstream::start(move |_| {
        let told = std::sync::Arc::clone(&told);
        Reply::Custom(Box::new(move |stream| {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
            while let Ok(event) = told.lock().unwrap().recv() {
                if stream.write_all(event.as_bytes()).is_err() {
                    return;
                }
            }
        }))
    });
    let gateway = Gateway::builder().live(&upstream).listen(BOTH).toml(toml).start();
    let key = gateway.key(&["orders:read"]);
    (gateway, key, sender)
}

fn listen(gateway: &Gateway, key: &Key) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(head("GET", &gateway.path("orders"), &[&key.bearer()]).as_bytes()).unwrap();
    stream
}

fn event(number: usize) -> String {
    format!("id: {number}\ndata: event {number}\n\n")
}

/// Reads until this has come.
fn wait_for(stream: &mut TcpStream, text: &str) {
    let (mut seen, mut piece) = (String::new(), [0; 1024]);
    while !seen.contains(text) {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "ended after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&piece[..read]));
    }
}

#[test]
fn each_event_passes_before_the_next_is_there() {
    let (gateway, key, sender) = start("");
    let mut stream = listen(&gateway, &key);
    for number in 0..50 {
        sender.send(event(number)).unwrap();
        wait_for(&mut stream, &event(number));
    }
    drop(stream);
    let (gateway, key, sender) = start("");
    let mut client = Http2::connect(gateway.address);
    let mut exchange = client.begin("GET", &gateway.path("orders"), &[&key.bearer()], true);
    assert_eq!(exchange.head().unwrap().headers["content-type"], "text/event-stream");
    for number in 0..50 {
        sender.send(event(number)).unwrap();
        let mut seen = Vec::new();
        while seen.len() < event(number).len() {
            seen.extend_from_slice(&exchange.data().unwrap().unwrap());
        }
        assert_eq!(seen, event(number).as_bytes());
    }
}

#[test]
fn silence_ends_them_and_length_does_not() {
    let (gateway, key, sender) =
        start("[limits]\nbody_idle = \"600ms\"\nidle_timeout = \"100ms\"\nhead_timeout = \"100ms\"");
    let mut stream = listen(&gateway, &key);
    let begun = Instant::now();
    for number in 0..10 {
        std::thread::sleep(Duration::from_millis(200));
        sender.send(event(number)).unwrap();
        wait_for(&mut stream, &event(number));
    }
    assert!(begun.elapsed() > Duration::from_millis(1200));
    let mut rest = Vec::new();
    _ = stream.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "what was broken off looks whole");
    let broken = |record: &serde_json::Value| record["reason"] == "upstream_aborted" && record["status"] == 200;
    eventually("the record", || gateway.records().iter().any(broken).then_some(()));
}

/// A client may tell of every event that it has taken it, to the stream and to the connection: that is no flood.
#[test]
fn thousands_that_are_acknowledged_one_by_one_pass_over_http2() {
    const EVENTS: usize = 3000;
    let (gateway, key, sender) = start("");
    let mut wire = Wire::connect(gateway.address, &[]);
    let bearer = format!("Bearer {}", key.text);
    wire.send(&http2::get(1, &gateway.path("orders"), &[("authorization", &bearer)]));
    let mut seen = 0;
    for number in 0..EVENTS {
        sender.send(event(number)).unwrap();
        let expected = seen + event(number).len();
        while seen < expected {
            let frame = wire.next().unwrap_or_else(|| panic!("the connection ended after {number} events"));
            assert!(frame.kind != kind::GOAWAY && frame.kind != kind::RST_STREAM, "{frame:?} after {number} events");
            if frame.kind == kind::DATA {
                seen += frame.payload.len();
                let taken = (frame.payload.len() as u32).to_be_bytes();
                for stream in [0, 1] {
                    wire.send(&http2::frame(kind::WINDOW_UPDATE, 0, stream, &taken));
                }
            }
        }
    }
}
