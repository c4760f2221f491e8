//! The commands, on copies and behind a running gateway.

use super::journals::{Written, three, time_of};
use crate::harness::gateway::keygate;
use crate::harness::{Gateway, Upstream, eventually};
use keygate::audit::reader::SYNCED_FILE;
use keygate::audit::segment::{self, seq_of};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Runs the command where there is neither a gateway nor a configuration file.
fn run(dir: &Path, args: &[&str]) -> Output {
    keygate(dir).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_copied_directory_is_verified_without_a_gateway_its_configuration_or_its_store() {
    let written = three();
    let elsewhere = tempfile::tempdir().unwrap();
    for dir in [written.root.path(), &written.slot()] {
        let output = run(elsewhere.path(), &["audit", "verify", dir.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let table = text(&output.stdout);
        let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["edge-1/0", "1", "340", "340", "3", "340", "0"], "{table}");
    }
    let output = run(elsewhere.path(), &["audit", "verify", elsewhere.path().to_str().unwrap()]);
    assert_eq!((output.status.code(), text(&output.stderr).contains("no journal")), (Some(1), true));
    assert_eq!(run(elsewhere.path(), &["audit", "verify"]).status.code(), Some(78));
}

#[test]
fn faults_are_told_as_words_and_as_data_and_by_the_exit_code() {
    let written = three();
    fs::remove_file(written.path(1)).unwrap();
    let (seq, hash) = written.last_seal;
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    let (dir, elsewhere) = (written.root.path().to_str().unwrap(), tempfile::tempdir().unwrap());
    let known = format!("edge-1/0={seq}:{hex}");
    let head = ["audit", "verify", dir, "--head", &known, "--head", "edge-9/3=12", "--output"];
    let output = run(elsewhere.path(), &[&head[..], &["json"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let journals: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(journals[0]["journal"], "edge-1/0");
    assert_eq!(journals[0]["faults"], 1);
    let found = &journals[0]["findings"][0];
    assert_eq!((&found["fault"], &found["first"], &found["last"]), (&"missing".into(), &21.into(), &320.into()));
    assert_eq!(journals[1]["findings"][0]["fault"], "cut");
    let words = text(&output.stderr);
    assert!(
        words.contains("fault: records 21 to 320 are missing") && words.contains("edge-9/3 is not here"),
        "{words}"
    );
    let lines = run(elsewhere.path(), &[&head[..], &["ndjson"]].concat());
    assert_eq!(text(&lines.stdout).lines().count(), 2);
    assert_eq!(run(elsewhere.path(), &["audit", "verify", dir, "--head", "edge-1/0"]).status.code(), Some(2));
}

#[test]
fn an_export_reads_no_segment_that_is_older_than_its_period_but_one() {
    let written = Written::of("edge-1/0", &[20, 30, 40, 20]);
    fs::write(written.path(0), "no record").unwrap();
    fs::File::options().append(true).open(written.path(0)).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    let dir = configured(&written);
    for (since, code) in [(20, 1), (51, 0), (95, 0), (200, 0)] {
        let output = run(dir.path(), &["audit", "export", "--since", &time_of(since).to_string()]);
        assert_eq!(output.status.code(), Some(code), "{since}: {}", text(&output.stderr));
        assert_eq!(exported(&output), (since.max(21)..=110).collect::<Vec<_>>());
    }
}

/// A directory with a configuration whose journal is this one.
fn configured(written: &Written) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n[upstreams.erp]\nlive = [\"http://127.0.0.1:9\"]\n[[routes]]\npath = \"/\"\n\
         upstream = \"erp\"\npublic = true\n[audit]\ndir = \"{}\"\n",
        written.root.path().display()
    );
    fs::write(dir.path().join("gateway.toml"), config).unwrap();
    dir
}

fn exported(output: &Output) -> Vec<u64> {
    text(&output.stdout).lines().map(|line| seq_of(line.as_bytes()).unwrap()).collect()
}

#[test]
fn an_export_is_the_journals_lines_as_they_are_and_of_the_period_alone() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    let other = Written::of("edge-1/1", &[20]);
    let lines: Vec<u8> = (0..3).flat_map(|index| fs::read(written.path(index)).unwrap()).collect();
    let mut written = written;
    written.compress(1);
    fs::rename(other.slot(), written.root.path().join("1")).unwrap();
    let dir = configured(&written);
    let output = run(dir.path(), &["audit", "export", "--since", "2026-01-01T00:00:00Z", "--journal", "edge-1/0"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(output.stdout == lines);
    assert_eq!(text(&output.stderr), "");
    let (since, until) = (time_of(15).to_string(), time_of(60).to_string());
    let output = run(dir.path(), &["audit", "export", "--since", &since, "--until", &until]);
    assert_eq!(exported(&output), (15..=60).chain(15..=20).collect::<Vec<_>>());
    assert_eq!(run(dir.path(), &["audit", "export", "--since", "soon"]).status.code(), Some(1));
    assert_eq!(run(dir.path(), &["audit", "verify"]).status.code(), Some(0));
}

#[test]
fn an_export_fails_for_a_fault_in_its_period_and_for_no_other() {
    let written = Written::of("edge-1/0", &[20, 30, 40]);
    fs::remove_file(written.path(1)).unwrap();
    let dir = configured(&written);
    for (since, until, code) in [(1, 20, 1), (1, 19, 0), (51, 90, 1), (52, 90, 0), (25, 45, 1), (1, 90, 1)] {
        let (since, until) = (time_of(since).to_string(), time_of(until).to_string());
        let output = run(dir.path(), &["audit", "export", "--since", &since, "--until", &until]);
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{since} {until}: {words}");
        assert_eq!(words.contains("records 21 to 50 are missing"), code == 1, "{words}");
    }
}

#[test]
fn j7_a_running_gateways_journal_is_compressed_and_stays_whole_through_kills() {
    let upstream = Upstream::named("erp");
    let mut gateway = Gateway::builder().live(&upstream).toml("[audit]\nrotate = { age = \"1s\" }").start();
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    let slot = gateway.dir.path().join("data/audit/0");
    for _ in 0..2 {
        eventually("closed segments are compressed", || {
            assert_eq!(gateway.client().request("GET", &path, &[&key.bearer()]).status, 200);
            let segments = segment::list(&slot).unwrap();
            (segments.len() > 2 && segments.iter().filter(|(_, path)| !segment::is_compressed(path)).count() == 1)
                .then_some(())
        });
        let output = gateway.run(&["audit", "verify"]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        gateway.restart();
    }
    let served = gateway.records().iter().filter(|record| record["status"] == 200).count();
    assert_eq!(served, upstream.received().len());
    let output = gateway.run(&["audit", "export", "--since", "1h"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(exported(&output), (1..=exported(&output).len() as u64).collect::<Vec<_>>());
}

#[test]
fn j7_what_the_gateways_told_the_store_shows_a_tail_that_was_cut_off() {
    let upstream = Upstream::named("erp");
    let mut gateway = Gateway::before(&upstream);
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    for _ in 0..20 {
        assert_eq!(gateway.client().request("GET", &path, &[&key.bearer()]).status, 200);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.wait(), Some(0));
    let slot = gateway.dir.path().join("data/audit/0");
    let (first, newest) = segment::list(&slot).unwrap().pop().unwrap();
    let lines = fs::read_to_string(&newest).unwrap();
    let last = first + lines.lines().count() as u64 - 1;
    let verified = || gateway.run(&["audit", "verify"]);
    assert_eq!(verified().status.code(), Some(0), "{}", text(&verified().stderr));
    // At the end of a line, with what the slot itself knows.
    fs::write(&newest, lines.split_inclusive('\n').take(5).collect::<String>()).unwrap();
    fs::remove_file(slot.join(SYNCED_FILE)).unwrap();
    let words = text(&verified().stderr);
    assert_eq!(verified().status.code(), Some(1), "{words}");
    assert!(
        words.contains(&format!("ends with record {}, and it is known to have come to {last}", first + 4)),
        "{words}"
    );
    // Whoever has the files alone cannot see it.
    let copied = gateway.run(&["audit", "verify", slot.to_str().unwrap()]);
    assert_eq!(copied.status.code(), Some(0), "{}", text(&copied.stderr));
}
