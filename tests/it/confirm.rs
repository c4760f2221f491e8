//! A change is confirmed by every gateway before its command returns, and what is printed is true (contract, section 5;
//! protocols I9, I11, I12).

use crate::harness::client::head;
use crate::harness::{Gateway, Key, Reply, Upstream, eventually};
use std::io::Read;
use std::process::Output;

/// What a command said, its exit code first.
fn said(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

fn revoke(gateway: &Gateway, key: &Key, more: &[&str]) -> (Option<i32>, String) {
    said(&gateway.run(&[&["keys", "revoke", &key.id, "--yes"], more].concat()))
}

/// For a command that is to be confirmed, however busy the machine is: it returns as soon as it has been.
const LONG: [&str; 2] = ["--timeout", "60s"];

/// Makes a key. None where the gateways have not confirmed it for as long as that command waits: then it promises nothing.
fn confirmed_key(gateway: &Gateway) -> Option<Key> {
    let create = ["keys", "create", "--entity", "acme", "--name", "n", "--mode", "live", "--scope", "orders:read"];
    let output = gateway.run(&[&create[..], &["--output", "json"]].concat());
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |member: &str| made[member].as_str().unwrap().to_owned();
    match said(&output) {
        (Some(0), _) => Some(Key { id: text("id"), text: text("key") }),
        (Some(75), _) => None,
        (code, words) => panic!("{code:?} {words}"),
    }
}

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}

/// Two gateways on one store.
fn fleet(upstream: &Upstream) -> (Gateway, Gateway) {
    let first = Gateway::before(upstream);
    let second = Gateway::builder().live(upstream).beside(&first, "edge-2").start();
    (first, second)
}

#[test]
fn i11_a_revoked_key_is_refused_everywhere_when_the_command_returns() {
    let (first, second) = fleet(&Upstream::named("erp"));
    let mut rounds = 0;
    for key in (0..20).filter_map(|_| confirmed_key(&first)) {
        rounds += 1;
        // Creating waits as well: the key works on every gateway when it is shown.
        assert_eq!((status(&first, &key), status(&second, &key)), (200, 200));
        let (code, words) = revoke(&first, &key, &LONG);
        assert_eq!(code, Some(0), "{words}");
        assert_eq!((status(&first, &key), status(&second, &key)), (401, 401), "{words}");
        assert!(words.starts_with("revoked on 2/2 gateways in ") && words.ends_with(" ms\n"), "{words}");
    }
    assert!(rounds > 0, "no key was confirmed");
}

#[test]
fn i9_what_was_in_flight_has_ended_when_the_command_returns() {
    let upstream = Upstream::start(|_| Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))));
    let gateway = Gateway::before(&upstream);
    for round in 1..=10 {
        let key = gateway.key(&["orders:read"]);
        let mut client = gateway.client();
        client.send(head("GET", &gateway.path("orders"), &[&key.bearer()]));
        eventually("the request is at the upstream", || (upstream.received().len() == round).then_some(()));
        assert_eq!(revoke(&gateway, &key, &[]).0, Some(0));
        client.stream().set_nonblocking(false).unwrap();
        assert_eq!(client.read("GET").status, 401);
    }
}

#[test]
fn i12_a_gateway_that_does_not_answer_is_named_with_the_time_until_which_it_may_act() {
    let (first, mut second) = fleet(&Upstream::named("erp"));
    let key = first.key(&["orders:read"]);
    second.signal("STOP");
    // Until the one that answers has had the time to.
    let words = eventually("edge-1 alone has confirmed", || {
        let (code, words) = revoke(&first, &key, &["--timeout", "300ms"]);
        assert_eq!(code, Some(75), "{words}");
        words.contains("revoked on 1/2 gateways; ").then_some(words)
    });
    assert!(words.contains("; edge-2 (") && words.contains(") unconfirmed, may act as before until 20"), "{words}");
    assert_eq!(status(&first, &key), 401);
    second.signal("CONT");
    let (code, words) = revoke(&first, &key, &LONG);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains(" already; revoked on 2/2 gateways in "), "{words}");
    assert_eq!(status(&second, &key), 401);

    // One that died is waited for by nobody.
    second.signal("KILL");
    second.wait();
    let key = first.key(&["orders:read"]);
    let (code, words) = revoke(&first, &key, &[]);
    assert_eq!(code, Some(0));
    assert!(words.starts_with("revoked on 1/1 gateways in "), "{words}");
}

