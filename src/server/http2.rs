//! A connection that speaks HTTP/2: frames, flow control and header compression by the library, each request in a task of its
//! own, deadlines, drain and the defence against floods by us.

pub mod date;
mod meter;
mod stream;
mod tunnel;

pub use meter::Meter;

use super::connection::Serving;
use super::deadline::DeadlineTimer;
use super::greeting::Greeted;
use super::io::WatchedStream;
use super::registry::{Expiry, Registered};
use super::{HEAD_SLACK, Limits};
use crate::audit::{Cause, ConnectionEvents};
use crate::proxy::downstream::Downstream;
use crate::proxy::service::Service;
use bytes::Bytes;
use h2::Reason;
use h2::server::{Builder, Connection, Handshake};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// How much a client may send on a stream, and on all of them, before somebody takes it.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How much of a response waits in the library for the socket.
const SEND_BUFFER: usize = 64 * 1024;
const FRAME_MAX: u32 = 16 * 1024;
/// What a field weighs in a list of fields besides its text (RFC 9113, section 6.5.2).
const FIELD_WEIGHT: usize = 32;
/// Streams that the client has reset before their request was looked at.
const PENDING_RESETS_MAX: usize = 20;
/// Streams that were reset for the client's mistakes, in the life of a connection.
const ERROR_RESETS_MAX: usize = 64;
/// How long one that floods is waited for once it was told that the connection ends.
const CLOSING: Duration = Duration::from_secs(1);

/// Serves one connection until it ends, misses a deadline, is evicted or drained.
pub async fn serve(greeted: Greeted, registered: Registered, serving: Serving) {
    let Greeted { stream, read, downstream, .. } = greeted;
    let Serving { service, limits, events, .. } = serving;
    let meter = Rc::<Meter>::default();
    let io = WatchedStream::metered(stream, read, Rc::clone(&registered.state), Rc::clone(&meter));
    let phase = Phase::Handshake(builder(&limits, service.takes_websockets()).handshake(io));
    let deadline = DeadlineTimer::new(&limits);
    let shared = Rc::new(Shared { service, downstream, meter, events, write_stall: limits.write_stall });
    let supervised =
        Supervised { phase, registered, limits, deadline, shared: Rc::clone(&shared), draining: false, closing: None };
    if let Some(cause) = supervised.await {
        shared.events.count(cause);
    }
}

fn builder(limits: &Limits, takes_websockets: bool) -> Builder {
    let head_max = (limits.head_bytes_max + limits.head_fields_max * FIELD_WEIGHT) * HEAD_SLACK;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.streams_max)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(u32::try_from(head_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(PENDING_RESETS_MAX)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX));
    if takes_websockets {
        // Without it the library resets whoever asks.
        builder.enable_connect_protocol();
    }
    builder
}

/// What the streams of a connection have in common.
struct Shared {
    service: Rc<Service>,
    downstream: Downstream,
    meter: Rc<Meter>,
    events: ConnectionEvents,
    /// `write_stall`, which holds for each stream as well.
    write_stall: Duration,
}

enum Phase {
    /// Our settings go out, the client's first words come in.
    Handshake(Handshake<WatchedStream, Bytes>),
    Open(Connection<WatchedStream, Bytes>),
}

/// A connection, its deadlines and its bounds.
struct Supervised {
    phase: Phase,
    registered: Registered,
    limits: Rc<Limits>,
    deadline: DeadlineTimer,
    shared: Rc<Shared>,
    draining: bool,
    closing: Option<Closing>,
}

/// The client was told that the connection ends, and why it is not to be asked again.
struct Closing {
    cause: Option<Cause>,
    timer: Pin<Box<Sleep>>,
}

// === impl Supervised ===

impl Supervised {
    /// Serves what the client asks for; ready when the connection has ended.
    fn poll_serve(&mut self, cx: &mut Context<'_>) -> Poll<Option<Cause>> {
        loop {
            match &mut self.phase {
                Phase::Handshake(handshake) => match ready!(Pin::new(handshake).poll(cx)) {
                    Ok(connection) => self.phase = Phase::Open(connection),
                    Err(error) => return Poll::Ready(cause_of(&error)),
                },
                // All frames that have arrived are looked at before it gives the first request: one that the client takes
                // back at once is never begun.
                Phase::Open(connection) => match ready!(connection.poll_accept(cx)) {
                    Some(Ok((request, respond))) => {
                        let guard = self.registered.state.begin_stream();
                        tokio::task::spawn_local(stream::serve(request, respond, guard, Rc::clone(&self.shared)));
                    }
                    Some(Err(error)) => return Poll::Ready(cause_of(&error)),
                    None => return Poll::Ready(None),
                },
            }
        }
    }

    /// Begins or ends what is asked of the connection from outside.
    fn attend(&mut self) {
        let is_unused = match &self.phase {
            Phase::Handshake(_) => true,
            // What is still on its way to the socket is not cut off.
            Phase::Open(connection) => !connection.has_streams() && !self.registered.state.is_serving(),
        };
        if self.registered.is_draining() && !self.draining {
            self.draining = true;
            if let Phase::Open(connection) = &mut self.phase {
                connection.graceful_shutdown();
            }
        }
        if self.registered.state.is_evicted() && is_unused {
            self.close(Reason::NO_ERROR, Some(Cause::Evicted));
        } else if self.draining && is_unused {
            self.close(Reason::NO_ERROR, None);
        } else if self.shared.meter.is_exhausted() {
            self.close(Reason::ENHANCE_YOUR_CALM, Some(Cause::Flooded));
        }
    }

    /// Tells the client that nothing more is answered. What is in flight ends.
    fn close(&mut self, reason: Reason, cause: Option<Cause>) {
        if self.closing.is_none() {
            if let Phase::Open(connection) = &mut self.phase {
                connection.abrupt_shutdown(reason);
            }
            let bound = if reason == Reason::NO_ERROR { self.limits.write_stall } else { CLOSING };
            self.closing = Some(Closing { cause, timer: Box::pin(tokio::time::sleep(bound)) });
        }
    }

    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Option<Cause>> {
        let Some(closing) = &mut self.closing else { return Poll::Pending };
        let cause = closing.cause;
        if closing.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(cause);
        }
        match &mut self.phase {
            Phase::Handshake(_) => Poll::Ready(cause),
            Phase::Open(connection) => connection.poll_closed(cx).map(|_| cause),
        }
    }
}

impl Future for Supervised {
    /// Why the connection ended, where that is worth counting.
    type Output = Option<Cause>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Cause>> {
        let this = self.get_mut();
        this.registered.state.in_flight().set_waker(cx.waker());
        if this.closing.is_none() {
            if let Poll::Ready(cause) = this.poll_serve(cx) {
                return Poll::Ready(cause);
            }
            match this.deadline.poll(&this.registered.state, &this.limits, cx) {
                Poll::Pending => this.attend(),
                Poll::Ready(Expiry::HeadTimeout) => this.close(Reason::ENHANCE_YOUR_CALM, Some(Cause::HeadTimeout)),
                Poll::Ready(Expiry::IdleTimeout) => this.close(Reason::NO_ERROR, None),
                Poll::Ready(Expiry::WriteStall) => return Poll::Ready(Some(Cause::WriteStall)),
            }
        }
        this.poll_closing(cx)
    }
}

/// What a library's error says of a client that broke the protocol. One that goes away is no error.
fn cause_of(error: &h2::Error) -> Option<Cause> {
    if error.is_io() || error.is_remote() {
        None
    } else if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
        Some(Cause::Flooded)
    } else {
        Some(Cause::Unparseable)
    }
}
