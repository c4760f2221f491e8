//! What a client sends besides requests and bodies, counted: the library answers each of these frames for as long as it is
//! asked to.

use crate::clock::{Instant, monotonic};
use crate::server::registry::ConnState;
use std::cell::{Cell, RefCell};

/// Bytes of the client's first words, which are no frame (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
const FRAME_HEAD_BYTES: usize = 9;

/// Frames that carry nothing: so many at once, and so many a second.
const CONTROL: Bounds = Bounds { burst: 1024, per_second: 100, most: 65_536 };
/// Requests that the client takes back.
const RESETS: Bounds = Bounds { burst: 100, per_second: 10, most: 100 };
/// A client may say that it has taken what we sent: one frame for so many bytes.
const BYTES_A_FRAME: usize = 512;
/// A part of a body, however small, explains so many.
const FRAMES_A_PART: u32 = 2;
/// What a request that was served whole explains.
const FRAMES_A_REQUEST: u32 = 16;

/// The account of one connection's frames.
#[derive(Debug)]
pub struct Meter {
    scanner: RefCell<Scanner>,
    control: Allowance,
    resets: Allowance,
    /// Bytes sent that do not make a frame yet.
    sent: Cell<usize>,
    is_exhausted: Cell<bool>,
}

/// Finds the frames in what is read, a piece at a time.
#[derive(Debug)]
struct Scanner {
    head: [u8; FRAME_HEAD_BYTES],
    filled: usize,
    /// Bytes until the next frame's head.
    skip: usize,
}

#[derive(Debug)]
struct Bounds {
    burst: u32,
    per_second: u32,
    /// The most that can be earned.
    most: u32,
}

#[derive(Debug)]
struct Allowance {
    bounds: Bounds,
    left: Cell<u32>,
    refilled: Cell<Instant>,
}

// === impl Meter ===

impl Default for Meter {
    fn default() -> Self {
        let now = monotonic();
        Self {
            scanner: RefCell::new(Scanner { head: [0; FRAME_HEAD_BYTES], filled: 0, skip: PREFACE_BYTES }),
            control: Allowance::new(CONTROL, now),
            resets: Allowance::new(RESETS, now),
            sent: Cell::new(0),
            is_exhausted: Cell::new(false),
        }
    }
}

impl Meter {
    /// The client has sent more than its requests explain.
    pub const fn is_exhausted(&self) -> bool {
        self.is_exhausted.get()
    }

    /// Bytes arrived.
    pub fn read(&self, bytes: &[u8], state: &ConnState) {
        let mut scanner = self.scanner.borrow_mut();
        let mut rest = bytes;
        while let Some(kind) = scanner.next(&mut rest) {
            self.count(kind, state);
        }
    }

    /// Bytes were taken.
    pub fn wrote(&self, bytes: usize) {
        let sent = self.sent.get() + bytes;
        self.sent.set(sent % BYTES_A_FRAME);
        self.control.earn(u32::try_from(sent / BYTES_A_FRAME).unwrap_or(u32::MAX));
    }

    /// A part of a body goes out: the client may say that it has taken it, to the stream and to the connection.
    pub fn sent_data(&self) {
        self.control.earn(FRAMES_A_PART);
    }

    /// A request was served whole.
    pub fn served(&self) {
        self.control.earn(FRAMES_A_REQUEST);
        self.resets.earn(1);
    }

    /// The frames that are not counted here have bounds in the library: fields by their size, bodies by their window, empty and
    /// tiny parts of bodies by their number.
    fn count(&self, kind: u8, state: &ConnState) {
        const DATA: u8 = 0;
        const HEADERS: u8 = 1;
        const RST_STREAM: u8 = 3;
        const CONTINUATION: u8 = 9;
        let within = match kind {
            DATA | CONTINUATION => true,
            HEADERS => {
                state.on_read();
                true
            }
            RST_STREAM => self.resets.spend(),
            _ => self.control.spend(),
        };
        if !within {
            self.is_exhausted.set(true);
        }
    }
}

// === impl Scanner ===

impl Scanner {
    /// The kind of the next frame that begins in `bytes`.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<u8> {
        let (_, rest) = bytes.split_at(self.skip.min(bytes.len()));
        self.skip -= bytes.len() - rest.len();
        let (head, rest) = rest.split_at(rest.len().min(FRAME_HEAD_BYTES - self.filled));
        self.head.iter_mut().skip(self.filled).zip(head).for_each(|(place, byte)| *place = *byte);
        self.filled += head.len();
        *bytes = rest;
        let [a, b, c, kind, ..] = self.head;
        (self.filled == FRAME_HEAD_BYTES).then(|| {
            self.filled = 0;
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
            kind
        })
    }
}

// === impl Allowance ===

impl Allowance {
    const fn new(bounds: Bounds, now: Instant) -> Self {
        let left = Cell::new(bounds.burst);
        Self { bounds, left, refilled: Cell::new(now) }
    }

    /// Takes one, if there is one. The clock is asked only when there is none.
    fn spend(&self) -> bool {
        if self.left.get() == 0 {
            self.refill(monotonic());
        }
        let left = self.left.get().checked_sub(1);
        self.left.set(left.unwrap_or(0));
        left.is_some()
    }

    fn refill(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.refilled.get()).as_millis();
        let due = millis * u128::from(self.bounds.per_second) / 1000;
        if due > 0 {
            self.left.set(u32::try_from(due).unwrap_or(u32::MAX).min(self.bounds.burst));
            self.refilled.set(now);
        }
    }

    fn earn(&self, count: u32) {
        self.left.set(self.left.get().saturating_add(count).min(self.bounds.most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let mut sent = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for (length, kind) in [(0, 4), (5, 1), (300, 0), (8, 6)] {
            sent.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
            sent.extend_from_slice(&[kind, 0, 0, 0, 0, 1]);
            sent.extend(std::iter::repeat_n(9, length));
        }
        for piece in [1, 2, 7, 9, 10, 24, 33, 1000] {
            let mut scanner = Scanner { head: [0; FRAME_HEAD_BYTES], filled: 0, skip: PREFACE_BYTES };
            let mut kinds = Vec::new();
            for mut bytes in sent.chunks(piece) {
                kinds.extend(std::iter::from_fn(|| scanner.next(&mut bytes)));
            }
            assert_eq!(kinds, [4, 1, 0, 6], "in pieces of {piece}");
        }
    }

    #[test]
    fn an_allowance_is_spent_earned_and_refilled() {
        let start = monotonic();
        let allowance = Allowance::new(Bounds { burst: 3, per_second: 2, most: 4 }, start);
        assert!((0..3).all(|_| allowance.spend()));
        assert!(!allowance.spend());
        allowance.earn(10);
        assert!((0..4).all(|_| allowance.spend()));
        assert!(!allowance.spend());
        allowance.refill(start + Duration::from_secs(1));
        assert_eq!(allowance.left.get(), 2);
        allowance.refill(start + Duration::from_secs(60));
        assert_eq!(allowance.left.get(), 3);
    }
}
