//! A client's side of the network: every call may be late, lost, answered in vain, or the last thing its process does.

use super::server::{Row, Server};
use super::time::{MILLIS, SECONDS};
use super::world::{Late, World};
use super::{lock, roster::Roster};
use keygate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord};
use keygate::store::{
    Account, Accounts, Changes, Feed, Fleet, FleetId, Held, KeyFilter, KeyStore, LastUses, Member, Mutation, Page,
    Position, Record, StoreError,
};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a client waits for an answer: as the Redis engine has it.
const PATIENCE: u64 = 2 * SECONDS;
/// Pages of a load: no more than the loading thread may have in hand, so that it is done when the turn goes on.
const PAGES: usize = 4;

/// The panic of a process that dies in the middle of what it does.
pub struct Crash;

/// Who calls: a machine's process, or the key manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Gateway(super::oracle::Process),
    Manager,
    /// Time passes by itself.
    Nobody,
}

/// A connection to the server that makes itself anew.
#[derive(Clone)]
pub struct Link {
    pub world: Arc<World>,
    pub caller: Caller,
    connection: Arc<Mutex<Connection>>,
}

#[derive(Default)]
struct Connection {
    /// The server's run it leads to; none when it is broken.
    run: Option<u64>,
    connects: u64,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    RequestLost,
    AnswerLost,
    /// The client gives up; the request arrives all the same, later.
    RequestLate,
    DiesBefore,
    DiesAfter,
}

/// A store seen through a link. The first reader that it opens is the follower's; the others read the whole set.
pub struct RemoteStore {
    link: Link,
    opened: Mutex<bool>,
    expected: Mutex<Option<FleetId>>,
}

/// The follower's reader and its row.
struct RemoteChanges {
    link: Link,
    roster: Roster,
}

/// The whole set, as it was read page by page while other things happened. It is read by a thread of its own: what that finds
/// must not depend on when it runs.
struct Pages(HashMap<u64, Result<Page, String>>);

// === impl Link ===

impl Link {
    pub fn new(world: &Arc<World>, caller: Caller) -> Self {
        Self { world: Arc::clone(world), caller, connection: Arc::default() }
    }

    pub fn connects(&self) -> u64 {
        lock(&self.connection).connects
    }

    /// Has the server do `act`.
    pub fn call<T>(&self, what: &str, act: impl FnOnce(&Server) -> T) -> Result<T, StoreError> {
        let fate = self.world.fate(self.caller, false);
        self.call_with(what, fate, act)
    }

    /// Has the server do `act`, unless `fate` is against it.
    pub fn call_with<T>(&self, what: &str, fate: Fate, act: impl FnOnce(&Server) -> T) -> Result<T, StoreError> {
        let begun = self.world.time.now();
        self.world.pass_latency(self.caller);
        if fate == Fate::DiesBefore {
            self.die(what);
        }
        if matches!(fate, Fate::RequestLost | Fate::RequestLate) || !self.connect() {
            return self.fail(what, fate, begun);
        }
        let server = self.world.server(self.caller);
        let answer = act(server);
        let run = server.run();
        if fate == Fate::DiesAfter {
            self.die(what);
        }
        if fate == Fate::AnswerLost {
            return self.fail(what, fate, begun);
        }
        self.world.pass_latency(self.caller);
        let is_late = self.world.time.now() > begun + PATIENCE;
        if is_late || !self.world.reaches(self.caller) || self.world.server(self.caller).run() != run {
            return self.fail(what, Fate::AnswerLost, begun);
        }
        Ok(answer)
    }

    fn connect(&self) -> bool {
        let reaches = self.world.reaches(self.caller);
        let run = self.world.server(self.caller).run();
        let mut connection = lock(&self.connection);
        if reaches && connection.run != Some(run) {
            (connection.run, connection.connects) = (Some(run), connection.connects + 1);
        }
        reaches
    }

    fn fail<T>(&self, what: &str, fate: Fate, begun: u64) -> Result<T, StoreError> {
        lock(&self.connection).run = None;
        // Refused at once, or only given up.
        let gives_up =
            (self.world.one_in(8) && !self.world.is_calm() && !self.world.shelters()).then_some(begun + PATIENCE);
        let rest = gives_up.map_or(MILLIS, |end| end.saturating_sub(self.world.time.now()));
        self.world.note(|| format!("{:?}: {what} failed ({fate:?})", self.caller));
        self.world.during(rest, self.caller);
        Err(StoreError::Unavailable(format!("{what}: {fate:?}")))
    }

