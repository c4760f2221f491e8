//! What a connection carries once it has left HTTP: bytes, both ways, until one side or the key ends them.
//!
//! Nothing waits here but what one read has brought and the other side does not take. The exchange goes on: a change of its key
//! ends it, and its record is written at its end.

use super::body::Upload;
use super::catch::{Panicked, caught};
use super::exchange::Exchange;
use super::incoming::Incoming;
use super::upstream::answer::Upgraded;
use crate::audit::NotSynced;
use crate::clock::{Instant, monotonic};
use crate::reason::Reason;
use bytes::{Buf as _, BytesMut};
use std::cell::RefCell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::Sleep;

/// How much is read at once.
const READ_MAX: usize = 16 * 1024;

thread_local! {
    /// What is read goes on at once, nearly always: one buffer serves all tunnels of a worker.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_MAX].into());
}

/// An upgraded connection to an upstream, or a stream of one, and the exchange that it belongs to. Dropped before it has ended
/// well: both are broken off.
pub struct Tunnel {
    upstream: Upgraded,
    /// Over HTTP/2: what the client sends on its stream.
    client: Option<Incoming>,
    exchange: Exchange,
    upload: Rc<Upload>,
    up: Way,
    down: Way,
    idle: Idle,
    has_ended_well: bool,
}

/// A tunnel that was broken off; what is left of its client's connection must not look as if it had ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(pub Reason);

/// One direction.
#[derive(Debug, Default)]
struct Way {
    /// Was read, and is not taken yet.
    pending: BytesMut,
    state: State,
    /// Bytes that were taken.
    bytes: usize,
}

/// How far a direction has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Its source sends no more.
    Ended,
    /// And its destination was told so.
    Passed,
    /// Its destination takes no more.
    Failed,
}

/// On which side of a direction something broke.
#[derive(Clone, Copy, Debug)]
enum Fault {
    From,
    To,
}

/// A deadline for the case that nothing moves.
struct Idle {
    max: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

// === impl Tunnel ===

impl Tunnel {
    /// `client` is what the client sends, where that does not come on a connection of its own.
    pub fn new(
        upstream: Upgraded,
        client: Option<Incoming>,
        exchange: Exchange,
        upload: Rc<Upload>,
        idle_max: Duration,
    ) -> Box<Self> {
        let idle = Idle { max: idle_max, moved: monotonic(), timer: Box::pin(tokio::time::sleep(idle_max)) };
        let (up, down) = (Way::default(), Way::default());
        Box::new(Self { upstream, client, exchange, upload, up, down, idle, has_ended_well: false })
    }

    /// What the client sends on its HTTP/2 stream.
    pub const fn take_client(&mut self) -> Option<Incoming> {
        self.client.take()
    }

    /// Carries bytes until both sides have ended, and writes the record then. A panic ends this tunnel alone.
    ///
    /// # Errors
    /// [`Broken`].
    pub async fn run<C: AsyncRead + AsyncWrite + Unpin>(&mut self, client: &mut C) -> Result<(), Broken> {
        let carried = caught(std::future::poll_fn(|cx| self.poll_carry(client, cx))).await;
        let result = match carried {
            Ok(Ok(())) => self.finish(client).await,
            Ok(Err(reason)) => Err(reason),
            Err(Panicked) => Err(Reason::Internal),
        };
        if let Err(reason) = result {
            self.exchange.end(reason);
        }
        result.map_err(Broken)
    }

    /// Both sides send no more: the record is there before the last of them hears of it (protocols J5).
    async fn finish<C: AsyncWrite + Unpin>(&mut self, client: &mut C) -> Result<(), Reason> {
        self.exchange.complete(monotonic());
        let recorder = Rc::clone(self.exchange.recorder());
        if recorder.holds()
            && let Err(NotSynced) = recorder.synced().await
        {
            return Err(Reason::AuditUnavailable);
        }
        self.has_ended_well = true;
        // Whoever does not hear it has gone already.
        let ends = async { (client.shutdown().await, self.upstream.shutdown().await) };
        _ = tokio::time::timeout(self.idle.max, ends).await;
        Ok(())
    }

    /// Ready when both sides have ended, or it cannot go on.
    fn poll_carry<C: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        client: &mut C,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Reason>> {
        // It is marked between two polls, by the thread that polls.
        if let Some(cut) = self.exchange.in_flight().cut() {
            return Poll::Ready(Err(cut));
        }
        let before = (self.up.bytes, self.down.bytes);
        let result = self.poll_ways(client, cx);
        let moved = (self.up.bytes - before.0, self.down.bytes - before.1);
        if moved != (0, 0) {
            self.upload.add(moved.0);
            self.exchange.add_bytes_out(moved.1);
            self.idle.moved = monotonic();
        }
        if result.is_pending() {
            ready!(self.idle.poll_expired(cx));
            return Poll::Ready(Err(Reason::TunnelIdle));
        }
        result
    }

