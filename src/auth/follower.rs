//! The follower: the one writer of the key cache. It loads the whole set, then applies the change log as it grows.

use super::Settings;
use super::applier::Applier;
use super::cache::KeyCache;
use crate::clock::{Clock, Moment};
use crate::store::{Change, Changes, Feed, Position, Record, StoreError};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

/// Records read at a time during a load.
const PAGE: usize = 4096;
/// Pages that may wait to be applied.
const PAGES_AHEAD: usize = 4;
/// Log entries read at a time.
const ENTRIES: usize = 500;

/// Keeps one [`KeyCache`] true. Owned by one thread.
pub struct Follower {
    cache: Arc<KeyCache>,
    changes: Box<dyn Changes>,
    applier: Applier,
    clock: Clock,
    position: Position,
    generation: u64,
    keys_max: u64,
}

/// What one turn of the follower found.
#[derive(Debug)]
pub enum Turn {
    /// Nothing new, or everything new has been applied: the entries, for the journal.
    CaughtUp(Vec<Change>),
    /// There is more; take another turn at once.
    Behind(Vec<Change>),
    /// The log does not hold our position. Nothing was applied; unknown keys are answered 503 from now on.
    Diverged,
}

// === impl Follower ===

impl Follower {
    pub fn new(cache: Arc<KeyCache>, changes: Box<dyn Changes>, settings: Settings, clock: Clock) -> Self {
        let keys_max = settings.keys_max;
        let applier = Applier::new(Arc::clone(&cache), settings);
        Self { cache, changes, applier, clock, position: Position::default(), generation: 0, keys_max }
    }

    /// Loads the whole set, page by page in the order of versions, and stands at the log's head from before the load:
    /// what changed meanwhile comes again through the log, and versions sort it out.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be read; what was loaded so far stays, the cache is not complete.
    pub fn load(&mut self) -> Result<(), StoreError> {
        self.cache.set_incomplete();
        let head = self.changes.head()?;
        self.load_pages()?;
        self.position = head;
        while let Turn::Behind(_) = self.turn()? {}
        self.complete();
        Ok(())
    }

    /// Reads all pages on a thread of their own while this one applies them: the two cost about the same.
    fn load_pages(&mut self) -> Result<(), StoreError> {
        let (sender, pages) = sync_channel(PAGES_AHEAD);
        let Self { changes, applier, .. } = self;
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || read_pages(changes.as_mut(), &sender));
            pages.iter().flatten().for_each(|record: Record| applier.apply(&record));
            reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Reads the log once and applies what is new.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot be asked: the right to serve is not renewed.
    pub fn turn(&mut self) -> Result<Turn, StoreError> {
        let sent = self.clock.moment();
        let (head, entries) = match self.changes.poll(self.position, ENTRIES)? {
            Feed::Entries { head, entries } => (head, entries),
            Feed::Diverged { .. } => {
                self.cache.set_incomplete();
                return Ok(Turn::Diverged);
            }
        };
        for change in &entries {
            self.applier.apply(&change.after);
            self.position = Position { seq: change.seq, token: change.token };
        }
        Ok(self.conclude(head, entries, sent))
    }

    fn conclude(&self, head: Position, entries: Vec<Change>, sent: Moment) -> Turn {
        if self.position.seq < head.seq {
            return Turn::Behind(entries);
        }
        self.cache.mark_caught_up(sent);
        Turn::CaughtUp(entries)
    }

    /// Declares the cache complete, unless the set has outgrown it.
    fn complete(&mut self) {
        self.generation += 1;
        if self.cache.records() <= self.keys_max {
            self.cache.set_complete(self.generation);
        } else {
            tracing::error!(
                keys_max = self.keys_max,
                "more keys than cache.keys_max; keys that did not fit are answered 503"
            );
        }
    }
}

/// Sends every page, in the order of versions, until there is none or nobody takes it.
fn read_pages(changes: &mut dyn Changes, pages: &SyncSender<Vec<Record>>) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let page = changes.page(after, PAGE)?;
        let Some(last) = page.last() else { return Ok(()) };
        after = last.version();
        if pages.send(page).is_err() {
            return Ok(());
        }
    }
}
