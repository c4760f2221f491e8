//! Sinks: what the journal holds arrives, whatever fails on the way, and no request notices.

mod index;
mod redis;
mod server;
mod stdout;

use crate::harness::gateway::Key;
use crate::harness::tls::Authority;
use crate::harness::{Gateway, Upstream, eventually};
use keygate::audit::segment::{Kind, file_name, write_line};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use server::{Mood, Server, name};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A gateway with a sink, and a key for it.
struct World {
    gateway: Gateway,
    key: Key,
    path: String,
    /// Requests that were served with the key.
    served: Cell<usize>,
}

impl World {
    /// `sink`: the settings of its only sink.
    fn new(sink: &str) -> Self {
        Self::with(&format!("[[audit.sinks]]\n{sink}"))
    }

    fn with(sections: &str) -> Self {
        let gateway = Gateway::builder().live(&Upstream::named("erp")).toml(sections).start();
        let key = gateway.key(&["orders:read"]);
        let path = gateway.path("orders");
        Self { gateway, key, path, served: Cell::new(0) }
    }

    /// Requests that are served, all of them.
    fn serve(&self, count: usize) {
        let mut client = self.gateway.client();
        for _ in 0..count {
            assert_eq!(client.request("GET", &self.path, &[&self.key.bearer()]).status, 200);
        }
        self.served.set(self.served.get() + count);
    }

    fn stop(&mut self) {
        self.gateway.signal("TERM");
        assert_eq!(self.gateway.wait(), Some(0), "{}", self.gateway.log_text());
    }

    /// All lines of the journals. To be asked while nothing is written.
    fn journal(&self) -> Vec<String> {
        journal(&self.gateway.dir.path().join("data/audit"))
    }

