//! What the journal promises of one request, one change, one line: each in the plainest case, on real processes.

use crate::harness::client::head;
use crate::harness::gateway::ENTITY;
use crate::harness::{Client, Gateway, Key, Reply, Trace, Upstream, eventually};
use keygate::audit::reader::{Follow, SYNCED_FILE};
use keygate::audit::segment;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write as _};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

/// Requests of every kind of end: what to ask, and the status of the answer.
const ENDS: [(&str, &str, u16); 5] = [
    ("GET", "orders/whole", 200),
    ("GET", "orders/chunked", 200),
    ("HEAD", "orders/whole", 200),
    ("DELETE", "orders/empty", 204),
    ("GET", "products/refused", 403),
];

fn erp() -> Upstream {
    Upstream::start(|received| match received.target().rsplit('/').next() {
        Some("empty") => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
        Some("chunked") => {
            Reply::raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
        }
        Some("held") => Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))),
        _ => Reply::ok("good"),
    })
}

/// A slot's records, in the order of their numbers.
fn slot_records(slot: &Path) -> Vec<Value> {
    let mut follow = Follow::new(slot.to_owned());
    let mut records = Vec::new();
    follow.read(|line| records.push(serde_json::from_str(line.text).unwrap())).unwrap();
    assert_eq!(follow.take_faults(), []);
    records
}

fn kill(gateway: &mut Gateway) {
    gateway.signal("KILL");
    gateway.wait();
}

fn send(gateway: &Gateway, key: &Key, method: &str, rest: &str) -> Client {
    let mut client = gateway.client();
    client.send(head(method, &gateway.path(rest), &[&key.bearer()]));
    client
}

/// Whether a record has these members, with these values.
#[track_caller]
fn assert_has(record: &Value, members: &Value) {
    for (name, wanted) in members.as_object().unwrap() {
        assert_eq!(record.get(name), Some(wanted), "{name} of {record:#}");
    }
}

#[test]
fn j1_two_gateways_on_one_directory_have_a_slot_each_and_the_next_start_recovers_both() {
    let (upstream, shared) = (erp(), tempfile::tempdir().unwrap());
    let audit = format!("[audit]\ndir = \"{}\"", shared.path().display());
    let mut gateways = [(); 2].map(|()| Gateway::builder().live(&upstream).toml(&audit).start());
    let (mut ids, mut held) = (Vec::new(), Vec::new());
    for gateway in &gateways {
        let (key, before) = (gateway.key(&["orders:read"]), upstream.received().len());
        assert_eq!(gateway.client().request("GET", &gateway.path("orders/1"), &[&key.bearer()]).status, 200);
        held.push(send(gateway, &key, "GET", "orders/held"));
        eventually("it is at the upstream", || (upstream.received().len() == before + 2).then_some(()));
        let received = upstream.received().into_iter().skip(before);
        ids.push(received.map(|received| received.header("x-request-id").unwrap()).collect::<Vec<_>>());
    }
    gateways.iter_mut().for_each(kill);
    gateways[0].restart();
    for (slot, ids) in ids.iter().enumerate() {
        let records = slot_records(&shared.path().join(slot.to_string()));
        let seqs: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
        assert_eq!(seqs, (1..=records.len() as u64).collect::<Vec<_>>());
        assert!(records.iter().all(|record| record["journal"] == format!("edge-1/{slot}")));
        let at_upstream = records.iter().filter(|record| record["upstream"] == "erp" && record["entity_id"] == ENTITY);
        let mut fates: Vec<_> = at_upstream.map(|record| (record["request_id"].as_str(), &record["reason"])).collect();
        // Each worker's records are recovered in turn, so the one that died may come first.
        fates.sort_by_key(|(_, reason)| reason.is_string());
        let died = json!("gateway_died");
        assert_eq!(fates, [(Some(&*ids[0]), &Value::Null), (Some(&*ids[1]), &died)], "slot {slot}");
        // The new process goes on in the lowest one that is free.
        let starts = records.iter().filter(|record| record["kind"] == "start").count();
        assert_eq!(starts, if slot == 0 { 2 } else { 1 });
    }
}

