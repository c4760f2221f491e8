//! Every refusal that can occur, byte for byte: `tests/cases/refusals/*.http`. `KEYGATE_BLESS=1` writes them anew.

use crate::harness::client::head;
use crate::harness::{Gateway, Key, Upstream, eventually, refusing};
use keygate::reason::Reason;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A gateway with everything that the usual refusals need.
struct Fixture {
    gateway: Gateway,
    key: Key,
    upstream: Upstream,
}

impl Fixture {
    fn start() -> Self {
        let upstream = Upstream::named("live");
        let routes =
            "[[routes]]\npath = \"/v1/small\"\nupstream = \"erp\"\nwrite = \"orders:write\"\nbody_max = \"8 B\"";
        let limits = "[limits]\nbody_idle = \"200ms\"";
        let gateway = Gateway::builder().live(&upstream).toml(routes).toml(limits).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { gateway, key, upstream }
    }

    /// Sends a whole request with the key, and compares what comes back with the golden file `name`.
    fn check(&self, name: &str, method: &str, target: &str, lines: &[&str]) {
        let bearer = self.key.bearer();
        let lines: Vec<&str> = lines.iter().copied().chain([bearer.as_str()]).collect();
        check(&self.gateway, name, &closing(method, target, &lines));
    }
}

/// A request after which the client wants no other.
fn closing(method: &str, target: &str, lines: &[&str]) -> String {
    let lines: Vec<&str> = lines.iter().copied().chain(["Connection: close"]).collect();
    head(method, target, &lines)
}

/// Sends `request` and compares every byte of the answer, its ids and date masked, with the golden file.
pub fn check(gateway: &Gateway, name: &str, request: &str) {
    compare(name, &answer(gateway, request));
}

fn answer(gateway: &Gateway, request: &str) -> String {
    String::from_utf8(gateway.client().send(request).rest()).unwrap()
}