    fn die(&self, what: &str) -> ! {
        self.world.note(|| format!("{:?}: dies at {what}", self.caller));
        std::panic::resume_unwind(Box::new(Crash))
    }

    /// Writes a row; whether there was none, and the fork that was noted last.
    pub fn put_row(&self, row: Row) -> Result<(bool, u64), StoreError> {
        let fate = if self.world.is_mute(self.caller) { Fate::RequestLost } else { self.world.fate(self.caller, true) };
        if fate == Fate::RequestLate {
            self.world.send_late(self.caller, Late::Row(row.clone()));
        }
        let (world, caller) = (&self.world, self.caller);
        self.call_with("tell", fate, |server| (world.receive_row(caller, row), server.fork()))
    }
}

// === impl RemoteStore ===

impl RemoteStore {
    pub fn new(world: &Arc<World>, caller: Caller) -> Self {
        Self { link: Link::new(world, caller), opened: Mutex::new(false), expected: Mutex::default() }
    }

    fn ask<T>(&self, what: &str, ask: impl FnOnce(&dyn KeyStore) -> Result<T, StoreError>) -> Result<T, StoreError> {
        self.link.call(what, |server| ask(&server.store))?
    }
}

impl KeyStore for RemoteStore {
    fn apply(&self, mutation: &Mutation) -> Result<Vec<u64>, StoreError> {
        let (fate, expected) = (self.link.world.fate(self.link.caller, true), *lock(&self.expected));
        if fate == Fate::RequestLate {
            self.link.world.send_late(self.link.caller, Late::Mutation(expected, mutation.clone()));
        }
        self.link.call_with("apply", fate, |_| self.link.world.receive(self.link.caller, expected, mutation))?
    }

    fn key(&self, id: KeyId) -> Result<Option<KeyRecord>, StoreError> {
        self.ask("key", |store| store.key(id))
    }

    fn key_by_digest(&self, digest: &Digest) -> Result<Option<KeyRecord>, StoreError> {
        self.ask("key_by_digest", |store| store.key_by_digest(digest))
    }

    fn keys(&self, filter: &KeyFilter, after: Option<KeyId>, limit: usize) -> Result<Vec<KeyRecord>, StoreError> {
        self.ask("keys", |store| store.keys(filter, after, limit))
    }

    fn entity(&self, id: EntityId) -> Result<Option<EntityRecord>, StoreError> {
        self.ask("entity", |store| store.entity(id))
    }

    fn entity_by_code(&self, code: &str) -> Result<Option<EntityRecord>, StoreError> {
        self.ask("entity_by_code", |store| store.entity_by_code(code))
    }

    fn entities(&self) -> Result<Vec<EntityRecord>, StoreError> {
        self.ask("entities", |store| store.entities())
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.ask("count", |store| store.count())
    }

    fn holds(&self, position: Position) -> Result<bool, StoreError> {
        self.ask("holds", |store| store.holds(position))
    }

    fn fleet_id(&self) -> Result<Option<FleetId>, StoreError> {
        self.ask("fleet_id", |store| store.fleet_id())
    }

    fn begin_fleet(&self, id: FleetId) -> Result<FleetId, StoreError> {
        self.link.world.check_begin(self.link.caller);
        self.ask("begin_fleet", |store| store.begin_fleet(id))
    }

    fn expect_fleet(&self, id: FleetId) {
        *lock(&self.expected) = Some(id);
        if let Caller::Gateway(process) = self.link.caller {
            lock(&self.link.world.oracle).follow(process, id);
        }
    }

    fn check_fleet(&self) -> Result<(), StoreError> {
        let expected = *lock(&self.expected);
        self.ask("check_fleet", |store| {
            expected.into_iter().for_each(|fleet| store.expect_fleet(fleet));
            store.check_fleet()
        })
    }

    fn note_fork(&self) -> Result<(), StoreError> {
        let world = &self.link.world;
        self.link.call("note_fork", |server| {
            world.note(|| format!("{:?}: notes a fork", self.link.caller));
            world.notice(self.link.caller);
            server.note_fork(world.time.now());
        })
    }

    fn adopt(&self, held: &[Held]) -> Result<(), StoreError> {
        self.ask("adopt", |store| store.adopt(held))
    }

    fn is_adopted(&self, held: &Held) -> Result<bool, StoreError> {
        self.ask("is_adopted", |store| store.is_adopted(held))
    }

    fn fleet(&self) -> Result<Fleet, StoreError> {
        let world = &self.link.world;
        self.link.call("fleet", |server| server.fleet(world.time.now()))
    }

