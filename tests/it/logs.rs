//! `keygate logs` reads back what the journal holds, and says what it cannot.

use crate::harness::gateway::{ENTITY, Key, keygate};
use crate::harness::{Gateway, PATIENCE, Upstream, eventually};
use keygate::audit::segment::{Kind, write_line};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

const ALL: &str = "1000000";

/// A journal at rest, with records that differ in everything that a filter asks for.
struct Journal {
    gateway: Gateway,
    key: Key,
    /// Everything that was written.
    all: Vec<Value>,
    /// What is shown of it unless more is asked for.
    records: Vec<Value>,
}

// === impl Journal ===

impl Journal {
    fn new() -> Self {
        let gateway = Gateway::before(&Upstream::named("erp"));
        let key = gateway.key(&["orders:read", "orders:write", "products:read"]);
        let stranger = stranger(&gateway);
        let mut client = gateway.client();
        for _ in 0..30 {
            for (method, rest) in
                [("GET", "orders/1"), ("POST", "orders/2"), ("GET", "products/3"), ("PUT", "products")]
            {
                client.request(method, &gateway.path(rest), &[&key.bearer(), "Content-Length: 0"]);
            }
        }
        for line in [stranger.bearer(), "X-No: key".to_owned()] {
            client.request("GET", &gateway.path("orders/1"), &[&line]);
        }
        let mut journal = Self { gateway, key, all: Vec::new(), records: Vec::new() };
        journal.stop();
        journal
    }

    fn stop(&mut self) {
        self.gateway.signal("TERM");
        assert_eq!(self.gateway.wait(), Some(0));
        self.all = self.gateway.records();
        self.records = self.all.iter().filter(|record| record["kind"] != "seal").cloned().collect();
        assert!(self.records.len() < self.all.len(), "a journal that was closed ends in a seal");
    }

    /// The newest segment.
    fn segment(&self) -> PathBuf {
        let dir = self.gateway.dir.path().join("data/audit/0");
        let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "ndjson")).max().unwrap()
    }

    fn logs(&self, args: &[&str]) -> Vec<Value> {
        let output = self.gateway.run(&[&["logs", "--output", "ndjson"], args].concat());
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Whether these arguments select what `wants` does: some, not all, and nothing else.
    #[track_caller]
    fn selects(&self, args: &[&str], wants: impl Fn(&Value) -> bool) {
        self.selects_of(&self.records, args, wants);
    }

    /// The same of these records.
    #[track_caller]
    fn selects_of(&self, records: &[Value], args: &[&str], wants: impl Fn(&Value) -> bool) {
        let wanted: Vec<_> = records.iter().filter(|record| wants(record)).cloned().collect();
        assert!(!wanted.is_empty() && wanted.len() < records.len(), "{args:?} tests nothing");
        assert_eq!(self.logs(&[args, &["--limit", ALL]].concat()), wanted, "{args:?}");
    }
}

/// A key of another entity.
fn stranger(gateway: &Gateway) -> Key {
    assert!(gateway.run(&["entities", "create", "--code", "other"]).status.success());
    let create = ["keys", "create", "--entity", "other", "--name", "n", "--mode", "live", "--scope", "orders:read"];
    let made = gateway.json(&[&create[..], &["--output", "json"]].concat());
    let key = Key { id: made["id"].as_str().unwrap().into(), text: made["key"].as_str().unwrap().into() };
    gateway.wait_until_known(&key);
    key
}

fn seqs(records: &[Value]) -> Vec<u64> {
    records.iter().map(|record| record["seq"].as_u64().unwrap()).collect()
}

