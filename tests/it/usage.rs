//! Which keys are used, by whom, and which can go: never one of which anybody could still need.

use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Reply, Upstream, eventually};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

/// Makes a key that no request has presented yet.
fn unused(gateway: &Gateway, name: &str, args: &[&str]) -> Key {
    let create = ["keys", "create", "--entity", "acme", "--name", name, "--mode", "live", "--output", "json"];
    let value = gateway.json(&[&create, args].concat());
    Key { id: value["id"].as_str().unwrap().into(), text: value["key"].as_str().unwrap().into() }
}

fn call(gateway: &Gateway, key: &Key, method: &str, path: &str) -> u16 {
    gateway.client().request(method, path, &[&key.bearer()]).status
}

fn usage(gateway: &Gateway, key: &Key, args: &[&str]) -> Value {
    gateway.json(&[&["keys", "usage", &key.id, "--output", "json"], args].concat())
}

fn verdict(gateway: &Gateway, key: &Key, args: &[&str]) -> String {
    usage(gateway, key, args)["verdict"].as_str().unwrap().into()
}

/// The ids of the keys that the report finds this wrong with.
fn found(gateway: &Gateway, finding: &str, args: &[&str]) -> BTreeSet<String> {
    let report = gateway.json(&[&["keys", "report", "--output", "json"], args].concat());
    let found = report.as_array().unwrap().iter().filter(|one| one["finding"] == finding);
    found.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

fn ids(keys: &[&Key]) -> BTreeSet<String> {
    keys.iter().map(|key| key.id.clone()).collect()
}

/// Waits until the store knows the calls of these keys.
fn wait_until_reported(gateway: &Gateway, keys: &[&Key]) {
    for key in keys {
        eventually("the last use is reported", || (!usage(gateway, key, &[])["last_use"].is_null()).then_some(()));
    }
}

fn segments(gateway: &Gateway) -> Vec<PathBuf> {
    let slot = gateway.dir.path().join("data/audit/0");
    let mut paths: Vec<_> = std::fs::read_dir(slot).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
    paths.sort();
    paths
}

/// The records of a key's requests, as they stand in the segments.
fn raw_records(gateway: &Gateway, key: &Key) -> Vec<Value> {
    let lines: String = segments(gateway).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["kind"] == "request" && record["key_id"] == key.id.as_str()).collect()
}

fn count(records: &[Value], of: impl Fn(&Value) -> String) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    records.iter().for_each(|record| *counts.entry(of(record)).or_default() += 1);
    counts
}

#[test]
fn usage_is_the_count_of_a_keys_records_and_names_what_it_could_do_without() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let scopes =
        ["--scope", "orders:read", "--scope", "products:read", "--allow", "127.0.0.0/8", "--allow", "10.0.0.0/8"];
    let key = gateway.key_with(&[&["--mode", "live"][..], &scopes].concat());
    let calls = [("GET", "orders", 3), ("POST", "orders", 2), ("GET", "nothing/here", 1), ("HEAD", "orders/7", 1)];
    for (method, path, times) in calls {
        (0..times).for_each(|_| _ = call(&gateway, &key, method, &gateway.path(path)));
    }
    call(&gateway, &key, "GET", "/v1/status");
    let of_all = gateway.client().request("GET", "/v1/status", &[&key.bearer()]);
    gateway.record_of(of_all.header("x-request-id").unwrap());
    let (told, records) = (usage(&gateway, &key, &[]), raw_records(&gateway, &key));
    assert_eq!(told["statuses"]["calls"], records.len());
    let text = |value: &Value| value.as_str().unwrap_or("null").to_owned();
    let class = |record: &Value| format!("{}xx", record["status"].as_u64().unwrap() / 100);
    for (class, count) in count(&records, class) {
        assert_eq!(told["statuses"][&class], count, "{class}");
    }
    let list = |list: &Value, name: &dyn Fn(&Value) -> String| -> BTreeMap<String, u64> {
        list.as_array().unwrap().iter().map(|one| (name(one), one["calls"].as_u64().unwrap())).collect()
    };
    let asked = |record: &Value| format!("{} {}", text(&record["method"]), text(&record["route"]));
    assert_eq!(list(&told["routes"], &asked), count(&records, asked));
    assert_eq!(list(&told["addresses"], &|one| text(&one["ip"])), count(&records, |record| text(&record["client_ip"])));
    assert_eq!(
        list(&told["days"], &|one| text(&one["day"])),
        count(&records, |record| text(&record["ts"])[..10].into())
    );
    let refused: Vec<_> = records.iter().filter(|record| record["decision"] == "deny").cloned().collect();
    let reasons: BTreeMap<String, u64> = serde_json::from_value(told["refusals"].clone()).unwrap();
    assert_eq!(reasons, count(&refused, |record| text(&record["reason"])));
    assert_eq!((&told["verdict"], &told["unused_scopes"][0]), (&"in use".into(), &"products:read".into()));
    assert_eq!(told["unmatched_allowlist"], serde_json::json!(["10.0.0.0/8"]));
    assert!(reasons.len() >= 2 && records.len() >= 9);
}

