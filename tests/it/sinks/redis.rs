//! A stream in Redis as a sink.

use super::{World, journal, name};
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Upstream, eventually};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;

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
    let store = format!("[store]\nurl = \"{}\"", redis.url());
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

#[test]
fn a_full_redis_takes_records_later_and_one_that_was_emptied_gets_them_again() {
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
fn the_stream_is_kept_to_its_length() {
    let redis = RedisServer::start_with(&["--stream-node-max-entries", "10"]);
    let world = World::new(&format!("{}\nmax_length = 1000", sink(&redis)));
    for _ in 0..5 {
        world.serve(300);
    }
    let last = format!("HGET {STREAM}:positions edge-1/0");
    let written = || match ask(&redis, &last) {
        ::redis::Value::BulkString(seq) => String::from_utf8(seq).unwrap().parse().unwrap(),
        _ => 0,
    };
    eventually("everything was sent", || (written() >= 1500).then_some(()));
    let kept = records(&redis).len();
    assert!((1000..1100).contains(&kept), "{kept} are kept");
}
