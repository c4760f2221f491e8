//! Whose address counts: what the allowlist compares, and what the upstream is told.

use crate::harness::{Gateway, Key, Upstream};

const PROXIES: &str = "[client_ip]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\", \"2001:db8::/32\"]";

struct Matrix {
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
}

// === impl Matrix ===

impl Matrix {
    /// A gateway with this `[client_ip]`, and a key that only `allow` may use.
    fn start(client_ip: &str, allow: &str) -> Self {
        let upstream = Upstream::named("live");
        let gateway = Gateway::builder().live(&upstream).toml(client_ip).start();
        let key = gateway.key_with(&["--mode", "live", "--scope", "orders:read", "--allow", allow]);
        Self { upstream, gateway, key }
    }

    /// The status for a request with these lines, and the `X-Forwarded-For` that the upstream received for it.
    fn ask(&self, lines: &[&str]) -> (u16, Vec<String>) {
        let before = self.upstream.received().len();
        let bearer = self.key.bearer();
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines.iter().copied()).collect();
        let status = self.gateway.client().request("GET", &self.gateway.path("orders"), &lines).status;
        let received = self.upstream.received().split_off(before);
        assert!(received.len() <= 1, "{received:#?}");
        for request in &received {
            for name in ["forwarded", "x-real-ip", "x-forwarded-port"] {
                assert_eq!(request.header(name), None, "{}", request.head);
            }
        }
        (status, received.iter().flat_map(|request| request.headers("x-forwarded-for")).collect())
    }
}

/// Headers in which a client claims to be 192.0.2.7.
const CLAIMS: [&[&str]; 7] = [
    &["X-Forwarded-For: 192.0.2.7"],
    &["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 192.0.2.7"],
    &["X-Forwarded-For: 192.0.2.7:80"],
    &["X-Forwarded-For: ::ffff:192.0.2.7"],
    &["X-Real-IP: 192.0.2.7"],
    &["Forwarded: for=192.0.2.7"],
    &["X_Forwarded_For: 192.0.2.7", "X-Forwarded-Port: 1"],
];

#[test]
fn an_untrusted_peer_is_the_client_whatever_it_claims() {
    let elsewhere = Matrix::start("", "192.0.2.7");
    let here = Matrix::start("[client_ip]\ntrusted_proxies = [\"10.0.0.0/8\"]", "127.0.0.1");
    for claim in CLAIMS {
        assert_eq!(elsewhere.ask(claim), (403, vec![]), "{claim:?}");
        assert_eq!(here.ask(claim), (200, vec!["127.0.0.1".to_owned()]), "{claim:?}");
    }
    assert_eq!(here.ask(&["X-Forwarded-For: not an address"]).0, 200);
}

#[test]
fn behind_trusted_proxies_the_rightmost_untrusted_hop_is_the_client() {
    let matrix = Matrix::start(PROXIES, "192.0.2.0/24");
    let passes: [(&[&str], &str); 6] = [
        (&["X-Forwarded-For: 192.0.2.7"], "192.0.2.7, 127.0.0.1"),
        (&["X-Forwarded-For: 192.0.2.7, 10.1.1.1"], "192.0.2.7, 10.1.1.1, 127.0.0.1"),
        (&["X-Forwarded-For: 6.6.6.6, 192.0.2.7"], "6.6.6.6, 192.0.2.7, 127.0.0.1"),
        (&["X-Forwarded-For: 192.0.2.7:4711, [2001:db8::1]:80"], "192.0.2.7:4711, [2001:db8::1]:80, 127.0.0.1"),
        (&["X-Forwarded-For: ::ffff:192.0.2.7"], "::ffff:192.0.2.7, 127.0.0.1"),
        (&["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 192.0.2.7"], "6.6.6.6, 192.0.2.7, 127.0.0.1"),
    ];
    for (lines, told) in passes {
        assert_eq!(matrix.ask(lines), (200, vec![told.to_owned()]), "{lines:?}");
    }
    let refused: [(&[&str], u16); 9] = [
        (&[], 403),
        (&["X-Forwarded-For: 192.0.2.7, 6.6.6.6"], 403),
        (&["X-Forwarded-For: 192.0.2.7", "X-Forwarded-For: 6.6.6.6"], 403),
        (&["X-Forwarded-For: 192.0.2.7, 6.6.6.6, 10.1.1.1"], 403),
        (&["X-Real-IP: 192.0.2.7"], 403),
        (&["Forwarded: for=192.0.2.7"], 403),
        (&["X-Forwarded-For: 192.0.2.7, unknown"], 400),
        (&["X-Forwarded-For: 192.0.2.7,"], 400),
        (&["X-Forwarded-For: 192.0.2.7, 10.0.0.1x"], 400),
    ];
    for (lines, status) in refused {
        assert_eq!(matrix.ask(lines), (status, vec![]), "{lines:?}");
    }
}

#[test]
fn a_request_id_is_kept_from_a_trusted_proxy_alone() {
    let (trusted, untrusted) = (Matrix::start(PROXIES, "127.0.0.1"), Matrix::start("", "127.0.0.1"));
    let id = |matrix: &Matrix, sent: &str| {
        let lines = [matrix.key.bearer(), format!("X-Request-Id: {sent}")];
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let answer = matrix.gateway.client().request("GET", &matrix.gateway.path("orders"), &lines);
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id(&trusted, "edge-7.a_b"), "edge-7.a_b");
    assert!(id(&trusted, "two words").starts_with("req_"));
    assert!(id(&trusted, &"a".repeat(129)).starts_with("req_"));
    assert!(id(&untrusted, "edge-7.a_b").starts_with("req_"));
}