pub fn compare(name: &str, answer: &str) {
    let path = golden(name);
    let masked = mask(answer);
    if std::env::var_os("KEYGATE_BLESS").is_some() {
        std::fs::write(&path, &masked).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(masked, expected, "{name}");
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases/refusals").join(format!("{name}.http"))
}

/// Replaces what differs from run to run: the request id and the date.
fn mask(answer: &str) -> String {
    let mut masked = String::new();
    for line in answer.split_inclusive("\r\n") {
        if line.starts_with("date: ") {
            masked.push_str("date: DATE\r\n");
            continue;
        }
        let mut rest = line;
        while let Some((before, after)) = rest.split_once("req_") {
            masked.push_str(before);
            masked.push_str("req_ID");
            rest = after.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
        }
        masked.push_str(rest);
    }
    masked
}

#[test]
fn keys_that_are_missing_wrong_or_ended() {
    let fixture = Fixture::start();
    let (gateway, orders) = (&fixture.gateway, fixture.gateway.path("orders"));
    let with = |line: &str| closing("GET", &orders, &[line]);
    check(gateway, "missing_api_key", &closing("GET", &orders, &[]));
    check(gateway, "missing_api_key", &with("Authorization: Basic dXNlcjpwYXNz"));
    check(gateway, "missing_api_key", &closing("GET", "/no/such/route", &[]));

    // Malformed, unknown, revoked, empty, foreign: one answer, byte for byte.
    let revoked = gateway.key(&["orders:read"]);
    gateway.json(&["keys", "revoke", &revoked.id, "--yes", "--output", "json"]);
    eventually("the revocation is in force", || {
        (gateway.client().request("GET", &orders, &[&revoked.bearer()]).status == 401).then_some(())
    });
    let malformed = format!("{}x", fixture.key.bearer());
    let unknown = "Authorization: Bearer ark_live_ent_acme_00000000000000000000000000000000000000000003wGqb9";
    for line in [
        &malformed,
        &revoked.bearer(),
        unknown,
        "Authorization: Bearer",
        "Authorization: Bearer sixteen-characters-or-more",
    ] {
        check(gateway, "invalid_api_key", &with(line));
    }
    let ending = gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--expires", "2s"]);
    eventually("the key expires", || {
        let response = gateway.client().request("GET", &orders, &[&ending.bearer()]);
        (response.status == 401).then_some(())
    });
    check(gateway, "expired_api_key", &with(&ending.bearer()));
}

#[test]
fn requests_that_policy_refuses() {
    let fixture = Fixture::start();
    let gateway = &fixture.gateway;
    let orders = gateway.path("orders");
    fixture.check("entity_mismatch", "GET", "/v1/entities/8F14E45F-CEEA-467F-9D5D-6A9F1F0B1B1B/orders", &[]);
    fixture.check("insufficient_scope", "GET", &gateway.path("products"), &[]);
    fixture.check("insufficient_scopes", "POST", &gateway.path("migration/cutover"), &["Content-Length: 0"]);
    fixture.check("not_found", "GET", "/v1/no/such/route", &[]);
    fixture.check("method_not_allowed", "DELETE", &gateway.path("migration/cutover"), &[]);
    fixture.check("method_forbidden", "TRACE", &orders, &[]);

    let elsewhere = gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--allow", "10.9.0.0/16"]);
    check(gateway, "ip_not_allowlisted", &closing("GET", &orders, &[&elsewhere.bearer()]));
    // The address is judged before the route: a stranger to it learns nothing of the map.
    check(gateway, "ip_not_allowlisted", &closing("GET", "/v1/no/such/route", &[&elsewhere.bearer()]));
    let sandbox = gateway.key_with(&["--mode", "test", "--scope", "orders:read"]);
    check(gateway, "mode_mismatch", &closing("GET", &orders, &[&sandbox.bearer()]));
    assert!(fixture.upstream.received().is_empty());
}

#[test]
fn requests_that_are_ambiguous_or_too_large() {
    let fixture = Fixture::start();
    let orders = fixture.gateway.path("orders");
    let key = fixture.key.bearer();
    let raw = |name: &str, text: String| check(&fixture.gateway, name, &text);
    raw("host_invalid", format!("GET {orders} HTTP/1.1\r\n{key}\r\n\r\n"));
    fixture.check("host_mismatch", "GET", &format!("http://other.example{orders}"), &[]);
    fixture.check("target_form", "GET", "orders:80", &[]);
    fixture.check("path_ambiguous", "GET", &format!("{orders}/../products"), &[]);
    fixture.check("framing_ambiguous", "POST", &orders, &["Transfer-Encoding: gzip, chunked"]);
    fixture.check("connection_invalid", "GET", &orders, &["Connection: authorization"]);
    fixture.check("credentials_several", "GET", &orders, &[&key]);
    raw("credential_in_target", closing("GET", &format!("{orders}?k={}", fixture.key.text), &[]));
    fixture.check("expectation_failed", "POST", &orders, &["Expect: 200-maybe", "Content-Length: 1"]);
    fixture.check("uri_too_long", "GET", &format!("{orders}?{}", "x".repeat(9000)), &[]);
    let fields: Vec<String> = (0..70).map(|number| format!("X-Field-{number}: x")).collect();
    fixture.check("headers_too_large", "GET", &orders, &fields.iter().map(String::as_str).collect::<Vec<_>>());
    fixture.check("payload_too_large", "POST", "/v1/small", &["Content-Length: 9"]);
    fixture.check("request_timeout", "POST", &orders, &["Content-Length: 9"]);
    let broken = closing("POST", &orders, &[&key, "Transfer-Encoding: chunked"]) + "zz\r\n";
    raw("body_malformed", broken);
}

#[test]
fn a_hop_that_cannot_be_read_is_a_bad_request() {
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).toml("[client_ip]\ntrusted_proxies = [\"127.0.0.0/8\"]").start();
    let key = gateway.key(&["orders:read"]);
    let request = closing("GET", &gateway.path("orders"), &[&key.bearer(), "X-Forwarded-For: unknown"]);
    check(&gateway, "header_invalid", &request);
}

#[test]
fn a_head_request_is_refused_with_the_same_head_and_no_body() {
    let fixture = Fixture::start();
    let get = answer(&fixture.gateway, &closing("GET", &fixture.gateway.path("orders"), &[]));
    let head = answer(&fixture.gateway, &closing("HEAD", &fixture.gateway.path("orders"), &[]));
    let (get_head, _) = get.split_once("\r\n\r\n").unwrap();
    assert_eq!(mask(&head), mask(&format!("{get_head}\r\n\r\n")));
}

