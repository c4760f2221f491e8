//! Clients and servers by others find no difference between each other and the gateway.
//!
//! A client goes through `tests/interop/cases.json` twice: at a server, and at the gateway before such a server. What the
//! server was sent and what the client got is the same both times, but for what the contract says and what belongs to a
//! connection.

mod grpc;
mod nginx;
pub mod programs;
mod tools;
mod websockets;

use crate::harness::gateway::ENTITY;
use crate::harness::{Authority, Gateway, Key};
use programs::{Program, Server, source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Fields of a connection, or of the time.
const OF_A_CONNECTION: [&str; 8] =
    ["connection", "date", "expect", "http2-settings", "keep-alive", "proxy-connection", "te", "transfer-encoding"];
/// What the upstream is told besides (the contract, section 3).
const TOLD: [&str; 11] = [
    "arcus-version",
    "traceparent",
    "via",
    "x-entity-id",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-key-id",
    "x-key-mode",
    "x-key-scopes",
    "x-request-id",
];

const CURL: Program = Program::Python("curl");
const CURL_H2: Program = Program::Python("curl-h2");
const HTTPX: Program = Program::Python("httpx");
const HTTPX_H2: Program = Program::Python("httpx-h2");
const PYTHON_H2: Program = Program::Python("h2");
const NODE_H2: Program = Program::Node("http2");
const UNDICI: Program = Program::Node("undici");
/// Over TLS alone.
const UNDICI_H2: Program = Program::Node("undici-h2");

/// What a client and its server saw, by case.
type Seen = BTreeMap<String, (Value, Value)>;

/// A gateway before a server.
struct Site {
    server: Server,
    /// Signed the certificate of its second listener.
    authority: Authority,
    gateway: Gateway,
    key: Key,
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/v1/entities/{ENTITY}/orders/")
}

fn url_of_tls(address: SocketAddr) -> String {
    url(address).replace("http:", "https:")
}

/// The fields that must be the same, ordered by name; those of one name stay in the order they came in.
fn fields(seen: &Value, name: &str, address: SocketAddr, left_out: &[&str]) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = seen[name].as_array().unwrap().iter().map(|pair| (text(&pair[0]), text(&pair[1])));
    let kept =
        pairs.filter(|(name, _)| !OF_A_CONNECTION.contains(&name.as_str()) && !left_out.contains(&name.as_str()));
    // Whom the client has asked.
    let named = kept.map(|(name, value)| match value == address.to_string() {
        true => (name, "the server".to_owned()),
        false => (name, value),
    });
    let mut fields: Vec<_> = named.collect();
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

/// What was sent and got at `asked`, by case.
fn seen(sent: Vec<Value>, got: Vec<Value>, asked: SocketAddr) -> Seen {
    let case = |value: &Value| value["case"].as_str().expect("every request names its case").to_owned();
    assert_eq!(sent.len(), got.len(), "one request for each answer");
    let mut sent: BTreeMap<String, Value> = sent.into_iter().map(|sent| (case(&sent), sent)).collect();
    let both = got.into_iter().map(|got| {
        let sent = sent.remove(&case(&got)).unwrap_or_else(|| panic!("{}: never sent", case(&got)));
        let kept_sent = fields(&sent, "fields", asked, &[&TOLD[..], &["authorization"]].concat());
        let kept_got = fields(&got, "fields", asked, &["x-request-id"]);
        let request = json!({ "method": sent["method"], "target": sent["target"], "fields": kept_sent, "size": sent["size"],
                              "sha256": sent["sha256"] });
        let answer = json!({ "status": got["status"], "fields": kept_got, "size": got["size"], "sha256": got["sha256"],
                             "trailers": got["trailers"] });
        (case(&got), (request, answer))
    });
    both.collect()
}

/// Goes through the cases at the server itself.
fn directly(server: &Server, client: Program) -> Seen {
    server.take_records();
    let got = client.go(&url(server.address), None, "ark_live_ent_acme_0", &source("cases.json"));
    seen(server.take_records(), got, server.address)
}

impl Site {
    fn start(kind: &str) -> Self {
        let server = Server::start(kind);
        let authority = Authority::new();
        let pair = authority.issue("server", "IP:127.0.0.1");
        let builder = Gateway::builder().live_at(server.address).listen("protocols = [\"h1\", \"h2\"]");
        let gateway = builder.tls(&pair).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { server, authority, gateway, key }
    }

    fn ca(&self) -> PathBuf {
        self.authority.ca()
    }

    /// Goes through the cases at the gateway.
    fn through(&self, client: Program) -> Seen {
        let got = |key: &str| client.go(&url(self.gateway.address), None, key, &source("cases.json"));
        self.go(client, self.gateway.address, got)
    }

    fn through_tls(&self, client: Program) -> Seen {
        let address = self.gateway.tls_address();
        let got = |key: &str| client.go(&url_of_tls(address), Some(&self.ca()), key, &source("cases.json"));
        self.go(client, address, got)
    }

    fn go(&self, client: Program, asked: SocketAddr, go: impl Fn(&str) -> Vec<Value>) -> Seen {
        self.server.take_records();
        let got = go(&self.key.text);
        let sent = self.server.take_records();
        for got in &got {
            let version = got["version"].as_str().unwrap();
            assert_eq!(version.starts_with("HTTP/2"), client.is_http2(), "{client:?}: {version}");
        }
        for sent in &sent {
            let names: Vec<_> = sent["fields"].as_array().unwrap().iter().filter_map(|pair| pair[0].as_str()).collect();
            assert!(names.contains(&"x-key-id") && !names.contains(&"authorization"), "{names:?}");
        }
        seen(sent, got, asked)
    }
}

/// The same with the values of a name that were got in one, cookies apart, without a name that was sent
/// several times and without lengths of what was sent.
fn joined(mut seen: Seen) -> Seen {
    for (request, answer) in seen.values_mut() {
        let sent = request["fields"].as_array_mut().unwrap();
        sent.retain(|field| field[0] != "x-many" && field[0] != "content-length");
        let mut fields: Vec<(String, String)> = serde_json::from_value(answer["fields"].take()).unwrap();
        fields.dedup_by(|next, one| {
            let is_same = one.0 == next.0 && one.0 != "set-cookie";
            if is_same {
                one.1 = format!("{}, {}", one.1, next.1);
            }
            is_same
        });
        answer["fields"] = json!(fields);
    }
    seen
}

/// The status of each case is as written, and nothing is otherwise through the gateway than it is directly.
fn assert_same(direct: &Seen, through: &Seen, what: &str) {
    let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(source("cases.json")).unwrap()).unwrap();
    let mut compared = 0;
    for case in &cases {
        let name = case["name"].as_str().unwrap();
        // Some cases are not for every client.
        let Some((request, answer)) = direct.get(name) else { continue };
        assert_eq!(answer["status"], case["status"], "{what}: {name}: directly");
        let (passed, answered) = &through[name];
        assert_eq!(passed, request, "{what}: {name}: the request; left, through the gateway");
        assert_eq!(answered, answer, "{what}: {name}: the answer; left, through the gateway");
        compared += 1;
    }
    assert_eq!(through.len(), compared, "{what}");
    assert!(compared + 1 >= cases.len(), "{what}: only {compared} cases");
}

