//! Several certificates, and requests that belong on another connection.

use super::Scene;
use crate::harness::client::head;
use crate::harness::http2;
use crate::harness::{Authority, Client, Gateway, Http2, Key, TlsClient, Upstream};
use crate::refusals;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Four certificates: one of two names, one that a `*` is in, one of an exact name below that, and one with RSA.
struct Several {
    authority: Authority,
    gateway: Gateway,
    key: Key,
    client: TlsClient,
}

// === impl Several ===

impl Several {
    fn start() -> Self {
        let authority = Authority::new();
        let pairs = [
            authority.issue("default", "DNS:erp.example,DNS:shop.example"),
            authority.issue("wild", "DNS:*.tenants.example"),
            authority.issue("exact", "DNS:one.tenants.example"),
            authority.issue_with("rsa", "DNS:erp.example,DNS:old.example", &["-newkey", "rsa:2048"]),
        ];
        let list: Vec<_> =
            pairs.iter().map(|pair| format!("{{ cert = {:?}, key = {:?} }}", pair.cert, pair.key)).collect();
        let listen = format!("[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificates = [{}] }}", list.join(", "));
        let gateway = Gateway::builder().live(&Upstream::named("live")).toml(&listen).start();
        let key = gateway.key(&["orders:read"]);
        let client = TlsClient::new(&authority);
        Self { authority, gateway, key, client }
    }

    /// Which certificate a client is shown that asks for this name.
    fn shown(&self, name: &str) -> String {
        let client = self.client.trusting_any();
        let client = Client::connect_tls(self.gateway.tls_address(), name, &client).unwrap();
        let shown = client.session().peer_certificates().unwrap()[0].clone();
        let files = ["default", "wild", "exact", "rsa"];
        let is_shown = |file: &&&str| {
            let path = self.authority.ca().with_file_name(format!("{file}.pem"));
            CertificateDer::from_pem_file(path).unwrap() == shown
        };
        files.iter().find(is_shown).unwrap().to_string()
    }

    fn statuses(&self, name: &str, host: &str) -> [u16; 2] {
        let (path, bearer) = (self.gateway.path("orders"), self.key.bearer());
        let tls = self.client.trusting_any();
        let mut client = Client::connect_tls(self.gateway.tls_address(), name, &tls).unwrap();
        let over_http1 = client.request("GET", &path, &[&bearer, &format!("Host: {host}")]);
        let mut client = Http2::connect_tls(self.gateway.tls_address(), name, &tls);
        let request = http2::request("GET", &format!("https://{host}{path}"), &[&bearer]);
        let over_http2 = client.begin_with(request, true).answer().unwrap();
        for code in [
            (over_http1.status == 421).then(|| over_http1.code()),
            (over_http2.status() == 421).then(|| over_http2.code()),
        ] {
            assert!(code.is_none_or(|code| code == "misdirected_request"));
        }
        [over_http1.status, over_http2.status()]
    }
}

#[test]
fn the_name_chooses_the_certificate_exactly_by_a_star_or_by_default() {
    let several = Several::start();
    assert_eq!(several.shown("erp.example"), "default");
    assert_eq!(several.shown("SHOP.example"), "default");
    assert_eq!(several.shown("two.tenants.example"), "wild");
    assert_eq!(several.shown("one.tenants.example"), "exact");
    assert_eq!(several.shown("old.example"), "rsa");
    assert_eq!(several.shown("a.b.tenants.example"), "default");
    assert_eq!(several.shown("127.0.0.1"), "default");
}

#[test]
fn a_request_for_another_host_than_the_connections_is_misdirected() {
    let several = Several::start();
    for (name, host) in [
        ("erp.example", "erp.example"),
        ("erp.example", "ERP.example:8443"),
        // Of the same certificate: a client may use one connection for both.
        ("erp.example", "shop.example"),
        ("two.tenants.example", "three.tenants.example"),
        // No certificate has it, so it is for itself and for those of the default.
        ("unknown.example", "unknown.example"),
        ("unknown.example", "shop.example"),
        // An address is no name to ask for, so none was meant.
        ("127.0.0.1", "anything.example"),
    ] {
        assert_eq!(several.statuses(name, host), [200, 200], "{name} {host}");
    }
    for (name, host) in [
        ("erp.example", "one.tenants.example"),
        ("one.tenants.example", "erp.example"),
        ("one.tenants.example", "two.tenants.example"),
        ("erp.example", "unknown.example"),
        ("unknown.example", "one.tenants.example"),
        ("shop.example", "127.0.0.1"),
    ] {
        assert_eq!(several.statuses(name, host), [421, 421], "{name} {host}");
    }
}

#[test]
fn a_misdirected_request_is_judged_by_itself_and_before_its_key() {
    let scene = Scene::new();
    let path = scene.gateway.path("orders");
    let mut client = scene.connect();
    let refused = client.request("GET", &path, &["Host: other.example"]);
    assert_eq!((refused.status, refused.code().as_str()), (421, "misdirected_request"));
    assert_eq!(scene.status(&mut client), 200, "the connection goes on");
    let record = scene.gateway.record_of(refused.header("x-request-id").unwrap());
    assert_eq!((&record["reason"], &record["host"]), (&"misdirected_request".into(), &"other.example".into()));
    assert_eq!(scene.upstream.received().len(), 1);
    let mut client = Http2::connect_tls(scene.gateway.tls_address(), "erp.example", &scene.client);
    let bearer = scene.key.bearer();
    let elsewhere = http2::request("GET", &format!("https://other.example{path}"), &[&bearer]);
    let (mut one, mut other) = (client.begin_with(elsewhere, true), client.begin("GET", &path, &[&bearer], true));
    assert_eq!((one.answer().unwrap().status(), other.answer().unwrap().status()), (421, 200));
    let mut client = scene.connect();
    let lines = [bearer.as_str(), "Host: other.example", "Connection: close"];
    let answer = client.send(head("GET", &path, &lines)).rest();
    refusals::compare("misdirected_request", &String::from_utf8(answer).unwrap());
}
