//! A gateway under load, what was seen of it, and its journal: each held against the others.

use super::ledger::{Answer, Ledger};
use super::lines::Reader;
use super::load::{Clients, Load};
use crate::harness::gateway::keygate;
use crate::harness::{Gateway, Key, eventually};
use fastrand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a start may take that is killed.
const STARTING_US: u64 = 80_000;

/// How a site is to be.
pub struct Plan<'a> {
    /// `[audit]`, but `dir`.
    pub audit: &'a str,
    /// The journal's directory; none for one beside the gateway's other files.
    pub dir: Option<&'a Path>,
    /// Requests a second of clients with a good key; none for as many as there can be.
    pub rate: Option<u32>,
    pub clients: Clients,
    pub workers: usize,
}

pub struct Site {
    pub gateway: Gateway,
    pub tally: Tally,
    pub ledger: Arc<Ledger>,
    key: Key,
    reader: Reader,
    fates: HashMap<String, Fate>,
    rate: Option<u32>,
    clients: Clients,
}

/// What is compared of a request's record.
struct Fate {
    status: Option<u64>,
    is_dead: bool,
}

/// Sums over the whole run.
#[derive(Debug, Default)]
pub struct Tally {
    pub answered: usize,
    pub arrived: usize,
    pub records: usize,
    /// Those that say which key was shown.
    pub of_key: usize,
    /// Records of requests that died with the gateway.
    pub died: usize,
    pub strangers_recorded: u64,
    pub strangers_counted: u64,
    /// Numbers without a record.
    pub lacking: u64,
    pub seals: usize,
    /// How the process before ended, as the records of starts say.
    pub after: BTreeMap<String, usize>,
    /// How many gap records there are, and what they tell in all, by member.
    pub gaps: usize,
    pub told: BTreeMap<String, u64>,
    /// The ids of what the records of changes say was changed, in their order.
    pub changes: Vec<String>,
}

/// What was seen and is not in the journal.
#[derive(Debug, Default)]
pub struct Missing {
    /// Received whole, without a complete record of that status.
    pub answered: Vec<Answer>,
    /// Ids of requests that arrived at the upstream and have no record at all.
    pub arrived: Vec<String>,
}

/// Of each death, the age of the oldest answer that was lost.
#[derive(Default)]
pub struct Ages {
    ages: Vec<Duration>,
    lost: usize,
    deaths: usize,
}

// === impl Site ===

impl Site {
    pub fn start(plan: &Plan) -> Self {
        let ledger = Arc::new(Ledger::default());
        let dir = plan.dir.map_or_else(String::new, |dir| format!("dir = \"{}\"\n", dir.display()));
        let toml = format!("[audit]\n{dir}{}", plan.audit);
        let gateway = Gateway::builder().workers(plan.workers).live_at(ledger.upstream()).toml(&toml).start();
        let key = gateway.key(&["orders:read", "orders:write"]);
        let audit = plan.dir.map_or_else(|| gateway.dir.path().join("data/audit"), Path::to_owned);
        let reader = Reader::new(&audit);
        let (rate, clients) = (plan.rate, plan.clients);
        Self { gateway, tally: Tally::default(), ledger, key, reader, fates: HashMap::new(), rate, clients }
    }

