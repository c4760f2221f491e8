//! Every protocol towards clients with every protocol towards upstreams: what one side says, the other sees, byte for byte and
//! field for field; what the gateway adds is written out here.

use crate::harness::far::{End, Ended, Fields, Seen, body_of, sorted};
use crate::harness::gateway::{ENTITY, Key};
use crate::harness::tls::Authority;
use crate::harness::{Ask, Far, Gateway, Got, Near, Script, Speaks, TlsClient, Upload, eventually};
use std::panic::{AssertUnwindSafe, catch_unwind};

const ROUTE: &str = "[[routes]]\npath = \"/v1/entities/{entity_id}/uploads/**\"\nupstream = \"erp\"\nread = \"orders:read\"\n\
                     write = \"orders:write\"\ntrailers = [\"x-sum\", \"x-size\"]";
const BOTH: &str = "protocols = [\"h1\", \"h2\"]";
const DATE: &str = "Mon, 30 Nov 2026 12:00:00 GMT";

/// Of large bodies one that says its length has full size, to save time.
const UNSIZED_MAX: u64 = 2 * 1024 * 1024;

/// One exchange, in each cell of the matrix.
struct Case {
    name: &'static str,
    method: &'static str,
    upload: Upload,
    trailers: &'static [(&'static str, &'static str)],
    leaves_after: Option<u64>,
    script: fn(u64) -> Script,
}

/// Two protocols with a gateway between them.
struct Cell<'a> {
    near: Near,
    far: &'a Far,
    far_speaks: Speaks,
    key: &'a Key,
    large: u64,
}

const PLAIN: Case =
    Case { name: "get", method: "GET", upload: Upload::None, trailers: &[], leaves_after: None, script: |_| small() };

/// All cases, with large bodies of so many bytes.
fn cases(large: u64) -> Vec<Case> {
    use Upload::{Part, Sized, Unsized};
    let post = |name, upload| Case { name, method: "POST", upload, ..PLAIN };
    let get = |name, script| Case { name, script, ..PLAIN };
    let trailers: &[_] = &[("x-sum", "7f"), ("x-sum", "80"), ("x-size", "7")];
    vec![
        PLAIN,
        get("empty", |_| answer(0)),
        post("post", Sized(1000)),
        post("post-nothing", Sized(0)),
        post("post-unsized", Unsized(100_000)),
        Case { trailers, ..post("post-trailers", Unsized(100)) },
        post("upload", Sized(large)),
        post("upload-unsized", Unsized(large.min(UNSIZED_MAX))),
        get("download", answer),
        get("download-unsized", |large| Script { is_sized: false, ..answer(large.min(UNSIZED_MAX)) }),
        get("trailers", |_| with_trailers(100)),
        get("trailers-large", |_| with_trailers(1_000_000)),
        Case { method: "HEAD", ..get("head", |_| answer(1234)) },
        get("204", |_| Script { status: 204, ..answer(0) }),
        get("304", |_| Script { status: 304, ..answer(1234) }),
        Case { script: |_| Script { status: 413, is_early: true, ..answer(50) }, ..post("early", Part(1000)) },
        Case { leaves_after: Some(50_000), ..get("client-leaves", |_| Script { end: End::Hang, ..unsized_answer() }) },
        Case { leaves_after: Some(0), ..get("client-leaves-soon", |_| Script { end: End::Silence, ..small() }) },
        get("upstream-breaks-off", |_| Script { end: End::BreakOff, ..unsized_answer() }),
        get("upstream-breaks-off-sized", |_| Script { end: End::BreakOff, ..answer(1000) }),
        get("upstream-refuses", |_| Script { end: End::Refuse, ..small() }),
    ]
}

fn small() -> Script {
    answer(100)
}

/// With fields that any server could send.
fn answer(body: u64) -> Script {
    let fields = [("content-type", "text/plain"), ("x-multi", "one"), ("x-multi", "two, three"), ("date", DATE)];
    let cookies = [("set-cookie", "a=1; Path=/"), ("set-cookie", "b=2")];
    let fields = fields.into_iter().chain(cookies).map(|(name, value)| (name.to_owned(), value.to_owned()));
    Script { fields: fields.collect(), ..Script::ok(body) }
}

fn unsized_answer() -> Script {
    Script { is_sized: false, ..answer(100_000) }
}

