//! curl, nghttp and h2load, each for what it does best: connections that stay, streams in numbers, load.

use super::programs::{Server, run_within, source, tool};
use super::{Site, url, url_of_tls};
use crate::harness::{Authority, Gateway, Key, Upstream};
use std::process::{Command, Output};

/// What a program printed; it must have ended well.
fn printed(command: &Command) -> Output {
    let output = run_within("120", command);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}\n{}", String::from_utf8_lossy(&output.stdout));
    output
}

fn text(command: &Command) -> String {
    String::from_utf8_lossy(&printed(command).stdout).into_owned()
}

fn start(sections: &str) -> (Upstream, Gateway, Key) {
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).listen("protocols = [\"h1\", \"h2\"]").toml(sections).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    (upstream, gateway, key)
}

#[test]
fn curl_keeps_its_connection() {
    let (upstream, gateway, key) = start("");
    let url = url(gateway.address);
    // Over HTTP/2 with prior knowledge it asks once: its version 7.88 asks nobody a second time.
    let mut command = tool("curl", "curl");
    command.args(["-sS", "--http1.1", "-H", &key.bearer(), "-w", " %{num_connects} "]).args([&url; 5]);
    assert_eq!(text(&command), "live 1 live 0 live 0 live 0 live 0 ");
    assert_eq!(upstream.received().len(), 5);
}

#[test]
fn curl_waits_for_leave_to_send_a_body_and_is_refused_before_it_sends_one() {
    let (upstream, gateway, key) = start("");
    let mut command = tool("curl", "curl");
    command.args(["-sS", "-v", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-d", "abc"]);
    command.args(["-H", &key.bearer(), &url(gateway.address)]);
    let output = printed(&command);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "live");
    assert!(String::from_utf8_lossy(&output.stderr).contains("< HTTP/1.1 100 Continue"));
    assert_eq!((upstream.only().body, upstream.only().header("expect")), (b"abc".to_vec(), None));
    let mut command = tool("curl", "curl");
    command.args(["-sS", "-H", "Expect: 100-continue", "--expect100-timeout", "20", "-d", "abc"]);
    command.args(["-o", "/dev/null", "-w", "%{http_code} %{size_upload}", &url(gateway.address)]);
    assert_eq!(text(&command), "401 0");
    assert_eq!(upstream.received().len(), 1);
}

#[test]
fn nghttp_gets_what_it_sends_on_many_streams() {
    let site = Site::start("hypercorn");
    let body: Vec<u8> = (0..251).cycle().take(8 << 20).collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &body).unwrap();
    let authorization = format!("authorization: Bearer {}", site.key.text);
    let url = url(site.gateway.address);
    for url in [&url, &url_of_tls(site.gateway.tls_address())] {
        let mut command = tool("nghttp", "nghttp2-client");
        command.args(["-H", &authorization, "-d"]).arg(file.path()).arg(format!("{url}echo"));
        assert!(printed(&command).stdout == body, "{url}: it came back changed");
    }
    // Small windows, padded frames, twenty streams.
    let mut command = tool("nghttp", "nghttp2-client");
    command.args(["-n", "-s", "-m", "20", "-w", "14", "-W", "15", "-b", "100", "-H", &authorization]);
    command.arg(format!("{url}large"));
    let statistics = text(&command);
    let whole = statistics.lines().filter(|line| line.contains(" 200 ") && line.contains(" 1M ")).count();
    assert_eq!(whole, 20, "{statistics}");
}

#[test]
fn h2load_has_no_request_fail() {
    let upstream = Upstream::named("live");
    let authority = Authority::new();
    let pair = authority.issue("server", "IP:127.0.0.1");
    let gateway = Gateway::builder().live(&upstream).listen("protocols = [\"h1\", \"h2\"]").tls(&pair).start();
    let key = gateway.key(&["orders:read"]);
    let authorization = format!("authorization: Bearer {}", key.text);
    let versions = [&["-m", "20"][..], &["--h1", "-m", "5"]];
    let urls = [url(gateway.address), url_of_tls(gateway.tls_address())];
    for (number, (url, version)) in (1..).zip(urls.iter().flat_map(|url| versions.map(|version| (url, version)))) {
        let mut command = tool("h2load", "nghttp2-client");
        command.args(["-n", "2000", "-c", "10"]).args(version).args(["-H", &authorization, url]);
        let told = text(&command);
        assert!(told.contains("2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{version:?}: {told}");
        assert!(told.contains("status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx"), "{version:?}: {told}");
        assert_eq!(upstream.received().len(), number * 2000);
    }
}

#[test]
fn trailers_of_an_answer_reach_every_client() {
    use super::{CURL, CURL_H2, NODE_H2, PYTHON_H2, UNDICI};
    let (direct, site) = (Server::start("node"), Site::start("node"));
    let expected = serde_json::json!([["x-sum", "7"], ["x-other", "a b"], ["x-other", "c"]]);
    let cases = source("trailers.json");
    let asked = [(CURL, direct.address), (UNDICI, direct.address)].into_iter();
    let through = [CURL, UNDICI, CURL_H2, PYTHON_H2, NODE_H2].map(|client| (client, site.gateway.address));
    for (client, address) in asked.chain(through) {
        let got = client.go(&url(address), None, &site.key.text, &cases);
        assert_eq!((&got[0]["trailers"], &got[0]["size"]), (&expected, &(1 << 20).into()), "{client:?} at {address}");
    }
}
