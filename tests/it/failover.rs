//! Stores of which a replica takes the master's place: Sentinel and Cluster.

use crate::harness::cluster::Cluster;
use crate::harness::redis::{Port, RedisServer};
use crate::harness::sentinel::{self, Sentinel, Watched};
use crate::harness::tls::{Authority, TlsServer};
use crate::harness::{Gateway, Upstream};
use crate::proofs::failover::{self, End};
use crate::proofs::partition;
use std::time::Duration;

#[test]
fn i7_a_master_that_is_killed_is_left_for_the_one_the_sentinels_name() {
    failover::prove(&mut Watched::start(), &[End::Killed], 50);
}

#[test]
fn i7_a_master_that_stands_still_is_left_for_the_one_the_sentinels_name() {
    failover::prove(&mut Watched::start(), &[End::Stopped], 50);
}

#[test]
fn i7_a_node_that_is_killed_is_left_for_the_one_that_owns_the_slot() {
    failover::prove(&mut Cluster::start(), &[End::Killed], 50);
}

#[test]
fn i7_a_slot_that_moves_is_followed_and_no_change_is_made_by_half() {
    // The second is so slow that a change falls into it on any machine.
    failover::prove_moves(&Cluster::start(), &[50, 300].map(Duration::from_millis), 50);
}

#[test]
fn i1_a_gateway_that_stays_behind_with_the_old_master_renews_no_right() {
    partition::prove();
}

#[test]
fn whoever_makes_a_change_is_told_how_many_replicas_have_it() {
    let (upstream, watched) = (Upstream::named("erp"), Watched::start());
    let gateway = Gateway::builder().live(&upstream).toml(&format!("[store]\nurl = \"{}\"", watched.url())).start();
    let create = |name: &str| {
        let args = ["keys", "create", "--entity", "acme", "--name", name, "--mode", "live", "--scope", "orders:read"];
        String::from_utf8(gateway.run(&args).stderr).unwrap()
    };
    let words = create("held");
    assert!(words.contains("held by ") && words.contains(" of 2 replicas of the store"), "{words}");
    let master = watched.master();
    let replicas = watched.servers.iter().enumerate().filter(|(number, _)| *number != master);
    replicas.for_each(|(_, replica)| replica.signal("STOP"));
    let words = create("not held");
    assert!(words.contains("warning: none of the store's 2 replicas has the change yet"), "{words}");
}

#[test]
fn what_sentinels_and_masters_say_is_told_to_whom_it_concerns() {
    let (upstream, redis, password) =
        (Upstream::named("erp"), RedisServer::start(), tempfile::NamedTempFile::new().unwrap());
    std::fs::write(password.path(), "hush\n").unwrap();
    let watching = Sentinel::start(redis.address().port(), "requirepass hush\n");
    let url = sentinel::url(std::iter::once(watching.port()));
    let file = password.path().display();
    let toml = format!("[store]\nurl = \"{url}\"\nsentinel_password = {{ file = \"{file}\" }}");
    let gateway = Gateway::builder().live(&upstream).toml(&toml).start();
    let said = |args: &[&str]| {
        let output = gateway.run(args);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let create = ["keys", "create", "--entity", "acme", "--name", "x", "--mode", "live", "--scope", "orders:read"];
    let (code, words) = said(&create);
    assert!(code == Some(0) && words.contains("warning: the store's master has no replica"), "{code:?} {words}");

    let (code, words) = said(&["check"]);
    assert!(code == Some(0) && words.contains("warning: ") && words.contains("min-replicas-to-write 0"), "{words}");
    assert_eq!(redis.command("CONFIG SET min-replicas-to-write 1"), "+OK");
    assert_eq!(said(&["check"]), (Some(0), String::new()));
    assert_eq!(redis.command("CONFIG SET min-replicas-to-write 0"), "+OK");
    assert_eq!(redis.command("ACL SETUSER default -config"), "+OK");
    let (code, words) = said(&["check"]);
    assert!(code == Some(0) && words.contains("may not run CONFIG GET"), "{words}");

    assert_eq!(redis.command("REPLICAOF 127.0.0.1 1"), "+OK");
    let (code, words) = said(&create);
    assert!(code == Some(69) && words.contains("name it as the master, and it says 'slave'"), "{code:?} {words}");
    std::fs::write(password.path(), "hiss\n").unwrap();
    let (code, words) = said(&create);
    let names_it = words.contains(&format!("127.0.0.1:{}: ", watching.port()));
    assert!(code == Some(69) && names_it && words.to_lowercase().contains("password"), "{code:?} {words}");
    std::fs::write(password.path(), "hush\n").unwrap();
    let config = gateway.dir.path().join("gateway.toml");
    let other = std::fs::read_to_string(&config).unwrap().replace("/keys\"", "/other\"");
    std::fs::write(&config, other).unwrap();
    let (code, words) = said(&create);
    assert!(code == Some(69) && words.contains("watches no master of this name"), "{code:?} {words}");
}

#[test]
fn sentinels_and_masters_over_tls_prove_who_they_are() {
    let (upstream, authority, other) = (Upstream::named("erp"), Authority::new(), Authority::named("other"));
    let master = TlsServer::start(&authority, "IP:127.0.0.1", &["--tls-auth-clients", "no"]);
    let master_port = master.url().rsplit_once(':').unwrap().1.parse().unwrap();
    let (pair, port) = (authority.issue("sentinel", "IP:127.0.0.1"), Port::reserve());
    let more = format!(
        "tls-port {}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\ntls-auth-clients no\ntls-replication yes\n",
        port.number(),
        pair.cert.display(),
        pair.key.display(),
        authority.ca().display()
    );
    let _sentinel = Sentinel::start(master_port, &more);
    let url = sentinel::url(std::iter::once(port.number())).replace("redis+", "rediss+");
    let toml = format!("[store]\nurl = \"{url}\"\nca = \"{}\"", authority.ca().display());
    let gateway = Gateway::builder().live(&upstream).toml(&toml).start();
    let key = gateway.key(&["orders:read"]);
    let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
    assert_eq!(answer.status, 200);

    let config = gateway.dir.path().join("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(authority.ca().to_str().unwrap(), other.ca().to_str().unwrap())).unwrap();
    let output = gateway.run(&["keys", "list"]);
    let words = String::from_utf8(output.stderr).unwrap();
    let why = format!("127.0.0.1:{}: ", port.number());
    let is_told = words.contains(&why) && words.contains("is not signed by an authority in ca");
    assert!(output.status.code() == Some(69) && is_told, "{words}");
}
