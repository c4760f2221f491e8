//! Faults between the gateways and Redis: what is told stays true, nothing that ended is accepted, and what is known goes on
//! working for as long as it may (protocols I1, I2, I7, I9-I12).

use crate::harness::redis::RedisServer;
use crate::harness::{FaultProxy, Gateway, Key, Network, Upstream, Way, eventually};
use crate::proofs::process::{pss, watch_peak};
use keygate::clock::Timestamp;
use keygate::key::{Mode, Prefix, Token};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// How long after its last contact a gateway counts as fresh: L of the protocols.
const FRESH_FOR: Duration = Duration::from_secs(2);
/// The `max_stale` of the tests that see it run out.
const MAX_STALE: Duration = Duration::from_secs(3);
/// What two clocks may differ by (d of the protocols), and what a busy machine may take between two lines of a test.
const SLACK: Duration = Duration::from_millis(500);
/// How much more memory a reply may take.
const GROWTH_MAX: u64 = 32 * 1024 * 1024;
const LATENCY: Duration = Duration::from_millis(200);

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

/// The right to serve ends `max_stale` after the last contact, known keys work until then, and no good key is ever told bad.
fn right_to_serve_ends_in(network: Network) {
    let site = Site::with_max_stale();
    let (good, stranger) = (site.key(), never_made());
    assert_eq!((site.status(&good), site.status(&stranger)), (200, 401));
    site.proxy.set(network);
    let begun = Instant::now();
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        eventually("the right to serve ends", || (site.status(&good) == 503).then_some(()));
        std::thread::sleep(2 * SLACK);
    });
    assert_only([200, 503], &known);
    assert!(known.iter().any(|answer| answer.status == 200 && answer.started > begun + MAX_STALE / 3));
    assert_none_after(begun + MAX_STALE + SLACK, 200, &known);
    assert_only([401, 503], &unknown);
    assert_none_after(begun + FRESH_FOR + SLACK, 401, &unknown);
    let (code, words) = site.run(&["keys", "list"]);
    assert!(code == Some(69) && words.contains("the key store is not available"), "{code:?} {words}");
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn i1_the_right_to_serve_ends_when_redis_is_not_heard() {
    let ways = [(Way::Lost, Way::Lost), (Way::Lost, Way::Whole), (Way::Whole, Way::Lost)];
    at_once(ways, |(requests, replies)| right_to_serve_ends_in(Network { requests, replies, ..Network::default() }));
}

/// Known keys work, revoked ones do not, nothing dies, and all is well as soon as the network is.
fn is_not_believed(network: &Network) {
    let site = Site::start();
    let (good, revoked, stranger) = (site.key(), site.key(), never_made());
    assert_eq!((site.status(&revoked), site.revoke(&revoked).0), (200, Some(0)));
    site.upstream.forget();
    site.proxy.set(network.clone());
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let commands: [&[&str]; 3] = [&["keys", "list"], &["fleet", "list"], &["keys", "show", &good.id]];
            for (code, words) in commands.map(|args| site.run(args)) {
                assert!(code.is_some_and(|code| code != 101) && !words.contains("panicked"), "{code:?} {words}");
            }
            assert_eq!(site.status(&revoked), 401);
            site.proxy.cut();
        }
    });
    assert_only([200, 200], &known);
    assert_only([401, 503], &unknown);
    site.proxy.heal();
    site.works(&good);
    assert!(!site.gateway.log_text().contains("panicked"), "{}", site.gateway.log_text());
    let accepted = site.upstream.received();
    assert!(accepted.iter().all(|received| received.header("x-key-id").as_ref() != Some(&revoked.id)));
}

#[test]
fn i7_what_is_no_answer_is_not_believed() {
    at_once([Way::Garbage, Way::Truncated, Way::Twice], |replies| {
        is_not_believed(&Network { replies, ..Network::default() });
    });
}

#[test]
fn i7_a_request_that_comes_twice_is_acted_on_once() {
    is_not_believed(&Network { requests: Way::Twice, ..Network::default() });
}

