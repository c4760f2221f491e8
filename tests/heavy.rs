//! The proofs that take minutes, at full size: `tests/run heavy`. Each has a smaller version in `tests/it`.

#![allow(dead_code, reason = "the harness serves the other tests too")]

#[path = "it/harness/mod.rs"]
mod harness;
#[path = "it/proofs/mod.rs"]
mod proofs;

use proofs::failover::{self, End};
use proofs::revocation::{self, Fleet};
use proofs::{
    audit, certificates, chaos, deaths, history, index, large_bodies, many_keys, matrix, outage, partition,
    slow_clients,
};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One proof at a time: they measure.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn no_request_that_starts_after_revoke_returned_is_accepted_by_an_embedded_gateway() {
    let _alone = alone();
    revocation::prove(&Fleet { times: 100, rate: 2000, gateways_on_redis: None });
}

#[test]
fn no_request_that_starts_after_revoke_returned_is_accepted_by_four_busy_gateways() {
    let _alone = alone();
    revocation::prove(&Fleet { times: 500, rate: 500, gateways_on_redis: Some(4) });
}

#[test]
fn four_gateways_at_leisure_confirm_soon() {
    let _alone = alone();
    revocation::prove(&Fleet { times: 100, rate: 50, gateways_on_redis: Some(4) });
}

#[test]
fn redis_dies_under_load_and_nobody_is_told_anything_untrue() {
    let _alone = alone();
    outage::prove(&outage::Size { rate: 5000, within: Some((Duration::from_secs(1), Duration::from_secs(3))) });
}

#[test]
fn a_gateway_that_died_with_its_redis_knows_what_it_confirmed_200_times_of_200() {
    let _alone = alone();
    deaths::prove(10, 20);
}

#[test]
fn i4_i5_nothing_acknowledged_is_lost_with_the_last_entries_of_a_store_200_times() {
    let _alone = alone();
    let seed = number("KEYGATE_HISTORY_SEED").unwrap_or_else(|| fastrand::u64(..u64::MAX / 2));
    history::prove_all(seed..seed + 200, 4, history::prove_on_redis);
    history::prove_all(seed..seed + 50, 4, history::prove_on_sqlite);
}

#[test]
fn a_key_and_a_day_are_found_among_10_million_records_in_100_ms() {
    let _alone = alone();
    index::prove(&index::Size {
        records: 10_000_000,
        keys: 1000,
        tail: 99_999,
        compressed: false,
        within: Some(Duration::from_millis(100)),
        bytes_per_record_max: 16 * 1024,
    });
}

#[test]
fn a_gibibyte_passes_whole_in_both_directions_and_is_not_held() {
    let _alone = alone();
    large_bodies::prove(1024 * 1024 * 1024);
}

#[test]
fn a_gibibyte_passes_unchanged_whatever_is_spoken_on_either_side() {
    let _alone = alone();
    matrix::prove(1024 * 1024 * 1024);
}

#[test]
fn a_million_keys_are_loaded_in_3_seconds_take_600_bytes_each_and_cost_no_cpu() {
    let _alone = alone();
    many_keys::prove(&many_keys::Bounds {
        keys: 1_000_000,
        ready_within: Some(Duration::from_secs(3)),
        bytes_per_key_max: 600,
        cpu_factor_max: Some(1.08),
    });
}

#[test]
fn j2_j3_j5_l1_a_gateway_that_was_killed_1000_times_has_journaled_whatever_anybody_saw() {
    let _alone = alone();
    audit::deaths::prove(&deaths_at_full_size(1000));
}

#[test]
fn a_journal_that_is_not_waited_for_loses_no_answer_when_the_gateway_is_killed_30_times() {
    let _alone = alone();
    audit::deaths::forget_what_was_under_way(&long_lives());
}

#[test]
fn j4_j5_l2_what_was_answered_is_in_the_journal_when_the_power_has_failed_100_times() {
    let _alone = alone();
    audit::power::prove(&deaths_at_full_size(100));
}

#[test]
fn j8_l4_l5_while_the_disk_is_full_or_fails_requests_are_refused_or_dropped_and_counted() {
    let _alone = alone();
    for failure in [audit::failures::Failure::FullDisk, audit::failures::Failure::FailingSync] {
        audit::failures::refuse(failure);
        audit::failures::drop_records(failure);
    }
    ["reject", "drop"].into_iter().for_each(audit::failures::die);
}

#[test]
fn a_flood_of_20000_strangers_a_second_is_counted_exactly_and_takes_2_mib_a_minute_of_the_disk() {
    let _alone = alone();
    let length = Duration::from_secs(60);
    audit::flood::prove(&audit::flood::Size { rate: 20_000, length, mib_per_minute_max: 2.0 });
}

#[test]
fn l2_what_is_lost_with_the_power_was_young() {
    let _alone = alone();
    let ages = audit::power::window(&long_lives());
    assert!(ages.iter().all(|age| *age < Duration::from_secs(1)), "{ages:?}");
}

/// Longer than anything may be lost for.
fn long_lives() -> audit::deaths::Run {
    audit::deaths::Run { life: Duration::from_secs(2), ..deaths_at_full_size(30) }
}

fn deaths_at_full_size(times: usize) -> audit::deaths::Run {
    let seed = number("KEYGATE_DEATHS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let life_more = Duration::from_millis(200);
    audit::deaths::Run { seed, times, rate: Some(5000), life: Duration::ZERO, life_more }
}

#[test]
fn chaos_no_ended_key_is_accepted_whatever_fails() {
    let _alone = alone();
    let minutes = number("KEYGATE_CHAOS_MINUTES").unwrap_or(5);
    let seed = number("KEYGATE_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    chaos::prove(&chaos::Run { seed, length: Duration::from_secs(60 * minutes), pace: Duration::from_millis(10) });
}

#[test]
fn certificates_are_swapped_100_times_under_load_and_no_request_fails() {
    let _alone = alone();
    certificates::prove(100);
}

/// Each way to end, fifteen times.
const ENDS: [End; 30] = {
    let mut ends = [End::Killed; 30];
    let mut at = 1;
    while at < ends.len() {
        ends[at] = End::Stopped;
        at += 2;
    }
    ends
};

#[test]
fn i7_30_masters_end_and_are_left_for_those_that_the_sentinels_name() {
    let _alone = alone();
    failover::prove(&mut harness::sentinel::Watched::start(), &ENDS, 500);
}

#[test]
fn i7_30_nodes_end_and_are_left_for_those_that_own_the_slot() {
    let _alone = alone();
    failover::prove(&mut harness::cluster::Cluster::start(), &ENDS, 500);
}

#[test]
fn i7_a_slot_that_moves_30_times_is_followed_and_no_change_is_made_by_half() {
    let _alone = alone();
    let rests: Vec<_> = (0..30).map(|round| Duration::from_millis(round % 10)).collect();
    failover::prove_moves(&harness::cluster::Cluster::start(), &rests, 500);
}

#[test]
fn i1_30_gateways_that_stay_behind_with_an_old_master_renew_no_right() {
    let _alone = alone();
    (0..30).for_each(|_| partition::prove());
}

#[test]
fn a_thousand_clients_that_stand_still_are_sent_away_counted_and_noticed_by_nobody() {
    let _alone = alone();
    slow_clients::prove(&slow_clients::Size {
        connections: 1000,
        deadline: Duration::from_secs(6),
        calm: Duration::from_secs(10),
    });
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect(name))
}
