//! A key's life as an integration sees it, from creation to its end.

use crate::harness::gateway::Key;
use crate::harness::{Gateway, Upstream, eventually};

#[test]
fn a_gateway_starts_on_a_store_with_a_deleted_entity_that_had_keys() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key(&["orders:read"]);
    assert!(gateway.run(&["entities", "delete", "acme", "--yes"]).status.success());
    gateway.signal("TERM");
    gateway.wait();
    gateway.restart();
    assert_eq!(ask(&gateway, &key, "GET", &gateway.path("orders")), (401, "invalid_api_key".into()));
}

/// Sends a request with the key; gives the status, and the code of a refusal.
fn ask(gateway: &Gateway, key: &Key, method: &str, path: &str) -> (u16, String) {
    let answer = gateway.client().request(method, path, &[&key.bearer(), "Content-Length: 0"]);
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

fn refused(gateway: &Gateway, args: &[&str]) -> String {
    let output = gateway.run(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_preset_is_expanded_when_the_key_is_made() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let key = gateway.key_with(&["--mode", "live", "--preset", "analytics"]);
    assert_eq!(ask(&gateway, &key, "GET", &gateway.path("orders")).0, 200);
    assert_eq!(ask(&gateway, &key, "GET", &gateway.path("products")).0, 200);
    assert_eq!(ask(&gateway, &key, "POST", &gateway.path("orders")), (403, "insufficient_scope".into()));
    let shown = gateway.json(&["keys", "show", &key.id, "--output", "json"]);
    assert_eq!(shown["scopes"], serde_json::json!(["accounts:read", "orders:read", "products:read"]));
}

#[test]
fn an_elevated_scope_needs_an_acknowledgement_and_the_migration_preset_an_end() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let create = ["keys", "create", "--entity", "acme", "--name", "cutover", "--mode", "live"];
    let elevated = ["--scope", "migration:write", "--scope", "migration:admin"];
    let error = refused(&gateway, &[&create[..], &elevated].concat());
    assert!(error.contains("--acknowledge-elevated"), "{error}");
    let preset = ["--preset", "migration", "--acknowledge-elevated"];
    let error = refused(&gateway, &[&create[..], &preset].concat());
    assert!(error.contains("--expires") && error.contains("--no-expiry"), "{error}");
    let error = refused(&gateway, &[&create[..], &["--scope", "order:read"]].concat());
    assert!(error.contains("did you mean 'orders:read'?"), "{error}");

    let key = gateway.key_with(&[&["--mode", "live", "--acknowledge-elevated"][..], &elevated].concat());
    assert_eq!(ask(&gateway, &key, "POST", &gateway.path("migration/cutover")).0, 200);
    // `write` does not imply `read`.
    assert_eq!(ask(&gateway, &key, "GET", &gateway.path("migration/cutover")), (403, "insufficient_scope".into()));
}

#[test]
fn a_key_remembers_the_api_version_of_its_creation() {
    let upstream = Upstream::named("erp");
    let mut gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    let config = gateway.dir.path().join("gateway.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("2026-11-01", "2027-01-01")).unwrap();
    gateway.restart();
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer(), "arcus-version: 2025-05-05"]);
    let versions: Vec<_> = upstream.received().iter().map(|received| received.headers("arcus-version")).collect();
    assert_eq!(versions, [["2026-11-01"], ["2025-05-05"]]);
}

#[test]
fn a_key_of_another_system_works_by_its_digest_and_costs_nothing_before() {
    let upstream = Upstream::named("erp");
    let gateway = Gateway::before(&upstream);
    let mut key = gateway.key(&["orders:read"]);
    let foreign = Key { id: String::new(), text: "legacy-system-key-0123456789".into() };
    let malformed = Key { id: String::new(), text: format!("{}x", key.text) };
    let before = gateway.metric("keygate_cache_lookups");
    for wrong in [&foreign, &malformed] {
        assert_eq!(ask(&gateway, wrong, "GET", &gateway.path("orders")), (401, "invalid_api_key".into()));
    }
    assert!(gateway.metric("keygate_cache_lookups") - before < 0.5, "a key that cannot be one was looked up");

    use sha2::Digest as _;
    let hex: String = sha2::Sha256::digest(&foreign.text).iter().map(|byte| format!("{byte:02x}")).collect();
    let import = ["keys", "import", "--entity", "acme", "--name", "legacy", "--mode", "live", "--scope", "orders:read"];
    let imported = gateway.json(&[&import[..], &["--sha256", &hex, "--output", "json"]].concat());
    key = Key { id: imported["id"].as_str().unwrap().to_owned(), text: foreign.text };
    gateway.wait_until_known(&key);
    assert_eq!(ask(&gateway, &key, "GET", &gateway.path("orders")).0, 200);
    assert_eq!(upstream.received().last().unwrap().header("x-key-id"), Some(key.id));
    // A digest is one key's, for good.
    refused(&gateway, &[&import[..], &["--sha256", &hex]].concat());
}

