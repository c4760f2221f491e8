//! The follower: the one writer of the key cache. It takes up the snapshot, loads the whole set where that is not enough, and
//! applies the change log as it grows.

mod fork;

use super::Settings;
use super::applier::{Applier, Ended, Origin};
use super::cache::KeyCache;
use super::fill::{Filler, Fills};
use super::kept::Kept;
use super::load::{self, Load, Reload};
use super::snapshot::Snapshot;
use crate::clock::{Clock, Moment, Timestamp};
use crate::key::Digest;
use crate::store::{Change, Changes, Feed, KeyStore, Member, Position, StoreError};
use crate::sync::{Mutex, MutexGuard, Receiver};
use crate::telemetry;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Log entries read at a time.
const ENTRIES: usize = 500;
/// How often the fleet is told when this gateway was last caught up.
const TELL_EVERY: Duration = Duration::from_millis(500);
/// How many of the log's positions a gateway that loads everything remembers from before.
const PAST: usize = 10_000;

/// Keeps one [`KeyCache`] true. Owned by one thread.
pub struct Follower {
    cache: Arc<KeyCache>,
    store: Arc<dyn KeyStore>,
    changes: Box<dyn Changes>,
    applier: Arc<Mutex<Applier>>,
    fills: Arc<Fills>,
    kept: Kept,
    member: Member,
    cut: Cut,
    heard: Box<dyn Fn(&Change) + Send>,
    clock: Clock,
    /// None until a load has begun or a snapshot was taken up.
    position: Option<Position>,
    generation: u64,
    /// Everything up to the position is known.
    loaded: bool,
    loading: Option<Load>,
    /// The store has run for so long that whoever knew more than it has told it, or this gateway knew it before: what it
    /// says may be served (protocols, Settle).
    settled: bool,
    /// Requests are served: what ends must be cut.
    serving: bool,
    joined: bool,
    /// The fleet could not be told how far this gateway has come.
    untold: bool,
    /// The store was told that it has lost changes.
    fork_noted: bool,
}

/// What a follower is made of.
pub struct Parts {
    pub cache: Arc<KeyCache>,
    pub store: Arc<dyn KeyStore>,
    pub settings: Settings,
    pub fills: Arc<Fills>,
    /// None where another process owns it.
    pub snapshot: Option<Snapshot>,
    pub clock: Clock,
    /// What the fleet is told of this gateway.
    pub member: Member,
    pub cut: Cut,
    /// Is given each change once it is applied, for the journal.
    pub heard: Box<dyn Fn(&Change) + Send>,
}

/// Has every worker judge again what it has in flight by entries that have ended, or by these keys; what it gives returns when all have done so.
pub type Cut = Box<dyn Fn(Ended) -> Box<dyn FnOnce()> + Send>;

/// What one turn of the follower found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Everything is known and applied.
    CaughtUp,
    /// There is more; take another turn at once.
    Behind,
    /// The store's history is not ours, and a person must say what counts. Nothing was applied; unknown keys are answered 503 from
    /// now on.
    Held,
}

// === impl Follower ===

impl Follower {
    /// # Errors
    /// When the store is not ours to use.
    pub fn new(parts: Parts) -> Result<Self, StoreError> {
        let applier = Applier::new(Arc::clone(&parts.cache), parts.settings, Arc::clone(&parts.fills));
        Ok(Self {
            changes: parts.store.changes()?,
            applier: Arc::new(Mutex::new(applier)),
            fills: parts.fills,
            cache: parts.cache,
            store: parts.store,
            kept: Kept::new(parts.snapshot, parts.clock.clone()),
            member: parts.member,
            cut: parts.cut,
            heard: parts.heard,
            clock: parts.clock,
            position: None,
            generation: 0,
            loaded: false,
            loading: None,
            settled: false,
            serving: false,
            joined: false,
            untold: false,
            fork_noted: false,
        })
    }

