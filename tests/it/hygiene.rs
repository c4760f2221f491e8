//! How requests get around gateways: each class with its status, whether the connection ends, and what the upstream
//! received. The requests carry a valid key, so that hygiene alone decides.

use crate::harness::{Client, Gateway, Key, Upstream};

/// What must come of a request.
enum Outcome {
    /// This status, nothing upstream, and the connection ends.
    RefusedAndClosed(u16),
    /// This status, nothing upstream, and the connection serves the next request.
    Refused(u16),
    /// Passed on with this target, these lines of the client's own, and this body.
    Forwarded(&'static str, &'static [&'static str], &'static str),
}
use Outcome::{Forwarded, Refused, RefusedAndClosed};

/// One gateway for a table of cases.
struct Table {
    upstream: Upstream,
    gateway: Gateway,
    key: Key,
}

// === impl Table ===

impl Table {
    fn start() -> Self {
        let upstream = Upstream::named("live");
        let gateway = Gateway::before(&upstream);
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { upstream, gateway, key }
    }

    /// `{o}` is the path of the entity's orders, `{k}` the line with the key.
    fn fill(&self, text: &str) -> String {
        text.replace("{o}", &self.gateway.path("orders")).replace("{k}", &self.key.bearer())
    }

    fn check(&self, row: &str, request: &str, outcome: &Outcome) {
        let before = self.upstream.received().len();
        let mut client = self.gateway.client();
        client.send(self.fill(request));
        let method = request.split(' ').next().unwrap();
        let status = client.try_read(method).map(|response| response.status);
        let received = self.upstream.received().split_off(before);
        match outcome {
            RefusedAndClosed(expected) => {
                assert_eq!(status, Some(*expected), "{row}: {request:?}");
                assert!(client.is_closed(), "{row}: still open after {request:?}");
                assert!(received.is_empty(), "{row}: {received:#?}");
            }
            Refused(expected) => {
                assert_eq!(status, Some(*expected), "{row}: {request:?}");
                assert!(received.is_empty(), "{row}: {received:#?}");
                self.serves_another(&mut client, row);
            }
            Forwarded(target, lines, body) => {
                assert_eq!(status, Some(200), "{row}: {request:?}");
                assert_eq!(received.len(), 1, "{row}: {received:#?}");
                let head = own_lines(&received[0].head);
                let mut expected: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
                expected.sort();
                assert_eq!((received[0].target(), head), (self.fill(target), expected), "{row}: {request:?}");
                assert_eq!(String::from_utf8_lossy(&received[0].body), *body, "{row}: {request:?}");
            }
        }
    }