    fn poll_ways<C: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        client: &mut C,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Reason>> {
        let is_last = self.down.state != State::Open;
        let up = match self.up.poll(client, &mut self.upstream, is_last, cx) {
            Poll::Ready(Err(Fault::From)) => return Poll::Ready(Err(Reason::ClientAborted)),
            // It takes no more, and may have said why: that is passed on first.
            Poll::Ready(Err(Fault::To)) => Poll::Ready(Err(Reason::UpstreamAborted)),
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        };
        let is_last = self.up.state != State::Open;
        match self.down.poll(&mut self.upstream, client, is_last, cx) {
            Poll::Ready(Err(Fault::From)) => Poll::Ready(Err(Reason::UpstreamAborted)),
            Poll::Ready(Err(Fault::To)) => Poll::Ready(Err(Reason::ClientAborted)),
            Poll::Ready(Ok(())) => up,
            Poll::Pending => Poll::Pending,
        }
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("up", &self.up).field("down", &self.down).finish_non_exhaustive()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if !self.has_ended_well {
            // Whatever the protocol is: what is missing must not look like its end.
            self.upstream.reset_on_close();
        }
    }
}

// === impl Way ===

impl Way {
    /// Ready once all that `from` sends was taken by `to`, and `to` was told; not so the last of a tunnel's two ends.
    fn poll<F: AsyncRead + Unpin, T: AsyncWrite + Unpin>(
        &mut self,
        from: &mut F,
        to: &mut T,
        is_last: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        loop {
            ready!(self.poll_pending(to, cx)).map_err(|fault| self.fail(fault))?;
            if self.state != State::Open {
                break;
            }
            let Poll::Ready(passed) = self.poll_pass(from, to, cx) else {
                // What is left in TLS goes out on no other occasion.
                ready!(Pin::new(to).poll_flush(cx)).map_err(|_| self.fail(Fault::To))?;
                return Poll::Pending;
            };
            passed.map_err(|fault| self.fail(fault))?;
        }
        if self.state == State::Ended && !is_last {
            // Who cannot be told has gone, which the other direction shows.
            _ = ready!(Pin::new(to).poll_shutdown(cx));
            self.state = State::Passed;
        }
        Poll::Ready(if self.state == State::Failed { Err(Fault::To) } else { Ok(()) })
    }

    /// Passes on what waits.
    fn poll_pending<T: AsyncWrite + Unpin>(&mut self, to: &mut T, cx: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        while !self.pending.is_empty() {
            let taken = ready!(poll_write(to, &self.pending, cx))?;
            self.pending.advance(taken);
            self.bytes += taken;
            if self.pending.is_empty() {
                // The room is not kept for the next time that somebody is slow.
                self.pending = BytesMut::new();
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and passes it on. What is not taken waits, and nothing is read meanwhile.
    fn poll_pass<F: AsyncRead + Unpin, T: AsyncWrite + Unpin>(
        &mut self,
        from: &mut F,
        to: &mut T,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut scratch = ReadBuf::new(scratch);
            ready!(Pin::new(from).poll_read(cx, &mut scratch)).map_err(|_| Fault::From)?;
            let read = scratch.filled();
            if read.is_empty() {
                self.state = State::Ended;
                return Poll::Ready(Ok(()));
            }
            let taken = match poll_write(to, read, cx) {
                Poll::Ready(taken) => taken?,
                Poll::Pending => 0,
            };
            self.bytes += taken;
            self.pending.extend_from_slice(read.get(taken..).unwrap_or_default());
            Poll::Ready(Ok(()))
        })
    }

    /// Nothing more is carried this way.
    fn fail(&mut self, fault: Fault) -> Fault {
        (self.state, self.pending) = (State::Failed, BytesMut::new());
        fault
    }
}

fn poll_write<T: AsyncWrite + Unpin>(to: &mut T, bytes: &[u8], cx: &mut Context<'_>) -> Poll<Result<usize, Fault>> {
    match ready!(Pin::new(to).poll_write(cx, bytes)) {
        Ok(0) | Err(_) => Poll::Ready(Err(Fault::To)),
        Ok(taken) => Poll::Ready(Ok(taken)),
    }
}

// === impl Idle ===

impl Idle {
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let idle = monotonic().saturating_duration_since(self.moved);
            if idle >= self.max {
                return Poll::Ready(());
            }
            self.timer.set(tokio::time::sleep(self.max - idle));
        }
    }
}
