//! The master dies under load and a replica takes its place: nobody with a known key notices, nothing that ended is accepted,
//! changes are soon possible again, and nobody is told that all gateways have confirmed while some may be missing.

use crate::harness::cluster::Cluster;
use crate::harness::redis::RedisServer;
use crate::harness::sentinel::Watched;
use crate::harness::{Gateway, Key, Upstream, eventually};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How the master ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `kill -9`.
    Killed,
    /// It stands still, as in a partition or a machine that is frozen, and comes back when another one is the master.
    Stopped,
}

/// Servers of which one takes another's place.
pub trait Servers {
    fn url(&self) -> String;
    fn server(&mut self, number: usize) -> &mut RedisServer;
    /// Which one is the master.
    fn master(&self) -> usize;
    /// Waits until another one than `old` is.
    fn successor_of(&self, old: usize) -> usize;
    /// Waits until `old`, which runs again, is a replica.
    fn rejoin(&self, old: usize, new: usize);
}

/// How soon after there is a new master a change must be in force.
const CHANGES_WITHIN: Duration = Duration::from_secs(5);
/// How long a new master's list of gateways proves nothing (2 L), less what the test itself may be late.
const SETTLING: Duration = Duration::from_secs(3);

/// A gateway and keys for it.
pub struct Scene {
    pub gateway: Gateway,
    upstream: Upstream,
    good: Key,
    revoked: Key,
    unknown: Key,
}

/// What requests with one key were answered.
type Statuses = Vec<u16>;

/// Kills or stops the master once for each of `ends`, at so many requests a second with each of three keys.
pub fn prove(servers: &mut impl Servers, ends: &[End], rate: u32) {
    let scene = Scene::start(&servers.url());
    for &end in ends {
        let old = servers.master();
        let doomed = scene.key();
        let (took, was_told) = scene.under_load(rate, || {
            match end {
                End::Killed => servers.server(old).kill(),
                End::Stopped => servers.server(old).signal("STOP"),
            }
            let new = servers.successor_of(old);
            let took = scene.changes(&doomed, Instant::now());
            match end {
                End::Killed => servers.server(old).restart(),
                End::Stopped => servers.server(old).signal("CONT"),
            }
            std::thread::sleep(Duration::from_secs(1));
            assert_eq!((scene.status(&doomed), scene.status(&scene.good)), (401, 200), "the old master is back");
            servers.rejoin(old, new);
            took
        });
        println!("the master was {end:?}: a change was in force {took:?} after another one was there");
        assert!(was_told && took <= CHANGES_WITHIN, "{was_told} {took:?}");
        assert!(!scene.gateway.log_text().contains("panicked"), "{}", scene.gateway.log_text());
    }
}

/// Moves the keys' slot between the nodes of a cluster, once for each of `rests`, which is how long it rests between a few keys.
pub fn prove_moves(cluster: &Cluster, rests: &[Duration], rate: u32) {
    let scene = Scene::start(&cluster.url());
    let mut refused_in_all = 0;
    for &rest in rests {
        let from = cluster.owner();
        let to = (0..3).find(|node| *node != from).unwrap();
        // The store has settled: what follows is refused for the move, or not at all.
        assert!(scene.change_once());
        let moving = AtomicBool::new(true);
        let ((took, refused), _) = scene.under_load(rate, || {
            std::thread::scope(|scope| {
                let manager = scope.spawn(|| {
                    let mut refused = 0_u32;
                    while moving.load(Ordering::Relaxed) {
                        refused += u32::from(!scene.change_once());
                    }
                    refused
                });
                let doomed = scene.key();
                cluster.move_slot(from, to, rest);
                moving.store(false, Ordering::Relaxed);
                let took = scene.changes(&doomed, Instant::now());
                (took, manager.join().unwrap())
            })
        });
        println!(
            "the slot was moved: a change was in force {took:?} after that; {refused} changes were refused meanwhile"
        );
        refused_in_all += refused;
        assert!(took <= CHANGES_WITHIN, "{took:?}");
        let [head, length] = ["GET {keygate}:head", "XLEN {keygate}:log"].map(|words| cluster.ask(to, words).concat());
        assert_eq!(head.split(' ').next(), Some(&*length), "half a change was made");
        let said = scene.gateway.log_text();
        assert!(!said.contains("panicked") && !said.contains("has lost changes"), "{said}");
    }
    // A quick move may pass between two changes; not every one of them does.
    assert!(refused_in_all > 0);
}

// === impl Scene ===

impl Scene {
    pub fn start(url: &str) -> Self {
        let upstream = Upstream::named("erp");
        let gateway = Gateway::builder().live(&upstream).toml(&format!("[store]\nurl = \"{url}\"")).start();
        let unknown = Gateway::before(&upstream).key(&["orders:read"]);
        let [good, revoked] = [(); 2].map(|()| gateway.key(&["orders:read"]));
        let scene = Self { gateway, upstream, good, revoked, unknown };
        let words = scene.revoked_for_good(&scene.revoked);
        assert!(words.contains("held by ") && words.contains(" replicas of the store"), "{words}");
        scene
    }

    pub fn key(&self) -> Key {
        self.gateway.key(&["orders:read"])
    }