    fn forget(&self, instance: &str) -> Result<bool, StoreError> {
        self.link.call("forget", |server| server.remove_row(instance))
    }

    fn until_quiet(&self) -> Result<Vec<KeyRecord>, StoreError> {
        self.ask("until_quiet", |store| store.until_quiet())
    }

    fn account(&self, account: &Account) -> Result<(), StoreError> {
        self.ask("account", |store| store.account(account))
    }

    fn accounts(&self) -> Result<Accounts, StoreError> {
        self.ask("accounts", |store| store.accounts())
    }

    fn last_uses(&self, keys: &[KeyId]) -> Result<Vec<LastUses>, StoreError> {
        self.ask("last_uses", |store| store.last_uses(keys))
    }

    fn changes(&self) -> Result<Box<dyn Changes>, StoreError> {
        if !std::mem::replace(&mut *lock(&self.opened), true) {
            let link = self.link.clone();
            return Ok(Box::new(RemoteChanges { roster: Roster::new(link.clone()), link }));
        }
        // A reader of its own has a connection of its own.
        Ok(Box::new(Pages::read(&Link::new(&self.link.world, self.link.caller))))
    }
}

// === impl RemoteChanges ===

impl Changes for RemoteChanges {
    fn head(&mut self) -> Result<Position, StoreError> {
        self.link.call("head", |server| server.store.changes()?.head())?
    }

    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        // Replies are bounded: sometimes there is more than is given.
        let limit = if self.link.world.one_in(3) { 1 } else { limit };
        let sent = self.link.world.time.now();
        let feed = self.link.call("poll", |server| server.poll(from, fleet, limit))?;
        if let (Caller::Gateway(process), Ok(Feed::Entries { .. })) = (self.link.caller, &feed) {
            lock(&self.link.world.oracle).reach(process.machine, sent);
        }
        feed
    }

    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError> {
        self.link.call("past", |server| server.store.changes()?.past(limit))?
    }

    fn wait(&mut self, _: Position) {}

    fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        self.roster.tell(member)
    }

    fn leave(&mut self, _: &Member) {
        self.roster.leave();
    }

    fn outlives_process(&self) -> bool {
        self.link.world.engine == super::server::Engine::Beats
    }

    fn settles_in(&self) -> Duration {
        self.roster.settles_in()
    }

    fn page(&mut self, _: u64, _: usize) -> Result<Page, StoreError> {
        Err(StoreError::Unavailable("the whole set has a reader of its own".to_owned()))
    }
}

// === impl Pages ===

impl Pages {
    fn read(link: &Link) -> Self {
        let count = link.world.server(link.caller).store.count().unwrap_or(0) as usize;
        let (mut pages, mut after, size) = (HashMap::new(), 0, count / (PAGES - 1) + 4);
        loop {
            // What is left goes into the last page, however much came meanwhile.
            let limit = if pages.len() + 1 == PAGES { usize::MAX } else { size };
            let page = link.call("page", |server| server.store.changes()?.page(after, limit));
            let page = page.and_then(|page| page).map_err(|error| error.to_string());
            link.world.forget_while_read();
            let next = page.as_ref().ok().and_then(|page| page.records.last()).map(Record::version);
            // What came after the last of them the log tells.
            let is_last = pages.len() == PAGES;
            let end = |page: Page| Page { records: Vec::new(), ..page };
            pages.insert(after, if is_last { page.map(end) } else { page });
            match next.filter(|_| !is_last) {
                Some(next) => after = next,
                None => return Self(pages),
            }
        }
    }
}

impl Changes for Pages {
    fn page(&mut self, after: u64, _: usize) -> Result<Page, StoreError> {
        let page = self.0.remove(&after).unwrap_or_else(|| Err("there is no such page".to_owned()));
        page.map_err(StoreError::Unavailable)
    }

    fn head(&mut self) -> Result<Position, StoreError> {
        Err(StoreError::Unavailable("not by this reader".to_owned()))
    }

    fn poll(&mut self, _: Position, _: Option<FleetId>, _: usize) -> Result<Feed, StoreError> {
        Err(StoreError::Unavailable("not by this reader".to_owned()))
    }

    fn past(&mut self, _: usize) -> Result<Vec<Position>, StoreError> {
        Err(StoreError::Unavailable("not by this reader".to_owned()))
    }

    fn wait(&mut self, _: Position) {}

    fn tell(&mut self, _: &Member) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("not by this reader".to_owned()))
    }

    fn leave(&mut self, _: &Member) {}

    fn outlives_process(&self) -> bool {
        false
    }
}
