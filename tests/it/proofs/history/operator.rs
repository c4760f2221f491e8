//! Who changes keys: by the library, which waits for every gateway as the commands do.

use super::book::{Entry, State};
use super::site::Site;
use fastrand::Rng;
use keygate::clock::Clock;
use keygate::config::Config;
use keygate::key::{KeyId, Mode};
use keygate::manage::{Created, Manage, ManageError, NewEntity, NewKey, Overlap, Revoked, UpdateKey};
use keygate::store::{self, KeyStore, Record, StoreError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The code of the entity that every key of its own has, and that is never deleted.
const ACME: &str = "acme";
/// How long a confirmation may take: the store settles for four seconds after its loss.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A process's connection to the store: another one after the store has come back, as another command's is.
pub struct Operator {
    config: Config,
    store: Arc<dyn KeyStore>,
    clock: Clock,
}

/// A change that was written, and what is true of which key once it is acknowledged.
pub struct Written {
    pub record: Record,
    effect: Effect,
}

enum Effect {
    Good(usize),
    Ended(Vec<usize>),
    Narrowed(usize),
    /// The first is good, the second has ended.
    Replaced(usize, usize),
    None,
}

// === impl Operator ===

impl Operator {
    /// By the gateway.toml in this directory.
    pub fn open(dir: &Path) -> Self {
        let config = Config::load(&dir.join("gateway.toml")).unwrap();
        let store = store::open(&config.store).unwrap();
        Self { config, store, clock: Clock::system() }
    }

    fn manage(&self) -> Manage<'_> {
        Manage::new(self.store.as_ref(), &self.config.manage, &self.clock, "test".to_owned())
    }

    /// Whether a key is there, and neither it nor its entity has ended; none when it is not there, or cannot be asked for.
    pub fn is_in_force(&self, id: KeyId) -> Option<bool> {
        let key = self.store.key(id).ok()??;
        let entity = self.store.entity(key.entity_id).ok()??;
        let is_over = key.expires_at.is_some_and(|end| end <= self.clock.now());
        Some(key.revoked_at.is_none() && entity.deleted_at.is_none() && !is_over)
    }

    /// The log's head.
    pub fn head(&self) -> u64 {
        self.store.changes().unwrap().head().unwrap().seq
    }

    /// Keys that are there from the beginning, and entities that may be deleted.
    pub fn begin(&self, site: &Site, members: usize) {
        for number in 0..5 {
            let written = self.create(site, ACME).unwrap();
            self.acknowledge(site, members, written);
            site.book.change(number, |entry| entry.is_known = true);
        }
        for code in ["first", "second"] {
            let new = NewEntity { code: code.to_owned(), ..NewEntity::default() };
            self.manage().create_entity(new).unwrap();
            let written = self.create(site, code).unwrap();
            self.acknowledge(site, members, written);
        }
        (0..4).for_each(|_| self.acknowledge(site, members, self.create(site, ACME).unwrap()));
    }

    /// Changes that every one of `members` gateways has acknowledged: at least `count` entries of the log.
    pub fn change(&self, site: &Site, random: &mut Rng, members: usize, count: u64) {
        let end = self.head() + count;
        while self.head() < end {
            let written = match random.u8(..10) {
                0..3 => self.create(site, ACME),
                3..7 => self.revoke(site, random),
                7 => self.narrow(site, random),
                8 => self.rotate(site, random),
                _ => self.delete(site, random),
            };
            written.into_iter().for_each(|written| self.acknowledge(site, members, written));
        }
    }

    /// Changes in the store as it is now, which nobody has acknowledged yet. Each may be refused: a gateway may give the store
    /// what it has lost at the same time.
    pub fn write(&self, site: &Site, random: &mut Rng, count: usize) -> Vec<Written> {
        let one = |random: &mut Rng| match random.u8(..6) {
            0..2 => self.create(site, ACME),
            2 => self.revoke(site, random),
            _ => self.rename(site, random),
        };
        (0..count).filter_map(|_| one(random)).collect()
    }

    /// Waits until every gateway has confirmed it; from then on it counts.
    pub fn acknowledge(&self, site: &Site, members: usize, written: Written) {
        let confirmation = self.manage().confirm(&written.record, TIMEOUT);
        let is_complete = confirmation.as_ref().is_ok_and(|done| done.is_complete() && done.members() == members);
        assert!(is_complete, "{confirmation:?} of {:?}\n{}", written.record, site.logs());
        let now = site.book.now();
        let good = |index| site.book.change(index, |entry| entry.state = State::Good);
        match written.effect {
            Effect::Good(index) => good(index),
            Effect::Ended(indices) => indices.into_iter().for_each(|index| site.book.end(index)),
            Effect::Narrowed(index) => {
                site.book.change(index, |entry| entry.narrowed_at = Some(now));
                good(index);
            }
            Effect::Replaced(successor, old) => {
                good(successor);
                site.book.change(old, |entry| entry.is_rotated = true);
                site.book.end(old);
            }
            Effect::None => {}
        }
    }

    fn create(&self, site: &Site, entity: &str) -> Option<Written> {
        let new = NewKey {
            entity: entity.to_owned(),
            name: "x".to_owned(),
            mode: Mode::Live,
            scopes: ["orders:read", "products:read"].map(str::to_owned).to_vec(),
            ..NewKey::default()
        };
        let created = self.manage().create_key(new).ok()?;
        let record = Record::Key(created.record.clone());
        Some(Written { record, effect: Effect::Good(enter(site, &created)) })
    }

    fn revoke(&self, site: &Site, random: &mut Rng) -> Option<Written> {
        let index = site.book.draw(random, may_change)?;
        self.end(site, index)
    }

    fn end(&self, site: &Site, index: usize) -> Option<Written> {
        site.book.change(index, |entry| entry.state = State::Changing);
        match self.manage().revoke_key(site.book.entry(index).id) {
            Ok(Revoked::Now(key) | Revoked::Before(key)) => {
                Some(Written { record: Record::Key(key), effect: Effect::Ended(vec![index]) })
            }
            // The store has lost the key, and has yet to be given it back.
            Err(ManageError::NotFound(_)) => {
                site.book.change(index, |entry| entry.state = State::Good);
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn narrow(&self, site: &Site, random: &mut Rng) -> Option<Written> {
        let index = site.book.draw(random, |entry| may_change(entry) && entry.narrowed_at.is_none())?;
        site.book.change(index, |entry| entry.state = State::Changing);
        let update = UpdateKey { scopes: Some(vec!["orders:read".to_owned()]), ..UpdateKey::default() };
        let (key, _) = self.manage().update_key(site.book.entry(index).id, &update).unwrap();
        Some(Written { record: Record::Key(key), effect: Effect::Narrowed(index) })
    }

    fn rotate(&self, site: &Site, random: &mut Rng) -> Option<Written> {
        let index = site.book.draw(random, may_change)?;
        let overlap = Overlap { time: Duration::ZERO, until_quiet: None };
        site.book.change(index, |entry| entry.state = State::Changing);
        let (created, old) = self.manage().rotate_key(site.book.entry(index).id, overlap).unwrap();
        let narrowed_at = site.book.entry(index).narrowed_at;
        let successor = enter(site, &created);
        site.book.change(successor, |entry| entry.narrowed_at = narrowed_at);
        Some(Written { record: Record::Key(old), effect: Effect::Replaced(successor, index) })
    }

    fn delete(&self, site: &Site, random: &mut Rng) -> Option<Written> {
        let entities = self.manage().entities().unwrap();
        let entities: Vec<_> = entities.into_iter().filter(|entity| entity.code != ACME).collect();
        let entity = entities.get(random.usize(..entities.len().max(1)))?;
        let of_entity = |entry: &Entry| entry.entity == entity.id && entry.state == State::Good;
        let entries = site.book.entries();
        let indices: Vec<_> = (0..entries.len()).filter(|&index| of_entity(&entries[index])).collect();
        indices.iter().for_each(|&index| site.book.change(index, |entry| entry.state = State::Changing));
        let deleted = self.manage().delete_entity(&entity.code).unwrap();
        Some(Written { record: Record::Entity(deleted), effect: Effect::Ended(indices) })
    }

    /// Of a key that is good to its store: most of all one that had ended before the store lost that.
    fn rename(&self, site: &Site, random: &mut Rng) -> Option<Written> {
        let is_revived = |entry: &Entry| {
            entry.state == State::Ended && !entry.is_rotated && self.is_in_force(entry.id) == Some(true)
        };
        let revived = site.book.draw(random, is_revived);
        let index = revived.or_else(|| site.book.draw(random, |entry| entry.is_known))?;
        let update = UpdateKey { name: Some(format!("x{}", random.u32(..))), ..UpdateKey::default() };
        match self.manage().update_key(site.book.entry(index).id, &update) {
            Ok((key, _)) if revived.is_none() => Some(Written { record: Record::Key(key), effect: Effect::None }),
            // What becomes of this one is the gateways' business: it has ended.
            Ok(_)
            | Err(ManageError::Invalid(_) | ManageError::NotFound(_) | ManageError::Store(StoreError::Conflict(_))) => {
                None
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn may_change(entry: &Entry) -> bool {
    entry.state == State::Good && !entry.is_known
}

/// Enters a key that nobody has acknowledged.
fn enter(site: &Site, created: &Created) -> usize {
    let (record, text) = (&created.record, created.text.expose().clone());
    site.book.add(Entry { state: State::Changing, ..Entry::good(record.id, text, record.entity_id) })
}
