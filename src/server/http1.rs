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
use crate::proxy::tunnel::{Broken, Tunnel};
use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming as HyperBody;
use hyper::server::conn::http1;
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::AsyncWrite as _;

/// The smallest read buffer the library takes.
const BUF_MIN: usize = 8 * 1024;

/// Serves one connection until it ends, misses a deadline, is evicted or drained.
pub async fn serve(greeted: Greeted, registered: Registered, serving: Serving) {
    let Greeted { stream, read, downstream, .. } = greeted;
    let Serving { service, limits, events, .. } = serving;
    let downstream = Rc::new(downstream);
    let state = Rc::clone(&registered.state);
    let io = TokioIo::new(WatchedStream::new(stream, read, Rc::clone(&state)));
    let handler = hyper::service::service_fn(move |request: Request<HyperBody>| {
        let guard = state.begin_exchange(request.version());
        let (service, downstream) = (Rc::clone(&service), Rc::clone(&downstream));
        let in_flight = Rc::clone(state.in_flight());
        async move {
            let response = service.handle(request.map(Incoming::Http1), &downstream, &in_flight).await;
            Ok::<_, Infallible>(response.map(|body| Guarded::new(body, guard)))
        }
    });
    let connection = http1::Builder::new()
        .max_headers(limits.head_fields_max * HEAD_SLACK)
        .max_buf_size((limits.head_bytes_max * HEAD_SLACK).max(BUF_MIN))
        .serve_connection(io, handler);
    let connection = Box::pin(connection);
    let deadline = DeadlineTimer::new(&limits);
    let mut supervised = Supervised { connection, registered, limits, deadline, draining: false };
    let cause = match (&mut supervised).await {
        // Boxed: few connections come to that.
        Ended::Upgraded(tunnel) => Box::pin(carry(supervised, tunnel)).await,
        Ended::Closed(cause) => {
            if cause == Some(Cause::HeadTimeout) {
                supervised.answer_late().await;
            }
            cause
        }
    };
    if let Some(cause) = cause {
        events.count(cause);
    }
}

/// Serves a connection that has left HTTP, under the deadline for clients that take no bytes.
async fn carry<S>(supervised: Supervised<S>, mut tunnel: Box<Tunnel>) -> Option<Cause>
where
    S: HttpService<HyperBody, ResBody = Guarded>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let Supervised { connection, registered, limits, mut deadline, .. } = supervised;
    let parts = Pin::into_inner(connection).into_parts();
    let mut client = parts.io.into_inner();
    client.leave_http(parts.read_buf);
    let state = &registered.state;
    let _guard = state.begin_exchange(Version::HTTP_11);
    let mut carrying = pin!(tunnel.run(&mut client));
    std::future::poll_fn(|cx| {
        state.in_flight().set_waker(cx.waker());
        if let Poll::Ready(result) = carrying.as_mut().poll(cx) {
            if let Err(Broken(_)) = result {
                state.reset();
            }
            return Poll::Ready(None);
        }
        deadline.poll(state, &limits, cx).map(|_| {
            state.reset();
            Some(Cause::WriteStall)
        })
    })
    .await
}

/// How the library has done with a connection.
enum Ended {
    /// With why it ended without a request, where that is worth counting.
    Closed(Option<Cause>),
    /// It goes on, but not in HTTP.
    Upgraded(Box<Tunnel>),
}

/// A response body that keeps its connection marked as busy.
struct Guarded {
    body: Body,
    _guard: ExchangeGuard,
}

/// A connection and the deadlines that the library does not have.
struct Supervised<S: HttpService<HyperBody>> {
    connection: Pin<Box<http1::Connection<TokioIo<WatchedStream>, S>>>,
    registered: Registered,
    limits: Rc<Limits>,
    deadline: DeadlineTimer,
    draining: bool,
}

// === impl Supervised ===

impl<S> Supervised<S>
where
    S: HttpService<HyperBody, ResBody = Guarded>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn begin_drain(&mut self) {
        if self.registered.is_draining() && !self.draining {
            self.draining = true;
            self.connection.as_mut().graceful_shutdown();
        }
    }

    /// The library has given the connection up.
    fn end(&self, result: hyper::Result<()>) -> Ended {
        let state = &self.registered.state;
        match (result, state.take_tunnel()) {
            (Ok(()), Some(tunnel)) if !state.is_blocked() => Ended::Upgraded(tunnel),
            (Ok(()), Some(_)) => {
                // Bytes of HTTP were left unsent, and are lost: the library does not wait for them.
                state.reset();
                Ended::Closed(None)
            }
            (Ok(()), None) => Ended::Closed(None),
            (Err(error), _) => {
                if error.is_user() {
                    state.break_off();
                }
                Ended::Closed(cause_of(&error))
            }
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
        let send = std::future::poll_fn(|cx| {
            let sent = Pin::new(&mut client).poll_write(cx, &answer);
            Poll::Ready(sent.is_ready() && Pin::new(&mut client).poll_flush(cx).is_ready())
        });
        _ = send.await;
    }
}

impl<S> Future for Supervised<S>
where
    S: HttpService<HyperBody, ResBody = Guarded>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = self.get_mut();
        let state = &this.registered.state;
        state.in_flight().set_waker(cx.waker());
        if state.in_flight().is_to_be_closed() {
            state.reset();
            return Poll::Ready(Ended::Closed(None));
        }
        this.begin_drain();
        if this.registered.state.is_evicted() {
            return Poll::Ready(Ended::Closed(Some(Cause::Evicted)));
        }
        if let Poll::Ready(result) = this.connection.as_mut().poll(cx) {
            return Poll::Ready(this.end(result));
        }
        this.deadline.poll(&this.registered.state, &this.limits, cx).map(|expiry| {
            Ended::Closed(match expiry {
                Expiry::HeadTimeout => Some(Cause::HeadTimeout),
                Expiry::WriteStall => Some(Cause::WriteStall),
                Expiry::IdleTimeout => None,
            })
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

impl Guarded {
    /// A tunnel is not for the library: it has no body for a 101.
    fn new(mut body: Body, guard: ExchangeGuard) -> Self {
        if let Some(tunnel) = body.take_tunnel() {
            guard.hand_over(tunnel);
        }
        Self { body, _guard: guard }
    }
}

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
