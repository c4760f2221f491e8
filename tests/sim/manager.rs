//! The key manager: changes keys, waits until every gateway has acted, and remembers what it would have said.

use super::link::{Caller, RemoteStore};
use super::lock;
use super::oracle::Claim;
use super::time::{MILLIS, SECONDS, True};
use super::world::World;
use keygate::clock::{Clock, Instant, Timestamp};
use keygate::key::{KeyId, Prefix, Vocabulary};
use keygate::manage::{Confirmation, Manage, ManageError, NewEntity, NewKey, Overlap, Revoked, Settings, UpdateKey};
use keygate::store::{KeyStore, Record};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SCOPES: [&str; 3] = ["orders:read", "orders:write", "stock:read"];
/// More keys than this tell nothing more.
const KEYS_MAX: usize = 30;
/// How long it waits for the gateways: as the command line does.
const TIMEOUT: Duration = Duration::from_secs(5);

pub struct Manager {
    clock: Clock,
    settings: Settings,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_busy: bool,
    due: True,
    cut_off_until: True,
    waiting: Option<Waiting>,
    keys: Vec<KeyId>,
    entities: Vec<String>,
    entities_made: u64,
    /// Of the last revocation that was confirmed in some way.
    complete: u64,
}

/// A change that was written and is not confirmed yet.
#[derive(Clone)]
struct Waiting {
    written: Record,
    at: Timestamp,
    begun: Instant,
}

/// What is to be done next.
enum Plan {
    Entity,
    Create(String),
    Rotate(KeyId),
    /// With a name that was never used before.
    Update(KeyId, String, Vec<String>),
    Revoke(KeyId),
    Delete(String),
}

/// The scopes of the simulation.
pub fn vocabulary() -> Vocabulary {
    Vocabulary::new(SCOPES.map(|scope| (scope.to_owned(), false))).unwrap()
}

// === impl Manager ===

impl Manager {
    pub fn new(clock: Clock) -> Self {
        let settings = Settings {
            prefix: Prefix::new("ark").unwrap(),
            vocabulary: vocabulary(),
            presets: BTreeMap::new(),
            tiers: vec!["test".to_owned(), "standard".to_owned()],
            api_version: None,
        };
        Self { clock, settings, state: Mutex::default() }
    }

    pub fn cut_off_until(&self) -> True {
        lock(&self.state).cut_off_until
    }

    pub fn cut_off(&self, world: &World, until: True) {
        world.note(|| format!("manager: cut off until {until}"));
        lock(&self.state).cut_off_until = until;
    }

    /// Changes nothing any more.
    pub fn rest(&self) {
        lock(&self.state).due = True::MAX;
    }

    /// How many changes were confirmed by every gateway.
    pub fn complete(&self) -> u64 {
        lock(&self.state).complete
    }

    /// Goes on with what it does, unless it is in the middle of a call.
    pub fn step(&self, world: &Arc<World>, caller: Caller) {
        let mut state = lock(&self.state);
        if state.is_busy || caller == Caller::Manager || world.time.now() < state.due || world.is_unnoticed() {
            return;
        }
        state.is_busy = true;
        let waiting = state.waiting.clone();
        drop(state);
        let store = RemoteStore::new(world, Caller::Manager);
        let manage = Manage::new(&store, &self.settings, &self.clock, "cli:sim".to_owned());
        let rest = match waiting {
            Some(waiting) => self.look(world, &manage, waiting),
            None => self.act(world, &manage),
        };
        let mut state = lock(&self.state);
        (state.is_busy, state.due) = (false, world.time.now() + rest);
    }

    // === Waiting ===

    /// One look of `Manage::confirm`; how long it rests then.
    fn look(&self, world: &World, manage: &Manage<'_>, waiting: Waiting) -> True {
        let looked = manage.look(waiting.written.version());
        let took = self.clock.moment().mono.saturating_duration_since(waiting.begun);
        if took < TIMEOUT && !looked.as_ref().is_ok_and(keygate::manage::Standing::is_done) {
            return 1 + world.below(20 * MILLIS);
        }
        lock(&self.state).waiting = None;
        let concluded = looked.and_then(|standing| manage.conclude(&waiting.written, standing, waiting.at, took));
        match concluded {
            Ok(confirmation) => self.tell(world, &waiting.written, &confirmation),
            Err(error) => world.note(|| format!("manager: who has acted on it is unknown: {error}")),
        }
        world.span(2 * SECONDS)
    }

