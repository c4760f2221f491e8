//! What the manual's page `store_loss` says, sentence by sentence, where no other test does.

use super::{Fleet, said, status};
use crate::harness::{Gateway, eventually};
use std::time::Duration;

#[test]
fn the_wrong_store_is_put_right_and_the_gateways_go_on_by_themselves() {
    let (mut fleet, other) = (Fleet::start(), Fleet::start());
    fleet.copy_as("own");
    other.copy_as("files");
    fleet.put_back(Some(other.copied("files")));
    fleet.is_held();
    fleet.put_back(Some(fleet.copied("own")));
    eventually("it says again what it does not know", || (status(&fleet.gateway, &other.good) == 401).then_some(()));
    fleet.follows();
    assert_eq!(fleet.answers(), [200, 401]);
}

#[test]
fn an_empty_store_is_restored_from_a_backup_and_given_what_changed_since() {
    let mut fleet = Fleet::start();
    fleet.copy_as("backup");
    let later = fleet.gateway.key(&["orders:read"]);
    let ended = fleet.gateway.key(&["orders:read"]);
    assert_eq!(fleet.run(&["keys", "revoke", &ended.id, "--yes"]).0, Some(0));
    fleet.put_back(None);
    fleet.is_held();
    fleet.put_back(Some(fleet.copied("backup")));
    fleet.recovers();
    let state = |id: &str| fleet.gateway.json(&["keys", "show", id, "--output", "json"])["state"].clone();
    assert_eq!((state(&later.id), state(&ended.id)), ("active".into(), "revoked".into()));
    assert_eq!((status(&fleet.gateway, &later), status(&fleet.gateway, &ended)), (200, 401));
}

#[test]
fn while_a_store_settles_nobody_is_told_that_everybody_knows() {
    let mut fleet = Fleet::start();
    fleet.copy_as("earlier");
    let later = fleet.gateway.key(&["orders:read"]);
    fleet.put_back(Some(fleet.copied("earlier")));
    eventually("it is noticed", || (fleet.gateway.metric("keygate_store_forks_total") >= 1.0).then_some(()));
    let cold = fleet.joining("edge-2");
    assert_eq!([status(&cold, &fleet.good), status(&cold, &later)], [503, 503]);
    assert_ne!(status(&cold, &fleet.revoked), 200);
    let (code, words) = fleet.run(&["keys", "revoke", &fleet.good.id, "--yes", "--timeout", "300ms"]);
    assert!(code == Some(75) && words.contains("membership settling"), "{code:?} {words}");
    let (code, words) = fleet.run(&["keys", "revoke", &fleet.good.id, "--yes", "--timeout", "15s"]);
    assert!(code == Some(0) && words.contains("revoked on 2/2 gateways in "), "{code:?} {words}");
    eventually("the cold one serves", || (status(&cold, &later) == 200).then_some(()));
    assert_eq!([status(&cold, &fleet.good), status(&cold, &fleet.revoked)], [401, 401]);
}

#[test]
fn keys_work_until_max_stale_in_a_gateway_that_is_held() {
    let mut fleet = Fleet::start_with("[cache]\nmax_stale = \"4s\"");
    fleet.put_back(None);
    fleet.becomes(1, &["held: another fleet"]);
    assert_eq!(status(&fleet.gateway, &fleet.good), 200);
    eventually("the right to serve runs out", || (status(&fleet.gateway, &fleet.good) == 503).then_some(()));
    let (code, _) = fleet.run(&["store", "reseed", "--yes"]);
    assert_eq!(code, Some(0));
    eventually("it serves again", || (fleet.answers() == [200, 401]).then_some(()));
}

#[test]
fn a_gateway_without_a_snapshot_gives_nothing_back_and_knows_what_it_has_revoked() {
    let mut fleet = Fleet::start();
    fleet.gateway.signal("KILL");
    fleet.gateway.wait();
    let data = fleet.gateway.dir.path().join("data");
    for name in std::fs::read_dir(&data).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()) {
        if name.starts_with("keys.snapshot") {
            std::fs::remove_file(data.join(name)).unwrap();
        }
    }
    // In the way of the file that would become the next one.
    std::fs::create_dir(data.join("keys.snapshot.draft")).unwrap();
    fleet.gateway.restart();
    eventually("it has loaded", || (fleet.answers() == [200, 401]).then_some(()));
    let list = fleet.gateway.json(&["fleet", "list", "--output", "json"]);
    assert_eq!(list[0]["volatile"], true);
    fleet.copy_as("earlier");
    let ended = fleet.gateway.key(&["orders:read"]);
    let before = fleet.good.clone();
    assert_eq!(fleet.run(&["keys", "revoke", &before.id, "--yes"]).0, Some(0));
    assert_eq!(fleet.run(&["keys", "revoke", &ended.id, "--yes"]).0, Some(0));
    fleet.put_back(Some(fleet.copied("earlier")));
    eventually("it is told", || (fleet.gateway.metric("keygate_store_forks_total") >= 1.0).then_some(()));
    std::thread::sleep(Duration::from_secs(1));
    fleet.follows();
    assert_eq!(fleet.gateway.json(&["keys", "show", &before.id, "--output", "json"])["state"], "active");
    assert_eq!((status(&fleet.gateway, &before), status(&fleet.gateway, &ended)), (401, 401));
}

#[test]
fn a_command_without_a_gateway_says_that_the_store_alone_holds_the_change() {
    let mut fleet = Fleet::start();
    let (copy, good) = (fleet.copied("earlier"), fleet.good.clone());
    fleet.copy_as("earlier");
    fleet.gateway.signal("TERM");
    fleet.gateway.wait();
    let (code, words) = fleet.run(&["keys", "revoke", &good.id, "--yes"]);
    assert_eq!((code, words.as_str()), (Some(0), "revoked; no gateway is registered: held by the store alone\n"));
    // It is lost with it.
    fleet.put_back(Some(copy));
    fleet.gateway.restart();
    eventually("it is good again", || (status(&fleet.gateway, &good) == 200).then_some(()));
    assert_eq!(status(&fleet.gateway, &fleet.revoked), 401);
}

#[test]
fn a_later_word_counts_where_somebody_has_changed_the_record_since() {
    let mut fleet = Fleet::start();
    fleet.copy_as("earlier");
    let rename = |gateway: &Gateway, id: &str, name: &str| said(gateway, &["keys", "update", id, "--name", name]);
    let other = fleet.gateway.key(&["orders:read"]);
    assert_eq!(rename(&fleet.gateway, &fleet.good.id, "lost").0, Some(0));
    fleet.gateway.signal("STOP");
    fleet.put_back(Some(fleet.copied("earlier")));
    assert_eq!(rename(&fleet.gateway, &fleet.good.id, "later").0, Some(75));
    fleet.gateway.signal("CONT");
    fleet.recovers();
    let shown = |id: &str| fleet.gateway.json(&["keys", "show", id, "--output", "json"]);
    assert_eq!(shown(&fleet.good.id)["name"], "later");
    assert_eq!(shown(&other.id)["state"], "active");
    assert_eq!((fleet.answers(), status(&fleet.gateway, &other)), ([200, 401], 200));
}