#[test]
fn each_filter_selects_exactly_what_it_says() {
    let journal = Journal::new();
    let id = journal.key.id.as_str();
    journal.selects(&["--key", id], |one| one["key_id"] == id);
    journal.selects(&["--entity", "acme"], |one| one["entity_id"] == ENTITY);
    journal.selects(&["--entity", "other"], |one| one["entity_id"].is_string() && one["entity_id"] != ENTITY);
    journal.selects(&["--status", "403"], |one| one["status"] == 403);
    journal.selects(&["--status", "4xx"], |one| (400..500).contains(&one["status"].as_u64().unwrap_or(0)));
    journal.selects(&["--decision", "allow"], |one| one["decision"] == "allow");
    journal.selects(&["--decision", "deny"], |one| one["decision"] == "deny");
    journal.selects(&["--reason", "entity_mismatch"], |one| one["reason"] == "entity_mismatch");
    journal.selects(&["--method", "POST"], |one| one["method"] == "POST");
    journal.selects(&["--method", "post"], |one| one["method"] == "POST");
    let prefix = journal.gateway.path("products");
    journal.selects(&["--path", &prefix], |one| one["path"].as_str().unwrap_or_default().starts_with(&prefix));
    journal.selects(&["--method", "GET", "--status", "2xx", "--path", &prefix], |one| {
        one["method"] == "GET" && one["status"] == 200 && one["path"].as_str().unwrap().starts_with(&prefix)
    });
    journal.selects(&["--mode", "live"], |one| one["mode"] == "live");
    let of_client = |one: &Value| one["client_ip"] == "127.0.0.1";
    journal.selects(&["--ip", "127.0.0.0/8"], of_client);
    journal.selects(&["--ip", "127.0.0.1"], of_client);
    let one = journal.records.iter().find(|one| one["method"] == "PUT").unwrap();
    journal.selects(&["--request-id", one["request_id"].as_str().unwrap()], |other| other == one);
    let route = one["route"].as_str().unwrap();
    journal.selects(&["--route", route], |one| one["route"] == route);
    let slower = |one: &Value| one["duration_us"].as_u64().is_some_and(|micros| micros > 1000);
    let expected: Vec<_> = journal.records.iter().filter(|one| slower(one)).cloned().collect();
    assert_eq!(journal.logs(&["--slower-than", "1ms", "--limit", ALL]), expected);
    for nothing in
        [["--reason", "key_revoked"], ["--mode", "test"], ["--ip", "192.0.2.0/24"], ["--request-id", "req_x"]]
    {
        assert_eq!(journal.logs(&nothing), Vec::<Value>::new(), "{nothing:?}");
    }
}

#[test]
fn kinds_are_selected_and_seals_are_shown_to_who_asks_for_them() {
    let journal = Journal::new();
    for kind in ["request", "change", "start", "seal"] {
        journal.selects_of(&journal.all, &["--kind", kind], |one| one["kind"] == kind);
    }
    let two = ["--kind", "seal", "--kind", "start"];
    journal.selects_of(&journal.all, &two, |one| one["kind"] == "seal" || one["kind"] == "start");
    assert_eq!(journal.logs(&["--kind", "all", "--limit", ALL]), journal.all);
    assert_eq!(journal.logs(&["--kind", "seal", "--kind", "all", "--limit", ALL]), journal.all);
    let of_key = |one: &Value| one["key_id"] == journal.key.id.as_str();
    journal.selects(&["--kind", "request", "--key", &journal.key.id], of_key);
    assert_eq!(journal.logs(&["--kind", "change", "--key", &journal.key.id]), Vec::<Value>::new());
}

#[test]
fn the_answers_are_the_same_without_the_index() {
    let journal = Journal::new();
    let index = journal.gateway.dir.path().join("data/audit/index.db");
    let ask = || {
        let questions: [&[&str]; 4] = [
            &["--key", &journal.key.id],
            &["--key", &journal.key.id, "--method", "PUT", "--since", "1h"],
            &["--since", "1h", "--limit", "7"],
            &["--until", "1h"],
        ];
        questions.map(|question| journal.logs(question))
    };
    let by_index = ask();
    assert!(by_index[0].len() == 100 && by_index[1].len() == 30, "{by_index:?}");
    std::fs::remove_file(index).expect("a gateway that stopped has written its index");
    assert_eq!(ask(), by_index);
}

#[test]
fn what_a_deleted_entity_did_is_found_by_its_code() {
    let journal = Journal::new();
    assert!(journal.gateway.run(&["entities", "delete", "other", "--yes"]).status.success());
    journal.selects(&["--entity", "other"], |one| one["entity_id"].is_string() && one["entity_id"] != ENTITY);
    // Its code is free for another, which is as good an answer to the question.
    assert!(journal.gateway.run(&["entities", "create", "--code", "other"]).status.success());
    journal.selects(&["--entity", "other"], |one| one["entity_id"].is_string() && one["entity_id"] != ENTITY);
}

