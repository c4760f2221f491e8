//! Frames that are no response: none reaches a client as a good one, and the next request works.

use crate::harness::http2::{END_STREAM, block_of, frame, kind};
use crate::harness::liar::{GOOD, Liar, Lie, Then, data, go_away, good, head, reset};
use crate::harness::{Gateway, Http2, Key, Response, client};
use crate::proofs::process::watch_peak;
use std::time::Instant;

const OK: &[(&str, &str)] = &[(":status", "200")];
const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;

/// What comes is broken, and what comes of it.
const LIES: &[(&str, Lie, Then)] = &[
    ("no status", |id| head(id, &[("content-type", "x")], END_STREAM), Then::GoOn),
    ("a status of letters", |id| head(id, &[(":status", "abc")], END_STREAM), Then::GoOn),
    ("a status too large", |id| head(id, &[(":status", "2000")], END_STREAM), Then::GoOn),
    ("two statuses", |id| head(id, &[(":status", "200"), (":status", "200")], END_STREAM), Then::GoOn),
    ("a status behind fields", |id| head(id, &[("x", "y"), (":status", "200")], END_STREAM), Then::GoOn),
    ("a name in capitals", |id| head(id, &[(":status", "200"), ("X-Upper", "1")], END_STREAM), Then::GoOn),
    ("a name with a blank", |id| head(id, &[(":status", "200"), ("a b", "1")], END_STREAM), Then::GoOn),
    ("a value with a line's end", |id| head(id, &[(":status", "200"), ("x", "a\r\nb: c")], END_STREAM), Then::GoOn),
    (
        "a transfer coding",
        |id| head(id, &[(":status", "200"), ("transfer-encoding", "chunked")], END_STREAM),
        Then::GoOn,
    ),
    ("a connection's field", |id| head(id, &[(":status", "200"), ("connection", "close")], END_STREAM), Then::GoOn),
    ("two heads", |id| [head(id, OK, 0), head(id, OK, 0), data(id, b"abc", true)].concat(), Then::GoOn),
    ("a body without a head", |id| data(id, b"abc", true), Then::GoOn),
    ("an answer on another stream", |id| [head(id + 2, OK, 0), data(id + 2, b"abc", true)].concat(), Then::GoOn),
    ("longer than it says", |id| sized(id, &["3"], b"abcd"), Then::GoOn),
    ("shorter than it says", |id| sized(id, &["10"], b"abc"), Then::GoOn),
    ("two lengths", |id| sized(id, &["3", "4"], b"abc"), Then::GoOn),
    ("a length of letters", |id| sized(id, &["abc"], b"abc"), Then::GoOn),
    ("a length of nothing", |id| sized(id, &[""], b""), Then::GoOn),
    ("a length with a sign", |id| sized(id, &["+3"], b"abc"), Then::GoOn),
    ("a list of lengths", |id| sized(id, &["3, 3"], b"abc"), Then::GoOn),
    ("a length too large", |id| sized(id, &["99999999999999999999"], b"abc"), Then::GoOn),
    ("a body for 204", |id| [head(id, &[(":status", "204")], 0), data(id, b"abc", true)].concat(), Then::GoOn),
    ("a body for 304", |id| [head(id, &[(":status", "304")], 0), data(id, b"abc", true)].concat(), Then::GoOn),
    ("another protocol", |id| [head(id, &[(":status", "101")], 0), data(id, b"abc", true)].concat(), Then::GoOn),
    ("heads before the head without end", interims, Then::GoOn),
    ("a head too large", large_head, Then::GoOn),
    (
        "a head broken off",
        |id| [frame(kind::HEADERS, 0, id, &block_of(OK)), data(id, b"abc", true)].concat(),
        Then::GoOn,
    ),
    ("fields that cannot be read", |id| frame(kind::HEADERS, 5, id, &[0xff; 20]), Then::GoOn),
    ("a reset", |id| [head(id, OK, 0), data(id, b"abc", false), reset(id, INTERNAL_ERROR)].concat(), Then::GoOn),
    (
        "a reset without an error",
        |id| [head(id, OK, 0), data(id, b"abc", false), reset(id, NO_ERROR)].concat(),
        Then::GoOn,
    ),
    (
        "a reset as if we had asked",
        |id| [head(id, OK, 0), data(id, b"abc", false), reset(id, CANCEL)].concat(),
        Then::GoOn,
    ),
    ("a reset before the head", |id| reset(id, PROTOCOL_ERROR), Then::GoOn),
    (
        "a farewell in the middle",
        |id| [head(id, OK, 0), data(id, b"abc", false), go_away(id, NO_ERROR)].concat(),
        Then::Close,
    ),
    ("the end in the middle", |id| [head(id, OK, 0), data(id, b"abc", false)].concat(), Then::Close),
    ("the end at once", |_| Vec::new(), Then::Close),
    ("no frames", |_| b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), Then::GoOn),
    ("a frame too large", |id| [head(id, OK, 0), data(id, &[b'a'; 17_000], true)].concat(), Then::GoOn),
    ("more than there is room for", overflow, Then::GoOn),
    ("more room than can be", |id| [window(), window(), head(id, OK, 0), data(id, b"abc", true)].concat(), Then::GoOn),
    ("a request of its own", push, Then::GoOn),
    ("settings that cannot be", |_| frame(kind::SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), Then::GoOn),
    ("settings without end", |_| frame(kind::SETTINGS, 0, 0, &[]).repeat(20_000), Then::GoOn),
    ("pings without end", |_| frame(kind::PING, 0, 0, &[7; 8]).repeat(20_000), Then::GoOn),
    ("priorities without end", |id| frame(kind::PRIORITY, 0, id, &[0, 0, 0, 0, 9]).repeat(20_000), Then::GoOn),
    ("frames of no kind", |_| frame(0xee, 0, 0, &[0; 100]).repeat(20_000), Then::GoOn),
    ("parts of nothing", |id| [head(id, OK, 0), data(id, b"", false).repeat(200_000)].concat(), Then::GoOn),
    ("an answer without end", |id| [head(id, OK, 0), data(id, b"abc", false)].concat(), Then::GoOn),
    ("no answer", |_| Vec::new(), Then::GoOn),
];

