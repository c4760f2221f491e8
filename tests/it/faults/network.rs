//! Faults of the network between the gateways and Redis.

use super::{FRESH_FOR, MAX_STALE, SLACK, Site, assert_none_after, assert_only, at_once, never_made};
use crate::harness::{Network, Way, eventually};
use crate::proofs::process::{pss, watch_peak};
use keygate::clock::Timestamp;
use std::time::{Duration, Instant, SystemTime};

/// How much more memory such replies may take: each is bounded at 8 MiB, a list takes twice that while it grows, and several
/// connections read one at the same time.
const GROWTH_MAX: u64 = 80 * 1024 * 1024;
const LATENCY: Duration = Duration::from_millis(200);

/// The right to serve ends `max_stale` after the last contact, known keys work until then, and no good key is ever told bad.
fn right_to_serve_ends_in(network: Network) {
    let site = Site::with_max_stale();
    let (good, stranger) = (site.key(), never_made());
    assert_eq!((site.status(&good), site.status(&stranger)), (200, 401));
    site.proxy.set(network);
    let begun = Instant::now();
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        eventually("the right to serve ends", || (site.status(&good) == 503).then_some(()));
        std::thread::sleep(2 * SLACK);
    });
    assert_only([200, 503], &known);
    assert!(known.iter().any(|answer| answer.status == 200 && answer.started > begun + MAX_STALE / 3));
    assert_none_after(begun + MAX_STALE + SLACK, 200, &known);
    assert_only([401, 503], &unknown);
    assert_none_after(begun + FRESH_FOR + SLACK, 401, &unknown);
    let (code, words) = site.run(&["keys", "list"]);
    assert!(code == Some(69) && words.contains("the key store is not available"), "{code:?} {words}");
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn i1_the_right_to_serve_ends_when_redis_is_not_heard() {
    let ways = [(Way::Lost, Way::Lost), (Way::Lost, Way::Whole), (Way::Whole, Way::Lost)];
    at_once(ways, |(requests, replies)| right_to_serve_ends_in(Network { requests, replies, ..Network::default() }));
}

/// Known keys work, revoked ones do not, nothing dies, and all is well as soon as the network is.
fn is_not_believed(network: &Network) {
    let site = Site::start();
    let (good, revoked, stranger) = (site.key(), site.key(), never_made());
    assert_eq!((site.status(&revoked), site.revoke(&revoked).0), (200, Some(0)));
    site.upstream.forget();
    site.proxy.set(network.clone());
    let ((), [known, unknown]) = site.while_using([&good, &stranger], || {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            let commands: [&[&str]; 3] = [&["keys", "list"], &["fleet", "list"], &["keys", "show", &good.id]];
            for (code, words) in commands.map(|args| site.run(args)) {
                assert!(code.is_some_and(|code| code != 101) && !words.contains("panicked"), "{code:?} {words}");
            }
            assert_eq!(site.status(&revoked), 401);
            site.proxy.cut();
        }
    });
    assert_only([200, 200], &known);
    assert_only([401, 503], &unknown);
    site.proxy.heal();
    site.works(&good);
    assert!(!site.gateway.log_text().contains("panicked"), "{}", site.gateway.log_text());
    let accepted = site.upstream.received();
    assert!(accepted.iter().all(|received| received.header("x-key-id").as_ref() != Some(&revoked.id)));
}

#[test]
fn i7_what_is_no_answer_is_not_believed() {
    at_once([Way::Garbage, Way::Truncated, Way::Twice], |replies| {
        is_not_believed(&Network { replies, ..Network::default() });
    });
}

#[test]
fn i7_a_request_that_comes_twice_is_acted_on_once() {
    is_not_believed(&Network { requests: Way::Twice, ..Network::default() });
}