    fn serves_another(&self, client: &mut Client, row: &str) {
        let before = self.upstream.received().len();
        let answer = client.request("GET", &self.gateway.path("orders/next"), &[&self.key.bearer()]);
        assert_eq!(answer.status, 200, "{row}");
        let received = self.upstream.received().split_off(before);
        assert_eq!(received.len(), 1, "{row}: {received:#?}");
        assert_eq!(received[0].target(), self.gateway.path("orders/next"), "{row}");
    }
}

/// The fields of a forwarded head that are not the gateway's own, sorted. Those must be there exactly once.
fn own_lines(head: &str) -> Vec<String> {
    const SET: [&str; 11] = [
        "arcus-version",
        "x-request-id",
        "x-key-id",
        "x-key-mode",
        "x-key-scopes",
        "x-entity-id",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "traceparent",
        "via",
    ];
    let lines: Vec<&str> = head.trim_end().split("\r\n").skip(1).collect();
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_ascii_lowercase();
    for set in SET {
        assert_eq!(lines.iter().filter(|line| name(line) == set).count(), 1, "{set} in {head}");
    }
    let mut own: Vec<String> =
        lines.into_iter().filter(|line| !SET.contains(&name(line).as_str())).map(str::to_ascii_lowercase).collect();
    own.sort();
    own
}

/// A GET of `target` with a key, and these lines.
fn get(target: &str, lines: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: erp.example\r\n{{k}}\r\n{lines}\r\n")
}

/// A POST to the orders with a key, these lines and this body.
fn post(lines: &str, body: &str) -> String {
    format!("POST {{o}} HTTP/1.1\r\nHost: erp.example\r\n{{k}}\r\n{lines}\r\n{body}")
}

const HOST: &str = "host: erp.example";

#[test]
fn rows_1_to_6_a_path_that_can_be_read_in_two_ways_is_refused() {
    let table = Table::start();
    let ambiguous = "//admin {o}//7 /v1//status {o}/../admin {o}/./7 /v1/../v1/status /v1/status/.. {o}/%2e%2e/x \
        {o}/.%2E/x {o}%2f7 {o}%5c7 {o}\\7 {o}/%252e%252e/x {o}/%2500 {o}/%00 {o}/%0d%0aX:1 \
        {o}/%zz {o}/% {o}/%c0%af {o}/%ff {o};a=b {o}/..;/x {o}/%3bx";
    for target in ambiguous.split(' ').filter(|target| !target.is_empty()) {
        table.check("1-5", &get(target, ""), &RefusedAndClosed(400));
    }
    // Row 6: what is merely another path is not found; it never opens.
    for target in ["/V1/status", "/v1/status.", "/v1/status%20", "/v1/Entities/x/orders"] {
        table.check("6", &get(target, ""), &Refused(404));
        let stranger = get(target, "").replace("{k}\r\n", "");
        table.check("6", &stranger, &Refused(401));
    }
    table.check("3", &get("{o}/%61%7E?q=%2e%2e//;", ""), &Forwarded("{o}/a~?q=%2e%2e//;", &[HOST], ""));
    table.check("3", &get("{o}/a%c3%a4%20", ""), &Forwarded("{o}/a%C3%A4%20", &[HOST], ""));
}

#[test]
fn rows_7_to_10_the_target_and_host_name_one_resource() {
    let table = Table::start();
    table.check("7", &get("{o}/7#/../admin", ""), &Forwarded("{o}/7", &[HOST], ""));
    for target in ["admin", "*", ".", "@evil", "evil:80", "ftp://erp.example/x", "http://evil.example{o}"] {
        table.check("8-9", &get(target, ""), &RefusedAndClosed(400));
    }
    table.check("8", &get("*", "").replace("GET", "OPTIONS"), &RefusedAndClosed(400));
    table.check("9", &get("http://ERP.example:80{o}", ""), &Forwarded("{o}", &[HOST], ""));
    for host in [
        "",
        "Host:\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host: a, b\r\n",
        "Host: user@a\r\n",
        "Host: a:b\r\n",
        "Host: a/b\r\n",
        "Host: a b\r\n",
        "Host: [::1\r\n",
    ] {
        for version in ["1.1", "1.0"] {
            let request = format!("GET {{o}} HTTP/{version}\r\n{host}{{k}}\r\n\r\n");
            table.check("10", &request, &RefusedAndClosed(400));
        }
    }
}

#[test]
fn rows_13_to_17_a_body_has_one_length_and_is_framed_anew() {
    let table = Table::start();
    const CHUNKED: &[&str] = &[HOST, "transfer-encoding: chunked"];
    let smuggled = "0\r\n\r\nGET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n";
    for lines in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: abc\r\n",
    ] {
        // The library drops the length, and closes: what follows the body is never read as a request.
        table.check("13", &post(lines, smuggled), &Forwarded("{o}", CHUNKED, ""));
        let mut client = table.gateway.client();
        client.send(table.fill(&post(lines, smuggled)));
        client.read("POST");
        assert!(client.is_closed(), "{lines}");
    }
    for coding in [
        "gzip, chunked",
        "chunked, chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "identity\r\nTransfer-Encoding: chunked",
    ] {
        table.check("14", &post(&format!("Transfer-Encoding: {coding}\r\n"), smuggled), &RefusedAndClosed(400));
    }
    for coding in ["identity", "gzip", "xchunked", "chunked, gzip", "\"chunked\"", "chunked;q=1"] {
        table.check("14", &post(&format!("Transfer-Encoding: {coding}\r\n"), smuggled), &RefusedAndClosed(400));
    }
    for line in ["Transfer-Encoding : chunked\r\n", " Transfer-Encoding: chunked\r\n", "Content-Length : 3\r\n"] {
        table.check("14", &post(line, smuggled), &RefusedAndClosed(400));
    }
    for line in
        ["Transfer_Encoding: chunked\r\n", "Content_Length: 3\r\nContent-Length: 3\r\n", "content_length: 0\r\n"]
    {
        table.check("25", &post(line, smuggled), &RefusedAndClosed(400));
    }
    table.check("25", "GET {o} HTTP/1.1\r\nHost: erp\r\n{k}\r\nContent_Length: 3\r\n\r\n", &RefusedAndClosed(400));
    for length in ["+3", "3,3", "3, 4", "-1", "0x3", "", "3 3", "99999999999999999999", "3\r\nContent-Length: 4"] {
        table.check("15", &post(&format!("Content-Length: {length}\r\n"), "abc"), &RefusedAndClosed(400));
    }
    let once: &[&str] = &[HOST, "content-length: 3"];
    table.check("15", &post("Content-Length: 3\r\n", "abc"), &Forwarded("{o}", once, "abc"));
    table.check("15", &post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), &Forwarded("{o}", once, "abc"));
    let extended = "3;x=\"y\"\r\nabc\r\n0;z\r\n\r\n";
    table.check("16", &post("Transfer-Encoding: chunked\r\n", extended), &Forwarded("{o}", CHUNKED, "abc"));
    for body in [
        "3 x\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nabc",
    ] {
        table.check("16", &post("Transfer-Encoding: chunked\r\n", body), &RefusedAndClosed(400));
    }
    let old =
        post("Transfer-Encoding: chunked\r\n", smuggled).replace("HTTP/1.1\r\nHost: erp", "HTTP/1.0\r\nHost: erp");
    table.check("17", &old, &RefusedAndClosed(400));
    table.check("17", "GET /v1/status HTTP/0.9\r\nHost: a\r\n\r\n", &RefusedAndClosed(400));
    table.check("17", "GET /v1/status HTTP/1.2\r\nHost: a\r\n\r\n", &RefusedAndClosed(400));
}