/// A reply that begins with `first` and repeats `again` for ever is given up, and costs little meanwhile.
fn is_given_up((first, again): (&'static str, &'static str)) {
    let site = Site::start();
    let good = site.key();
    let before = pss(site.gateway.pid());
    let (peak, ()) = watch_peak(site.gateway.pid(), || {
        site.proxy.replies(Way::Endless(first, again));
        let (code, words) = site.create();
        assert!(code == Some(69) && words.contains("the key store is not available: redis: "), "{code:?} {words}");
        eventually("the gateway has noticed", || site.gateway.log_text().contains("cannot be asked").then_some(()));
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(site.status(&good), 200);
    });
    let growth = peak.saturating_sub(before);
    assert!(growth < GROWTH_MAX, "the gateway grew by {growth} bytes at a reply like {first:?}{again:?}");
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn a_reply_without_end_is_given_up_and_takes_no_memory() {
    at_once([("$1000000000\r\n", "x"), ("*1000000000\r\n", ":1\r\n"), ("+", "x"), ("", "*1\r\n")], is_given_up);
}

#[test]
fn a_redis_that_cannot_be_connected_to_is_told_and_known_keys_work() {
    let site = Site::start();
    let good = site.key();
    site.proxy.set(Network { refuses: true, ..Network::default() });
    site.proxy.cut();
    eventually("the loss is noticed", || site.gateway.log_text().contains("cannot be asked").then_some(()));
    let (code, words) = site.create();
    assert!(code == Some(69) && words.contains("the key store is not available: redis: "), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn i12_over_a_slow_network_a_change_is_in_force_when_its_command_returns() {
    let site = Site::start();
    let good = site.key();
    site.proxy.set(Network { latency: LATENCY, ..Network::default() });
    let key = site.key();
    assert_eq!(site.status(&key), 200);
    let (code, words) = site.run(&["keys", "revoke", &key.id, "--yes", "--timeout", "15s"]);
    assert_eq!(site.status(&key), 401);
    assert!(code == Some(0) && words.starts_with("revoked on 1/1 gateways in "), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
}

/// The moment that a command named as the end of what `edge-1` may still honour.
fn named_end(words: &str) -> Instant {
    let rest = words.strip_prefix("revoked on 0/1 gateways; edge-1 (").unwrap_or_else(|| panic!("{words}"));
    let until = rest.split_once("unconfirmed, may act as before until ").unwrap().1;
    let micros = Timestamp::parse(until.lines().next().unwrap()).unwrap().as_micros();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Instant::now() + Duration::from_micros(micros.try_into().unwrap()).saturating_sub(now)
}

#[test]
fn i12_who_does_not_hear_of_a_revocation_honours_the_key_until_the_named_time_at_most() {
    let site = Site::with_max_stale();
    let (good, revoked) = (site.key(), site.key());
    site.proxy.replies(Way::Lost);
    let (code, words) = site.run_straight(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "1s"]);
    assert_eq!(code, Some(75), "{words}");
    let end = named_end(&words);
    let ((), [ended, kept]) = site.while_using([&revoked, &good], || {
        eventually("the named time is over", || (Instant::now() > end + 4 * SLACK).then_some(()));
        assert_eq!((site.status(&revoked), site.status(&good)), (503, 503));
        site.upstream.forget();
        site.proxy.heal();
        eventually("the revoked key is refused", || (site.status(&revoked) == 401).then_some(()));
        eventually("the good key works again", || (site.status(&good) == 200).then_some(()));
    });
    assert!([200, 503].iter().all(|status| ended.iter().any(|answer| answer.status == *status)), "{ended:#?}");
    // The time is named in whole seconds.
    assert_none_after(end + Duration::from_secs(1) + SLACK, 200, &ended);
    assert_only([200, 503], &kept);
    let accepted = site.upstream.received();
    assert!(accepted.iter().all(|received| received.header("x-key-id").as_ref() != Some(&revoked.id)));
    let (code, words) = site.revoke(&revoked);
    assert!(code == Some(0) && words.contains("already; revoked on 1/1 gateways in "), "{code:?} {words}");
}

#[test]
fn i9_a_partition_that_heals_brings_the_revocation() {
    let site = Site::start();
    let revoked = site.key();
    site.proxy.swallow();
    let (code, words) = site.run_straight(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "300ms"]);
    assert_eq!(code, Some(75), "{words}");
    assert_eq!(site.status(&revoked), 200, "it cannot know");
    site.proxy.heal();
    let (code, words) = site.run_straight(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "20s"]);
    assert_eq!(site.status(&revoked), 401);
    assert!(code == Some(0) && words.contains("already; revoked on 1/1 gateways in "), "{code:?} {words}");
}

/// Makes keys and revokes them; each must be refused when the command that said so has returned.
fn revoke_keys(site: &Site, count: usize) {
    let create = ["keys", "create", "--entity", "acme", "--name", "x", "--mode", "live", "--scope", "orders:read"];
    for _ in 0..count {
        let value = eventually("a key is made", || {
            let output = site.gateway.run(&[&create[..], &["--output", "json"]].concat());
            output.status.success().then(|| serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap())
        });
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        let key = Key { id: text("id"), text: text("key") };
        assert_eq!(site.status(&key), 200);
        // A command whose own connection was killed twice says that the store cannot be asked.
        let words = eventually("the key is revoked", || {
            let (code, words) = site.revoke(&key);
            assert!(matches!(code, Some(0 | 69 | 75)), "{code:?} {words}");
            (code == Some(0)).then_some(words)
        });
        assert_eq!(site.status(&key), 401, "{words}");
        assert!(words.contains("revoked on 1/1 gateways in "), "{words}");
    }
}

#[test]
fn no_revocation_is_missed_while_connections_are_killed() {
    let site = Site::start();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                site.redis.command("CLIENT KILL TYPE normal SKIPME yes");
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        let revokers = [(); 4].map(|()| scope.spawn(|| revoke_keys(&site, 25)));
        let outcomes = revokers.map(|revoker| revoker.join());
        done.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok));
    });
}

