//! Once `keys revoke` has returned, the key stops working within a bound, however busy it is.

use crate::harness::upstream::Received;
use crate::harness::{Gateway, Key, Reply, Upstream, eventually};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connections that share the load.
const CONNECTIONS: u32 = 4;
/// Time between two requests of one connection: 2,000 a second together.
const PACE: Duration = Duration::from_micros(500 * CONNECTIONS as u64);
/// How long the key is used before it is revoked.
const BEFORE: Duration = Duration::from_millis(200);

/// A request at the upstream.
struct Arrival {
    key_id: String,
    /// When the client began to send it.
    started: Instant,
    at: Instant,
}

/// What one revocation showed.
struct Outcome {
    /// From the command's return to the last arrival at the upstream; zero when that was earlier.
    last_arrival: Duration,
    /// From the command's return to the start of the last request that arrived; zero when that was earlier.
    last_start: Duration,
}

/// Revokes `times` keys under load. No request that started later than `bound` after the command returned may arrive.
pub fn prove(times: usize, bound: Duration) {
    let (origin, arrivals) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let upstream = record_arrivals(origin, Arc::clone(&arrivals));
    let gateway = Gateway::before(&upstream);
    let mut last_arrivals = Vec::new();
    for _ in 0..times {
        let outcome = revoke_under_load(&gateway, origin, &arrivals, bound);
        assert!(outcome.last_start <= bound, "accepted {:?} after the command returned", outcome.last_start);
        last_arrivals.push(outcome.last_arrival);
        upstream.forget();
    }
    last_arrivals.sort();
    let quantile = |share: f64| last_arrivals[((times - 1) as f64 * share).round() as usize];
    println!(
        "revoke returned -> last arrival at the upstream, {times} times: p50 {:?}, p99 {:?}, max {:?}",
        quantile(0.5),
        quantile(0.99),
        quantile(1.0)
    );
}

fn record_arrivals(origin: Instant, arrivals: Arc<Mutex<Vec<Arrival>>>) -> Upstream {
    Upstream::start(move |received: &Received| {
        if let Some((_, micros)) = received.target().split_once("?started=") {
            let started = origin + Duration::from_micros(micros.parse().unwrap());
            let key_id = received.header("x-key-id").unwrap();
            arrivals.lock().unwrap().push(Arrival { key_id, started, at: received.at });
        }
        Reply::ok("erp")
    })
}

fn revoke_under_load(gateway: &Gateway, origin: Instant, arrivals: &Mutex<Vec<Arrival>>, bound: Duration) -> Outcome {
    let key = gateway.key(&["orders:read"]);
    let stop = AtomicBool::new(false);
    let returned = std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| use_key(gateway, &key, origin, &stop));
        }
        std::thread::sleep(BEFORE);
        eventually("the key is in use", || (arrivals.lock().unwrap().len() > 50).then_some(()));
        let output = gateway.run(&["keys", "revoke", &key.id, "--yes"]);
        let returned = Instant::now();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::thread::sleep(bound + Duration::from_millis(100));
        stop.store(true, Ordering::Relaxed);
        returned
    });
    let arrivals = std::mem::take(&mut *arrivals.lock().unwrap());
    let of_key = || arrivals.iter().filter(|arrival| arrival.key_id == key.id);
    let since_return = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.saturating_duration_since(returned));
    Outcome {
        last_arrival: since_return(of_key().map(|arrival| arrival.at).max()),
        last_start: since_return(of_key().map(|arrival| arrival.started).max()),
    }
}

/// Sends one request every [`PACE`], late ones at once, until told to stop.
fn use_key(gateway: &Gateway, key: &Key, origin: Instant, stop: &AtomicBool) {
    let (mut client, bearer, path) = (gateway.client(), key.bearer(), gateway.path("orders"));
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += PACE;
        let target = format!("{path}?started={}", origin.elapsed().as_micros());
        let status = client.request("GET", &target, &[&bearer]).status;
        assert!(matches!(status, 200 | 401), "{status}");
    }
}