#[test]
fn in_a_fleet_only_what_no_gateway_has_seen_is_safe_to_delete() {
    let (upstream, redis) = (Upstream::named("erp"), RedisServer::start());
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let first = Gateway::builder().live(&upstream).toml(&store).start();
    let second = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    let reads = ["--scope", "orders:read"];
    let [never, refused, elsewhere, rotated] =
        ["never", "refused", "elsewhere", "rotated"].map(|name| unused(&first, name, &reads));
    let value = first.json(&["keys", "rotate", &rotated.id, "--overlap", "1h", "--output", "json"]);
    let successor = Key { id: value["id"].as_str().unwrap().into(), text: value["key"].as_str().unwrap().into() };
    let orders = first.path("orders");
    let replay = || {
        [
            call(&first, &refused, "POST", &orders),
            call(&second, &elsewhere, "GET", &orders),
            call(&first, &rotated, "GET", &orders),
        ]
    };
    assert_eq!(replay(), [403, 200, 200]);
    wait_until_reported(&first, &[&refused, &elsewhere, &rotated]);
    let unneeded = ids(&[&never, &successor]);
    eventually("both gateways have reported up to now", || {
        (found(&first, "never_used", &[]) == unneeded).then_some(())
    });
    assert_eq!(found(&first, "unknown", &[]), BTreeSet::new());
    assert_eq!(found(&second, "never_used", &[]), unneeded);
    assert_eq!(found(&first, "old_key_in_use", &[]), ids(&[&rotated]));
    let all = [&never, &refused, &elsewhere, &rotated, &successor];
    let safe: Vec<_> = all.into_iter().filter(|key| verdict(&first, key, &[]) == "safe to delete").collect();
    assert_eq!(ids(&safe), unneeded);
    let told = usage(&first, &elsewhere, &[]);
    assert_eq!((&told["last_use"]["gateway"], &told["verdict"]), (&"edge-2".into(), &"in use".into()));
    assert_eq!(told["journals_elsewhere"], serde_json::json!(["edge-2/0"]));
    assert_eq!(usage(&first, &refused, &[])["last_use"]["reason"], "insufficient_scope");
    for key in safe {
        assert!(first.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    }
    assert_eq!(replay(), [403, 200, 200]);
}

/// Removes the first line that holds a text from the file that has it.
fn lose(paths: &[PathBuf], text: &str) {
    let holds = |path: &&PathBuf| std::fs::read_to_string(path).unwrap().contains(text);
    let path = paths.iter().find(holds).unwrap();
    let lines = std::fs::read_to_string(path).unwrap();
    let kept: String = lines.split_inclusive('\n').filter(|line| !line.contains(text)).collect();
    assert_eq!(lines.lines().count(), kept.lines().count() + 1);
    std::fs::write(path, kept).unwrap();
}

#[test]
fn a_key_whose_last_call_the_journal_has_lost_is_unknown_and_not_unused() {
    let (upstream, mut redis) = (Upstream::named("erp"), RedisServer::start());
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let mut gateway = Gateway::builder().live(&upstream).toml(&store).start();
    let lost = unused(&gateway, "lost", &["--scope", "orders:read"]);
    let other = gateway.key(&["orders:read"]);
    wait_until_reported(&gateway, &[&other]);
    // While the store cannot be told, so that the record is gone before anybody has reported it.
    redis.kill();
    for key in [&lost, &other] {
        let response = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
        assert_eq!(response.status, 200);
        gateway.record_of(response.header("x-request-id").unwrap());
    }
    gateway.signal("KILL");
    gateway.wait();
    lose(&segments(&gateway), &format!("\"key_id\":\"{}\"", lost.id));
    redis.restart();
    redis.command("PING");
    gateway.restart();
    eventually("the hole is reported", || {
        let told = usage(&gateway, &lost, &[]);
        let lacks = told["coverage"]["lacks"].to_string();
        (lacks.contains("the journal edge-1/0 lacks calls before")).then_some(())
    });
    let told = usage(&gateway, &lost, &[]);
    assert_eq!((&told["verdict"], &told["last_use"]), (&"unknown".into(), &Value::Null));
    assert!(told["coverage"]["percent"].as_u64().unwrap() < 100);
    assert_eq!(found(&gateway, "unknown", &[]), ids(&[&lost]));
    assert_eq!(found(&gateway, "never_used", &[]), BTreeSet::new());
}

#[test]
fn a_use_that_the_journal_no_longer_holds_is_still_known() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    wait_until_reported(&gateway, &[&key]);
    gateway.signal("TERM");
    gateway.wait();
    segments(&gateway).iter().for_each(|path| std::fs::remove_file(path).unwrap());
    _ = std::fs::remove_file(gateway.dir.path().join("data/audit/index.db"));
    gateway.restart();
    eventually("the journal is reported again", || {
        (verdict(&gateway, &key, &["--since", "1s"]) == "safe to delete").then_some(())
    });
    let told = usage(&gateway, &key, &[]);
    assert_eq!((&told["verdict"], &told["statuses"]["calls"]), (&"in use".into(), &0.into()));
    assert_eq!(told["last_use"]["client_ip"], "127.0.0.1");
    assert_eq!(found(&gateway, "idle", &["--idle", "1s"]), ids(&[&key]));
}

