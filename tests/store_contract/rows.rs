//! When the row of a gateway goes, and what its gateway is told then (protocols, Rows).

use super::redis;
use super::relay::relay;
use super::server::RedisServer;
use keygate::store::redis::{RedisStore, Url};
use keygate::store::{KeyStore, Member};
use std::time::{Duration, Instant};

/// A little more than a beat: the next call tells the row again.
const BEAT: Duration = Duration::from_millis(550);

fn member(instance: &str) -> Member {
    let (instance, gateway) = (instance.to_owned(), "edge-1".to_owned());
    Member { instance, gateway, max_stale_ms: 6000, ..Member::default() }
}

fn listed(store: &dyn KeyStore) -> Vec<String> {
    store.fleet().unwrap().members.into_iter().map(|member| member.instance).collect()
}

#[test]
fn rows_who_is_silent_goes_when_it_can_honour_nothing_more_and_whoever_beats_stays() {
    let server = RedisServer::start();
    let store = redis(&server);
    let (mut observer, mut silent, mut beating) =
        (store.changes().unwrap(), store.changes().unwrap(), store.changes().unwrap());
    _ = silent.tell(&member("silent"));
    let begun = Instant::now();
    _ = beating.tell(&member("beating"));
    _ = observer.tell(&member("observer"));
    while listed(&store).contains(&"silent".to_owned()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is still listed");
        std::thread::sleep(BEAT);
        beating.tell(&member("beating")).unwrap();
        observer.tell(&member("observer")).unwrap();
    }
    assert!(begun.elapsed() > Duration::from_secs(6), "it may still serve");
    assert_eq!(listed(&store), ["beating", "observer"]);
}

#[test]
fn rows_whoever_is_forgotten_goes_and_proves_nothing_until_it_has_joined_again() {
    let server = RedisServer::start();
    let (store, mut gateway) = (redis(&server), redis(&server).changes().unwrap());
    _ = gateway.tell(&member("gateway"));
    std::thread::sleep(BEAT);
    gateway.tell(&member("gateway")).unwrap();
    assert!(store.forget("gateway").unwrap());
    assert!(listed(&store).is_empty() && !store.forget("gateway").unwrap());
    std::thread::sleep(BEAT);
    assert!(gateway.tell(&member("gateway")).is_err(), "nobody waited for it meanwhile");
    assert_eq!(listed(&store), ["gateway"]);
    gateway.tell(&member("gateway")).unwrap();
    gateway.leave(&member("gateway"));
    assert!(listed(&store).is_empty());
}

#[test]
fn rows_the_one_before_stays_until_its_successor_has_joined() {
    let server = RedisServer::start();
    let store = redis(&server);
    _ = store.changes().unwrap().tell(&member("before"));
    let mut after = store.changes().unwrap();
    let successor = Member { replaces: Some("before".to_owned()), ..member("after") };
    // It may remove rows, and write none.
    assert_eq!(server.command("ACL SETUSER default -eval"), "+OK");
    assert!(after.tell(&successor).is_err());
    assert_eq!(server.command("HKEYS {keygate}:fleet"), "*1");
    assert_eq!(server.command("ACL SETUSER default +eval"), "+OK");
    assert_eq!(listed(&store), ["before"]);
    _ = after.tell(&successor);
    assert_eq!(listed(&store), ["after"]);
}

#[test]
fn rows_whoever_speaks_while_it_is_about_to_be_removed_stays() {
    let server = RedisServer::start();
    let store = redis(&server);
    let quiet = || Member { max_stale_ms: 1000, ..member("quiet") };
    let mut gateway = store.changes().unwrap();
    _ = gateway.tell(&quiet());
    let (told, tellings) = std::sync::mpsc::channel();
    let address = relay(server.address(), b"HDEL", move || {
        _ = gateway.tell(&quiet());
        told.send(()).unwrap();
        true
    });
    let url = Url::parse(&format!("redis://{address}")).unwrap();
    let mut observer = RedisStore::new(&url).changes().unwrap();
    _ = observer.tell(&member("observer"));
    let begun = Instant::now();
    while tellings.try_recv().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20), "nobody removes it");
        std::thread::sleep(BEAT);
        observer.tell(&member("observer")).unwrap();
    }
    assert_eq!(listed(&store), ["observer", "quiet"]);
}