#[test]
fn rows_19_to_22_methods_upgrades_and_overrides() {
    let table = Table::start();
    let h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n";
    table.check("19", &get("{o}", h2c), &Forwarded("{o}", &[HOST], ""));
    table.check("19", &get("{o}", "Connection: Upgrade\r\nUpgrade: websocket\r\n"), &Forwarded("{o}", &[HOST], ""));
    table.check("20", &get("erp.example:80", "").replace("GET", "CONNECT"), &Refused(405));
    for method in ["TRACE", "TRACK"] {
        table.check("21", &get("{o}", "").replace("GET", method), &Refused(405));
        table.check("21", &get("/v1/status", "").replace("GET", method), &Refused(405));
    }
    for method in ["get", "Get", "GETX", "PROPFIND"] {
        table.check("22", &get("{o}", "").replace("GET", method), &Refused(405));
    }
    let overrides = "X-HTTP-Method-Override: DELETE\r\nX_HTTP_Method: DELETE\r\nX-Method-Override: DELETE\r\n";
    table.check("22", &get("{o}?_method=DELETE", overrides), &Forwarded("{o}?_method=DELETE", &[HOST], ""));
}

#[test]
fn rows_23_to_26_no_client_speaks_in_the_gateways_name() {
    let table = Table::start();
    for name in [
        "Authorization",
        "Host",
        "X-Api-Key",
        "X-Key-Id",
        "x_key_id",
        "X-Forwarded-For",
        "X-Request-Id",
        "X-Entity-Id",
        "Content-Length",
    ] {
        for list in [name.to_owned(), format!("close, {name}"), format!("keep-alive\r\nConnection: {name}")] {
            table.check("23", &get("{o}", &format!("Connection: {list}\r\n")), &RefusedAndClosed(400));
        }
    }
    let listed = "Connection: X-Private\r\nX-Private: 1\r\nX-Kept: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n";
    table.check("23", &get("{o}", listed), &Forwarded("{o}", &[HOST, "x-kept: 1"], ""));
    let spoofed: String = [
        "X-Key-Id",
        "x_key_id",
        "X-Key-Mode",
        "X_Key_Mode",
        "X-Key-Scopes",
        "X-Entity-Id",
        "X_ENTITY-Id",
        "X-Request-Id",
        "X-Forwarded-For",
        "X_Forwarded_For",
        "X-Forwarded-Proto",
        "X-Forwarded-Host",
        "X-Forwarded-Prefix",
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "X-Original-URL",
        "X-Rewrite-URL",
        "traceparent",
    ]
    .iter()
    .map(|name| format!("{name}: spoofed\r\n"))
    .collect();
    table.check("24-26", &get("{o}", &spoofed), &Forwarded("{o}", &[HOST], ""));
    let received = table.upstream.received().pop().unwrap();
    assert!(!received.head.contains("spoofed"), "{}", received.head);
    assert_eq!(received.header("x-key-id"), Some(table.key.id.clone()));
    assert_eq!(received.header("x-key-mode").as_deref(), Some("live"));
    assert_eq!(received.header("x-forwarded-for").as_deref(), Some("127.0.0.1"));

    // On a public route nobody is vouched for, and no copy of the client's takes the place.
    let before = table.upstream.received().len();
    let spoofed = spoofed.split_terminator("\r\n").collect::<Vec<_>>();
    assert_eq!(table.gateway.client().request("GET", "/v1/status", &spoofed).status, 200);
    let received = table.upstream.received().split_off(before);
    assert!(!received[0].head.contains("spoofed") && received[0].header("x-key-id").is_none(), "{received:#?}");
}