#[test]
fn j2_a_line_is_at_most_4_kib_whatever_a_request_holds() {
    let names = "query_names = [\"q\"]";
    let gateway = Gateway::builder().live(&erp()).workers(1).toml(&format!("[audit]\n{names}")).start();
    let (name, args) =
        ("キ".repeat(21), ["keys", "create", "--entity", "acme", "--scope", "orders:read", "--mode", "live"]);
    let made = gateway.json(&[&args[..], &["--output", "json", "--name", &name]].concat());
    let key = Key { id: made["id"].as_str().unwrap().to_owned(), text: made["key"].as_str().unwrap().to_owned() };
    gateway.wait_until_known(&key);
    let lines = [
        &key.bearer(),
        &format!("User-Agent: {}", "\"".repeat(3000)),
        &format!("X-Request-Id: {}", "i".repeat(128)),
        &format!("Host: {}", "h".repeat(250)),
    ];
    let path = gateway.path(&format!("orders/{}?q={}", "p".repeat(3000), "q".repeat(3000)));
    let answer = gateway.client().request("GET", &path, &lines.map(|line| line.as_str()));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let record = gateway.record_of(answer.header("x-request-id").unwrap());
    assert!(["path", "user_agent", "host", "query"].iter().all(|name| record[name].as_str().unwrap().len() > 50));
    let mut longest = 0;
    Follow::new(gateway.dir.path().join("data/audit/0"))
        .read(|line| longest = longest.max(line.text.len() + 1))
        .unwrap();
    assert!((1000..=4096).contains(&longest), "{longest} bytes");
}

#[test]
fn j3_a_request_of_which_the_upstream_has_seen_a_byte_leaves_its_record_when_the_gateway_is_killed() {
    static GATEWAY: OnceLock<Pid> = OnceLock::new();
    // As soon as its head is there.
    let upstream = Upstream::start(|received| {
        if received.target().ends_with("deadly") {
            kill_process(*GATEWAY.get().unwrap(), Signal::KILL).unwrap();
        }
        Reply::ok("good")
    });
    let mut gateway = Gateway::before(&upstream);
    let key = gateway.key(&["orders:read"]);
    GATEWAY.set(Pid::from_raw(gateway.pid().try_into().unwrap()).unwrap()).unwrap();
    let answer = send(&gateway, &key, "GET", "orders/deadly").try_read("GET");
    assert_eq!(answer, None);
    gateway.wait();
    gateway.restart();
    let expected = json!({
        "request_id": upstream.only().header("x-request-id").unwrap(), "decision": "allow", "reason": "gateway_died",
        "status": null, "bytes_in": null, "bytes_out": null, "duration_us": null, "key_id": key.id, "entity_id": ENTITY,
        "client_ip": "127.0.0.1", "method": "GET", "route": "/v1/entities/{entity_id}/orders/**", "upstream": "erp",
    });
    let path = gateway.path("orders/deadly");
    let records = || gateway.records().into_iter().filter(|record| record["path"] == path).collect::<Vec<_>>();
    assert_eq!(records().len(), 1, "{:#?}", records());
    assert_has(&records()[0], &expected);
}

#[test]
fn j4_the_mark_moves_only_after_the_sync_of_what_was_written_and_of_a_new_segments_name() {
    let gateway = Gateway::builder().live(&erp()).toml("[audit]\nrotate = { age = \"1s\" }").start();
    let key = gateway.key(&["orders:read"]);
    let calls = "trace=write,pwrite64,fdatasync,fsync,?rename,?renameat,?renameat2,clock_nanosleep";
    let trace = Trace::attach(&gateway, "journal", &["-y", "-e", calls]);
    let slot = gateway.dir.path().join("data/audit/0");
    let before = segment::list(&slot).unwrap().len();
    eventually("the segments of three seconds", || {
        assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
        (segment::list(&slot).unwrap().len() > before + 2).then_some(())
    });
    let trace = trace.end();
    // The thread may have been in the middle of it.
    let (mut marks, mut names, mut written) = (0, 0, true);
    judge(&trace, &slot, |call, rest, unsynced| match call {
        "pwrite64" if rest.contains(&format!("/{SYNCED_FILE}>")) => {
            marks += 1;
            assert!(unsynced.is_empty(), "the mark moves before {unsynced:?}:\n{trace}");
            assert!(std::mem::take(&mut written), "the mark moves without anything that was written:\n{trace}");
        }
        "write" => written = true,
        _ if call.starts_with("rename") => names += 1,
        _ => {}
    });
    assert!(marks > 10 && names >= 2, "{marks} marks and {names} segments:\n{trace}");
}

/// Gives every call of a trace to `judge`, with the files and the directory of which something is not synced at that moment.
fn judge(trace: &str, dir: &Path, mut judge: impl FnMut(&str, &str, &BTreeSet<String>)) {
    let dir = dir.canonicalize().unwrap().to_string_lossy().into_owned();
    let mut unsynced = BTreeSet::new();
    for (call, rest) in trace.lines().filter_map(|line| line.split_once('(')) {
        judge(call, rest, &unsynced);
        let path = rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        match call {
            "write" => _ = unsynced.insert(path.to_owned()),
            "fdatasync" | "fsync" if rest.ends_with("= 0") => _ = unsynced.remove(path),
            _ if call.starts_with("rename") => _ = unsynced.insert(dir.clone()),
            _ => {}
        }
    }
}

