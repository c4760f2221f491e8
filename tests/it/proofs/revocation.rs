//! Once `keys revoke` has returned, the key does not work on any gateway any more, however busy it is.

use crate::harness::redis::RedisServer;
use crate::harness::upstream::Received;
use crate::harness::{Gateway, Key, Reply, Upstream, eventually};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Connections that share the load of one gateway.
const CONNECTIONS: u32 = 4;
/// How long the key is used before it is revoked, and after.
const AROUND: Duration = Duration::from_millis(100);

/// What is to be proved on.
pub struct Fleet {
    pub times: usize,
    /// Requests a second at each gateway.
    pub rate: u32,
    /// On Redis; on the embedded store otherwise, which one gateway has for itself.
    pub gateways_on_redis: Option<usize>,
}

/// A request at the upstream.
struct Arrival {
    key_id: String,
    /// When the client began to send it.
    started: Instant,
    at: Instant,
}

/// What one revocation showed.
struct Outcome {
    /// From the command's return to the last arrival at the upstream of a request that was under way; zero when that was
    /// earlier.
    last_arrival: Duration,
    /// From the change to its last confirmation, as the command says.
    confirmed_after: Duration,
}

/// Revokes keys under load. No request that starts after the command has returned may reach the upstream.
pub fn prove(fleet: &Fleet) {
    let (origin, arrivals) = (Instant::now(), Arc::new(Mutex::new(Vec::new())));
    let upstream = record_arrivals(origin, Arc::clone(&arrivals));
    let redis = fleet.gateways_on_redis.map(|_| RedisServer::start());
    let gateways = start(fleet, redis.as_ref(), &upstream);
    let (mut last_arrivals, mut confirmed) = (Vec::new(), Vec::new());
    for _ in 0..fleet.times {
        let outcome = revoke_under_load(&gateways, fleet.rate, origin, &arrivals);
        last_arrivals.push(outcome.last_arrival);
        confirmed.push(outcome.confirmed_after);
        upstream.forget();
    }
    println!("{} gateways, {} requests a second each, {} revocations", gateways.len(), fleet.rate, fleet.times);
    println!("change -> last confirmation: {}", quantiles(confirmed));
    println!("revoke returned -> last arrival at the upstream: {}", quantiles(last_arrivals));
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let quantile = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    format!("p50 {:?}, p99 {:?}, max {:?}", quantile(0.5), quantile(0.99), quantile(1.0))
}

fn start(fleet: &Fleet, redis: Option<&RedisServer>, upstream: &Upstream) -> Vec<Gateway> {
    const IDS: [&str; 4] = ["edge-1", "edge-2", "edge-3", "edge-4"];
    let Some(redis) = redis else { return vec![Gateway::before(upstream)] };
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let ids = IDS.iter().take(fleet.gateways_on_redis.unwrap_or(1)).enumerate();
    ids.map(|(index, id)| {
        let builder = Gateway::builder().live(upstream).toml(&store);
        if index == 0 { builder.start() } else { builder.joining(id).start() }
    })
    .collect()
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

fn revoke_under_load(gateways: &[Gateway], rate: u32, origin: Instant, arrivals: &Mutex<Vec<Arrival>>) -> Outcome {
    let key = gateways[0].key(&["orders:read"]);
    let stop = AtomicBool::new(false);
    let pace = Duration::from_secs(1) * CONNECTIONS / rate;
    let (returned, words) = std::thread::scope(|scope| {
        for gateway in gateways {
            (0..CONNECTIONS).for_each(|_| _ = scope.spawn(|| use_key(gateway, &key, pace, origin, &stop)));
        }
        std::thread::sleep(AROUND);
        eventually("the key is in use", || (arrivals.lock().unwrap().len() > 10).then_some(()));
        let output = gateways[0].run(&["keys", "revoke", &key.id, "--yes"]);
        let returned = Instant::now();
        std::thread::sleep(AROUND);
        stop.store(true, Ordering::Relaxed);
        (returned, String::from_utf8(output.stderr).unwrap())
    });
    let count = gateways.len();
    let millis = words.strip_prefix(&format!("revoked on {count}/{count} gateways in "));
    let millis = millis.and_then(|rest| rest.strip_suffix(" ms\n")).unwrap_or_else(|| panic!("{words}"));
    let arrivals = std::mem::take(&mut *arrivals.lock().unwrap());
    let of_key = || arrivals.iter().filter(|arrival| arrival.key_id == key.id);
    let late = of_key().filter(|arrival| arrival.started > returned).count();
    assert_eq!(late, 0, "requests that started after the command had returned were accepted");
    let last = of_key().map(|arrival| arrival.at).max();
    Outcome {
        last_arrival: last.map_or(Duration::ZERO, |at| at.saturating_duration_since(returned)),
        confirmed_after: Duration::from_secs_f64(millis.parse::<f64>().unwrap() / 1000.0),
    }
}

/// Sends one request every `pace`, late ones at once, until told to stop.
fn use_key(gateway: &Gateway, key: &Key, pace: Duration, origin: Instant, stop: &AtomicBool) {
    let (mut client, bearer, path) = (gateway.client(), key.bearer(), gateway.path("orders"));
    let mut due = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += pace;
        let target = format!("{path}?started={}", origin.elapsed().as_micros());
        let status = client.request("GET", &target, &[&bearer]).status;
        assert!(matches!(status, 200 | 401), "{status}");
    }
}
