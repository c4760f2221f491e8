//! The journal through floods, failures and kills: every request is recorded or counted, and no number lacks.

use crate::harness::{Client, Gateway, Upstream, eventually};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

fn id(answer: &crate::harness::Response) -> String {
    answer.header("x-request-id").unwrap().to_owned()
}

/// The sum of a number over all records that have it.
fn sum(records: &[Value], pointer: &str) -> u64 {
    records.iter().filter_map(|record| record.pointer(pointer)?.as_u64()).sum()
}

#[track_caller]
fn assert_gapless(records: &[Value]) {
    let mut seqs: Vec<_> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    // Shown by time, over several directories.
    seqs.sort_unstable();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
}

#[test]
fn j8_strangers_beyond_the_bound_are_counted_exactly_and_whoever_has_a_key_is_recorded() {
    const STRANGERS: u64 = 200;
    let upstream = Upstream::named("erp");
    let gateway = Gateway::builder().live(&upstream).toml("[audit]\nanonymous_per_second = 5").start();
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("products"));
    let mut client = gateway.client();
    for _ in 0..STRANGERS {
        assert_eq!(client.request("GET", &path, &[]).status, 401);
        assert_eq!(client.request("GET", &path, &[&key.bearer()]).status, 403);
    }
    let told = || {
        let records = gateway.records();
        let recorded = |reason: &str| records.iter().filter(|one| one["reason"] == reason).count() as u64;
        let counted = sum(&records, "/counts/missing_api_key");
        assert_gapless(&records);
        assert!(counted + recorded("missing_api_key") <= STRANGERS, "a stranger was counted twice");
        let all = counted + recorded("missing_api_key") == STRANGERS && recorded("insufficient_scope") == STRANGERS;
        all.then_some(counted)
    };
    let counted = eventually("everybody is accounted for", told);
    assert!(counted > 0, "no stranger was beyond the bound");
}

#[test]
fn j8_a_journal_that_is_removed_is_begun_anew_and_nobody_is_served_without_a_record() {
    let upstream = Upstream::named("erp");
    let gateway = Gateway::before(&upstream);
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    let journal = gateway.dir.path().join("data/audit/0");
    let (mut served, mut refused) = (BTreeSet::new(), BTreeSet::new());
    let mut ask = |client: &mut Client| {
        let answer = client.request("GET", &path, &[&key.bearer()]);
        let ids = if answer.status == 200 { &mut served } else { &mut refused };
        ids.insert(id(&answer));
        answer
    };
    for away in 1..=2 {
        let away = gateway.dir.path().join(format!("data/audit/{away}"));
        (0..10).for_each(|_| _ = ask(&mut gateway.client()));
        std::fs::rename(&journal, &away).unwrap();
        eventually("the journal is begun anew", || {
            ask(&mut gateway.client());
            journal.exists().then_some(())
        });
        eventually("requests are served", || (ask(&mut gateway.client()).status == 200).then_some(()));
    }
    let records = eventually("everybody is accounted for", || {
        let records = gateway.records();
        let told = sum(&records, "/requests_refused");
        assert!(told <= refused.len() as u64, "{told} refused are told of {}", refused.len());
        let of_path = records.iter().filter(|one| one["path"] == path.as_str()).count();
        (told == refused.len() as u64 && of_path >= served.len()).then_some(records)
    });
    assert_gapless(&records);
    let of_path = records.iter().filter(|one| one["path"] == path.as_str());
    let recorded: Vec<_> = of_path.map(|one| one["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(recorded.len(), served.len(), "each once");
    assert_eq!(recorded.into_iter().collect::<BTreeSet<_>>(), served);
}

#[test]
fn j7_a_gateway_that_is_killed_under_load_leaves_whole_records_and_goes_on_numbering() {
    let mut gateway = Gateway::before(&Upstream::named("erp"));
    let (key, path) = (gateway.key(&["orders:read"]), gateway.path("orders"));
    for _ in 0..3 {
        let clients: Vec<Client> = (0..4).map(|_| gateway.client()).collect();
        std::thread::scope(|scope| {
            for mut client in clients {
                let request = crate::harness::client::head("GET", &path, &[&key.bearer()]);
                scope.spawn(move || while client.send(&request).try_read("GET").is_some() {});
            }
            std::thread::sleep(Duration::from_millis(150));
            gateway.restart();
        });
    }
    let records = gateway.records();
    assert_gapless(&records);
    assert_eq!(records.iter().filter(|record| record["kind"] == "start").count(), 4);
    let ids: Vec<_> = records.iter().filter_map(|record| record["request_id"].as_str()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "no request is recorded twice");
    assert!(ids.len() > 100, "only {} requests were recorded", ids.len());
    let words = String::from_utf8(gateway.run(&["logs", "--limit", "1000000"]).stderr).unwrap();
    assert!(words.is_empty(), "a kill damages nothing: {words}");
}
