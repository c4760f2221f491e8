//! A gateway whose keys are in Redis.

use crate::harness::gateway::Key;
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Upstream, eventually};

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}

#[test]
fn keys_in_redis_are_followed_and_known_ones_outlive_its_death() {
    let upstream = Upstream::named("erp");
    let mut redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let (known, revoked) = (gateway.key(&["orders:read"]), gateway.key(&["orders:read"]));
    assert_eq!((status(&gateway, &known), status(&gateway, &revoked)), (200, 200));
    assert!(gateway.run(&["keys", "revoke", &revoked.id, "--yes"]).status.success());
    eventually("the revoked key is refused", || (status(&gateway, &revoked) == 401).then_some(()));

    // Well-formed, but made elsewhere.
    let elsewhere = Gateway::before(&upstream);
    let unknown = elsewhere.key(&["orders:read"]);
    redis.kill();
    eventually("the loss is noticed", || gateway.log_text().contains("cannot be asked").then_some(()));
    assert_eq!(status(&gateway, &known), 200);
    eventually("an unknown key is no longer told bad", || (status(&gateway, &unknown) == 503).then_some(()));
    assert_eq!(status(&gateway, &known), 200);
    let output = gateway.run(&["keys", "list"]);
    assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));

    redis.restart();
    let later = gateway.key(&["orders:read"]);
    eventually("a change after the restart is in force", || (status(&gateway, &later) == 200).then_some(()));
    assert_eq!(status(&gateway, &revoked), 401);
}

#[test]
fn a_gateway_starts_without_its_redis_and_loads_the_keys_once_it_is_there() {
    let upstream = Upstream::named("erp");
    let mut redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let mut gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let known = gateway.key(&["orders:read"]);
    redis.kill();
    // In good order, so that it may not serve from its snapshot.
    gateway.signal("TERM");
    gateway.wait();
    gateway.restart();
    // It knows no key well enough, and says so instead of refusing keys that may be good.
    let answer = gateway.client().request("GET", &gateway.path("orders"), &[&known.bearer()]);
    assert_eq!((answer.status, answer.code().as_str()), (503, "key_store_unavailable"));

    redis.restart();
    eventually("the keys are loaded", || (status(&gateway, &known) == 200).then_some(()));
    assert!(gateway.run(&["keys", "revoke", &known.id, "--yes"]).status.success());
    eventually("a change after the load is in force", || (status(&gateway, &known) == 401).then_some(()));
}

fn said(output: &std::process::Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

#[test]
fn a_fleet_on_redis_confirms_and_who_is_silent_is_named() {
    let upstream = Upstream::named("erp");
    let redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let first = Gateway::builder().live(&upstream).toml(&store).start();
    let mut second = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    let revoke = |key: &Key, more: &[&str]| said(&first.run(&[&["keys", "revoke", &key.id, "--yes"], more].concat()));
    for _ in 0..20 {
        let key = first.key(&["orders:read"]);
        assert_eq!((status(&first, &key), status(&second, &key)), (200, 200));
        let (code, words) = revoke(&key, &["--timeout", "60s"]);
        assert!(code == Some(0) && words.starts_with("revoked on 2/2 gateways in "), "{words}");
        assert_eq!((status(&first, &key), status(&second, &key)), (401, 401));
    }
    let key = first.key(&["orders:read"]);
    second.signal("KILL");
    second.wait();
    // Nobody can know that it is dead and not only silent.
    let words = eventually("edge-1 alone has confirmed", || {
        let (code, words) = revoke(&key, &["--timeout", "300ms"]);
        assert_eq!(code, Some(75), "{words}");
        words.contains("revoked on 1/2 gateways; ").then_some(words)
    });
    assert!(words.contains("; edge-2 ("), "{words}");
    // Its successor in the same place does.
    second.restart();
    let (code, words) = revoke(&key, &[]);
    assert!(code == Some(0) && words.contains(" already; revoked on 2/2 gateways in "), "{words}");
    assert_eq!(status(&second, &key), 401);
}

#[test]
fn a_login_comes_from_a_file_and_a_wrong_one_is_named() {
    let upstream = Upstream::named("erp");
    const USERS: [&str; 10] =
        ["--user", "keygate", "on", ">let-me-in", "~*", "&*", "+@all", "--user", "default", "off"];
    let redis = RedisServer::start_with(&USERS);
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "let-me-in\n").unwrap();
    let (url, file) = (redis.url(), secret.path().display());
    let store = format!("[store]\nurl = \"{url}\"\nusername = \"keygate\"\npassword = {{ file = \"{file}\" }}");
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let key = gateway.key(&["orders:read"]);
    assert_eq!(status(&gateway, &key), 200);
    std::fs::write(secret.path(), "let-me-out\n").unwrap();
    let (code, words) = said(&gateway.run(&["keys", "list"]));
    assert_eq!(code, Some(69), "{words}");
    assert!(
        words.contains("the key store is not available: redis: ") && words.to_lowercase().contains("password"),
        "{words}"
    );
    assert!(!words.contains("let-me-"), "{words}");
}

