//! The worker's side of the journal: no lock, no system call.

use super::events::{Anonymous, Health};
use super::record::Pending;
use super::ring::{Counter, RING_BYTES, Ring};
use super::{Durability, Overload, RECORD_BYTES_MAX};
use crate::clock::Moment;
use crate::reason::Reason;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// New requests are refused while the ring is fuller than this: what has begun must still fit.
const RING_BYTES_HIGH: u64 = RING_BYTES / 4 * 3;
/// How long a response is held for a journal that does not sync.
const HOLD_MAX: Duration = Duration::from_secs(1);

/// The request cannot be recorded, so it is not served; that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The journal cannot be written, or is too far behind.
    Journal,
    /// Too many are under way on this worker.
    Slots,
}

/// The record is not synced, and the journal does not get on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSynced;

/// On what terms a process records: the same for all its recorders.
#[derive(Clone, Debug)]
pub struct Terms {
    pub health: Arc<Health>,
    pub anonymous: Arc<Anonymous>,
    pub durability: Durability,
    pub overload: Overload,
    pub query_names: Arc<[String]>,
}

/// One worker's recorder.
pub struct Recorder {
    ring: Arc<Ring>,
    /// Rung by the writer after each sync.
    synced: Arc<Notify>,
    terms: Terms,
    /// Slots without a request; the one used last is the next.
    free: RefCell<Vec<usize>>,
    /// Slots whose records found the ring full. While there are any, no request begins.
    kept: RefCell<VecDeque<usize>>,
    scratch: RefCell<Vec<u8>>,
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new(ring: Arc<Ring>, synced: Arc<Notify>, terms: Terms) -> Self {
        let free = (0..ring.slots()).rev().collect();
        Self {
            ring,
            synced,
            terms,
            free: RefCell::new(free),
            kept: RefCell::default(),
            scratch: RefCell::new(Vec::with_capacity(RECORD_BYTES_MAX)),
        }
    }

    /// Opens a request's record.
    ///
    /// # Errors
    /// [`Unavailable`]; the refusal is counted exactly.
    pub fn begin(self: &Rc<Self>, started: Moment) -> Result<Pending, Unavailable> {
        if !self.kept.borrow().is_empty() {
            self.flush();
        }
        let has_room = self.terms.overload == Overload::Drop || self.has_room();
        let slot =
            if has_room { self.free.borrow_mut().pop().ok_or(Unavailable::Slots) } else { Err(Unavailable::Journal) };
        match slot {
            Ok(slot) => Ok(Pending::new(Rc::clone(self), slot, started)),
            Err(unavailable) => {
                self.ring.count(Counter::Refused);
                self.terms.health.add_refused();
                Err(unavailable)
            }
        }
    }

    fn has_room(&self) -> bool {
        self.terms.health.is_healthy() && self.ring.used() <= RING_BYTES_HIGH && self.kept.borrow().is_empty()
    }

    /// The request goes upstream: from here on it leaves a record even if the process dies.
    pub(super) fn open(&self, pending: &Pending) {
        if cfg!(feature = "without-audit") || self.terms.durability == Durability::Async {
            return;
        }
        let query = pending.allowed_query(&self.terms.query_names);
        let mut record = self.scratch.borrow_mut();
        record.clear();
        pending.death(query.as_deref()).write(&mut record);
        self.ring.open(pending.slot(), &record);
    }

    pub(super) fn commit(&self, pending: &Pending, reason: Option<Reason>, duration: Duration) {
        let slot = pending.slot();
        if cfg!(feature = "without-audit") || self.is_counted_only(pending, reason) {
            return self.release(slot);
        }
        let query = pending.allowed_query(&self.terms.query_names);
        let mut record = self.scratch.borrow_mut();
        record.clear();
        pending.draft(query.as_deref(), reason, duration).write(&mut record);
        if self.kept.borrow().is_empty() && self.ring.place(&record, slot) {
            return self.free.borrow_mut().push(slot);
        }
        match self.terms.overload {
            Overload::Reject => {
                self.ring.keep(slot, &record);
                self.kept.borrow_mut().push_back(slot);
            }
            Overload::Drop => {
                self.ring.count(Counter::Dropped);
                self.terms.health.add_dropped();
                self.release(slot);
            }
        }
    }

    fn is_counted_only(&self, pending: &Pending, reason: Option<Reason>) -> bool {
        let Some(reason) = reason.filter(|_| pending.is_anonymous()) else { return false };
        let is_beyond = !self.terms.anonymous.admits(pending.started());
        if is_beyond {
            self.ring.count(Counter::Anonymous(reason));
        }
        is_beyond
    }

    fn release(&self, slot: usize) {
        self.ring.release(slot);
        self.free.borrow_mut().push(slot);
    }

    /// Moves records that found the ring full into it.
    pub fn flush(&self) {
        let mut kept = self.kept.borrow_mut();
        let mut record = self.scratch.borrow_mut();
        while let Some(slot) = kept.front() {
            record.clear();
            self.ring.kept(*slot, &mut record);
            if !self.ring.place(&record, *slot) {
                return;
            }
            self.free.borrow_mut().extend(kept.pop_front());
        }
    }

    /// Whether a response is held back until its record is synced.
    pub fn holds(&self) -> bool {
        self.terms.durability.waits_for_sync(&self.terms.health)
    }

    /// Waits until everything that this worker has recorded is synced.
    ///
    /// # Errors
    /// [`NotSynced`] when that takes longer than a second.
    pub async fn synced(&self) -> Result<(), NotSynced> {
        let produced = self.ring.produced();
        let is_synced = || self.kept.borrow().is_empty() && self.ring.freed() >= produced;
        let synced = async {
            loop {
                let rung = self.synced.notified();
                if is_synced() {
                    return;
                }
                rung.await;
                self.flush();
            }
        };
        tokio::time::timeout(HOLD_MAX, synced).await.map_err(|_| NotSynced)
    }
}

impl Drop for Recorder {
    /// The worker ends: what still waits goes to the writer, which is emptying the ring meanwhile. What it does not take stays in
    /// its slot, for the next start.
    fn drop(&mut self) {
        for _ in 0..1000 {
            self.flush();
            if self.kept.borrow().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::error!(
            records = self.kept.borrow().len(),
            "audit records wait in the ring: the journal did not take them"
        );
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}
