//! On SQLite: two gateways on one file, in whose place another one is put, and one that joins then.

use super::REPAIRED_WITHIN;
use super::book::{Book, State};
use super::operator::Operator;
use super::site::Site;
use crate::harness::{Gateway, Key, Upstream, eventually};
use fastrand::Rng;
use rusqlite::Connection;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const GATEWAYS: usize = 2;

/// What is put in the file's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// An older copy, by `mv`, under the gateways' feet.
    Moved,
    /// The same by `cp`, while the gateways are stopped: the same file, with other content.
    Copied,
    /// The write-ahead log ends where it ended before, or a little later, after a crash of everything.
    Truncated,
    /// A new file without anything.
    Empty,
    /// The file of another fleet.
    Foreign,
}

#[derive(Debug)]
struct Plan {
    seed: u64,
    loss: Loss,
    kept: u64,
    lost: u64,
    written: usize,
}

/// The database and its copies.
struct Store {
    path: PathBuf,
    copies: tempfile::TempDir,
    /// A gateway whose store is another fleet's, and a key of it.
    other: Option<(Gateway, Key)>,
}

/// Proves it once, as this seed draws it.
pub fn prove(seed: u64) {
    let plan = Plan::draw(seed);
    let begun = Instant::now();
    println!("history on SQLite: {plan:?}");
    let mut random = Rng::with_seed(seed ^ 1);
    let book = Book::new();
    let upstream = book.upstream();
    let first = Gateway::builder().live(&upstream).workers(1).start();
    let second = Gateway::builder().live(&upstream).workers(1).beside(&first, "edge-2").start();
    let dir = first.dir.path().to_owned();
    let store = Store::at(&dir, &plan, &upstream);
    let site = Site::new(book, upstream, vec![first, second]);
    lead_up(&plan, &site, &store, &dir, &mut random);
    let repaired = site.under_load(seed, || {
        store.lose(&plan, &site, &mut random);
        let lost_at = Instant::now();
        store.help(&plan, &site);
        let operator = Operator::open(&dir);
        let written = operator.write(&site, &mut random, plan.written);
        eventually("the store has everything that was acknowledged", || site.is_in(&operator).then_some(()));
        let repaired = lost_at.elapsed();
        let cold_seed = random.u64(..);
        site.with_cold(GATEWAYS, store.cold(&site), cold_seed, |place| {
            written.into_iter().for_each(|written| operator.acknowledge(&site, GATEWAYS + 1, written));
            site.settles(GATEWAYS, place);
            assert_eq!(site.states(), (Some(0), vec!["following".to_owned(); GATEWAYS + 1]));
        });
        repaired
    });
    site.conclude(&format!("{plan:?}"));
    store.check_other(&site);
    if matches!(plan.loss, Loss::Moved | Loss::Copied | Loss::Truncated) {
        site.is_fork_told();
        assert!(repaired < REPAIRED_WITHIN, "{plan:?}: repaired only after {repaired:?}\n{}", site.logs());
    }
    println!(
        "history on SQLite: seed {seed}: whole after {repaired:?}, {:?} in all; {}",
        begun.elapsed(),
        site.book.answers()
    );
}

/// Everything until just before the loss.
fn lead_up(plan: &Plan, site: &Site, store: &Store, dir: &Path, random: &mut Rng) {
    let operator = Operator::open(dir);
    operator.begin(site, GATEWAYS);
    site.under_load(plan.seed, || {
        operator.change(site, random, GATEWAYS, plan.kept);
        store.copy();
        operator.change(site, random, GATEWAYS, plan.lost);
    });
}

// === impl Plan ===

impl Plan {
    fn draw(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let losses = [Loss::Moved, Loss::Copied, Loss::Truncated, Loss::Empty, Loss::Foreign];
        Self {
            seed,
            loss: losses[(seed % losses.len() as u64) as usize],
            kept: random.u64(0..10),
            // So few that the write-ahead log does not begin anew among them.
            lost: random.u64(1..=20),
            written: random.usize(0..8),
        }
    }
}

// === impl Store ===

