//! gRPC by the library that most use: calls of all kinds, and what is refused in gRPC's own way.

use super::programs::{Server, python, run_within};
use crate::harness::{Authority, Gateway, Reply, Upstream, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Stdio;

const ROUTES: &str = r#"
[limits]
upstream_head = "500ms"

[[routes]]
path = "/shop.Orders/**"
upstream = "erp"
write = "orders:write"

[[routes]]
path = "/shop.Products/**"
upstream = "erp"
write = "products:write"
"#;

/// What came of each call; of one if a method is given. Over TLS it trusts `ca`.
fn call(address: SocketAddr, ca: Option<&Path>, bearer: &str, method: Option<&str>) -> Vec<Value> {
    let mut command = python("grpc_client.py");
    command.arg(address.to_string()).arg(bearer).args(method).envs(ca.map(|ca| ("INTEROP_CA", ca)));
    let output = run_within("120", &command);
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{errors}\n{told}");
    told.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn status(address: SocketAddr, bearer: &str, method: &str) -> String {
    let call = call(address, None, bearer, Some(method)).remove(0);
    call["status"].as_str().unwrap().to_owned()
}

#[test]
fn a_refusal_has_the_status_that_the_contract_names() {
    let silent =
        Upstream::start(|_| Reply::Custom(Box::new(|_| std::thread::sleep(std::time::Duration::from_secs(3)))));
    let builder = || Gateway::builder().listen("protocols = [\"h1\", \"h2\"]").toml(ROUTES);
    let gateway = builder().live(&silent).start();
    let key = gateway.key(&["orders:write"]);
    let at = |bearer: &str, method: &str| status(gateway.address, bearer, method);
    assert_eq!(at("ark_live_ent_acme_none", "/shop.Orders/OneOne"), "UNAUTHENTICATED");
    assert_eq!(at(&key.text, "/shop.Products/OneOne"), "PERMISSION_DENIED");
    assert_eq!(at(&key.text, "/shop.Nothing/OneOne"), "UNIMPLEMENTED");
    assert_eq!(at(&key.text, "/shop.Orders/OneOne"), "DEADLINE_EXCEEDED");
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gateway = builder().live_at(closed).start();
    let key = gateway.key(&["orders:write"]);
    assert_eq!(status(gateway.address, &key.text, "/shop.Orders/OneOne"), "UNAVAILABLE");
}

#[test]
fn a_refusal_reaches_a_client_over_tls() {
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:shop.example,IP:127.0.0.1");
    let gateway = Gateway::builder().live(&Upstream::named("live")).tls(&pair).toml(ROUTES).start();
    let refused =
        call(gateway.tls_address(), Some(&authority.ca()), "ark_live_ent_acme_none", Some("/shop.Orders/OneOne"));
    assert_eq!(
        (&refused[0]["status"], &refused[0]["details"]),
        (&"UNAUTHENTICATED".into(), &"This API key is not valid.".into())
    );
}

/// Every step of a client, without what the gateway says besides, and without words that the client's library chooses by chance. The
/// order is that within a name.
fn comparable(mut calls: Vec<Value>) -> Vec<Value> {
    for call in &mut calls {
        for fields in ["before", "after"] {
            let fields = call[fields].as_array_mut().unwrap();
            fields.retain(|pair| pair[0] != "x-request-id" && pair[0] != "date");
            fields.sort_by_key(|pair| pair[0].as_str().map(str::to_owned));
        }
        if call["call"] == "deadline" {
            call["details"].take();
        }
    }
    calls
}

#[test]
fn calls_of_all_kinds_find_no_difference() {
    let (direct, server) = (Server::start("grpc"), Server::start("grpc"));
    let gateway = Gateway::builder()
        .live_at(server.address)
        .listen("protocols = [\"h2\", \"h1\"]")
        .toml("protocol = \"h2\"")
        .toml(ROUTES)
        .start();
    let key = gateway.key(&["orders:write"]);
    let expected = comparable(call(direct.address, None, "ark_live_ent_acme_0", None));
    let statuses: Vec<_> = expected.iter().map(|call| call["status"].as_str().unwrap()).collect();
    let failing = ["FAILED_PRECONDITION", "DATA_LOSS", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "CANCELLED"];
    assert_eq!(statuses, [&["OK"; 6][..], &failing].concat());
    let through = comparable(call(gateway.address, None, &key.text, None));
    through
        .iter()
        .zip(&expected)
        .for_each(|(through, direct)| assert_eq!(through, direct, "left, through the gateway"));
    assert_eq!(through.len(), expected.len());
    let calls = server.take_records();
    let told: Vec<_> = calls.iter().filter(|call| call["metadata"].is_array()).collect();
    for one in &told {
        let names: Vec<_> = one["metadata"].as_array().unwrap().iter().filter_map(|pair| pair[0].as_str()).collect();
        assert!(one["has_deadline"] == true, "{one}");
        assert!(names.contains(&"x-key-id") && !names.contains(&"authorization"), "{names:?}");
    }
    assert!(told.len() >= 9, "{told:#?}");
}

/// What the server was told of the call with the revoked key: how many messages, and whether it ended.
fn heard(server: &Server) -> (usize, bool) {
    let calls = server.records();
    let of_first = |what: &str| calls.iter().filter(|call| call["call"] == what && call["message"] == "first").count();
    (of_first("talk"), of_first("talk ended") > 0)
}

#[test]
fn i10_a_call_in_both_directions_ends_with_its_key_and_the_one_beside_it_goes_on() {
    let server = Server::start("grpc");
    let both = "protocols = [\"h2\", \"h1\"]";
    let gateway =
        Gateway::builder().live_at(server.address).listen(both).toml("protocol = \"h2\"").toml(ROUTES).start();
    let (key, other) = (gateway.key(&["orders:write"]), gateway.key(&["orders:write"]));
    let mut command = python("grpc_talk.py");
    command.args([&gateway.address.to_string(), &key.text, &other.text]).stdout(Stdio::piped());
    let mut client = command.spawn().unwrap();
    let mut told = BufReader::new(client.stdout.take().unwrap()).lines().map(|line| {
        let line = line.unwrap();
        serde_json::from_str::<Value>(&line).unwrap()
    });
    assert_eq!(told.next().unwrap()["call"], "both");
    assert!(gateway.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    let first = told.next().unwrap();
    assert_eq!((&first["call"], &first["status"]), (&"first".into(), &"CANCELLED".into()), "{first}");
    eventually("the server hears of the end", || heard(&server).1.then_some(()));
    let before = heard(&server).0;
    let second = told.next().unwrap();
    assert_eq!((&second["call"], &second["status"]), (&"second".into(), &"OK".into()), "{second}");
    assert!(client.wait().unwrap().success());
    assert_eq!(heard(&server).0, before, "nothing more of it reached the server");
    let reason = |reason: &str| gateway.records().into_iter().filter(|one| one["reason"] == reason).collect::<Vec<_>>();
    let cut = eventually("the cut is recorded", || reason("cut_by_revocation").pop());
    assert_eq!((&cut["key_id"], &cut["status"]), (&key.id.as_str().into(), &200.into()));
    assert_eq!(reason("cut_by_revocation").len(), 1);
}
