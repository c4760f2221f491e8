//! Strangers ask as fast as they can: they are counted exactly, take little of the disk, and nobody with a key notices.

use super::lines::Reader;
use crate::harness::client::head;
use crate::harness::gateway::ENTITY;
use crate::harness::{Client, Gateway, Upstream, eventually};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Connections of strangers, and how many requests each sends at once.
const STRANGERS: u32 = 4;
const AT_ONCE: u32 = 20;
/// A client keeps all refusals it gets: another one is taken after so many times.
const TIMES_PER_CLIENT: usize = 100;
/// What is compressed by itself, as the page on the audit format says.
const BLOCK_BYTES: usize = 64 * 1024;
const MIB: f64 = 1024.0 * 1024.0;
/// Between two requests with a key.
const PACE: Duration = Duration::from_millis(5);

pub struct Size {
    /// Requests without a key a second.
    pub rate: u32,
    pub length: Duration,
    /// How much of the disk they may take each minute, in MiB, as it is written.
    pub mib_per_minute_max: f64,
}

/// Floods a gateway whose settings are the defaults.
pub fn prove(size: &Size) {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let (key, audit) = (gateway.key(&["orders:read"]), gateway.dir.path().join("data/audit"));
    let (stop, refused) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    let (served, times) = std::thread::scope(|scope| {
        for _ in 0..STRANGERS {
            scope.spawn(|| refused.fetch_add(be_strange(gateway.address, size.rate, &stop), Ordering::SeqCst));
        }
        let good = scope.spawn(|| use_key(&gateway, &key.bearer(), &stop));
        std::thread::sleep(size.length);
        stop.store(true, Ordering::SeqCst);
        good.join().unwrap()
    });
    let (seconds, refused) = (began.elapsed().as_secs_f64(), refused.into_inner());
    let records = wait_until_all_are_told(&mut Reader::new(&audit), refused, &served);
    // What is recorded is bounded by the second: the one that had begun before the flood, or ends after it, counts whole.
    let [plain, compressed] = bytes_of_strangers(&records).map(|bytes| bytes as f64 / (seconds + 1.0) * 60.0 / MIB);
    let (rate, recorded, quantile) =
        (refused as f64 / seconds, recorded(&records), |of: usize| times[times.len() * of / 100]);
    println!("{refused} strangers, {rate:.0} a second: {recorded} recorded, the rest counted");
    println!("MiB of the journal they take a minute: {plain:.2}; {compressed:.2} once it is compressed");
    println!("{} good requests: p50 {:?}, p99 {:?}", served.len(), quantile(50), quantile(99));
    assert!(plain <= size.mib_per_minute_max, "strangers take {plain:.2} MiB of the disk a minute");
}

/// Reads the journal until it tells of all strangers, and of everybody else by id.
fn wait_until_all_are_told(reader: &mut Reader, strangers: u64, served: &[String]) -> Vec<Value> {
    let mut records = Vec::new();
    eventually("everybody is accounted for", || {
        records.extend(reader.read().records);
        let (recorded, counted) = (recorded(&records), counted(&records));
        assert!(recorded + counted <= strangers, "{recorded} recorded and {counted} counted of {strangers} strangers");
        let ids: BTreeSet<&str> = records.iter().filter_map(|record| record["request_id"].as_str()).collect();
        (recorded + counted == strangers && served.iter().all(|id| ids.contains(id.as_str()))).then_some(())
    });
    records
}

fn recorded(records: &[Value]) -> u64 {
    records.iter().filter(|record| record["reason"] == "missing_api_key").count() as u64
}

fn counted(records: &[Value]) -> u64 {
    let summaries = records.iter().filter(|record| record["kind"] == "summary");
    summaries.filter_map(|summary| summary["counts"]["missing_api_key"].as_u64()).sum()
}

/// What the strangers take of the journal, as it is written and as closed segments are compressed.
fn bytes_of_strangers(records: &[Value]) -> [usize; 2] {
    let theirs = records.iter().filter(|record| record["reason"] == "missing_api_key" || record["kind"] == "summary");
    let lines: String = theirs.map(|record| format!("{record}\n")).collect();
    let compressed = lines.as_bytes().chunks(BLOCK_BYTES).map(|block| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(block).unwrap();
        encoder.finish().unwrap().len()
    });
    [lines.len(), compressed.sum()]
}

/// Sends requests without a key at its share of the rate; gives how many were refused.
fn be_strange(address: SocketAddr, rate: u32, stop: &AtomicBool) -> u64 {
    let request = head("GET", &format!("/v1/entities/{ENTITY}/orders"), &[]).repeat(AT_ONCE as usize);
    let (mut due, mut refused) = (Instant::now(), 0);
    while !stop.load(Ordering::Relaxed) {
        let mut client = Client::connect(address);
        for _ in 0..TIMES_PER_CLIENT {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            client.send(&request);
            (0..AT_ONCE).for_each(|_| assert_eq!(client.read("GET").status, 401));
            refused += u64::from(AT_ONCE);
            due += Duration::from_secs(1) * STRANGERS * AT_ONCE / rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    refused
}

/// Uses a key until told to stop; gives the requests' ids, and how long each took, sorted.
fn use_key(gateway: &Gateway, bearer: &str, stop: &AtomicBool) -> (Vec<String>, Vec<Duration>) {
    let (mut client, path, mut ids, mut times) = (gateway.client(), gateway.path("orders"), Vec::new(), Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let answer = client.request("GET", &path, &[bearer]);
        times.push(sent.elapsed());
        assert_eq!(answer.status, 200);
        ids.push(answer.header("x-request-id").unwrap().to_owned());
        std::thread::sleep(PACE);
    }
    times.sort();
    (ids, times)
}
