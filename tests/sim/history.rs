//! What a store forgets, what is put in its place, and what a person does about it (protocols I4).
//!
//! A store forgets only while a gateway that holds everything which was promised is able to tell it so, soon: more is not
//! promised. That one is sheltered for as long as it takes; everybody else goes on failing.

use super::link::Caller;
use super::lock;
use super::oracle::Process;
use super::server::{Copy, Engine, Server};
use super::time::{MILLIS, SECONDS, True};
use super::world::World;
use keygate::auth::snapshot::Kept;
use keygate::key::{EntityRecord, KeyRecord};
use keygate::store::memory::MemoryStore;
use keygate::store::{Action, FleetId, Held, KeyStore as _, Mutation, OperationId, Record, StoreError, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How many copies are kept.
const COPIES: usize = 60;
/// How long who knows more is sheltered: until everybody has told of itself, and a little more.
const SHELTER: True = 5 * SECONDS;
/// How slow its calls may be, all together.
const SLOW: True = 2 * SECONDS;
/// How long some follow an old master at most: shorter than any row is taken for a dead gateway's.
const SPLIT: True = 2_500 * MILLIS;
/// After how long a store that was put in the place of another has been seen by everybody who can see it.
const STOOD: True = 6 * SECONDS;
/// How often a person looks whether a gateway is held.
const SWEEP: True = 5 * SECONDS;

#[derive(Default)]
pub struct History {
    /// The store as it was before some of its changes.
    copies: Vec<Copy>,
    shelter: Option<Shelter>,
    split: Option<Split>,
    errand: Option<Errand>,
    /// Until when nobody may have noticed that the store has forgotten, because it is the same run: nobody joins meanwhile.
    unnoticed_until: True,
    replaced_at: True,
    sweep_due: True,
    slow_left: True,
    pub forgotten: u64,
}

struct Shelter {
    process: Process,
    until: True,
    /// It has to notice that the store has forgotten.
    is_to_notice: bool,
}

/// Some follow an old master that is discarded.
struct Split {
    until: True,
    on_old: Vec<bool>,
}

/// What a person has to do about a store that is not the right one.
struct Errand {
    due: True,
    right: Copy,
}

// === impl World ===

impl World {
    /// Which server a caller is led to.
    pub fn site(&self, caller: Caller) -> usize {
        let main = self.main.load(Ordering::Relaxed);
        let history = lock(&self.history);
        let is_on_old = history.split.as_ref().is_some_and(|split| match caller {
            Caller::Gateway(process) => split.on_old[process.machine],
            Caller::Manager => true,
            Caller::Nobody => false,
        });
        if is_on_old { 1 - main } else { main }
    }

    pub fn server(&self, caller: Caller) -> &Server {
        &self.servers[self.site(caller)]
    }

    // === Shelter ===

    pub fn shelters(&self) -> bool {
        lock(&self.history).shelter.is_some()
    }

    pub fn is_sheltered(&self, machine: usize) -> bool {
        lock(&self.history).shelter.as_ref().is_some_and(|shelter| shelter.process.machine == machine)
    }

    /// Nothing goes wrong for this one.
    pub fn is_calm_for(&self, caller: Caller) -> bool {
        self.is_calm() || matches!(caller, Caller::Gateway(process) if self.is_sheltered(process.machine))
    }

    /// What is sheltered may be slow all the same.
    pub fn sheltered_delay(&self, caller: Caller) -> True {
        if !matches!(caller, Caller::Gateway(process) if self.is_sheltered(process.machine)) || !self.one_in(4) {
            return 0;
        }
        let delay = self.below(700 * MILLIS).min(lock(&self.history).slow_left);
        lock(&self.history).slow_left -= delay;
        delay
    }

    /// Nobody can know yet that the store has forgotten: it looks as ever.
    pub fn is_unnoticed(&self) -> bool {
        self.time.now() < lock(&self.history).unnoticed_until
    }

    /// Somebody has noticed that the store is not as it was.
    pub fn notice(&self, caller: Caller) {
        let mut history = lock(&self.history);
        history.unnoticed_until = 0;
        if let Some(shelter) = &mut history.shelter
            && caller == Caller::Gateway(shelter.process)
        {
            shelter.is_to_notice = false;
        }
    }

    /// Whether the store is the same for so long that everybody has seen it.
    pub fn has_stood(&self) -> bool {
        self.time.now() > lock(&self.history).replaced_at + STOOD
    }

    // === Who may write ===

    /// A gateway that ever had a position begins no fleet.
    pub fn check_begin(&self, caller: Caller) {
        let Caller::Gateway(process) = caller else { return };
        let machine = &self.machines[process.machine];
        if machine.is_held() || lock(&self.oracle).fleet_of(process).is_some() || machine.kept().is_some() {
            self.violated(&format!("I4: {process:?}, which had a position, begins a fleet"));
        }
    }

    /// A gateway writes to its own fleet's store alone.
    ///
    /// # Errors
    /// As the engines: when it is not.
    pub fn check_writer(&self, caller: Caller, expected: Option<FleetId>) -> Result<(), StoreError> {
        let Caller::Gateway(process) = caller else { return Ok(()) };
        let (there, own) = (self.server(caller).store.fleet_id()?, lock(&self.oracle).fleet_of(process));
        if expected.is_none() || expected != own {
            self.violated(&format!("I4: {process:?} of fleet {own:?} writes to the store of {expected:?}"));
        }
        if there == expected { Ok(()) } else { Err(StoreError::Refused("another fleet's store".to_owned())) }
    }

    // === Forgetting ===

    /// Before something is written: a copy that may be put back later.
    pub fn copy_before_change(&self, caller: Caller) {
        if self.weather.forgets == 0 || self.site(caller) != self.main.load(Ordering::Relaxed) || !self.one_in(2) {
            return;
        }
        let copy = self.server(caller).copy();
        let mut history = lock(&self.history);
        if history.copies.len() == COPIES {
            history.copies.remove(self.below(COPIES as u64) as usize);
        }
        history.copies.push(copy);
    }

    /// Between two pages of a load it forgets more often than at any other time.
    pub fn forget_while_read(self: &Arc<Self>) {
        if self.weather.forgets > 0 && !self.is_calm() && self.one_in(12) {
            self.forget();
        }
    }

    /// The store forgets.
    pub fn forget(self: &Arc<Self>) {
        let is_busy = {
            let history = lock(&self.history);
            history.shelter.is_some() || history.split.is_some() || history.errand.is_some()
        };
        let server = self.server(Caller::Nobody);
        let Some(fleet) = server.store.fleet_id().unwrap().filter(|_| !is_busy) else { return };
        let mut witnesses: Vec<_> =
            self.machines.iter().filter_map(|machine| machine.witness_for(self, fleet)).collect();
        if witnesses.is_empty() {
            return;
        }
        let witness = witnesses.swap_remove(self.below(witnesses.len() as u64) as usize);
        match self.below(100) {
            0..45 => self.roll_back(witness, true),
            45..65 => self.roll_back(witness, false),
            65..80 if self.engine == Engine::Beats && server.is_up() => self.split(witness),
            80..88 => self.put_in_place(Copy::of(MemoryStore::default()), "an empty one"),
            88..100 => {
                if let Some(foreign) = self.foreign() {
                    self.put_in_place(Copy::of(foreign), "another fleet's");
                }
            }
            _ => {}
        }
    }

    /// A copy of some time ago is in its place, often a late one.
    fn roll_back(&self, witness: Process, is_new: bool) {
        let copy = {
            let mut history = lock(&self.history);
            let count = history.copies.len();
            if count == 0 {
                return;
            }
            let back = if self.one_in(4) { count as u64 } else { self.span(16).min(count as u64) };
            history.copies.swap_remove(count - 1 - self.below(back) as usize)
        };
        if copy.changes().is_empty() {
            return self.put_in_place(copy, "one of before its first change");
        }
        self.shelter(witness);
        let lost = self.place(&copy, is_new);
        let is_to_notice = lock(&self.oracle).has_one(witness.machine, &lost);
        if is_new && self.engine == Engine::Beats && self.one_in(3) {
            self.restart_server(true);
        }
        if self.one_in(2) {
            self.meddle();
        }
        let mut history = lock(&self.history);
        history.forgotten += 1;
        history.shelter.iter_mut().for_each(|shelter| shelter.is_to_notice = is_to_notice);
        if !is_new {
            history.unnoticed_until = self.time.now() + SHELTER;
        }
        // It is a history of its own from now on.
        history.copies.push(copy);
    }

    fn shelter(&self, process: Process) {
        let mut history = lock(&self.history);
        let until = self.time.now() + SHELTER;
        (history.shelter, history.slow_left) = (Some(Shelter { process, until, is_to_notice: false }), SLOW);
    }

    /// Another history is in the place of the server's. What was lost.
    fn place(&self, copy: &Copy, is_new: bool) -> Vec<u64> {
        let (now, server, site) = (self.time.now(), self.server(Caller::Nobody), self.site(Caller::Nobody));
        let head = server.store.changes().and_then(|mut changes| changes.head()).unwrap();
        server.place(copy, is_new);
        lock(&self.history).replaced_at = now;
        let lost = lock(&self.oracle).replace(now, site, copy.changes());
        let to = server.store.changes().and_then(|mut changes| changes.head()).unwrap();
        self.note(|| {
            let how = if is_new { "another run" } else { "the same run" };
            format!("server {site}: from {head:?} back to {to:?}, {how}; {} changes lost", lost.len())
        });
        lost
    }

    /// Somebody else changes something before anybody comes.
    fn meddle(&self) {
        let site = self.site(Caller::Nobody);
        for _ in 0..=self.below(4) {
            self.manager.meddle(self, &self.servers[site].store);
        }
        self.sync(site);
    }

    /// The oracle hears of what was written without a client.
    fn sync(&self, site: usize) {
        let mut oracle = lock(&self.oracle);
        let known = oracle.logs[site].len();
        let news: Vec<_> = Copy::of(self.servers[site].store.copy()).changes().into_iter().skip(known).collect();
        for change in news {
            let (action, name) = (change.action.as_str(), super::name(&change.after));
            self.note(|| format!("server {site}: {} {action} {name} by {}", change.seq, change.actor));
            oracle.write(self.time.now(), site, change);
        }
    }

    // === Split brain ===

    /// A replica is promoted, and some do not know it yet.
    fn split(&self, witness: Process) {
        let main = self.main.load(Ordering::Relaxed);
        let copy = {
            let mut history = lock(&self.history);
            let late = self.below(4).min(history.copies.len() as u64) as usize;
            let at = history.copies.len() - late;
            if late == 0 { self.servers[main].copy() } else { history.copies.swap_remove(at) }
        };
        if copy.store.fleet_id().unwrap() != self.servers[main].store.fleet_id().unwrap() {
            return;
        }
        self.shelter(witness);
        let (now, other) = (self.time.now(), 1 - main);
        let until = now + 100 * MILLIS + self.below(SPLIT - 100 * MILLIS);
        let mut on_old: Vec<_> = self.machines.iter().map(|_| self.one_in(2)).collect();
        on_old[witness.machine] = true;
        self.note(|| format!("server {other}: promoted; until {until} these follow the old one: {on_old:?}"));
        {
            let mut oracle = lock(&self.oracle);
            let log = oracle.logs[main].clone();
            oracle.logs[other] = log;
            oracle.replace(now, other, copy.changes());
        }
        self.servers[other].take_rows(&self.servers[main]);
        self.servers[other].place(&copy, true);
        self.main.store(other, Ordering::Relaxed);
        {
            let mut history = lock(&self.history);
            (history.split, history.replaced_at) = (Some(Split { until, on_old }), now);
            history.forgotten += 1;
            history.shelter.iter_mut().for_each(|shelter| shelter.until = until + SHELTER);
        }
        self.meddle();
    }

    /// The old master is discarded.
    fn end_split(&self) {
        let Some(_) = lock(&self.history).split.take() else { return };
        let (now, site) = (self.time.now(), self.site(Caller::Nobody));
        self.note(|| format!("server {}: discarded", 1 - site));
        let lost = lock(&self.oracle).take_over(now, site);
        let mut history = lock(&self.history);
        history.replaced_at = now;
        if let Some(shelter) = &mut history.shelter {
            shelter.until = now + SHELTER;
            shelter.is_to_notice = lock(&self.oracle).has_one(shelter.process.machine, &lost);
        }
    }

    // === Another store, and what a person does ===

    fn put_in_place(&self, copy: Copy, what: &str) {
        let right = self.server(Caller::Nobody).copy();
        self.note(|| format!("server: {what} is in its place"));
        self.place(&copy, true);
        let due = self.time.now() + SECONDS + self.span(12 * SECONDS);
        let mut history = lock(&self.history);
        history.errand = Some(Errand { due, right });
        history.forgotten += 1;
    }

    /// A store that was filled from an old copy under another id, or one that has nothing to do with this one.
    fn foreign(&self) -> Option<MemoryStore> {
        let records = if self.one_in(2) {
            let history = lock(&self.history);
            let old = history.copies.get(self.below(history.copies.len().max(1) as u64) as usize)?;
            old.store.changes().and_then(|mut changes| changes.page(0, usize::MAX)).unwrap().records
        } else {
            Vec::new()
        };
        let store = MemoryStore::default();
        store.begin_fleet(FleetId::random().unwrap()).unwrap();
        fill(self, &store, records);
        (0..3).for_each(|_| self.manager.meddle(self, &store));
        Some(store)
    }

    pub fn go_on_with_history(self: &Arc<Self>) {
        let now = self.time.now();
        let (splits, errand, sweeps) = {
            let mut history = lock(&self.history);
            let ends = history.shelter.as_ref().is_some_and(|shelter| shelter.until <= now);
            if let Some(shelter) = history.shelter.take_if(|_| ends)
                && shelter.is_to_notice
            {
                drop(history);
                self.violated(&format!("I4: {:?} did not notice that the store has forgotten", shelter.process));
            }
            let splits = history.split.as_ref().is_some_and(|split| split.until <= now);
            let is_due = history.errand.as_ref().is_some_and(|errand| errand.due <= now);
            let sweeps = history.errand.is_none() && history.split.is_none() && history.sweep_due <= now;
            (splits, history.errand.take_if(|_| is_due), sweeps)
        };
        if splits {
            self.end_split();
        }
        if let Some(errand) = errand {
            self.put_right(&errand.right);
        } else if sweeps && self.server(Caller::Nobody).is_up() {
            self.sweep();
        }
    }

    /// Whoever is held although the store is the right one has followed another, and gets leave to take this one.
    fn sweep(&self) {
        lock(&self.history).sweep_due = self.time.now() + SWEEP;
        if self.has_stood() && self.machines.iter().any(super::gateway::Machine::is_held) {
            // One that followed this very store finds nothing in it any more that it knew: what that had is let go, and what had
            // ended is ended first, as `keygate store adopt` wants it.
            let fleet = self.server(Caller::Nobody).store.fleet_id().unwrap();
            let holders: Vec<_> = self.machines.iter().filter_map(super::gateway::Machine::held_process).collect();
            let has_followed = |fleet: &FleetId| {
                let oracle = lock(&self.oracle);
                holders.iter().any(|process| oracle.fleet_of(*process) == Some(*fleet))
            };
            if let Some(fleet) = fleet.filter(has_followed) {
                let kept = self.machines.iter().filter_map(super::gateway::Machine::kept);
                let kept = kept.filter(|kept| kept.lineage.fleet == Some(fleet));
                kept.for_each(|kept| self.end_what_has_ended(&kept));
                lock(&self.history).copies.clear();
                lock(&self.oracle).take_away(fleet);
            }
            self.adopt();
        }
    }

    fn adopt(&self) {
        let server = self.server(Caller::Nobody);
        let held: Vec<Held> = server.fleet(self.time.now()).members.iter().filter_map(|member| member.held).collect();
        self.note(|| format!("a person has {} gateways adopt the store", held.len()));
        server.store.adopt(&held).unwrap();
    }

    /// A person decides.
    fn put_right(&self, right: &Copy) {
        let server = self.server(Caller::Nobody);
        let (there, fleet) = (server.store.fleet_id().unwrap(), right.store.fleet_id().unwrap());
        let is_empty = self.server(Caller::Nobody).copy().changes().is_empty();
        let kept = self.machines.iter().filter_map(|machine| machine.all_of(self, fleet?)).next();
        match (self.below(4), there, kept) {
            (0 | 3, Some(_), kept) => {
                // Else it has keys in force that had ended, which must not come back with it.
                if let Some(kept) = kept.filter(|_| self.one_in(3)) {
                    self.end_what_has_ended(&kept);
                }
                lock(&self.history).copies.clear();
                fleet.iter().for_each(|fleet| lock(&self.oracle).take_away(*fleet));
                self.adopt();
            }
            (1, there, Some(kept)) if is_empty && there.is_none_or(|there| Some(there) == fleet) => {
                self.note(|| "a person fills the store from a gateway's disk".to_owned());
                server.store.begin_fleet(fleet.unwrap()).unwrap();
                server.note_fork(self.time.now());
                fill(self, &server.store, kept.records);
                self.sync(self.site(Caller::Nobody));
                lock(&self.history).copies.clear();
                lock(&self.history).replaced_at = self.time.now();
                self.adopt();
            }
            _ => {
                self.note(|| "a person puts the right store back".to_owned());
                self.place(right, true);
            }
        }
    }

    /// As `keygate store adopt` wants it: what had ended is ended in the other store first.
    fn end_what_has_ended(&self, kept: &Kept) {
        let server = self.server(Caller::Nobody);
        for record in kept.records.iter().filter(|record| record.is_ended()) {
            let record = match record {
                Record::Key(key) => server
                    .store
                    .key(key.id)
                    .unwrap()
                    .filter(|there| there.revoked_at.is_none())
                    .map(|there| Record::Key(KeyRecord { revoked_at: key.revoked_at, ..there })),
                Record::Entity(entity) => {
                    let there = server.store.entity(entity.id).unwrap().filter(|there| there.deleted_at.is_none());
                    there.map(|there| Record::Entity(EntityRecord { deleted_at: entity.deleted_at, ..there }))
                }
            };
            if let Some(record) = record {
                write(self, &server.store, Action::KeyRevoked, Some(record.version()), record);
            }
        }
        self.sync(self.site(Caller::Nobody));
    }

    /// From now on no store forgets anything.
    pub fn heal_history(&self) {
        let mut history = lock(&self.history);
        history.split.iter_mut().for_each(|split| split.until = 0);
        history.errand.iter_mut().for_each(|errand| errand.due = 0);
        history.unnoticed_until = 0;
    }
}

/// Entities first, keys next, and last what ends entities, whose keys could not be written after that.
fn fill(world: &World, store: &MemoryStore, records: Vec<Record>) {
    let (mut keys, mut deleted) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            Record::Key(_) => keys.push(record),
            Record::Entity(entity) => {
                let live = EntityRecord { deleted_at: None, ..entity.clone() };
                write(world, store, Action::EntityCreated, None, Record::Entity(live));
                deleted.extend(entity.deleted_at.is_some().then_some(entity));
            }
        }
    }
    keys.into_iter().for_each(|key| write(world, store, Action::KeyCreated, None, key));
    for entity in deleted {
        let there = store.entity(entity.id).unwrap().map(|there| there.version);
        write(world, store, Action::EntityDeleted, there, Record::Entity(entity));
    }
}

fn write(world: &World, store: &MemoryStore, action: Action, expected: Option<u64>, record: Record) {
    let operation = OperationId(u128::from(world.below(u64::MAX)));
    let at = world.time.clock(world.machines.len()).now();
    let writes = vec![Write { action, expected, record }];
    store.apply(&Mutation { operation, actor: "cli:person".to_owned(), at, writes }).unwrap();
}
