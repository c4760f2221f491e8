//! What is ambiguous or malformed never reaches the upstream (the threat model's classes, in HTTP/2).

use super::{BOTH, echo, is_served, start};
use crate::harness::http2::{self, END_HEADERS, END_STREAM, Wire, block_of, frame, kind};
use crate::harness::{Gateway, Http2, Upstream};

type Fields<'a> = Vec<(&'a str, &'a str)>;

/// The status and code of the answer to a head that a library can send.
fn refused(gateway: &Gateway, method: &str, uri: &str, lines: &[&str]) -> (u16, String) {
    let mut client = Http2::connect(gateway.address);
    let answer = client.begin_with(http2::request(method, uri, lines), true).answer().unwrap();
    let is_told = answer.status() >= 400 && !answer.body.is_empty();
    (answer.status(), if is_told { answer.code() } else { String::new() })
}

#[test]
fn authority_and_host_are_one_or_the_request_is_refused() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let bearer = key.bearer();
    let path = gateway.path("orders");
    let at = |authority: &str| format!("http://{authority}{path}");
    for (uri, host) in [(at("erp.example"), "erp.example"), (at("ERP.example:80"), "erp.example")] {
        let line = format!("host: {host}");
        assert_eq!(refused(&gateway, "GET", &uri, &[&bearer, &line]).0, 200, "{uri} {host}");
    }
    assert!(upstream.received().iter().all(|received| received.headers("host") == ["erp.example"]));
    upstream.forget();
    for lines in
        [vec!["host: evil.example"], vec!["host: erp.example:81"], vec!["host: erp.example", "host: erp.example"]]
    {
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(lines).collect();
        assert_eq!(refused(&gateway, "GET", &at("erp.example"), &lines), (400, "bad_request".to_owned()), "{lines:?}");
    }
    for uri in [at("user@erp.example"), format!("ftp://erp.example{path}")] {
        assert_eq!(refused(&gateway, "GET", &uri, &[&bearer]), (400, "bad_request".to_owned()), "{uri}");
    }
    assert!(upstream.received().is_empty());
}

#[test]
fn a_host_alone_counts_and_none_is_refused() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), format!("Bearer {}", key.text));
    for (host, status) in [(Some("erp.example"), 0x88), (None, 0x8c)] {
        let mut wire = Wire::connect(gateway.address, &[]);
        let mut fields = vec![(":method", "GET"), (":scheme", "http"), (":path", &path), ("authorization", &bearer)];
        fields.extend(host.map(|host| ("host", host)));
        wire.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block_of(&fields)));
        // `:status` 200 and 400 (RFC 7541, appendix A).
        assert_eq!(wire.wait_for(kind::HEADERS).unwrap().payload.first(), Some(&status), "{host:?}");
    }
    assert_eq!(upstream.only().headers("host"), ["erp.example"]);
}

#[test]
fn methods_and_paths_are_judged_as_in_http1() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let bearer = key.bearer();
    let at = |rest: &str| format!("http://erp.example{}", gateway.path(rest));
    assert_eq!(refused(&gateway, "TRACE", &at("orders"), &[&bearer]), (405, "method_not_allowed".to_owned()));
    let mut client = Http2::connect(gateway.address);
    let connect = http::Request::builder().method("CONNECT").uri("erp.example:443").body(()).unwrap();
    let answer = client.begin_with(connect, true).answer().unwrap();
    assert_eq!((answer.status(), answer.code().as_str()), (405, "method_not_allowed"));
    for rest in ["orders//1", "orders/../products", "orders%2f1", "orders%00", "orders;a", "orders%252e", "./orders"] {
        assert_eq!(refused(&gateway, "GET", &at(rest), &[&bearer]), (400, "bad_request".to_owned()), "{rest}");
    }
    assert_eq!(refused(&gateway, "GET", &at("orders"), &[&bearer, "expect: something"]).0, 417);
    assert_eq!(refused(&gateway, "GET", &at("orders"), &[&bearer, "content_length: 5"]).0, 400);
    assert!(upstream.received().is_empty());
}