#[test]
fn since_selects_what_is_not_older_and_until_what_is() {
    let journal = Journal::new();
    let middle = journal.records[journal.records.len() / 2]["ts"].as_str().unwrap();
    journal.selects(&["--since", middle], |one| one["ts"].as_str().unwrap() >= middle);
    journal.selects(&["--until", middle], |one| one["ts"].as_str().unwrap() < middle);
    assert_eq!(journal.logs(&["--since", middle, "--until", middle]), Vec::<Value>::new());
    assert_eq!(journal.logs(&["--since", "1h", "--limit", ALL]), journal.records);
    assert_eq!(journal.logs(&["--since", "1ms", "--limit", ALL]), Vec::<Value>::new());
}

#[test]
fn the_newest_hundred_are_shown_unless_a_limit_is_given() {
    let journal = Journal::new();
    let newest = |count: usize| &journal.records[journal.records.len() - count..];
    assert_eq!(journal.logs(&[]), newest(100));
    assert_eq!(journal.logs(&["--limit", "3"]), newest(3));
    assert_eq!(journal.logs(&["--limit", ALL]), journal.records);
    let of_key: Vec<_> = journal.records.iter().filter(|one| one["method"] == "PUT").cloned().collect();
    assert_eq!(journal.logs(&["--method", "PUT", "--limit", "2"]), of_key[of_key.len() - 2..]);
}

#[test]
fn pages_follow_each_other_and_the_last_one_says_so() {
    let journal = Journal::new();
    let (mut shown, mut cursor) = (Vec::new(), None::<String>);
    loop {
        let after = cursor.iter().flat_map(|cursor| ["--after", cursor]).collect::<Vec<_>>();
        let args = [&["logs", "--output", "json", "--newest-first", "--limit", "50"], &after[..]].concat();
        let output = journal.gateway.run(&args);
        shown.extend(serde_json::from_slice::<Vec<Value>>(&output.stdout).unwrap());
        let words = String::from_utf8(output.stderr).unwrap();
        cursor = words.trim_end().strip_prefix("there are more: --after ").map(str::to_owned);
        if cursor.is_none() {
            assert_eq!(words, "");
            break;
        }
    }
    shown.reverse();
    assert_eq!(shown, journal.records);
}

#[test]
fn a_filter_that_cannot_be_meant_is_refused() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    for (args, code) in [
        (["--status", "9xx"], 2),
        (["--status", "40"], 2),
        (["--decision", "maybe"], 2),
        (["--since", "yesterday"], 1),
        (["--until", "tomorrow"], 1),
        (["--ip", "10.0.0.1/8"], 2),
        (["--slower-than", "soon"], 2),
        (["--after", "the last one"], 1),
        (["--key", "key_none"], 1),
        (["--entity", "nobody"], 1),
        (["--kind", "requests"], 2),
        (["--reason", "key_revokd"], 2),
        (["--path", "v1/entities"], 2),
    ] {
        let output = gateway.run(&[&["logs"][..], &args].concat());
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn the_three_outputs_show_the_same_records() {
    let journal = Journal::new();
    let run =
        |output| String::from_utf8(journal.gateway.run(&["logs", "--limit", "5", "--output", output]).stdout).unwrap();
    let newest = &journal.records[journal.records.len() - 5..];
    assert_eq!(serde_json::from_str::<Vec<Value>>(&run("json")).unwrap(), newest);
    let table = run("table");
    let rows: Vec<&str> = table.lines().collect();
    assert!(rows[0].starts_with("TIME") && rows.len() == 6, "{table}");
    for (row, record) in rows[1..].iter().zip(newest) {
        assert!(row.starts_with(record["ts"].as_str().unwrap()), "{row}");
        assert!(row.contains(record["path"].as_str().unwrap_or_default()), "{row}");
    }
}

/// A `keygate logs --follow` and the lines it prints.
struct Following {
    child: Child,
    lines: Receiver<String>,
    words: Receiver<String>,
}

impl Following {
    fn start(gateway: &Gateway, args: &[&str]) -> Self {
        let mut command = keygate(gateway.dir.path());
        command.args(["logs", "--follow", "--output", "ndjson"]).args(args).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (lines, words) = (receive(child.stdout.take().unwrap()), receive(child.stderr.take().unwrap()));
        Self { child, lines, words }
    }

    fn next(&self) -> Value {
        serde_json::from_str(&self.lines.recv_timeout(PATIENCE).expect("a record")).unwrap()
    }

    fn warning(&self) -> String {
        self.words.recv_timeout(PATIENCE).expect("a warning")
    }

    /// The most memory it has taken.
    fn peak_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// The lines of a pipe, as they come.
fn receive(pipe: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        BufReader::new(pipe).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
    });
    receiver
}

