//! The disk is full, or fails, or the journal's files go away under a running gateway: nothing is lost that nobody tells.

use super::disk::Disk;
use super::failing_sync::FailingSync;
use super::load::Clients;
use super::site::{Missing, Plan, Site};
use crate::harness::{Gateway, PATIENCE, eventually};
use fastrand::Rng;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Holds the rings and what they are to hold, and little more.
const DISK_BYTES: u64 = 96 * 1024 * 1024;
/// The load before, during and after the failure.
const WHILE: Duration = Duration::from_millis(300);
/// What must be answered while records are dropped: more than all buffers hold.
const DROPPED_MIN: usize = 35_000;

/// What fails.
#[derive(Clone, Copy, Debug)]
pub enum Failure {
    FullDisk,
    /// Every sync gives EIO.
    FailingSync,
}

/// What is there while it fails; dropped, the failure is over.
#[expect(dead_code, reason = "held for what its end does")]
enum Trouble {
    FullDisk(Ballast),
    FailingSync(FailingSync),
}

/// A file that takes all room there is.
struct Ballast(PathBuf);

/// While the journal fails, requests are refused, and afterwards served again; every one is recorded or counted, and a change
/// of a key meanwhile is recorded.
pub fn refuse(failure: Failure) {
    let disk = Disk::new(DISK_BYTES);
    let (mut site, mut changed) = (start(&disk, "overload = \"reject\"\n"), None);
    site.load(&mut Rng::with_seed(1), || {
        std::thread::sleep(WHILE);
        let began = Instant::now();
        let trouble = Trouble::begin(failure, &disk, &site.gateway);
        eventually("requests are refused", || (count_refused(&site) > 10).then_some(()));
        println!("{failure:?}: refused {:?} after its beginning", began.elapsed());
        changed = Some(create_key(&site));
        std::thread::sleep(WHILE);
        drop(trouble);
        wait_for_service(&site);
        std::thread::sleep(WHILE);
    });
    let refused = count_refused(&site) as u64;
    let missing = settle(&mut site, |site, missing| missing.is_empty() && told(site, "requests_refused") >= refused);
    println!("{:?}; {} answers broken off", site.tally, site.ledger.aborted());
    assert!(missing.is_empty(), "{missing}");
    assert_eq!(told(&site, "requests_refused"), refused);
    assert_eq!(site.tally.lacking, 0);
    let told = site.tally.changes.iter().filter(|id| Some(*id) == changed.as_ref()).count();
    assert_eq!(told, 1, "the change of a key meanwhile");
    site.verify();
}

/// Gives its id. No request is made.
fn create_key(site: &Site) -> String {
    let args = ["keys", "create", "--entity", "acme", "--name", "meanwhile", "--mode", "live", "--output", "json"];
    let args = [&args[..], &["--scope", "orders:read"]].concat();
    site.gateway.json(&args)["id"].as_str().unwrap().to_owned()
}

/// While the journal fails, requests are served all the same, and gap records tell exactly how many have no record.
pub fn drop_records(failure: Failure) {
    let disk = Disk::new(DISK_BYTES);
    let mut site = start(&disk, "overload = \"drop\"\n");
    site.load(&mut Rng::with_seed(1), || {
        std::thread::sleep(WHILE);
        let trouble = Trouble::begin(failure, &disk, &site.gateway);
        let before = count_served(&site);
        wait_for_much(&site, || count_served(&site) > before + DROPPED_MIN);
        drop(trouble);
        std::thread::sleep(WHILE);
    });
    assert_eq!((count_refused(&site), site.ledger.aborted()), (0, 0), "a request was refused or broken off");
    let is_told = |site: &Site, missing: &Missing| told(site, "records_dropped") == missing.answered.len() as u64;
    let missing = settle(&mut site, is_told);
    println!("{failure:?}: {:?}", site.tally);
    assert!(is_told(&site, &missing), "{missing}");
    assert!(!missing.answered.is_empty(), "nothing was dropped, so that nothing is proved");
    assert_eq!(site.tally.lacking, 0);
    site.verify();
}

/// Waits until enough is answered, for as long as more and more is: on a busy machine that takes longer than anything else.
fn wait_for_much(site: &Site, is_enough: impl Fn() -> bool) {
    let answered = || count_served(site) + count_refused(site);
    while !is_enough() {
        let before = answered();
        eventually("more is answered", || (answered() > before).then_some(()));
    }
}

