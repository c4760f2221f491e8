//! A refused call of gRPC gets what its client can read: a status in the place of a body (contract, section 3). Byte for
//! byte in `tests/cases/refusals/grpc_*.http`.

use crate::harness::client::head;
use crate::harness::{Gateway, Key, Reply, Response, Upstream, eventually, refusing};
use crate::refusals::check;
use keygate::reason::Reason;

const GRPC: &str = "Content-Type: application/grpc+proto";

fn call(target: &str, lines: &[&str]) -> String {
    let lines: Vec<&str> =
        lines.iter().copied().chain([GRPC, "TE: trailers", "Connection: close", "Content-Length: 0"]).collect();
    head("POST", target, &lines)
}

fn with_key(key: &Key, target: &str, lines: &[&str]) -> String {
    let bearer = key.bearer();
    let lines: Vec<&str> = lines.iter().copied().chain([bearer.as_str()]).collect();
    call(target, &lines)
}

#[test]
fn every_kind_of_refusal() {
    let upstream = Upstream::named("live");
    let small = "[[routes]]\npath = \"/v1/small\"\nupstream = \"erp\"\nwrite = \"orders:write\"\nbody_max = \"8 B\"";
    let gateway = Gateway::builder().live(&upstream).toml(small).toml("[limits]\nbody_idle = \"200ms\"").start();
    let (key, orders) = (gateway.key(&["orders:read", "orders:write"]), gateway.path("orders"));
    let one = |name: &str, target: &str, lines: &[&str]| check(&gateway, name, &with_key(&key, target, lines));
    check(&gateway, "grpc_missing_api_key", &call(&orders, &[]));
    check(&gateway, "grpc_invalid_api_key", &call(&orders, &["Authorization: Bearer sixteen-characters-or-more"]));
    one("grpc_insufficient_scope", &gateway.path("products"), &[]);
    one("grpc_entity_mismatch", "/v1/entities/8F14E45F-CEEA-467F-9D5D-6A9F1F0B1B1B/orders", &[]);
    one("grpc_not_found", "/v1/no/such/route", &[]);
    one("grpc_bad_request", &format!("{orders}/../products"), &[]);
    one("grpc_expectation_failed", &orders, &["Expect: 200-maybe"]);
    one("grpc_uri_too_long", &format!("{orders}?{}", "x".repeat(9000)), &[]);
    let fields: Vec<String> = (0..70).map(|number| format!("X-Field-{number}: x")).collect();
    one("grpc_headers_too_large", &orders, &fields.iter().map(String::as_str).collect::<Vec<_>>());
    let sized = |target: &str, length: &str| with_key(&key, target, &[]).replace("Content-Length: 0", length);
    check(&gateway, "grpc_payload_too_large", &sized("/v1/small", "Content-Length: 9"));
    check(&gateway, "grpc_request_timeout", &sized(&orders, "Content-Length: 9"));
    check(&gateway, "grpc_method_not_allowed", &with_key(&key, &orders, &[]).replace("POST", "TRACE"));
    let elsewhere = gateway.key_with(&["--mode", "live", "--scope", "orders:write", "--allow", "10.9.0.0/16"]);
    check(&gateway, "grpc_ip_not_allowlisted", &with_key(&elsewhere, &orders, &[]));
    let sandbox = gateway.key_with(&["--mode", "test", "--scope", "orders:write"]);
    check(&gateway, "grpc_mode_mismatch", &with_key(&sandbox, &orders, &[]));
    let ending = gateway.key_with(&["--mode", "live", "--scope", "orders:write", "--expires", "2s"]);
    eventually("the key expires", || {
        (gateway.client().request("GET", &orders, &[&ending.bearer()]).status == 401).then_some(())
    });
    check(&gateway, "grpc_expired_api_key", &with_key(&ending, &orders, &[]));
    assert!(upstream.received().is_empty());
}

#[test]
fn upstreams_that_do_not_answer_and_too_many_calls() {
    let closed = refusing();
    let silent =
        Upstream::start(|_| Reply::Custom(Box::new(|_| std::thread::sleep(std::time::Duration::from_secs(3)))));
    let limits = "[limits]\nupstream_head = \"1s\"\nupstream_requests_max = 1";
    for (name, gateway) in [
        ("grpc_upstream_unreachable", Gateway::builder().live_at(closed).start()),
        ("grpc_upstream_timeout", Gateway::builder().live(&silent).workers(1).toml(limits).start()),
    ] {
        let key = gateway.key(&["orders:write"]);
        let request = with_key(&key, &gateway.path("orders"), &[]);
        if name == "grpc_upstream_timeout" {
            let mut held = gateway.client();
            held.send(&request);
            eventually("the first call is in flight", || (!silent.received().is_empty()).then_some(()));
            check(&gateway, "grpc_overloaded", &request);
            assert_eq!(held.read("POST").header("grpc-status"), Some("4"));
        }
        check(&gateway, name, &request);
    }
}