#[test]
fn a_rotated_key_works_until_its_overlap_ends_and_its_successor_after_it() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let old =
        gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--allow", "127.0.0.0/8", "--expires", "1h"]);
    let rotated = gateway.json(&["keys", "rotate", &old.id, "--overlap", "2s", "--output", "json"]);
    let new = Key { id: rotated["id"].as_str().unwrap().to_owned(), text: rotated["key"].as_str().unwrap().to_owned() };
    gateway.wait_until_known(&new);
    let orders = gateway.path("orders");
    assert_eq!((ask(&gateway, &old, "GET", &orders).0, ask(&gateway, &new, "GET", &orders).0), (200, 200));
    assert_eq!(rotated["allowlist"], serde_json::json!(["127.0.0.0/8"]));
    let state = gateway.json(&["keys", "show", &old.id, "--output", "json"])["state"].clone();
    assert_eq!(state, "expiring");
    eventually("the overlap ends", || {
        (ask(&gateway, &old, "GET", &orders) == (401, "expired_api_key".into())).then_some(())
    });
    assert_eq!(ask(&gateway, &new, "GET", &orders).0, 200);
    refused(&gateway, &["keys", "rotate", &old.id]);

    let rotated = gateway.json(&["keys", "rotate", &new.id, "--overlap", "0", "--output", "json"]);
    assert_ne!(rotated["id"], new.id.as_str());
    eventually("no overlap ends at once", || (ask(&gateway, &new, "GET", &orders).0 == 401).then_some(()));
}

#[test]
fn a_change_made_on_the_command_line_is_in_force_in_the_running_gateway() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let (key, orders) = (gateway.key(&["orders:read", "orders:write"]), gateway.path("orders"));
    let becomes = |method: &str, expected: (u16, &str)| {
        eventually("the change is in force", || {
            (ask(&gateway, &key, method, &orders) == (expected.0, expected.1.to_owned())).then_some(())
        });
    };
    becomes("POST", (200, ""));
    gateway.json(&["keys", "update", &key.id, "--scope", "orders:read", "--output", "json"]);
    becomes("POST", (403, "insufficient_scope"));
    gateway.json(&["keys", "update", &key.id, "--allow", "10.9.0.0/16", "--output", "json"]);
    becomes("GET", (403, "ip_not_allowlisted"));
    gateway.json(&["keys", "update", &key.id, "--allow-any", "--output", "json"]);
    becomes("GET", (200, ""));
    assert!(gateway.run(&["entities", "delete", "acme", "--yes"]).status.success());
    becomes("GET", (401, "invalid_api_key"));
}

#[test]
fn a_revoked_key_stays_revoked_and_a_key_made_while_nobody_served_works() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let (key, orders) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    let revoke = ["keys", "revoke", key.id.as_str(), "--yes"];
    assert!(gateway.run(&revoke).status.success());
    let again = gateway.run(&revoke);
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("already"));
    refused(&gateway, &["keys", "update", &key.id, "--name", "back"]);
    refused(&gateway, &["keys", "rotate", &key.id]);

    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let create = ["keys", "create", "--entity", "acme", "--name", "n", "--mode", "live", "--scope", "orders:read"];
    let made = gateway.json(&[&create[..], &["--output", "json"]].concat());
    let made = Key { id: made["id"].as_str().unwrap().into(), text: made["key"].as_str().unwrap().into() };
    gateway.restart();
    assert_eq!(ask(&gateway, &key, "GET", &orders), (401, "invalid_api_key".into()));
    assert_eq!(ask(&gateway, &made, "GET", &orders).0, 200);
}
