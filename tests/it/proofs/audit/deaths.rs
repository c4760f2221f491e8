//! A gateway is killed at random moments under load, again and again: whatever anybody saw of a request is in the journal.

use super::load::Clients;
use super::site::{Ages, Plan, Site};
use fastrand::Rng;
use std::time::Duration;

/// How hard it is to be.
pub struct Run {
    /// The same seed draws the same moments, though not of the same requests.
    pub seed: u64,
    pub times: usize,
    /// Requests a second of clients with a good key; none for as many as there can be.
    pub rate: Option<u32>,
    /// Between a start and a death: at least, and how much more at most.
    pub life: Duration,
    pub life_more: Duration,
}

/// Beyond this many a second, strangers are counted rather than recorded: few, so that there are counts to be lost.
const STRANGERS: &str = "anonymous_per_second = 20\n";

/// Every so many lives, one is long enough for the journal to be sealed in it.
const LONG_LIFE: usize = 16;
const LONG: Duration = Duration::from_millis(1200);

// === impl Run ===

impl Run {
    pub fn draw_life(&self, random: &mut Rng) -> Duration {
        self.life + self.life_more.mul_f64(random.f64())
    }
}

/// With `durability = "written"` nothing that anybody saw is lost, and nothing is there twice.
pub fn prove(run: &Run) {
    println!("deaths: seed {}, {} times", run.seed, run.times);
    let mut random = Rng::with_seed(run.seed);
    let audit = format!("durability = \"written\"\n{STRANGERS}");
    let mut site = Site::start(&Plan { audit: &audit, dir: None, rate: run.rate, clients: Clients::All, workers: 2 });
    for death in 1..=run.times {
        let more = if death % LONG_LIFE == 0 { LONG } else { Duration::ZERO };
        let life = more + run.draw_life(&mut random);
        site.kill_under_load(&mut random, life);
        if random.u8(..4) == 0 {
            site.die_while_starting(&mut random);
        }
        site.gateway.restart();
        let missing = site.settle();
        assert!(missing.is_empty(), "seed {}, death {death}: {missing}", run.seed);
        assert_eq!(site.tally.lacking, 0, "seed {}, death {death}: numbers lack", run.seed);
        site.assert_strangers_accounted();
    }
    println!("{:?}", site.tally);
    assert!(site.tally.after["kill"] >= run.times && site.tally.seals > 0);
    assert!(!site.tally.after.contains_key("stop"), "a kill was told as a stop");
    site.verify();
    let seen = [site.tally.answered, site.tally.arrived, site.tally.died];
    assert!(seen.iter().all(|seen| *seen > run.times), "too little was seen to prove anything: {seen:?}");
    assert!(site.tally.strangers_counted > 0, "no stranger was counted");
}

/// With `durability = "async"` what was under way at the kill leaves no record; of what was answered nothing is lost, is there
/// twice or lacks its number.
pub fn forget_what_was_under_way(run: &Run) {
    println!("deaths without a word of what was under way: seed {}, {} times", run.seed, run.times);
    let mut random = Rng::with_seed(run.seed);
    let plan =
        Plan { audit: "durability = \"async\"\n", dir: None, rate: run.rate, clients: Clients::Known, workers: 2 };
    let mut site = Site::start(&plan);
    let mut ages = Ages::default();
    for death in 1..=run.times {
        let life = run.draw_life(&mut random);
        let killed = site.kill_under_load(&mut random, life);
        site.gateway.restart();
        ages.add(&site.settle(), killed);
        assert_eq!(site.tally.lacking, 0, "seed {}, death {death}: numbers lack", run.seed);
    }
    println!("{:?}", site.tally);
    assert_eq!((site.tally.after["kill"], ages.sorted()), (run.times, Vec::new()));
    assert_eq!(site.tally.died, 0, "nobody had said that they were under way");
}
