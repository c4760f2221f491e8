//! Vectors of other HTTP implementations, where they lie beside the repository: each is sent through a real gateway. They
//! say what no hand-written table would think of; `hygiene.rs` and `upstream_lies.rs` restate the classes for everybody.

use crate::harness::{Client, Gateway, Key, Received, Reply, Upstream, client, eventually};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The vectors' folder: `KEYGATE_VECTORS`, or `../shared/vectors` beside the repository.
fn vectors(folder: &str) -> Option<Vec<(String, String)>> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/vectors");
    let dir = std::env::var_os("KEYGATE_VECTORS").map_or_else(beside, PathBuf::from).join(folder);
    let Ok(entries) = std::fs::read_dir(&dir) else {
        println!("{} is absent: only the restated cases of hygiene.rs ran", dir.display());
        return None;
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let stem = |file: &Path| file.file_stem().unwrap().to_string_lossy().into_owned();
    Some(files.iter().map(|file| (stem(file), std::fs::read_to_string(file).unwrap())).collect())
}

/// A request of the desync guardian's, with what it thinks of it.
#[derive(Debug, Default)]
struct Desync {
    name: String,
    method: String,
    target: String,
    version: String,
    headers: Vec<(String, String)>,
    tier: String,
}

/// Reads the subset of YAML that the guardian's vectors use.
fn parse_desync(text: &str) -> Vec<Desync> {
    let mut cases: Vec<Desync> = Vec::new();
    let mut expected = false;
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((field, value)) = line.split_once(':') else { continue };
        let value = scalar(value.trim());
        if field == "- name" {
            cases.push(Desync { name: value, ..Desync::default() });
            expected = false;
            continue;
        }
        let Some(case) = cases.last_mut() else { continue };
        match field.trim() {
            "uri" => case.target = value,
            "method" => case.method = value,
            "version" => case.version = value,
            "expected" => expected = true,
            "- name" => case.headers.push((value, String::new())),
            "value" => case.headers.last_mut().unwrap().1 = value,
            "tier" if expected => case.tier = value,
            _ => {}
        }
    }
    cases
}

/// A scalar: plain, in single quotes, or in double quotes with escapes.
fn scalar(text: &str) -> String {
    let inner = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    match (inner('\''), inner('"')) {
        (Some(single), _) => single.replace("''", "'"),
        (None, Some(double)) => unescape(double),
        (None, None) => text.to_owned(),
    }
}

fn unescape(text: &str) -> String {
    let (mut out, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            (_, Some('r')) => out.push('\r'),
            (_, Some('n')) => out.push('\n'),
            (_, Some('t')) => out.push('\t'),
            (_, Some('f')) => out.push('\x0c'),
            (_, Some('0')) => out.push('\0'),
            (_, Some('x')) => {
                let code: String = chars.by_ref().take(2).collect();
                out.push(char::from(u8::from_str_radix(&code, 16).unwrap()));
            }
            (_, Some(other)) => out.push(other),
            (c, None) => out.push(c),
        }
    }
    out
}

/// A message of llhttp's, and whether llhttp finds an error in it.
struct Message {
    name: String,
    bytes: Vec<u8>,
    is_wrong: bool,
}

/// Reads llhttp's Markdown: a heading, what kind it is, the message, the parser's log.
fn parse_llhttp(file: &str, text: &str) -> Vec<Message> {
    let (mut messages, mut name, mut kind, mut block): (Vec<Message>, _, _, Option<(&str, Vec<&str>)>) =
        (Vec::new(), "", "", None);
    for line in text.lines() {
        match &mut block {
            Some((fence, lines)) if line == "```" => {
                if *fence == "http" {
                    let name = format!("{file}: {name}{kind}");
                    messages.push(Message { name, bytes: message(lines), is_wrong: false });
                } else if let Some(message) = messages.last_mut() {
                    message.is_wrong = lines.iter().any(|line| line.contains("error code=") && !line.contains("=21 "));
                }
                block = None;
            }
            Some((_, lines)) => lines.push(line),
            None if line.starts_with("```") => block = Some((&line[3..], Vec::new())),
            None if line.starts_with('#') => name = line.trim_start_matches(['#', ' ']),
            None if line.starts_with("<!-- meta=") => kind = if line.contains("-lenient-") { " (lenient)" } else { "" },
            None => {}
        }
    }
    messages
}

/// A line that ends in a backslash goes on in the next; ends of lines are CR LF; the rest of the escapes is JavaScript's.
fn message(lines: &[&str]) -> Vec<u8> {
    let text = lines.join("\r\n").replace("\\\r\n", "");
    unescape(&text).into_bytes()
}

