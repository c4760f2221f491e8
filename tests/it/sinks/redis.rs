//! A stream in Redis as a sink.

use super::{World, journal, name};
use crate::harness::gateway::keygate;
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Upstream, eventually};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;

const STREAM: &str = "{keygate}:audit";

/// The records in the stream, in order; their fields agree with them.
fn records(redis: &RedisServer) -> Vec<String> {
    let entries = ask(redis, &format!("XRANGE {STREAM} - +"));
    let ::redis::Value::Array(entries) = entries else { return Vec::new() };
    entries.iter().map(record).collect()
}

fn record(entry: &::redis::Value) -> String {
    let (_, fields): (String, Vec<String>) = ::redis::from_redis_value_ref(entry).unwrap();
    let [journal, seq, record] = ["journal", "seq", "record"].map(|field| {
        let at = fields.iter().position(|name| name == field).unwrap();
        fields[at + 1].clone()
    });
    assert_eq!(name(&record), (journal, seq.parse().unwrap()));
    record
}

/// The whole answer to a command.
fn ask(redis: &RedisServer, words: &str) -> ::redis::Value {
    let mut stream = TcpStream::connect(redis.address()).unwrap();
    stream.write_all(format!("{words}\r\nQUIT\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    ::redis::parse_redis_value(answer.strip_suffix(b"+OK\r\n").unwrap()).unwrap()
}

fn sink(redis: &RedisServer) -> String {
    format!("type = \"redis\"\nurl = \"{}\"\nbatch = {{ records = 10 }}", redis.url())
}

#[test]
fn a_fleet_writes_one_stream_on_its_store_and_kills_add_nothing_twice() {
    let (redis, upstream) = (RedisServer::start(), Upstream::named("erp"));
    let store = format!(
        "[store]\nurl = \"{}\"\n[[audit.sinks]]\ntype = \"redis\"\n[[audit.sinks]]\ntype = \"sqlite\"",
        redis.url()
    );
    let mut first = World::with(&store);
    let second = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    second.wait_until_known(&first.key);
    for _ in 0..3 {
        first.serve(50);
        assert_eq!(second.client().request("GET", &first.path, &[&first.key.bearer()]).status, 200);
        first.gateway.restart();
    }
    let journals = || [first.journal(), journal(&second.dir.path().join("data/audit"))].concat();
    eventually("everything is in the stream", || {
        let stream: BTreeSet<_> = records(&redis).into_iter().collect();
        journals().iter().all(|line| stream.contains(line)).then_some(())
    });
    let stream = records(&redis);
    assert_eq!(super::repeated(&stream), []);
    for gateway in ["edge-1/0", "edge-2/0"] {
        let seqs: Vec<_> =
            stream.iter().map(|line| name(line)).filter(|name| name.0 == gateway).map(|name| name.1).collect();
        assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>(), "in order and without a hole");
    }
}

/// What `keygate logs --output ndjson` prints in a directory with the gateway's configuration alone.
fn logs(dir: &Path, args: &[&str]) -> (Vec<String>, String) {
    let output = keygate(dir).args(["logs", "--output", "ndjson"]).args(args).output().unwrap();
    let [lines, words] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{words}");
    (lines.lines().map(str::to_owned).collect(), words)
}

#[test]
fn the_records_of_a_fleet_are_asked_for_at_any_place_in_pages_and_followed() {
    let (redis, upstream) = (RedisServer::start(), Upstream::named("erp"));
    let store = format!(
        "[store]\nurl = \"{}\"\n[[audit.sinks]]\ntype = \"redis\"\n[[audit.sinks]]\ntype = \"sqlite\"",
        redis.url()
    );
    let mut first = World::with(&store);
    let mut second = Gateway::builder().live(&upstream).toml(&store).joining("edge-2").start();
    second.wait_until_known(&first.key);
    let ask = |gateway: &Gateway| gateway.client().request("GET", &first.path, &[&first.key.bearer()]).status;
    for _ in 0..20 {
        assert_eq!((ask(&first.gateway), ask(&second)), (200, 200));
    }
    first.stop();
    second.signal("TERM");
    second.wait();
    let journals = [first.journal(), journal(&second.dir.path().join("data/audit"))].concat();
    let here = first.gateway.dir.path();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::copy(here.join("gateway.toml"), elsewhere.path().join("gateway.toml")).unwrap();
    let (every, _) = logs(here, &["--fleet", "--kind", "all", "--limit", "1000000"]);
    let set = |lines: &[String]| lines.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!((set(&every), every.len()), (set(&journals), journals.len()));
    let (seals, all): (Vec<_>, Vec<_>) = every.into_iter().partition(|line| line.contains(r#""kind":"seal""#));
    assert!(seals.len() >= 2, "each journal that was closed ends in a seal");
    assert_eq!(logs(here, &["--fleet", "--kind", "seal", "--limit", "1000000"]).0, seals);
    assert_eq!(logs(elsewhere.path(), &["--limit", "1000000"]).0, all, "without a journal the stream is asked");
    assert_eq!(logs(here, &["--fleet", "--limit", "7"]).0, all[all.len() - 7..], "a page is of what is shown");

    let wanted = ["--fleet", "--key", &first.key.id, "--decision", "allow", "--newest-first", "--since", "1h"];
    let (mut pages, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut args = [&wanted[..], &["--limit", "7"]].concat();
        args.extend(after.iter().flat_map(|cursor| ["--after", cursor]));
        let (lines, words) = logs(elsewhere.path(), &args);
        assert!((1..=7).contains(&lines.len()));
        pages.extend(lines);
        let Some(cursor) = words.trim().rsplit_once("--after ") else { break };
        after = Some(cursor.1.to_owned());
    }
    let is_wanted = |line: &&String| line.contains(&first.key.id) && line.contains(r#""decision":"allow""#);
    let expected: Vec<_> = all.iter().rev().filter(is_wanted).cloned().collect();
    assert_eq!((pages.len(), &pages), (40, &expected));

    let mut follow = keygate(elsewhere.path());
    let follow = follow.args(["logs", "--fleet", "--follow", "--output", "ndjson", "--limit", "1"]);
    let mut child = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_ref(), all.last());
    // Between the two starts there is the seal of the life that the first one began.
    for _ in 0..2 {
        first.gateway.restart();
        first.stop();
        let start =
            lines.find(|line| ["start", "seal"].iter().any(|kind| line.contains(&format!(r#""kind":"{kind}""#))));
        assert!(start.is_some_and(|line| line.contains(r#""kind":"start""#) && name(&line).0 == "edge-1/0"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn j6_l7_a_full_redis_takes_records_later_and_one_that_was_emptied_gets_them_again() {
    let redis = RedisServer::start();
    let world = World::new(&sink(&redis));
    world.serve(20);
    world.wait_for_all(|| records(&redis));

    assert_eq!(redis.command("CONFIG SET maxmemory-policy noeviction"), "+OK");
    assert_eq!(redis.command("CONFIG SET maxmemory 1"), "+OK");
    world.serve(20);
    eventually("it is told", || world.gateway.log_text().contains("OOM").then_some(()));
    world.serve(20);
    assert_eq!(redis.command("CONFIG SET maxmemory 0"), "+OK");
    world.wait_for_all(|| records(&redis));
    assert_eq!(super::repeated(&records(&redis)), []);

    assert_eq!(redis.command("FLUSHALL"), "+OK");
    world.serve(1);
    world.wait_for_all(|| records(&redis));
    assert_eq!(super::repeated(&records(&redis)), []);
    assert!(world.gateway.log_text().contains("the stream has lost records of edge-1/0"));
}

#[test]
fn a_redis_that_was_away_or_takes_no_writes_gets_everything_once_it_writes_again() {
    let mut redis = RedisServer::start();
    let world = World::new(&sink(&redis));
    world.serve(10);
    world.wait_for_all(|| records(&redis));
    redis.kill();
    world.serve(30);
    eventually("it is told", || world.gateway.log_text().contains("does not take audit records").then_some(()));
    redis.restart();
    world.wait_for_all(|| records(&redis));

    assert_eq!(redis.command("CONFIG SET min-replicas-to-write 1"), "+OK");
    world.serve(10);
    eventually("it was tried", || world.gateway.log_text().contains("NOREPLICAS").then_some(()));
    assert_eq!(redis.command("CONFIG SET min-replicas-to-write 0"), "+OK");
    world.wait_for_all(|| records(&redis));
    assert_eq!(super::repeated(&records(&redis)), []);
}

#[test]
fn a_gateway_that_begins_again_on_an_empty_disk_is_not_taken_for_the_one_it_was() {
    let redis = RedisServer::start();
    let mut world = World::new(&sink(&redis));
    world.serve(30);
    world.stop();
    let before = world.journal();
    std::fs::remove_dir_all(world.gateway.dir.path().join("data/audit")).unwrap();
    world.gateway.restart();
    world.gateway.signal("TERM");
    world.gateway.wait();
    let after = world.journal();
    assert!(after.len() < before.len(), "its numbers begin again");
    assert_eq!(records(&redis), [before, after].concat());
}

#[test]
fn the_stream_is_kept_to_its_length() {
    let redis = RedisServer::start_with(&["--stream-node-max-entries", "10"]);
    let world = World::new(&format!("{}\nmax_length = 1000", sink(&redis)));
    for _ in 0..5 {
        world.serve(300);
    }
    let written = || match ask(&redis, &format!("HVALS {STREAM}:positions")) {
        ::redis::Value::Array(seqs) if seqs.len() == 1 => ::redis::from_redis_value_ref(&seqs[0]).unwrap(),
        _ => 0,
    };
    eventually("everything was sent", || (written() >= 1500).then_some(()));
    let kept = records(&redis).len();
    assert!((1000..1100).contains(&kept), "{kept} are kept");
}
