//! Everything fails at random times, while keys are made, used and ended; an upstream sees whether a key that had ended was
//! accepted all the same (protocols I1, I2, I7, I11, I12).

mod clients;
mod fates;
mod ledger;
mod managers;

use crate::harness::redis::RedisServer;
use crate::harness::{Canary, FaultProxy, Gateway, Upstream, eventually};
use ledger::{Ledger, State, never_made};
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is to be run.
pub struct Run {
    /// The same seed draws the same faults, though not at the same moments of the requests.
    pub seed: u64,
    pub length: Duration,
    /// Between two requests of a client.
    pub pace: Duration,
}

const IDS: [&str; GATEWAYS] = ["edge-1", "edge-2", "edge-3"];
const GATEWAYS: usize = 3;
const CLIENTS_PER_GATEWAY: u64 = 2;
const MANAGERS: u64 = 4;
/// Short, so that the right to serve runs out now and then.
const MAX_STALE: Duration = Duration::from_secs(6);

/// The gateways, each behind a network of its own, and all that is done to them.
struct Site {
    seed: u64,
    ledger: Ledger,
    gateways: [Mutex<Gateway>; GATEWAYS],
    /// Where each gateway listens: elsewhere after every start.
    addresses: [Mutex<SocketAddr>; GATEWAYS],
    proxies: [FaultProxy; GATEWAYS],
    redis: Mutex<RedisServer>,
    /// Of every gateway, to be told of each key.
    canaries: [Canary; GATEWAYS],
    /// A configuration that reaches Redis past all faults of the network.
    straight: tempfile::TempDir,
    stop: AtomicBool,
}

/// Runs it; fails with the seed, the faults and what went wrong.
pub fn prove(run: &Run) {
    println!("chaos: seed {}, {:?}", run.seed, run.length);
    let site = Site::start(run.seed);
    std::thread::scope(|scope| {
        for gateway in 0..GATEWAYS {
            let site = &site;
            scope.spawn(move || site.guard(|| fates::of_gateway(site, gateway)));
            scope.spawn(move || site.guard(|| clients::hold_streams(site, gateway)));
            for client in 0..CLIENTS_PER_GATEWAY {
                scope.spawn(move || site.guard(|| clients::use_keys(site, gateway, client, run.pace)));
            }
        }
        scope.spawn(|| site.guard(|| fates::of_redis(&site)));
        (0..MANAGERS).for_each(|manager| {
            let site = &site;
            scope.spawn(move || site.guard(|| managers::change_keys(site, manager)));
        });
        site.watch(run.length);
    });
    site.ledger.judge();
    site.report();
    site.settle();
}

// === impl Site ===

impl Site {
    fn start(seed: u64) -> Self {
        let ledger = Ledger::new();
        let (upstream, redis) = (ledger.upstream(), RedisServer::start());
        let proxies = IDS.map(|_| FaultProxy::start(redis.address()));
        let mut made = IDS.iter().zip(&proxies).map(|(id, proxy)| start_gateway(id, proxy, &upstream));
        let gateways: [Gateway; GATEWAYS] = std::array::from_fn(|_| made.next().unwrap());
        let config = std::fs::read_to_string(gateways[0].dir.path().join("gateway.toml")).unwrap();
        let straight = tempfile::tempdir().unwrap();
        std::fs::write(straight.path().join("gateway.toml"), config.replace(&proxies[0].url(), &redis.url())).unwrap();
        let addresses = std::array::from_fn(|index| Mutex::new(gateways[index].address));
        let canaries = std::array::from_fn(|index| gateways[index].canary.clone());
        let (gateways, redis, stop) = (gateways.map(Mutex::new), Mutex::new(redis), AtomicBool::default());
        Self { seed, ledger, gateways, addresses, proxies, redis, canaries, straight, stop }
    }

    /// Draws the same for the same seed.
    fn random(&self, who: u64) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.seed.wrapping_mul(1000).wrapping_add(who))
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Rests, not longer than the run.
    fn rest(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.is_over() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20).min(end.saturating_duration_since(Instant::now())));
        }
    }

    /// Ends the run when a part of it panics, so that the others do not wait.
    fn guard(&self, part: impl FnOnce()) {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(part));
        if let Err(panic) = result {
            self.stop.store(true, Ordering::Relaxed);
            std::panic::resume_unwind(panic);
        }
    }

    /// Waits for the end, or for the first violation.
    fn watch(&self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end && !self.is_over() && !self.ledger.is_violated() {
            self.ledger.judge();
            std::thread::sleep(Duration::from_millis(200));
        }
        self.stop.store(true, Ordering::Relaxed);
    }

    /// All faults are over: every gateway says the truth of every key again.
    fn settle(&self) {
        for (index, gateway) in self.gateways.iter().enumerate() {
            let gateway = gateway.lock().unwrap();
            let is = |text: &str, status: u16| {
                eventually(&format!("{} answers {status}", IDS[index]), || {
                    let bearer = format!("Authorization: Bearer {text}");
                    let target = gateway.path("orders?at=the-end");
                    (gateway.client().request("GET", &target, &[&bearer]).status == status).then_some(())
                });
            };
            for entry in self.ledger.entries() {
                match entry.state {
                    State::Good => is(&entry.key.text, 200),
                    State::Ended => is(&entry.key.text, 401),
                    State::Ending => {}
                }
            }
            is(&never_made(), 401);
            assert!(!gateway.log_text().contains("panicked"), "{}", gateway.log_text());
        }
    }

    fn report(&self) {
        println!("{}", self.ledger.summary());
        let violations = self.ledger.violations();
        assert!(
            violations.is_empty(),
            "seed {}\n{}\n\nwhat was done:\n{}",
            self.seed,
            violations.join("\n"),
            self.ledger.history()
        );
    }
}

fn start_gateway(id: &'static str, proxy: &FaultProxy, upstream: &Upstream) -> Gateway {
    let store = format!("[store]\nurl = \"{}\"\n[cache]\nmax_stale = \"{}s\"", proxy.url(), MAX_STALE.as_secs());
    let builder = Gateway::builder().live(upstream).toml(&store);
    if id == IDS[0] { builder.start() } else { builder.joining(id).start() }
}
