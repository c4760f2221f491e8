//! One request on a stream of its own, from its head to the last byte of its response.

use super::{Meter, Shared, date, tunnel};
use crate::proxy::body::{Body, BodyError};
use crate::proxy::canonical;
use crate::proxy::headers;
use crate::proxy::in_flight::InFlight;
use crate::proxy::incoming::{Incoming, Interim, Received};
use crate::proxy::stream_io::{Gone, poll_room};
use crate::server::registry::StreamGuard;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE, EXPECT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, response};
use http_body::{Body as _, Frame};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Why a response did not reach its end.
pub enum Ended {
    /// By the client, or with the connection.
    Gone,
    /// By us: the client is told so.
    Reset(Reason),
    /// The client left its window shut, with something to send.
    Stalled,
}

/// A response's body on its way to the client, as far as the client's windows are open.
struct Sending<'a> {
    stream: SendStream<Bytes>,
    body: Body,
    /// Taken from the body, and not sent yet.
    piece: Bytes,
    is_last: bool,
    in_flight: &'a InFlight,
    stall: Stall,
    meter: &'a Meter,
}

/// A timer that runs only while the client's window is shut.
pub struct Stall {
    bound: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    is_running: bool,
}

/// Serves one request. A stream that is dropped before its response is whole is reset by the library; one whose response is
/// whole and whose request is not, too, with `NO_ERROR` (RFC 9113, section 8.1).
pub async fn serve(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    guard: StreamGuard,
    shared: Rc<Shared>,
) {
    let in_flight = guard.in_flight();
    let is_to_head = request.method() == Method::HEAD;
    let Some(mut response) = answer(request, &mut respond, in_flight, &shared).await else { return };
    let sent = match response.body_mut().take_tunnel() {
        // Boxed: few requests come to that.
        Some(tunnel) => Box::pin(tunnel::carry(response, tunnel, &mut respond, in_flight, &shared)).await,
        None => send(response, is_to_head, &mut respond, in_flight, &shared).await,
    };
    match sent {
        Ok(()) => shared.meter.served(),
        Err(Ended::Gone) => {}
        Err(Ended::Reset(reason)) => respond.send_reset(reason),
        Err(Ended::Stalled) => {
            shared.events.count(crate::audit::Cause::WriteStall);
            respond.send_reset(Reason::CANCEL);
        }
    }
}

