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
    let gateway = Gateway::builder().live(&upstream).test(&upstream).toml(&store).start();
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
    let mut gateway = Gateway::builder().live(&upstream).test(&upstream).toml(&store).start();
    let known = gateway.key(&["orders:read"]);
    redis.kill();
    gateway.restart();
    // It knows no key, and says so instead of refusing keys that may be good.
    let answer = gateway.client().request("GET", &gateway.path("orders"), &[&known.bearer()]);
    assert_eq!((answer.status, answer.code().as_str()), (503, "key_store_unavailable"));

    redis.restart();
    eventually("the keys are loaded", || (status(&gateway, &known) == 200).then_some(()));
    assert!(gateway.run(&["keys", "revoke", &known.id, "--yes"]).status.success());
    eventually("a change after the load is in force", || (status(&gateway, &known) == 401).then_some(()));
}