#[test]
fn an_outage_of_the_store_is_unavailable() {
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).toml("[cache]\nmax_stale = \"4s\"").start();
    let unknown = "Authorization: Bearer ark_live_ent_acme_00000000000000000000000000000000000000000003wGqb9";
    std::fs::rename(gateway.dir.path().join("data/keygate.db"), gateway.dir.path().join("data/away.db")).unwrap();
    let request = call(&gateway.path("orders"), &[unknown]);
    let status = |answer: Response| answer.header("grpc-status").map(str::to_owned);
    eventually("an unknown key is unknown, not bad", || {
        (status(gateway.client().send(&request).read("POST")).as_deref() == Some("14")).then_some(())
    });
    check(&gateway, "grpc_key_store_unavailable", &request);
}

#[test]
fn the_record_has_the_head_that_was_sent_and_the_reason() {
    let gateway = Gateway::before(&Upstream::named("live"));
    let key = gateway.key(&["orders:read"]);
    let answer = gateway.client().send(with_key(&key, &gateway.path("products"), &[])).read("POST");
    assert_eq!((answer.status, answer.header("grpc-status"), answer.body.len()), (200, Some("7"), 0));
    let record = gateway.record_of(answer.header("x-request-id").unwrap());
    assert_eq!((&record["status"], &record["reason"]), (&200.into(), &"insufficient_scope".into()));
    assert_eq!((&record["decision"], &record["bytes_out"]), (&"deny".into(), &0.into()));
}

#[test]
fn a_call_passes_with_its_deadline_and_its_status() {
    let upstream = Upstream::start(|_| {
        Reply::raw(
            "HTTP/1.1 200 OK\r\nContent-Type: application/grpc\r\nTransfer-Encoding: chunked\r\n\r\n\
             5\r\n\0\0\0\0\0\r\n0\r\nGrpc-Status: 5\r\nGrpc-Message: no%20such\r\nX-Request-Id: upstream\r\n\r\n",
        )
    });
    let gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:write"]);
    let lines = ["grpc-timeout: 250m", "grpc-encoding: identity", "grpc-accept-encoding: gzip"];
    let request = with_key(&key, &gateway.path("orders"), &lines);
    let answer = gateway.client().send(request.replace("Connection: close", "Connection: TE")).read("POST");
    let trailers: Vec<(&str, &str)> =
        answer.trailers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(trailers, [("grpc-status", "5"), ("grpc-message", "no%20such")]);
    let received = upstream.only();
    for line in lines.into_iter().chain(["te: trailers", "content-type: application/grpc+proto"]) {
        assert!(received.head.contains(&format!("{}\r\n", line.to_lowercase())), "{line} in {}", received.head);
    }
    // Who does not take trailers gets the body without.
    let request = head("POST", &gateway.path("orders"), &[&key.bearer(), GRPC, "Content-Length: 0"]);
    let plain = gateway.client().send(request).read("POST");
    assert_eq!((plain.status, plain.complete, plain.trailers.len()), (200, true, 0));
}

#[test]
fn other_kinds_of_content_get_json() {
    let gateway = Gateway::before(&Upstream::named("live"));
    for kind in ["application/grp", "application/json", "text/application/grpc", "\"application/grpc\""] {
        let request = call(&gateway.path("orders"), &[]).replace("application/grpc+proto", kind);
        assert_eq!(gateway.client().send(request).read("POST").status, 401, "{kind}");
    }
    for kind in ["application/grpc", "Application/GRPC", "application/grpc-web+proto", "application/grpc;x=1"] {
        let request = call(&gateway.path("orders"), &[]).replace("application/grpc+proto", kind);
        let answer = gateway.client().send(request).read("POST");
        assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("16")), "{kind}");
    }
}

/// The contract's mapping, of the status a client of plain HTTP would get.
#[test]
fn every_reason_has_its_status_in_grpc() {
    for reason in Reason::ALL {
        let expected = match reason.code().status().as_u16() {
            401 => 16,
            403 => 7,
            404 => 12,
            429 => 8,
            502 | 503 => 14,
            504 => 4,
            _ => 13,
        };
        assert_eq!(reason.code().grpc_status(), expected, "{}", reason.as_str());
    }
}
