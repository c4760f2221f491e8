//! The journal's lines as they lie in the files, read by what the page on the audit format says and by nothing of the program.

use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

const CRC_MEMBER: &str = ",\"crc\":\"";

/// How far every slot of a directory has been read.
pub struct Reader {
    dir: PathBuf,
    /// The last number that was read of each slot.
    read: BTreeMap<PathBuf, u64>,
}

/// What was new.
#[derive(Default)]
pub struct Lines {
    /// In the order of their numbers, for each journal; no number twice.
    pub records: Vec<Value>,
    /// Numbers without a record that are followed by one.
    pub lacking: u64,
    /// Lines that are no whole record, in their first bytes.
    pub damaged: Vec<String>,
}

// === impl Reader ===

impl Reader {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), read: BTreeMap::new() }
    }

    /// Reads what has been written since the last call. A line without its end, in the last segment, is being written; in
    /// another one it is the torn end after which a failed write has begun a new segment.
    pub fn read(&mut self) -> Lines {
        let mut lines = Lines::default();
        let entries = std::fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let is_slot = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().parse::<u8>().is_ok();
        for slot in entries.filter(is_slot) {
            let last = self.read.entry(slot.clone()).or_default();
            *last = read_slot(&slot, *last, &mut lines);
        }
        lines
    }
}

/// Reads the records of a slot after the number `last`, and gives the last one.
fn read_slot(slot: &Path, mut last: u64, lines: &mut Lines) -> u64 {
    let segments = segments(slot);
    for (index, (_, path)) in segments.iter().enumerate() {
        // From where a newer segment begins, what an older one holds is void.
        let end = segments[index + 1..].iter().map(|(first, _)| *first).min().unwrap_or(u64::MAX);
        if end <= last + 1 {
            continue;
        }
        for line in text(path).split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let Some(record) = whole(line) else {
                lines.damaged.push(format!("{}: {:.80}", path.display(), line));
                continue;
            };
            let seq = record["seq"].as_u64().unwrap();
            if seq > last && seq < end {
                lines.lacking += seq - last - 1;
                lines.records.push(record);
                last = seq;
            } else if seq < end && lines.records.iter().any(|earlier| same_number(earlier, &record)) {
                lines.damaged.push(format!("{}: number {seq} is there twice", path.display()));
            }
        }
    }
    last
}

fn same_number(one: &Value, other: &Value) -> bool {
    one["seq"] == other["seq"] && one["journal"] == other["journal"]
}

/// The segments of a slot in their order; of one that is there in both forms, the compressed one, which came later.
fn segments(slot: &Path) -> Vec<(u64, PathBuf)> {
    let mut segments = BTreeMap::new();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(slot).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let first = name.strip_suffix(".ndjson.gz").or_else(|| name.strip_suffix(".ndjson"));
        if let Some(first) = first.and_then(|digits| digits.parse().ok()) {
            segments.insert(first, path);
        }
    }
    segments.into_iter().collect()
}

fn text(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    if path.extension().is_some_and(|extension| extension == "gz") {
        let mut text = String::new();
        MultiGzDecoder::new(&*bytes).read_to_string(&mut text).unwrap();
        return text;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The record of a line, if its end is there and its checksum is right.
fn whole(line: &str) -> Option<Value> {
    let (body, end) = line.split_at_checked(line.rfind(CRC_MEMBER)?)?;
    let is_whole = end == format!("{CRC_MEMBER}{:08x}\"}}\n", crc32fast::hash(body.as_bytes()));
    is_whole.then(|| serde_json::from_str(line).unwrap())
}