#[test]
fn what_the_protocol_forbids_ends_its_stream_or_its_connection_and_is_forwarded_to_nobody() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), format!("Bearer {}", key.text));
    let good: Fields = vec![
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "erp.example"),
        (":path", &path),
        ("authorization", &bearer),
    ];
    let with = |extra: Fields<'static>| -> Fields { good.iter().copied().chain(extra).collect() };
    let but = |name: &str, value: Option<&'static str>| -> Fields {
        let fields = good.iter().filter_map(|(known, old)| match (*known == name, value) {
            (false, _) => Some((*known, *old)),
            (true, value) => value.map(|value| (*known, value)),
        });
        fields.collect()
    };
    let mut cases: Vec<(&str, Fields)> = vec![
        ("connection", with(vec![("connection", "close")])),
        ("connection that names the credential", with(vec![("connection", "authorization")])),
        ("te", with(vec![("te", "gzip")])),
        ("transfer-encoding", with(vec![("transfer-encoding", "chunked")])),
        ("upgrade", with(vec![("upgrade", "h2c")])),
        ("keep-alive", with(vec![("keep-alive", "1")])),
        ("proxy-connection", with(vec![("proxy-connection", "close")])),
        ("upper case", with(vec![("X-Upper", "1")])),
        ("a line end in a value", with(vec![("x-a", "1\r\nx-key-id: 2")])),
        ("a NUL in a value", with(vec![("x-a", "1\0")])),
        ("a space in a name", with(vec![("x a", "1")])),
        ("a colon in a name", with(vec![("x:a", "1")])),
        ("an empty name", with(vec![("", "1")])),
        ("a pseudo-field after a field", with(vec![(":path", "/v1/status")])),
        ("an unknown pseudo-field", [vec![(":unknown", "1")], good.clone()].concat()),
        ("a status", [vec![(":status", "200")], good.clone()].concat()),
        ("two methods", [vec![(":method", "POST")], good.clone()].concat()),
        ("a protocol", [vec![(":protocol", "websocket")], but(":method", Some("CONNECT"))].concat()),
        ("two lengths", with(vec![("content-length", "0"), ("content-length", "1")])),
        ("a length that does not come", with(vec![("content-length", "5")])),
        ("a length that is none", with(vec![("content-length", "+0")])),
        ("a path without a slash", but(":path", Some("admin"))),
        ("an empty path", but(":path", Some(""))),
        ("a method with a space", but(":method", Some("GET /admin HTTP/1.1\r\n"))),
        ("a scheme that is none", but(":scheme", Some("ht tp"))),
        ("an authority with a path", but(":authority", Some("erp.example/a"))),
    ];
    cases.extend([":method", ":scheme", ":path"].map(|name| (name, but(name, None))));
    for (what, fields) in cases {
        let mut wire = Wire::connect(gateway.address, &[]);
        wire.send(&frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, &block_of(&fields)));
        let is_end = |frame: &http2::Frame| matches!(frame.kind, kind::HEADERS | kind::RST_STREAM | kind::GOAWAY);
        let end = std::iter::from_fn(|| wire.next()).find(is_end);
        let end = end.unwrap_or_else(|| panic!("{what}: closed without a word"));
        assert_ne!(end.payload.first(), Some(&0x88), "{what}: 200");
    }
    assert!(upstream.received().is_empty(), "{:#?}", upstream.received());
    is_served(&gateway, &key);
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_is_no_request() {
    let upstream = echo();
    let (gateway, key) = start(&upstream, "");
    let (path, bearer) = (gateway.path("orders"), format!("Bearer {}", key.text));
    for body in [b"abcd".as_slice(), b"abcdefg"] {
        let mut wire = Wire::connect(gateway.address, &[]);
        let fields = [("authorization", bearer.as_str()), ("content-length", "5")];
        wire.send(&http2::head("POST", 1, &path, &fields, END_HEADERS));
        std::thread::sleep(std::time::Duration::from_millis(50));
        wire.send(&frame(kind::DATA, END_STREAM, 1, body));
        assert_eq!(wire.wait_for(kind::RST_STREAM).unwrap().error(), u32::from(h2::Reason::PROTOCOL_ERROR));
    }
    assert!(upstream.received().is_empty());
    let answer =
        Http2::connect(gateway.address).request("POST", &path, &[&key.bearer(), "content-length: 5"], b"abcde");
    assert_eq!(answer.text(), "abcde");
    assert_eq!(upstream.only().headers("content-length"), ["5"]);
}

#[test]
fn cookies_in_crumbs_are_one_and_names_of_the_gateway_are_not_the_clients() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "");
    let stolen = format!("cookie: k={}", key.text);
    let lines = [&key.bearer(), "cookie: a=1", &stolen, "cookie: b=2", "x-key-id: me", "x_key_id: me", "te: trailers"];
    let answer = Http2::connect(gateway.address).request("GET", &gateway.path("orders"), &lines, b"");
    assert_eq!(answer.status(), 200);
    let received = upstream.only();
    assert_eq!(received.headers("cookie"), ["a=1; b=2"]);
    assert_eq!((received.headers("x-key-id"), received.headers("x_key_id").len()), (vec![key.id.clone()], 0));
    assert_eq!(received.headers("te"), ["trailers"]);
}

#[test]
fn two_credentials_are_refused() {
    let upstream = Upstream::named("live");
    let gateway = Gateway::builder().live(&upstream).listen(BOTH).start();
    let key = gateway.key(&["orders:read"]);
    let uri = format!("http://erp.example{}", gateway.path("orders"));
    assert_eq!(refused(&gateway, "GET", &uri, &[&key.bearer(), &key.bearer()]).0, 400);
    assert!(upstream.received().is_empty());
}

#[test]
fn heads_beyond_the_limits_get_an_answer_that_can_be_read() {
    let upstream = Upstream::named("live");
    let (gateway, key) = start(&upstream, "[limits]\ntarget_max = \"256 B\"\nfields_max = 16\nhead_max = \"4 KiB\"");
    let bearer = key.bearer();
    let uri = format!("http://erp.example{}", gateway.path("orders"));
    let refused = |uri: &str, extra: Vec<String>| {
        let lines: Vec<&str> = std::iter::once(bearer.as_str()).chain(extra.iter().map(String::as_str)).collect();
        refused(&gateway, "GET", uri, &lines)
    };
    assert_eq!(refused(&format!("{uri}?{}", "q".repeat(300)), vec![]), (414, "uri_too_long".to_owned()));
    let many = (0..20).map(|index| format!("x-{index}: 1")).collect();
    assert_eq!(refused(&uri, many), (431, "headers_too_large".to_owned()));
    assert_eq!(refused(&uri, vec![format!("x-long: {}", "a".repeat(5000))]), (431, "headers_too_large".to_owned()));
    // Beyond what is read at all, the library answers by itself.
    assert_eq!(refused(&uri, vec![format!("x-long: {}", "a".repeat(12_000))]), (431, String::new()));
    assert!(upstream.received().is_empty());
}