#[test]
fn a_redis_without_memory_refuses_a_change_whole_and_the_right_to_serve_ends() {
    let site = Site::with_max_stale();
    let (good, stranger) = (site.key(), never_made());
    let held = || (site.redis.command("DBSIZE"), site.redis.command("GET {keygate}:head"));
    assert_eq!(site.redis.command("CONFIG SET maxmemory 1"), "+OK");
    let begun = Instant::now();
    let before = held();
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        for (code, words) in [site.create(), site.revoke(&good)] {
            assert!(
                code == Some(69) && words.contains("the key store is not available: redis: \"OOM\""),
                "{code:?} {words}"
            );
        }
        assert_eq!(held(), before);
        // Without the gateway's row nobody would wait for it.
        eventually("the right to serve ends", || (site.status(&good) == 503).then_some(()));
    });
    assert_only([200, 503], &known);
    assert_none_after(begun + MAX_STALE + SLACK, 200, &known);
    assert_only([401, 503], &unknown);
    assert_eq!(site.redis.command("CONFIG SET maxmemory 0"), "+OK");
    site.works(&good);
    let (code, words) = site.revoke(&good);
    assert!(code == Some(0) && words.starts_with("revoked on 1/1 gateways in "), "{code:?} {words}");
    assert_eq!(site.status(&good), 401);
}

#[test]
fn no_request_with_a_known_key_notices_that_redis_stands_still() {
    let site = Site::start();
    let (good, stranger) = (site.key(), never_made());
    let begun = Instant::now();
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        site.redis.signal("STOP");
        std::thread::sleep(Duration::from_secs(3));
        eventually("an unknown key is no longer told bad", || (site.status(&stranger) == 503).then_some(()));
        site.redis.signal("CONT");
        eventually("an unknown key is told bad again", || (site.status(&stranger) == 401).then_some(()));
    });
    assert_only([200, 200], &known);
    assert_only([401, 503], &unknown);
    let unfresh = unknown.iter().filter(|answer| answer.status == 503).map(|answer| answer.started);
    let first = unfresh.min().unwrap();
    assert!(first <= begun + FRESH_FOR + SLACK, "{:?}", first - begun);
    site.works(&good);
}

#[test]
fn a_redis_that_still_loads_its_data_is_told_as_such() {
    let mut site = Site::start();
    let good = site.key();
    site.redis.command("EVAL \"for i=1,20000 do redis.call('SET','filler'..i,i) end\" 0");
    site.redis.kill();
    // Microseconds for each command.
    site.redis.set(&["--key-load-delay", "100"]);
    site.redis.restart();
    let (code, words) = site.create();
    assert!(code == Some(69) && words.contains("Redis is loading the dataset in memory"), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
    eventually("the data are loaded", || (site.run(&["keys", "list"]).0 == Some(0)).then_some(()));
    site.works(&good);
}

#[test]
fn a_redis_that_asks_for_another_password_is_told_as_such_and_known_keys_work() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "the-first\n").unwrap();
    let login = format!("password = {{ file = \"{}\" }}", secret.path().display());
    let mut site = Site::start_on(RedisServer::start_with(&["--requirepass", "the-first"]), &login);
    let good = site.key();
    site.redis.kill();
    site.redis.set(&["--requirepass", "the-second"]);
    site.redis.restart();
    let (code, words) = site.create();
    assert!(code == Some(69) && words.to_lowercase().contains("password"), "{code:?} {words}");
    eventually("the gateway has noticed", || site.gateway.log_text().contains("cannot be asked").then_some(()));
    assert_eq!(site.status(&good), 200);
    assert!(!words.contains("the-") && !site.gateway.log_text().contains("the-"), "{words}");
    site.redis.kill();
    site.redis.set(&["--requirepass", "the-first"]);
    site.redis.restart();
    site.works(&good);
}

#[test]
fn a_redis_that_asks_for_a_password_nobody_gave_is_told_as_such() {
    let site = Site::start();
    let good = site.key();
    assert_eq!(site.redis.command("CONFIG SET requirepass let-me-in"), "+OK");
    site.proxy.cut();
    let (code, words) = site.create();
    assert!(code == Some(69) && words.contains("NOAUTH"), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
}

#[test]
fn i6_a_redis_that_has_lost_everything_takes_no_key_away() {
    let site = Site::start();
    let (good, revoked, stranger) = (site.key(), site.key(), never_made());
    assert_eq!(site.revoke(&revoked).0, Some(0));
    assert_eq!(site.redis.command("FLUSHALL"), "+OK");
    eventually("it is said", || site.gateway.log_text().contains("has lost changes").then_some(()));
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        std::thread::sleep(FRESH_FOR + SLACK);
        assert_eq!(site.status(&revoked), 401);
    });
    assert_only([200, 200], &known);
    assert_only([503, 503], &unknown);
}
