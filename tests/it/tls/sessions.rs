//! What is agreed on: versions, key exchange, and sessions that are resumed by any worker.

use super::{Scene, wait_for_cause};
use crate::harness::{Client, TlsClient};
use rustls::{HandshakeKind, NamedGroup, ProtocolVersion, SupportedProtocolVersion, version};
use std::sync::Arc;

const TLS12: &[&SupportedProtocolVersion] = &[&version::TLS12];
const TLS13: &[&SupportedProtocolVersion] = &[&version::TLS13];

#[test]
fn a_session_is_resumed_whichever_worker_takes_it_and_not_after_a_restart() {
    let mut scene = Scene::new();
    for versions in [TLS12, TLS13] {
        let client = TlsClient::with(&scene.authority, None, versions);
        let kind = |scene: &Scene| {
            let mut connection = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &client).unwrap();
            // The ticket comes with the answer.
            assert_eq!(scene.status(&mut connection), 200);
            connection.session().handshake_kind().unwrap()
        };
        assert_eq!(kind(&scene), HandshakeKind::Full);
        for _ in 0..20 {
            assert_eq!(kind(&scene), HandshakeKind::Resumed);
        }
        scene.gateway.restart();
        assert_eq!(kind(&scene), HandshakeKind::Full);
    }
}

#[test]
fn nothing_is_taken_before_the_handshake_is_done() {
    let scene = Scene::new();
    let mut config = rustls::ClientConfig::clone(&TlsClient::with(&scene.authority, None, TLS13).config);
    config.enable_early_data = true;
    let client = TlsClient { config: Arc::new(config) };
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        assert!(client.session("erp.example").early_data().is_none());
        let mut connection = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &client).unwrap();
        assert_eq!(scene.status(&mut connection), 200);
        assert_eq!(connection.session().handshake_kind(), Some(kind));
    }
}

#[test]
fn keys_are_exchanged_so_that_a_quantum_computer_does_not_read_them_either() {
    let scene = Scene::new();
    let connection = scene.connect();
    let group = connection.session().negotiated_key_exchange_group().unwrap();
    assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    assert_eq!(connection.session().protocol_version(), Some(ProtocolVersion::TLSv1_3));
}

#[test]
fn older_versions_than_the_least_are_refused() {
    let version = |scene: &Scene, versions| {
        let client = TlsClient::with(&scene.authority, None, versions);
        let client = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &client).ok()?;
        client.session().protocol_version()
    };
    let scene = Scene::new();
    assert_eq!(version(&scene, TLS12), Some(ProtocolVersion::TLSv1_2));
    let scene = Scene::with(", min_version = \"1.3\"", "", "");
    assert_eq!(version(&scene, TLS13), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(version(&scene, TLS12), None);
    wait_for_cause(&scene.gateway, "tls_unsupported", 1);
}