fn sized(id: u32, lengths: &[&str], body: &[u8]) -> Vec<u8> {
    let mut fields = OK.to_vec();
    fields.extend(lengths.iter().map(|length| ("content-length", *length)));
    [head(id, &fields, 0), data(id, body, true)].concat()
}

fn interims(id: u32) -> Vec<u8> {
    [head(id, &[(":status", "103")], 0).repeat(50), head(id, OK, 0), data(id, b"abc", true)].concat()
}

fn large_head(id: u32) -> Vec<u8> {
    let (text, mut block) = ("a".repeat(10_000), block_of(OK));
    (0..20).for_each(|_| block.extend(block_of(&[("x-large", &text)])));
    let mut parts = block.chunks(16_000);
    let mut frames = frame(kind::HEADERS, 0, id, parts.next().unwrap());
    parts.for_each(|part| frames.extend(frame(kind::CONTINUATION, 0, id, part)));
    frames.extend(frame(kind::CONTINUATION, 4, id, &[]));
    frames.extend(data(id, b"abc", true));
    frames
}

/// A stream's window has room for the first four of these alone, and the client does take them.
fn overflow(id: u32) -> Vec<u8> {
    [head(id, OK, 0), data(id, &[b'a'; 16_384], false).repeat(600), data(id, b"", true)].concat()
}

fn window() -> Vec<u8> {
    frame(kind::WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes())
}