#[test]
fn i1_a_store_that_can_be_read_and_not_written_renews_no_right() {
    let upstream = Upstream::named("erp");
    let redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"\n[cache]\nmax_stale = \"3s\"", redis.url());
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let key = gateway.key(&["orders:read"]);
    assert_eq!(status(&gateway, &key), 200);
    // Demoted: it answers with what it had, whatever is revoked elsewhere.
    assert_eq!(redis.command("REPLICAOF 127.0.0.1 1"), "+OK");
    let left = gateway.metric("keygate_right_to_serve_seconds");
    assert!(left > 0.0 && left <= 3.0, "{left}");
    eventually("the right to serve runs out", || (status(&gateway, &key) == 503).then_some(()));
    assert_eq!(gateway.metric("keygate_right_to_serve_seconds"), 0.0);
    assert_eq!(redis.command("REPLICAOF NO ONE"), "+OK");
    eventually("it is back", || (status(&gateway, &key) == 200).then_some(()));
}

#[test]
fn a_user_who_may_not_run_every_command_changes_nothing_rather_than_half() {
    let upstream = Upstream::named("erp");
    let redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let key = gateway.key(&["orders:read"]);
    assert_eq!(redis.command("ACL SETUSER default -del"), "+OK");
    let (code, words) = said(&gateway.run(&["entities", "delete", "acme", "--yes"]));
    assert!(code == Some(69) && words.contains("may not run DEL"), "{words}");
    assert_eq!(status(&gateway, &key), 200);
    let (code, words) = said(&gateway.run(&["keys", "revoke", &key.id, "--yes"]));
    assert!(code == Some(0) && words.starts_with("revoked on 1/1 gateways in "), "{words}");
}

#[test]
fn a_log_with_a_hole_is_another_history() {
    let upstream = Upstream::named("erp");
    let redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let mut gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let key = gateway.key(&["orders:read"]);
    gateway.signal("STOP");
    let (code, words) = said(&gateway.run(&["keys", "update", &key.id, "--name", "x"]));
    assert_eq!(code, Some(75), "{words}");
    // Entity, key, update: the last is gone, and the head says that it was there.
    assert_eq!(redis.command("XDEL {keygate}:log 3-0"), ":1");
    gateway.signal("CONT");
    eventually("the hole is noticed", || gateway.log_text().contains("has lost changes").then_some(()));
    assert_eq!(status(&gateway, &key), 200);
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0), "a gateway that cannot catch up must still drain");
}

#[test]
fn i12_while_rows_may_be_missing_nothing_is_said_to_be_everywhere() {
    let upstream = Upstream::named("erp");
    let mut redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let key = gateway.key(&["orders:read"]);
    // A store that was made just now has lost nothing: the key above did not wait. One that starts again may have.
    redis.kill();
    redis.restart();
    assert_eq!(redis.command("HLEN {keygate}:fleet"), ":1");
    let (code, words) = said(&gateway.run(&["keys", "revoke", &key.id, "--yes", "--timeout", "300ms"]));
    assert!(code == Some(75) && words.starts_with("revoked and stored; membership settling"), "{code:?} {words}");
    let (code, words) = said(&gateway.run(&["keys", "revoke", &key.id, "--yes"]));
    assert!(code == Some(0) && words.contains(" already; revoked on 1/1 gateways in "), "{code:?} {words}");
}

#[test]
fn i7_a_gateway_that_knew_nothing_waits_until_the_store_has_settled() {
    let upstream = Upstream::named("erp");
    let mut redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let first = Gateway::builder().live(&upstream).toml(&store).start();
    let key = first.key(&["orders:read"]);
    redis.kill();
    redis.restart();
    let cold = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    assert_eq!((status(&first, &key), status(&cold, &key)), (200, 503));
    eventually("it serves", || (status(&cold, &key) == 200).then_some(()));
}

#[test]
fn i11_a_clone_with_the_same_name_is_noticed_and_takes_another() {
    let upstream = Upstream::named("erp");
    let redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let key = gateway.key(&["orders:read"]);
    let instances = || {
        let members = gateway.json(&["fleet", "list", "--output", "json"]);
        let names = members.as_array().unwrap().iter().map(|member| member["instance"].as_str().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let [first] = &instances()[..] else { panic!() };
    // As if a copy of the machine went on from the same moment and wrote the row first.
    let row = format!(
        "{{\"beat\":1,\"instance\":\"{first}\",\"gateway\":\"edge-1\",\"version\":\"0\",\"config\":\"0\",\"max_stale_ms\":900000,\"pos\":99,\"token\":7,\"keys\":0,\"complete\":true,\"caught_up_at\":0,\"volatile\":false}}"
    );
    assert_eq!(redis.command(&format!("HSET {{keygate}}:fleet {first} '{row}'")), ":0");
    let both = eventually("the other has another name", || Some(instances()).filter(|names| names.len() == 2));
    assert!(both.contains(first));
    let words = eventually("the gateway that runs has confirmed", || {
        let (code, words) = said(&gateway.run(&["keys", "revoke", &key.id, "--yes", "--timeout", "500ms"]));
        assert_eq!(code, Some(75), "{words}");
        words.contains("revoked on 1/2 gateways; ").then_some(words)
    });
    assert!(words.contains(&format!("; edge-1 ({first}) unconfirmed")), "{words}");
}
