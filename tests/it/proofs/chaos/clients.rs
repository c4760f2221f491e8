//! Clients that use good keys, keys that have ended, and keys that were never made.

use super::ledger::{State, never_made, target};
use super::{IDS, Site};
use crate::harness::Client;
use crate::harness::client::head;
use crate::harness::gateway::ENTITY;
use fastrand::Rng;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long a stream may flow without a pause after its key has ended: what was under way may arrive.
const FLOW_MAX: Duration = Duration::from_secs(1);
/// A stream that flows gives something more often.
const PAUSE: Duration = Duration::from_millis(200);

/// Uses keys at one gateway until the run is over.
pub fn use_keys(site: &Site, gateway: usize, client: u64, pace: Duration) {
    let mut random = site.random(100 + 10 * gateway as u64 + client);
    let mut connection = None;
    while !site.is_over() {
        std::thread::sleep(pace);
        let entries = site.ledger.entries();
        // Among the newest, so that the keys that change are used.
        let index = entries.len().checked_sub(1 + random.usize(..12)).filter(|_| random.u8(..10) > 0);
        let text = index.map_or_else(never_made, |index| entries[index].key.text.clone());
        let started = site.ledger.now();
        let status = ask(site, gateway, &mut connection, &target("orders", gateway, started, index), &text);
        judge(site, gateway, index, status);
    }
}

/// Asks over the connection there is, or another; none when the gateway is not there or goes away meanwhile.
fn ask(site: &Site, gateway: usize, connection: &mut Option<Client>, target: &str, key: &str) -> Option<u16> {
    let address = *site.addresses[gateway].lock().unwrap();
    let mut client = connection.take().or_else(|| Client::try_connect(address))?;
    let answer = client.send(request(target, key)).try_read("GET")?;
    *connection = Some(client).filter(|_| answer.header("connection") != Some("close"));
    Some(answer.status)
}

fn request(target: &str, key: &str) -> String {
    head("GET", &format!("/v1/entities/{ENTITY}/{target}"), &[&format!("Authorization: Bearer {key}")])
}

fn judge(site: &Site, gateway: usize, index: Option<usize>, status: Option<u16>) {
    let entry = index.map(|index| site.ledger.entry(index));
    let state = entry.as_ref().map(|entry| entry.state);
    let said = status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
    site.ledger.count(format!("a request with a key that is {state:?}: {said}"));
    match (state, status) {
        (_, None | Some(200 | 503)) | (None | Some(State::Ending | State::Ended), Some(401)) => {}
        (_, Some(status)) => {
            let id = entry.map_or_else(String::new, |entry| entry.key.id);
            site.ledger.violation(format!("{} answered {status} to {id}, a key that is {state:?}", IDS[gateway]));
        }
    }
}

/// Holds one stream after the other at one gateway until the run is over.
pub fn hold_streams(site: &Site, gateway: usize) {
    let mut random = site.random(300 + gateway as u64);
    while !site.is_over() {
        site.rest(PAUSE);
        let entries = site.ledger.entries();
        let good = entries.iter().rposition(|entry| entry.state == State::Good && random.bool());
        good.and_then(|index| hold_stream(site, gateway, index, &mut random));
    }
}

/// Reads a stream for some seconds, or until it ends. It may not go on when its key has ended: a gateway that was stopped cuts
/// it soon after it goes on.
fn hold_stream(site: &Site, gateway: usize, index: usize, random: &mut Rng) -> Option<()> {
    let mut stream = TcpStream::connect(*site.addresses[gateway].lock().unwrap()).ok()?;
    stream.set_read_timeout(Some(PAUSE)).ok()?;
    let target = target("products", gateway, site.ledger.now(), Some(index));
    stream.write_all(request(&target, &site.ledger.entry(index).key.text).as_bytes()).ok()?;
    let leave = site.ledger.now() + Duration::from_millis(random.u64(500..10_000));
    let mut flowing_since = None;
    while site.ledger.now() < leave && !site.is_over() {
        match stream.read(&mut [0; 16 * 1024]) {
            Ok(1..) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => flowing_since = None,
            Ok(0) | Err(_) => return None,
        }
        let (now, entry) = (site.ledger.now(), site.ledger.entry(index));
        let has_ended = entry.ends[gateway].is_some_and(|end| now > end);
        let since = flowing_since.get_or_insert(now);
        if !has_ended {
            *since = now;
        } else if now.saturating_sub(*since) > FLOW_MAX {
            let (id, key, words) = (IDS[gateway], entry.key.id, entry.words);
            site.ledger
                .violation(format!("{id} goes on with a stream of {key}, which has ended, as was said: {words}"));
            return None;
        }
    }
    site.ledger.count("a stream was held to its end".to_owned());
    Some(())
}
