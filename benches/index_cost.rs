//! What the audit index costs: CPU for each record of `Index::deliver`, writing included, with requests of many keys in turn.
//!
//! `cargo run --release --example index_cost -- [records] [keys]`

use keygate::audit::fields::Fields;
use keygate::audit::index::{Entry, FILE, Index};
use keygate::audit::segment::{Kind, write_line};
use keygate::clock::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use std::hint::black_box;

const JOURNAL: &str = "edge-1/0";
/// A delivery, as the shipper makes them.
const DELIVERY: usize = 2000;

fn main() {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<usize>().expect("a number"));
    let (records, keys) = (numbers.next().unwrap_or(1_000_000), numbers.next().unwrap_or(1000));
    let dir = tempfile::tempdir().expect("a directory");
    let mut index = Index::open(dir.path()).expect("an index");
    let (mut fields, mut deliver) = (0, 0);
    for first in (0..records).step_by(DELIVERY) {
        let lines: Vec<String> = (first..(first + DELIVERY).min(records)).map(|number| line(number, keys)).collect();
        fields += cpu(|| lines.iter().for_each(|line| _ = black_box(Fields::read(line))));
        let entries = lines.iter().zip(first as u64 + 1..);
        let entries = entries.map(|(text, seq)| Entry { journal: JOURNAL, seq, text });
        deliver += cpu(|| index.deliver(entries).expect("delivered"));
    }
    deliver += cpu(|| index.flush().expect("written"));
    let each = |nanos: u64| nanos / records as u64;
    let bytes = std::fs::metadata(dir.path().join(FILE)).map_or(0, |file| file.len());
    println!("{records} records of {keys} keys");
    println!("reading the fields  {:>6} ns CPU a record", each(fields));
    println!("Index::deliver      {:>6} ns CPU a record, reading the fields included", each(deliver));
    println!("the file            {:>6} bytes a record", bytes / records as u64);
}

/// Nanoseconds of the process.
fn cpu(work: impl FnOnce()) -> u64 {
    let now = || {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        (time.tv_sec * 1_000_000_000 + time.tv_nsec) as u64
    };
    let start = now();
    work();
    now() - start
}

/// A request as the gateway records it: 20,000 a second, each key with an address or two and a few routes.
fn line(number: usize, keys: usize) -> String {
    let (key, turn) = (number % keys, number / keys);
    let ts = Timestamp::from_micros(1_764_000_000_000_000 + number as i64 * 50);
    let resource = ["orders", "products", "inventory", "accounts"][turn % 4];
    let (denied, method) = (turn % 50 == 7, ["GET", "POST"][turn % 8 / 7]);
    let body = format!(
        concat!(
            r#""ts":"{ts}","request_id":"req_01KAYQ3Z5N{number:016}","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","#,
            r#""client_ip":"198.51.{a}.{b}","peer_ip":"198.51.{a}.{b}","method":"{method}","host":"api.example.com","#,
            r#""path":"/v1/entities/0190c0de-0000-7000-8000-{key:012}/{resource}/{number}","#,
            r#""route":"/v1/entities/{{entity_id}}/{resource}/**","protocol":"HTTP/1.1","user_agent":"acme-sync/4.2 (linux; x64)","client_identity":null,"#,
            r#""key_id":"key_01KAYQ3Z5N{key:016}","key_name":"integration {key}","#,
            r#""entity_id":"0190c0de-0000-7000-8000-{key:012}","mode":"live","decision":"{decision}","reason":{reason},"#,
            r#""status":{status},"bytes_in":0,"bytes_out":1432,"duration_us":2391,"upstream":"erp","upstream_us":2188,"#,
        ),
        ts = ts,
        number = number,
        key = key,
        method = method,
        resource = resource,
        a = key / 256 % 256,
        b = (key + turn % 20 / 19) % 256,
        decision = if denied { "deny" } else { "allow" },
        reason = if denied { "\"insufficient_scope\"" } else { "null" },
        status = if denied { 403 } else { 200 },
    );
    let mut out = Vec::new();
    write_line(&mut out, Kind::Request, JOURNAL, number as u64 + 1, "0123456789abcdef", body.as_bytes());
    out.pop();
    String::from_utf8(out).expect("text")
}
