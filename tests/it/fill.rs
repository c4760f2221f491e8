//! More keys than the cache has room for: those that do not fit are asked for, and no answer is a guess (protocols I7, I8).

use crate::harness::client::head;
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Reply, Upstream, eventually};
use std::io::Read as _;

/// Room for two keys, and twice as many at most.
const SMALL: &str = "[cache]\nkeys_max = 2";

fn status(gateway: &Gateway, key: &Key) -> u16 {
    ask(gateway, key).0
}

fn ask(gateway: &Gateway, key: &Key) -> (u16, String) {
    let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
    (answer.status, if answer.status == 200 { String::new() } else { answer.code() })
}

fn fills(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("keygate_fills_total{{outcome=\"{outcome}\"}}"))
}

/// Well-formed keys that were made elsewhere.
fn strangers(count: usize) -> (Gateway, Vec<Key>) {
    let elsewhere = Gateway::before(&Upstream::named("elsewhere"));
    let keys = (0..count).map(|_| elsewhere.key(&["orders:read"])).collect();
    (elsewhere, keys)
}

fn small(upstream: &Upstream, more: &str) -> (Gateway, Vec<Key>) {
    let mut gateway = Gateway::builder().live(upstream).toml(&format!("{SMALL}\n{more}")).start();
    let keys = (0..8).map(|_| gateway.key(&["orders:read"])).collect();
    gateway.restart();
    (gateway, keys)
}

