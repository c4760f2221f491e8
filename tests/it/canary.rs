//! No key is found in anything that a gateway writes, says or forwards. Every gateway of these tests is searched when it is
//! dropped; here it is shown that the search finds what is there.

use crate::harness::gateway::keygate;
use crate::harness::{Canary, Client, Gateway, Upstream, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

/// Lets the gateway see its key in every place where a client may put one, right and wrong.
fn show_key_everywhere(gateway: &Gateway, text: &str) {
    let (path, forbidden) = (gateway.path("orders"), gateway.path("products"));
    let headers = [
        vec![format!("Authorization: Bearer {text}")],
        vec![format!("Authorization: bearer {text}x")],
        vec![format!("Authorization: Basic {text}")],
        vec![format!("X-Api-Key: {text}")],
        vec![format!("Cookie: a=1; key={text}")],
        vec![format!("Authorization: Bearer {text}"), format!("X-Api-Key: {text}")],
        vec![format!("Authorization: Bearer {text}"), format!("Authorization: Bearer {text}")],
    ];
    for target in [path.as_str(), &forbidden, "/v1/status", "/v1/no-such-route"] {
        for lines in &headers {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            gateway.client().request("GET", target, &lines);
        }
    }
}

#[test]
fn a_key_shown_in_every_place_is_found_nowhere_afterwards() {
    let upstream = Upstream::named("erp");
    let mut gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    show_key_everywhere(&gateway, &key.text);
    let successor = gateway.json(&["keys", "rotate", &key.id, "--overlap", "0", "--output", "json"]);
    let successor = successor["key"].as_str().unwrap();
    assert!(gateway.canary.occurs_in(successor.as_bytes()), "a rotated key is looked for as well");
    gateway.run(&["keys", "revoke", &key.id, "--yes"]);
    show_key_everywhere(&gateway, &key.text);
    gateway.restart();

    assert!(!upstream.heads().is_empty());
    assert!(!gateway.records().is_empty());
    assert_eq!(gateway.canary.keys(), 2);
    assert_eq!(gateway.leaks(), Vec::<String>::new());
}

#[test]
fn a_planted_key_is_found_by_the_same_search() {
    let upstream = Upstream::named("erp");
    let gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);

    let planted = gateway.dir.path().join("data/audit/debug.log");
    std::fs::write(&planted, format!("request with {key:?}")).unwrap();
    assert_eq!(gateway.leaks(), [planted.display().to_string()]);
    std::fs::remove_file(&planted).unwrap();

    let before = gateway.log_text();
    gateway.log.lock().unwrap().push_str(&key.text[key.text.len() - 49..]);
    assert_eq!(gateway.leaks(), ["the log"], "the secret part alone is enough");
    *gateway.log.lock().unwrap() = before;

    // Past the gateway, straight to the upstream.
    let status = Client::connect(upstream.address).request("GET", "/", &[&key.bearer()]).status;
    assert_eq!((status, gateway.leaks()), (200, vec!["a head at an upstream".to_owned()]));
    upstream.forget();
}

#[test]
fn the_directory_of_a_demo_holds_no_key() {
    let dir = tempfile::tempdir().unwrap();
    let (mut demo, made) = start_demo(dir.path());
    let canary = Canary::default();
    canary.remember_all(made.to_string().as_bytes());
    let address = made["url"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
    let path = format!("/v1/entities/{}/orders", made["entity_id"].as_str().unwrap());
    for key in ["test_key", "live_key"] {
        let bearer = format!("Authorization: Bearer {}", made[key].as_str().unwrap());
        assert_eq!(Client::connect(address).request("GET", &path, &[&bearer]).status, 200);
    }
    eventually("the demo's records", || journal_mentions(dir.path(), &path).then_some(()));
    assert_eq!(canary.keys(), 2);
    assert_eq!(canary.files_holding(dir.path()), Vec::<std::path::PathBuf>::new());
    demo.kill().unwrap();
    demo.wait().unwrap();
}

fn start_demo(dir: &Path) -> (Child, Value) {
    let args = ["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--output", "json", "--data"];
    let mut command = keygate(dir);
    command.args(args).arg(dir).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut demo = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(demo.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (demo, serde_json::from_str(&line).unwrap())
}

/// Whether a file of the audit directory holds `text`.
fn journal_mentions(dir: &Path, text: &str) -> bool {
    let output = keygate(dir).args(["logs", "--kind", "all", "--output", "ndjson"]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(text)
}