#[test]
fn upstreams_that_do_not_answer() {
    let closed = refusing();
    let silent = Upstream::start(|_| {
        crate::harness::Reply::Custom(Box::new(|_| std::thread::sleep(std::time::Duration::from_secs(3))))
    });
    let limits = "[limits]\nupstream_head = \"300ms\"\nupstream_requests_max = 1";
    for (name, gateway) in [
        ("upstream_unreachable", Gateway::builder().live_at(closed).start()),
        ("upstream_timeout", Gateway::builder().live(&silent).toml(limits).start()),
    ] {
        let key = gateway.key(&["orders:read"]);
        check(&gateway, name, &closing("GET", &gateway.path("orders"), &[&key.bearer()]));
    }
}

#[test]
fn more_requests_in_flight_than_the_limit() {
    let silent = Upstream::start(|_| {
        crate::harness::Reply::Custom(Box::new(|_| std::thread::sleep(std::time::Duration::from_secs(3))))
    });
    let limits = "[limits]\nupstream_requests_max = 1";
    let gateway = Gateway::builder().live(&silent).workers(1).toml(limits).start();
    let key = gateway.key(&["orders:read"]);
    let request = closing("GET", &gateway.path("orders"), &[&key.bearer()]);
    let mut held = gateway.client();
    held.send(&request);
    eventually("the first request is in flight", || (!silent.received().is_empty()).then_some(()));
    check(&gateway, "overloaded", &request);
}

#[test]
fn a_store_that_cannot_be_asked_is_never_told_as_a_bad_key() {
    let upstream = Upstream::named("live");
    const STRICT: &str = "[[routes]]\npath = \"/v1/entities/{entity_id}/accounts/**\"\nupstream = \"erp\"\n\
                          read = \"accounts:read\"\nstrict = true";
    let gateway = Gateway::builder().live(&upstream).toml("[cache]\nmax_stale = \"4s\"").toml(STRICT).start();
    let (key, orders) = (gateway.key(&["orders:read", "accounts:read"]), gateway.path("orders"));
    assert_eq!(gateway.client().request("GET", &gateway.path("accounts"), &[&key.bearer()]).status, 200);
    let unknown = "Authorization: Bearer ark_live_ent_acme_00000000000000000000000000000000000000000003wGqb9";
    assert!(gateway.admin_page("/readyz?verbose").text().starts_with("[store] followed, "));
    std::fs::rename(gateway.dir.path().join("data/keygate.db"), gateway.dir.path().join("data/away.db")).unwrap();
    eventually("an unknown key is unknown, not bad", || {
        (gateway.client().request("GET", &orders, &[unknown]).status == 503).then_some(())
    });
    let report = gateway.admin_page("/readyz?verbose").text();
    let stale = report.lines().find_map(|line| line.strip_prefix("[store] out of reach, last caught up "));
    let millis = stale.and_then(|rest| rest.strip_suffix(" ms ago")).and_then(|millis| millis.parse().ok());
    assert!(millis.is_some_and(|millis: u64| millis >= 2000), "{report}");
    // Known keys go on working meanwhile, but on a strict route, until everything known is too old.
    assert_eq!(gateway.client().request("GET", &orders, &[&key.bearer()]).status, 200);
    let strict = gateway.client().request("GET", &gateway.path("accounts"), &[&key.bearer()]);
    assert_eq!((strict.status, strict.code().as_str()), (503, "key_store_unavailable"));
    eventually("what is known is too old", || {
        (gateway.client().request("GET", &orders, &[&key.bearer()]).status == 503).then_some(())
    });
    check(&gateway, "key_store_unavailable", &closing("GET", &orders, &[&key.bearer()]));
    assert_eq!(gateway.admin_page("/readyz").status, 200);
}

