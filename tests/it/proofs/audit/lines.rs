//! The journal's lines as they lie in the files, read by what the page on the audit format says and by nothing of the program.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CRC_MEMBER: &str = ",\"crc\":\"";

/// How far every slot of a directory has been read.
pub struct Reader {
    dir: PathBuf,
    slots: BTreeMap<PathBuf, Slot>,
}

/// How far a slot has been read.
struct Slot {
    /// The last number.
    last: u64,
    /// None where lines lack since the last seal.
    chain: Option<Chain>,
}

/// What the next seal has to say.
struct Chain {
    first: u64,
    previous: String,
    covered: Sha256,
}

/// What was new.
#[derive(Default)]
pub struct Lines {
    /// In the order of their numbers, for each journal; no number twice.
    pub records: Vec<Value>,
    /// Numbers without a record that are followed by one.
    pub lacking: u64,
    /// Lines that are no whole record, numbers that are there twice, seals that do not hold.
    pub damaged: Vec<String>,
}

// === impl Reader ===

impl Reader {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), slots: BTreeMap::new() }
    }

    /// Reads what has been written since the last call. A line without its end, in the last segment, is being written; in
    /// another one it is the torn end after which a failed write has begun a new segment.
    pub fn read(&mut self) -> Lines {
        let mut lines = Lines::default();
        let entries = std::fs::read_dir(&self.dir).unwrap().map(|entry| entry.unwrap().path());
        let is_slot = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().parse::<u8>().is_ok();
        for dir in entries.filter(is_slot) {
            self.slots.entry(dir.clone()).or_insert_with(Slot::new).read(&dir, &mut lines);
        }
        lines
    }
}

// === impl Slot ===

impl Slot {
    fn new() -> Self {
        let previous = [0; 32];
        let covered = Sha256::new_with_prefix(previous);
        Self { last: 0, chain: Some(Chain { first: 1, previous: hex(&previous), covered }) }
    }

    /// Reads the records after the last one that was read.
    fn read(&mut self, dir: &Path, lines: &mut Lines) {
        let segments = segments(dir);
        for (index, (_, path)) in segments.iter().enumerate() {
            // From where a newer segment begins, what an older one holds is void.
            let end = segments[index + 1..].iter().map(|(first, _)| *first).min().unwrap_or(u64::MAX);
            if end <= self.last + 1 {
                continue;
            }
            for line in text(path).split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let Some(record) = whole(line) else {
                    lines.damaged.push(format!("{}: {:.80}", path.display(), line));
                    continue;
                };
                let seq = record["seq"].as_u64().unwrap();
                if seq > self.last && seq < end {
                    self.take(seq, line, record, lines);
                } else if seq < end && lines.records.iter().any(|earlier| same_number(earlier, &record)) {
                    lines.damaged.push(format!("{}: number {seq} is there twice", path.display()));
                }
            }
        }
    }

    fn take(&mut self, seq: u64, line: &str, record: Value, lines: &mut Lines) {
        if seq > self.last + 1 {
            lines.lacking += seq - self.last - 1;
            self.chain = None;
        }
        self.last = seq;
        if record["kind"] == "seal" {
            if self.chain.take().is_some_and(|chain| !chain.holds(seq, &record)) {
                lines.damaged.push(format!("seal {seq} does not hold"));
            }
            self.chain = Some(Chain::after(seq, line, &record));
        } else if let Some(chain) = &mut self.chain {
            chain.covered.update(line);
        }
        lines.records.push(record);
    }
}

// === impl Chain ===

impl Chain {
    fn after(seq: u64, line: &str, seal: &Value) -> Self {
        let previous = seal["hash"].as_str().unwrap().to_owned();
        let bytes = (0..previous.len()).step_by(2).map(|at| u8::from_str_radix(&previous[at..at + 2], 16).unwrap());
        let covered = Sha256::new_with_prefix(bytes.collect::<Vec<_>>()).chain_update(line);
        Self { first: seq, previous, covered }
    }

    fn holds(self, seq: u64, seal: &Value) -> bool {
        (seal["first"].as_u64(), seal["last"].as_u64()) == (Some(self.first), Some(seq - 1))
            && seal["previous"] == self.previous
            && seal["hash"] == hex(&self.covered.finalize())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn same_number(one: &Value, other: &Value) -> bool {
    one["seq"] == other["seq"] && one["journal"] == other["journal"]
}

/// The segments of a slot in their order; of one that is there in both forms, the plain one.
fn segments(slot: &Path) -> Vec<(u64, PathBuf)> {
    let mut segments = BTreeMap::new();
    let mut paths: Vec<PathBuf> = std::fs::read_dir(slot).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let first = name.strip_suffix(".ndjson.zst").or_else(|| name.strip_suffix(".ndjson"));
        if let Some(first) = first.and_then(|digits| digits.parse().ok()) {
            segments.entry(first).or_insert(path);
        }
    }
    segments.into_iter().collect()
}

fn text(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap();
    let is_compressed = path.extension().is_some_and(|extension| extension == "zst");
    let bytes = if is_compressed { zstd::stream::decode_all(&*bytes).unwrap() } else { bytes };
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The record of a line, if its end is there and its checksum is right.
fn whole(line: &str) -> Option<Value> {
    let (body, end) = line.split_at_checked(line.rfind(CRC_MEMBER)?)?;
    let is_whole = end == format!("{CRC_MEMBER}{:08x}\"}}\n", crc32fast::hash(body.as_bytes()));
    is_whole.then(|| serde_json::from_str(line).unwrap())
}