#[test]
fn j7_a_closed_segment_goes_only_when_its_compressed_form_and_the_name_of_it_are_synced() {
    let gateway = Gateway::builder().live(&erp()).toml("[audit]\nrotate = { age = \"1s\" }").start();
    let key = gateway.key(&["orders:read"]);
    let calls = "trace=write,fdatasync,fsync,?rename,?renameat,?renameat2,?unlink,unlinkat,futex";
    let trace = Trace::attach(&gateway, "keeper", &["-y", "-e", calls]);
    let slot = gateway.dir.path().join("data/audit/0");
    let compressed = || segment::list(&slot).unwrap().iter().filter(|(_, path)| segment::is_compressed(path)).count();
    let before = compressed();
    eventually("two segments are compressed", || {
        assert_eq!(gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status, 200);
        (compressed() >= before + 2).then_some(())
    });
    let trace = trace.end();
    let (mut gone, mut is_named) = (0, false);
    judge(&trace, &slot, |call, rest, unsynced| match call {
        _ if call.starts_with("rename") => {
            assert!(unsynced.is_empty(), "a name is given before {unsynced:?} is synced:\n{trace}");
            is_named = true;
        }
        _ if call.starts_with("unlink") && rest.contains(".ndjson\"") => {
            assert!(unsynced.is_empty(), "the original goes before {unsynced:?} is synced:\n{trace}");
            assert!(std::mem::take(&mut is_named), "the original goes before there is another form of it:\n{trace}");
            gone += 1;
        }
        _ => {}
    });
    assert!(gone >= 1, "no segment went:\n{trace}");
}

/// An upstream that sends the last part of some answers, and all of others, when it is told to go on.
fn waiting() -> (Upstream, Sender<()>) {
    let (sender, go_on) = channel();
    let go_on = Arc::new(Mutex::new(go_on));
    let upstream = Upstream::start(move |received| {
        let go_on = Arc::clone(&go_on);
        let wait = move || go_on.lock().unwrap().recv().unwrap();
        match received.target().rsplit('/').next() {
            Some("empty") => Reply::raw("HTTP/1.1 204 No Content\r\n\r\n"),
            Some("parts") => Reply::Custom(Box::new(move |stream| {
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n").unwrap();
                wait();
                stream.write_all(b"4\r\ndefg\r\n0\r\n\r\n").unwrap();
            })),
            Some("late") => {
                wait();
                Reply::raw("HTTP/1.1 204 No Content\r\n\r\n")
            }
            _ => Reply::ok("good"),
        }
    });
    (upstream, sender)
}

#[test]
fn j5_the_record_is_there_when_a_gateway_is_killed_as_it_hands_over_the_last_of_an_answer() {
    let (upstream, sender) = waiting();
    let mut gateway = Gateway::builder().live(&upstream).workers(1).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    // How often the worker sends something until the last of the answer: the first time, to the upstream.
    let ends = [
        ("GET", "orders/whole", 2, json!({"status": 200, "reason": null, "bytes_out": 4})),
        ("HEAD", "orders/head", 2, json!({"status": 200, "reason": null, "bytes_out": 0})),
        ("DELETE", "orders/empty", 2, json!({"status": 204, "reason": null, "bytes_out": 0})),
        ("GET", "products/refused", 1, json!({"status": 403, "reason": "insufficient_scope"})),
        ("GET", "orders/parts", 3, json!({"status": 200, "reason": null, "bytes_out": 7})),
    ];
    for (method, rest, sends, expected) in ends {
        let received = die_sending(&mut gateway, &key, method, rest, sends, &sender);
        assert!(!received.contains("defg") && (received.is_empty() || rest == "orders/parts"), "{rest}: {received:?}");
        gateway.restart();
        let path = gateway.path(rest);
        let records: Vec<_> = gateway.records().into_iter().filter(|record| record["path"] == path).collect();
        assert_eq!(records.len(), 1, "{method} {rest}: {records:#?}");
        assert_has(&records[0], &expected);
    }
}

/// Has the gateway killed as it asks the kernel for the `sends`th time to send something, which it does not do any more; gives
/// what the client has received.
fn die_sending(gateway: &mut Gateway, key: &Key, method: &str, rest: &str, sends: usize, go_on: &Sender<()>) -> String {
    let inject = format!("inject=sendto,sendmsg,writev:signal=KILL:when={sends}");
    let trace = Trace::attach(
        gateway,
        "worker-0",
        &["-e", "trace=?epoll_wait,epoll_pwait,sendto,sendmsg,writev", "-e", &inject],
    );
    let client = send(gateway, key, method, rest);
    let (mut received, mut part) = (Vec::new(), [0; 1024]);
    while let Ok(count @ 1..) = client.stream().read(&mut part) {
        received.extend_from_slice(&part[..count]);
        if received.windows(3).any(|window| window == b"abc") {
            _ = go_on.send(());
        }
    }
    gateway.wait();
    drop(trace);
    String::from_utf8(received).unwrap()
}

