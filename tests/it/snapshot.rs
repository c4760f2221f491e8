//! What a gateway keeps on its own disk: it starts without its store, forgets nothing that was confirmed, and takes no other
//! store for its own (protocols I2 to I4).

use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Response, Upstream, eventually};
use std::path::PathBuf;
use std::time::Duration;

struct Scene {
    redis: RedisServer,
    gateway: Gateway,
    known: Key,
    revoked: Key,
    /// Well-formed, and made elsewhere.
    unknown: Key,
}

// === impl Scene ===

impl Scene {
    fn new(cache: &str) -> Self {
        let upstream = Upstream::named("erp");
        let redis = RedisServer::start();
        let toml = format!("[store]\nurl = \"{}\"\n[cache]\n{cache}", redis.url());
        let gateway = Gateway::builder().live(&upstream).toml(&toml).start();
        let elsewhere = Gateway::before(&upstream);
        let (known, revoked) = (gateway.key(&["orders:read"]), gateway.key(&["orders:read"]));
        assert!(gateway.run(&["keys", "revoke", &revoked.id, "--yes"]).status.success());
        Self { redis, known, revoked, unknown: elsewhere.key(&["orders:read"]), gateway }
    }

    fn ask(&self, key: &Key) -> Response {
        self.gateway.client().request("GET", &self.gateway.path("orders"), &[&key.bearer()])
    }

    /// How the known, the revoked and the unknown key are answered.
    fn answers(&self) -> [u16; 3] {
        [&self.known, &self.revoked, &self.unknown].map(|key| self.ask(key).status)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.gateway.dir.path().join("data").join(name)
    }

    /// The snapshot and its log.
    fn files(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.path("")).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.to_str().unwrap().contains("keys.snapshot")).collect()
    }
}

#[test]
fn i2_a_gateway_that_starts_without_its_store_serves_what_it_knew_and_no_longer_than_before() {
    let mut scene = Scene::new("max_stale = \"5s\"");
    scene.redis.kill();
    scene.gateway.restart();
    assert_eq!(scene.answers(), [200, 401, 503]);
    eventually("the right to serve runs out", || (scene.ask(&scene.known).status == 503).then_some(()));
    assert_eq!(scene.ask(&scene.known).code(), "key_store_unavailable");
    // Starting again gives no new right.
    scene.gateway.restart();
    assert_eq!(scene.answers(), [503, 401, 503]);
    scene.redis.restart();
    eventually("the store is followed again", || (scene.answers() == [200, 401, 401]).then_some(()));
}

#[test]
fn i2_a_gateway_that_has_left_the_fleet_needs_its_store_to_start() {
    let mut scene = Scene::new("max_stale = \"15m\"");
    scene.gateway.signal("TERM");
    assert_eq!(scene.gateway.wait(), Some(0));
    scene.redis.kill();
    scene.gateway.restart();
    assert_eq!(scene.answers(), [503, 401, 503]);
}

#[test]
fn i2_a_right_to_serve_is_not_taken_over_where_nobody_would_wait_for_the_dead() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    gateway.signal("KILL");
    gateway.wait();
    for name in ["keygate.db", "keygate.db-wal", "keygate.db-shm"] {
        _ = std::fs::remove_file(gateway.dir.path().join("data").join(name));
    }
    gateway.restart();
    let told = || gateway.log_text().contains("is not the one that was followed").then_some(());
    eventually("the other store is noticed", told);
    let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
    assert_eq!((answer.status, answer.code().as_str()), (503, "key_store_unavailable"));
}

#[test]
fn i3_what_was_confirmed_outlives_both_when_they_die_at_once() {
    let mut scene = Scene::new("max_stale = \"15m\"");
    for _ in 0..3 {
        let key = scene.gateway.key(&["orders:read"]);
        let output = scene.gateway.run(&["keys", "revoke", &key.id, "--yes"]);
        scene.gateway.signal("KILL");
        scene.redis.kill();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        scene.gateway.restart();
        assert_eq!((scene.ask(&key).status, scene.answers()), (401, [200, 401, 503]));
        scene.redis.restart();
        eventually("the store is followed again", || (scene.answers() == [200, 401, 401]).then_some(()));
    }
}

