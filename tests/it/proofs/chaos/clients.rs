//! Clients that use good keys, keys that have ended, and keys that were never made.

use super::ledger::{State, never_made, target};
use super::{IDS, Site};
use crate::harness::Client;
use crate::harness::client::head;
use std::time::Duration;

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
        let status = ask(site, gateway, &mut connection, &target(gateway, started, index), &text);
        judge(site, gateway, index, status);
    }
}

/// Asks over the connection there is, or another; none when the gateway is not there or goes away meanwhile.
fn ask(site: &Site, gateway: usize, connection: &mut Option<Client>, target: &str, key: &str) -> Option<u16> {
    let address = *site.addresses[gateway].lock().unwrap();
    let mut client = connection.take().or_else(|| Client::try_connect(address))?;
    let path = format!("/v1/entities/{}/{target}", crate::harness::gateway::ENTITY);
    let answer = client.send(head("GET", &path, &[&format!("Authorization: Bearer {key}")])).try_read("GET")?;
    *connection = Some(client).filter(|_| answer.header("connection") != Some("close"));
    Some(answer.status)
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