#[test]
fn j5_synced_holds_the_end_of_every_answer_until_its_record_is_in_the_files() {
    let gateway = Gateway::builder().live(&erp()).workers(1).toml("[audit]\ndurability = \"synced\"").start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let slot = gateway.dir.path().join("data/audit/0");
    let mut client = gateway.client();
    for (method, rest, status) in std::iter::repeat_n(ENDS, 20).flatten() {
        let answer = client.request(method, &gateway.path(rest), &[&key.bearer()]);
        assert_eq!(answer.status, status);
        let mark = u64::from_le_bytes(std::fs::read(slot.join(SYNCED_FILE)).unwrap().try_into().unwrap());
        let id = answer.header("x-request-id").unwrap();
        let record = slot_records(&slot).into_iter().find(|record| record["request_id"] == id);
        let record = record.unwrap_or_else(|| panic!("{method} {rest} is answered and not in the files"));
        assert_has(&record, &json!({"status": status}));
        assert!(record["seq"].as_u64().unwrap() <= mark, "{method} {rest} is answered and not synced");
    }
}

#[test]
fn j8_while_syncs_fail_no_answer_that_must_be_synced_is_ended_or_takes_for_ever() {
    let (upstream, go_on) = waiting();
    let gateway = Gateway::builder().live(&upstream).workers(1).toml("[audit]\ndurability = \"synced\"").start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let [mut parts, mut late] = ["parts", "late"].map(|rest| send(&gateway, &key, "GET", &format!("orders/{rest}")));
    eventually("both are at the upstream", || (upstream.received().len() == 2).then_some(()));
    let calls = "trace=fdatasync,fsync,clock_nanosleep";
    let trace = Trace::attach(&gateway, "journal", &["-e", calls, "-e", "inject=fdatasync,fsync:error=EIO"]);
    (0..2).for_each(|_| go_on.send(()).unwrap());
    let (parts, late) = (parts.read("GET"), late.read("GET"));
    assert_eq!((parts.status, &parts.body[..], parts.complete), (200, &b"abc"[..], false));
    assert_eq!((late.status, late.code().as_str()), (503, "audit_unavailable"));
    trace.end();
    // What was broken off is recorded all the same.
    for (rest, status) in [("orders/parts", 200), ("orders/late", 204)] {
        let path = gateway.path(rest);
        let record = eventually("the record", || gateway.records().into_iter().find(|record| record["path"] == path));
        assert_has(&record, &json!({"status": status, "reason": null}));
    }
}

/// The changes in a gateway's journal, each as what every gateway must say of it.
fn changes(gateway: &Gateway) -> Vec<Value> {
    let records = gateway.records().into_iter().filter(|record| record["kind"] == "change");
    let members = ["change_seq", "changed_at", "actor", "action", "before", "after"];
    records.map(|record| members.iter().map(|name| record[name].clone()).collect()).collect()
}

#[test]
fn j9_every_gateway_journals_a_change_once_and_the_same_way_also_one_that_was_away() {
    let upstream = erp();
    let first = Gateway::before(&upstream);
    let mut second = Gateway::builder().live(&upstream).beside(&first, "edge-2").start();
    let key = first.key(&["orders:read"]);
    let of_key = |gateway: &Gateway| -> Vec<Value> {
        changes(gateway).into_iter().filter(|change| change[5]["id"] == key.id.as_str()).collect()
    };
    eventually("both tell of its making", || [&first, &second].iter().all(|one| of_key(one).len() == 1).then_some(()));
    kill(&mut second);
    let journal = second.dir.path().join("data/audit/0");
    let before = slot_records(&journal).len();
    // Made where no gateway runs.
    assert!(second.run(&["keys", "revoke", &key.id, "--yes"]).status.success());
    assert_eq!(slot_records(&journal).len(), before, "a command has no journal");
    second.restart();
    for _ in 0..2 {
        eventually("both tell of its end", || [&first, &second].iter().all(|one| of_key(one).len() == 2).then_some(()));
        assert_eq!(of_key(&first), of_key(&second));
        let [made, ended] = <[Value; 2]>::try_from(of_key(&first)).unwrap();
        assert_eq!([&made[2], &made[3], &made[4]], [&json!("cli:tester"), &json!("key.created"), &Value::Null]);
        assert_eq!([&ended[2], &ended[3], &ended[4]], [&json!("cli:tester"), &json!("key.revoked"), &made[5]]);
        // Nothing of it comes again after another start.
        second.restart();
        let later = second.client().request("GET", "/v1/status", &[]);
        second.record_of(later.header("x-request-id").unwrap());
    }
}
