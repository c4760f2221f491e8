//! A machine with a gateway: its clocks and its disk outlive the processes that run on it, one after the other.

use super::link::{Caller, Crash, RemoteStore};
use super::lock;
use super::log::Saying;
use super::oracle::{Answer, Process, Witness};
use super::server::Engine;
use super::time::{MILLIS, SECONDS, True};
use super::world::World;
use keygate::auth::follower::{Follower, Parts, Turn};
use keygate::auth::snapshot::Kept;
use keygate::auth::{Authentication, Authenticator, Fills, KeyCache, Settings, Snapshot};
use keygate::clock::{Clock, Moment};
use keygate::key::{Digest, Prefix};
use keygate::reason::Reason;
use keygate::store::{FleetId, KeyStore as _, Member, StoreError};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a follower rests after a failure, and at most otherwise.
const REST: True = 500 * MILLIS;

pub struct Machine {
    index: usize,
    snapshot: PathBuf,
    max_stale: True,
    is_original: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Running>,
    /// What the file `instance` beside the snapshot holds: who was here last.
    instance: Option<String>,
    processes: u64,
    is_cloned: bool,
    is_doomed: bool,
    /// From when until when the server cannot be reached.
    cut_off: (True, True),
    mute_until: True,
    paused_until: True,
    /// When the next turn is due, or the next process.
    due: True,
}

struct Running {
    process: Process,
    instance: String,
    service: Arc<Service>,
    /// None while it is in the middle of a turn.
    follower: Option<Follower>,
    is_serving: bool,
    /// Its last turn found that the store is not the one that it followed.
    is_held: bool,
}

/// What the workers have.
struct Service {
    authenticator: Authenticator,
    cache: Arc<KeyCache>,
    clock: Clock,
    in_flight: Mutex<Vec<Exchange>>,
}

/// A request that is being served, by what a key's record said.
struct Exchange {
    digest: Digest,
    saying: Saying,
}

// === impl Machine ===

impl Machine {
    pub fn new(index: usize, dir: &Path, max_stale: True, is_original: bool) -> Self {
        let dir = dir.join(format!("machine-{index}"));
        fs::create_dir_all(&dir).unwrap();
        let due = if is_original { 0 } else { True::MAX };
        let state = Mutex::new(State { due, is_cloned: !is_original, ..State::default() });
        Self { index, snapshot: dir.join("keys.snapshot"), max_stale, is_original, state }
    }

    pub const fn is_original(&self) -> bool {
        self.is_original
    }

    pub fn is_cut_off(&self, now: True) -> bool {
        let (from, until) = lock(&self.state).cut_off;
        from <= now && now < until
    }

    pub fn mute_until(&self) -> True {
        lock(&self.state).mute_until
    }

    pub fn paused_until(&self) -> True {
        lock(&self.state).paused_until
    }

    /// Whether the process here is to die at its next step.
    pub fn is_doomed(&self) -> bool {
        lock(&self.state).is_doomed
    }

    /// Whether this is the row of a process here that is able to tell it again soon.
    pub fn is_well(&self, instance: &str, now: True) -> bool {
        let state = lock(&self.state);
        let is_here = state.running.as_ref().is_some_and(|running| running.instance == instance);
        is_here && !state.is_doomed && state.cut_off.1.max(state.mute_until) <= now && state.paused_until <= now
    }

    /// There may be something new.
    pub fn ring(&self, at: True) {
        let mut state = lock(&self.state);
        if state.running.is_some() {
            state.due = state.due.min(at);
        }
    }

    // === A process's life ===

    pub fn run_if_due(&self, world: &Arc<World>) {
        let follower = {
            let mut state = lock(&self.state);
            let now = world.time.now();
            if now < state.paused_until || now < state.due && !state.is_doomed {
                return;
            }
            if state.running.is_none() && world.is_unnoticed() {
                return;
            }
            // In the middle of a turn, that one goes on first.
            state.running.as_mut().map(|running| running.follower.take())
        };
        match follower {
            None => self.start(world),
            Some(None) => {}
            Some(Some(follower)) if self.is_doomed() => {
                drop(follower);
                self.died(world);
            }
            Some(Some(follower)) => self.turn(world, follower),
        }
    }

