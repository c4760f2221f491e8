//! Bodies, both ways: streamed with back-pressure, never buffered, watched for standing still.

use super::exchange::Exchange;
use super::headers::clean_trailers;
use super::incoming::Incoming;
use super::tunnel::Tunnel;
use super::upstream::answer::Answer;
use crate::audit::NotSynced;
use crate::clock::{Instant, monotonic};
use crate::reason::Reason;
use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Why a body was broken off; the peer sees a broken message, the audit record this reason.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("{}", .0.as_str())]
pub struct BodyError(pub Reason);

/// A response's body.
pub enum Body {
    /// The gateway's own answer.
    Own(Option<Bytes>),
    /// The upstream's.
    Upstream(Box<ResponseBody>),
    /// None: the connection carries something else from here on. Whoever serves it takes the tunnel.
    Tunnel(Box<Tunnel>),
}

/// A request's body on its way to the upstream.
pub struct RequestBody {
    incoming: Incoming,
    upload: Rc<Upload>,
    bytes_max: u64,
    /// The trailers that pass.
    trailers: Vec<HeaderName>,
    watch: IdleWatch,
}

/// What the exchange sees of a request's body while the upstream's connection sends it.
#[derive(Debug)]
pub struct Upload {
    bytes: Cell<u64>,
    failure: Cell<Option<Reason>>,
    progress: Cell<Instant>,
}

/// An upstream's response body on its way to the client. Owns the exchange: what sends last writes the record.
pub struct ResponseBody {
    /// `None` once it ended, one way or the other.
    conversation: Option<Answer>,
    exchange: Exchange,
    watch: IdleWatch,
    /// It broke off; the library is told when it has had a turn to send what it was given.
    broken: Option<Reason>,
    held: Option<Held>,
}

/// The last of a body, whose record is not synced yet.
struct Held {
    last: Option<Frame<Bytes>>,
    synced: Pin<Box<dyn Future<Output = Result<(), NotSynced>>>>,
}

/// A timer that runs only while a body stands still.
struct IdleWatch {
    idle_max: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    running: bool,
}

// === impl Upload ===

impl Upload {
    pub fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self { bytes: Cell::new(0), failure: Cell::new(None), progress: Cell::new(now) })
    }

    /// Body bytes that were handed to the upstream's connection.
    pub fn bytes(&self) -> u64 {
        self.bytes.get()
    }

    /// Why the body was broken off, if it was.
    pub fn failure(&self) -> Option<Reason> {
        self.failure.get()
    }

    /// When the body last moved, or the head was sent.
    pub fn progress(&self) -> Instant {
        self.progress.get()
    }

    /// Counts bytes that move now; gives the sum.
    pub fn add(&self, bytes: usize) -> u64 {
        self.progress.set(monotonic());
        self.bytes.set(self.bytes.get() + bytes as u64);
        self.bytes.get()
    }
}

// === impl RequestBody ===

impl RequestBody {
    /// `trailers` are those that pass.
    pub fn new(
        incoming: Incoming,
        upload: Rc<Upload>,
        bytes_max: Option<u64>,
        trailers: Vec<HeaderName>,
        idle_max: Duration,
    ) -> Self {
        let bytes_max = bytes_max.unwrap_or(u64::MAX);
        Self { incoming, upload, bytes_max, trailers, watch: IdleWatch::new(idle_max) }
    }

    /// Nothing is to come.
    pub fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    /// Counts a frame; trailers that do not pass are dropped.
    fn accept(&self, frame: Frame<Bytes>) -> Option<Result<Frame<Bytes>, BodyError>> {
        match frame.into_data() {
            Ok(data) => {
                let within = self.upload.add(data.len()) <= self.bytes_max;
                Some(if within { Ok(Frame::data(data)) } else { Err(self.fail(Reason::BodyTooLarge)) })
            }
            Err(frame) => {
                let trailers = passing(&frame.into_trailers().ok()?, &self.trailers);
                (!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers)))
            }
        }
    }

    fn fail(&self, reason: Reason) -> BodyError {
        self.upload.failure.set(Some(reason));
        BodyError(reason)
    }
}

