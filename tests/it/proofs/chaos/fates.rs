//! What befalls the gateways, their networks and Redis.

use super::{IDS, Site};
use crate::harness::{Network, Way};
use fastrand::Rng;
use std::ops::Range;
use std::time::Duration;

/// Milliseconds between two faults of the same part.
const CALM: Range<u64> = 500..3000;

/// One fault after the other of a gateway and its network, until the run is over.
pub fn of_gateway(site: &Site, gateway: usize) {
    let mut random = site.random(gateway as u64);
    while !site.is_over() {
        rest(site, &mut random, CALM);
        match random.u8(..10) {
            0 => kill_gateway(site, gateway, &mut random),
            1 | 2 => stop_gateway(site, gateway, &mut random),
            3 => {
                note(site, gateway, "connections cut");
                site.proxies[gateway].cut();
            }
            _ => disturb(site, gateway, &mut random),
        }
    }
}

/// One fault after the other of Redis, until the run is over.
pub fn of_redis(site: &Site) {
    let mut random = site.random(50);
    while !site.is_over() {
        rest(site, &mut random, CALM);
        let mut redis = site.redis.lock().unwrap();
        match random.u8(..4) {
            0 => {
                site.ledger.note("redis: connections killed");
                redis.command("CLIENT KILL TYPE normal SKIPME yes");
            }
            1 => {
                site.ledger.note("redis: stopped");
                redis.signal("STOP");
                rest(site, &mut random, 200..4000);
                redis.signal("CONT");
                site.ledger.note("redis: goes on");
            }
            _ => {
                site.ledger.note("redis: killed");
                redis.kill();
                rest(site, &mut random, 0..2000);
                redis.restart();
                site.ledger.note("redis: started");
            }
        }
    }
}

fn rest(site: &Site, random: &mut Rng, millis: Range<u64>) {
    site.rest(Duration::from_millis(random.u64(millis)));
}

fn note(site: &Site, gateway: usize, what: &str) {
    site.ledger.note(&format!("{}: {what}", IDS[gateway]));
}

fn kill_gateway(site: &Site, gateway: usize, random: &mut Rng) {
    let mut process = site.gateways[gateway].lock().unwrap();
    note(site, gateway, "killed");
    process.signal("KILL");
    process.wait();
    rest(site, random, 0..1500);
    process.restart();
    *site.addresses[gateway].lock().unwrap() = process.address;
    note(site, gateway, "started");
}

/// Sometimes for longer than the gateway may serve without contact.
fn stop_gateway(site: &Site, gateway: usize, random: &mut Rng) {
    let process = site.gateways[gateway].lock().unwrap();
    note(site, gateway, "stopped");
    process.signal("STOP");
    rest(site, random, 200..8000);
    process.signal("CONT");
    note(site, gateway, "goes on");
}

/// Sometimes for longer than the gateway may serve without contact.
fn disturb(site: &Site, gateway: usize, random: &mut Rng) {
    let network = draw_network(random);
    note(site, gateway, &format!("{network:?}"));
    site.proxies[gateway].set(network);
    rest(site, random, 200..9000);
    site.proxies[gateway].heal();
    note(site, gateway, "the network is well");
}

fn draw_network(random: &mut Rng) -> Network {
    let replies = |replies| Network { replies, ..Network::default() };
    let requests = |requests| Network { requests, ..Network::default() };
    match random.u8(..12) {
        0 => Network { latency: Duration::from_millis(random.u64(10..300)), ..Network::default() },
        1 => Network { bytes_per_second: Some(random.usize(200..20_000)), ..Network::default() },
        2 => Network { refuses: true, ..Network::default() },
        3 | 4 => Network { requests: Way::Lost, replies: Way::Lost, ..Network::default() },
        5 => requests(Way::Lost),
        6 => requests(Way::Twice),
        7 => replies(Way::Lost),
        8 => replies(Way::Twice),
        9 => replies(Way::Garbage),
        10 => replies(Way::Endless("*1000000000\r\n", ":1\r\n")),
        _ => replies(Way::Truncated),
    }
}