#[test]
fn following_shows_what_is_written_after_it_began_and_only_what_was_asked_for() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders/1"));
    let ask = |gateway: &Gateway, method| {
        let answer = gateway.client().request(method, &path, &[&key.bearer(), "Content-Length: 0"]);
        answer.header("x-request-id").unwrap().to_owned()
    };
    let before = ask(&gateway, "GET");
    gateway.record_of(&before);
    let following = Following::start(&gateway, &["--path", &path, "--decision", "allow"]);
    assert_eq!(following.next()["request_id"], before.as_str());
    ask(&gateway, "POST");
    let after = ask(&gateway, "GET");
    assert_eq!(following.next()["request_id"], after.as_str());
    // Into the next process's segment.
    gateway.restart();
    let later = ask(&gateway, "GET");
    assert_eq!(following.next()["request_id"], later.as_str());
}

#[test]
fn following_under_load_shows_every_record_once_and_warns_of_nothing() {
    const EACH: usize = 300;
    let gateway = Gateway::before(&Upstream::named("erp"));
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    let following = Following::start(&gateway, &["--kind", "all", "--limit", ALL]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mut client = gateway.client();
            let (bearer, path) = (key.bearer(), &path);
            scope.spawn(move || (0..EACH).for_each(|_| _ = client.request("GET", path, &[&bearer])));
        }
    });
    let (mut shown, mut of_path) = (0, 0);
    while of_path < 3 * EACH {
        let record = following.next();
        shown += 1;
        assert_eq!(record["seq"], shown);
        of_path += usize::from(record["path"] == path.as_str());
    }
    assert_eq!(following.words.try_recv().ok(), None);
}