fn with_trailers(body: u64) -> Script {
    let mut script = Script { is_sized: false, ..answer(body) };
    script.fields.push(("trailer".into(), "x-sum, x-any".into()));
    script.trailers =
        sorted(vec![("x-sum".into(), "7f".into()), ("x-sum".into(), "80".into()), ("x-any".into(), "".into())]);
    script
}

/// Runs every case in every cell, with large bodies of `large` bytes.
pub fn prove(large: u64) {
    let authority = Authority::new();
    let pair = authority.issue("erp", "DNS:erp.internal");
    let front = authority.issue("front", "DNS:erp.example");
    let mut failed = 0;
    for far_speaks in Speaks::ALL {
        let far = Far::start(far_speaks, Some(&pair), move |seen| {
            let name = seen.target.rsplit('/').next().unwrap().split('?').next().unwrap();
            cases(large).iter().find(|case| case.name == name).map_or_else(small, |case| (case.script)(large))
        });
        let mut builder = Gateway::builder().workers(1).listen(BOTH).toml(ROUTE).tls(&front);
        builder = builder.live_url(format!("{}://{}", far_speaks.scheme(), far.address));
        if far_speaks.is_tls() {
            let ca = authority.ca();
            builder =
                builder.upstream(&format!("tls = {{ ca = \"{}\", server_name = \"erp.internal\" }}", ca.display()));
        } else if far_speaks.is_http2() {
            builder = builder.upstream("protocol = \"h2\"");
        }
        let gateway = builder.start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        for speaks in Speaks::ALL {
            let address = if speaks.is_tls() { gateway.tls_address() } else { gateway.address };
            let offered = if speaks.is_http2() { "h2" } else { "http/1.1" };
            let tls = speaks.is_tls().then(|| TlsClient::new(&authority).offering(&[offered]).config);
            let near = Near { speaks, address, tls };
            let cell = Cell { near, far: &far, far_speaks, key: &key, large };
            let cases = cases(large);
            // All of them are run, so that what fails can be seen as a whole.
            let passed = cases.iter().filter(|case| catch_unwind(AssertUnwindSafe(|| cell.run(case))).is_ok());
            let passed: Vec<_> = passed.map(|case| case.name).collect();
            println!(
                "{:>7} -> {:<7} {} of {}: {}",
                speaks.name(),
                far_speaks.name(),
                passed.len(),
                cases.len(),
                passed.join(" ")
            );
            failed += cases.len() - passed.len();
        }
    }
    assert_eq!(failed, 0, "cases that failed");
}

// === impl Cell ===

