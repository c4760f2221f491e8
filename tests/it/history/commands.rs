//! `keygate store` ends every state in which a gateway is held, and refuses what would bring back a key that was revoked.

use super::{Fleet, said, status};
use crate::harness::gateway::{ENTITY, keygate};
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, eventually};
use keygate::key::Digest;
use std::path::{Path, PathBuf};

/// Somebody who has no snapshot: a directory with this fleet's gateway.toml alone.
struct Elsewhere(tempfile::TempDir);

// === impl Elsewhere ===

impl Elsewhere {
    fn on(redis: &RedisServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.toml");
        let shipped = std::fs::read_to_string(config).unwrap();
        let lines = shipped.lines().filter(|line| !line.starts_with("[store]") && !line.starts_with("url ="));
        let rest = lines.collect::<Vec<_>>().join("\n");
        let toml = format!("{rest}\n[store]\nurl = \"{}\"\n", redis.url());
        std::fs::write(dir.path().join("gateway.toml"), toml).unwrap();
        Self(dir)
    }

    /// A copy of a gateway's snapshot.
    fn has_disk_of(&self, gateway: &Gateway) {
        let to = self.0.path().join("data");
        std::fs::create_dir_all(&to).unwrap();
        for file in std::fs::read_dir(gateway.dir.path().join("data")).unwrap().map(Result::unwrap) {
            if file.file_name().to_string_lossy().starts_with("keys.snapshot") {
                std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
            }
        }
    }

    fn run(&self, args: &[&str]) -> super::Said {
        let output = keygate(self.0.path()).args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }
}

fn create<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let args = ["--entity", "acme", "--name", "x", "--mode", "live", "--scope", "orders:read"];
    [&["keys", "create"], &args[..], more].concat()
}

#[test]
fn an_empty_store_is_filled_again_from_a_gateways_disk() {
    let mut fleet = Fleet::start();
    let before = fleet.head();
    fleet.put_back(None);
    fleet.is_held();
    // Nobody who knows better begins anything there.
    let (code, words) = fleet.run(&["store", "init"]);
    assert!(code == Some(1) && words.contains("knows the keys of fleet ") && words.contains("reseed"), "{words}");
    for command in [&create(&[])[..], &["entities", "create", "--code", "other"]] {
        let (code, words) = fleet.run(command);
        assert!(matches!(code, Some(1 | 69)), "{command:?}: {code:?} {words}");
    }
    let (code, words) = fleet.run(&["entities", "create", "--code", "other"]);
    assert!(code == Some(69) && words.contains("the key store is empty, and "), "{code:?} {words}");
    let (code, words) = fleet.run(&["store", "adopt", "--yes"]);
    assert!(code == Some(1) && words.contains("there is nothing to adopt"), "{words}");
    // What it would do, first.
    let (code, words) = fleet.run(&["store", "reseed"]);
    assert!(code == Some(0) && words.starts_with("3 of the 3 records of fleet "), "{words}");
    assert!(words.ends_with("nothing was changed; to do it: keygate store reseed --yes\n"), "{words}");
    assert_eq!(fleet.head(), " ");
    fleet.is_held();

    fleet.gateway.signal("STOP");
    let (code, words) = fleet.run(&["store", "reseed", "--yes"]);
    assert!(code == Some(0) && words.contains("done: 2 keys"), "{code:?} {words}");
    assert!(fleet.redis.value("GET {keygate}:fork").is_some(), "whoever knows more has not told it yet");
    fleet.gateway.signal("CONT");
    fleet.follows();
    assert_eq!(fleet.answers(), [200, 401]);
    assert_eq!(before.split(' ').nth(2), fleet.head().split(' ').nth(2), "it is the same fleet");
    // Again: there is nothing to do.
    let (code, words) = fleet.run(&["store", "reseed", "--yes"]);
    assert!(code == Some(0) && words.starts_with("0 of the 3 records"), "{code:?} {words}");
    fleet.follows();
    let cold = fleet.joining("edge-2");
    eventually("the cold one serves", || (status(&cold, &fleet.good) == 200).then_some(()));
    assert_eq!(status(&cold, &fleet.revoked), 401);
    let key = fleet.gateway.key(&["orders:read"]);
    let (code, words) = fleet.run(&["keys", "revoke", &key.id, "--yes", "--timeout", "15s"]);
    assert!(code == Some(0) && words.starts_with("revoked on 2/2 gateways in "), "{words}");
}

