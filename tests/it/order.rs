//! The order of checks (contract, section 3): a request that breaks two rules at once is answered for the earlier one.
//! What a later check would say is thereby told to nobody who fails an earlier one.

use crate::harness::client::head;
use crate::harness::{Gateway, Key, Upstream, eventually, refusing};

const OTHER_ENTITY: &str = "/v1/entities/00000000-0000-4000-8000-000000000000";
/// A key that nobody was given.
const UNKNOWN_KEY: &str = "Authorization: Bearer ark_live_ent_acme_00000000000000000000000000000000000000000003wGqb9";

/// A gateway without a sandbox, whose upstream counts what reaches it.
struct Fixture {
    gateway: Gateway,
    upstream: Upstream,
}

impl Fixture {
    fn start() -> Self {
        let upstream = Upstream::named("live");
        Self { gateway: Gateway::builder().live(&upstream).start(), upstream }
    }

    fn key(&self, args: &[&str]) -> Key {
        self.gateway.key_with(args)
    }

    /// Sends a request that breaks several rules, and holds the answer to the earliest one's.
    fn check(&self, method: &str, target: &str, lines: &[&str], status: u16, code: &str) {
        let mut client = self.gateway.client();
        let answer = client.send(head(method, target, lines)).read(method);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {target}");
        assert!(self.upstream.received().is_empty(), "{method} {target} reached the upstream");
    }
}

#[test]
fn hygiene_comes_before_the_credential() {
    let fixture = Fixture::start();
    let orders = fixture.gateway.path("orders");
    let dotted = format!("{orders}/../products");
    for lines in [&[][..], &[UNKNOWN_KEY], &["Authorization: Basic dXNlcjpwYXNz"]] {
        let with = |line| [lines, &[line]].concat();
        fixture.check("TRACE", &orders, lines, 405, "method_not_allowed");
        fixture.check("GET", &dotted, lines, 400, "bad_request");
        fixture.check("POST", &orders, &with("Transfer-Encoding: gzip, chunked"), 400, "bad_request");
        fixture.check("POST", &orders, &with("Expect: 200-maybe"), 417, "expectation_failed");
    }
}

#[test]
fn hygiene_comes_before_a_public_route() {
    let fixture = Fixture::start();
    fixture.check("TRACE", "/v1/status", &[], 405, "method_not_allowed");
    fixture.check("GET", "/v1/status", &["Expect: 200-maybe"], 417, "expectation_failed");
    fixture.check("GET", "/v1/./status", &[], 400, "bad_request");
}

#[test]
fn the_credential_comes_before_the_route() {
    let fixture = Fixture::start();
    let cutover = fixture.gateway.path("migration/cutover");
    for (line, code) in [
        ("X-Nothing: 1", "missing_api_key"),
        ("Authorization: Bearer", "invalid_api_key"),
        ("Authorization: Bearer ark_live_ent_acme_short", "invalid_api_key"),
        (UNKNOWN_KEY, "invalid_api_key"),
    ] {
        fixture.check("GET", "/no/such/route", &[line], 401, code);
        fixture.check("DELETE", &cutover, &[line], 401, code);
        fixture.check("GET", &format!("{OTHER_ENTITY}/orders"), &[line], 401, code);
    }
}

#[test]
fn the_state_of_the_key_comes_before_its_allowlist() {
    let fixture = Fixture::start();
    let orders = fixture.gateway.path("orders");
    let elsewhere = ["--mode", "live", "--scope", "orders:read", "--allow", "10.9.0.0/16"];
    let ending = fixture.key(&[&elsewhere[..], &["--expires", "2s"]].concat());
    let revoked = fixture.key(&elsewhere);
    fixture.gateway.json(&["keys", "revoke", &revoked.id, "--yes", "--output", "json"]);
    for (key, code) in [(&revoked, "invalid_api_key"), (&ending, "expired_api_key")] {
        eventually("the key has ended", || {
            let status = fixture.gateway.client().request("GET", &orders, &[&key.bearer()]).status;
            (status == 401).then_some(())
        });
        fixture.check("GET", &orders, &[&key.bearer()], 401, code);
        fixture.check("GET", "/no/such/route", &[&key.bearer()], 401, code);
    }
}

#[test]
fn the_allowlist_comes_before_route_mode_entity_and_scope() {
    let fixture = Fixture::start();
    let key = fixture.key(&["--mode", "test", "--scope", "orders:read", "--allow", "10.9.0.0/16"]).bearer();
    let refused = |method, target: &str| fixture.check(method, target, &[&key], 403, "ip_not_allowlisted");
    refused("GET", "/no/such/route");
    refused("DELETE", &fixture.gateway.path("migration/cutover"));
    refused("GET", &fixture.gateway.path("orders"));
    refused("GET", &format!("{OTHER_ENTITY}/orders"));
    refused("GET", &fixture.gateway.path("products"));
}

#[test]
fn the_route_comes_before_mode_entity_and_scope() {
    let fixture = Fixture::start();
    let key = fixture.key(&["--mode", "test", "--scope", "orders:read"]).bearer();
    fixture.check("GET", "/no/such/route", &[&key], 404, "not_found");
    fixture.check("GET", &format!("{OTHER_ENTITY}/no-such-resource"), &[&key], 404, "not_found");
    fixture.check("DELETE", &fixture.gateway.path("migration/cutover"), &[&key], 405, "method_not_allowed");
    fixture.check("DELETE", &format!("{OTHER_ENTITY}/migration/cutover"), &[&key], 405, "method_not_allowed");
}

#[test]
fn the_mode_comes_before_entity_and_scope() {
    let fixture = Fixture::start();
    let key = fixture.key(&["--mode", "test", "--scope", "orders:read"]).bearer();
    fixture.check("GET", &format!("{OTHER_ENTITY}/orders"), &[&key], 401, "mode_mismatch");
    fixture.check("GET", &fixture.gateway.path("products"), &[&key], 401, "mode_mismatch");
}

#[test]
fn the_entity_comes_before_the_scope_and_the_scope_before_the_upstream() {
    let fixture = Fixture::start();
    let key = fixture.key(&["--mode", "live", "--scope", "orders:read"]).bearer();
    fixture.check("GET", &format!("{OTHER_ENTITY}/products"), &[&key], 403, "entity_mismatch");
    let gateway = Gateway::builder().live_at(refusing()).start();
    let key = gateway.key(&["orders:read"]).bearer();
    let status = |resource| gateway.client().request("GET", &gateway.path(resource), &[&key]).status;
    assert_eq!(status("products"), 403);
    assert_eq!(status("orders"), 502);
}
