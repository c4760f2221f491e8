//! Redis dies under load: nobody with a known key notices until `max_stale`, and nobody is told anything untrue.

use crate::harness::client::head;
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Reply, Upstream, eventually};
use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MAX_STALE: Duration = Duration::from_secs(6);
/// How long after the last contact an unknown key may still be refused: L of protocols I1, and the time between contacts.
const FRESH_FOR: Duration = Duration::from_millis(2500);
/// How long the rows of a server that has just started prove nothing: 2 L of the protocols.
const SETTLE: Duration = Duration::from_secs(4);

/// How hard it is to be.
pub struct Size {
    /// Requests a second with known keys.
    pub rate: u32,
    /// How soon the first 503 must come after `max_stale`, and normal service after Redis is back; none to measure only.
    pub within: Option<(Duration, Duration)>,
}

/// What a request was answered.
struct Answer {
    sent: Instant,
    status: u16,
    code: String,
}

/// A gateway, and keys for it.
struct Scene {
    redis: RedisServer,
    first: Gateway,
    second: Gateway,
    upstream: Upstream,
    known: Key,
    unknown: Key,
}

pub fn prove(size: &Size) {
    let mut scene = Scene::start();
    let stop = AtomicBool::new(false);
    let Scene { redis, first, second, upstream, known, unknown } = &mut scene;
    let first: &Gateway = first;
    std::thread::scope(|scope| {
        let good = scope.spawn(|| use_key(first, known, size.rate, &stop));
        let bad = scope.spawn(|| use_key(first, unknown, 50, &stop));
        std::thread::sleep(Duration::from_millis(300));
        let mut waiting = first.client();
        waiting.send(head("GET", &first.path("orders/wait"), &[&known.bearer()]));
        let reached = || upstream.received().iter().any(|one| one.target().ends_with("wait"));
        eventually("the request is at the upstream", || reached().then_some(()));
        let latest = first.key(&["orders:read"]);

        let killed = Instant::now();
        redis.kill();
        assert_eq!(status(first, &latest), 200, "a key that was just made");
        second.restart();
        let answers = [known, &latest, unknown].map(|key| status(second, key));
        assert_eq!(answers, [200, 200, 503], "a gateway that started without its store");

        eventually("the right to serve runs out", || (status(first, known) == 503).then_some(()));
        let after = killed.elapsed();
        assert_eq!(waiting.read("GET").status, 503, "what was in flight");
        eventually("the other's too", || (status(second, known) == 503).then_some(()));
        assert!(after + Duration::from_secs(1) > MAX_STALE, "only {after:?} after the last contact");

        let restarted = Instant::now();
        redis.restart();
        let serves = |gateway: &Gateway| [known, &latest].map(|key| status(gateway, key)) == [200, 200];
        let is_normal = |gateway: &Gateway| serves(gateway) && status(gateway, unknown) == 401;
        eventually("service is normal", || (is_normal(first) && serves(second)).then_some(()));
        let normal_after = restarted.elapsed();
        // It does not know what was changed while it was down: until the store has settled somebody may give that back, and
        // a key that it does not know is none that it may call bad (protocols I7, I11, Settle).
        eventually("the other knows what is no key", || is_normal(second).then_some(()));
        let settled_after = restarted.elapsed();
        stop.store(true, Ordering::Relaxed);
        println!(
            "Redis killed at {} requests a second: 503 after {after:?} with max_stale {MAX_STALE:?}; normal {normal_after:?} after its return, strangers refused by who was restarted meanwhile after {settled_after:?}",
            size.rate
        );
        if let Some((first_refusal, recovery)) = size.within {
            assert!(after <= MAX_STALE + first_refusal, "503 came {after:?} after the last contact");
            assert!(normal_after <= recovery, "normal {normal_after:?} after the store's return");
            assert!(settled_after <= recovery + SETTLE, "no stranger was refused for {settled_after:?}");
        }
        check_known(&good.join().unwrap(), killed, restarted);
        check_unknown(&bad.join().unwrap(), killed, restarted);
    });
    assert_eq!(
        upstream.received().iter().filter(|one| one.header("x-key-id").as_ref() == Some(&unknown.id)).count(),
        0
    );
}

/// A known key is answered 200 until the right to serve ends, then 503, and never told to be bad.
fn check_known(answers: &[Answer], killed: Instant, restarted: Instant) {
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 503)), "a good key was refused");
    let early = Duration::from_secs(1);
    let served = answers.iter().filter(|answer| answer.sent + early < killed + MAX_STALE);
    assert!(served.clone().all(|answer| answer.status == 200), "a known key was not served in the outage");
    let outage = answers.iter().filter(|answer| answer.sent > killed && answer.sent < restarted);
    println!("{} requests with a known key in the outage, {} served before it ended", outage.count(), served.count());
    let refused = answers.iter().filter(|answer| answer.status == 503);
    assert!(refused.clone().all(|answer| answer.code == "key_store_unavailable"));
}

/// An unknown key is told bad while that is known, then an outage, and never the reverse.
fn check_unknown(answers: &[Answer], killed: Instant, restarted: Instant) {
    assert!(answers.iter().all(|answer| matches!(answer.status, 401 | 503)), "a key that nobody made was accepted");
    let late = answers.iter().filter(|answer| answer.sent > killed + FRESH_FOR && answer.sent < restarted);
    assert!(
        late.clone().count() > 10 && late.clone().all(|answer| answer.status == 503),
        "an outage was told as a bad key"
    );
    let before = answers.iter().filter(|answer| answer.sent < killed);
    assert!(before.clone().all(|answer| answer.status == 401), "a bad key was told as an outage");
}

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}

/// Sends requests at a rate until told to stop.
fn use_key(gateway: &Gateway, key: &Key, rate: u32, stop: &AtomicBool) -> Vec<Answer> {
    let (mut client, bearer, path) = (gateway.client(), key.bearer(), gateway.path("orders"));
    let (mut answers, mut due, pace) = (Vec::new(), Instant::now(), Duration::from_secs(1) / rate);
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += pace;
        let sent = Instant::now();
        let answer = client.request("GET", &path, &[&bearer]);
        let code = if answer.status == 200 { String::new() } else { answer.code() };
        answers.push(Answer { sent, status: answer.status, code });
    }
    answers
}

// === impl Scene ===

impl Scene {
    fn start() -> Self {
        let upstream = Upstream::start(|received| match received.target().ends_with("wait") {
            true => Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))),
            false => Reply::ok("good"),
        });
        let redis = RedisServer::start();
        let toml = format!("[store]\nurl = \"{}\"\n[cache]\nmax_stale = \"{}s\"", redis.url(), MAX_STALE.as_secs());
        let first = Gateway::builder().live(&upstream).toml(&toml).start();
        let second = Gateway::builder().live(&upstream).toml(&toml).joining("edge-2").start();
        let elsewhere = Gateway::before(&upstream);
        let (known, unknown) = (first.key(&["orders:read"]), elsewhere.key(&["orders:read"]));
        Self { redis, first, second, upstream, known, unknown }
    }
}
