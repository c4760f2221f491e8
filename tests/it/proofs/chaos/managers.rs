//! Managers that make, change and end keys, and write down what each command said.

use super::ledger::{Entry, State};
use super::{GATEWAYS, IDS, MAX_STALE, Site};
use crate::harness::Key;
use crate::harness::gateway::keygate;
use fastrand::Rng;
use keygate::clock::Timestamp;
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

/// What a command said.
struct Said {
    code: i32,
    object: Option<Value>,
    words: String,
}

/// What two clocks may differ by: d of the protocols, and what a busy machine takes between two lines.
const SLACK: Duration = Duration::from_millis(500);
const LIFE: Duration = Duration::from_secs(2);
const GOOD_MAX: usize = 15;

/// One command after the other until the run is over.
pub fn change_keys(site: &Site, manager: u64) {
    let mut random = site.random(200 + manager);
    while !site.is_over() {
        let good = site.ledger.entries().iter().filter(|entry| entry.state == State::Good).count();
        match random.u8(..10) {
            0..4 if good < GOOD_MAX => create(site, &[]),
            4 => create(site, &["--expires", "2s"]),
            5 => update(site, &mut random),
            6 => rotate(site, &mut random, "24h"),
            7 => rotate(site, &mut random, "0"),
            _ => revoke(site, &mut random),
        }
    }
}

fn create(site: &Site, more: &[&str]) {
    let args = ["keys", "create", "--entity", "acme", "--name", "x", "--mode", "live", "--output", "json"];
    let said = run(site, &[&args, more, &["--scope", "orders:read", "--scope", "products:read"]].concat());
    let made = said.object.as_ref().map(entry);
    let end = site.ledger.now() + LIFE + SLACK;
    site.ledger.extend(made.map(|entry| match more {
        [] => entry,
        _ => Entry { state: State::Ending, ends: [Some(end); GATEWAYS], words: "expires after 2s".into(), ..entry },
    }));
}

fn update(site: &Site, random: &mut Rng) {
    let Some(index) = site.ledger.take(State::Good, random) else { return };
    let name = format!("x{}", random.u32(..));
    run(site, &["keys", "update", &site.ledger.entry(index).key.id, "--name", &name, "--output", "json"]);
    site.ledger.change(index, |entry| entry.is_taken = false);
}

/// Rotates a key, once: a second time would be refused, even if nobody knows whether there was a first.
fn rotate(site: &Site, random: &mut Rng, overlap: &str) {
    let Some(index) = site.ledger.take(State::Good, random) else { return };
    let before = site.ledger.entry(index);
    if !before.is_rotated {
        let state = if overlap == "0" { State::Ending } else { State::Good };
        site.ledger.change(index, |entry| (entry.is_rotated, entry.state) = (true, state));
        let said = run(site, &["keys", "rotate", &before.key.id, "--overlap", overlap, "--output", "json"]);
        site.ledger.extend(said.object.as_ref().map(entry));
        if state == State::Ending {
            end(site, index, &said);
        }
    }
    site.ledger.change(index, |entry| entry.is_taken = false);
}

/// Revokes a good key, or repeats what is not known to be done.
fn revoke(site: &Site, random: &mut Rng) {
    let state = if random.bool() { State::Ending } else { State::Good };
    let Some(index) = site.ledger.take(state, random) else { return };
    site.ledger.change(index, |entry| entry.state = State::Ending);
    let timeout = format!("{}ms", random.u32(100..3000));
    let said = run(site, &["keys", "revoke", &site.ledger.entry(index).key.id, "--yes", "--timeout", &timeout]);
    end(site, index, &said);
    site.ledger.change(index, |entry| entry.is_taken = false);
}

/// Runs a command, and says what codes it may give.
fn run(site: &Site, args: &[&str]) -> Said {
    let output = keygate(site.straight.path()).args(args).stdin(Stdio::null()).output().unwrap();
    site.canaries.iter().for_each(|canary| canary.remember_all(&output.stdout));
    let words = String::from_utf8(output.stderr).unwrap().trim_end().to_owned();
    let code = output.status.code().unwrap_or(-1);
    site.ledger.note(&format!("keygate {}: {code}, {words}", args.join(" ")));
    site.ledger.count(format!("keygate {} {}: {code}", args[0], args[1]));
    if code == 69 {
        site.rest(Duration::from_millis(200));
    }
    if !matches!(code, 0 | 69 | 75) {
        site.ledger.violation(format!("keygate {} ended with {code}: {words}", args.join(" ")));
    }
    Said { code, object: serde_json::from_slice(&output.stdout).ok(), words }
}

/// The entry of a key that a command has shown.
fn entry(object: &Value) -> Entry {
    let text = |name: &str| object[name].as_str().unwrap().to_owned();
    let key = Key { id: text("id"), text: text("key") };
    let (state, ends, words) = (State::Good, [None; GATEWAYS], String::new());
    Entry { key, state, ends, words, is_rotated: false, is_taken: false }
}

/// Writes down until when each gateway may accept a key, as a command has said.
fn end(site: &Site, index: usize, said: &Said) {
    if !matches!(said.code, 0 | 75) {
        return;
    }
    let now = site.ledger.now();
    // The whole fleet is unknown to the command, or it names who may act as before; the others have ended it.
    let latest = now + MAX_STALE + SLACK;
    let is_unknown = ["is unknown", "membership settling"].iter().any(|words| said.words.contains(words));
    let mut ends = [if is_unknown { latest } else { now }; GATEWAYS];
    for (gateway, until) in silent(&said.words) {
        let left = Duration::from_micros(until.as_micros().try_into().unwrap()).saturating_sub(wall());
        // The time is named in whole seconds.
        ends[gateway] = ends[gateway].max(now + left + Duration::from_secs(1) + SLACK);
    }
    if said.code == 75 && ends == [now; GATEWAYS] {
        site.ledger.violation(format!("75, and nobody is named: {}", said.words));
    }
    site.ledger.change(index, |entry| {
        entry.state = State::Ended;
        entry.words.clone_from(&said.words);
        let earlier = entry.ends;
        entry.ends = std::array::from_fn(|gateway| earlier[gateway].into_iter().chain([ends[gateway]]).min());
    });
}

fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
}

/// The gateways that a command has named, and until when each may act as before.
fn silent(words: &str) -> Vec<(usize, Timestamp)> {
    let parts = words.lines().flat_map(|line| line.split("; "));
    let named = parts.filter_map(|part| {
        let (who, until) = part.split_once(" unconfirmed, may act as before until ")?;
        let gateway = IDS.iter().position(|id| who.starts_with(&format!("{id} (")));
        Some((gateway.unwrap(), Timestamp::parse(until).unwrap()))
    });
    named.collect()
}