/// A reply that begins with `first` and repeats `again` for ever is given up, and costs little meanwhile.
fn is_given_up((first, again): (&'static str, &'static str)) {
    let site = Site::start();
    let good = site.key();
    let before = pss(site.gateway.pid());
    let (peak, ()) = watch_peak(site.gateway.pid(), || {
        site.proxy.replies(Way::Endless(first, again));
        let (code, words) = site.create();
        assert!(code == Some(69) && words.contains("the key store is not available: redis: "), "{code:?} {words}");
        eventually("the gateway has noticed", || site.gateway.log_text().contains("cannot be asked").then_some(()));
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(site.status(&good), 200);
    });
    let growth = peak.saturating_sub(before);
    assert!(growth < GROWTH_MAX, "the gateway grew by {growth} bytes at a reply like {first:?}{again:?}");
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn a_reply_without_end_is_given_up_and_takes_no_memory() {
    at_once([("$1000000000\r\n", "x"), ("*1000000000\r\n", ":1\r\n"), ("+", "x"), ("", "*1\r\n")], is_given_up);
}

#[test]
fn a_redis_that_cannot_be_connected_to_is_told_and_known_keys_work() {
    let site = Site::start();
    let good = site.key();
    site.proxy.set(Network { refuses: true, ..Network::default() });
    site.proxy.cut();
    eventually("the loss is noticed", || site.gateway.log_text().contains("cannot be asked").then_some(()));
    let (code, words) = site.create();
    assert!(code == Some(69) && words.contains("the key store is not available: redis: "), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn a_gateway_that_cannot_reach_redis_drains_all_the_same() {
    let mut site = Site::start();
    let good = site.key();
    site.proxy.swallow();
    assert_eq!(site.status(&good), 200);
    site.gateway.signal("TERM");
    assert_eq!(site.gateway.wait(), Some(0));
}

#[test]
fn a_network_that_lets_a_byte_through_now_and_then_holds_no_command_for_ever() {
    let site = Site::start();
    let good = site.key();
    site.proxy.set(Network { bytes_per_second: Some(10), ..Network::default() });
    let (code, words) = site.run(&["keys", "list"]);
    assert!(code == Some(69) && words.contains("no answer within"), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
    site.proxy.heal();
    site.works(&good);
}

#[test]
fn i12_over_a_slow_network_a_change_is_in_force_when_its_command_returns() {
    let site = Site::start();
    let good = site.key();
    site.proxy.set(Network { latency: LATENCY, ..Network::default() });
    let key = site.key();
    assert_eq!(site.status(&key), 200);
    let (code, words) = site.run(&["keys", "revoke", &key.id, "--yes", "--timeout", "15s"]);
    assert_eq!(site.status(&key), 401);
    assert!(code == Some(0) && words.starts_with("revoked on 1/1 gateways in "), "{code:?} {words}");
    assert_eq!(site.status(&good), 200);
}

/// The moment that a command named as the end of what `edge-1` may still honour.
fn named_end(words: &str) -> Instant {
    let rest = words.strip_prefix("revoked on 0/1 gateways; edge-1 (").unwrap_or_else(|| panic!("{words}"));
    let until = rest.split_once("unconfirmed, may act as before until ").unwrap().1;
    let micros = Timestamp::parse(until.lines().next().unwrap()).unwrap().as_micros();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Instant::now() + Duration::from_micros(micros.try_into().unwrap()).saturating_sub(now)
}

#[test]
fn i12_who_does_not_hear_of_a_revocation_honours_the_key_until_the_named_time_at_most() {
    let site = Site::with_max_stale();
    let (good, revoked) = (site.key(), site.key());
    site.proxy.replies(Way::Lost);
    let (code, words) = site.run_straight(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "1s"]);
    assert_eq!(code, Some(75), "{words}");
    let end = named_end(&words);
    let ((), [ended, kept]) = site.while_using([&revoked, &good], || {
        eventually("the named time is over", || (Instant::now() > end + 4 * SLACK).then_some(()));
        assert_eq!((site.status(&revoked), site.status(&good)), (503, 503));
        site.upstream.forget();
        site.proxy.heal();
        eventually("the revoked key is refused", || (site.status(&revoked) == 401).then_some(()));
        eventually("the good key works again", || (site.status(&good) == 200).then_some(()));
    });
    assert!([200, 503].iter().all(|status| ended.iter().any(|answer| answer.status == *status)), "{ended:#?}");
    // The time is named in whole seconds.
    assert_none_after(end + Duration::from_secs(1) + SLACK, 200, &ended);
    assert_only([200, 503], &kept);
    let accepted = site.upstream.received();
    assert!(accepted.iter().all(|received| received.header("x-key-id").as_ref() != Some(&revoked.id)));
    let (code, words) = site.revoke(&revoked);
    assert!(code == Some(0) && words.contains("already; revoked on 1/1 gateways in "), "{code:?} {words}");
}

#[test]
fn i9_a_partition_that_heals_brings_the_revocation() {
    let site = Site::start();
    let revoked = site.key();
    site.proxy.swallow();
    let (code, words) = site.run_straight(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "300ms"]);
    assert_eq!(code, Some(75), "{words}");
    assert_eq!(site.status(&revoked), 200, "it cannot know");
    site.proxy.heal();
    let (code, words) = site.run_straight(&["keys", "revoke", &revoked.id, "--yes", "--timeout", "20s"]);
    assert_eq!(site.status(&revoked), 401);
    assert!(code == Some(0) && words.contains("already; revoked on 1/1 gateways in "), "{code:?} {words}");
}
