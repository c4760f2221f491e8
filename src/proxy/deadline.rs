//! Deadlines of the calls that wait for an upstream's head. Nearly all calls end long before theirs, so none gets a timer of
//! its own: the worker's upkeep looks at all of them a few times a second.

use crate::clock::Instant;
use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

/// The waiting calls of one worker.
#[derive(Debug, Default)]
pub struct Deadlines(RefCell<Table>);

#[derive(Debug, Default)]
struct Table {
    waiting: Vec<Option<Waiting>>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Waiting {
    deadline: Instant,
    waker: Waker,
}

/// The deadline has passed; late by at most the time between two sweeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

/// A future with a deadline that may move while it waits.
pub struct Bounded<F, D> {
    future: F,
    deadline: D,
    deadlines: Rc<Deadlines>,
    place: Option<usize>,
}

// === impl Deadlines ===

impl Deadlines {
    /// Bounds `future`: `deadline` is asked when it has to wait, and again when the time it gave has come.
    pub fn bound<F: Future + Unpin, D: Fn() -> Instant>(self: &Rc<Self>, future: F, deadline: D) -> Bounded<F, D> {
        Bounded { future, deadline, deadlines: Rc::clone(self), place: None }
    }

    /// Wakes every call whose deadline is not after `now`.
    pub fn sweep(&self, now: Instant) {
        let table = self.0.borrow();
        table
            .waiting
            .iter()
            .flatten()
            .filter(|waiting| waiting.deadline <= now)
            .for_each(|late| late.waker.wake_by_ref());
    }

    fn enter(&self, waiting: Waiting) -> usize {
        let mut table = self.0.borrow_mut();
        let place = table.free.pop().unwrap_or(table.waiting.len());
        match table.waiting.get_mut(place) {
            Some(slot) => *slot = Some(waiting),
            None => table.waiting.push(Some(waiting)),
        }
        place
    }

    fn leave(&self, place: usize) {
        let mut table = self.0.borrow_mut();
        if let Some(slot) = table.waiting.get_mut(place) {
            *slot = None;
        }
        table.free.push(place);
    }
}

// === impl Bounded ===

impl<F: Future + Unpin, D: Fn() -> Instant + Unpin> Future for Bounded<F, D> {
    type Output = Result<F::Output, Elapsed>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(output) = Pin::new(&mut this.future).poll(cx) {
            return Poll::Ready(Ok(output));
        }
        let deadline = (this.deadline)();
        // Woken by a sweep, or by the future, which is not done: only the clock tells which.
        if let Some(place) = this.place.take() {
            this.deadlines.leave(place);
            if deadline <= crate::clock::monotonic() {
                return Poll::Ready(Err(Elapsed));
            }
        }
        this.place = Some(this.deadlines.enter(Waiting { deadline, waker: cx.waker().clone() }));
        Poll::Pending
    }
}

impl<F, D> Drop for Bounded<F, D> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.deadlines.leave(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn a_call_ends_at_its_deadline_and_one_in_time_gives_its_place_back() {
        let deadlines = Rc::new(Deadlines::default());
        let start = crate::clock::monotonic();
        let late = deadlines.bound(std::future::pending::<()>(), || start + Duration::from_millis(20));
        let sweeping = async {
            loop {
                tokio::time::sleep(Duration::from_millis(5)).await;
                deadlines.sweep(crate::clock::monotonic());
            }
        };
        tokio::select! {
            result = late => assert_eq!(result, Err(Elapsed)),
            () = sweeping => {}
        }
        let in_time = deadlines.bound(Box::pin(tokio::task::yield_now()), || start + Duration::from_secs(60));
        assert_eq!(in_time.await, Ok(()));
        let table = deadlines.0.borrow();
        assert_eq!((table.waiting.len(), table.free.len()), (1, 1));
    }
}
