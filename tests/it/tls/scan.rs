//! Two scanners look at TLS as it is shipped, with a certificate of each kind, and find nothing of weight.

use crate::harness::{Authority, Gateway, Upstream};
use serde_json::Value;
use std::process::Command;
use std::time::Duration;

/// Severities of `testssl` that count.
const WEIGHTY: [&str; 3] = ["MEDIUM", "HIGH", "CRITICAL"];
/// What it says about the test's own surroundings: by id, and why that is not about the gateway.
const EXCLUDED: [(&str, &str); 2] = [
    ("engine_problem", "the scanner's own OpenSSL has no GOST"),
    ("sessionresumption_ticket", "its client may hang up before the ticket has come; tls::sessions looks at that"),
];

struct Scanned {
    authority: Authority,
    gateway: Gateway,
}

// === impl Scanned ===

impl Scanned {
    fn start() -> Self {
        let authority = Authority::new();
        // As an authority would issue them: with where to ask for revoked ones, which nobody does here.
        let more = ["-days", "90", "-addext", "crlDistributionPoints=URI:http://127.0.0.1/ca.crl"];
        let more =
            [&more[..], &["-addext", "extendedKeyUsage=serverAuth", "-addext", "keyUsage=critical,digitalSignature"]]
                .concat();
        let names = "DNS:localhost,IP:127.0.0.1";
        let pairs = [
            authority.issue_with("ecdsa", names, &more),
            authority.issue_with("rsa", names, &[&more[..], &["-newkey", "rsa:2048"]].concat()),
        ];
        let list: Vec<_> =
            pairs.iter().map(|pair| format!("{{ cert = {:?}, key = {:?} }}", pair.cert, pair.key)).collect();
        let listen = format!("[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ certificates = [{}] }}", list.join(", "));
        let gateway = Gateway::builder().live(&Upstream::named("live")).toml(&listen).start();
        Self { authority, gateway }
    }

    fn port(&self) -> u16 {
        self.gateway.tls_address().port()
    }
}

/// Runs a scanner to its end, for two minutes at most.
fn run(command: &mut Command, package: &str) {
    let mut child = command.spawn().unwrap_or_else(|_| panic!("install it: apt-get install {package}"));
    for _ in 0..1200 {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{package}: {status}");
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    _ = child.kill();
    _ = child.wait();
    panic!("{package} does not end");
}

#[test]
fn testssl_finds_nothing_of_medium_weight_or_more() {
    let scanned = Scanned::start();
    let (dir, found) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let found = found.path().join("found.json");
    let output = std::fs::File::create(dir.path().join("output")).unwrap();
    let mut command = Command::new("testssl");
    command.args(["--quiet", "--color", "0", "--warnings", "batch", "--nodns", "none", "--ip", "127.0.0.1"]);
    // Protocols, what the server chooses by itself and in which order, kinds of ciphers, forward secrecy, vulnerabilities.
    command.args(["-p", "-S", "-P", "-s", "-f", "-U", "--add-ca"]).arg(scanned.authority.ca());
    command.arg("--jsonfile").arg(&found).arg(format!("localhost:{}", scanned.port()));
    command.current_dir(dir.path()).stdout(output.try_clone().unwrap()).stderr(output);
    // Its exit code counts what it does not like at all; what is of weight is judged below.
    let mut child = command.spawn().expect("install it: apt-get install testssl.sh");
    let begun = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(240), "testssl does not end");
        std::thread::sleep(Duration::from_millis(100));
    }
    let text = std::fs::read_to_string(&found).unwrap();
    let findings: Vec<Value> = serde_json::from_str(&text).unwrap();
    let named = |name: &str| findings.iter().any(|finding| finding["id"].as_str().unwrap().contains(name));
    for name in ["TLS1_3", "cert_chain_of_trust", "cipher_order", "heartbleed", "LUCKY13", "RC4", "FS"] {
        assert!(named(name), "{name} was not looked at");
    }
    let weighty = findings.iter().filter(|finding| {
        let (id, severity) = (finding["id"].as_str().unwrap(), finding["severity"].as_str().unwrap());
        let is_excluded = EXCLUDED.iter().any(|(excluded, _)| *excluded == id);
        !is_excluded && (WEIGHTY.contains(&severity) || matches!(severity, "WARN" | "FATAL"))
    });
    assert_eq!(weighty.collect::<Vec<_>>(), Vec::<&Value>::new());
}

#[test]
fn sslscan_finds_strong_ciphers_and_new_protocols_alone() {
    let scanned = Scanned::start();
    let dir = tempfile::tempdir().unwrap();
    let xml = dir.path().join("found.xml");
    let mut command = Command::new("sslscan");
    command.args(["--no-colour", "--sni-name=localhost"]).arg(format!("--xml={}", xml.display()));
    run(command.arg(format!("127.0.0.1:{}", scanned.port())).stdout(std::process::Stdio::null()), "sslscan");
    let text = std::fs::read_to_string(&xml).unwrap();
    let elements = |name: &str| {
        text.lines()
            .map(str::trim)
            .filter(|line| line.starts_with(&format!("<{name} ")))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let enabled: Vec<_> = elements("protocol").into_iter().filter(|one| one.contains("enabled=\"1\"")).collect();
    assert_eq!(enabled.len(), 2, "{enabled:?}");
    assert!(enabled.iter().all(|one| one.contains("\"1.2\"") || one.contains("\"1.3\"")), "{enabled:?}");
    let ciphers = elements("cipher");
    for key in ["TLS_AES_256", "ECDHE-ECDSA", "ECDHE-RSA"] {
        assert!(ciphers.iter().any(|one| one.contains(key)), "{key} in {ciphers:?}");
    }
    // "acceptable" is what it calls all of TLS 1.3 and what has 128 bits.
    let is_good = |one: &String| one.contains("strength=\"strong\"") || one.contains("strength=\"acceptable\"");
    assert!(ciphers.iter().all(is_good), "{ciphers:?}");
    for (element, bad) in
        [("heartbleed", "vulnerable=\"1\""), ("compression", "supported=\"1\""), ("renegotiation", "supported=\"1\"")]
    {
        assert!(!elements(element).iter().any(|one| one.contains(bad)), "{element}");
    }
    assert!(!text.contains("<expired>true"));
}
