//! A WebSocket carries through the gateway whatever it carries without one, by the library that most use.

use super::programs::{Server, python, run_within};
use crate::harness::{Authority, Gateway, eventually};
use serde_json::{Value, json};
use std::path::Path;

const ROUTE: &str = r#"
[[routes]]
path = "/v1/entities/{entity_id}/orders/events/**"
upstream = "erp"
read = "orders:read"
upgrades = ["websocket"]
"#;

/// What came of each step of a client. Over TLS it trusts `ca`.
fn go(origin: &str, ca: Option<&Path>, path: &str, bearer: &str) -> Vec<Value> {
    let mut command = python("ws.py");
    command.args(["client", &format!("{origin}{path}?b=c&a=%20"), bearer]).envs(ca.map(|ca| ("INTEROP_CA", ca)));
    let output = run_within("90", &command);
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}\n{told}");
    told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_websocket_finds_no_difference_but_that_the_key_is_gone() {
    let server = Server::start("websockets");
    let authority = Authority::new();
    let pair = authority.issue("server", "IP:127.0.0.1");
    let gateway = Gateway::builder().live_at(server.address).tls(&pair).toml(ROUTE).start();
    let key = gateway.key(&["orders:read"]);
    let path = gateway.path("orders/events/1");
    let mut direct = go(&format!("ws://{}", server.address), None, &path, "ark_live_ent_acme_0");
    assert_eq!(direct.len(), 12);
    direct.iter_mut().filter(|step| step["case"] == "who").for_each(|step| step["has_key"] = json!(false));
    let (plain, secure) = (format!("ws://{}", gateway.address), format!("wss://{}", gateway.tls_address()));
    assert_eq!(go(&plain, None, &path, &key.text), direct, "left, through the gateway");
    assert_eq!(go(&secure, Some(&authority.ca()), &path, &key.text), direct, "left, through the gateway, over TLS");
    eventually("all tunnels are recorded", || {
        let records = gateway.records();
        (records.iter().filter(|one| one["status"] == 101).count() == 6).then_some(())
    });
    let refused = go(&plain, None, &path, "ark_live_ent_acme_0");
    assert_eq!(refused, [json!({ "case": "refused", "status": 401, "code": "invalid_api_key" })]);
}

/// The server sees a stream of HTTP/2 (RFC 8441) where the client has sent a handshake over HTTP/1.1.
#[test]
fn a_websocket_finds_no_difference_where_the_server_speaks_http2() {
    let server = Server::start("hypercorn");
    let gateway = Gateway::builder()
        .live_url(format!("http://{}", server.address))
        .upstream("protocol = \"h2\"")
        .toml(ROUTE)
        .start();
    let key = gateway.key(&["orders:read"]);
    let path = gateway.path("orders/events/1");
    let mut direct = go(&format!("ws://{}", server.address), None, &path, "ark_live_ent_acme_0");
    assert_eq!(direct.len(), 12);
    let who = direct.iter_mut().find(|step| step["case"] == "who").unwrap();
    assert_eq!(who["version"], "1.1");
    (who["has_key"], who["version"]) = (json!(false), json!("2"));
    assert_eq!(go(&format!("ws://{}", gateway.address), None, &path, &key.text), direct, "left, through the gateway");
}