#[test]
fn i7_every_key_is_known_and_no_other_whatever_there_is_room_for() {
    let (gateway, keys) = small(&Upstream::named("erp"), "");
    let (_elsewhere, strangers) = strangers(1);
    for _ in 0..3 {
        assert!(keys.iter().all(|key| status(&gateway, key) == 200));
        assert_eq!(ask(&gateway, &strangers[0]), (401, "invalid_api_key".to_owned()));
    }
    assert!(fills(&gateway, "found") >= 6.0, "more than fit were asked for");
    assert_eq!(fills(&gateway, "absent"), 1.0, "the store is asked once for a key that does not exist");
    assert!(gateway.run(&["keys", "revoke", &keys[0].id, "--yes"]).status.success());
    assert!(gateway.run(&["keys", "revoke", &keys[7].id, "--yes"]).status.success());
    for _ in 0..2 {
        let expected = [401, 200, 200, 200, 200, 200, 200, 401];
        assert_eq!(keys.iter().map(|key| status(&gateway, key)).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn i7_a_key_that_was_said_not_to_exist_works_as_soon_as_it_is_made() {
    let (gateway, _keys) = small(&Upstream::named("erp"), "");
    let (elsewhere, strangers) = strangers(5);
    let database = rusqlite::Connection::open(elsewhere.dir.path().join("data/keygate.db")).unwrap();
    for stranger in &strangers {
        assert_eq!(status(&gateway, stranger), 401);
        let sql = "SELECT digest FROM keys WHERE id = ?1";
        let digest: String = database.query_row(sql, [&stranger.id], |row| row.get(0)).unwrap();
        let import = ["keys", "import", "--entity", "acme", "--name", "import", "--mode", "live"];
        let output = gateway.run(
            &[&import[..], &["--scope", "orders:read", "--sha256", digest.trim_start_matches("sha256:")]].concat(),
        );
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(status(&gateway, stranger), 200);
    }
}

#[test]
fn i10_a_key_that_found_no_room_any_more_is_cut_all_the_same() {
    let upstream = Upstream::start(|received| match received.target().ends_with("wait") {
        true => Reply::Custom(Box::new(|stream| _ = stream.read(&mut [0; 64]))),
        false => Reply::ok("good"),
    });
    let (gateway, keys) = small(&upstream, "");
    for (round, change) in
        [["revoke", "--yes"].as_slice(), &["update", "--scope", "products:read"]].into_iter().enumerate()
    {
        let key = &keys[round];
        let mut client = gateway.client();
        client.send(head("GET", &gateway.path("orders/wait"), &[&key.bearer()]));
        let waiting = || upstream.received().iter().filter(|one| one.target().ends_with("wait")).count();
        eventually("the request is at the upstream", || (waiting() > round).then_some(()));
        // It is pushed out, and comes back as another entry than the one the request holds.
        let found = fills(&gateway, "found");
        eventually("every key was pushed out", || {
            keys[2..].iter().for_each(|other| _ = status(&gateway, other));
            (fills(&gateway, "found") >= found + 12.0).then_some(())
        });
        eventually("the key is back", || (status(&gateway, key) == 200).then_some(()));
        let command = [&["keys", change[0], &key.id], &change[1..]].concat();
        assert!(gateway.run(&command).status.success());
        let refused = client.read("GET").status;
        assert_eq!(refused, [401, 403][round], "{change:?}");
    }
}

#[test]
fn i7_what_cannot_be_asked_for_is_told_as_an_outage_and_revoked_stays_revoked() {
    let mut redis = RedisServer::start();
    let store = format!("[store]\nurl = \"{}\"", redis.url());
    let (gateway, keys) = small(&Upstream::named("erp"), &store);
    let (_elsewhere, strangers) = strangers(1);
    assert!(gateway.run(&["keys", "revoke", &keys[0].id, "--yes"]).status.success());
    // The revoked key is pushed out.
    eventually("the store has settled", || keys[1..].iter().all(|key| status(&gateway, key) == 200).then_some(()));
    redis.kill();
    let codes = |key| ask(&gateway, key);
    eventually("nothing is fresh", || (codes(&strangers[0]).1 == "key_store_unavailable").then_some(()));
    assert_eq!(codes(&keys[0]), (401, "invalid_api_key".to_owned()));
    let known = keys[1..].iter().map(codes).filter(|answer| answer.0 == 200).count();
    let others = keys[1..].iter().map(codes).filter(|answer| answer.1 == "key_store_unavailable").count();
    assert!(known >= 1 && known + others == 7, "{known} known, {others} not");
}

#[test]
fn a_flood_of_strangers_asks_the_store_a_bounded_number_of_times_and_the_rest_is_told_to_wait() {
    let (gateway, keys) = small(&Upstream::named("erp"), "");
    // Other bodies with the right checksum: made by hand, since making keys takes longer than the second.
    let strangers: Vec<Key> = (0..400).map(|number| made_up(&keys[0], number)).collect();
    assert_eq!(status(&gateway, &keys[7]), 200);
    let mut client = gateway.client();
    let begun = std::time::Instant::now();
    let answers: Vec<(u16, String)> = strangers
        .iter()
        .map(|key| {
            let answer = client.request("GET", &gateway.path("orders"), &[&key.bearer()]);
            (answer.status, answer.code())
        })
        .collect();
    let seconds = begun.elapsed().as_secs_f64();
    let count = |code: &str| answers.iter().filter(|answer| answer.1 == code).count() as f64;
    assert_eq!(count("invalid_api_key") + count("overloaded"), 400.0, "{answers:?}");
    assert!(count("overloaded") > 0.0 || seconds > 3.0, "400 in {seconds} s");
    let asked = fills(&gateway, "absent") + fills(&gateway, "found");
    assert!(asked <= 100.0 * (seconds.ceil() + 1.0), "{asked} in {seconds} s");
    assert_eq!(fills(&gateway, "refused"), count("overloaded"));
    assert_eq!(status(&gateway, &keys[7]), 200);
}

/// A key that nobody made, with a checksum that holds.
fn made_up(like: &Key, number: usize) -> Key {
    let body = &like.text[..like.text.len() - 6 - 8];
    let body = format!("{body}{number:08}");
    let mut rest = crc32(body.as_bytes());
    let mut sum = [b'0'; 6];
    for digit in sum.iter_mut().rev() {
        *digit = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[(rest % 62) as usize];
        rest /= 62;
    }
    Key { id: String::new(), text: body + std::str::from_utf8(&sum).unwrap() }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 })
    })
}
