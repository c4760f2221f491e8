//! Faults of Redis itself.

use super::{FRESH_FOR, MAX_STALE, SLACK, Site, assert_none_after, assert_only, never_made};
use crate::harness::redis::RedisServer;
use crate::harness::{Key, eventually};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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
    let ((stopped, resumed), [known, unknown]) = site.while_using([&good, &stranger], || {
        site.redis.signal("STOP");
        let stopped = Instant::now();
        std::thread::sleep(Duration::from_secs(3));
        eventually("an unknown key is no longer told bad", || (site.status(&stranger) == 503).then_some(()));
        let resumed = Instant::now();
        site.redis.signal("CONT");
        eventually("an unknown key is told bad again", || (site.status(&stranger) == 401).then_some(()));
        (stopped, resumed)
    });
    assert_only([200, 200], &known);
    assert_only([401, 503], &unknown);
    let meanwhile: Vec<_> = unknown.into_iter().filter(|answer| answer.started < resumed).collect();
    assert_none_after(stopped + FRESH_FOR + SLACK, 401, &meanwhile);
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
    eventually("it is said", || site.gateway.log_text().contains("is not the one that was followed").then_some(()));
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        std::thread::sleep(FRESH_FOR + SLACK);
        assert_eq!(site.status(&revoked), 401);
    });
    assert_only([200, 200], &known);
    assert_only([503, 503], &unknown);
}

#[test]
fn i6_a_redis_that_comes_back_empty_takes_no_key_away_and_is_followed_again_once_its_data_are_back() {
    let mut site = Site::start();
    let (good, revoked) = (site.key(), site.key());
    assert_eq!(site.revoke(&revoked).0, Some(0));
    let empty = tempfile::tempdir().unwrap();
    site.redis.kill();
    site.redis.set(&["--dir", empty.path().to_str().unwrap()]);
    site.redis.restart();
    eventually("it is said", || site.gateway.log_text().contains("is not the one that was followed").then_some(()));
    assert_eq!((site.status(&good), site.status(&revoked), site.status(&never_made())), (200, 401, 503));
    site.redis.kill();
    site.redis.set(&[]);
    site.redis.restart();
    site.works(&good);
    assert_eq!(site.status(&revoked), 401);
}

#[test]
fn i5_a_redis_restored_from_a_backup_revives_no_key_that_a_gateway_knows_to_have_ended() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [data, backup] = dirs.each_ref().map(|dir| dir.path().to_str().unwrap());
    let mut site = Site::start_on(RedisServer::start_with(&["--dir", data]), "");
    let (good, revoked) = (site.key(), site.key());
    assert!(Command::new("cp").args(["-r", &format!("{data}/."), backup]).status().unwrap().success());
    assert_eq!(site.revoke(&revoked).0, Some(0));
    site.redis.kill();
    site.redis.set(&["--dir", backup]);
    site.redis.restart();
    eventually("it is said", || site.gateway.log_text().contains("has lost changes").then_some(()));
    assert_eq!((site.status(&good), site.status(&revoked)), (200, 401));
    let (code, words) = site.run(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "300ms"]);
    assert!(code == Some(75) && !words.contains("revoked on 1/1"), "{code:?} {words}");
    assert_eq!((site.status(&good), site.status(&revoked)), (200, 401));
    // Given back, the store knows of it again.
    eventually("the store has settled", || {
        (site.run(&["keys", "revoke", &revoked.id, "--yes"]).0 == Some(0)).then_some(())
    });
    assert_eq!((site.status(&good), site.status(&never_made())), (200, 401));
}
