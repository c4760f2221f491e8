//! Stores that are not as a store should be: named, nothing of them is applied, and service goes on.

use super::{Fleet, status};
use crate::harness::eventually;
use std::time::Duration;

#[test]
fn two_fleets_pointed_at_one_redis_do_not_mix() {
    let (fleet, mut guest) = (Fleet::start(), Fleet::start());
    let head = fleet.head();
    let path = guest.gateway.dir.path().join("gateway.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, config.replace(&guest.redis.url(), &fleet.redis.url())).unwrap();
    guest.gateway.restart();
    eventually("the guest is held", || {
        let (code, states) = fleet.states();
        let mut states: Vec<_> = states.iter().map(String::as_str).collect();
        states.sort_unstable();
        (code == Some(1) && states == ["following", "held: another fleet"]).then_some(())
    });
    assert_eq!((fleet.answers(), guest.answers()), ([200, 401], [200, 401]));
    assert_eq!((status(&guest.gateway, &fleet.good), status(&fleet.gateway, &guest.good)), (503, 401));
    assert_eq!(fleet.head(), head, "a guest has written");
    // Who waits for everybody is told of the guest: nobody can know what keys it honours.
    let (code, words) = fleet.run(&["keys", "update", &fleet.good.id, "--name", "y"]);
    assert!(code == Some(75) && words.contains("updated on 1/2 gateways; edge-1 ("), "{code:?} {words}");
    let own = guest.redis.value("GET {keygate}:fleet_id").unwrap();
    assert!(words.contains(&format!(") is held with the keys of fleet {own} (see `keygate store status`)")), "{words}");
    // A command beside the guest's snapshot changes nothing here either.
    let (here, head) = (fleet.redis.value("GET {keygate}:fleet_id").unwrap(), fleet.head());
    let revoke = ["keys", "revoke", &fleet.good.id, "--yes", "--no-wait"];
    for command in [&revoke[..], &["entities", "create", "--code", "other"], &["entities", "delete", "acme", "--yes"]] {
        let (code, words) = guest.run(command);
        let named =
            format!("the key store is fleet {here}'s, and this gateway's keys are fleet {own}'s: nothing was changed");
        assert!(code == Some(69) && words.contains(&named) && words.contains("store status"), "{code:?} {words}");
    }
    assert_eq!(fleet.head(), head);
    let (_, words) = guest.run(&["store", "status"]);
    assert!(words.contains("another fleet than the store's, in which commands beside it change nothing"), "{words}");
    assert_eq!(guest.run(&["keys", "list"]).0, Some(0));
    assert_eq!(fleet.answers(), [200, 401]);
    // It leaves.
    guest.gateway.signal("TERM");
    assert_eq!(guest.gateway.wait(), Some(0));
    fleet.follows();
    std::fs::write(&path, config).unwrap();
    guest.gateway.restart();
    // Its row from before the mistake is there as well, until it has been silent for long.
    guest.becomes(0, &["following", "following"]);
    eventually("it serves", || (guest.answers() == [200, 401]).then_some(()));
    assert_eq!((fleet.answers(), guest.answers()), ([200, 401], [200, 401]));
}

#[test]
fn a_gateway_that_is_held_tells_the_store_nothing_of_its_keys_uses_until_its_own_is_back() {
    let (mut fleet, other) = (Fleet::start(), Fleet::start());
    let last_use = |fleet: &Fleet| fleet.redis.value(&format!("HGET {{keygate}}:uses {}", fleet.good.id));
    eventually("its use is told", || last_use(&fleet).map(drop));
    let before = last_use(&fleet);
    fleet.copy_as("own");
    other.copy_as("files");
    fleet.put_back(Some(other.copied("files")));
    fleet.is_held();
    let whose = format!("the key store is fleet {}'s", fleet.redis.value("GET {keygate}:fleet_id").unwrap());
    eventually("its sink waits", || {
        let report = fleet.gateway.admin_page("/readyz?verbose").text();
        report.lines().any(|line| line.starts_with("[sink accounts] failing") && line.contains(&whose)).then_some(())
    });
    assert_eq!(last_use(&fleet), None);
    fleet.put_back(Some(fleet.copied("own")));
    // It was used since while the other store was there, and at no other time.
    eventually("it tells what it had to tell", || (last_use(&fleet) != before).then_some(()));
    fleet.follows();
}

#[test]
fn a_store_that_was_emptied_while_it_ran_is_not_followed() {
    let fleet = Fleet::start();
    assert_eq!(fleet.redis.command("FLUSHALL"), "+OK");
    // Another program's data are none of ours.
    assert_eq!(fleet.redis.command("SET somebody else"), "+OK");
    fleet.is_held();
    assert_eq!(fleet.redis.value("GET {keygate}:fleet_id"), None);
    assert_eq!(fleet.run(&["store", "reseed", "--yes"]).0, Some(0));
    fleet.follows();
    assert_eq!(fleet.answers(), [200, 401]);
}

#[test]
fn a_store_without_its_fleets_name_is_not_followed() {
    let fleet = Fleet::start();
    let id = fleet.redis.value("GET {keygate}:fleet_id").unwrap();
    assert_eq!(fleet.redis.command("DEL {keygate}:fleet_id"), ":1");
    // The log has to move: an unchanged one is not read.
    fleet.is_held();
    assert_eq!(fleet.redis.command(&format!("SET {{keygate}}:fleet_id {id}")), "+OK");
    fleet.follows();
}

#[test]
fn a_store_without_its_schemas_version_gets_it_back_with_the_next_change() {
    let fleet = Fleet::start();
    assert_eq!(fleet.redis.command("DEL {keygate}:schema"), ":1");
    let key = fleet.gateway.key(&["orders:read"]);
    assert_eq!((fleet.answers(), status(&fleet.gateway, &key)), ([200, 401], 200));
    assert_eq!(fleet.redis.value("GET {keygate}:schema").as_deref(), Some("1"));
}

#[test]
fn a_store_of_a_newer_schema_is_named_and_left_alone() {
    let fleet = Fleet::start();
    let head = fleet.head();
    assert_eq!(fleet.redis.command("SET {keygate}:schema 2"), "+OK");
    fleet.redis.command("CLIENT KILL TYPE normal SKIPME yes");
    let words = "the data in Redis have schema 2, this version knows 1";
    eventually("it is named", || fleet.gateway.log_text().contains(words).then_some(()));
    for command in [&["store", "status"][..], &["store", "init"], &["store", "reseed", "--yes"], &["keys", "list"]] {
        let (code, said) = fleet.run(command);
        assert!(code == Some(69) && said.contains(words), "{command:?}: {code:?} {said}");
    }
    assert_eq!((fleet.answers(), fleet.head()), ([200, 401], head));
    assert_eq!(fleet.redis.command("SET {keygate}:schema 1"), "+OK");
    fleet.follows();
    eventually("a change goes through", || {
        (fleet.run(&["keys", "update", &fleet.good.id, "--name", "y"]).0 == Some(0)).then_some(())
    });
}

#[test]
fn a_record_that_was_edited_by_hand_is_named_and_its_gateway_goes_on() {
    let fleet = Fleet::start();
    let name = format!("{{keygate}}:key:{}", fleet.good.id);
    let text = fleet.redis.value(&format!("GET {name}")).unwrap();
    assert_eq!(fleet.redis.command(&format!("SET {name} gibberish")), "+OK");
    assert_eq!(fleet.answers(), [200, 401]);
    let (code, words) = fleet.run(&["keys", "show", &fleet.good.id]);
    assert!(code == Some(69) && words.contains("the key store is not available: "), "{code:?} {words}");
    // Who has to load it says that it cannot, and never that the key is bad.
    let cold = fleet.joining("edge-2");
    for _ in 0..20 {
        assert_eq!((status(&cold, &fleet.good), status(&cold, &fleet.revoked)), (503, 503));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(cold.log_text().contains("the key store cannot be asked"), "{}", cold.log_text());
    let whole = text.replace('"', "\\\"");
    assert_eq!(fleet.redis.command(&format!("SET {name} \"{whole}\"")), "+OK");
    eventually("it has loaded", || (status(&cold, &fleet.good) == 200).then_some(()));
    assert_eq!((status(&cold, &fleet.revoked), fleet.answers()), (401, [200, 401]));
}

#[test]
fn an_entry_that_was_added_to_the_log_by_hand_is_named_and_not_applied() {
    let fleet = Fleet::start();
    assert!(
        fleet
            .redis
            .command("XADD {keygate}:log 99-0 token 1 at 1 actor me action key.revoked before x after x")
            .starts_with('$')
    );
    assert_eq!(fleet.redis.command("SET {keygate}:head \"99 1\""), "+OK");
    eventually("it is named", || fleet.gateway.log_text().contains("cannot be asked").then_some(()));
    assert_eq!(fleet.answers(), [200, 401]);
}

#[test]
fn a_log_that_was_trimmed_past_every_position_is_another_history() {
    let fleet = Fleet::start();
    assert!(fleet.redis.command("XTRIM {keygate}:log MAXLEN 0").starts_with(':'));
    let (code, words) = fleet.run(&["keys", "update", &fleet.good.id, "--name", "y"]);
    assert!(code == Some(75), "{code:?} {words}");
    fleet.becomes(1, &["held: nothing in common"]);
    assert_eq!(fleet.answers(), [200, 401]);
    assert!(fleet.gateway.log_text().contains("the key store is not the one that was followed"));
    let (code, words) = fleet.run(&["store", "reseed", "--yes"]);
    assert!(code == Some(1) && words.contains("holds other things"), "{code:?} {words}");
    let (code, words) = fleet.run(&["store", "adopt", "--yes"]);
    assert_eq!(code, Some(0), "{words}");
    fleet.follows();
    assert_eq!(fleet.answers(), [200, 401]);
    let cold = fleet.joining("edge-2");
    eventually("it serves", || (status(&cold, &fleet.good) == 200).then_some(()));
    assert_eq!(status(&cold, &fleet.revoked), 401);
}
