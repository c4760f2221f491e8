//! A gateway stays behind with a master that the Sentinels have given up: it renews no right there, changes nothing, and nobody
//! is told that a key has ended everywhere while this gateway accepts it.

use crate::harness::sentinel::{self, Watched};
use crate::harness::{FaultProxy, Gateway, Key, Upstream, eventually};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Long enough for the gateway on the other side, which finds nobody while there is no master.
const MAX_STALE: Duration = Duration::from_secs(6);
/// How long after the cut an unknown key may still be told bad: the Sentinels' word counts for 0.5 s, then L of protocols I1.
const FRESH_FOR: Duration = Duration::from_millis(2500);
/// What a busy machine may take between two lines of a test.
const SLACK: Duration = Duration::from_secs(1);

/// What a request was answered, and when it began.
type Answer = (Instant, u16);

/// A gateway on each side of what will be cut.
struct Scene {
    servers: Watched,
    /// In front of the Sentinels, for the gateway that stays behind.
    proxies: Vec<FaultProxy>,
    behind: Gateway,
    beyond: Gateway,
    upstream: Upstream,
    _password: tempfile::NamedTempFile,
}

pub fn prove() {
    let scene = Scene::start();
    let Scene { servers, behind, beyond, upstream, .. } = &scene;
    let [good, doomed] = [(); 2].map(|()| beyond.key(&["orders:read"]));
    [&good, &doomed].into_iter().for_each(|key| behind.wait_until_known(key));
    let unknown = Gateway::before(upstream).key(&["orders:read"]);
    let old = servers.master();
    let done = AtomicBool::new(false);
    let ((cut, healed), answers) = std::thread::scope(|threads| {
        let uses = [&good, &doomed, &unknown].map(|key| threads.spawn(|| use_key(behind, key, &done)));
        let act = || cut_and_heal(&scene, old, &good, &doomed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
        done.store(true, Ordering::Relaxed);
        let answers = uses.map(|using| using.join().unwrap());
        (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), answers)
    });
    let [good, doomed, unknown] = answers;
    assert!(good.iter().chain(&doomed).all(|(_, status)| matches!(status, 200 | 401 | 503)));
    assert!(good.iter().all(|(_, status)| *status != 401), "a good key was told bad");
    assert!(good.iter().any(|(sent, status)| *status == 200 && *sent > cut + MAX_STALE / 2), "its right ended early");
    let late = good.iter().chain(&doomed).filter(|(sent, _)| *sent > cut + MAX_STALE + SLACK && *sent < healed);
    assert!(late.clone().count() > 10 && late.clone().all(|(_, status)| *status == 503), "served too long");
    let apart = unknown.iter().filter(|(sent, _)| *sent > cut + FRESH_FOR + SLACK && *sent < healed);
    assert!(
        apart.clone().count() > 10 && apart.clone().all(|(_, status)| *status == 503),
        "an outage told as a bad key"
    );
    assert!(unknown.iter().all(|(_, status)| matches!(status, 401 | 503)));
}

/// Cuts one gateway and the old master off from all others, and lets the gateway back; when it did so.
fn cut_and_heal(scene: &Scene, old: usize, good: &Key, doomed: &Key) -> (Instant, Instant) {
    let Scene { servers, proxies, behind, beyond, .. } = scene;
    let cut = Instant::now();
    servers.cut_off(old);
    proxies.iter().skip(1).for_each(FaultProxy::swallow);
    servers.successor_of(old);
    let (code, words) = run(behind, &["entities", "create", "--code", "lost"]);
    let why = "2 of 3 Sentinels must name the same master of 'keys', and do not: ";
    assert!(code == Some(69) && words.contains(why), "{code:?} {words}");
    ends_everywhere(scene, doomed);
    eventually("the right to serve has ended", || (status(behind, good) == 503).then_some(()));
    std::thread::sleep(SLACK);
    let healed = Instant::now();
    proxies.iter().for_each(FaultProxy::heal);
    eventually("the gateway is back", || (status(behind, good) == 200).then_some(()));
    assert_eq!([status(behind, doomed), status(beyond, doomed), status(beyond, good)], [401, 401, 200]);
    (cut, healed)
}

/// Revokes the key on the side of the new master until that is confirmed by all.
fn ends_everywhere(Scene { behind, beyond, .. }: &Scene, key: &Key) {
    let words = eventually("all that are left have confirmed", || {
        let (code, words) = run(beyond, &["keys", "revoke", &key.id, "--yes", "--timeout", "300ms"]);
        assert!(matches!(code, Some(0 | 69 | 75)) && !words.contains("2/2"), "{code:?} {words}");
        (code == Some(0)).then_some(words)
    });
    assert_ne!(status(behind, key), 200, "{words}");
    assert_eq!(status(beyond, key), 401, "{words}");
}

fn run(gateway: &Gateway, args: &[&str]) -> (Option<i32>, String) {
    let output = gateway.run(args);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}

fn use_key(gateway: &Gateway, key: &Key, done: &AtomicBool) -> Vec<Answer> {
    let mut answers = Vec::new();
    while !done.load(Ordering::Relaxed) {
        answers.push((Instant::now(), status(gateway, key)));
        std::thread::sleep(Duration::from_millis(30));
    }
    answers
}

// === impl Scene ===

impl Scene {
    fn start() -> Self {
        let (upstream, servers) = (Upstream::named("erp"), Watched::start());
        let address = |sentinel: &sentinel::Sentinel| SocketAddr::from(([127, 0, 0, 1], sentinel.port()));
        let proxies: Vec<_> = servers.sentinels.iter().map(|one| FaultProxy::start(address(one))).collect();
        let password = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(password.path(), "edges\n").unwrap();
        let login = format!("username = \"edge\"\npassword = {{ file = \"{}\" }}", password.path().display());
        let rest = format!("{login}\n[cache]\nmax_stale = \"{}s\"", MAX_STALE.as_secs());
        let toml = |url: &str| format!("[store]\nurl = \"{url}\"\n{rest}");
        let through = sentinel::url(proxies.iter().map(|proxy| proxy.address.port()));
        let behind = Gateway::builder().live(&upstream).toml(&toml(&through)).start();
        let beyond = Gateway::builder().live(&upstream).toml(&toml(&servers.url())).joining("edge-2").start();
        Self { servers, proxies, behind, beyond, upstream, _password: password }
    }
}