    /// Waits until every request is in the journal, and everything that is there has arrived.
    fn wait_for_all(&self, arrived: impl Fn() -> Vec<String>) {
        let is_served = |line: &&String| line.contains(&self.key.id) && line.contains(r#""decision":"allow""#);
        eventually("everything has arrived", || {
            let (journal, arrived) = (self.journal(), arrived().into_iter().collect::<BTreeSet<_>>());
            let is_whole = journal.iter().filter(is_served).count() >= self.served.get();
            (is_whole && journal.iter().all(|line| arrived.contains(line))).then_some(())
        });
    }
}

fn journal(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for slot in keygate::audit::reader::journals(dir).unwrap() {
        keygate::audit::reader::Follow::new(slot).read(|line| lines.push(line.text.to_owned())).unwrap();
    }
    lines
}

/// What came more than once.
fn repeated(lines: &[String]) -> Vec<(String, u64)> {
    let mut seen = BTreeSet::new();
    lines.iter().map(|line| name(line)).filter(|name| !seen.insert(name.clone())).collect()
}

/// A sink that soon gives a server up.
fn http(server: &Server) -> String {
    http_within(server, "500ms")
}

/// A sink that waits as long as a busy machine may need for an answer: what is not answered in time is sent again.
fn patient(server: &Server) -> String {
    http_within(server, "1min")
}

fn http_within(server: &Server, timeout: &str) -> String {
    format!("type = \"http\"\nurl = \"{}\"\ntimeout = \"{timeout}\"", server.url())
}

#[test]
fn everything_arrives_as_it_stands_in_the_journal_once_and_in_order_and_a_stop_leaves_nothing_behind() {
    let (server, secrets) = (Server::start(Mood::Take), tempfile::tempdir().unwrap());
    let file = secrets.path().join("token");
    std::fs::write(&file, "a-token-of-the-test\n").unwrap();
    let more = format!("token = {{ file = \"{}\" }}\nbatch = {{ records = 7 }}", file.display());
    let mut world = World::new(&format!("{}\n{more}", patient(&server)));
    world.serve(40);
    world.stop();
    assert_eq!(server.lines(), world.journal());
    let batches = server.batches();
    assert!(batches.iter().all(|batch| (1..=7).contains(&batch.lines.len())));
    let mut next = 1;
    for batch in &batches {
        let header = |name: &str| batch.headers[name].as_str();
        assert_eq!(header("request-line"), "POST /ingest?x=1 HTTP/1.1");
        assert_eq!(header("authorization"), "Bearer a-token-of-the-test");
        assert_eq!((header("content-type"), header("content-encoding")), ("application/x-ndjson", "gzip"));
        let last = next + batch.lines.len() - 1;
        assert_eq!(header("x-keygate-journal"), format!("edge-1/0:{next}-{last}"));
        assert_eq!(header("x-keygate-records"), batch.lines.len().to_string());
        next = last + 1;
    }
    assert!(!world.gateway.log_text().contains("a-token-of-the-test"));
    world.gateway.restart();
    world.serve(3);
    world.stop();
    assert_eq!(server.lines(), world.journal(), "a restart goes on where the stop left off");
}

#[test]
fn l3_whatever_a_server_does_requests_are_served_and_afterwards_nothing_lacks() {
    let server = Server::start(Mood::Take);
    let world = World::new(&format!(
        "{}\ncompress = false\nusername = \"u\"\npassword = {{ env = \"PATH\" }}",
        http_within(&server, "3s")
    ));
    let moods = [
        Mood::Nothing,
        Mood::Slow,
        Mood::Cut,
        Mood::Lines(3),
        Mood::Bytes(1500),
        Mood::Say("\0\x01garbage\r\n\r\n".into()),
        Mood::Say("HTTP/1.1 200 OK\r\nContent-Le".into()),
        Mood::Say("HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".into()),
        Mood::Say("HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nno!\n".into()),
        Mood::Say("HTTP/1.1 500 Oh\r\nContent-Length: 9999\r\n\r\n".into()),
    ];
    for mood in moods {
        let retries = || world.gateway.metric("keygate_sink_retries_total{sink=\"http\"}");
        let (tried, failed) = (server.requests().len(), retries());
        server.set(mood.clone());
        world.serve(10);
        let fails = !matches!(mood, Mood::Slow | Mood::Lines(_) | Mood::Bytes(_));
        let is_tried = || server.requests().len() > tried && (!fails || retries() > failed);
        eventually("the server was tried", || is_tried().then_some(()));
        world.serve(10);
        server.set(Mood::Take);
        world.wait_for_all(|| server.lines());
        assert_eq!(repeated(&server.lines()), [], "after {mood:?}");
    }
    assert_eq!(world.gateway.metric("keygate_sink_dropped_total{sink=\"http\"}"), 0.0);
    let log = world.gateway.log_text();
    for told in ["no answer within 3s", "the server answered 302", "400 Bad Request: no!", "takes audit records again"]
    {
        assert!(log.contains(told), "{told}:\n{log}");
    }
}

#[test]
fn l6_requests_are_served_and_recorded_while_a_sink_never_answers_and_it_gets_all_of_them_afterwards() {
    let server = Server::start(Mood::Nothing);
    let world = World::new(&format!("type = \"http\"\nurl = \"{}\"\ntimeout = \"10min\"", server.url()));
    eventually("the sink waits for an answer", || (server.requests().len() == 1).then_some(()));
    for _ in 0..5 {
        world.serve(100);
        let served = || world.journal().iter().filter(|line| line.contains(r#""decision":"allow""#)).count();
        eventually("the journal has them", || (served() == world.served.get()).then_some(()));
    }
    assert_eq!((server.requests().len(), server.lines().len()), (1, 0), "it waits for its first answer");
    server.set(Mood::Take);
    world.wait_for_all(|| server.lines());
    assert_eq!(repeated(&server.lines()), []);
    assert_eq!(world.gateway.metric("keygate_sink_dropped_total{sink=\"http\"}"), 0.0);
}

#[test]
fn l7_what_was_taken_without_an_answer_comes_again_under_the_same_numbers() {
    let server = Server::start(Mood::TakeAndCut);
    let world = World::new(&http(&server));
    world.serve(5);
    eventually("it came twice", || (!repeated(&server.lines()).is_empty()).then_some(()));
    server.set(Mood::Take);
    world.wait_for_all(|| server.lines());
    let journal = world.journal();
    assert!(server.lines().iter().all(|line| journal.contains(line)), "a repeated line is the same line");
}

#[test]
fn a_record_that_no_server_takes_is_told_in_its_place_and_those_around_it_arrive() {
    let server = Server::start(Mood::Take);
    let world = World::new(&format!("{}\ncompress = false", patient(&server)));
    world.serve(2);
    world.wait_for_all(|| server.lines());
    server.set(Mood::Bytes(900));
    let agent = format!("User-Agent: {}", "x".repeat(110));
    let long = world.gateway.path(&format!("orders/{}", "y".repeat(200)));
    let mut client = world.gateway.client();
    let answer = client.request("GET", &long, &[&world.key.bearer(), &agent]);
    world.serve(2);
    let record = world.gateway.record_of(answer.header("x-request-id").unwrap());
    let seq = record["seq"].as_u64().unwrap();
    let gap = eventually("the gap is told", || {
        server
            .lines()
            .iter()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .find(|line| line["kind"] == "gap" && line["first"] == seq && line["last"] == seq && line["seq"] == seq)
    });
    assert_eq!(
        (&gap["reason"], &gap["records"], &gap["journal"]),
        (&"too_large".into(), &1.into(), &record["journal"])
    );
    let lacking = || {
        let arrived: BTreeSet<_> = server.lines().iter().map(|line| name(line)).collect();
        let lacking = world.journal().iter().map(|line| name(line)).filter(|name| !arrived.contains(name)).count();
        (lacking == 0).then_some(())
    };
    eventually("those around it arrive", lacking);
    assert_eq!(repeated(&server.lines()), []);
    assert_eq!(world.gateway.metric("keygate_sink_dropped_total{sink=\"http\"}"), 1.0);
}

/// Writes a segment of records that hardly compress.
fn write_segment(slot: &Path, first: u64, count: u64) {
    let mut lines = Vec::new();
    for seq in first..first + count {
        let noise: String = (0..1500).map(|_| fastrand::alphanumeric()).collect();
        let body = format!("\"ts\":\"2026-11-24T10:42:10.000000Z\",\"noise\":\"{noise}\",");
        write_line(&mut lines, Kind::Request, "edge-1/0", seq, "cfg", body.as_bytes());
    }
    std::fs::write(slot.join(file_name(first)), lines).unwrap();
}

#[test]
fn j7_l3_what_the_cap_removes_before_a_sink_has_it_is_told_to_it_exactly() {
    const RECORDS: u64 = 1500;
    let server = Server::start(Mood::Take);
    let retain = "[audit]\nretain = { days = 90, size = \"1 MiB\" }";
    let mut world = World::with(&format!("{retain}\n[[audit.sinks]]\n{}\nbatch = {{ records = 10 }}", http(&server)));
    world.serve(1);
    world.stop();
    let taken = server.lines().len() as u64;
    let slot = world.gateway.dir.path().join("data/audit/0");
    (0..2).for_each(|n| write_segment(&slot, taken + 1 + n * RECORDS, RECORDS));
    server.set(Mood::Say("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".into()));
    world.gateway.restart();
    eventually("the cap has removed them", || {
        let oldest = world.journal().first().map(|line| name(line).1);
        oldest.is_some_and(|oldest| oldest > taken + 2 * RECORDS).then_some(())
    });
    server.set(Mood::Take);
    let next = taken + 2 * RECORDS + 1;
    eventually("what is left arrives", || server.lines().iter().any(|line| name(line).1 >= next).then_some(()));
    world.stop();
    let (mut expected, mut lacking) = (1, 0);
    for line in server.lines() {
        let (value, seq) = (serde_json::from_str::<serde_json::Value>(&line).unwrap(), name(&line).1);
        let first = value["first"].as_u64().filter(|_| value["reason"] == "not_in_journal");
        lacking += first.map_or(0, |first| seq + 1 - first);
        assert_eq!(first.unwrap_or(seq), expected, "each number once, in order: {line}");
        expected = seq + 1;
    }
    assert!((2 * RECORDS - 10..=2 * RECORDS).contains(&lacking), "{lacking} are told to lack");
    assert!(world.gateway.log_text().contains("audit records do not reach a sink; it was told which"));
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    let busy = "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 0\r\n\r\n";
    let server = Server::start(Mood::Say(busy.into()));
    let world = World::new(&http(&server));
    let first = eventually("the first request", || server.requests().first().copied());
    server.set(Mood::Take);
    world.serve(1);
    world.wait_for_all(|| server.lines());
    let waited = server.requests()[1].duration_since(first);
    assert!(waited >= Duration::from_millis(1900), "it came again after {waited:?}");
}

#[test]
fn j6_l7_a_kill_in_the_middle_of_a_delivery_loses_nothing() {
    let server = Server::start(Mood::Slow);
    let mut world = World::new(&format!("{}\nbatch = {{ records = 5 }}", http(&server)));
    for _ in 0..3 {
        let before = server.requests().len();
        world.serve(100);
        eventually("a delivery is under way", || (server.requests().len() > before + 2).then_some(()));
        world.gateway.restart();
    }
    server.set(Mood::Take);
    world.serve(1);
    world.stop();
    let (arrived, journal) = (server.lines(), world.journal());
    let different: BTreeSet<_> = arrived.iter().collect();
    assert_eq!(different, journal.iter().collect::<BTreeSet<_>>());
    assert!(journal.len() > 300);
}

#[test]
fn a_checkpoint_that_is_garbage_is_told_and_everything_comes_again() {
    let server = Server::start(Mood::Take);
    let mut world = World::new(&patient(&server));
    world.serve(5);
    world.stop();
    let before = server.lines();
    let checkpoint = world.gateway.dir.path().join("data/audit/checkpoints/http.json");
    let saved = std::fs::read_to_string(&checkpoint).unwrap();
    assert_eq!(saved, format!("{{\"edge-1/0\":{}}}", before.len()));
    std::fs::write(&checkpoint, [0; 20]).unwrap();
    world.gateway.restart();
    world.stop();
    assert_eq!(server.lines().split_at(before.len()), (&before[..], &world.journal()[..]));
    assert!(world.gateway.log_text().contains("what was sent may be sent again"), "{}", world.gateway.log_text());
}

#[test]
fn j6_of_two_processes_one_ships_for_both_and_the_other_takes_over_when_it_dies() {
    let (server, shared) = (Server::start(Mood::Take), tempfile::tempdir().unwrap());
    let sections = format!("[audit]\ndir = \"{}\"\n[[audit.sinks]]\n{}", shared.path().display(), patient(&server));
    let mut first = World::with(&sections);
    eventually("the first one ships", || (!server.lines().is_empty()).then_some(()));
    let second = World::with(&sections);
    let arrived = || {
        let arrived: BTreeSet<_> = server.lines().into_iter().collect();
        journal(shared.path()).iter().all(|line| arrived.contains(line)).then_some(())
    };
    first.serve(5);
    second.serve(5);
    eventually("both journals arrive", arrived);
    assert_eq!(repeated(&server.lines()), [], "{}", first.gateway.log_text());
    let standing = |world: &World| world.gateway.admin_page("/readyz?verbose").text();
    let is_through = |world: &World| standing(world).contains("[sink http] delivering, 0 records").then_some(());
    eventually("the first one is through", || is_through(&first));
    assert!(standing(&second).contains("[sink http] not shipping"), "{}", standing(&second));

    first.gateway.signal("KILL");
    first.gateway.wait();
    second.serve(5);
    eventually("the second one takes over", || is_through(&second));
    eventually("both journals arrive", arrived);
}

#[test]
fn a_stop_does_not_wait_for_a_server_that_says_nothing() {
    let server = Server::start(Mood::Nothing);
    let mut world = World::new(&format!("type = \"http\"\nurl = \"{}\"\ntimeout = \"10min\"", server.url()));
    world.serve(1);
    eventually("the server was tried", || (!server.requests().is_empty()).then_some(()));
    world.stop();
    assert!(world.gateway.log_text().contains("stopped before every sink had taken the last records"));
    server.set(Mood::Take);
    world.gateway.restart();
    world.wait_for_all(|| server.lines());
}

#[test]
fn a_sink_that_fails_is_told_of_once_and_seen_in_metrics_and_readiness() {
    let server = Server::start(Mood::Say("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".into()));
    let world = World::new(&http(&server));
    world.serve(20);
    let metric = |name: &str| world.gateway.metric(&format!("keygate_sink_{name}{{sink=\"http\"}}"));
    eventually("it was tried again", || (metric("retries_total") >= 3.0).then_some(()));
    assert!(metric("lag_records") >= 20.0);
    eventually("its age grows", || (metric("lag_seconds") > 0.1).then_some(()));
    let page = world.gateway.admin_page("/readyz?verbose");
    assert_eq!(page.status, 200);
    let line = page.text().lines().find(|line| line.starts_with("[sink http] failing, ")).map(str::to_owned);
    assert!(line.is_some_and(|line| line.ends_with("the server answered 403 Forbidden")), "{}", page.text());
    let told = |what: &str| world.gateway.log_text().matches(what).count();
    assert_eq!(told("a sink does not take audit records"), 1, "{}", world.gateway.log_text());
    server.set(Mood::Take);
    eventually("it takes records again", || (metric("lag_records") == 0.0).then_some(()));
    let is_counted = || (metric("sent_total") == server.lines().len() as f64).then_some(());
    eventually("what it took is counted", is_counted);
    assert_eq!(told("a sink takes audit records again"), 1);
}

#[test]
fn a_server_with_tls_must_prove_its_name_with_an_authority_of_ours() {
    let (authority, other) = (Authority::new(), Authority::named("other"));
    let pair = authority.issue("server", "IP:127.0.0.1");
    let chain = CertificateDer::pem_file_iter(&pair.cert).unwrap().map(Result::unwrap).collect();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
    let config = config.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let server = Server::start_with(Mood::Take, Some(Arc::new(config)));
    let sink = |name: &str, ca: &Authority| {
        let url = server.url().replace("http://", "https://");
        format!(
            "[[audit.sinks]]\ntype = \"http\"\nname = \"{name}\"\nurl = \"{url}\"\nca = \"{}\"\n",
            ca.ca().display()
        )
    };
    let world = World::with(&(sink("trusted", &authority) + &sink("stranger", &other)));
    world.serve(3);
    world.wait_for_all(|| server.lines());
    eventually("the stranger is refused", || {
        world.gateway.log_text().contains("the server's certificate is not signed by an authority in ca").then_some(())
    });
    assert_eq!(world.gateway.metric("keygate_sink_sent_total{sink=\"stranger\"}"), 0.0);
}
