//! What the follower keeps on disk, and what becomes of it when it cannot (protocols I3): nothing is confirmed while files are
//! there that are not what is known.

use super::lineage::Lineage;
use super::load::{self, Batches};
use super::snapshot::{Draft, Onto, Recalled, Snapshot};
use crate::clock::{Clock, Instant, Moment};
use crate::key::Digest;
use crate::store::{Change, Position, Record, StoreError};
use std::collections::HashSet;
use std::io;
use std::time::Duration;

/// How long to wait before another snapshot is tried after one could not be kept.
pub const RETRY: Duration = Duration::from_secs(60);

/// The snapshot, if this process owns one.
pub struct Kept {
    snapshot: Option<Snapshot>,
    /// Which history what is known is of.
    pub lineage: Lineage,
    /// Since when changes are not kept.
    volatile_since: Option<Instant>,
    clock: Clock,
}

// === impl Kept ===

impl Kept {
    pub fn new(snapshot: Option<Snapshot>, clock: Clock) -> Self {
        Self { snapshot, lineage: Lineage::default(), volatile_since: None, clock }
    }

    /// Reads everything back, page by page; none where nothing is kept.
    ///
    /// # Errors
    /// As of [`Snapshot::recall`].
    pub fn recall(&mut self, now: Moment, apply: impl FnMut(Vec<Record>)) -> io::Result<Option<Recalled>> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(None) };
        let recalled = load::pipe(|batches: &mut Batches| snapshot.recall(now, |record| batches.push(record)), apply)?;
        if let Some(recalled) = &recalled {
            self.lineage.clone_from(&recalled.lineage);
        }
        Ok(recalled)
    }

    /// Everything that is kept under a version above `seq`; nothing where nothing is kept.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], when the disk does not give it back.
    pub fn changed_after(&mut self, seq: u64) -> Result<Vec<Record>, StoreError> {
        let changed = self.snapshot.as_mut().map_or_else(|| Ok(Vec::new()), |snapshot| snapshot.changed_after(seq));
        changed.map_err(|error| StoreError::Unavailable(format!("the snapshot cannot be read: {error}")))
    }

    /// Goes over to another history, which has `entries` after the last position that both have, and not the keys in `refused`.
    ///
    /// # Errors
    /// As of [`Self::append`].
    pub fn rebase(
        &mut self,
        common: Position,
        entries: &[Change],
        refused: &HashSet<Digest>,
    ) -> Result<(), StoreError> {
        self.lineage.cut(common.seq);
        self.lineage.extend(entries.iter().map(|change| Position { seq: change.seq, token: change.token }));
        let onto = Onto { common, entries, refused, lineage: &self.lineage };
        let rebased = self.snapshot.as_mut().map_or(Ok(()), |snapshot| snapshot.rebase(onto));
        rebased.or_else(|error| self.give_up(&error))
    }

    /// What is kept is of no use any more: it goes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], when it cannot be removed: nothing may be confirmed then.
    pub fn forget(&mut self) -> Result<(), StoreError> {
        let gone = self.snapshot.as_mut().map_or(Ok(()), Snapshot::abandon);
        gone.map_err(|error| StoreError::Unavailable(format!("the snapshot cannot be removed: {error}")))
    }

    /// Whether this gateway has had a position before.
    pub fn had_position(&self) -> bool {
        self.snapshot.as_ref().is_some_and(Snapshot::exists)
    }

    /// Whether what is known is in memory alone.
    pub fn is_volatile(&self) -> bool {
        !self.snapshot.as_ref().is_some_and(Snapshot::is_kept)
    }

    /// Whether another snapshot is to be written, from the store.
    pub fn is_due(&self) -> bool {
        let now = self.clock.moment().mono;
        let retry = |since: Instant| now.saturating_duration_since(since) >= RETRY;
        self.volatile_since.is_some_and(retry) || self.snapshot.as_ref().is_some_and(Snapshot::is_to_be_replaced)
    }

    /// Begins another snapshot, of everything up to `since`, if this process owns one and the disk takes it.
    pub fn draft(&mut self, since: Position) -> Option<Draft> {
        self.volatile_since = self.volatile_since.map(|_| self.clock.moment().mono);
        let draft = self.snapshot.as_mut()?.draft(since, self.lineage.fleet);
        draft.inspect_err(|error| tracing::error!(%error, "no snapshot of the keys can be written")).ok()
    }

    /// Makes `draft`, which holds everything up to `since`, the snapshot.
    ///
    /// # Errors
    /// As of [`Self::append`].
    pub fn replace(&mut self, draft: Option<Draft>, since: Position) -> Result<(), StoreError> {
        let Some(snapshot) = &mut self.snapshot else { return Ok(()) };
        let replaced = match draft {
            Some(draft) => snapshot.replace(draft, since, &self.lineage),
            None if snapshot.is_kept() => return Ok(()),
            None => Err(io::Error::other("there is no snapshot")),
        };
        replaced.or_else(|error| self.give_up(&error))?;
        if !self.is_volatile() {
            self.volatile_since = None;
        }
        Ok(())
    }

    /// Keeps `entries`, or keeps nothing any more: what is on disk is what is known when this returns.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], when what is outdated cannot be removed: nothing may be confirmed then.
    pub fn append(&mut self, entries: &[Change]) -> Result<(), StoreError> {
        self.lineage.extend(entries.iter().map(|change| Position { seq: change.seq, token: change.token }));
        let lineage = &self.lineage;
        let appended = self.snapshot.as_mut().map_or(Ok(()), |snapshot| snapshot.append(entries, lineage));
        appended.or_else(|error| self.give_up(&error))
    }

    fn give_up(&mut self, error: &io::Error) -> Result<(), StoreError> {
        tracing::error!(%error, "changes of keys cannot be kept on disk; a restart needs the store");
        self.volatile_since = Some(self.clock.moment().mono);
        let outdated = |error| format!("the snapshot is outdated and cannot be removed, nothing is confirmed: {error}");
        let gone = self.snapshot.as_mut().map_or(Ok(()), Snapshot::abandon);
        gone.map_err(|error| StoreError::Unavailable(outdated(error)))
    }

    /// Keeps when this gateway was last caught up.
    pub fn stamp(&mut self, at: Moment, position: Position) {
        let stamped = self.snapshot.as_mut().map_or(Ok(()), |snapshot| snapshot.stamp(at, position));
        if let Err(error) = stamped {
            tracing::warn!(%error, "the time of contact cannot be kept; a restart without the store serves for a shorter time");
        }
    }

    /// What is kept must not be served from any more without the store.
    ///
    /// # Errors
    /// When it may be.
    pub fn retire(&mut self) -> io::Result<()> {
        let retire = |snapshot: &mut Snapshot| snapshot.retire().or_else(|_| snapshot.abandon());
        self.snapshot.as_mut().map_or(Ok(()), retire)
    }

    /// Every write fails from now on, as after an error of the disk.
    #[cfg(test)]
    pub fn close_for_writing(&mut self) {
        self.snapshot.iter_mut().for_each(Snapshot::close_for_writing);
    }
}