#[test]
fn a_store_that_holds_something_else_is_not_filled() {
    let mut fleet = Fleet::start();
    let elsewhere = Elsewhere::on(&fleet.redis);
    fleet.copy_as("earlier");
    let (known, _) = (fleet.gateway.key(&["orders:read"]), fleet.gateway.signal("STOP"));
    fleet.put_back(Some(fleet.copied("earlier")));
    let (code, words) = elsewhere.run(&create(&[]));
    assert_eq!(code, Some(75), "{words}");
    let head = fleet.head();
    let (code, words) = fleet.run(&["store", "reseed", "--yes"]);
    assert!(
        code == Some(1) && words.contains("the store is not empty, and holds other things than the snapshot: key_"),
        "{words}"
    );
    assert_eq!(fleet.head(), head);
    fleet.gateway.signal("CONT");
    fleet.recovers();
    assert_eq!(status(&fleet.gateway, &known), 200);

    // Another fleet was begun in it.
    fleet.put_back(None);
    fleet.is_held();
    let (code, words) = elsewhere.run(&["entities", "create", "--code", "other"]);
    assert_eq!(code, Some(0), "{words}");
    let (code, words) = fleet.run(&["store", "reseed", "--yes"]);
    assert!(
        code == Some(1) && words.contains("the store is fleet ") && words.contains("nothing was changed"),
        "{words}"
    );
    let (code, words) = elsewhere.run(&["store", "reseed", "--yes"]);
    assert!(code == Some(1) && words.contains("there is no snapshot"), "{words}");
    fleet.is_held();
}

#[test]
fn another_fleets_store_is_adopted_and_what_was_revoked_stays_so() {
    let (mut fleet, other) = (Fleet::start(), Fleet::start());
    other.copy_as("files");
    fleet.put_back(Some(other.copied("files")));
    fleet.is_held();
    assert_eq!(status(&fleet.gateway, &other.good), 503);
    let (code, words) = fleet.run(&["store", "adopt"]);
    assert!(code == Some(0) && words.contains("forgets its 2 keys of fleet "), "{words}");
    assert!(words.ends_with("nothing was changed; to do it: keygate store adopt --yes\n"), "{words}");
    fleet.is_held();
    assert_eq!(fleet.run(&["store", "adopt", "--yes"]).0, Some(0));
    // Its own keys work until it knows the others, and what was revoked never does. The store has just started: while it settles,
    // a key that is gone is not called unknown.
    eventually("its own key is unknown", || {
        let known = status(&fleet.gateway, &fleet.good);
        let other = status(&fleet.gateway, &other.good);
        assert!(known == 200 || matches!(known, 401 | 503) && other == 200, "{known} {other}");
        assert_eq!(status(&fleet.gateway, &fleet.revoked), 401);
        (known == 401).then_some(())
    });
    fleet.becomes_but(&other.gateway, &["following"]);
    assert_eq!(fleet.answers(), [401, 401]);
    assert_eq!(status(&fleet.gateway, &other.good), 200);
    assert_eq!(status(&fleet.gateway, &other.revoked), 401);
}

