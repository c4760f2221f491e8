//! A panic is a defect of one request and must end that request alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Runs a future and turns its panic into a value. What the future owned is dropped by the unwinding: an open exchange
/// writes its record there.
///
/// # Errors
/// [`Panicked`].
pub async fn caught<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| poll_caught(future.as_mut(), cx)).await
}

/// The future panicked; the hook has told the log where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// The same for a plain function.
///
/// # Errors
/// [`Panicked`].
pub fn caught_now<T>(function: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(function)).map_err(|_| Panicked)
}

fn poll_caught<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<Result<F::Output, Panicked>> {
    // Unwind safety: the future is never polled again after a panic, and what it borrows is the service, whose state are
    // cells and counters without invariants between them.
    match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => Poll::Ready(Err(Panicked)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_a_value_and_drops_what_the_future_owned() {
        struct Flag<'a>(&'a std::cell::Cell<bool>);
        impl Drop for Flag<'_> {
            fn drop(&mut self) {
                self.0.set(std::thread::panicking());
            }
        }
        let dropped_in_unwinding = std::cell::Cell::new(false);
        let future = async {
            let _owned = Flag(&dropped_in_unwinding);
            tokio::task::yield_now().await;
            if dropped_in_unwinding.get() {
                return;
            }
            panic!("on purpose");
        };
        assert_eq!(caught(future).await, Err(Panicked));
        assert!(dropped_in_unwinding.get());
    }
}