#[test]
fn clients_of_http1_find_no_difference() {
    let (direct, site) = (Server::start("hypercorn"), Site::start("hypercorn"));
    for client in [CURL, HTTPX, UNDICI] {
        assert_same(&directly(&direct, client), &site.through(client), &format!("{client:?}"));
    }
}

#[test]
fn clients_of_http2_find_no_difference() {
    let (direct, site) = (Server::start("hypercorn"), Site::start("hypercorn"));
    for client in [CURL_H2, HTTPX_H2, PYTHON_H2, NODE_H2] {
        assert_same(&directly(&direct, client), &site.through(client), &format!("{client:?}"));
    }
}

#[test]
fn clients_find_no_difference_over_tls() {
    let (direct, site) = (Server::start("hypercorn"), Site::start("hypercorn"));
    for client in [CURL, HTTPX, UNDICI, CURL_H2, HTTPX_H2, PYTHON_H2, NODE_H2] {
        assert_same(&directly(&direct, client), &site.through_tls(client), &format!("{client:?}"));
    }
    // It makes one of all values of a name that it is given, and of several that it is to send it sends one; an
    // empty body has no length.
    let [by_undici, through] = [directly(&direct, UNDICI), site.through_tls(UNDICI_H2)].map(joined);
    assert_same(&by_undici, &through, "undici, HTTP/2");
}

/// Those that speak only HTTP/1.1 are asked in it directly, and in both through the gateway.
#[test]
fn servers_find_no_difference() {
    for kind in ["gunicorn", "uvicorn", "aiohttp", "node"] {
        let (direct, site) = (Server::start(kind), Site::start(kind));
        let by_httpx = directly(&direct, HTTPX);
        assert_same(&by_httpx, &site.through(HTTPX), &format!("{kind}, HTTP/1.1"));
        assert_same(&by_httpx, &site.through(HTTPX_H2), &format!("{kind}, HTTP/2"));
        assert_same(&directly(&direct, UNDICI), &site.through(UNDICI), &format!("{kind}, pipelined"));
    }
}