/// Those of `received` whose names are `allowed`.
fn passing(received: &HeaderMap, allowed: &[HeaderName]) -> HeaderMap {
    let mut passing = HeaderMap::new();
    for (name, value) in received.iter().filter(|(name, _)| allowed.contains(name)) {
        passing.append(name, value.clone());
    }
    passing
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            match this.incoming.poll_frame(cx) {
                Poll::Pending => {
                    ready!(this.watch.poll_expired(cx, None));
                    return Poll::Ready(Some(Err(this.fail(Reason::BodyTimeout))));
                }
                Poll::Ready(None) => {
                    this.upload.add(0);
                    return Poll::Ready(None);
                }
                Poll::Ready(Some(Err(reason))) => return Poll::Ready(Some(Err(this.fail(reason)))),
                Poll::Ready(Some(Ok(frame))) => {
                    this.watch.moved();
                    if let Some(result) = this.accept(frame) {
                        return Poll::Ready(Some(result));
                    }
                }
            }
        }
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    pub fn new(conversation: Answer, exchange: Exchange, idle_max: Duration) -> Self {
        Self { conversation: Some(conversation), exchange, watch: IdleWatch::new(idle_max), broken: None, held: None }
    }

    /// The last byte is at hand: the record is committed before it goes out, and the connection can serve another request.
    fn finish(&mut self) {
        let now = monotonic();
        self.exchange.complete(now);
        if let Some(conversation) = self.conversation.take() {
            conversation.give_back(now);
        }
    }

    /// Hands the last of the body over, where the operator wants that once its record is synced (protocols J5).
    fn last(
        &mut self,
        last: Option<Frame<Bytes>>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.finish();
        let recorder = self.exchange.recorder();
        if !recorder.holds() {
            return Poll::Ready(last.map(Ok));
        }
        let recorder = Rc::clone(recorder);
        self.held = Some(Held { last, synced: Box::pin(async move { recorder.synced().await }) });
        self.poll_held(cx)
    }

    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(held) = &mut self.held else { return Poll::Ready(self.broken.map(|reason| Err(BodyError(reason)))) };
        let synced = ready!(held.synced.as_mut().poll(cx));
        let last = self.held.take().and_then(|held| held.last);
        match synced {
            Ok(()) => Poll::Ready(last.map(Ok)),
            Err(NotSynced) => {
                self.broken = Some(Reason::AuditUnavailable);
                Poll::Ready(Some(Err(BodyError(Reason::AuditUnavailable))))
            }
        }
    }

    /// The rest will not come: the record says so now, the library at its next turn. Told at once, it would close without
    /// having sent the head and what came of the body.
    fn abort(&mut self, reason: Reason, cx: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.exchange.end(reason);
        self.conversation = None;
        self.broken = Some(reason);
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl HttpBody for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let Some(conversation) = &mut this.conversation else {
            return this.poll_held(cx);
        };
        if let Some(cut) = this.exchange.in_flight().cut() {
            return this.abort(cut, cx);
        }
        match conversation.poll_frame(cx) {
            Poll::Pending => {
                ready!(this.watch.poll_expired(cx, this.exchange.upload_progress()));
                this.abort(Reason::UpstreamAborted, cx)
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                this.watch.moved();
                frame.trailers_mut().into_iter().for_each(clean_trailers);
                this.exchange.add_bytes_out(frame.data_ref().map_or(0, Bytes::len));
                if conversation.is_done() { this.last(Some(frame), cx) } else { Poll::Ready(Some(Ok(frame))) }
            }
            Poll::Ready(Some(Err(BodyError(reason)))) => this.abort(reason, cx),
            Poll::Ready(None) => this.last(None, cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.conversation.is_none() && self.broken.is_none() && self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if let Some(held) = &self.held {
            let length = held.last.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
            return SizeHint::with_exact(length as u64);
        }
        let exact = self.conversation.as_ref().map_or(Some(0), Answer::exact_len);
        exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === impl Body ===

impl Body {
    /// Whether it goes out in one piece: what it answers is recorded already.
    pub const fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }

    /// The tunnel, if there is one; what stays is empty.
    pub fn take_tunnel(&mut self) -> Option<Box<Tunnel>> {
        if !matches!(self, Self::Tunnel(_)) {
            return None;
        }
        match std::mem::replace(self, Self::Own(None)) {
            Self::Tunnel(tunnel) => Some(tunnel),
            Self::Own(_) | Self::Upstream(_) => None,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(body) => Pin::new(body.as_mut()).poll_frame(cx),
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(body) => body.is_end_stream(),
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Upstream(body) => body.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

// === impl IdleWatch ===

impl IdleWatch {
    const fn new(idle_max: Duration) -> Self {
        Self { idle_max, timer: None, running: false }
    }

    const fn moved(&mut self) {
        self.running = false;
    }

    /// Ready once the body has stood still for `idle_max`, and so has what it waits for, which last moved at `other`.
    fn poll_expired(&mut self, cx: &mut Context<'_>, other: Option<Instant>) -> Poll<()> {
        let idle_max = self.idle_max;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle_max)));
        loop {
            if !self.running {
                // tidy: allow(the timer's own clock, which stands still with it in a test)
                timer.as_mut().reset(tokio::time::Instant::now() + idle_max);
                self.running = true;
            }
            ready!(timer.as_mut().poll(cx));
            if other.is_none_or(|at| monotonic().saturating_duration_since(at) >= idle_max) {
                return Poll::Ready(());
            }
            self.running = false;
        }
    }
}
