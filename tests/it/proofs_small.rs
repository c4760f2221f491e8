//! The proofs of `tests/heavy.rs` at a size for every run.

use crate::proofs::revocation::{self, Fleet};
use crate::proofs::{audit, chaos, deaths, large_bodies, many_keys, outage};
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
fn strangers_are_counted_exactly_and_take_little_of_the_disk() {
    let length = Duration::from_secs(3);
    audit::flood::prove(&audit::flood::Size { rate: 3000, length, mib_per_minute_max: 2.0 });
}
