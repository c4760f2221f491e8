//! Somebody sets the wall clock: no right grows by it (protocols I1), and expiry follows it.

use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Upstream, eventually};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A gateway on Redis whose wall clock can be set.
struct Scene {
    redis: RedisServer,
    gateway: Gateway,
    key: Key,
    offset: PathBuf,
}

// === impl Scene ===

impl Scene {
    fn new(cache: &str) -> Self {
        let redis = RedisServer::start();
        let toml = format!("[store]\nurl = \"{}\"\n[cache]\n{cache}", redis.url());
        let mut gateway = Gateway::builder().live(&Upstream::named("erp")).toml(&toml).start();
        let key = gateway.key(&["orders:read"]);
        let offset = gateway.dir.path().join("offset");
        std::fs::write(&offset, "+0").unwrap();
        // The clock that nobody sets stays as it is.
        gateway.restart_with(&[
            ("LD_PRELOAD", &library()),
            ("FAKETIME_TIMESTAMP_FILE", offset.to_str().unwrap()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]);
        let scene = Self { redis, gateway, key, offset };
        assert_eq!(scene.status(&scene.key), 200);
        scene
    }

    /// Sets the gateway's wall clock by so much from the right time.
    fn set(&self, offset: &str) {
        std::fs::write(&self.offset, offset).unwrap();
    }

    fn status(&self, key: &Key) -> u16 {
        self.gateway.client().request("GET", &self.gateway.path("orders"), &[&key.bearer()]).status
    }
}

/// The library that sets a process's clock.
fn library() -> String {
    let dirs = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let mut found = dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1")).filter(|path| path.exists());
    found.next().expect("install faketime: apt-get install faketime").to_str().unwrap().to_owned()
}

#[test]
fn i1_a_clock_that_is_set_back_makes_no_right_longer() {
    const MAX_STALE: Duration = Duration::from_secs(4);
    let mut scene = Scene::new("max_stale = \"4s\"");
    let killed = Instant::now();
    scene.redis.kill();
    scene.set("-3600");
    assert_eq!(scene.status(&scene.key), 200);
    eventually("the right to serve runs out", || (scene.status(&scene.key) == 503).then_some(()));
    assert!(killed.elapsed() + Duration::from_secs(1) > MAX_STALE, "after {:?}", killed.elapsed());
    // Nor does a start give one: by a clock that is before the last contact nobody can tell how long ago that was.
    scene.gateway.restart_with(&[
        ("LD_PRELOAD", &library()),
        ("FAKETIME", "-3600"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]);
    assert_eq!(scene.status(&scene.key), 503);
}

#[test]
fn i1_a_clock_that_is_set_forward_ends_the_right_until_the_store_is_heard_again() {
    let mut scene = Scene::new("max_stale = \"15m\"");
    scene.set("+3600");
    // With the store there, the next contact is at the new time.
    eventually("it serves on", || (scene.status(&scene.key) == 200).then_some(()));
    scene.redis.kill();
    assert_eq!(scene.status(&scene.key), 200);
    scene.set("+7200");
    assert_eq!(scene.status(&scene.key), 503);
    scene.redis.restart();
    eventually("it serves again", || (scene.status(&scene.key) == 200).then_some(()));
}

#[test]
fn a_key_expires_by_the_wall_clock() {
    let scene = Scene::new("max_stale = \"15m\"");
    let key = scene.gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--expires", "1d"]);
    assert_eq!(scene.status(&key), 200);
    scene.set("+90000");
    eventually("it has expired", || (scene.status(&key) == 401).then_some(()));
    eventually("others have not", || (scene.status(&scene.key) == 200).then_some(()));
}
