//! A store of many keys: the gateway is soon ready, small, and as fast as with few.

use super::process::{cpu_time, pss};
use super::seed_keys::seed;
use crate::harness::{Client, Gateway, Upstream};
use keygate::store::Settings;
use std::time::{Duration, Instant};

/// What is to hold for `keys` keys.
pub struct Bounds {
    pub keys: usize,
    /// From the start of the process to the first correct 200 and 401.
    pub ready_within: Option<Duration>,
    /// Memory for each key, beyond what a gateway without keys takes.
    pub bytes_per_key_max: u64,
    /// How much more CPU time a request may take than with 1,000 keys, as a factor.
    pub cpu_factor_max: Option<f64>,
}

/// A gateway with a store full of keys.
struct Full {
    gateway: Gateway,
    keys: Vec<String>,
    path: String,
    /// Memory before there were any keys.
    empty: u64,
    /// With the store alone, and with a snapshot.
    ready_after: Duration,
    warm_after: Duration,
}

/// The store that is compared with.
const FEW: usize = 1000;
const ROUNDS: usize = 15;
const REQUESTS_PER_ROUND: usize = 4000;

/// A key that has the right form and that nobody was given.
const STRANGER: &str = "Authorization: Bearer some-other-system-token";

pub fn prove(bounds: &Bounds) {
    let upstream = Upstream::named("erp");
    let many = start(&upstream, bounds.keys);
    let per_key = pss(many.gateway.pid()).saturating_sub(many.empty) / bounds.keys as u64;
    let (cold, warm) = (many.ready_after, many.warm_after);
    println!("{} keys: ready after {cold:?}, with a snapshot after {warm:?}, {per_key} bytes a key", bounds.keys);
    assert!(per_key <= bounds.bytes_per_key_max, "{per_key} bytes a key");
    if let Some(bound) = bounds.ready_within {
        assert!(cold <= bound && warm <= bound, "ready after {cold:?}, with a snapshot after {warm:?}");
    }
    use_keys(&many, 200);
    if let Some(bound) = bounds.cpu_factor_max {
        let factor = compare_cpu(&start(&upstream, FEW), &many, &upstream);
        println!("CPU time of a request, {} keys against {FEW}: {factor:.3}", bounds.keys);
        assert!(factor <= bound, "{factor}");
    }
}

/// Fills a store and starts a gateway on it.
fn start(upstream: &Upstream, count: usize) -> Full {
    let mut gateway = Gateway::builder().live(upstream).workers(1).start();
    let empty = pss(gateway.pid());
    gateway.signal("KILL");
    gateway.wait();
    let file = tempfile::NamedTempFile::new().unwrap();
    let store = Settings::Sqlite { path: gateway.dir.path().join("data/keygate.db") };
    let entity = seed(&store, count, file.path()).unwrap();
    let keys: Vec<String> = std::fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(keys.len(), count);
    let path = format!("/v1/entities/{entity}/orders");
    // From the store alone: what the gateway kept of the empty one goes.
    let data = std::fs::read_dir(gateway.dir.path().join("data")).unwrap().map(|entry| entry.unwrap().path());
    let kept = data.filter(|path| path.to_string_lossy().contains("keys.snapshot"));
    kept.for_each(|path| std::fs::remove_file(path).unwrap());
    let ready_after = restart(&mut gateway, &path, &keys[count - 1]);
    let warm_after = restart(&mut gateway, &path, &keys[count - 1]);
    Full { gateway, keys, path, empty, ready_after, warm_after }
}

/// Starts the gateway again; from the start to the first correct 200 and 401.
fn restart(gateway: &mut Gateway, path: &str, key: &str) -> Duration {
    let begun = Instant::now();
    gateway.restart();
    let answers = (ask(&mut gateway.client(), path, key), refuse(&mut gateway.client(), path));
    let after = begun.elapsed();
    assert_eq!(answers, (200, 401));
    after
}

fn ask(client: &mut Client, path: &str, key: &str) -> u16 {
    client.request("GET", path, &[&format!("Authorization: Bearer {key}")]).status
}

fn refuse(client: &mut Client, path: &str) -> u16 {
    client.request("GET", path, &[STRANGER]).status
}

/// Sends requests with keys drawn uniformly.
fn use_keys(full: &Full, requests: usize) {
    let mut client = full.gateway.client();
    for _ in 0..requests {
        let key = &full.keys[fastrand::usize(..full.keys.len())];
        assert_eq!(ask(&mut client, &full.path, key), 200);
    }
}

/// The median of the ratios of interleaved rounds.
fn compare_cpu(few: &Full, many: &Full, upstream: &Upstream) -> f64 {
    let mut ratios: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let ratio = cpu_of_round(many).as_secs_f64() / cpu_of_round(few).as_secs_f64();
            upstream.forget();
            ratio
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[ROUNDS / 2]
}

fn cpu_of_round(full: &Full) -> Duration {
    let before = cpu_time(full.gateway.pid());
    use_keys(full, REQUESTS_PER_ROUND);
    cpu_time(full.gateway.pid()) - before
}