    fn start(&self, world: &Arc<World>) {
        let (process, member) = self.take_place(world);
        let service = Arc::new(self.service(world));
        let instance = member.instance.clone();
        let mut follower = self.follower(world, process, member, &service);
        let running = Running { process, instance, service, follower: None, is_serving: false, is_held: false };
        lock(&self.state).running = Some(running);
        world.note(|| format!("machine {}: process {} starts", self.index, process.number));
        let started = catch_unwind(AssertUnwindSafe(|| {
            let started = follower.start();
            (started, follower)
        }));
        match started {
            Ok((started, follower)) => {
                world.note(|| format!("machine {}: serves; {started:?}", self.index));
                if let Some(running) = &mut lock(&self.state).running {
                    running.is_serving = true;
                }
                let turn = started.map(|()| Turn::CaughtUp);
                self.rest(world, follower, &turn);
            }
            Err(panic) => self.died_of(world, panic),
        }
    }

    /// As the gateway does: a new instance in the place of the one whose name is in the file.
    fn take_place(&self, world: &World) -> (Process, Member) {
        let mut state = lock(&self.state);
        (state.processes, state.is_doomed) = (state.processes + 1, false);
        let process = Process { machine: self.index, number: state.processes };
        let instance = format!("m{}-p{}-{}", self.index, state.processes, world.below(1000));
        let replaces = state.instance.replace(instance.clone());
        let gateway = format!("gw-{}", self.index);
        (process, Member { instance, replaces, gateway, max_stale_ms: self.max_stale / MILLIS, ..Member::default() })
    }

    fn service(&self, world: &World) -> Service {
        let cache = Arc::new(KeyCache::new(1000, Duration::from_micros(self.max_stale), 0));
        let authenticator = Authenticator::new(prefix(), Arc::clone(&cache), Fills::new().0);
        let clock = world.time.clock(self.index).clone();
        Service { authenticator, cache, clock, in_flight: Mutex::default() }
    }

    fn follower(&self, world: &Arc<World>, process: Process, member: Member, service: &Arc<Service>) -> Follower {
        let max_stale = Duration::from_micros(self.max_stale);
        let vocabulary = Arc::new(super::manager::vocabulary());
        let (cutting, hearing) = (Arc::clone(service), Arc::clone(world));
        Follower::new(Parts {
            cache: Arc::clone(&service.cache),
            store: Arc::new(RemoteStore::new(world, Caller::Gateway(process))),
            settings: Settings { prefix: prefix(), keys_max: 1000, max_stale, vocabulary },
            snapshot: Some(Snapshot::at(self.snapshot.clone())),
            clock: service.clock.clone(),
            member,
            fills: Fills::new().0,
            cut: Box::new(move |_| {
                let service = Arc::clone(&cutting);
                Box::new(move || service.judge_again())
            }),
            heard: Box::new(move |change| lock(&hearing.oracle).hear(hearing.time.now(), process, change.token)),
        })
        .unwrap()
    }

    fn turn(&self, world: &Arc<World>, mut follower: Follower) {
        let turned = catch_unwind(AssertUnwindSafe(|| {
            let turn = follower.turn();
            (turn, follower)
        }));
        match turned {
            Ok((turn, follower)) => self.rest(world, follower, &turn),
            Err(panic) => self.died_of(world, panic),
        }
    }

    fn rest(&self, world: &World, follower: Follower, turn: &Result<Turn, StoreError>) {
        let rest = match turn {
            Ok(Turn::Behind) => 0,
            Ok(Turn::CaughtUp) => world.below(REST),
            Ok(Turn::Held) => {
                self.check_held(world);
                REST
            }
            Err(_) => REST,
        };
        let mut state = lock(&self.state);
        state.due = world.time.now() + rest;
        if let Some(running) = &mut state.running {
            running.follower = Some(follower);
            running.is_held = matches!(turn, Ok(Turn::Held));
        }
    }

    fn died_of(&self, world: &World, panic: Box<dyn std::any::Any + Send>) {
        if !panic.is::<Crash>() {
            std::panic::resume_unwind(panic);
        }
        self.died(world);
    }