#[test]
fn i12_every_command_that_changes_keys_waits_as_long_as_it_is_told() {
    let (first, second) = fleet(&Upstream::named("erp"));
    let (rotated, updated) = (first.key(&["orders:read"]), first.key(&["orders:read"]));
    second.signal("STOP");
    let create = ["keys", "create", "--entity", "acme", "--name", "n", "--mode", "live", "--scope", "orders:read"];
    let digest = "ab".repeat(32);
    let import = [&["keys", "import", "--sha256", &digest], &create[2..]].concat();
    let (rotate, update) = (["keys", "rotate", &rotated.id], ["keys", "update", &updated.id, "--name", "other"]);
    let delete = ["entities", "delete", "acme", "--yes"];
    let commands: [&[&str]; 5] = [&create, &import, &rotate, &update, &delete];
    for command in commands {
        // The second time round an import and a deletion have nothing left to change.
        let more: &[&str] = if command == delete { &["--timeout", "100ms"] } else { &["--no-wait"] };
        let (code, words) = said(&first.run(&[command, more].concat()));
        match more {
            ["--no-wait"] => {
                assert!(code == Some(0) && words.contains("; not waited for: "), "{command:?}: {code:?} {words}")
            }
            _ => assert!(code == Some(75) && words.contains("edge-2 ("), "{command:?}: {code:?} {words}"),
        }
    }
    second.signal("CONT");
}

#[test]
fn i12_without_a_gateway_the_store_alone_holds_the_change() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    gateway.signal("TERM");
    gateway.wait();
    let (code, words) = revoke(&gateway, &key, &[]);
    assert_eq!((code, words.as_str()), (Some(0), "revoked; no gateway is registered: held by the store alone\n"));
    gateway.restart();
    assert_eq!(status(&gateway, &key), 401);
}

#[test]
fn a_fleet_is_listed_and_one_that_was_forgotten_joins_again() {
    let (first, second) = fleet(&Upstream::named("erp"));
    let list = || first.json(&["fleet", "list", "--output", "json"]).as_array().unwrap().clone();
    let members = list();
    let gateways: Vec<_> = members.iter().map(|member| member["gateway"].as_str().unwrap()).collect();
    assert_eq!(gateways, ["edge-1", "edge-2"]);
    assert!(
        members.iter().all(|member| member["complete"] == true && member["pos"].as_u64() >= Some(1)),
        "{members:#?}"
    );
    let instance = members[1]["instance"].as_str().unwrap();
    assert_eq!(
        said(&first.run(&["fleet", "forget", instance])),
        (Some(0), "forgotten; if it lives, it joins again\n".into())
    );
    eventually("edge-2 is back", || (list().len() == 2).then_some(()));
    assert_eq!(said(&first.run(&["fleet", "forget", "nobody"])).0, Some(1));
    drop(second);
}

#[test]
fn i4_a_gateway_that_has_another_history_confirms_nothing() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let path = |name: &str| gateway.dir.path().join("data").join(name);
    let key = gateway.key(&["orders:read"]);
    let copy = path("copy.db").to_str().unwrap().to_owned();
    rusqlite::Connection::open(path("keygate.db")).unwrap().execute("VACUUM INTO ?1", [&copy]).unwrap();
    let _later = (gateway.key(&["orders:read"]), gateway.key(&["orders:read"]));
    // As from a backup: the store has lost what came after the copy, and will give its numbers again.
    std::fs::rename(copy, path("keygate.db")).unwrap();
    _ = ["keygate.db-wal", "keygate.db-shm"].map(|name| std::fs::remove_file(path(name)));
    let (code, words) = revoke(&gateway, &key, &["--timeout", "300ms"]);
    assert!(code == Some(75) && words.starts_with("revoked and stored; membership settling"), "{code:?} {words}");
}

#[test]
fn a_gateway_that_cannot_open_the_store_any_more_stays_in_the_fleet() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let path = |name: &str| gateway.dir.path().join("data").join(name);
    std::fs::write(path("garbage"), "this is no database, whatever its name may say").unwrap();
    std::fs::rename(path("garbage"), path("keygate.db")).unwrap();
    eventually("the gateway has noticed", || gateway.log_text().contains("cannot be asked").then_some(()));
    let files = std::fs::read_dir(path("keygate.db-fleet")).unwrap().map(|file| file.unwrap().path());
    assert_eq!(files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).count(), 1);
}