#[test]
fn a_journal_that_cannot_be_written_refuses_requests() {
    let upstream = Upstream::named("live");
    let disk = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"]).arg(disk.path()).status().unwrap();
    assert!(mounted.success(), "this test mounts a small tmpfs: run it as root, or in `unshare -Urm`");
    let unmount = Unmount(disk.path().to_owned());
    let audit = format!("[audit]\ndir = \"{}\"\n[limits]\nconnections_max = 100", disk.path().display());
    let gateway = Gateway::builder().live(&upstream).toml(&audit).start();
    let (key, orders) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    let ballast = disk.path().join("ballast");
    _ = std::fs::write(&ballast, vec![0; 32 * 1024 * 1024]);
    // What is reserved is used up first.
    let refused = || {
        let mut client = gateway.client();
        let mut statuses = (0..100).map(|_| client.request("GET", &orders, &[&key.bearer()]).status);
        statuses.any(|status| status == 503).then_some(())
    };
    eventually("requests are refused", refused);
    check(&gateway, "audit_unavailable", &closing("GET", &orders, &[&key.bearer()]));
    let grpc = closing("GET", &orders, &[&key.bearer(), "Content-Type: application/grpc"]);
    check(&gateway, "grpc_audit_unavailable", &grpc);
    std::fs::remove_file(&ballast).unwrap();
    let served = || (gateway.client().request("GET", &orders, &[&key.bearer()]).status == 200).then_some(());
    eventually("requests are served again", served);
    let told = || gateway.records().into_iter().find(|record| record["kind"] == "gap");
    assert!(eventually("the gap is told", told)["requests_refused"].as_u64() > Some(0));
    drop(gateway);
    drop(unmount);
}

#[test]
fn a_journal_that_was_removed_is_begun_anew_and_what_was_in_it_is_told_to_be_lost() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let (key, orders) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    assert_eq!(gateway.client().request("GET", &orders, &[&key.bearer()]).status, 200);
    let before = gateway.records().last().unwrap()["seq"].as_u64().unwrap();
    std::fs::remove_dir_all(gateway.dir.path().join("data/audit")).unwrap();
    let told = || {
        let status = gateway.client().request("GET", &orders, &[&key.bearer()]).status;
        assert!([200, 503].contains(&status), "{status}");
        if !gateway.dir.path().join("data/audit/0").exists() {
            return None;
        }
        gateway.records().into_iter().find(|record| record["kind"] == "gap")
    };
    let gap = eventually("the journal is begun anew, and says what is gone", told);
    assert_eq!(gap["first"], 1);
    assert!(gap["last"].as_u64() >= Some(before), "{gap}");
    assert_eq!(gateway.client().request("GET", &orders, &[&key.bearer()]).status, 200);
    assert!(gateway.log_text().contains("was removed"));
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Where each reason is held to its bytes. Without a catch-all: a new reason does not compile until it has a place.
#[test]
fn every_reason_has_its_golden_file() {
    for reason in Reason::ALL {
        let name = match reason {
            Reason::HostInvalid
            | Reason::HostMismatch
            | Reason::TargetForm
            | Reason::PathAmbiguous
            | Reason::FramingAmbiguous
            | Reason::ConnectionInvalid
            | Reason::HeaderInvalid
            | Reason::CredentialsSeveral
            | Reason::CredentialInTarget
            | Reason::BodyMalformed
            | Reason::MethodForbidden
            | Reason::ExpectationUnknown
            | Reason::Misdirected
            | Reason::TargetTooLong
            | Reason::HeadTooLarge
            | Reason::BodyTooLarge
            | Reason::BodyTimeout
            | Reason::KeyMissing
            | Reason::KeyExpired
            | Reason::StoreUnavailable
            | Reason::IpNotAllowlisted
            | Reason::RouteUnknown
            | Reason::MethodNotAllowed
            | Reason::ModeMismatch
            | Reason::EntityMismatch
            | Reason::ScopeMissing
            | Reason::AuditUnavailable
            | Reason::Overloaded
            | Reason::UpstreamUnreachable
            | Reason::UpstreamTimeout => reason.as_str(),
            Reason::KeyMalformed | Reason::KeyUnknown | Reason::KeyRevoked | Reason::CutByRevocation => {
                "invalid_api_key"
            }
            Reason::CutByStaleness => "key_store_unavailable",
            // A defect, which a test cannot make happen; its answer is built by the same code as the others.
            Reason::Internal => continue,
            // The response's head has been sent already: the connection is broken off.
            Reason::ClientAborted | Reason::UpstreamAborted | Reason::DrainExpired | Reason::TunnelIdle => continue,
        };
        assert!(golden(name).exists(), "{name}");
    }
}