    /// Takes up the snapshot, then follows the store until everything is known. From then on requests may be served: what
    /// ends is cut.
    ///
    /// # Errors
    /// The store's. When it cannot be asked, what the snapshot gave stays, with the right to serve that it had
    /// (protocols I2).
    pub fn start(&mut self) -> Result<(), StoreError> {
        self.recall();
        let outcome = loop {
            match self.turn() {
                Ok(Turn::Behind) => {}
                Ok(Turn::CaughtUp | Turn::Held) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.serving = true;
        outcome
    }

    /// Who answers when a worker asks for a key that the cache lacks.
    pub fn filler(&self, queue: Receiver<Digest>) -> Filler {
        let (store, cache, applier) = (Arc::clone(&self.store), Arc::clone(&self.cache), Arc::clone(&self.applier));
        Filler::new(store, cache, applier, Arc::clone(&self.fills), queue)
    }

    /// Rests until there may be something new.
    pub fn wait(&mut self) {
        self.changes.wait(self.position.unwrap_or_default());
    }

    /// Reads the log once and applies what is new; goes on with a load, if one is due.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be asked: the right to serve is not renewed.
    pub fn turn(&mut self) -> Result<Turn, StoreError> {
        let turn = self.take_turn();
        if turn.is_err() {
            // Whoever answers next may be another store.
            self.cache.trust_store(false);
        }
        turn
    }

    fn take_turn(&mut self) -> Result<Turn, StoreError> {
        if !self.joined {
            // Before the head is read: a change after that waits for this gateway (protocols I2).
            self.tell()?;
            self.joined = true;
        }
        if !self.know_fleet()? || self.position.is_none() && self.begin_load(Reload::Start)?.is_none() {
            return self.hold();
        }
        // A store that does not hold our position is not loaded from.
        let turn = self.read()?;
        if turn == Turn::Held {
            return Ok(turn);
        }
        if let Some(reason) = self.reload_due().filter(|_| self.loading.is_none()) {
            self.begin_load(reason)?;
        }
        if self.loading.is_some() {
            self.go_on_loading(turn == Turn::CaughtUp)?;
            return Ok(Turn::Behind);
        }
        Ok(turn)
    }

    /// Leaves the fleet: nobody waits for this gateway any more. What it keeps on disk must not be served from again without
    /// the store, or it stays a member (protocols, Rows).
    pub fn leave(mut self) {
        self.fills.close();
        match self.kept.retire() {
            Ok(()) => self.changes.leave(&self.member),
            Err(error) => {
                tracing::error!(%error, "the snapshot cannot be retired; this gateway stays in the fleet's list")
            }
        }
    }

    // === From the snapshot ===

    fn recall(&mut self) {
        let now = self.clock.moment();
        match self.kept.recall(now, |page| load::apply(&self.applier, &page)) {
            Ok(Some(recalled)) => {
                recalled.lineage.fleet.iter().for_each(|fleet| self.store.expect_fleet(*fleet));
                self.stand_at(recalled.position);
                self.loaded = true;
                if let Some(contact) = recalled.contact {
                    self.cache.mark_caught_up(contact);
                    self.settled = !self.cache.is_stale(now);
                }
            }
            Ok(None) => {}
            Err(error) => {
                self.applier().forget();
                telemetry::snapshot_refused();
                tracing::error!(%error, "the snapshot cannot be used; the keys are loaded from the store");
            }
        }
        // A set that was whole when it was written is known to have changed only through the log.
        _ = self.applier().take_ended();
    }

    // === From the store ===

    fn reload_due(&self) -> Option<Reload> {
        match self.position {
            None => Some(Reload::Start),
            Some(_) if self.cache.has_evicted() => Some(Reload::Eviction),
            Some(_) if self.kept.is_due() => Some(Reload::Snapshot),
            Some(_) => None,
        }
    }

    /// Begins to read the whole set, page by page in the order of versions. What changes meanwhile comes through the log, and
    /// versions sort it out. None when an empty store is in the place of one that had changes.
    fn begin_load(&mut self, reason: Reload) -> Result<Option<()>, StoreError> {
        let since = match self.position {
            Some(position) => position,
            None => self.changes.head()?,
        };
        if since == Position::default() && self.kept.had_position() && reason == Reload::Start {
            return Ok(None);
        }
        if reason == Reload::Start {
            // By these it is found out later from where on a store that has lost changes goes another way.
            self.kept.lineage.cut(0);
            self.kept.lineage.extend(self.changes.past(PAST)?);
            self.kept.lineage.cut(since.seq);
            self.kept.lineage.extend([since]);
        }
        let load = Load::begin(self.store.changes()?, self.kept.draft(since), since, reason)?;
        if reason == Reload::Eviction {
            self.cache.set_incomplete();
            self.cache.forget_eviction();
        }
        self.loading = Some(load);
        self.stand_at(since);
        telemetry::reload_begun(reason.as_str());
        Ok(Some(()))
    }

    /// Applies pages for a while, and cuts what they ended.
    fn go_on_loading(&mut self, is_caught_up: bool) -> Result<(), StoreError> {
        let Some(mut load) = self.loading.take() else { return Ok(()) };
        let (since, reason) = (load.since, load.reason);
        let gone_on = load.go_on(&self.applier, &self.kept.lineage, is_caught_up, &self.clock);
        self.cut_ended()();
        if !gone_on.inspect_err(|_| self.repeat(reason))? {
            self.loading = Some(load);
            return Ok(());
        }
        let draft = load.end().inspect_err(|_| self.repeat(reason))?;
        self.applier().drop_outgoing();
        self.cut_ended()();
        self.loaded = true;
        self.kept.replace(draft, since)
    }

    /// A load came to nothing: it is still due.
    fn repeat(&mut self, reason: Reload) {
        match reason {
            Reload::Start => {
                self.position = None;
                self.applier().renew();
            }
            Reload::Eviction => self.cache.note_eviction(),
            Reload::Snapshot => {}
        }
    }

    fn stand_at(&mut self, position: Position) {
        self.position = Some(position);
        self.applier().stand_at(position);
    }

    fn read(&mut self) -> Result<Turn, StoreError> {
        let from = self.position.unwrap_or_default();
        let sent = self.clock.moment();
        let (head, entries) = match self.changes.poll(from, self.kept.lineage.fleet, ENTRIES)? {
            Feed::Entries { head, entries } => (head, entries),
            Feed::Diverged { .. } => return self.part(),
            Feed::Foreign { .. } => return self.hold(),
        };
        self.apply(&entries);
        self.advance(&entries)?;
        let confirmed = self.confirm();
        if self.position.unwrap_or_default().seq < head.seq {
            return Ok(Turn::Behind);
        }
        let is_settling = !self.changes.settles_in().is_zero();
        self.settled |= !is_settling;
        self.cache.trust_store(!is_settling && self.loaded);
        (self.member.held, self.fork_noted) = (None, false);
        if confirmed && self.loaded && self.settled {
            self.catch_up(sent, is_settling);
        }
        Ok(Turn::CaughtUp)
    }

    fn apply(&self, entries: &[Change]) {
        let mut applier = self.applier();
        entries.iter().for_each(|change| applier.apply(&change.after, Origin::Log));
    }

    fn applier(&self) -> MutexGuard<'_, Applier> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Entries that were applied count as read when what they ended has been cut and they are on disk (protocols I3, I9).
    fn advance(&mut self, entries: &[Change]) -> Result<(), StoreError> {
        let Some(last) = entries.last() else { return Ok(()) };
        let cut = self.cut_ended();
        let kept = self.kept.append(entries);
        cut();
        kept?;
        self.stand_at(Position { seq: last.seq, token: last.token });
        self.hear(entries);
        Ok(())
    }

    /// Hands out what has come into force, each change once: the position moves with it. Its number tells nothing of that, since
    /// what a store has in the place of what it has lost bears the same.
    fn hear(&self, entries: &[Change]) {
        let now = self.clock.now();
        for change in entries {
            telemetry::change_applied(now.since(change.at));
            (self.heard)(change);
        }
    }

    /// What was in force and is not any more ends in flight too.
    fn cut_ended(&mut self) -> Box<dyn FnOnce()> {
        // Before requests are served there is nobody who could cut.
        let ended = self.applier().take_ended().filter(|_| self.serving);
        ended.map_or_else(|| Box::new(|| {}) as Box<dyn FnOnce()>, |changed| (self.cut)(changed))
    }

    /// Everything up to the head of a poll sent at `sent` is known. What is not is unknown, and no more, while the store settles:
    /// whoever has it may still give it back (protocols I7, Settle).
    fn catch_up(&mut self, sent: Moment, is_settling: bool) {
        let is_loading_again = self.loading.as_ref().is_some_and(|loading| loading.reason == Reload::Eviction);
        // Not only afterwards: until then a key that the cache has lost would be told absent.
        let lacks = is_settling || is_loading_again || self.cache.has_evicted();
        if !self.cache.is_complete() && self.applier().is_whole() && !lacks {
            self.generation += 1;
            self.cache.set_complete(self.generation);
            // Unless a key was lost, or found no room, just now.
            if self.cache.has_evicted() || !self.applier().is_whole() {
                self.cache.set_incomplete();
            }
        }
        self.cache.mark_caught_up(sent);
        let told = Timestamp::from_micros(self.member.caught_up_at);
        if sent.wall.since(told) >= TELL_EVERY || sent.wall < told {
            self.member.caught_up_at = sent.wall.as_micros();
        }
        let position = self.position.unwrap_or_default();
        if self.changes.outlives_process() {
            self.kept.stamp(sent, position);
        }
    }

    /// Confirms to the fleet how far this gateway has come; whether that could be done. A store that can be read and not
    /// written may be one that nobody writes to any more: what it says renews no right (protocols I1, FEED).
    fn confirm(&mut self) -> bool {
        let told = self.tell();
        match &told {
            Ok(()) => self.untold = false,
            Err(error) if !std::mem::replace(&mut self.untold, true) => {
                tracing::error!(%error, "changes are applied but cannot be confirmed; without that the right to serve runs out");
            }
            Err(_) => {}
        }
        told.is_ok()
    }

    fn tell(&mut self) -> Result<(), StoreError> {
        self.tell_of(self.position.filter(|_| self.loaded).unwrap_or_default())
    }

    fn tell_of(&mut self, position: Position) -> Result<(), StoreError> {
        (self.member.pos, self.member.token) = (position.seq, position.token);
        self.member.keys = self.cache.records();
        self.member.complete = self.cache.is_complete();
        self.member.volatile = self.kept.is_volatile();
        self.changes.tell(&self.member)
    }
}

#[cfg(test)]
mod fork_tests;
#[cfg(test)]
mod loss_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod watched;
#[cfg(test)]
pub(super) use tests::{digest, key};
