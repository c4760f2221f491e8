//! A Unix socket as a listener: found where it is said, shared by all workers, replaced when dead, left alone when alive.

use crate::harness::client::head;
use crate::harness::{Gateway, Key, PATIENCE, Reply, Upstream, eventually};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

const LISTEN: &str = "[[listen]]\naddress = \"unix:run/keygate.sock\"\n";

fn start(upstream: &Upstream, more: &str) -> (Gateway, Key) {
    let gateway = Gateway::builder().live(upstream).toml(LISTEN).toml(more).start();
    let key = gateway.key(&["orders:read"]);
    (gateway, key)
}

fn path(gateway: &Gateway) -> PathBuf {
    gateway.dir.path().join("run/keygate.sock")
}

fn connect(gateway: &Gateway) -> UnixStream {
    let stream = UnixStream::connect(path(gateway)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Everything that comes back for one request.
fn ask(gateway: &Gateway, lines: &[&str]) -> String {
    let mut stream = connect(gateway);
    let lines: Vec<&str> = lines.iter().copied().chain(["Connection: close"]).collect();
    stream.write_all(head("GET", &gateway.path("orders"), &lines).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn its_peers_speak_from_127_0_0_1() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "[client_ip]\ntrusted_proxies = [\"127.0.0.1\"]");
    let here = gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--allow", "127.0.0.1"]);
    assert!(ask(&gateway, &[&here.bearer()]).starts_with("HTTP/1.1 200"));
    assert_eq!(upstream.only().header("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    let behind = ask(&gateway, &[&here.bearer(), "X-Forwarded-For: 192.0.2.7"]);
    assert!(behind.contains("ip_not_allowlisted"), "{behind}");
    let id = behind.lines().find_map(|line| line.strip_prefix("x-request-id: ")).unwrap();
    let record = gateway.record_of(id);
    assert_eq!((record["client_ip"].as_str(), record["peer_ip"].as_str()), (Some("192.0.2.7"), Some("127.0.0.1")));
    assert!(ask(&gateway, &[&key.bearer()]).starts_with("HTTP/1.1 200"));
    assert_eq!(std::fs::metadata(path(&gateway)).unwrap().permissions().mode() & 0o7777, 0o660);
    assert!(gateway.listening().iter().any(|address| address.ends_with("run/keygate.sock")));
    let told = String::from_utf8(gateway.run(&["check"]).stdout).unwrap();
    assert!(told.contains("unix:run/keygate.sock"), "{told}");
}

/// Time on a CPU of each worker so far, by its name.
fn worker_times(gateway: &Gateway) -> HashMap<String, u64> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap().flatten();
    let times = threads.filter_map(|thread| {
        let name = std::fs::read_to_string(thread.path().join("comm")).ok()?.trim().to_owned();
        let times = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        name.starts_with("worker-").then(|| (name, times.split(' ').next().unwrap().parse().unwrap()))
    });
    times.collect()
}

#[test]
fn all_workers_share_it() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let mut streams: Vec<UnixStream> = (0..64).map(|_| connect(&gateway)).collect();
    let before = worker_times(&gateway);
    let request = head("GET", &gateway.path("orders"), &[&key.bearer()]);
    for _ in 0..20 {
        for stream in &mut streams {
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = [0; 4096];
            let read = stream.read(&mut answer).unwrap();
            assert!(answer[..read].starts_with(b"HTTP/1.1 200"));
        }
    }
    let spent: Vec<u64> = worker_times(&gateway).iter().map(|(name, time)| time - before[name]).collect();
    assert_eq!(spent.len(), 2);
    // Their connections may differ by eight, or by a quarter.
    assert!(spent[0] < 4 * spent[1] && spent[1] < 4 * spent[0], "{spent:?}");
}

#[test]
fn a_dead_one_is_replaced_a_living_one_is_not_and_a_stop_removes_it() {
    let upstream = Upstream::named("live");
    let (mut gateway, key) = start(&upstream, "");
    let second = gateway.run(&["serve"]);
    let told = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{told}");
    assert!(told.contains("cannot listen on unix:run/keygate.sock: another process listens there"), "{told}");
    assert!(ask(&gateway, &[&key.bearer()]).starts_with("HTTP/1.1 200"));
    gateway.signal("KILL");
    gateway.wait();
    assert!(path(&gateway).exists());
    gateway.restart();
    assert!(ask(&gateway, &[&key.bearer()]).starts_with("HTTP/1.1 200"));
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    assert!(!path(&gateway).exists());
}

#[test]
fn a_stream_is_cut_when_its_key_is_revoked() {
    let upstream = Upstream::start(|_| Reply::events_without_end());
    let (gateway, key) = start(&upstream, "");
    let mut stream = connect(&gateway);
    stream.write_all(head("GET", &gateway.path("orders"), &[&key.bearer()]).as_bytes()).unwrap();
    let mut begin = [0; 512];
    assert!(stream.read(&mut begin).unwrap() > 0);
    assert!(gateway.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    let mut rest = Vec::new();
    _ = stream.read_to_end(&mut rest);
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a response that was cut looks whole");
    eventually("the cut is recorded", || {
        gateway.records().iter().any(|record| record["reason"] == "cut_by_revocation").then_some(())
    });
}
