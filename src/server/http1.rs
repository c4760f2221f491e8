//! A connection that speaks HTTP/1.1: the messages by hyper, deadlines and drain by us.

use super::bare;
use super::connection::Serving;
use super::deadline::DeadlineTimer;
use super::greeting::Greeted;
use super::io::WatchedStream;
use super::registry::{ExchangeGuard, Expiry, Registered};
use super::{HEAD_SLACK, Limits};
use crate::audit::Cause;
use crate::proxy::body::{Body, BodyError};
use crate::proxy::incoming::Incoming;
use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite as _;

/// The smallest read buffer the library takes.
const BUF_MIN: usize = 8 * 1024;

/// Serves one connection until it ends, misses a deadline, is evicted or drained.
pub async fn serve(greeted: Greeted, registered: Registered, serving: Serving) {
    let Greeted { stream, read, downstream, .. } = greeted;
    let Serving { service, limits, events } = serving;
    let downstream = Rc::new(downstream);
    let state = Rc::clone(&registered.state);
    let io = TokioIo::new(WatchedStream::new(stream, read, Rc::clone(&state)));
    let handler = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let guard = state.begin_exchange(request.version());
        let (service, downstream) = (Rc::clone(&service), Rc::clone(&downstream));
        let in_flight = Rc::clone(state.in_flight());
        async move {
            let response = service.handle(request.map(Incoming::Http1), &downstream, &in_flight).await;
            Ok::<_, Infallible>(response.map(|body| Guarded { body, _guard: guard }))
        }
    });
    let connection = http1::Builder::new()
        .max_headers(limits.head_fields_max * HEAD_SLACK)
        .max_buf_size((limits.head_bytes_max * HEAD_SLACK).max(BUF_MIN))
        .serve_connection(io, handler);
    let connection = Box::pin(connection);
    let deadline = DeadlineTimer::new(&limits);
    let mut supervised = Supervised { connection, registered, limits, deadline, draining: false };
    let cause = (&mut supervised).await;
    if cause == Some(Cause::HeadTimeout) {
        supervised.answer_late().await;
    }
    if let Some(cause) = cause {
        events.count(cause);
    }
}

/// A response body that keeps its connection marked as busy.
struct Guarded {
    body: Body,
    _guard: ExchangeGuard,
}

/// A connection and the deadlines that the library does not have.
struct Supervised<S: hyper::service::HttpService<hyper::body::Incoming>> {
    connection: Pin<Box<http1::Connection<TokioIo<WatchedStream>, S>>>,
    registered: Registered,
    limits: Rc<Limits>,
    deadline: DeadlineTimer,
    draining: bool,
}

// === impl Supervised ===

impl<S> Supervised<S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Guarded>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn begin_drain(&mut self) {
        if self.registered.is_draining() && !self.draining {
            self.draining = true;
            self.connection.as_mut().graceful_shutdown();
        }
    }

    /// Tells a client whose head began and did not end in time; one that was silent is told nothing.
    async fn answer_late(self) {
        let parts = Pin::into_inner(self.connection).into_parts();
        if parts.read_buf.is_empty() {
            return;
        }
        let (mut client, answer) = (parts.io.into_inner(), bare::late());
        // What the client does not take at once is not waited for.
        _ = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut client).poll_write(cx, &answer))).await;
    }
}

impl<S> Future for Supervised<S>
where
    S: hyper::service::HttpService<hyper::body::Incoming, ResBody = Guarded>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Why the connection ended without a request, where that is worth counting.
    type Output = Option<Cause>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Cause>> {
        let this = self.get_mut();
        let state = &this.registered.state;
        state.in_flight().set_waker(cx.waker());
        if state.in_flight().is_to_be_closed() {
            state.reset();
            return Poll::Ready(None);
        }
        this.begin_drain();
        if this.registered.state.is_evicted() {
            return Poll::Ready(Some(Cause::Evicted));
        }
        if let Poll::Ready(result) = this.connection.as_mut().poll(cx) {
            return Poll::Ready(result.err().and_then(|error| {
                if error.is_user() {
                    this.registered.state.break_off();
                }
                cause_of(&error)
            }));
        }
        this.deadline.poll(&this.registered.state, &this.limits, cx).map(|expiry| match expiry {
            Expiry::HeadTimeout => Some(Cause::HeadTimeout),
            Expiry::WriteStall => Some(Cause::WriteStall),
            Expiry::IdleTimeout => None,
        })
    }
}

/// What a library's error says about the bytes that never became a request.
fn cause_of(error: &hyper::Error) -> Option<Cause> {
    if error.is_parse_too_large() {
        Some(Cause::HeadTooLarge)
    } else if error.is_parse() {
        Some(Cause::Unparseable)
    } else {
        None
    }
}

// === impl Guarded ===

impl HttpBody for Guarded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