#[test]
fn rows_27_to_29_one_credential_in_one_form() {
    let table = Table::start();
    let key = table.key.text.clone();
    table.check("27", &get("{o}", "{k}\r\n"), &RefusedAndClosed(400));
    table.check("27", &get("{o}", "Authorization: Basic x\r\n"), &RefusedAndClosed(400));
    table.check("27", &get("{o}", "Authorization:\r\n"), &RefusedAndClosed(400));
    table.check("27", &get("{o}", &format!("X-Api-Key: {key}\r\n")), &RefusedAndClosed(400));
    table.check("28", &get(&format!("{{o}}?api_key={key}"), ""), &RefusedAndClosed(400));
    table.check("27", &get("{o}", &format!("Cookie: a=1; k={key}\r\n")), &Forwarded("{o}", &[HOST, "cookie: a=1"], ""));
    let one = |value: &str| format!("GET {{o}} HTTP/1.1\r\nHost: erp.example\r\nAuthorization:{value}\r\n\r\n");
    for value in [" bearer ", " BEARER "] {
        table.check("29", &one(&format!("{value}{key}")), &Forwarded("{o}", &[HOST], ""));
    }
    for value in [
        String::new(),
        " Bearer".into(),
        format!(" Bearer\t{key}"),
        format!(" Bearer  {key}"),
        format!(" Bearer {key}x"),
        format!(" Bearer {key},{key}"),
        format!(" Bearer {key} x"),
        format!(" Bearer \"{key}\""),
        format!(" {key}"),
        " Bearer \u{e4}\u{e4}".into(),
        format!(" Bearer {}", "a".repeat(8000)),
    ] {
        table.check("29", &one(&value), &Refused(401));
    }
}

#[test]
fn rows_30_to_32_trailers_expectations_and_preflights() {
    let table = Table::start();
    let trailers = "3\r\nabc\r\n0\r\nX-Key-Id: spoofed\r\nCookie: a\r\nX-Any: 1\r\n\r\n";
    let lines = "Transfer-Encoding: chunked\r\nTrailer: X-Key-Id, X-Any\r\n";
    table.check("30", &post(lines, trailers), &Forwarded("{o}", &[HOST, "transfer-encoding: chunked"], "abc"));
    table.check("31", &get("{o}", "Expect: 200-ok\r\n"), &Refused(417));
    table.check("31", &get("{o}", "Expect: 100-continue, x\r\n"), &Refused(417));
    table.check("31", &get("{o}", "Expect: 100-continue\r\nExpect: 100-continue\r\n"), &Refused(417));
    let expecting = post("Expect: 100-continue\r\nContent-Length: 3\r\n", "abc");
    table.check("31", &expecting, &Forwarded("{o}", &[HOST, "content-length: 3"], "abc"));
    let preflight = "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n";
    let stranger = get("{o}", preflight).replace("GET", "OPTIONS").replace("{k}\r\n", "");
    table.check("32", &stranger, &Refused(401));
}

#[test]
fn row_37_controls_in_values_are_refused_and_other_bytes_pass() {
    let table = Table::start();
    for byte in ["\0", "\r", "\x01", "\x1f", "\x7f", "\x0b"] {
        table.check("37", &get("{o}", &format!("X-Any: a{byte}b\r\n")), &RefusedAndClosed(400));
    }
    for lines in ["X-Any\r\n", ": x\r\n", "X Any: x\r\n", "X-Any: a\r\n b\r\n"] {
        table.check("37", &get("{o}", lines), &RefusedAndClosed(400));
    }
    table.check("37", &get("{o}", "X-Any: \u{e4}\tb\r\n"), &Forwarded("{o}", &[HOST, "x-any: \u{e4}\tb"], ""));
}

/// Row 18: what a refusal leaves unread is either read as the body it is, or the connection ends.
#[test]
fn after_a_refusal_unread_body_bytes_never_become_a_request() {
    let table = Table::start();
    let smuggled = table.fill("GET {o}/smuggled HTTP/1.1\r\nHost: erp.example\r\n{k}\r\n\r\n");
    let large = smuggled.repeat(2000);
    for body in [&smuggled, &large] {
        let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
        let sized = format!("Content-Length: {}\r\n", body.len());
        for (lines, body) in [(sized.as_str(), body), ("Transfer-Encoding: chunked\r\n", &chunked)] {
            for refused in [post(lines, "").replace("{k}\r\n", ""), post(lines, "").replace("{o}", "/v1/none")] {
                let mut client = table.gateway.client();
                client.send(table.fill(&refused));
                client.send(body);
                let status = client.read("POST").status;
                assert!(matches!(status, 401 | 404), "{status}");
                client.stream().shutdown(std::net::Shutdown::Write).unwrap_or_default();
                let rest = client.rest();
                assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
            }
        }
    }
    assert!(table.upstream.received().is_empty(), "{:#?}", table.upstream.received());
    // Without a length there is no body: what follows is a request of its own, judged by itself.
    let mut client = table.gateway.client();
    client.send(table.fill("POST {o} HTTP/1.1\r\nHost: erp.example\r\n\r\n") + &smuggled);
    assert_eq!((client.read("POST").status, client.read("GET").status), (401, 200));
    assert_eq!(table.upstream.only().target(), table.gateway.path("orders/smuggled"));
}
