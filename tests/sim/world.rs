//! The world of one seed: a server, machines, a key manager, clients, and the faults that befall them. Everything happens on one
//! thread; while a call is under way, everything else goes on.

use super::gateway::Machine;
use super::history::History;
use super::link::{Caller, Fate};
use super::lock;
use super::manager::Manager;
use super::oracle::Oracle;
use super::server::{Engine, Row, Server};
use super::time::{MILLIS, SECONDS, Time, True};
use keygate::store::{FleetId, KeyStore as _, Mutation, Position, StoreError};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Events that a violation prints.
const EVENTS: usize = 80;

/// How often what goes wrong: out of ten thousand calls, or steps.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    pub lost: u64,
    pub answer_lost: u64,
    pub late: u64,
    pub dies: u64,
    pub chaos: u64,
    pub forgets: u64,
}

pub struct World {
    pub seed: u64,
    pub time: Time,
    pub engine: Engine,
    /// One, and another while some take a replica of it for the one that counts.
    pub servers: [Server; 2],
    pub main: AtomicUsize,
    pub history: Mutex<History>,
    pub machines: Vec<Machine>,
    pub manager: Manager,
    pub oracle: Mutex<Oracle>,
    pub weather: Weather,
    /// No faults any more.
    pub is_healed: AtomicBool,
    /// No faults until then: those who live must be able to tell the server so, after it lost their rows (protocols, Settle).
    pub calm_until: AtomicU64,
    pub server_back_at: AtomicU64,
    rng: Mutex<fastrand::Rng>,
    late: Mutex<Vec<Sent>>,
    events: Mutex<VecDeque<String>>,
    steps: AtomicU64,
}

/// A request on its way for longer than its client waits.
pub enum Late {
    Row(Row),
    Mutation(Option<FleetId>, Mutation),
}

struct Sent {
    at: True,
    caller: Caller,
    run: u64,
    late: Late,
}

/// The panic of a broken promise.
pub struct Violation(pub String);

// === impl World ===

