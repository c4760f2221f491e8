//! TLS towards clients: what is agreed on, with whom, and what never becomes a connection.

mod clients;
mod cut;
mod hellos;
mod names;
mod replaced;
mod scan;
mod sessions;
mod wire;

use crate::harness::client::head;
use crate::harness::{Authority, Client, Gateway, Http2, Key, Pair, TlsClient, Upstream, eventually};
use std::process::Command;

/// A gateway with TLS for `erp.example` before an upstream, a key, and a client that trusts it.
struct Scene {
    authority: Authority,
    pair: Pair,
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
    client: TlsClient,
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        Self::with("", "", "")
    }

    /// `tls` is more of the listener's `tls`, `listen` are more of its lines, `sections` more of gateway.toml.
    fn with(tls: &str, listen: &str, sections: &str) -> Self {
        let authority = Authority::new();
        let pair = authority.issue("server", "DNS:erp.example,IP:127.0.0.1");
        let tls = tls.replace("CA", &authority.ca().display().to_string());
        let upstream = Upstream::named("live");
        let gateway = Gateway::builder().live(&upstream).tls_with(&pair, &tls, listen).toml(sections).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        let client = TlsClient::new(&authority);
        Self { authority, pair, upstream, gateway, key, client }
    }

    fn connect(&self) -> Client {
        Client::connect_tls(self.gateway.tls_address(), "erp.example", &self.client).unwrap()
    }

    /// The status of one request on a connection of `client`.
    fn status(&self, client: &mut Client) -> u16 {
        client.request("GET", &self.gateway.path("orders"), &[&self.key.bearer()]).status
    }

    /// What curl tells by `format` of a request.
    fn curl(&self, args: &[&str], format: &str) -> String {
        let address = self.gateway.tls_address();
        let mut command = Command::new("curl");
        command.args(["-sS", "-o", "/dev/null", "--max-time", "20", "-w", format, "--cacert"]).arg(self.authority.ca());
        command.args(["--resolve", &format!("erp.example:{}:127.0.0.1", address.port())]);
        command.args(["-H", &self.key.bearer()]).args(args);
        command.arg(format!("https://erp.example:{}{}", address.port(), self.gateway.path("orders")));
        let output = command.output().expect("install curl: apt-get install curl");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    }
}

/// Waits until the journal tells of exactly `count` connections that ended for `cause`.
fn wait_for_cause(gateway: &Gateway, cause: &str, count: u64) {
    eventually(cause, || {
        let records = gateway.records();
        let events = records.iter().filter(|record| record["kind"] == "connection");
        let counted: u64 = events.filter_map(|record| record["counts"][cause].as_u64()).sum();
        (counted == count).then_some(())
    });
}

#[test]
fn curl_chooses_the_protocol_by_alpn_and_is_served_either_way() {
    let scene = Scene::new();
    let told = "%{http_code} %{http_version} %{ssl_verify_result}";
    assert_eq!(scene.curl(&[], told), "200 2 0");
    assert_eq!(scene.curl(&["--http1.1"], told), "200 1.1 0");
    assert_eq!(scene.curl(&["--http1.0"], told), "200 1 0");
    assert_eq!(scene.curl(&["--no-alpn"], told), "200 1.1 0");
    for received in scene.upstream.received() {
        assert_eq!(received.header("x-forwarded-proto").as_deref(), Some("https"));
        assert!(received.header("x-forwarded-host").unwrap().starts_with("erp.example:"));
    }
    for protocol in ["HTTP/2.0", "HTTP/1.1", "HTTP/1.0"] {
        let is_told = || scene.gateway.records().iter().any(|record| record["protocol"] == protocol);
        eventually(protocol, || is_told().then_some(()));
    }
}

#[test]
fn a_listener_offers_what_its_protocols_say() {
    let agreed = |scene: &Scene, offered: &[&str]| {
        let client = scene.client.offering(offered);
        let client = Client::connect_tls(scene.gateway.tls_address(), "erp.example", &client).ok()?;
        Some(client.session().alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap()))
    };
    let both = ["http/1.1", "h2"];
    let scene = Scene::with("", "protocols = [\"h1\"]", "");
    assert_eq!(agreed(&scene, &both), Some(Some("http/1.1".into())));
    assert_eq!(agreed(&scene, &["h2"]), None);
    assert_eq!(agreed(&scene, &[]), Some(None));
    wait_for_cause(&scene.gateway, "tls_unsupported", 1);
    let scene = Scene::with("", "protocols = [\"h2\"]", "");
    assert_eq!(agreed(&scene, &both), Some(Some("h2".into())));
    assert_eq!(agreed(&scene, &["http/1.1"]), None);
    let mut client = Http2::connect_tls(scene.gateway.tls_address(), "erp.example", &scene.client);
    let answer = client.request("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()], b"");
    assert_eq!(answer.status(), 200);
}

#[test]
fn a_proxy_speaks_for_its_client_before_tls() {
    let settings = "[client_ip]\ntrusted_proxies = [\"127.0.0.1\"]";
    let scene = Scene::with("", "proxy_protocol = true", settings);
    let mut stream = std::net::TcpStream::connect(scene.gateway.tls_address()).unwrap();
    std::io::Write::write_all(&mut stream, b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 443\r\n").unwrap();
    let mut stream = rustls::StreamOwned::new(scene.client.session("erp.example"), stream);
    let request = head("GET", &scene.gateway.path("orders"), &[&scene.key.bearer(), "Connection: close"]);
    std::io::Write::write_all(&mut stream, request.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(scene.upstream.only().header("x-forwarded-for").as_deref(), Some("192.0.2.7"));
}