    /// What was not on disk is gone.
    fn died(&self, world: &World) {
        self.gone(world, world.time.now() + world.span(10 * SECONDS));
        _ = fs::remove_file(self.draft());
        if world.one_in(2) {
            self.tear(world);
        }
    }

    /// Nobody runs here until `back`.
    fn gone(&self, world: &World, back: True) {
        // Many a machine starts again before its network does.
        let is_cut_off = !world.is_calm() && world.one_in(3);
        let until = if is_cut_off { back + world.outage(10 * SECONDS) } else { 0 };
        let mut state = lock(&self.state);
        let Some(running) = state.running.take() else { return };
        (state.is_doomed, state.due) = (false, back);
        if is_cut_off {
            state.cut_off = (world.time.now(), until);
        }
        world.note(|| format!("machine {}: process {} is gone", self.index, running.process.number));
        if world.engine == Engine::Locks {
            world.server(Caller::Nobody).remove_row(&running.instance);
        }
    }

    /// The last write did not come to its end.
    fn tear(&self, world: &World) {
        let is_log = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "log");
        let logs = fs::read_dir(self.directory()).unwrap().map(|entry| entry.unwrap().path()).filter(is_log);
        if let Some(log) = logs.max() {
            let torn: Vec<u8> = (0..world.below(60)).map(|_| world.below(256) as u8).collect();
            let mut bytes = fs::read(&log).unwrap();
            bytes.extend(torn);
            fs::write(&log, bytes).unwrap();
        }
    }

    // === What it stands for when a store forgets ===

    /// The process here, if it is able to tell a store again, soon, all that was promised of the store's fleet.
    pub fn witness_for(&self, world: &World, fleet: FleetId) -> Option<Process> {
        let now = world.time.now();
        let (process, instance) = {
            let state = lock(&self.state);
            let running = state.running.as_ref().filter(|running| running.is_serving && !running.is_held)?;
            // In the middle of a call, it goes on only when everything has that began meanwhile.
            let is_well = running.follower.is_some()
                && !state.is_doomed
                && !state.is_cloned
                && state.paused_until <= now
                && state.mute_until <= now;
            (is_well && state.cut_off.1 <= now).then(|| (running.process, running.instance.clone()))?
        };
        let row = world.server(Caller::Gateway(process)).row(&instance)?;
        let oracle = lock(&world.oracle);
        let knows = row.pos > 0
            && !row.volatile
            && row.held.is_none()
            && oracle.has_all(self.index, world.site(Caller::Gateway(process)), fleet);
        (knows && self.snapshot.exists() && oracle.fleet_of(process) == Some(fleet)).then_some(process)
    }

    pub fn is_held(&self) -> bool {
        self.held_process().is_some()
    }

    pub fn held_process(&self) -> Option<Process> {
        lock(&self.state).running.as_ref().filter(|running| running.is_held).map(|running| running.process)
    }

    /// Held is only who has followed another store, or one with which there is nothing in common.
    fn check_held(&self, world: &World) {
        let Some(process) = lock(&self.state).running.as_ref().map(|running| running.process) else { return };
        let server = world.server(Caller::Gateway(process));
        let fleet = lock(&world.oracle).fleet_of(process);
        world.notice(Caller::Gateway(process));
        let is_ours = fleet.is_some() && server.store.fleet_id().unwrap() == fleet;
        if is_ours && world.has_stood() && lock(&world.oracle).has_common(process, world.site(Caller::Gateway(process)))
        {
            world.violated(&format!("I4: machine {} is held although the store is its own", self.index));
        }
        world.note(|| format!("machine {}: held", self.index));
    }

    /// What is on its disk, if that is all that was promised of a fleet.
    pub fn all_of(&self, world: &World, fleet: FleetId) -> Option<Kept> {
        let kept = self.kept().filter(|kept| kept.lineage.fleet == Some(fleet) && self.is_original)?;
        let oracle = lock(&world.oracle);
        oracle.has_all(self.index, world.site(Caller::Nobody), fleet).then_some(kept)
    }

    /// What is on its disk.
    pub fn kept(&self) -> Option<Kept> {
        Snapshot::at(self.snapshot.clone()).read().unwrap_or(None)
    }

    // === What befalls it ===

    pub fn cut_off(&self, world: &World, until: True) {
        world.note(|| format!("machine {}: cut off until {until}", self.index));
        lock(&self.state).cut_off = (world.time.now(), until);
    }

    /// What it tells the server is refused, and what it asks is answered, until that fails too: by then its row may be gone.
    pub fn mute(&self, world: &World) {
        let from = world.time.now() + world.outage(2 * self.max_stale + 8 * SECONDS);
        let until = from + world.outage(16 * SECONDS);
        world.note(|| format!("machine {}: mute until {until}, cut off from {from}", self.index));
        let mut state = lock(&self.state);
        (state.cut_off, state.mute_until) = ((from, until), until);
    }

    pub fn pause(&self, world: &World, until: True) {
        world.note(|| format!("machine {}: paused until {until}", self.index));
        lock(&self.state).paused_until = until;
    }

    /// Its process dies, wherever it is.
    pub fn doom(&self, world: &World) {
        let mut state = lock(&self.state);
        if state.running.is_some() {
            world.note(|| format!("machine {}: to be killed", self.index));
            state.is_doomed = true;
        }
    }

    /// Leaves the fleet once nothing is in flight, and comes back later.
    pub fn leave(&self, world: &World, back: True) {
        let follower = {
            let mut state = lock(&self.state);
            let is_paused = world.time.now() < state.paused_until;
            let running = state.running.as_mut().filter(|running| running.is_serving && !is_paused);
            running.and_then(|running| running.follower.take())
        };
        let Some(follower) = follower else { return };
        world.note(|| format!("machine {}: leaves", self.index));
        if let Some(running) = &mut lock(&self.state).running {
            running.is_serving = false;
            lock(&running.service.in_flight).clear();
        }
        match catch_unwind(AssertUnwindSafe(|| follower.leave())) {
            Ok(()) => self.gone(world, back),
            Err(panic) => self.died_of(world, panic),
        }
    }

    /// From now on, or no longer, nothing new can be written beside the snapshot.
    pub fn block_disk(&self, world: &World) {
        let draft = self.draft();
        if draft.is_dir() {
            world.note(|| format!("machine {}: snapshots can be written again", self.index));
            fs::remove_dir(draft).unwrap();
        } else if !draft.exists() {
            world.note(|| format!("machine {}: no snapshot can be written", self.index));
            fs::create_dir(draft).unwrap();
        }
    }

    /// Gets the disk of `original` as it is now, and starts from it.
    pub fn become_clone(&self, world: &World, original: &Self) {
        if lock(&self.state).due != True::MAX {
            return;
        }
        world.note(|| format!("machine {}: a clone of machine {}", self.index, original.index));
        for entry in fs::read_dir(original.directory()).unwrap().map(|entry| entry.unwrap()) {
            let copy = self.directory().join(entry.file_name());
            // Where no snapshot can be written, one that is being written finds a directory in its place.
            if entry.path().is_file() && !copy.is_dir() {
                fs::copy(entry.path(), copy).unwrap();
            }
        }
        let mut theirs = lock(&original.state);
        lock(&world.oracle).copy(original.index, self.index);
        theirs.is_cloned = true;
        let mut state = lock(&self.state);
        (state.instance, state.due) = (theirs.instance.clone(), world.time.now());
    }

    /// Everything works from now on.
    pub fn heal(&self, now: True) {
        if self.draft().is_dir() {
            fs::remove_dir(self.draft()).unwrap();
        }
        let mut state = lock(&self.state);
        (state.cut_off, state.mute_until, state.paused_until) = ((0, 0), 0, 0);
        if state.running.is_none() && state.due != True::MAX {
            state.due = now;
        }
    }

    /// Ends the process, whatever it does.
    pub fn end(&self) {
        lock(&self.state).running = None;
    }

    fn directory(&self) -> &Path {
        self.snapshot.parent().unwrap()
    }

    fn draft(&self) -> PathBuf {
        self.directory().join("keys.snapshot.draft")
    }

    // === Its clients ===

    /// The service, unless nobody runs it, and who would answer.
    fn service_now(&self, world: &World) -> Option<(Arc<Service>, Witness, Moment)> {
        let state = lock(&self.state);
        let is_paused = world.time.now() < state.paused_until;
        let running = state.running.as_ref().filter(|running| running.is_serving && !is_paused)?;
        let service = Arc::clone(&running.service);
        let now = service.clock.moment();
        let (is_fresh, is_stale) = (service.authenticator.is_fresh(now), service.authenticator.is_stale(now));
        let (process, max_stale, is_cloned) = (running.process, self.max_stale, state.is_cloned);
        let site = world.site(Caller::Gateway(process));
        let (wall, keeps) = (now.wall, self.snapshot.exists());
        Some((service, Witness { process, site, max_stale, wall, is_fresh, is_stale, is_cloned, keeps }, now))
    }

    /// Presents a key, and has the answer judged.
    pub fn ask(&self, world: &World, digest: Digest) {
        let Some((service, witness, now)) = self.service_now(world) else { return };
        let answer = service.answer(digest, now);
        let judged = lock(&world.oracle).judge(world.time.now(), &witness, &digest, &answer);
        if let Err(broken) = judged {
            world.violated(&format!("{:?} answers {answer:?}: {broken}", witness.process));
        }
        if let Answer::Accepted(saying) = answer
            && world.one_in(8)
        {
            lock(&service.in_flight).push(Exchange { digest, saying });
        }
    }

    /// How a key is answered now, if anybody answers.
    pub fn answer(&self, world: &World, digest: Digest) -> Option<(Answer, Witness)> {
        self.service_now(world).map(|(service, witness, now)| (service.answer(digest, now), witness))
    }

    pub fn is_serving(&self) -> bool {
        lock(&self.state).running.as_ref().is_some_and(|running| running.is_serving)
    }

    /// What is in flight ends with the right to serve, by the workers' own deadline; what goes on is judged.
    pub fn check_in_flight(&self, world: &World) {
        let Some((service, witness, now)) = self.service_now(world) else { return };
        let mut in_flight = lock(&service.in_flight);
        if service.cache.is_stale(now) {
            in_flight.clear();
        }
        in_flight.retain(|_| !world.one_in(50));
        if in_flight.is_empty() {
            return;
        }
        let oracle = lock(&world.oracle);
        for exchange in in_flight.iter() {
            let witness = Witness { is_fresh: false, ..witness };
            let judged = oracle.judge_going_on(world.time.now(), &witness, &exchange.digest, &exchange.saying);
            if let Err(broken) = judged {
                drop(oracle);
                world.violated(&format!("{:?} goes on serving: {broken}", witness.process));
            }
        }
    }

    /// Before a position is told, what it ended has been cut.
    pub fn check_cut(&self, world: &World, process: Process, pos: u64) {
        let state = lock(&self.state);
        let Some(running) = state.running.as_ref().filter(|running| running.process == process) else { return };
        let oracle = lock(&world.oracle);
        for exchange in lock(&running.service.in_flight).iter() {
            let successors =
                oracle.successors(world.site(Caller::Gateway(process)), &exchange.digest, &exchange.saying);
            if successors.iter().any(|by| by.seq <= pos) {
                world.violated(&format!("I9: {process:?} told {pos}, and goes on serving what that ended"));
            }
        }
    }
}

fn prefix() -> Prefix {
    Prefix::new("ark").unwrap()
}

// === impl Service ===

impl Service {
    fn answer(&self, digest: Digest, now: Moment) -> Answer {
        match self.authenticator.look_up(digest, now) {
            Ok(Authentication::Authenticated(principal, _)) => {
                Answer::Accepted(Saying { name: principal.name.to_string(), expires_at: principal.expires_at })
            }
            Ok(Authentication::Rejected(Reason::KeyRevoked, _)) => Answer::Revoked,
            Ok(Authentication::Rejected(Reason::KeyExpired, _)) => Answer::Expired,
            Ok(Authentication::Rejected(_, _)) => Answer::Unknown,
            Err(_) => Answer::Unavailable,
        }
    }

    /// What a worker does when it is told to cut.
    fn judge_again(&self) {
        let now = self.clock.moment();
        lock(&self.in_flight).retain_mut(|exchange| match self.answer(exchange.digest, now) {
            Answer::Accepted(saying) => {
                exchange.saying = saying;
                true
            }
            Answer::Revoked | Answer::Expired | Answer::Unknown | Answer::Unavailable => false,
        });
    }
}
