//! Certificates that are replaced while the gateway runs.

use super::Scene;
use crate::harness::{Authority, Client, Pair, TlsClient, eventually};
use rustls::HandshakeKind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use std::path::Path;
use std::time::Duration;

/// How long the gateway may take to look at its files twice.
const LOOKS: Duration = Duration::from_millis(2600);
const TAKEN: &str = "keygate_certificate_reloads_total{outcome=\"taken\"}";
const REFUSED: &str = "keygate_certificate_reloads_total{outcome=\"refused\"}";

// === impl Scene ===

impl Scene {
    /// Puts these files into the place of those in use.
    fn replace(&self, cert: &Path, key: &Path) {
        std::fs::copy(cert, &self.pair.cert).unwrap();
        std::fs::copy(key, &self.pair.key).unwrap();
    }

    fn is_shown(&self, cert: &Path) -> bool {
        let client = self.connect();
        client.session().peer_certificates().unwrap()[0] == CertificateDer::from_pem_file(cert).unwrap()
    }

    fn complaints(&self) -> usize {
        self.gateway.log_text().matches("a replaced file is no good").count()
    }
}

#[test]
fn a_new_pair_is_shown_to_new_connections_and_the_open_ones_go_on() {
    let scene = Scene::new();
    let mut open = scene.connect();
    assert_eq!(scene.status(&mut open), 200);
    let new = scene.authority.issue("new", "DNS:erp.example,DNS:new.example");
    scene.replace(&new.cert, &new.key);
    eventually("the new certificate is shown", || scene.is_shown(&new.cert).then_some(()));
    assert_eq!(scene.status(&mut open), 200);
    assert_eq!((scene.gateway.metric(TAKEN), scene.gateway.metric(REFUSED)), (1.0, 0.0));
    assert!(Client::connect_tls(scene.gateway.tls_address(), "new.example", &scene.client).is_ok());
    let page = scene.gateway.admin_page("/metrics").text();
    let series = page.lines().find(|line| line.starts_with("keygate_certificate_expires_timestamp_seconds{")).unwrap();
    let ends: f64 = series.rsplit(' ').next().unwrap().parse().unwrap();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((ends - now - 2.0 * 86_400.0).abs() < 100.0, "{series}");
    assert!(series.contains("listen=\"127.0.0.1:0\"") && series.contains("server.pem"), "{series}");
}

#[test]
fn a_pair_that_is_no_good_changes_nothing_and_is_told_once() {
    let scene = Scene::new();
    let (old_cert, old_key) = (scene.pair.cert.with_extension("old"), scene.pair.key.with_extension("oldkey"));
    std::fs::copy(&scene.pair.cert, &old_cert).unwrap();
    std::fs::copy(&scene.pair.key, &old_key).unwrap();
    let other = scene.authority.issue("other", "DNS:erp.example");
    let past = scene.authority.issue_at("-5d", "past", "DNS:erp.example", &[]);
    let half = scene.pair.cert.with_extension("half");
    let text = std::fs::read_to_string(&other.cert).unwrap();
    std::fs::write(&half, &text[..text.len() / 2]).unwrap();
    let bad: [(&Path, &Path); 4] =
        [(&other.cert, &old_key), (&past.cert, &past.key), (&half, &other.key), (&old_key, &old_cert)];
    for (count, (cert, key)) in (1..).zip(bad) {
        scene.replace(cert, key);
        std::thread::sleep(LOOKS);
        assert!(scene.is_shown(&old_cert));
        assert_eq!((scene.complaints(), scene.gateway.metric(REFUSED)), (count, f64::from(count as u32)));
    }
    std::fs::remove_file(&scene.pair.cert).unwrap();
    std::thread::sleep(LOOKS + LOOKS);
    assert!(scene.is_shown(&old_cert));
    assert_eq!((scene.complaints(), scene.gateway.metric(TAKEN)), (5, 0.0));
    let log = scene.gateway.log_text();
    for part in ["is not the key of the certificate", "has run out", "ends in the middle", "has no private key"] {
        assert!(log.contains(part), "{part}");
    }
    scene.replace(&other.cert, &other.key);
    eventually("the good pair is shown", || scene.is_shown(&other.cert).then_some(()));
}

#[test]
fn a_new_client_ca_counts_at_once_and_ends_the_sessions_of_the_old() {
    let clients = Authority::named("old clients");
    let scene = Scene::with(&format!(", client_ca = {:?}", clients.ca()), "", "");
    let showing = |pair: &Pair| TlsClient::with(&scene.authority, Some(pair), rustls::DEFAULT_VERSIONS);
    let ask = |client: &TlsClient| {
        let mut client = Client::connect_tls(scene.gateway.tls_address(), "erp.example", client).unwrap();
        client.send(crate::harness::client::head("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()]));
        let status = client.try_read("GET").map(|answer| answer.status);
        (status, client.session().handshake_kind().unwrap())
    };
    let old = showing(&clients.issue("edge", "DNS:edge.example"));
    assert_eq!(ask(&old).0, Some(200));
    assert_eq!(ask(&old), (Some(200), HandshakeKind::Resumed));
    let successors = Authority::named("new clients");
    let new = showing(&successors.issue("edge", "DNS:edge.example"));
    assert_eq!(ask(&new).0, None);
    std::fs::copy(successors.ca(), clients.ca()).unwrap();
    eventually("the new authority counts", || (ask(&new).0 == Some(200)).then_some(()));
    assert_eq!(ask(&old), (None, HandshakeKind::Full));
}

#[test]
fn commands_about_keys_need_no_certificate() {
    let scene = Scene::new();
    std::fs::remove_file(&scene.pair.key).unwrap();
    assert!(scene.gateway.run(&["keys", "revoke", &scene.key.id, "--yes"]).status.success());
    let output = scene.gateway.run(&["check"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot read"));
}

#[test]
fn check_warns_of_a_certificate_that_has_run_out_or_will_soon() {
    let scene = Scene::new();
    let told = |pair: &Pair| {
        scene.replace(&pair.cert, &pair.key);
        let output = scene.gateway.run(&["check"]);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("(TLS)"));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(told(&scene.authority.issue_at("-5d", "past", "DNS:erp.example", &[])).contains("has run out"));
    let soon = scene.authority.issue_at("-80d", "soon", "DNS:erp.example", &["-days", "90"]);
    assert!(told(&soon).contains("runs out in "), "{}", told(&soon));
    let fresh = scene.authority.issue_with("fresh", "DNS:erp.example", &["-days", "90"]);
    assert_eq!(told(&fresh), "");
}