/// The gateway is killed while it cannot write: what it has counted outlives it.
pub fn die(overload: &str) {
    let disk = Disk::new(DISK_BYTES);
    let mut site = start(&disk, &format!("overload = \"{overload}\"\n"));
    let (mut random, ballast) = (Rng::with_seed(1), Ballast::fill(&disk.path()));
    site.load(&mut random, || {
        wait_for_much(&site, || count_refused(&site) > 1000 || count_served(&site) > DROPPED_MIN);
    });
    site.kill_under_load(&mut random, WHILE);
    drop(ballast);
    site.gateway.restart();
    let (refused, broken_off) = (count_refused(&site) as u64, site.ledger.aborted());
    let missing = settle(&mut site, |_, _| true);
    println!("{overload}: {:?}", site.tally);
    let lost = missing.answered.len() as u64 + refused;
    let told = told(&site, "requests_refused") + told(&site, "records_dropped");
    assert!(
        (lost..=lost + broken_off).contains(&told),
        "{told} are told of {lost}, {broken_off} were broken off; {missing}"
    );
    assert!(lost > 0 && site.tally.lacking == 0);
    site.verify();
}

/// Somebody takes the journal's files away under a gateway that serves: it notices, and what is lost with the files lacks in
/// the numbers.
pub fn take_away(take: impl FnOnce(&Path)) {
    let mut site = start_at(None, "overload = \"reject\"\n");
    let mut random = Rng::with_seed(1);
    site.load(&mut random, || std::thread::sleep(WHILE));
    let missing = settle(&mut site, |_, missing| missing.is_empty());
    assert!(missing.is_empty(), "{missing}");
    let slot = site.gateway.dir.path().join("data/audit/0");
    site.load(&mut random, || {
        std::thread::sleep(WHILE);
        take(&slot);
        // Longer than the gateway may take to notice.
        std::thread::sleep(Duration::from_millis(1500));
        std::fs::create_dir_all(&slot).unwrap();
        wait_for_service(&site);
        std::thread::sleep(WHILE);
    });
    let refused = count_refused(&site) as u64;
    let is_told = |site: &Site, missing: &Missing| {
        told(site, "requests_refused") >= refused && missing.answered.len() as u64 <= site.tally.lacking
    };
    let missing = settle(&mut site, is_told);
    println!("{} of {} records were taken away: {:?}", missing.answered.len(), site.tally.answered, site.tally);
    assert_eq!(told(&site, "requests_refused"), refused);
    assert!(
        missing.answered.len() as u64 <= site.tally.lacking,
        "{missing}; of that, numbers that lack tell {}",
        site.tally.lacking
    );
    assert!(told(&site, "last") > 0, "no gap record tells of the numbers that lack");
    site.kill_under_load(&mut random, WHILE);
    site.gateway.restart();
    let missing = settle(&mut site, |_, _| true);
    // Without the rings there is nothing that tells of those that were under way.
    assert!(missing.answered.is_empty(), "killed after that: {missing}");
}

/// Reads the journal until it tells what it should, or has had time enough to do so; gives what it lacks. What could not be
/// recorded has no record.
fn settle(site: &mut Site, is_told: impl Fn(&Site, &Missing) -> bool) -> Missing {
    let (deadline, mut missing) = (Instant::now() + PATIENCE, site.settle());
    missing.answered.retain(|answer| !answer.is_unrecordable());
    while !is_told(site, &missing) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        missing = site.settle_again(missing);
    }
    missing
}

fn start(disk: &Disk, audit: &str) -> Site {
    start_at(Some(&disk.path().join("audit")), audit)
}

fn start_at(dir: Option<&Path>, audit: &str) -> Site {
    Site::start(&Plan { audit, dir, rate: None, clients: Clients::Patient, workers: 1 })
}

fn count_refused(site: &Site) -> usize {
    site.ledger.count_answered(|answer| answer.is_unrecordable())
}

fn count_served(site: &Site) -> usize {
    site.ledger.count_answered(|answer| !answer.is_unrecordable())
}

/// What the gap records tell in all.
fn told(site: &Site, member: &str) -> u64 {
    site.tally.told.get(member).copied().unwrap_or(0)
}

fn wait_for_service(site: &Site) {
    let before = count_served(site);
    eventually("requests are served again", || (count_served(site) > before + 10).then_some(()));
}

// === impl Trouble ===

impl Trouble {
    fn begin(failure: Failure, disk: &Disk, gateway: &Gateway) -> Self {
        match failure {
            Failure::FullDisk => Self::FullDisk(Ballast::fill(&disk.path())),
            Failure::FailingSync => Self::FailingSync(FailingSync::of(gateway)),
        }
    }
}

// === impl Ballast ===

impl Ballast {
    fn fill(dir: &Path) -> Self {
        let path = dir.join("ballast");
        let mut file = std::fs::File::create(&path).unwrap();
        for size in [1 << 20, 4096, 1] {
            while std::io::Write::write_all(&mut file, &vec![0; size]).is_ok() {}
        }
        Self(path)
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.0);
    }
}
