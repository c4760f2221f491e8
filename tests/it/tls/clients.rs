//! Clients that show certificates: who must, who may, and whom the record names.

use super::{Scene, wait_for_cause};
use crate::harness::{Authority, Client, Gateway, Http2, Pair, TlsClient, Upstream};
use rustls::HandshakeKind;
use serde_json::Value;
use std::time::Duration;

const REQUIRED: &str = ", client_ca = \"CA\"";
const OPTIONAL: &str = ", client_ca = \"CA\", client_auth = \"optional\"";

// === impl Scene ===

impl Scene {
    fn client_showing(&self, pair: Option<&Pair>) -> TlsClient {
        TlsClient::with(&self.authority, pair, rustls::DEFAULT_VERSIONS)
    }

    /// Whom the record of a request of this client names. None for one that does not come in: over TLS 1.3 it hears of
    /// that only when it reads.
    fn identity_of(&self, client: &TlsClient) -> Option<Value> {
        let mut client = Client::connect_tls(self.gateway.tls_address(), "erp.example", client).ok()?;
        client.send(crate::harness::client::head("GET", &self.gateway.path("orders"), &[&self.key.bearer()]));
        let answer = client.try_read("GET")?;
        assert_eq!(answer.status, 200);
        Some(self.gateway.record_of(answer.header("x-request-id").unwrap())["client_identity"].clone())
    }
}

#[test]
fn the_record_names_whom_the_certificate_names() {
    let scene = Scene::with(REQUIRED, "", "");
    for (file, names, identity) in [
        ("a", "email:edge@example,DNS:edge.example,URI:spiffe://example/edge", "URI:spiffe://example/edge"),
        ("b", "email:edge@example,DNS:Edge.example", "DNS:edge.example"),
        ("c", "email:edge@example", "email:edge@example"),
        ("by its subject", "IP:192.0.2.1", "CN:by its subject"),
    ] {
        let pair = scene.authority.issue(file, names);
        assert_eq!(scene.identity_of(&scene.client_showing(Some(&pair))), Some(identity.into()));
    }
    let pair = scene.authority.issue("h2", "DNS:h2.example");
    let mut client = Http2::connect_tls(scene.gateway.tls_address(), "erp.example", &scene.client_showing(Some(&pair)));
    let answer = client.request("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()], b"");
    let record = scene.gateway.record_of(answer.header("x-request-id").unwrap());
    assert_eq!(record["client_identity"], "DNS:h2.example");
}

#[test]
fn who_must_show_a_certificate_and_has_no_good_one_does_not_come_in() {
    let scene = Scene::with(REQUIRED, "", "");
    let stranger = Authority::new();
    let foreign = stranger.issue("foreign", "DNS:edge.example");
    let past = scene.authority.issue_at("-5d", "past", "DNS:edge.example", &[]);
    for pair in [None, Some(&foreign), Some(&past)] {
        for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
            let client = TlsClient::with(&scene.authority, pair, versions);
            assert_eq!(scene.identity_of(&client), None);
        }
    }
    wait_for_cause(&scene.gateway, "tls_client_certificate", 6);
    assert!(scene.upstream.received().is_empty());
}

#[test]
fn who_may_show_a_certificate_comes_in_without_one_and_not_with_a_bad_one() {
    let scene = Scene::with(OPTIONAL, "", "");
    assert_eq!(scene.identity_of(&scene.client_showing(None)), Some(Value::Null));
    let pair = scene.authority.issue("edge", "DNS:edge.example");
    assert_eq!(scene.identity_of(&scene.client_showing(Some(&pair))), Some("DNS:edge.example".into()));
    let stranger = Authority::new();
    let foreign = stranger.issue("foreign", "DNS:edge.example");
    assert_eq!(scene.identity_of(&scene.client_showing(Some(&foreign))), None);
    wait_for_cause(&scene.gateway, "tls_client_certificate", 1);
}

#[test]
fn a_session_of_one_listener_leads_past_no_other() {
    let authority = Authority::new();
    let pair = authority.issue("server", "DNS:erp.example");
    let more = format!(", client_ca = {:?}", authority.ca());
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).tls(&pair).tls_with(&pair, &more, "").start();
    let key = gateway.key(&["orders:read"]);
    let ask = |listener: usize, client: &TlsClient| {
        let address = gateway.listening()[listener].parse().unwrap();
        let mut client = Client::connect_tls(address, "erp.example", client).unwrap();
        client.send(crate::harness::client::head("GET", &gateway.path("orders"), &[&key.bearer()]));
        let status = client.try_read("GET").map(|answer| answer.status);
        (status, client.session().handshake_kind().unwrap())
    };
    let client = TlsClient::new(&authority);
    assert_eq!(ask(1, &client).0, Some(200));
    assert_eq!(ask(1, &client), (Some(200), HandshakeKind::Resumed));
    assert_eq!(ask(2, &client), (None, HandshakeKind::Full));
}

#[test]
fn a_session_is_not_resumed_when_its_certificate_has_run_out() {
    let scene = Scene::with(REQUIRED, "", "");
    let pair = scene.authority.issue_at("-172794s", "short", "DNS:edge.example", &["-days", "2"]);
    let client = scene.client_showing(Some(&pair));
    let ask = || {
        let mut connection = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &client).unwrap();
        connection.send(crate::harness::client::head("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()]));
        let status = connection.try_read("GET").map(|answer| answer.status);
        (status, connection.session().handshake_kind().unwrap())
    };
    assert_eq!(ask(), (Some(200), HandshakeKind::Full));
    assert_eq!(ask(), (Some(200), HandshakeKind::Resumed));
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(ask(), (None, HandshakeKind::Resumed));
    wait_for_cause(&scene.gateway, "tls_client_certificate", 1);
}