fn state(gateway: &Gateway, key: &Key) -> String {
    gateway.json(&["keys", "show", &key.id, "--output", "json"])["state"].as_str().unwrap().into()
}

#[test]
fn a_rotated_key_ends_when_it_is_quiet_on_every_gateway_and_not_before() {
    let (upstream, redis) = (Upstream::named("erp"), RedisServer::start());
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let first = Gateway::builder().live(&upstream).toml(&store).start();
    let second = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    let key = first.key(&["orders:read"]);
    let rotate = ["keys", "rotate", &key.id, "--overlap", "1h", "--until-quiet", "5s", "--output", "json"];
    let successor = first.json(&rotate);
    let shown = first.json(&["keys", "show", &key.id, "--output", "json"]);
    assert_eq!((&shown["until_quiet"], &shown["state"]), (&"5s".into(), &"expiring".into()));
    // In use on the other gateway alone, and refused at that.
    for _ in 0..10 {
        assert_eq!(call(&second, &key, "POST", &second.path("orders")), 403);
        assert_eq!(state(&first, &key), "expiring");
        std::thread::sleep(Duration::from_secs(1));
    }
    eventually("the key ends", || (state(&first, &key) == "revoked").then_some(()));
    eventually("it is refused", || (call(&second, &key, "GET", &second.path("orders")) == 401).then_some(()));
    let revoked = || first.records().into_iter().find(|record| record["action"] == "key.revoked");
    let ended = eventually("the end is recorded", revoked);
    assert!(ended["actor"].as_str().unwrap().starts_with("gateway:edge-"), "{ended}");
    assert_eq!(ended["after"]["until_quiet_s"], 5);
    let successor =
        Key { id: successor["id"].as_str().unwrap().into(), text: successor["key"].as_str().unwrap().into() };
    assert_eq!(call(&first, &successor, "GET", &first.path("orders")), 200);
    assert_eq!(state(&first, &successor), "active");
}

#[test]
fn a_gateway_that_ended_in_good_order_leaves_nothing_unknown_and_a_dead_one_does() {
    let (upstream, redis) = (Upstream::named("erp"), RedisServer::start());
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let first = Gateway::builder().live(&upstream).toml(&store).start();
    let mut second = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    let key = unused(&first, "key", &["--scope", "orders:read"]);
    second.signal("TERM");
    second.wait();
    let is_safe = || verdict(&first, &key, &[]) == "safe to delete";
    eventually("its journal is closed", || is_safe().then_some(()));
    second.restart();
    eventually("it reports again", || is_safe().then_some(()));
    second.signal("KILL");
    second.wait();
    eventually("what it may have seen is unknown", || (verdict(&first, &key, &[]) == "unknown").then_some(()));
    second.restart();
    eventually("its successor has reported what it left", || is_safe().then_some(()));

    // The machine is gone.
    second.signal("KILL");
    second.wait();
    let members = first.json(&["fleet", "list", "--output", "json"]);
    let dead = members.as_array().unwrap().iter().find(|member| member["gateway"] == "edge-2").unwrap();
    let forget = |name: &str| String::from_utf8(first.run(&["fleet", "forget", name]).stderr).unwrap();
    let told = forget(dead["instance"].as_str().unwrap());
    assert!(told.contains("keygate fleet forget edge-2/0"), "{told}");
    assert!(forget("edge-2/0").starts_with("given up"));
    let later = unused(&first, "later", &["--scope", "orders:read"]);
    eventually("what comes after it is known", || (verdict(&first, &later, &[]) == "safe to delete").then_some(()));
    assert_eq!(verdict(&first, &key, &[]), "unknown");
}

#[test]
fn a_key_whose_only_call_is_still_under_way_is_in_use() {
    let upstream = Upstream::start(|_| Reply::events_without_end());
    let gateway = Gateway::before(&upstream);
    let (streaming, idle) = (
        unused(&gateway, "streaming", &["--scope", "orders:read"]),
        unused(&gateway, "idle", &["--scope", "orders:read"]),
    );
    let mut client = gateway.client();
    client.send(format!("GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n", gateway.path("orders"), streaming.bearer()));
    eventually("the stream has begun", || (!upstream.received().is_empty()).then_some(()));
    eventually("all is known", || (verdict(&gateway, &idle, &[]) == "safe to delete").then_some(()));
    wait_until_reported(&gateway, &[&streaming]);
    assert_eq!(verdict(&gateway, &streaming, &[]), "in use");
    assert_eq!(found(&gateway, "never_used", &[]), ids(&[&idle]));
    assert!(raw_records(&gateway, &streaming).is_empty());
}

#[test]
fn a_keys_text_given_for_its_id_is_not_shown() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    let output = gateway.run(&["keys", "usage", &key.text]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!String::from_utf8(output.stderr).unwrap().contains(&key.text));
}
