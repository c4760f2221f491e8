//! The proofs of `tests/heavy.rs` at a size for every run.

use crate::proofs::audit::failures::Failure;
use crate::proofs::revocation::{self, Fleet};
use crate::proofs::{
    audit, certificates, chaos, deaths, history, index, large_bodies, many_keys, outage, slow_clients,
};
use std::time::Duration;

#[test]
fn no_request_that_starts_after_revoke_returned_is_accepted() {
    revocation::prove(&Fleet { times: 5, rate: 2000, gateways_on_redis: None });
    revocation::prove(&Fleet { times: 5, rate: 100, gateways_on_redis: Some(4) });
}

#[test]
fn i7_redis_dies_under_load_and_nobody_is_told_anything_untrue() {
    outage::prove(&outage::Size { rate: 100, within: None });
}

#[test]
fn i3_a_gateway_that_died_with_its_redis_knows_what_it_confirmed() {
    deaths::prove(2, 2);
}

#[test]
fn i4_i5_nothing_acknowledged_is_lost_with_the_last_entries_of_redis() {
    // One of each way to lose them but one, in turn.
    let seed = history_seed();
    history::prove_all(seed..seed + 4, 2, history::prove_on_redis);
}

#[test]
fn i4_i5_nothing_acknowledged_is_lost_with_the_last_entries_of_sqlite() {
    let seed = history_seed();
    history::prove_all(seed..seed + 5, 3, history::prove_on_sqlite);
}

#[test]
fn a_question_about_a_key_and_a_day_reads_little_of_the_journal() {
    let plain = index::Size {
        records: 150_000,
        keys: 250,
        tail: 1000,
        compressed: false,
        within: None,
        bytes_per_record_max: 16 * 1024,
    };
    index::prove(&plain);
    index::prove(&index::Size { records: 250_000, compressed: true, bytes_per_record_max: 32 * 1024, ..plain });
}

#[test]
fn certificates_are_swapped_under_load_and_no_request_fails() {
    certificates::prove(3);
}

#[test]
fn a_large_body_passes_whole_and_is_not_held() {
    large_bodies::prove(32 * 1024 * 1024);
}

#[test]
fn a_gateway_with_many_keys_is_small() {
    let bounds = many_keys::Bounds { keys: 20_000, ready_within: None, bytes_per_key_max: 2000, cpu_factor_max: None };
    many_keys::prove(&bounds);
}

#[test]
fn no_ended_key_is_accepted_whatever_fails() {
    for seed in [1, 2] {
        chaos::prove(&chaos::Run { seed, length: Duration::from_secs(10), pace: Duration::from_millis(20) });
    }
}

#[test]
fn j2_j3_j5_l1_a_gateway_that_is_killed_has_journaled_whatever_anybody_saw() {
    audit::deaths::prove(&deaths(50));
}

#[test]
fn a_journal_that_is_not_waited_for_is_whole_up_to_where_it_ends() {
    // How much is lost is up to the machine, which does other things as well: the heavy run judges that.
    audit::deaths::forget_what_was_under_way(&deaths(10));
    audit::power::window(&deaths(3));
}

#[test]
fn j4_j5_l2_what_was_answered_is_in_the_journal_when_the_power_has_failed() {
    audit::power::prove(&deaths(3));
}

#[test]
fn j8_l4_on_a_full_disk_requests_are_refused_and_counted() {
    audit::failures::refuse(Failure::FullDisk);
}

#[test]
fn j8_l4_on_a_full_disk_what_is_dropped_is_counted() {
    audit::failures::drop_records(Failure::FullDisk);
}

#[test]
fn j4_j8_l5_while_syncs_fail_requests_are_refused_and_counted() {
    audit::failures::refuse(Failure::FailingSync);
}

#[test]
fn j4_j8_l5_while_syncs_fail_what_is_dropped_is_counted() {
    audit::failures::drop_records(Failure::FailingSync);
}

#[test]
fn j8_l4_what_was_refused_or_dropped_is_told_by_the_next_gateway_when_this_one_is_killed() {
    ["reject", "drop"].into_iter().for_each(audit::failures::die);
}

#[test]
fn j8_a_journal_whose_directory_is_removed_tells_what_went_with_it() {
    audit::failures::take_away(|slot| std::fs::remove_dir_all(slot).unwrap());
}

#[test]
fn j8_a_journal_whose_segment_is_emptied_tells_what_went_with_it() {
    audit::failures::take_away(|slot| {
        let entries = std::fs::read_dir(slot).unwrap().map(|entry| entry.unwrap().path());
        let segments = entries.filter(|path| path.extension().is_some_and(|extension| extension == "ndjson"));
        std::fs::File::create(segments.max().unwrap()).unwrap();
    });
}

#[test]
fn strangers_are_counted_exactly_and_take_little_of_the_disk() {
    let length = Duration::from_secs(3);
    audit::flood::prove(&audit::flood::Size { rate: 3000, length, mib_per_minute_max: 2.0 });
}

/// Soon after each start.
fn deaths(times: usize) -> audit::deaths::Run {
    let life_more = Duration::from_millis(60);
    audit::deaths::Run { seed: seed(), times, rate: None, life: Duration::ZERO, life_more }
}

/// `KEYGATE_DEATHS_SEED`, or another one every time.
fn seed() -> u64 {
    std::env::var("KEYGATE_DEATHS_SEED").map_or_else(|_| fastrand::u64(..), |text| text.parse().expect("a number"))
}

/// `KEYGATE_HISTORY_SEED`, or another one every time.
fn history_seed() -> u64 {
    let seed = std::env::var("KEYGATE_HISTORY_SEED").map(|text| text.parse().expect("a number"));
    seed.unwrap_or_else(|_| fastrand::u64(..u64::MAX / 2))
}

#[test]
fn clients_that_stand_still_are_sent_away_counted_and_noticed_by_nobody() {
    slow_clients::prove(&slow_clients::Size {
        connections: 200,
        deadline: Duration::from_secs(2),
        calm: Duration::from_secs(1),
    });
}