impl Store {
    fn at(dir: &Path, plan: &Plan, upstream: &Upstream) -> Self {
        let other = (plan.loss == Loss::Foreign).then(|| {
            let gateway = Gateway::builder().live(upstream).start();
            let key = gateway.key(&["orders:read"]);
            (gateway, key)
        });
        Self { path: dir.join("data/keygate.db"), copies: tempfile::tempdir().unwrap(), other }
    }

    fn copied(&self) -> PathBuf {
        self.copies.path().join("copy.db")
    }

    fn beside(&self, end: &str) -> PathBuf {
        PathBuf::from(format!("{}{end}", self.path.display()))
    }

    /// A copy as it is now; and the write-ahead log begins anew, so that it holds what comes now and nothing else.
    fn copy(&self) {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(5)).unwrap();
        connection.execute("VACUUM INTO ?1", [self.copied().to_str().unwrap()]).unwrap();
        let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
        assert_eq!(is_busy, Ok(0));
    }

    fn lose(&self, plan: &Plan, site: &Site, random: &mut Rng) {
        match plan.loss {
            Loss::Moved => self.put("mv", &self.copied()),
            Loss::Copied => self.while_stopped(site, || self.put("cp", &self.copied())),
            Loss::Truncated => self.while_stopped(site, || self.truncate(random)),
            Loss::Empty => {
                let empty = self.copies.path().join("empty.db");
                fs::File::create(&empty).unwrap();
                self.put("mv", &empty);
            }
            Loss::Foreign => {
                let (other, _) = self.other.as_ref().unwrap();
                let path = other.dir.path().join("data/keygate.db");
                let copy = self.copies.path().join("other.db");
                let connection = Connection::open(path).unwrap();
                connection.execute("VACUUM INTO ?1", [copy.to_str().unwrap()]).unwrap();
                self.put("mv", &copy);
            }
        }
    }

    /// By another process: closing the file in this one would take SQLite's locks from it.
    fn put(&self, program: &str, file: &Path) {
        run("rm", &["-f".as_ref(), &self.beside("-wal"), &self.beside("-shm")]);
        run(program, &[file, &self.path]);
    }

    /// Within what was written last.
    fn truncate(&self, random: &mut Rng) {
        let log = fs::read(self.beside("-wal")).unwrap();
        let word = |at: usize| u32::from_be_bytes(log[at..at + 4].try_into().unwrap());
        let (header, frame) = (32, 24 + word(8) as usize);
        // The first frame that ends a transaction says how many pages there are then.
        let end = (header..log.len()).step_by(frame).find(|&at| word(at + 4) != 0).unwrap() + frame;
        let length = random.usize(0..end) as u64;
        fs::OpenOptions::new().write(true).open(self.beside("-wal")).unwrap().set_len(length).unwrap();
    }

    fn while_stopped(&self, site: &Site, act: impl FnOnce()) {
        site.places.iter().for_each(super::site::Place::kill);
        act();
        for place in &site.places {
            // It needs its store to start, and that has to settle first.
            place.excuse(true);
            place.start();
        }
    }

    /// What a person has to do.
    fn help(&self, plan: &Plan, site: &Site) {
        let command = match plan.loss {
            Loss::Moved | Loss::Copied | Loss::Truncated => return,
            Loss::Empty => "reseed",
            Loss::Foreign => "adopt",
        };
        if plan.loss == Loss::Foreign {
            // They are forgotten, unless they have ended.
            let entries = site.book.entries();
            let good = (0..entries.len()).filter(|&index| entries[index].state == State::Good);
            good.for_each(|index| site.book.change(index, |entry| entry.state = State::Foreign));
        }
        site.take_up(0, command);
    }

    /// The other fleet's key works on every gateway that has taken its store.
    fn check_other(&self, site: &Site) {
        let Some((_, key)) = &self.other else { return };
        for place in &site.places {
            let gateway = place.gateway.lock().unwrap();
            let answer = gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]);
            assert_eq!(answer.status, 200);
        }
    }

    /// A gateway that has never been here.
    fn cold(&self, site: &Site) -> Gateway {
        let first = site.places[0].gateway.lock().unwrap();
        Gateway::builder().live(&site.upstream).workers(1).beside(&first, "edge-cold").start()
    }
}

fn run(program: &str, args: &[&Path]) {
    assert!(Command::new(program).args(args).status().unwrap().success());
}
