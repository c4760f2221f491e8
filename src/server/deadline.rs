//! The deadlines of one connection, all by one timer.

use super::Limits;
use super::registry::{ConnState, Expiry};
use crate::clock::{Instant, monotonic};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::time::Sleep;

/// One timer serves all deadlines of a connection; on the usual path, where a request arrives whole and is answered at once, it
/// is never touched.
#[derive(Debug)]
pub struct DeadlineTimer {
    timer: Pin<Box<Sleep>>,
    /// What the timer is set to, on our clock.
    armed: Instant,
}

// === impl DeadlineTimer ===

impl DeadlineTimer {
    /// For a connection whose first head is awaited.
    pub fn new(limits: &Limits) -> Self {
        let armed = monotonic() + limits.head_timeout;
        Self { timer: Box::pin(tokio::time::sleep(limits.head_timeout)), armed }
    }

    /// The missed deadline, if one was; arms the timer for the next otherwise.
    pub fn poll(&mut self, state: &ConnState, limits: &Limits, cx: &mut Context<'_>) -> Poll<Expiry> {
        loop {
            let Some((deadline, expiry)) = state.deadline(limits) else { return Poll::Pending };
            if deadline < self.armed {
                self.arm(deadline, monotonic());
            }
            ready!(self.timer.as_mut().poll(cx));
            let now = monotonic();
            if deadline <= now {
                return Poll::Ready(expiry);
            }
            self.arm(deadline, now);
        }
    }

    fn arm(&mut self, deadline: Instant, now: Instant) {
        self.armed = deadline;
        self.timer.set(tokio::time::sleep(deadline.saturating_duration_since(now)));
    }
}