#[test]
fn i4_an_empty_store_is_not_taken_for_the_one_that_was_known() {
    let mut scene = Scene::new("max_stale = \"15m\"");
    scene.gateway.signal("KILL");
    scene.gateway.wait();
    assert_eq!(scene.redis.command("FLUSHALL"), "+OK");
    scene.gateway.restart();
    assert_eq!(scene.answers(), [200, 401, 503]);
    let log = scene.gateway.log_text();
    assert!(log.contains("is not the one that was followed") && log.contains("keygate store adopt"), "{log}");
    // Without its log nobody can say what came after; that there was something is known all the same.
    for (damage, expected) in [("log", [503, 503, 503]), ("all", [401, 401, 401])] {
        scene.gateway.signal("KILL");
        scene.gateway.wait();
        let gone = scene.files().into_iter().filter(|path| damage == "all" || path.extension().unwrap() == damage);
        gone.for_each(|path| std::fs::remove_file(path).unwrap());
        scene.gateway.restart();
        // A store that nobody has seen before is believed after a while only.
        eventually(damage, || (scene.answers() == expected).then_some(()));
    }
}

#[test]
fn i4_an_embedded_store_that_was_put_back_empty_refuses_no_good_key() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    gateway.signal("TERM");
    gateway.wait();
    for name in ["keygate.db", "keygate.db-wal", "keygate.db-shm"] {
        _ = std::fs::remove_file(gateway.dir.path().join("data").join(name));
    }
    gateway.restart();
    let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
    assert_eq!((answer.status, answer.code().as_str()), (503, "key_store_unavailable"));
}

#[test]
fn a_damaged_snapshot_is_named_and_the_store_is_asked_instead() {
    let mut scene = Scene::new("max_stale = \"15m\"");
    let whole: Vec<(PathBuf, Vec<u8>)> =
        scene.files().into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    assert_eq!(whole.len(), 2, "a snapshot and its log");
    for (path, bytes) in &whole {
        let (mut flipped, half) = (bytes.clone(), bytes.len() / 2);
        flipped[half] ^= 0x10;
        for damaged in [&flipped[..], &bytes[..half], b"", b"something else"] {
            scene.gateway.signal("KILL");
            scene.gateway.wait();
            scene.files().iter().for_each(|path| std::fs::remove_file(path).unwrap());
            whole.iter().for_each(|(path, bytes)| std::fs::write(path, bytes).unwrap());
            std::fs::write(path, damaged).unwrap();
            scene.gateway.restart();
            assert_eq!(scene.answers(), [200, 401, 401], "{} of {} bytes", path.display(), damaged.len());
        }
    }
    assert!(scene.gateway.log_text().contains("the snapshot cannot be used"), "{}", scene.gateway.log_text());
    eventually("it is counted", || (scene.gateway.metric("keygate_snapshot_refused_total") == 1.0).then_some(()));
    assert_eq!(scene.gateway.metric("keygate_reloads_total{cause=\"start\"}"), 1.0);
}

#[test]
fn a_second_process_in_one_place_is_listed_as_one_that_keeps_nothing() {
    let scene = Scene::new("max_stale = \"15m\"");
    let mut other = crate::harness::gateway::keygate(scene.gateway.dir.path()).arg("serve").spawn().unwrap();
    eventually("both are listed", || {
        let members = scene.gateway.json(&["fleet", "list", "--output", "json"]);
        let volatile: Vec<_> = members.as_array().unwrap().iter().map(|member| member["volatile"].clone()).collect();
        (volatile.len() == 2 && volatile.contains(&true.into()) && volatile.contains(&false.into())).then_some(())
    });
    other.kill().unwrap();
    other.wait().unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(scene.answers(), [200, 401, 401]);
}