#[test]
fn j6_j7_a_torn_last_line_is_moved_aside_and_its_number_given_to_nobody_else() {
    let mut journal = Journal::new();
    let (segment, last) = (journal.segment(), *seqs(&journal.all).last().unwrap());
    let content = std::fs::read(&segment).unwrap();
    std::fs::File::options().write(true).open(&segment).unwrap().set_len(content.len() as u64 - 10).unwrap();
    let whole = content[..content.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;

    journal.gateway.restart();
    assert_eq!(std::fs::read(segment.with_extension("torn")).unwrap(), content[whole..content.len() - 10]);
    assert_eq!(std::fs::read(&segment).unwrap(), content[..whole]);
    assert!(journal.gateway.log_text().contains("torn"));
    journal.stop();
    let numbers = seqs(&journal.all);
    // It was synced, so somebody may have read it.
    assert!(!numbers.contains(&last));
    let of_start = journal.all.iter().find(|record| record["seq"] == last + 1).unwrap();
    assert_eq!(of_start["kind"], "start");
    let words = String::from_utf8(journal.gateway.run(&["logs"]).stderr).unwrap();
    assert!(words.contains(&format!("lacks record {last}")) && !words.contains("damaged"), "{words}");
}

#[test]
fn j7_l8_a_damaged_line_is_reported_by_its_range_and_number_and_the_rest_is_read() {
    let mut journal = Journal::new();
    let (segment, mut expected) = (journal.segment(), seqs(&journal.all));
    let mut content = std::fs::read(&segment).unwrap();
    let starts: Vec<usize> = std::iter::once(0)
        .chain(content.iter().enumerate().filter(|one| *one.1 == b'\n').map(|one| one.0 + 1))
        .collect();
    content[starts[40] + 50] ^= 1;
    std::fs::write(&segment, &content).unwrap();
    expected.remove(40);

    let output = journal.gateway.run(&["logs", "--limit", ALL]);
    let words = String::from_utf8(output.stderr).unwrap();
    let range = format!("{} bytes from byte {}", starts[41] - starts[40], starts[40]);
    assert!(words.contains("between records 40 and 42") && words.contains("lacks record 41"), "{words}");
    assert!(words.contains(&range) && words.contains(segment.file_name().unwrap().to_str().unwrap()), "{words}");
    assert_eq!(seqs(&journal.logs(&["--kind", "all", "--limit", ALL])), expected);
    // The damage stays where it is, and numbering goes on after the last record.
    journal.gateway.restart();
    assert_eq!(std::fs::read(&segment).unwrap(), content);
    journal.stop();
    expected.extend(expected.len() as u64 + 2..=journal.all.len() as u64 + 1);
    assert_eq!(seqs(&journal.all), expected);
}

/// A whole line with this number.
fn line(seq: u64) -> Vec<u8> {
    line_of(Kind::Gap, seq)
}

fn line_of(kind: Kind, seq: u64) -> Vec<u8> {
    let mut line = Vec::new();
    write_line(&mut line, kind, "edge-1/0", seq, "cfg", b"\"requests_refused\":1,");
    line
}

#[test]
fn following_tells_what_is_damaged_and_missing_when_it_comes_to_it() {
    let journal = Journal::new();
    let last = *seqs(&journal.all).last().unwrap();
    let following = Following::start(&journal.gateway, &["--kind", "all", "--limit", "1"]);
    assert_eq!(following.next()["seq"], last);
    let mut segment = std::fs::File::options().append(true).open(journal.segment()).unwrap();
    segment.write_all(&[b"no record\n", &line(last + 3)[..]].concat()).unwrap();
    assert_eq!(following.next()["seq"], last + 3);
    let (damage, missing) = (following.warning(), following.warning());
    let range = format!("10 bytes from byte {}", segment.metadata().unwrap().len() - line(last + 3).len() as u64 - 10);
    assert!(damage.contains(&range), "{damage}");
    assert!(damage.ends_with(&format!("between records {last} and {}", last + 3)), "{damage}");
    assert!(missing.ends_with(&format!("lacks records {} to {}", last + 1, last + 2)), "{missing}");
    // Each once: the next words are of the next fault.
    segment.write_all(&line(last + 5)).unwrap();
    assert!(following.warning().ends_with(&format!("lacks record {}", last + 4)));
}

#[test]
fn following_shows_seals_to_who_asks_for_them() {
    let journal = Journal::new();
    let last = *seqs(&journal.all).last().unwrap();
    let (plain, every) = (["--limit", "1"], ["--limit", "1", "--kind", "all"]);
    let (shown, all) = (Following::start(&journal.gateway, &plain), Following::start(&journal.gateway, &every));
    assert_eq!((shown.next()["seq"].as_u64(), all.next()["seq"].as_u64()), (Some(last - 1), Some(last)));
    let mut segment = std::fs::File::options().append(true).open(journal.segment()).unwrap();
    segment.write_all(&[line_of(Kind::Seal, last + 1), line(last + 2)].concat()).unwrap();
    assert_eq!(shown.next()["seq"], last + 2);
    assert_eq!((all.next()["seq"].as_u64(), all.next()["seq"].as_u64()), (Some(last + 1), Some(last + 2)));
}

#[test]
fn a_damaged_stretch_larger_than_memory_should_be_is_passed_over() {
    const STRETCH: u64 = 256 << 20;
    let journal = Journal::new();
    let last = *seqs(&journal.all).last().unwrap();
    let mut segment = std::fs::File::options().append(true).open(journal.segment()).unwrap();
    // Zeros that take no room on the disk.
    segment.set_len(segment.metadata().unwrap().len() + STRETCH).unwrap();
    segment.write_all(&[b"\n", &line(last + 1)[..]].concat()).unwrap();
    let following = Following::start(&journal.gateway, &["--kind", "all", "--limit", "2"]);
    assert_eq!((following.next()["seq"].as_u64(), following.next()["seq"].as_u64()), (Some(last), Some(last + 1)));
    assert!(following.warning().contains(&format!("{} bytes from byte", STRETCH + 1)));
    let peak = following.peak_bytes();
    assert!(peak < STRETCH / 2, "{peak} bytes for a journal with one long damage");
}

#[test]
fn a_segment_that_cannot_be_read_is_named() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let segment = "data/audit/0/00000000000000000900.ndjson";
    std::fs::create_dir(gateway.dir.path().join(segment)).unwrap();
    let output = gateway.run(&["logs"]);
    let words = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(words.contains("cannot read") && words.contains(segment), "{words}");
}

#[test]
fn a_change_with_a_name_in_any_script_is_read_back() {
    let gateway = Gateway::before(&Upstream::named("erp"));
    let names: Vec<String> = (0..3).map(|pad| "x".repeat(pad) + &"キー".repeat(20)).collect();
    for (index, name) in names.iter().enumerate() {
        let code = format!("unit{index}");
        assert!(gateway.run(&["entities", "create", "--code", &code, "--name", name]).status.success());
    }
    eventually("all changes are read", || {
        let records = gateway.records();
        names.iter().all(|name| records.iter().any(|one| one["after"]["name"] == name.as_str())).then_some(())
    });
}
