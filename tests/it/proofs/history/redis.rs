//! On Redis: two or three gateways, five ways in which their store loses up to 50 entries of its log, and a gateway that joins
//! when it has.

use super::REPAIRED_WITHIN;
use super::book::Book;
use super::loss::{self, Loss};
use super::operator::Operator;
use super::site::Site;
use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, eventually};
use fastrand::Rng;
use std::path::{Path, PathBuf};
use std::time::Instant;

const IDS: [&str; 3] = ["edge-1", "edge-2", "edge-3"];

/// What the seed has drawn.
#[derive(Debug)]
struct Plan {
    seed: u64,
    loss: Loss,
    gateways: usize,
    /// Entries of the log before those that are lost, and of these.
    kept: u64,
    lost: u64,
    /// Changes that are written in the new history at once.
    written: usize,
    /// A gateway dies with the store, and starts again before it.
    dies: Option<usize>,
    /// The cold one comes while the store settles.
    is_cold_early: bool,
}

/// A store that will lose what it was told, and copies of it.
struct Store {
    redis: RedisServer,
    copies: tempfile::TempDir,
    /// How long the file of commands was before what will be lost.
    length: u64,
}

/// Proves it once, as this seed draws it.
pub fn prove(seed: u64) {
    let plan = Plan::draw(seed);
    let begun = Instant::now();
    println!("history on Redis: {plan:?}");
    let mut random = Rng::with_seed(seed ^ 1);
    let mut store = Store::start();
    let book = Book::new();
    let upstream = book.upstream();
    let start = |index: usize| {
        let builder =
            Gateway::builder().live(&upstream).workers(1).toml(&format!("[store]\nurl = \"{}\"", store.redis.url()));
        if index == 0 { builder.start() } else { builder.joining(IDS[index]).start() }
    };
    let gateways: Vec<_> = (0..plan.gateways).map(start).collect();
    let dir = gateways[0].dir.path().to_owned();
    let site = Site::new(book, upstream.clone(), gateways);
    lead_up(&plan, &site, &mut store, &dir, &mut random);
    let repaired = site.under_load(seed, || {
        store.lose(&plan, &site, &mut random);
        let lost_at = Instant::now();
        if plan.loss == Loss::Empty {
            site.take_up(random.usize(..plan.gateways), "reseed");
        }
        let operator = Operator::open(&dir);
        let written = operator.write(&site, &mut random, plan.written);
        let early = plan.is_cold_early.then(|| store.cold(&site));
        eventually("the store has everything that was acknowledged", || site.is_in(&operator).then_some(()));
        let repaired = lost_at.elapsed();
        let (number, cold_seed) = (plan.gateways, random.u64(..));
        site.with_cold(number, early.unwrap_or_else(|| store.cold(&site)), cold_seed, |place| {
            written.into_iter().for_each(|written| operator.acknowledge(&site, plan.gateways + 1, written));
            site.settles(number, place);
            assert_eq!(site.states(), (Some(0), vec!["following".to_owned(); plan.gateways + 1]));
        });
        repaired
    });
    site.conclude(&format!("{plan:?}"));
    if plan.loss != Loss::Empty {
        site.is_fork_told();
        assert!(repaired < REPAIRED_WITHIN, "{plan:?}: repaired only after {repaired:?}\n{}", site.logs());
    }
    println!(
        "history on Redis: seed {seed}: whole after {repaired:?}, {:?} in all; {}",
        begun.elapsed(),
        site.book.answers()
    );
}

/// Everything until just before the loss.
fn lead_up(plan: &Plan, site: &Site, store: &mut Store, dir: &Path, random: &mut Rng) {
    let operator = Operator::open(dir);
    let is_backup_bare = random.bool();
    if is_backup_bare {
        store.copy_as("backup");
    }
    operator.begin(site, plan.gateways);
    if !is_backup_bare {
        store.copy_as("backup");
    }
    site.under_load(plan.seed, || {
        operator.change(site, random, plan.gateways, plan.kept);
        store.copy_as("replica");
        store.length = std::fs::metadata(loss::commands_of(store.redis.dir())).unwrap().len();
        operator.change(site, random, plan.gateways, plan.lost);
    });
}

// === impl Plan ===

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        // In turn, so that few runs have seen them all.
        let loss = Loss::ALL[(seed % Loss::ALL.len() as u64) as usize];
        let gateways = random.usize(2..=3);
        Self {
            seed,
            loss,
            gateways,
            kept: random.u64(0..10),
            lost: random.u64(1..=50),
            written: random.usize(0..8),
            dies: random.bool().then(|| random.usize(..gateways)),
            // Into an empty store nobody may come before it is filled.
            is_cold_early: loss != Loss::Empty && random.bool(),
        }
    }
}

// === impl Store ===

impl Store {
    fn start() -> Self {
        Self { redis: RedisServer::start(), copies: tempfile::tempdir().unwrap(), length: 0 }
    }

    fn copy_as(&self, name: &str) {
        loss::copy(self.redis.dir(), &self.copies.path().join(name));
    }

    fn copied(&self, name: &str) -> PathBuf {
        self.copies.path().join(name)
    }

    /// It dies, loses what the plan says, and is there again.
    fn lose(&mut self, plan: &Plan, site: &Site, random: &mut Rng) {
        self.redis.kill();
        plan.dies.iter().for_each(|index| site.places[*index].kill());
        let dir = self.redis.dir();
        match plan.loss {
            Loss::Cut => loss::cut(dir, self.length, None),
            Loss::CutInside => loss::cut(dir, self.length, Some(random)),
            Loss::Promotion => self.put_back("replica"),
            Loss::Backup => self.put_back("backup"),
            Loss::Empty => loss::empty(dir),
        }
        plan.dies.iter().for_each(|index| site.places[*index].start());
        self.redis.restart();
        assert_eq!(self.redis.command("PING"), "+PONG");
    }

    fn put_back(&self, name: &str) {
        loss::empty(self.redis.dir());
        loss::copy(&self.copied(name), self.redis.dir());
    }

    /// A gateway that has never been here.
    fn cold(&self, site: &Site) -> Gateway {
        let toml = format!("[store]\nurl = \"{}\"", self.redis.url());
        Gateway::builder().live(&site.upstream).workers(1).toml(&toml).joining("edge-cold").start()
    }
}