/// The response; none for a request that the client took back.
async fn answer(
    request: Request<RecvStream>,
    respond: &mut SendResponse<Bytes>,
    in_flight: &Rc<InFlight>,
    shared: &Shared,
) -> Option<Response<Body>> {
    let is_taken_back = std::future::poll_fn(|cx| Poll::Ready(respond.poll_reset(cx).is_ready())).await;
    if is_taken_back {
        return None;
    }
    let interim = Rc::<Interim>::default();
    let mut handling = pin!(shared.service.handle(whole(request, &interim), &shared.downstream, in_flight));
    std::future::poll_fn(|cx| {
        in_flight.set_waker(cx.waker());
        let handled = handling.as_mut().poll(cx);
        interim.take().into_iter().for_each(|response| send_interim(response, respond));
        if let Poll::Ready(response) = handled {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(cx).map(|_| None)
    })
    .await
}

/// The request, as one of HTTP/1.1 would be seen.
fn whole(request: Request<RecvStream>, interim: &Rc<Interim>) -> Request<Incoming> {
    let (mut head, stream) = request.into_parts();
    canonical::gather(&mut head);
    // Any other expectation is refused.
    let is_awaited = head.headers.contains_key(EXPECT);
    // More than one length, or one that is none, the library has refused.
    let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    Request::from_parts(head, Incoming::Http2(Received::new(stream, length, is_awaited, Rc::clone(interim))))
}

/// Sends what comes before the answer. A client that does not hear it misses nothing that it needs.
fn send_interim(mut response: Response<()>, respond: &mut SendResponse<Bytes>) {
    headers::clean_for_http2(response.headers_mut());
    _ = respond.send_informational(response);
}

/// Makes an answer's head one of HTTP/2.
pub fn complete(head: &mut response::Parts) {
    headers::clean_for_http2(&mut head.headers);
    if !head.headers.contains_key(DATE)
        && let Some(date) = date::now()
    {
        head.headers.insert(DATE, date);
    }
}

async fn send(
    response: Response<Body>,
    is_to_head: bool,
    respond: &mut SendResponse<Bytes>,
    in_flight: &InFlight,
    shared: &Shared,
) -> Result<(), Ended> {
    let (mut head, body) = response.into_parts();
    complete(&mut head);
    let is_bodiless = is_to_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let is_empty = body.is_end_stream();
    if !is_empty
        && let Some(length) = body.size_hint().exact()
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    let is_whole = is_empty || is_bodiless;
    let stream = respond.send_response(Response::from_parts(head, ()), is_whole).map_err(|_| Ended::Gone)?;
    if is_whole {
        return Ok(());
    }
    let (stall, meter) = (Stall::new(shared.write_stall), &*shared.meter);
    let mut sending = Sending { stream, body, piece: Bytes::new(), is_last: false, in_flight, stall, meter };
    std::future::poll_fn(|cx| sending.poll(cx)).await
}

// === impl Ended ===

impl From<Gone> for Ended {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

// === impl Sending ===

impl Sending<'_> {
    /// Ready when the response is sent, or will not be.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.in_flight.set_waker(cx.waker());
        loop {
            if self.in_flight.cut().is_some() {
                return Poll::Ready(Err(Ended::Reset(Reason::CANCEL)));
            }
            if self.stream.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Ended::Gone));
            }
            if !self.piece.is_empty() {
                ready!(self.poll_piece(cx))?;
                if self.piece.is_empty() && self.is_last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let frame = ready!(self.poll_body(cx))?;
            let Some(frame) = frame else { return Poll::Ready(self.end()) };
            match frame.into_data() {
                Ok(data) => {
                    self.is_last = self.body.is_end_stream();
                    self.piece = data;
                    if self.piece.is_empty() && self.is_last {
                        return Poll::Ready(self.end());
                    }
                }
                Err(frame) => return Poll::Ready(self.send_trailers(frame.into_trailers().unwrap_or_default())),
            }
        }
    }

    /// Asks the body for more, once the client takes more: what nobody takes yet is left with the upstream.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Ended>> {
        let is_shut = poll_room(&mut self.stream, 1, cx)?.is_pending();
        // Kept, it would be missing to other streams while the body has nothing.
        self.stream.reserve_capacity(usize::from(is_shut));
        if is_shut {
            // Nothing to send is no reason to end it.
            ready!(self.stall.poll_expired(cx));
        }
        match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            Some(Ok(_)) if is_shut => Poll::Ready(Err(Ended::Stalled)),
            Some(Ok(frame)) => Poll::Ready(Ok(Some(frame))),
            Some(Err(BodyError(_))) => Poll::Ready(Err(Ended::Reset(Reason::INTERNAL_ERROR))),
            None => Poll::Ready(Ok(None)),
        }
    }

    /// Sends as much of the piece as the client takes. No more is given to the library, which would keep it.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        match poll_room(&mut self.stream, self.piece.len(), cx)? {
            Poll::Pending => {
                ready!(self.stall.poll_expired(cx));
                Poll::Ready(Err(Ended::Stalled))
            }
            Poll::Ready(room) => {
                self.stall.end();
                self.meter.sent_data();
                let part = self.piece.split_to(room.min(self.piece.len()));
                let is_end = self.piece.is_empty() && self.is_last;
                Poll::Ready(self.stream.send_data(part, is_end).map_err(|_| Ended::Gone))
            }
        }
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Ended> {
        if trailers.is_empty() {
            return self.end();
        }
        self.stream.send_trailers(trailers).map_err(|_| Ended::Gone)
    }

    fn end(&mut self) -> Result<(), Ended> {
        self.stream.send_data(Bytes::new(), true).map_err(|_| Ended::Gone)
    }
}

// === impl Stall ===

impl Stall {
    pub const fn new(bound: Duration) -> Self {
        Self { bound, timer: None, is_running: false }
    }

    /// The client takes something.
    pub const fn end(&mut self) {
        self.is_running = false;
    }

    /// Ready once the client has taken nothing for as long as it may.
    pub fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let bound = self.bound;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(bound)));
        if !self.is_running {
            // tidy: allow(the timer's own clock, which stands still with it in a test)
            timer.as_mut().reset(tokio::time::Instant::now() + bound);
            self.is_running = true;
        }
        ready!(timer.as_mut().poll(cx));
        self.is_running = false;
        Poll::Ready(())
    }
}