impl World {
    pub fn new(seed: u64, dir: &Path) -> Arc<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let engine = if rng.u8(..4) == 0 { Engine::Locks } else { Engine::Beats };
        let count = rng.usize(1..=4);
        let has_clone = engine == Engine::Beats && rng.u8(..8) == 0;
        // The last clock is the key manager's.
        let time = Time::new((0..count + 2).map(|_| rng.i64(-1000..=1000)));
        let machines = (0..count + usize::from(has_clone))
            .map(|index| Machine::new(index, dir, rng.u64(3..=12) * SECONDS, index < count))
            .collect();
        let rate = |rng: &mut fastrand::Rng, most: u64| if rng.bool() { rng.u64(..most) } else { 0 };
        let weather = Weather {
            lost: rate(&mut rng, 600),
            answer_lost: rate(&mut rng, 600),
            late: rate(&mut rng, 300),
            dies: rate(&mut rng, 150),
            chaos: rate(&mut rng, 400),
            forgets: rate(&mut rng, 60),
        };
        Arc::new(Self {
            seed,
            manager: Manager::new(time.clock(count + 1).clone()),
            time,
            engine,
            servers: [Server::new(engine, 0), Server::new(engine, 1)],
            main: AtomicUsize::new(0),
            history: Mutex::default(),
            machines,
            oracle: Mutex::default(),
            weather,
            is_healed: AtomicBool::new(false),
            calm_until: AtomicU64::new(0),
            server_back_at: AtomicU64::new(0),
            rng: Mutex::new(rng),
            late: Mutex::default(),
            events: Mutex::default(),
            steps: AtomicU64::new(0),
        })
    }

    // === Chance ===

    pub fn below(&self, bound: u64) -> u64 {
        lock(&self.rng).u64(..bound)
    }

    pub fn one_in(&self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// A time up to `most`, short ones as likely as long ones.
    pub fn span(&self, most: True) -> True {
        let bits = u64::from(most.ilog2());
        (1 << self.below(bits + 1)) + self.below(most / 8)
    }

    /// A time from which much has run out, or not.
    pub fn outage(&self, most: True) -> True {
        if self.one_in(2) { self.span(most) } else { self.below(most) }
    }

    pub fn is_calm(&self) -> bool {
        self.is_healed.load(Ordering::Relaxed) || self.time.now() < self.calm_until.load(Ordering::Relaxed)
    }

    /// What becomes of the next call.
    pub fn fate(&self, caller: Caller, may_be_late: bool) -> Fate {
        let Weather { lost, answer_lost, late, dies, .. } = self.weather;
        if let Caller::Gateway(process) = caller
            && self.machines[process.machine].is_doomed()
        {
            return Fate::DiesBefore;
        }
        if self.is_calm_for(caller) {
            return Fate::Arrives;
        }
        // The first steps are those in which most can be lost.
        let starts = matches!(caller, Caller::Gateway(process) if !self.machines[process.machine].is_serving());
        let harder = if starts { 3 } else { 1 };
        let (lost, answer_lost, dies) = (lost * harder, answer_lost * harder, dies * harder);
        let may_die = matches!(caller, Caller::Gateway(_));
        match self.below(10_000) {
            at if at < lost => Fate::RequestLost,
            at if at < lost + answer_lost => Fate::AnswerLost,
            at if may_be_late && self.engine == Engine::Beats && at < lost + answer_lost + late => Fate::RequestLate,
            at if may_die && at >= 10_000 - dies && self.one_in(2) => Fate::DiesBefore,
            at if may_die && at >= 10_000 - dies => Fate::DiesAfter,
            _ => Fate::Arrives,
        }
    }

    /// Whether the server can be reached.
    pub fn reaches(&self, caller: Caller) -> bool {
        let now = self.time.now();
        let is_cut_off = match caller {
            Caller::Gateway(process) => self.machines[process.machine].is_cut_off(now),
            Caller::Manager => now < self.manager.cut_off_until(),
            Caller::Nobody => false,
        };
        self.server(caller).is_up() && !is_cut_off
    }

    /// Whether what the caller has to say is refused.
    pub fn is_mute(&self, caller: Caller) -> bool {
        matches!(caller, Caller::Gateway(process) if self.time.now() < self.machines[process.machine].mute_until())
    }

    // === Time ===

    /// Time passes on the way between a client and the server, and as long as the client does not run.
    pub fn pass_latency(self: &Arc<Self>, caller: Caller) {
        let starts = matches!(caller, Caller::Gateway(process) if !self.machines[process.machine].is_serving());
        let is_slow = self.one_in(if starts { 4 } else { 20 }) && !self.is_calm() && !self.shelters();
        let most = if is_slow { 1500 * MILLIS } else { 4 * MILLIS };
        self.during(100 + self.below(most) + self.sheltered_delay(caller), caller);
        if let Caller::Gateway(process) = caller {
            let resumes = self.machines[process.machine].paused_until();
            self.during(resumes.saturating_sub(self.time.now()), caller);
        }
    }

    /// Time passes, and whatever else happens meanwhile.
    pub fn during(self: &Arc<Self>, micros: True, caller: Caller) {
        let end = self.time.now() + micros;
        while let Some(rest) = end.checked_sub(self.time.now()).filter(|rest| *rest > 0) {
            let slice = (self.below(40 * MILLIS) + 1).min(rest);
            self.time.pass(slice);
            if slice > 5 * MILLIS || self.one_in(4) {
                self.happen(caller);
            }
        }
    }

    /// Lets everything run that is due.
    fn happen(self: &Arc<Self>, caller: Caller) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if !self.is_calm() && self.below(10_000) < self.weather.chaos {
            self.befall();
        }
        if !self.is_calm() && self.below(10_000) < self.weather.forgets {
            self.forget();
        }
        self.go_on_with_history();
        self.restart_server_if_due();
        self.deliver_late();
        self.manager.step(self, caller);
        for machine in &self.machines {
            machine.run_if_due(self);
            machine.check_in_flight(self);
        }
        self.ask();
    }

    fn deliver_late(&self) {
        let now = self.time.now();
        let due: Vec<Sent> = {
            let mut late = lock(&self.late);
            let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut *late).into_iter().partition(|sent| sent.at <= now);
            *late = rest;
            due
        };
        // What waits in a server's sockets is lost with it.
        for Sent { caller, run, late, .. } in due {
            let server = self.server(caller);
            if !server.is_up() || server.run() != run {
                continue;
            }
            match late {
                Late::Row(row) => {
                    self.note(|| format!("{caller:?}: a row told long ago arrives, pos {}", row.member.pos));
                    self.receive_row(caller, row);
                }
                Late::Mutation(expected, mutation) => _ = self.receive(caller, expected, &mutation),
            }
        }
    }

    pub fn send_late(&self, caller: Caller, late: Late) {
        let at = self.time.now() + SECONDS + self.span(4 * SECONDS);
        let run = self.server(caller).run();
        lock(&self.late).push(Sent { at, caller, run, late });
    }

    // === What the server receives ===

    pub fn receive_row(&self, caller: Caller, row: Row) -> bool {
        if let Caller::Gateway(process) = caller {
            let position = Position { seq: row.member.pos, token: row.member.token };
            let is_held = self.server(caller).store.holds(position).unwrap();
            if position.seq > 0 && is_held {
                lock(&self.oracle).confirm(self.time.now(), process, self.site(caller), position);
                self.machines[process.machine].check_cut(self, process, position.seq);
            }
        }
        self.server(caller).put_row(row)
    }

    pub fn receive(
        &self,
        caller: Caller,
        expected: Option<FleetId>,
        mutation: &Mutation,
    ) -> Result<Vec<u64>, StoreError> {
        let (server, site) = (self.server(caller), self.site(caller));
        self.check_writer(caller, expected)?;
        self.copy_before_change(caller);
        let (seqs, changes) = server.apply(mutation)?;
        for change in changes {
            self.note(|| {
                let (action, name) = (change.action.as_str(), super::name(&change.after));
                format!("server {site}: {} {action} {name} by {}", change.seq, change.actor)
            });
            lock(&self.oracle).write(self.time.now(), site, change);
        }
        for machine in self.machines.iter().filter(|_| self.one_in(2)) {
            machine.ring(self.time.now() + self.below(20 * MILLIS));
        }
        Ok(seqs)
    }

    // === Clients ===

    /// Somebody presents a key somewhere.
    fn ask(&self) {
        for _ in 0..2 {
            let machine = &self.machines[self.below(self.machines.len() as u64) as usize];
            let made = lock(&self.oracle).digests().len() as u64;
            // One more: a key that was never made.
            let index = self.below(made + 1) as usize;
            let oracle = lock(&self.oracle);
            let latest = oracle.logs[self.main.load(Ordering::Relaxed)].latest().filter(|_| self.one_in(2));
            let digest = latest.or_else(|| oracle.digests().get(index).copied());
            drop(oracle);
            let never = || keygate::key::Digest::of(&self.below(u64::MAX).to_be_bytes());
            machine.ask(self, digest.unwrap_or_else(never));
        }
    }

    // === Telling ===

    pub fn note(&self, event: impl FnOnce() -> String) {
        let mut events = lock(&self.events);
        if events.len() == EVENTS {
            events.pop_front();
        }
        let (now, steps) = (self.time.now(), self.steps.load(Ordering::Relaxed));
        events.push_back(format!("{steps:6} {:4}.{:06} {}", now / SECONDS, now % SECONDS, event()));
    }

    /// Ends the seed: a promise was broken.
    pub fn violated(&self, what: &str) -> ! {
        let mut text = format!("seed {}, step {}: {what}\n", self.seed, self.steps.load(Ordering::Relaxed));
        _ = writeln!(text, "{:?}, {} machines, {:?}", self.engine, self.machines.len(), self.weather);
        lock(&self.events).iter().for_each(|event| _ = writeln!(text, "  {event}"));
        std::panic::resume_unwind(Box::new(Violation(text)))
    }
}
