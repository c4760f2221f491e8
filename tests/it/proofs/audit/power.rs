//! The power fails at random moments under load, again and again: what a client has received whole is in the journal.

use super::deaths::Run;
use super::disk::Disk;
use super::load::Clients;
use super::site::{Ages, Missing, Plan, Site};
use crate::harness::Gateway;
use fastrand::Rng;
use rustix::process::{Signal, kill_process};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Holds the rings and what they are to hold.
const DISK_BYTES: u64 = 1024 * 1024 * 1024;
/// How long the gateway may still run on a disk without power.
const AGONY_US: u64 = 20_000;

/// With `durability = "synced"` no answer is lost that a client has received. What was refused because it could not be recorded
/// is counted, and a count that has not reached the disk may go with the power.
pub fn prove(run: &Run) {
    fail_again_and_again(run, "synced", |missing, _| {
        assert!(missing.answered.is_empty(), "seed {}: {missing}", run.seed)
    });
}

/// With `durability = "written"` what was young when the power failed is lost. Gives the age of the oldest lost answer of each
/// time, sorted.
pub fn window(run: &Run) -> Vec<Duration> {
    let mut ages = Ages::default();
    fail_again_and_again(run, "written", |missing, failed| ages.add(missing, failed));
    ages.sorted()
}

/// What the gateway has given to the file system counts as lost unless it was synced: the power of the file system fails, not
/// that of the disk below it.
fn fail_again_and_again(run: &Run, durability: &str, mut judge: impl FnMut(&Missing, Instant)) {
    // The gateways see each other's disks, as they were mounted when they started, and so keep them.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    println!("power losses: {durability}, seed {}, {} times", run.seed, run.times);
    let (mut random, disk) = (Rng::with_seed(run.seed), Disk::new(DISK_BYTES));
    let (dir, audit) = (disk.path().join("audit"), format!("durability = \"{durability}\"\n"));
    let plan = Plan { audit: &audit, dir: Some(&dir), rate: run.rate, clients: Clients::Known, workers: 2 };
    let mut site = Site::start(&plan);
    for loss in 1..=run.times {
        let life = run.draw_life(&mut random);
        let failed = fail_under_load(&mut site, &disk, &mut random, life);
        boot(&mut site.gateway, loss);
        let mut missing = site.settle();
        missing.answered.retain(|answer| !answer.is_unrecordable());
        judge(&missing, failed);
        assert_eq!(site.tally.lacking, 0, "seed {}, loss {loss}: numbers lack", run.seed);
    }
    println!("{:?}", site.tally);
    assert_eq!(site.tally.after["power_loss"], run.times);
    assert!(site.tally.answered > 10 * run.times, "too little was answered to prove anything");
    site.verify();
    // Its files are on the disk.
    drop(site);
}

/// Starts the gateway as after a start of the machine: what tells one from another is another number.
fn boot(gateway: &mut Gateway, number: usize) {
    let file = gateway.dir.path().join("boot-id");
    std::fs::write(&file, format!("00000000-0000-4000-8000-{number:012}\n")).unwrap();
    let script = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;
    gateway.restart_through("unshare", &["--map-current-user", "--mount", "sh", "-c", script, &file.to_string_lossy()]);
}

/// Gives the moment.
fn fail_under_load(site: &mut Site, disk: &Disk, random: &mut Rng, life: Duration) -> Instant {
    let agony = Duration::from_micros(random.u64(..AGONY_US));
    let (pid, mut failed) = (site.pid(), None);
    site.load(random, || {
        std::thread::sleep(life);
        failed = Some(disk.lose_power());
        std::thread::sleep(agony);
        kill_process(pid, Signal::KILL).unwrap();
    });
    site.gateway.wait();
    site.wait_for_upstream();
    disk.unmount();
    disk.mount();
    failed.unwrap()
}