/// A gateway whose every other path is public, so that hygiene alone decides.
fn open(upstream: &Upstream) -> Gateway {
    const ANY_PATH: &str = "[[routes]]\npath = \"/**\"\nupstream = \"erp\"\npublic = true\n";
    Gateway::builder().live(upstream).toml(ANY_PATH).start()
}

/// No length beside a coding, and at most one of each.
fn assert_unambiguous(name: &str, received: &[Received]) {
    for one in received {
        let (lengths, codings) = (one.headers("content-length").len(), one.headers("transfer-encoding").len());
        assert!(lengths + codings <= 1, "{name}: {}", one.head);
    }
}

fn assert_answers(name: &str, gateway: &Gateway) {
    let answer = gateway.client().request("GET", "/v1/status", &[]);
    assert_eq!(answer.status, 200, "after {name}");
}

/// Sends bytes and says that there will be no more.
fn send_all(client: &mut Client, bytes: &[u8]) {
    client.send(bytes);
    _ = client.stream().shutdown(std::net::Shutdown::Write);
}

/// Cases that are not refused though the guardian would, each by name with the reason. What reached the upstream is
/// judged all the same: one request at most, with one length.
const NOT_REFUSED: &[(&str, &str)] = &[
    ("Duplicate Content-Length", ONE_LENGTH),
    ("Both Transfer-Encoding:chunked and Content-Length", CHUNKS_ALONE),
    ("Get with a body and Content-Length", BODY_OF_GET),
    ("Get with a body and Transfer-Encoding", BODY_OF_GET),
    ("Head with a body and Content-Length", BODY_OF_GET),
    ("Head with a body and Transfer-Encoding", BODY_OF_GET),
    ("Transfer-Encoding with multiple hyphens", OTHER_NAME),
    ("Transfer-Encoding with multiple delimiters", OTHER_NAME),
    ("Has a CL in GET", BODY_OF_GET),
    ("Has a TE in GET", BODY_OF_GET),
    ("Two Identical Fields - CL", ONE_LENGTH),
    ("Chunks Priority on Content-Length", CHUNKS_ALONE),
    ("Chunks Priority on Content-Length.1", CHUNKS_ALONE),
    ("Send small (1614 bytes) request, transfer encoded request", CHUNKS_ALONE),
];

const OTHER_NAME: &str =
    "a name of its own to HTTP: it is passed on as an ordinary field, and the body is framed without it";
const BODY_OF_GET: &str =
    "a body of GET or HEAD is framed like any other (RFC 9110, section 9.3.1), so it has one length";
const ONE_LENGTH: &str = "equal lengths become one (RFC 9110, section 8.6)";
const CHUNKS_ALONE: &str =
    "the library drops the length, frames by chunks alone, and closes afterwards (RFC 9112, section 6.3)";

#[test]
fn requests_that_desynchronise_proxies_are_refused() {
    let Some(files) = vectors("desync-guardian") else { return };
    let upstream = Upstream::named("live");
    let gateway = open(&upstream);
    let cases: Vec<Desync> = files.iter().flat_map(|(_, text)| parse_desync(text)).collect();
    assert!(cases.len() > 150, "only {} cases were understood", cases.len());
    let passed: Vec<&str> = cases.iter().filter_map(|case| passes(case, &upstream, &gateway)).collect();
    assert_answers("all of them", &gateway);
    assert_named(&passed, NOT_REFUSED);
}

/// The name of a case that should have been refused, and was not.
fn passes<'a>(case: &'a Desync, upstream: &Upstream, gateway: &Gateway) -> Option<&'a str> {
    let must_refuse = matches!(case.tier.as_str(), "Severe" | "Ambiguous");
    let before = upstream.received().len();
    let mut client = gateway.client();
    // The vectors have no bodies: one that is not refused waits for its own.
    client.stream().set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.send(case.bytes());
    if !must_refuse {
        // Nor does it wait for a body that will not come.
        _ = client.stream().shutdown(std::net::Shutdown::Write);
    }
    // Read in every case: a request that is still on its way would be taken for the next one's.
    let answer = client.try_read(&case.method);
    let is_refused = must_refuse && answer.is_some_and(|answer| answer.status == 400);
    // A head that is none has a body in its answer, whatever its first word says.
    let is_closed = is_refused && client.end().is_ok_and(|rest| rest.is_empty() || case.method == "HEAD");
    assert!(!is_refused || is_closed, "still open after {case:?}");
    drop(client);
    let received = upstream.received().split_off(before);
    assert!(received.len() <= usize::from(!is_refused), "{case:?}: {received:#?}");
    assert_unambiguous(&case.name, &received);
    (must_refuse && !is_refused).then_some(&case.name)
}

