//! Frames of HTTP/2 as they pass, counted: the library answers those that carry nothing for as long as it is asked to.

use crate::clock::{Instant, monotonic};
use std::cell::Cell;

const FRAME_HEAD_BYTES: usize = 9;

/// Finds the frames in what is read, a piece at a time.
#[derive(Debug)]
pub struct Scanner {
    head: [u8; FRAME_HEAD_BYTES],
    filled: usize,
    /// Bytes until the next frame's head.
    skip: usize,
}

/// How many of something are too many.
#[derive(Debug)]
pub struct Bounds {
    pub burst: u32,
    pub per_second: u32,
    /// The most that can be earned.
    pub most: u32,
}

/// What is left of a bound.
#[derive(Debug)]
pub struct Allowance {
    bounds: Bounds,
    left: Cell<u32>,
    refilled: Cell<Instant>,
}

// === impl Scanner ===

impl Scanner {
    /// For a connection whose first frame comes after so many bytes.
    pub const fn after(bytes: usize) -> Self {
        Self { head: [0; FRAME_HEAD_BYTES], filled: 0, skip: bytes }
    }

    /// The kind of the next frame that begins in `bytes`.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<u8> {
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
    pub const fn new(bounds: Bounds, now: Instant) -> Self {
        let left = Cell::new(bounds.burst);
        Self { bounds, left, refilled: Cell::new(now) }
    }

    /// Takes one, if there is one. The clock is asked only when there is none.
    pub fn spend(&self) -> bool {
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

    /// Gives more, up to the most that there may be.
    pub fn earn(&self, count: u32) {
        self.left.set(self.left.get().saturating_add(count).min(self.bounds.most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let mut sent = preface.to_vec();
        for (length, kind) in [(0, 4), (5, 1), (300, 0), (8, 6)] {
            sent.extend_from_slice(&(length as u32).to_be_bytes()[1..]);
            sent.extend_from_slice(&[kind, 0, 0, 0, 0, 1]);
            sent.extend(std::iter::repeat_n(9, length));
        }
        for piece in [1, 2, 7, 9, 10, 24, 33, 1000] {
            let mut scanner = Scanner::after(preface.len());
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
