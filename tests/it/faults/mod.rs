//! Faults between the gateways and Redis: what is told stays true, nothing that ended is accepted, and what is known goes on
//! working for as long as it may (protocols I1, I2, I7, I9-I12).

mod network;
mod server;

use crate::harness::redis::RedisServer;
use crate::harness::{FaultProxy, Gateway, Key, Upstream, eventually};
use keygate::key::{Mode, Prefix, Token};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long after its last contact a gateway counts as fresh: L of the protocols.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// The `max_stale` of the tests that see it run out.
const MAX_STALE: Duration = Duration::from_secs(3);
/// What two clocks may differ by (d of the protocols), and what a busy machine may take between two lines of a test.
const SLACK: Duration = Duration::from_millis(500);

/// One gateway, with a network between it and its Redis.
struct Site {
    gateway: Gateway,
    proxy: FaultProxy,
    redis: RedisServer,
    upstream: Upstream,
}

/// What a request was answered.
#[derive(Debug)]
struct Answer {
    /// When it began to be sent.
    started: Instant,
    status: u16,
    /// Of a refusal.
    code: Option<String>,
}

// === impl Site ===

impl Site {
    /// With a `max_stale` that no test sees the end of.
    fn start() -> Self {
        Self::start_on(RedisServer::start(), "")
    }

    fn with_max_stale() -> Self {
        Self::start_on(RedisServer::start(), &format!("[cache]\nmax_stale = \"{}s\"", MAX_STALE.as_secs()))
    }

    /// `more` ends the `[store]` section of gateway.toml.
    fn start_on(redis: RedisServer, more: &str) -> Self {
        let (upstream, proxy) = (Upstream::named("erp"), FaultProxy::start(redis.address()));
        let store = format!("[store]\nurl = \"{}\"\n{more}", proxy.url());
        let gateway = Gateway::builder().live(&upstream).toml(&store).start();
        let config = std::fs::read_to_string(gateway.dir.path().join("gateway.toml")).unwrap();
        let straight = config.replace(&proxy.url(), &redis.url());
        std::fs::write(gateway.dir.path().join("straight.toml"), straight).unwrap();
        Self { gateway, proxy, redis, upstream }
    }

    fn key(&self) -> Key {
        self.gateway.key(&["orders:read"])
    }

    fn ask(&self, key: &Key) -> Answer {
        let started = Instant::now();
        let answer = self.gateway.client().request("GET", &self.gateway.path("orders"), &[&key.bearer()]);
        Answer { started, status: answer.status, code: (answer.status >= 400).then(|| answer.code()) }
    }

    fn status(&self, key: &Key) -> u16 {
        self.ask(key).status
    }

    /// What a command says that has the same way to Redis as the gateway.
    fn run(&self, args: &[&str]) -> (Option<i32>, String) {
        let output = self.gateway.run(args);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// What a command says that reaches Redis past all faults.
    fn run_straight(&self, args: &[&str]) -> (Option<i32>, String) {
        self.run(&[args, &["--config", "straight.toml"]].concat())
    }

    fn create(&self) -> (Option<i32>, String) {
        self.run(&["keys", "create", "--entity", "acme", "--name", "x", "--mode", "live", "--scope", "orders:read"])
    }

    fn revoke(&self, key: &Key) -> (Option<i32>, String) {
        self.run(&["keys", "revoke", &key.id, "--yes"])
    }

    /// Uses both keys at a steady pace while `act` runs; gives the answers of each, in order.
    fn while_using<T>(&self, keys: [&Key; 2], act: impl FnOnce() -> T) -> (T, [Vec<Answer>; 2]) {
        let done = AtomicBool::new(false);
        let use_key = |key| {
            let mut answers = Vec::new();
            while !done.load(Ordering::Relaxed) {
                answers.push(self.ask(key));
                std::thread::sleep(Duration::from_millis(40));
            }
            answers
        };
        std::thread::scope(|scope| {
            let uses = keys.map(|key| scope.spawn(|| use_key(key)));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            done.store(true, Ordering::Relaxed);
            let answers = uses.map(|using| using.join().unwrap());
            (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), answers)
        })
    }

    /// The network is well: known keys are accepted, unknown ones refused, and a change is in force when its command returns.
    fn works(&self, good: &Key) {
        eventually("a good key is accepted", || (self.status(good) == 200).then_some(()));
        let stranger = never_made();
        eventually("an unknown key is told bad", || (self.status(&stranger) == 401).then_some(()));
        let key = self.key();
        assert_eq!(self.status(&key), 200);
        let (code, words) = self.revoke(&key);
        assert!(code == Some(0) && words.starts_with("revoked on 1/1 gateways in "), "{code:?} {words}");
        assert_eq!(self.status(&key), 401);
    }
}

/// A well-formed key that nobody was given.
fn never_made() -> Key {
    let token = Token::generate(&Prefix::new("ark").unwrap(), Mode::Live, "acme").unwrap();
    Key { id: String::new(), text: token.text.expose().clone() }
}

/// Proves the same for each case. They mostly wait, so they do it at the same time.
fn at_once<T: Send, const N: usize>(cases: [T; N], prove: impl Fn(T) + Sync) {
    let prove = &prove;
    std::thread::scope(|scope| cases.into_iter().for_each(|case| _ = scope.spawn(move || prove(case))));
}

/// Only these statuses occur, and a 503 is told as what it is.
fn assert_only(statuses: [u16; 2], answers: &[Answer]) {
    assert!(!answers.is_empty());
    let is_told = |answer: &Answer| answer.status != 503 || answer.code.as_deref() == Some("key_store_unavailable");
    let wrong: Vec<_> =
        answers.iter().filter(|answer| !statuses.contains(&answer.status) || !is_told(answer)).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// No request that started after `end` was answered `status`.
fn assert_none_after(end: Instant, status: u16, answers: &[Answer]) {
    let late: Vec<_> = answers.iter().filter(|answer| answer.started > end && answer.status == status).collect();
    assert!(late.is_empty(), "{late:#?}");
}
