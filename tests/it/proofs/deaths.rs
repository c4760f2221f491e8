//! What a gateway has confirmed it knows after its death, from its own disk, also when Redis died with it.

use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Upstream, eventually};

/// Kills a gateway and its Redis right after `keys revoke` has returned, and asks it about the key when it has started again
/// without Redis; `times` at each of `pairs` that run beside each other.
pub fn prove(pairs: usize, times: usize) {
    std::thread::scope(|scope| (0..pairs).for_each(|_| _ = scope.spawn(|| die(times))));
    println!("{} of {0} revoked keys were refused from the disk alone", pairs * times);
}

fn die(times: usize) {
    let upstream = Upstream::named("erp");
    let mut redis = RedisServer::start();
    let toml = format!("[store]\nurl = \"{}\"", redis.url());
    let mut gateway = Gateway::builder().live(&upstream).toml(&toml).workers(1).start();
    let kept = gateway.key(&["orders:read"]);
    // Made beforehand: after each death the store takes a while to settle, and a command waits for that.
    let keys: Vec<Key> = (0..times).map(|_| gateway.key(&["orders:read"])).collect();
    for key in &keys {
        let output = gateway.run(&["keys", "revoke", &key.id, "--yes", "--timeout", "20s"]);
        gateway.signal("KILL");
        redis.kill();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && words.starts_with("revoked on 1/1 gateways in "), "{words}");
        gateway.restart();
        assert_eq!((status(&gateway, key), status(&gateway, &kept)), (401, 200));
        redis.restart();
        // It may still read its file.
        assert_eq!(redis.command("PING"), "+PONG");
        eventually("the store is followed again", || (gateway.metric("keygate_feed_lag_seconds") < 1.0).then_some(()));
    }
}

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}