/// Exactly the listed cases came out otherwise: a new one is a defect, and one that is gone leaves the list.
fn assert_named(found: &[&str], listed: &[(&str, &str)]) {
    let strange: Vec<_> = found.iter().filter(|name| !listed.iter().any(|(known, _)| known == *name)).collect();
    let gone: Vec<_> = listed.iter().filter(|(known, _)| !found.contains(known)).collect();
    assert!(strange.is_empty() && gone.is_empty(), "not listed: {strange:#?}\nlisted, but as expected: {gone:#?}");
}

// === impl Desync ===

impl Desync {
    /// The head, with a `Host` if it has none: the vectors leave it out.
    fn bytes(&self) -> Vec<u8> {
        let host = |(name, _): &(String, String)| name.eq_ignore_ascii_case("host");
        let lines: String = self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let host = if self.headers.iter().any(host) { "" } else { "Host: erp.example\r\n" };
        let text = format!("{} {} {}\r\n{host}{lines}\r\n", self.method, self.target, self.version);
        // A byte each, as the vectors mean their escapes.
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
    }
}

#[test]
fn whatever_a_client_sends_nothing_ambiguous_reaches_the_upstream() {
    let Some(files) = vectors("llhttp/request") else { return };
    let upstream = Upstream::named("live");
    let gateway = open(&upstream);
    for message in files.iter().flat_map(|(file, text)| parse_llhttp(file, text)) {
        let before = upstream.received().len();
        let mut client = gateway.client();
        client.stream().set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        send_all(&mut client, &with_host(&message.bytes));
        client.rest();
        assert_unambiguous(&message.name, &upstream.received().split_off(before));
        assert_answers(&message.name, &gateway);
    }
}

/// Messages that llhttp refuses and the client gets as good ones, each by name with the reason.
const BELIEVED: &[(&str, &str)] = &[
    ("connection: HTTP/1.1 with keep-alive disabled and 204 status", AFTERWARDS),
    ("connection: HTTP/1.1 with keep-alive disabled, content-length", AFTERWARDS),
    ("transfer-encoding: Trailing space on chunked body", CHUNK_LINE),
    ("transfer-encoding: No extension after semicolon", CHUNK_LINE),
];

const AFTERWARDS: &str = "the response is whole; what follows it on the connection is thrown away";
const CHUNK_LINE: &str = "the size is plain and what follows it is dropped; the gateway writes the chunks anew";

/// Whether the upstream is to answer a request with a vector.
fn is_asked(received: &Received) -> bool {
    received.target().ends_with("/vector")
}

#[test]
fn a_malformed_response_never_arrives_as_a_good_one() {
    let Some(files) = vectors("llhttp/response") else { return };
    let current: Arc<Mutex<Vec<u8>>> = Arc::default();
    let shown = Arc::clone(&current);
    let upstream = Upstream::start(move |received| match is_asked(received) {
        true => Reply::BytesThenClose(shown.lock().unwrap().clone()),
        false => Reply::ok("good"),
    });
    let gateway = Gateway::before(&upstream);
    let key: Key = gateway.key(&["orders:read"]);
    let mut believed = Vec::new();
    let messages: Vec<Message> = files.iter().flat_map(|(file, text)| parse_llhttp(file, text)).collect();
    assert!(messages.len() > 60, "only {} messages were understood", messages.len());
    for message in &messages {
        *current.lock().unwrap() = message.bytes.clone();
        let mut client = gateway.client();
        client.send(client::head("GET", &gateway.path("orders/vector"), &[&key.bearer()]));
        let answer = client.try_read("GET");
        if message.is_wrong && answer.is_some_and(|answer| answer.status != 502 && answer.complete) {
            believed.push(message.name.as_str());
        }
        // Not the very next: a request can meet the connection that the upstream is just closing, and is not sent twice.
        eventually(&format!("a good answer after {}", message.name), || {
            let next = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
            assert!(matches!((next.status, next.text().as_str()), (200, "good") | (502, _)), "after {}", message.name);
            (next.status == 200).then_some(())
        });
    }
    assert_named(&believed, BELIEVED);
}

/// The message with a `Host` line after its first line: most vectors leave it out, and would be refused for that alone.
fn with_host(bytes: &[u8]) -> Vec<u8> {
    let has_host = bytes.to_ascii_lowercase().windows(6).any(|part| part == b"\nhost:");
    let end = bytes.windows(2).position(|part| part == b"\r\n").map(|at| at + 2);
    match end {
        Some(end) if !has_host => [&bytes[..end], b"Host: erp.example\r\n", &bytes[end..]].concat(),
        Some(_) | None => bytes.to_vec(),
    }
}