#[test]
fn a_store_in_which_a_revoked_key_is_in_force_is_not_adopted() {
    let (mut fleet, other) = (Fleet::start(), Fleet::start());
    let deleted = "11111111-2222-4333-8444-555555555555";
    let by = |gateway: &Gateway, args: &[&str]| {
        let (code, words) = said(gateway, args);
        assert_eq!(code, Some(0), "{args:?}: {words}");
    };
    by(&fleet.gateway, &["entities", "create", "--code", "gone", "--id", deleted]);
    by(&fleet.gateway, &["entities", "delete", "gone", "--yes"]);
    by(&other.gateway, &["entities", "create", "--code", "back", "--id", deleted]);
    let digest = Digest::of(fleet.revoked.text.as_bytes()).to_string();
    let import = [&["keys", "import", "--sha256", &digest], &create(&[])[2..]].concat();
    by(&other.gateway, &import);
    let listed = other.gateway.json(&["keys", "list", "--output", "json"]);
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap().to_owned()).collect();
    let imported = ids.iter().find(|id| ![&other.good.id, &other.revoked.id].contains(id)).unwrap();
    other.copy_as("files");
    fleet.put_back(Some(other.copied("files")));
    fleet.is_held();
    let refusal = |fleet: &Fleet, name: &str| {
        let (code, words) = fleet.run(&["store", "adopt", "--yes"]);
        let is_named = words.contains("in force again, which had ended: ") && words.contains(name);
        assert!(code == Some(1) && is_named, "{code:?} {words}");
        std::thread::sleep(std::time::Duration::from_millis(700));
        fleet.is_held();
    };
    refusal(&fleet, imported);
    let elsewhere = Elsewhere::on(&fleet.redis);
    assert_eq!(elsewhere.run(&["keys", "revoke", imported, "--yes", "--no-wait"]).0, Some(0));
    refusal(&fleet, "entity back");
    // Gateways are waited for that do not follow this store.
    assert_eq!(elsewhere.run(&["entities", "delete", "back", "--yes"]).0, Some(75));
    assert_eq!(fleet.run(&["store", "adopt", "--yes"]).0, Some(0));
    fleet.becomes_but(&other.gateway, &["following"]);
    eventually("the other's key works", || (status(&fleet.gateway, &other.good) == 200).then_some(()));
    assert_eq!(fleet.answers(), [401, 401]);
}

/// Two gateways are held, of which the second alone knows of a revocation.
fn held_knowing_more(command: &str, fleet: &mut Fleet, files: Option<PathBuf>) -> Gateway {
    let second = fleet.joining("edge-2");
    eventually("it serves", || (status(&second, &fleet.good) == 200).then_some(()));
    let key = fleet.gateway.key(&["orders:read"]);
    fleet.gateway.signal("STOP");
    let (code, words) = said(&second, &["keys", "revoke", &key.id, "--yes", "--timeout", "300ms"]);
    assert_eq!(code, Some(75), "{words}");
    eventually("it is revoked on one", || (status(&second, &key) == 401).then_some(()));
    fleet.put_back(files);
    fleet.gateway.signal("CONT");
    let is_held = |state: &&String| *state == "held: another fleet";
    eventually("both are held", || (fleet.states().1.iter().filter(is_held).count() == 2).then_some(()));
    let (code, words) = fleet.run(&["store", command, "--yes"]);
    let is_named = words.contains("edge-2 ") && words.contains("does not know of: run this where edge-2 runs");
    assert!(code == Some(1) && is_named && words.ends_with("nothing was changed\n"), "{code:?} {words}");
    second
}