    pub fn status(&self, key: &Key) -> u16 {
        self.gateway.client().request("GET", &self.gateway.path("orders"), &[&key.bearer()]).status
    }

    /// Uses the keys while `act` runs, and looks at the answers. Also gives whether the outage was told to whom it concerned.
    fn under_load<T>(&self, rate: u32, act: impl FnOnce() -> T) -> (T, bool) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let uses =
                [&self.good, &self.revoked, &self.unknown].map(|key| scope.spawn(|| self.use_key(key, rate, &done)));
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            done.store(true, Ordering::Relaxed);
            let [good, revoked, unknown] = uses.map(|using| using.join().unwrap());
            let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            assert!(good.iter().all(|status| *status == 200), "a known key was not served: {good:?}");
            assert!(revoked.iter().all(|status| *status == 401), "a revoked key: {revoked:?}");
            assert!(unknown.iter().all(|status| matches!(status, 401 | 503)), "a key that nobody made: {unknown:?}");
            for key in [&self.revoked, &self.unknown] {
                let accepted = self.upstream.received();
                assert!(accepted.iter().all(|one| one.header("x-key-id").as_ref() != Some(&key.id)), "accepted");
            }
            (result, unknown.contains(&503))
        })
    }

    fn use_key(&self, key: &Key, rate: u32, done: &AtomicBool) -> Statuses {
        let (mut client, path, bearer) = (self.gateway.client(), self.gateway.path("orders"), key.bearer());
        let (mut statuses, mut due) = (Vec::new(), Instant::now());
        while !done.load(Ordering::Relaxed) {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due += Duration::from_secs(1) / rate;
            statuses.push(client.request("GET", &path, &[&bearer]).status);
        }
        statuses
    }

    /// A new master is there since `since`: ends a key, and makes one. How long it took until the first was refused.
    fn changes(&self, doomed: &Key, since: Instant) -> Duration {
        eventually("a key can be revoked", || {
            let (code, words) = self.revoke(doomed, "300ms");
            assert!(matches!(code, Some(0 | 69 | 75)), "{code:?} {words}");
            let may_be_missing = since.elapsed() < SETTLING;
            assert!(!may_be_missing || !words.contains(" gateways in "), "gateways may be missing: {words}");
            (code != Some(69)).then_some(())
        });
        eventually("it is refused", || (self.status(doomed) == 401).then_some(()));
        let took = since.elapsed();
        let made = eventually("a key can be made", || self.create().ok());
        eventually("it is in force", || (self.status(&made) == 200).then_some(()));
        self.revoked_for_good(doomed);
        took
    }

    /// Makes a key, or gives what was said instead.
    fn create(&self) -> Result<Key, String> {
        let args = ["--entity", "acme", "--name", "x", "--mode", "live", "--scope", "orders:read", "--output", "json"];
        let output = self.gateway.run(&[&["keys", "create"], &args[..]].concat());
        let (code, words) = (output.status.code(), String::from_utf8(output.stderr).unwrap());
        assert!(matches!(code, Some(0 | 69 | 75)), "{code:?} {words}");
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|_| words)?;
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        Ok(Key { id: text("id"), text: text("key") })
    }

    /// Makes a key and ends it, if that is possible now; whether no move was in the way. What was told must be so.
    fn change_once(&self) -> bool {
        const MOVING: &str = "the keys are being moved to another node";
        let key = match self.create() {
            Ok(key) => key,
            Err(words) => return !words.contains(MOVING),
        };
        let (code, words) = self.revoke(&key, "300ms");
        assert!(matches!(code, Some(0 | 69 | 75)), "{code:?} {words}");
        if code == Some(0) {
            assert_eq!(self.status(&key), 401, "{words}");
        }
        !words.contains(MOVING)
    }

    pub fn revoke(&self, key: &Key, timeout: &str) -> (Option<i32>, String) {
        let output = self.gateway.run(&["keys", "revoke", &key.id, "--yes", "--timeout", timeout]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// Revokes it until every gateway has confirmed.
    pub fn revoked_for_good(&self, key: &Key) -> String {
        let words = eventually("it is confirmed", || {
            let (code, words) = self.revoke(key, "5s");
            (code == Some(0)).then_some(words)
        });
        assert!(words.contains("revoked on 1/1 gateways in "), "{words}");
        assert_eq!(self.status(key), 401, "{words}");
        words
    }
}

impl Servers for Watched {
    fn url(&self) -> String {
        self.url()
    }

    fn server(&mut self, number: usize) -> &mut RedisServer {
        &mut self.servers[number]
    }

    fn master(&self) -> usize {
        self.master()
    }

    fn successor_of(&self, old: usize) -> usize {
        self.successor_of(old)
    }

    fn rejoin(&self, old: usize, new: usize) {
        self.demote(old, new);
    }
}

impl Servers for Cluster {
    fn url(&self) -> String {
        self.url()
    }

    fn server(&mut self, number: usize) -> &mut RedisServer {
        &mut self.nodes[number]
    }

    fn master(&self) -> usize {
        self.owner()
    }

    fn successor_of(&self, old: usize) -> usize {
        self.successor_of(old)
    }

    fn rejoin(&self, old: usize, _: usize) {
        self.wait_until_followed(old);
    }
}
