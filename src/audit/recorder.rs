//! The worker's side of the journal: a ring that only this worker fills and only the writer empties.

use super::RECORD_BYTES_MAX;
use super::events::{Anonymous, Health};
use super::record::Pending;
use crate::clock::{Moment, Timestamp};
use crate::reason::Reason;
use rtrb::{Consumer, Producer, RingBuffer};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of a worker's ring: what the writer can be late by, about 7,000 records.
pub(super) const RING_BYTES: usize = 4 * 1024 * 1024;
/// New requests are refused while the ring is fuller than this: what has begun must still fit.
const RING_BYTES_HIGH: usize = RING_BYTES / 4 * 3;
/// Each record's length stands before it.
pub(super) const LENGTH_BYTES: usize = 4;

/// The request cannot be recorded, so it is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

/// One worker's recorder.
pub struct Recorder {
    producer: RefCell<Producer<u8>>,
    scratch: RefCell<Vec<u8>>,
    /// Records that found the ring full: at most one for each request that had begun. While there are any, none begins.
    overflow: RefCell<VecDeque<Vec<u8>>>,
    second: Cell<(i64, [u8; 19])>,
    health: Arc<Health>,
    anonymous: Arc<Anonymous>,
}

// === impl Recorder ===

impl Recorder {
    pub(super) fn new(health: Arc<Health>, anonymous: Arc<Anonymous>) -> (Self, Consumer<u8>) {
        let (producer, consumer) = RingBuffer::new(RING_BYTES);
        let recorder = Self {
            producer: RefCell::new(producer),
            scratch: RefCell::new(Vec::with_capacity(LENGTH_BYTES + RECORD_BYTES_MAX)),
            overflow: RefCell::default(),
            second: Cell::new((i64::MIN, [b' '; 19])),
            health,
            anonymous,
        };
        (recorder, consumer)
    }

    /// Opens a request's record.
    ///
    /// # Errors
    /// [`Unavailable`] when the journal cannot be written or is too far behind; the refusal is counted exactly.
    pub fn begin(self: &Rc<Self>, started: Moment) -> Result<Pending, Unavailable> {
        self.flush();
        let used = RING_BYTES - self.producer.borrow().slots();
        if !self.health.is_healthy() || used > RING_BYTES_HIGH || !self.overflow.borrow().is_empty() {
            self.health.add_refused();
            return Err(Unavailable);
        }
        Ok(Pending::new(Rc::clone(self), started))
    }

    pub(super) fn commit(&self, pending: &Pending, reason: Option<Reason>, duration: Duration) {
        if let Some(reason) = reason.filter(|_| pending.is_anonymous())
            && !self.anonymous.admits(reason, pending.started())
        {
            return;
        }
        let mut record = self.scratch.borrow_mut();
        record.clear();
        record.extend_from_slice(&[0; LENGTH_BYTES]);
        let ts = self.timestamp(pending.started());
        pending.encode(&mut record, std::str::from_utf8(&ts).unwrap_or_default(), reason, duration);
        let length = record.len() - LENGTH_BYTES;
        debug_assert!(length <= RECORD_BYTES_MAX);
        if let (Some(prefix), Ok(length)) = (record.first_chunk_mut(), u32::try_from(length)) {
            *prefix = length.to_le_bytes();
        }
        if !self.overflow.borrow().is_empty() || !self.push(&record) {
            self.overflow.borrow_mut().push_back(record.clone());
        }
    }

    /// Moves records that found the ring full into it.
    pub fn flush(&self) {
        let mut overflow = self.overflow.borrow_mut();
        while overflow.front().is_some_and(|record| self.push(record)) {
            overflow.pop_front();
        }
    }

    /// Puts a record, its length before it, into the ring; false when there is no room.
    fn push(&self, record: &[u8]) -> bool {
        self.producer.borrow_mut().push_entire_slice(record).is_ok()
    }

    /// RFC 3339 with microseconds. The second's text is kept, because thousands of records share it.
    fn timestamp(&self, time: Timestamp) -> [u8; 27] {
        let second = time.as_micros().div_euclid(1_000_000);
        let (known, mut text) = self.second.get();
        if known != second {
            let full = time.to_string();
            text.copy_from_slice(full.as_bytes().get(..19).unwrap_or(&[b'0'; 19]));
            self.second.set((second, text));
        }
        let mut stamp = *b"0000-00-00T00:00:00.000000Z";
        stamp.iter_mut().zip(text).for_each(|(slot, byte)| *slot = byte);
        let mut rest = time.as_micros().rem_euclid(1_000_000);
        for slot in stamp.iter_mut().skip(20).take(6).rev() {
            *slot = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        stamp
    }
}

impl Drop for Recorder {
    /// The worker ends: what still waits goes to the writer, which is emptying the ring meanwhile.
    fn drop(&mut self) {
        for _ in 0..1000 {
            self.flush();
            if self.overflow.borrow().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        tracing::error!(records = self.overflow.borrow().len(), "audit records lost: the journal did not take them");
    }
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorder")
    }
}
