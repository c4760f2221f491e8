//! The protocol's state machine in a seeded simulation (protocols I1 to I12, Settle, Rows): the real follower, cache, snapshot and
//! confirmation, on clocks, a network, a server and disks that fail as the seed has it. What is answered is judged on true
//! time by the history that the server wrote.
//!
//! `KEYGATE_SIM_SEED=n` runs one seed and `KEYGATE_SIM_SEEDS=n` so many; a broken promise prints its seed and what happened last.

#[path = "sim/faults.rs"]
mod faults;
#[path = "sim/gateway.rs"]
mod gateway;
#[path = "sim/history.rs"]
mod history;
#[path = "sim/link.rs"]
mod link;
#[path = "sim/log.rs"]
mod log;
#[path = "sim/manager.rs"]
mod manager;
#[path = "sim/oracle.rs"]
mod oracle;
#[path = "sim/roster.rs"]
mod roster;
#[path = "sim/server.rs"]
mod server;
#[path = "sim/time.rs"]
mod time;
#[path = "sim/world.rs"]
mod world;

use keygate::store::{KeyStore as _, Record};
use link::Caller;
use oracle::Answer;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use time::SECONDS;
use world::{Violation, World};

const SEEDS: u64 = 256;
/// How long things go wrong, and how long it may take at most until everything is well again: the silence after which a row
/// goes, and some rounds more.
const STORM: u64 = 60 * SECONDS;
const RECOVERY: u64 = 40 * SECONDS;

/// What a seed came to.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    asked: u64,
    accepted: u64,
    complete: u64,
    forgotten: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(record: &Record) -> String {
    match record {
        Record::Key(key) => key.id.to_string(),
        Record::Entity(entity) => entity.code.clone(),
    }
}

#[test]
fn i1_to_i12_hold_whatever_fails() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (first, last) = match number("KEYGATE_SIM_SEED") {
        Some(seed) => (seed, seed),
        None => (0, number("KEYGATE_SIM_SEEDS").unwrap_or(SEEDS) - 1),
    };
    let next = AtomicU64::new(first);
    let (broken, tallies) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let work = || {
        while let Some(seed) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed <= last) {
            match run(seed) {
                Ok(tally) => lock(&tallies).push(tally),
                Err(violation) => lock(&broken).push((seed, violation)),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from).min(4) {
            // A turn may go on inside another's call, several deep.
            std::thread::Builder::new().stack_size(32 << 20).spawn_scoped(scope, work).unwrap();
        }
    });
    report(&mut lock(&broken), last - first + 1);
    let asked = |of: fn(&Tally) -> u64| lock(&tallies).iter().map(of).sum::<u64>();
    let forgotten = asked(|tally| tally.forgotten);
    let (asked, accepted, complete) =
        (asked(|tally| tally.asked), asked(|tally| tally.accepted), asked(|tally| tally.complete));
    println!(
        "{asked} answers, {accepted} of them yes; {complete} changes confirmed by every gateway; {forgotten} times a store has forgotten"
    );
    assert!(first == last || accepted > asked / 20 && complete > last, "the simulation tells nothing any more");
}

/// Fails if a promise was broken, with the first seed's story.
fn report(broken: &mut [(u64, String)], count: u64) {
    broken.sort();
    let lines = broken.iter().map(|(_, story)| story.lines().next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    if let Some((_, story)) = broken.first() {
        panic!("\n{story}\n{} of {count} seeds break a promise:\n{lines}\n", broken.len());
    }
}

/// Runs one seed to its end.
fn run(seed: u64) -> Result<Tally, String> {
    // Tokens of log entries and the like.
    fastrand::seed(seed);
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    let world = World::new(seed, dir.path());
    let outcome = catch_unwind(AssertUnwindSafe(|| live(&world)));
    // They hold the world, which holds them.
    world.machines.iter().for_each(gateway::Machine::end);
    outcome.map_err(|panic| match panic.downcast::<Violation>() {
        Ok(violation) => violation.0,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            format!("seed {seed} panicked: {}", text.unwrap_or_default())
        }
    })
}

fn live(world: &Arc<World>) -> Tally {
    world.during(STORM, Caller::Nobody);
    world.is_healed.store(true, Ordering::Relaxed);
    world.machines.iter().for_each(|machine| machine.heal(world.time.now()));
    world.heal_history();
    let before = world.manager.complete();
    world.during(RECOVERY, Caller::Nobody);
    world.manager.rest();
    world.during(3 * SECONDS, Caller::Nobody);
    check_recovered(world, before);
    let oracle = lock(&world.oracle);
    Tally {
        asked: oracle.asked,
        accepted: oracle.accepted,
        complete: world.manager.complete(),
        forgotten: lock(&world.history).forgotten,
    }
}

/// Once nothing fails any more, every good key works everywhere, what was never made is known not to be, and changes are
/// confirmed by all.
fn check_recovered(world: &World, complete_before: u64) {
    if world.manager.complete() == complete_before {
        world.violated("nothing is confirmed by all although nothing fails any more");
    }
    let site = world.site(Caller::Nobody);
    let fleet = world.servers[site].store.fleet_id().unwrap();
    let judged = fleet.map_or(Ok(()), |fleet| lock(&world.oracle).judge_store(site, fleet));
    if let Err(broken) = judged {
        world.violated(&broken);
    }
    let digests = lock(&world.oracle).digests().to_vec();
    for machine in world.machines.iter().filter(|machine| machine.is_original() || machine.is_serving()) {
        let never = machine.answer(world, keygate::key::Digest::of(b"never made")).map(|(answer, _)| answer);
        if never != Some(Answer::Unknown) {
            world.violated(&format!("a key that was never made is answered {never:?} although nothing fails any more"));
        }
        for digest in &digests {
            let Some((answer, witness)) = machine.answer(world, *digest) else { continue };
            let oracle = lock(&world.oracle);
            let is_good = oracle.logs[site].is_good(digest, witness.wall);
            // Adopting a store does not bring back what was revoked.
            let may_stay_ended = match answer {
                Answer::Revoked => oracle.ever_ended(digest),
                Answer::Unknown => oracle.has_kept_end(witness.process, digest),
                Answer::Accepted(_) | Answer::Expired | Answer::Unavailable => false,
            };
            drop(oracle);
            if is_good != matches!(answer, Answer::Accepted(_)) && !may_stay_ended {
                world.violated(&format!(
                    "a key that is good: {is_good} is answered {answer:?} although nothing fails any more"
                ));
            }
        }
    }
}