#[test]
fn i4_a_store_is_not_adopted_beside_a_gateway_that_knows_less_than_another() {
    let (mut fleet, other) = (Fleet::start(), Fleet::start());
    other.copy_as("files");
    let second = held_knowing_more("adopt", &mut fleet, Some(other.copied("files")));
    let (code, words) = Elsewhere::on(&fleet.redis).run(&["store", "adopt", "--yes"]);
    assert!(code == Some(1) && words.contains("there is no snapshot"), "{code:?} {words}");
    // Nor where a third fleet's gateway has its disk.
    let third = Fleet::start();
    let elsewhere = Elsewhere::on(&fleet.redis);
    elsewhere.has_disk_of(&third.gateway);
    let (code, words) = elsewhere.run(&["store", "adopt", "--yes"]);
    assert!(code == Some(1) && words.contains("are of another fleet than this gateway's disk"), "{code:?} {words}");
    let (code, words) = said(&second, &["store", "adopt", "--yes"]);
    assert_eq!(code, Some(0), "{words}");
    fleet.becomes_but(&other.gateway, &["following", "following"]);
    eventually("the other's key works", || (status(&fleet.gateway, &other.good) == 200).then_some(()));
    // While the store settles, a key that is gone is not called unknown.
    eventually("its own key is unknown", || (fleet.answers() == [401, 401]).then_some(()));
}

#[test]
fn i4_an_empty_store_is_not_filled_from_a_gateway_that_knows_less_than_another() {
    let mut fleet = Fleet::start();
    let second = held_knowing_more("reseed", &mut fleet, None);
    assert_eq!(fleet.head(), " ");
    // Unless what the other alone knows is given up.
    second.signal("STOP");
    let rows = fleet.gateway.json(&["fleet", "list", "--output", "json"]);
    let row = rows.as_array().unwrap().iter().find(|row| row["gateway"] == "edge-2").unwrap();
    assert_eq!(fleet.run(&["fleet", "forget", row["instance"].as_str().unwrap()]).0, Some(0));
    let (code, words) = fleet.run(&["store", "reseed"]);
    assert!(code == Some(0) && words.starts_with("4 of the 4 records"), "{code:?} {words}");
    second.signal("CONT");
    eventually("it is held again", || (fleet.states().1.len() == 2).then_some(()));
    let (code, words) = said(&second, &["store", "reseed", "--yes"]);
    assert!(code == Some(0) && words.contains("done: 3 keys"), "{code:?} {words}");
    fleet.becomes(0, &["following", "following"]);
    assert_eq!(fleet.answers(), [200, 401]);
}

#[test]
fn leave_to_adopt_one_store_is_none_to_adopt_another() {
    let (mut fleet, other) = (Fleet::start(), Fleet::start());
    other.copy_as("files");
    fleet.put_back(Some(other.copied("files")));
    fleet.is_held();
    fleet.gateway.signal("STOP");
    assert_eq!(fleet.run(&["store", "adopt", "--yes"]).0, Some(0));
    // Before it is taken up, the store is gone again.
    let another = Fleet::start();
    another.copy_as("files");
    fleet.put_back(Some(another.copied("files")));
    fleet.gateway.signal("CONT");
    fleet.is_held();
}

#[test]
fn a_fleet_is_begun_once() {
    let redis = RedisServer::start();
    let elsewhere = Elsewhere::on(&redis);
    let (code, words) = elsewhere.run(&["store", "status"]);
    assert!(code == Some(0) && words.contains("no fleet was begun in it; 0 keys"), "{code:?} {words}");
    assert!(words.contains("nothing is on this gateway's disk"), "{words}");
    let (code, words) = elsewhere.run(&["store", "init"]);
    assert!(code == Some(0) && words.starts_with("begun: fleet "), "{words}");
    let fleet = words.trim_end().rsplit(' ').next().unwrap().to_owned();
    assert_eq!(redis.value("GET {keygate}:fleet_id").as_ref(), Some(&fleet));
    let (code, words) = elsewhere.run(&["store", "init"]);
    assert!(
        code == Some(1) && words.contains(&format!("the store is fleet {fleet}'s already; nothing was changed")),
        "{words}"
    );
    let (code, words) = elsewhere.run(&["store", "adopt", "--yes"]);
    assert!(code == Some(0) && words == "no gateway is held; nothing was changed\n", "{words}");
    assert_eq!(elsewhere.run(&["entities", "create", "--code", "acme", "--id", ENTITY]).0, Some(0));
    assert_eq!(redis.value("GET {keygate}:fleet_id"), Some(fleet));
}