    /// Runs clients of every kind while `meanwhile` runs, and until they have ended.
    pub fn load(&self, random: &mut Rng, meanwhile: impl FnOnce()) {
        let bearer = self.key.bearer();
        let load = Load {
            ledger: &self.ledger,
            address: self.gateway.address,
            bearer: &bearer,
            rate: self.rate,
            clients: self.clients,
            stop: false.into(),
        };
        load.while_running(random, meanwhile);
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.gateway.pid().try_into().unwrap()).unwrap()
    }

    /// Kills the gateway when it has been under load for so long; gives the moment.
    pub fn kill_under_load(&mut self, random: &mut Rng, life: Duration) -> Instant {
        let pid = self.pid();
        let mut killed = None;
        self.load(random, || {
            std::thread::sleep(life);
            killed = Some(Instant::now());
            kill_process(pid, Signal::KILL).unwrap();
        });
        self.gateway.wait();
        self.wait_for_upstream();
        killed.unwrap()
    }

    /// Starts the gateway again and kills it before it may be ready.
    pub fn die_while_starting(&self, random: &mut Rng) {
        let mut command = keygate(self.gateway.dir.path());
        let command = command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.u64(..STARTING_US)));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Waits until the upstream has seen everything that was sent to it. The gateway has ended, or closed its connections.
    pub fn wait_for_upstream(&self) {
        eventually("the upstream has seen the end of every connection", || self.ledger.is_quiet().then_some(()));
    }

    /// Reads what is new in the journal, and gives what was seen since the last time and is not there.
    pub fn settle(&mut self) -> Missing {
        let seen = Missing { answered: self.ledger.take_answered(), arrived: self.ledger.take_arrived() };
        self.tally.answered += seen.answered.len();
        self.tally.arrived += seen.arrived.len();
        self.settle_again(seen)
    }

    /// Reads what is new in the journal, and gives what is still not there of what was missing.
    pub fn settle_again(&mut self, mut missing: Missing) -> Missing {
        let lines = self.reader.read();
        assert_eq!(lines.damaged, Vec::<String>::new(), "damage in the journal");
        self.tally.lacking += lines.lacking;
        lines.records.iter().for_each(|record| self.enter(record));
        let is_complete = |answer: &Answer| {
            self.fates.get(&answer.id).is_some_and(|fate| !fate.is_dead && fate.status == Some(answer.status.into()))
        };
        missing.answered.retain(|answer| !is_complete(answer));
        missing.arrived.retain(|id| !self.fates.contains_key(id));
        missing
    }

    fn enter(&mut self, record: &Value) {
        let counts = record["counts"].as_object().filter(|_| record["kind"] == "summary");
        self.tally.strangers_counted += counts.map_or(0, |counts| counts.values().filter_map(Value::as_u64).sum());
        match record["kind"].as_str() {
            Some("request") => self.enter_request(record),
            Some("gap") => self.enter_gap(record),
            Some("change") => self.tally.changes.extend(record["after"]["id"].as_str().map(str::to_owned)),
            Some("seal") => self.tally.seals += 1,
            Some("start") => *self.tally.after.entry(record["after"].as_str().unwrap().to_owned()).or_default() += 1,
            _ => {}
        }
    }

    fn enter_gap(&mut self, record: &Value) {
        self.tally.gaps += 1;
        let members =
            record.as_object().unwrap().iter().filter(|(name, _)| !["schema", "seq"].contains(&name.as_str()));
        for (name, count) in members.filter_map(|(name, value)| Some((name, value.as_u64()?))) {
            *self.tally.told.entry(name.clone()).or_default() += count;
        }
    }

    fn enter_request(&mut self, record: &Value) {
        let is_dead = record["reason"] == "gateway_died";
        self.tally.records += 1;
        self.tally.of_key += usize::from(record["key_id"] == self.key.id.as_str());
        self.tally.died += usize::from(is_dead);
        self.tally.strangers_recorded += u64::from(record["reason"] == "missing_api_key");
        let (id, fate) = (record["request_id"].as_str().unwrap(), Fate { status: record["status"].as_u64(), is_dead });
        assert!(fate.status.is_none() || !is_dead, "a request that died has a status: {record}");
        assert!(self.fates.insert(id.to_owned(), fate).is_none(), "two records of {id}");
    }

    /// What the program itself says of the journal: it is whole and chained, and it finds every record of the key.
    pub fn verify(&self) {
        let output = self.gateway.run(&["audit", "verify"]);
        let words = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{words}");
        let found = self.gateway.run(&["logs", "--key", &self.key.id, "--output", "ndjson", "--limit", "10000000"]);
        let found = String::from_utf8(found.stdout).unwrap();
        let ids = found.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["request_id"].to_string());
        assert_eq!((found.lines().count(), ids.collect::<BTreeSet<_>>().len()), (self.tally.of_key, self.tally.of_key));
    }

    /// Every stranger that was answered is recorded or counted, and none that never was there.
    pub fn assert_strangers_accounted(&self) {
        let (strangers, told) = (self.ledger.strangers(), self.tally.strangers_recorded + self.tally.strangers_counted);
        assert!(
            (strangers.answered..=strangers.sent).contains(&told),
            "{told} strangers are accounted for; {} were answered of {} that asked",
            strangers.answered,
            strangers.sent
        );
    }
}

// === impl Missing ===

impl Missing {
    pub fn is_empty(&self) -> bool {
        self.answered.is_empty() && self.arrived.is_empty()
    }
}

impl std::fmt::Display for Missing {
    /// All the numbers and some of the rest.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { answered, arrived } = self;
        let (some_answered, some_arrived) =
            (answered.get(..5).unwrap_or(answered), arrived.get(..5).unwrap_or(arrived));
        write!(f, "not in the journal: {} answers {some_answered:?}, ", answered.len())?;
        write!(f, "{} requests that reached the upstream {some_arrived:?}", arrived.len())
    }
}

// === impl Ages ===

impl Ages {
    pub fn add(&mut self, missing: &Missing, death: Instant) {
        self.lost += missing.answered.len();
        self.deaths += 1;
        self.ages.extend(missing.answered.iter().map(|answer| death.saturating_duration_since(answer.at)).max());
    }

    /// Prints and gives them.
    pub fn sorted(mut self) -> Vec<Duration> {
        self.ages.sort();
        let (oldest, median) = (self.ages.last(), self.ages.get(self.ages.len() / 2));
        println!("{} answered requests lost in {} of {} deaths", self.lost, self.ages.len(), self.deaths);
        println!("age of the oldest of each: at most {oldest:?}, median {median:?}");
        self.ages
    }
}