impl Cell<'_> {
    fn run(&self, case: &Case) {
        self.far.forget();
        let told = format!("{} of {} -> {}", case.name, self.near.speaks.name(), self.far_speaks.name());
        let ask = self.ask(case);
        let script = (case.script)(self.large);
        let got = self.near.ask(&ask, || {
            eventually(&told, || (!self.far.seen().is_empty()).then_some(()));
        });
        let seen = eventually(&told, || self.far.seen().into_iter().find(|seen| seen.end.is_some()));
        let ended = seen.end.clone().unwrap();
        match &got {
            Some(got) => self.check_answer(&told, case, &script, got),
            None => assert!(ended != Ended::Whole, "{told}: the upstream is told that the client has gone"),
        }
        self.check_request(&told, case, &ask, &seen, got.as_ref());
        self.check_end(&told, &script, &ended, got.is_some());
        let next = self.near.ask(&self.ask(&PLAIN), || ()).unwrap();
        assert_eq!((next.status, next.is_whole), (200, true), "{told}: the next one");
    }

    fn ask(&self, case: &Case) -> Ask {
        let fields = [
            ("authorization", format!("Bearer {}", self.key.text)),
            ("accept", "*/*".to_owned()),
            ("cookie", "a=1; b=2".to_owned()),
            ("te", "trailers".to_owned()),
            ("x-multi", "one".to_owned()),
            ("x-multi", "two, three".to_owned()),
        ];
        let target = format!("/v1/entities/{ENTITY}/uploads/{}?q=a%20b&r", case.name);
        Ask {
            method: case.method,
            target,
            fields: fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            upload: case.upload,
            trailers: owned(case.trailers),
            leaves_after: case.leaves_after,
        }
    }

    /// What the client has got of it.
    fn check_answer(&self, told: &str, case: &Case, script: &Script, got: &Got) {
        if script.end == End::Refuse {
            assert_eq!((got.status, got.is_whole), (502, true), "{told}");
            return;
        }
        assert_eq!(got.status, script.status, "{told}");
        assert_eq!(got.is_whole, script.end == End::Whole, "{told}: {got:?}");
        let mut expected = script.fields.clone();
        expected.push(("x-request-id".to_owned(), request_id(got)));
        let is_bodiless = case.method == "HEAD" || matches!(script.status, 204 | 304);
        // The library drops a 304's length towards HTTP/1.1.
        let has_length = script.status != 204 && (script.status != 304 || self.near.speaks.is_http2());
        if script.is_sized && has_length {
            let promised = if script.end == End::Whole { script.body } else { script.body + 1000 };
            expected.push(("content-length".to_owned(), promised.to_string()));
        } else if !script.is_sized && !self.near.speaks.is_http2() && !is_bodiless {
            expected.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
        }
        assert_eq!(got.fields, sorted(expected), "{told}");
        let body = match (is_bodiless, got.is_whole) {
            (true, _) => body_of(0),
            (false, true) => body_of(script.body),
            // What came of it is the beginning of it.
            (false, false) => body_of(got.body.bytes.min(script.body)),
        };
        assert_eq!(got.body, body, "{told}");
        assert_eq!(got.trailers, script.trailers, "{told}");
    }

    /// What the upstream has got.
    fn check_request(&self, told: &str, case: &Case, ask: &Ask, seen: &Seen, got: Option<&Got>) {
        assert_eq!((seen.method.as_str(), &seen.target), (case.method, &ask.target), "{told}");
        assert_eq!(seen.authority, "erp.example", "{told}");
        let scheme = self.far_speaks.is_http2().then(|| self.far_speaks.scheme().to_owned());
        assert_eq!(seen.scheme, scheme, "{told}");
        let field = |name: &str| seen.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let (trace, id) = (field("traceparent").unwrap(), field("x-request-id").unwrap());
        assert_eq!(trace.len(), 55, "{told}: {trace}");
        got.into_iter().filter(|got| got.status != 502).for_each(|got| assert_eq!(request_id(got), id, "{told}"));
        let mut expected = owned(&[
            ("accept", "*/*"),
            ("cookie", "a=1; b=2"),
            ("te", "trailers"),
            ("x-multi", "one"),
            ("x-multi", "two, three"),
            ("via", "1.1 keygate"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "erp.example"),
            ("x-key-mode", "live"),
            ("x-key-scopes", "orders:read orders:write"),
            ("x-entity-id", ENTITY),
            ("arcus-version", "2026-11-01"),
        ]);
        let near_scheme = self.near.speaks.scheme().to_owned();
        let own = [
            ("traceparent", trace),
            ("x-request-id", id),
            ("x-key-id", self.key.id.clone()),
            ("x-forwarded-proto", near_scheme),
        ];
        expected.extend(own.map(|(name, value)| (name.to_owned(), value)));
        if let Some(length) = ask.upload.length() {
            expected.push(("content-length".to_owned(), length.to_string()));
        }
        if !self.far_speaks.is_http2() {
            expected.push(("connection".to_owned(), "te".to_owned()));
            if matches!(ask.upload, Upload::Unsized(_)) {
                expected.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
            }
        }
        assert_eq!(seen.fields, sorted(expected), "{told}");
        if !matches!(ask.upload, Upload::Part(_)) {
            assert_eq!(seen.body, body_of(ask.upload.bytes()), "{told}");
            assert_eq!(seen.trailers, sorted(ask.trailers.clone()), "{told}");
        }
    }

    /// How the exchange has ended for the upstream.
    fn check_end(&self, told: &str, script: &Script, ended: &Ended, is_answered: bool) {
        if !is_answered && self.far_speaks.is_http2() {
            assert_eq!(*ended, Ended::BrokenOff(Some(h2::Reason::CANCEL)), "{told}");
        }
        if script.end == End::Whole && !script.is_early {
            assert_eq!(*ended, Ended::Whole, "{told}");
        }
        if self.far_speaks.is_http2() {
            // What one exchange came to is nothing to its connection.
            let used = self.far.connections();
            assert_eq!(used, 1, "{told}: connections");
        }
    }
}

fn request_id(got: &Got) -> String {
    let found = got.fields.iter().find(|(name, _)| name == "x-request-id");
    found.expect("a request id").1.clone()
}

fn owned(fields: &[(&str, &str)]) -> Fields {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}