    /// What the command line would say, and what that promises.
    fn tell(&self, world: &World, written: &Record, confirmation: &Confirmation) {
        let (seq, site) = (written.version(), world.site(Caller::Manager));
        let Some(fleet) = world.servers[site].store.fleet_id().unwrap() else { return };
        let (confirmed, members) = (confirmation.confirmed, confirmation.members());
        let now = world.time.now();
        if confirmation.is_settling {
            return world.note(|| format!("manager: {seq}: stored; membership settling"));
        }
        if confirmation.is_complete() {
            let words = format!("{seq} on {confirmed}/{members} gateways");
            world.note(|| format!("manager: {words}"));
            lock(&world.oracle).claim(site, written, Claim { from: now, fleet, words }, members > 0);
            lock(&self.state).complete += u64::from(members > 0);
            return;
        }
        let wall = self.clock.now();
        let lasts = |until: Timestamp| until.since(wall).as_micros() as True;
        let longest = confirmation.silent.iter().map(|silent| lasts(silent.until)).max().unwrap_or(0);
        let words = format!("{seq} on {confirmed}/{members} gateways, the others until {}", now + longest);
        world.note(|| format!("manager: {words}"));
        lock(&world.oracle).claim(site, written, Claim { from: now + longest, fleet, words }, false);
    }

    // === Changing ===

    fn act(&self, world: &World, manage: &Manage<'_>) -> True {
        let Some(plan) = self.plan(world) else { return SECONDS };
        match self.carry_out(manage, &plan) {
            Ok(written) => {
                let (begun, at) = (self.clock.moment().mono, self.clock.now());
                let waits = !world.one_in(8);
                lock(&self.state).waiting = waits.then_some(Waiting { written, at, begun });
                1
            }
            Err(error) => {
                world.note(|| format!("manager: {error}"));
                if matches!(error, ManageError::NotFound(_)) {
                    self.miss(&plan);
                }
                world.span(SECONDS)
            }
        }
    }

    /// A store that has forgotten, or another one, does not have it.
    fn miss(&self, plan: &Plan) {
        let mut state = lock(&self.state);
        match plan {
            Plan::Entity => {}
            Plan::Create(entity) | Plan::Delete(entity) => state.entities.retain(|code| code != entity),
            Plan::Rotate(missed) | Plan::Update(missed, ..) | Plan::Revoke(missed) => {
                state.keys.retain(|key| key != missed);
            }
        }
    }

    /// Somebody else changes something at a server that he takes for the right one.
    pub fn meddle(&self, world: &World, store: &dyn KeyStore) {
        let manage = Manage::new(store, &self.settings, &self.clock, "cli:other".to_owned());
        if let Some(plan) = self.plan(world)
            && let Err(error) = self.carry_out(&manage, &plan)
        {
            world.note(|| format!("somebody else: {error}"));
        }
    }

    fn plan(&self, world: &World) -> Option<Plan> {
        let state = lock(&self.state);
        let pick = |count: usize| world.below(count as u64) as usize;
        let key = || state.keys.get(pick(state.keys.len().max(1))).copied();
        let entity = || state.entities.get(pick(state.entities.len().max(1))).cloned();
        if state.entities.is_empty() {
            return Some(Plan::Entity);
        }
        let is_full = state.keys.len() >= KEYS_MAX;
        match world.below(100) {
            0..40 if !is_full => entity().map(Plan::Create),
            0..50 => key().map(Plan::Rotate).filter(|_| !is_full),
            50..70 => {
                let scopes = SCOPES.into_iter().filter(|_| world.one_in(2)).map(str::to_owned).collect::<Vec<_>>();
                let name = format!("name-{}", world.below(u64::MAX));
                key().map(|key| Plan::Update(key, name, scopes))
            }
            70..92 => key().map(Plan::Revoke),
            92..96 => entity().map(Plan::Delete),
            _ => Some(Plan::Entity),
        }
    }

    fn carry_out(&self, manage: &Manage<'_>, plan: &Plan) -> Result<Record, ManageError> {
        match plan {
            Plan::Entity => {
                let code = {
                    let mut state = lock(&self.state);
                    state.entities_made += 1;
                    format!("e{}", 100 + state.entities_made)
                };
                let entity = manage.create_entity(NewEntity { code: code.clone(), ..NewEntity::default() })?;
                lock(&self.state).entities.push(code);
                Ok(Record::Entity(entity))
            }
            Plan::Create(entity) => {
                let scopes = SCOPES.map(str::to_owned).to_vec();
                let new = NewKey { entity: entity.clone(), name: "sim".to_owned(), scopes, ..NewKey::default() };
                let record = manage.create_key(new)?.record;
                lock(&self.state).keys.push(record.id);
                Ok(Record::Key(record))
            }
            Plan::Rotate(key) => {
                let (created, ended) = manage.rotate_key(*key, Overlap { time: TIMEOUT, until_quiet: None })?;
                lock(&self.state).keys.push(created.record.id);
                Ok(Record::Key(ended))
            }
            Plan::Update(key, name, scopes) => {
                let (name, scopes) = (Some(name.clone()), Some(scopes.clone()));
                let update = UpdateKey { name, scopes, ..UpdateKey::default() };
                manage.update_key(*key, &update).map(|(record, _)| Record::Key(record))
            }
            Plan::Revoke(key) => match manage.revoke_key(*key)? {
                Revoked::Now(record) | Revoked::Before(record) => Ok(Record::Key(record)),
            },
            Plan::Delete(entity) => {
                let deleted = manage.delete_entity(entity)?;
                lock(&self.state).entities.retain(|code| code != entity);
                Ok(Record::Entity(deleted))
            }
        }
    }
}