fn push(id: u32) -> Vec<u8> {
    let pushed = [("x", "y"), (":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "erp")];
    let promise = [2_u32.to_be_bytes().to_vec(), block_of(&pushed[1..])].concat();
    [frame(5, 4, id, &promise), head(id, OK, 0), data(id, b"abc", true)].concat()
}

struct Scene {
    liar: Liar,
    gateway: Gateway,
    key: Key,
}

// === impl Scene ===

impl Scene {
    fn new() -> Self {
        let liar = Liar::start();
        let limits = "[limits]\nbody_idle = \"1s\"\nupstream_head = \"1s\"\nupstream_idle = \"60s\"";
        let builder = Gateway::builder().workers(1).live_at(liar.address).upstream("protocol = \"h2\"").toml(limits);
        let gateway = builder.listen("protocols = [\"h1\", \"h2\"]").start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        Self { liar, gateway, key }
    }

    /// One request; no answer where the connection ends before there is one.
    fn ask(&self, method: &str, body: &str) -> Option<Response> {
        let (bearer, length) = (self.key.bearer(), format!("Content-Length: {}", body.len()));
        let mut lines = vec![bearer.as_str()];
        if !body.is_empty() {
            lines.push(&length);
        }
        let mut client = self.gateway.client();
        client.send(client::head(method, &self.gateway.path("orders"), &lines) + body);
        client.try_read(method)
    }

    fn answers_well(&self, after: &str) {
        let answer = self.ask("GET", "").unwrap_or_else(|| panic!("no answer after: {after}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, GOOD), "after: {after}");
    }

    /// What came of a request that met these lies, and how often it was sent.
    fn meet(&self, method: &str, body: &str, lies: &[(Lie, Then)]) -> (Option<Response>, Vec<(usize, u32)>) {
        self.liar.take_heads();
        lies.iter().for_each(|(lie, then)| self.liar.tell(*lie, *then));
        let answer = self.ask(method, body);
        (answer, self.liar.take_heads())
    }
}

#[test]
fn a_lie_never_arrives_as_a_good_answer_and_the_next_request_works() {
    let scene = Scene::new();
    scene.answers_well("nothing");
    let before = crate::proofs::process::pss(scene.gateway.pid());
    let mut wrong = Vec::new();
    let (peak, ()) = watch_peak(scene.gateway.pid(), || {
        for (told, lie, then) in LIES {
            let (answer, heads) = scene.meet("GET", "", &[(*lie, *then)]);
            let broken = match &answer {
                Some(answer) if answer.status == 200 => !answer.complete,
                Some(answer) => matches!(answer.status, 502 | 504) && answer.complete,
                None => false,
            };
            let seen = answer.map(|answer| (answer.status, answer.complete));
            println!("{told}: {seen:?}");
            if !broken || heads.len() != 1 {
                wrong.push(format!("{told}: {seen:?}, sent {} times", heads.len()));
            }
            scene.answers_well(told);
        }
    });
    assert_eq!(wrong, Vec::<String>::new());
    let growth = peak.saturating_sub(before);
    assert!(growth < 24 * 1024 * 1024, "the gateway grew by {growth} bytes");
}

/// What the library passes over, though it should not (RFC 9113, section 8.3): nothing of it arrives.
#[test]
fn fields_of_frames_where_they_do_not_belong_stay_behind() {
    let scene = Scene::new();
    let lies: [Lie; 2] = [
        |id| [head(id, &[(":status", "200"), (":path", "/evil")], 0), data(id, GOOD.as_bytes(), true)].concat(),
        |id| [head(id, OK, 0), data(id, GOOD.as_bytes(), false), head(id, &[(":status", "404")], END_STREAM)].concat(),
    ];
    for lie in lies {
        let answer = scene.meet("GET", "", &[(lie, Then::GoOn)]).0.unwrap();
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, GOOD, true));
        assert!(!answer.transcript().contains("evil") && !answer.transcript().contains("404"), "{answer:?}");
    }
}

#[test]
fn a_request_that_the_upstream_has_not_looked_at_is_sent_once_more() {
    const REFUSED: (Lie, Then) = (|id| reset(id, REFUSED_STREAM), Then::GoOn);
    // Nothing after stream 0 was looked at.
    const LEAVING: (Lie, Then) = (|_| go_away(0, NO_ERROR), Then::GoOn);
    let scene = Scene::new();
    for lie in [REFUSED, LEAVING] {
        let (answer, heads) = scene.meet("GET", "", &[lie]);
        assert_eq!((answer.unwrap().status, heads.len()), (200, 2));
        let (answer, heads) = scene.meet("GET", "", &[lie, lie]);
        assert_eq!((answer.unwrap().status, heads.len()), (502, 2), "once, not without end");
        scene.answers_well("two refusals");
        // Of its body something was sent already.
        let (answer, heads) = scene.meet("POST", "abc", &[lie]);
        assert_eq!((answer.unwrap().status, heads.len()), (502, 1));
        scene.answers_well("a body");
    }
}

#[test]
fn a_request_that_may_have_been_looked_at_is_not_sent_again() {
    let scene = Scene::new();
    let lies: [(Lie, Then); 4] = [
        (|id| reset(id, INTERNAL_ERROR), Then::GoOn),
        (|id| reset(id, NO_ERROR), Then::GoOn),
        (|_| Vec::new(), Then::Close),
        (|id| go_away(id, INTERNAL_ERROR), Then::Close),
    ];
    for lie in lies {
        let (answer, heads) = scene.meet("GET", "", &[lie]);
        assert_eq!((answer.unwrap().status, heads.len()), (502, 1));
        scene.answers_well("an end");
    }
}

#[test]
fn a_connection_on_which_the_protocol_was_broken_is_not_used_again() {
    let scene = Scene::new();
    for (lie, is_kept) in [
        ((|id| sized(id, &["3"], b"abcd")) as Lie, false),
        (|id| head(id, &[(":status", "101")], END_STREAM), false),
        (|id| sized(id, &["", ""], b""), false),
        // What an upstream says of one request is nothing to the others.
        (|id| reset(id, INTERNAL_ERROR), true),
    ] {
        scene.answers_well("nothing");
        let (_, heads) = scene.meet("GET", "", &[(lie, Then::GoOn)]);
        let (_, next) = scene.meet("GET", "", &[]);
        assert_eq!(heads[0].0 == next[0].0, is_kept, "{heads:?} {next:?}");
    }
}

/// The liar answers no PING.
#[test]
fn an_upstream_that_does_not_live_any_more_is_given_up_before_the_deadline() {
    let liar = Liar::start();
    let limits = "[limits]\nupstream_head = \"60s\"";
    let gateway =
        Gateway::builder().workers(1).live_at(liar.address).upstream("protocol = \"h2\"").toml(limits).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let scene = Scene { liar, gateway, key };
    let asked = Instant::now();
    let (answer, heads) = scene.meet("GET", "", &[(|_| Vec::new(), Then::GoOn)]);
    assert_eq!((answer.unwrap().status, heads.len()), (502, 1));
    assert!((8..20).contains(&asked.elapsed().as_secs()), "{:?}", asked.elapsed());
    scene.answers_well("its end");
}

#[test]
fn hints_pass_to_a_client_of_http2() {
    const HINT: &[(&str, &str)] = &[(":status", "103"), ("link", "</a.css>; rel=preload")];
    let scene = Scene::new();
    scene.liar.tell(|id| [head(id, HINT, 0), good(id)].concat(), Then::GoOn);
    let mut client = Http2::connect(scene.gateway.address);
    let mut exchange = client.begin("GET", &scene.gateway.path("orders"), &[&scene.key.bearer()], true);
    let hint = exchange.interim().unwrap();
    assert_eq!(hint.status(), 103);
    assert_eq!(hint.headers()["link"], "</a.css>; rel=preload");
    assert_eq!(exchange.answer().unwrap().text(), GOOD);
}

#[test]
fn an_early_answer_counts_though_the_rest_of_the_request_is_not_wanted() {
    let scene = Scene::new();
    let body = "a".repeat(100_000);
    let early: Lie = |id| [head(id, &[(":status", "413")], 0), data(id, b"enough", true), reset(id, NO_ERROR)].concat();
    let (answer, _) = scene.meet("POST", &body, &[(early, Then::GoOn)]);
    let answer = answer.unwrap();
    assert_eq!((answer.status, answer.text().as_str(), answer.complete), (413, "enough", true));
    scene.answers_well("an early answer");
}
