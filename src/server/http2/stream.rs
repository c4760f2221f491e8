//! One request on a stream of its own, from its head to the last byte of its response.

use super::{Shared, date};
use crate::proxy::body::{Body, BodyError};
use crate::proxy::canonical;
use crate::proxy::headers;
use crate::proxy::in_flight::InFlight;
use crate::proxy::incoming::{Incoming, Received};
use crate::server::registry::StreamGuard;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, DATE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body as _, Frame};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::Sleep;

/// Why a response did not reach its end.
enum Ended {
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
}

/// A timer that runs only while the client's window is shut.
struct Stall {
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
    let Some(response) = answer(request, &mut respond, in_flight, &shared).await else { return };
    match send(response, is_to_head, &mut respond, in_flight, shared.write_stall).await {
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
    let mut handling = pin!(shared.service.handle(whole(request), &shared.downstream, in_flight));
    std::future::poll_fn(|cx| {
        in_flight.set_waker(cx.waker());
        if let Poll::Ready(response) = handling.as_mut().poll(cx) {
            return Poll::Ready(Some(response));
        }
        respond.poll_reset(cx).map(|_| None)
    })
    .await
}

/// The request, as one of HTTP/1.1 would be seen.
fn whole(request: Request<RecvStream>) -> Request<Incoming> {
    let (mut head, stream) = request.into_parts();
    // Not offered: CONNECT is refused, whatever it asks for.
    head.extensions.remove::<h2::ext::Protocol>();
    canonical::gather(&mut head);
    // More than one length, or one that is none, the library has refused.
    let length = head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    Request::from_parts(head, Incoming::Http2(Received::new(stream, length)))
}

async fn send(
    response: Response<Body>,
    is_to_head: bool,
    respond: &mut SendResponse<Bytes>,
    in_flight: &InFlight,
    write_stall: Duration,
) -> Result<(), Ended> {
    let (mut head, body) = response.into_parts();
    headers::clean_for_http2(&mut head.headers);
    if !head.headers.contains_key(DATE)
        && let Some(date) = date::now()
    {
        head.headers.insert(DATE, date);
    }
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
    let stall = Stall { bound: write_stall, timer: None, is_running: false };
    let mut sending = Sending { stream, body, piece: Bytes::new(), is_last: false, in_flight, stall };
    std::future::poll_fn(|cx| sending.poll(cx)).await
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
        let is_shut = self.poll_room(1, cx)?.is_pending();
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
        match self.poll_room(self.piece.len(), cx)? {
            Poll::Pending => {
                ready!(self.stall.poll_expired(cx));
                Poll::Ready(Err(Ended::Stalled))
            }
            Poll::Ready(room) => {
                self.stall.is_running = false;
                let part = self.piece.split_to(room.min(self.piece.len()));
                let is_end = self.piece.is_empty() && self.is_last;
                Poll::Ready(self.stream.send_data(part, is_end).map_err(|_| Ended::Gone))
            }
        }
    }

    /// The room for what is wanted, at least one byte, in the client's windows and in the library.
    fn poll_room(&mut self, wanted: usize, cx: &mut Context<'_>) -> Result<Poll<usize>, Ended> {
        self.stream.reserve_capacity(wanted);
        loop {
            let room = self.stream.capacity();
            if room > 0 {
                return Ok(Poll::Ready(room));
            }
            match self.stream.poll_capacity(cx) {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Err(Ended::Gone),
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
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
