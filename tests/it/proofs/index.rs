//! A question about one key and one day is answered from the index: a small part of the journal is read.

use keygate::audit::block::{Compressing, Step};
use keygate::audit::fields::Fields;
use keygate::audit::index::{Entry, Index, IndexReader};
use keygate::audit::query::{Cursor, Filter, JournalSource, Source};
use keygate::audit::segment::{Kind, file_name, write_line};
use keygate::clock::Timestamp;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A journal of `records` from `keys` keys in turn, over ten days.
pub struct Size {
    pub records: u64,
    pub keys: u64,
    /// The last ones, which are not in the index yet.
    pub tail: u64,
    /// Whether every other segment is compressed.
    pub compressed: bool,
    /// For the key's newest hundred records of a day, the index's opening included.
    pub within: Option<Duration>,
    /// Of segments, for each record that is shown, besides what is not in the index yet.
    pub bytes_per_record_max: u64,
}

const DAYS: i64 = 10;
const DAY: i64 = 86_400 * 1_000_000;
const START: i64 = 20_400 * DAY;
const SEGMENT_RECORDS: u64 = 100_000;
const JOURNAL: &str = "edge-1/0";

pub fn prove(size: &Size) {
    let dir = tempfile::tempdir().unwrap();
    let bytes = write(dir.path(), size);
    let filter = Filter {
        key_id: Some(key_id(size.keys / 2)),
        since: Some(Timestamp::from_micros(START + 5 * DAY)),
        until: Some(Timestamp::from_micros(START + 6 * DAY)),
        ..Filter::default()
    };
    let expected = (0..size.records).filter(|number| number % size.keys == size.keys / 2);
    let day = START + 5 * DAY..START + 6 * DAY;
    let mut expected: Vec<u64> = expected.filter(|number| day.contains(&at(*number, size))).map(|n| n + 1).collect();
    expected.reverse();
    assert!(!expected.is_empty());

    let begin = Instant::now();
    let index = IndexReader::open(dir.path()).unwrap();
    let mut source = JournalSource::new(dir.path(), index);
    let page = source.page(&filter, None, 100).unwrap();
    let took = begin.elapsed();
    assert_eq!(seqs(&page.lines), expected[..expected.len().min(100)]);
    let read = source.bytes_read();
    println!("{} of {bytes} bytes were read, in {took:?}, for {} of {} records", read, page.lines.len(), size.records);
    let allowed = size.tail * 1024 + size.bytes_per_record_max * page.lines.len() as u64;
    assert!(read <= allowed, "{read} bytes were read");
    assert!(size.within.is_none_or(|within| took <= within), "{took:?}");
    assert_eq!(all(&mut source, &filter, page.next, seqs(&page.lines)), expected);
}

/// Writes journal and index; gives the journal's size.
fn write(dir: &Path, size: &Size) -> u64 {
    let slot = dir.join("0");
    std::fs::create_dir(&slot).unwrap();
    let mut index = Index::open(dir).unwrap();
    let mut bytes = 0;
    for (place, first) in (1..=size.records).step_by(SEGMENT_RECORDS as usize).enumerate() {
        let last = size.records.min(first + SEGMENT_RECORDS - 1);
        let mut lines = Vec::new();
        (first..=last).for_each(|seq| line(&mut lines, seq, size));
        let path = slot.join(file_name(first));
        File::create_new(&path).unwrap().write_all(&lines).unwrap();
        let texts = std::str::from_utf8(&lines).unwrap().lines().zip(first..);
        let indexed = texts.filter(|(_, seq)| *seq + size.tail <= size.records);
        index.deliver(indexed.map(|(text, seq)| Entry { journal: JOURNAL, seq, text })).unwrap();
        bytes += lines.len() as u64;
        if size.compressed && place % 2 == 1 && last < size.records {
            compress(path);
        }
    }
    index.flush().unwrap();
    bytes
}

fn compress(path: PathBuf) {
    let mut compressing = Compressing::begin(&path).unwrap();
    while compressing.step().unwrap() == Step::More {}
}

fn line(out: &mut Vec<u8>, seq: u64, size: &Size) {
    let number = seq - 1;
    let key = number % size.keys;
    let (ts, key_id) = (Timestamp::from_micros(at(number, size)), key_id(key));
    let body = format!(
        r#""ts":"{ts}","request_id":"req_{number:026}","trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","client_ip":"198.51.100.7","peer_ip":"198.51.100.7","method":"GET","host":"api.example.com","path":"/v1/entities/0190c0de-0000-7000-8000-{key:012}/orders/{number}","route":"/v1/entities/{{entity_id}}/orders/**","protocol":"HTTP/1.1","user_agent":"acme-sync/4.2","client_identity":null,"key_id":"{key_id}","key_name":"sync","entity_id":"0190c0de-0000-7000-8000-{key:012}","mode":"live","decision":"allow","reason":null,"status":200,"bytes_in":0,"bytes_out":1432,"duration_us":2391,"upstream":"erp","upstream_us":2188,"#,
    );
    write_line(out, Kind::Request, JOURNAL, seq, "0123456789abcdef", body.as_bytes());
}

fn at(number: u64, size: &Size) -> i64 {
    START + number as i64 * (DAYS * DAY / size.records as i64)
}

fn key_id(key: u64) -> String {
    format!("key_{key:026}")
}

fn seqs(lines: &[String]) -> Vec<u64> {
    lines.iter().map(|line| Fields::read(line).unwrap().seq.unwrap()).collect()
}

/// The rest of the pages.
fn all(source: &mut JournalSource, filter: &Filter, mut next: Option<Cursor>, mut found: Vec<u64>) -> Vec<u64> {
    while let Some(cursor) = next {
        let page = source.page(filter, Some(&cursor), 1000).unwrap();
        found.extend(seqs(&page.lines));
        next = page.next;
    }
    found
}
