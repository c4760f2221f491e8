//! One request and its response on one connection. Both bodies move at once: an upstream may answer before it has read the
//! request, and then go on reading.

use super::Lease;
use super::sending::{Interrupted, Sending};
use crate::clock::Instant;
use crate::proxy::body::BodyError;
use crate::proxy::h1::{self, BodyReader, Malformed, Piece, ResponseHead};
use crate::proxy::transport::Stream;
use crate::reason::Reason;
use bytes::{Buf as _, Bytes, BytesMut};
use http::{Response, StatusCode};
use http_body::Frame;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// Room for a response head and a small body.
const READ_MIN: usize = 8 * 1024;
/// Room for a piece of a large body.
const READ_MAX: usize = 64 * 1024;
/// Interim responses (RFC 9110, section 15.2) that may come before a final one must.
pub const INTERIM_MAX: usize = 16;

/// A connection to an upstream, and what was read of it and not used yet.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    buf: BytesMut,
}

/// A response whose body is still on its way, and possibly the request's.
pub struct Conversation {
    lease: Lease,
    /// `None` once the request is sent, or cannot be.
    sending: Option<Sending>,
    body: BodyReader,
    keeps_alive: bool,
}

/// A connection that does not speak HTTP any more. It keeps its place among the requests in flight.
pub struct Upgraded(Lease);

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Http2(#[from] h2::Error),
    /// Nothing was sent: the connection takes no request.
    #[error("{0}")]
    Unsent(h2::Error),
    #[error("{0}")]
    Body(BodyError),
}

// === impl Failure ===

impl Failure {
    /// The upstream says that it has not looked at the request, or was never shown it (RFC 9113, section 8.7).
    pub fn is_unprocessed(&self) -> bool {
        match self {
            Self::Unsent(_) => true,
            Self::Http2(error) if error.is_go_away() => error.is_remote(),
            Self::Http2(error) => error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM),
            Self::Io(_) | Self::Malformed(_) | Self::Body(_) => false,
        }
    }
}

// === impl Connection ===

impl Connection {
    pub fn new(stream: Stream) -> Self {
        Self { stream, buf: BytesMut::new() }
    }

    /// Nothing has arrived, not even the end: an unused connection that says anything is of no use.
    pub fn is_quiet(&mut self) -> bool {
        self.buf.is_empty() && self.stream.is_quiet()
    }

    /// Reads once.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        if self.buf.capacity() - self.buf.len() < room / 2 {
            self.buf.reserve(room);
        }
        pin!(self.stream.read_buf(&mut self.buf)).poll(cx)
    }

    /// Gives back the room that a large body took.
    fn shrink(&mut self) {
        if self.buf.capacity() > READ_MIN {
            self.buf = BytesMut::new();
        }
    }
}

/// Sends on a connection and waits for the head of the final response. `sending` stays with the caller until a head is
/// there: what was not sent at all can be sent on another connection.
///
/// # Errors
/// [`Failure`]. The connection is closed then.
pub async fn begin(
    mut lease: Lease,
    sending: &mut Sending,
    to_head: bool,
) -> Result<(Response<()>, Conversation), Failure> {
    let (mut interim, mut is_sent) = (0, false);
    let head = std::future::poll_fn(|cx| {
        if !is_sent {
            is_sent = poll_send(sending, &mut lease.connection, cx)?;
        }
        poll_head(&mut lease.connection, sending, cx, to_head, &mut interim)
    });
    let ResponseHead { response, body, keeps_alive } = head.await?;
    let sending = (!sending.is_done()).then(|| sending.take());
    Ok((response, Conversation { lease, sending, body, keeps_alive }))
}

/// Whether there is nothing left to send, or nobody who reads it: an upstream may have answered and closed its side, and
/// the answer counts.
fn poll_send(sending: &mut Sending, connection: &mut Connection, cx: &mut Context<'_>) -> Result<bool, Failure> {
    match sending.poll(&mut connection.stream, cx) {
        Poll::Pending => Ok(false),
        Poll::Ready(Ok(())) => Ok(true),
        Poll::Ready(Err(Interrupted::Body(error))) => Err(Failure::Body(error)),
        Poll::Ready(Err(Interrupted::Io(error))) if sending.is_untouched() => Err(Failure::Io(error)),
        Poll::Ready(Err(Interrupted::Io(_))) => Ok(true),
    }
}

fn poll_head(
    connection: &mut Connection,
    sending: &Sending,
    cx: &mut Context<'_>,
    to_head: bool,
    interim: &mut usize,
) -> Poll<Result<ResponseHead, Failure>> {
    loop {
        while let Some(head) = h1::take_response(&mut connection.buf, to_head)? {
            let status = head.response.status();
            let is_switch = status == StatusCode::SWITCHING_PROTOCOLS;
            if !status.is_informational() || is_switch && sending.is_agreed(&head) {
                return Poll::Ready(Ok(head));
            }
            *interim += 1;
            // To a protocol that nobody asked for: what follows would not be HTTP.
            if is_switch || *interim > INTERIM_MAX {
                return Poll::Ready(Err(Malformed("no final response").into()));
            }
            sending.pass_interim(head.response);
        }
        if ready!(connection.poll_read(cx, READ_MIN))? == 0 {
            return Poll::Ready(Err(Malformed("the connection ended before a response").into()));
        }
    }
}

// === impl Conversation ===

impl Conversation {
    /// The whole rest of the body, if it is here already: the usual case, which needs no body that is polled.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        if self.is_done() {
            return Some(Bytes::new());
        }
        let whole = self.body.exact_len() == Some(self.lease.connection.buf.len() as u64);
        match whole.then(|| self.body.next(&mut self.lease.connection.buf)) {
            Some(Ok(Some(Piece::Data(data)))) => Some(data),
            Some(_) | None => None,
        }
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`BodyError`], when either body cannot go on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Err(error) = self.send_on(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let piece = ready!(self.poll_piece(cx)).map_err(|failure| {
            tracing::debug!(%failure, "a response broke off");
            BodyError(Reason::UpstreamAborted)
        });
        Poll::Ready(match piece {
            Ok(Piece::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Piece::End) => None,
            Err(error) => Some(Err(error)),
        })
    }

    fn send_on(&mut self, cx: &mut Context<'_>) -> Result<(), BodyError> {
        let Some(sending) = &mut self.sending else { return Ok(()) };
        match sending.poll(&mut self.lease.connection.stream, cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(Ok(())) => {
                self.sending = None;
                Ok(())
            }
            Poll::Ready(Err(Interrupted::Io(_))) => {
                // The rest of the answer may still be read; the connection is not used again.
                (self.sending, self.keeps_alive) = (None, false);
                Ok(())
            }
            Poll::Ready(Err(Interrupted::Body(error))) => Err(error),
        }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, Failure>> {
        let connection = &mut self.lease.connection;
        loop {
            if let Some(piece) = self.body.next(&mut connection.buf)? {
                return Poll::Ready(Ok(piece));
            }
            let room =
                if self.body.exact_len().is_some_and(|left| left < READ_MIN as u64) { READ_MIN } else { READ_MAX };
            if ready!(connection.poll_read(cx, room))? == 0 {
                return Poll::Ready(Ok(self.body.end_of_stream()?));
            }
        }
    }

    /// Nothing more of the body is to come.
    pub const fn is_done(&self) -> bool {
        self.body.is_done()
    }

    pub const fn exact_len(&self) -> Option<u64> {
        self.body.exact_len()
    }

    /// The connection itself, once both sides have left HTTP on it.
    pub fn into_upgraded(self) -> Upgraded {
        Upgraded(self.lease)
    }

    /// The exchange is over: the connection waits for another if both messages ended where both sides know, and nothing
    /// else came. Closed otherwise.
    pub fn give_back(self, now: Instant) {
        let mut lease = self.lease;
        if self.keeps_alive && self.sending.is_none() && self.body.is_done() && lease.connection.buf.is_empty() {
            lease.connection.shrink();
            lease.give_back(now);
        }
    }
}

// === impl Upgraded ===

impl Upgraded {
    /// Closing it tells the upstream that it was broken off.
    pub fn reset_on_close(&self) {
        self.0.connection.stream.reset_on_close();
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Connection { stream, buf } = &mut self.get_mut().0.connection;
        if buf.is_empty() {
            return Pin::new(stream).poll_read(cx, out);
        }
        // What came with the head.
        let bytes = buf.len().min(out.remaining());
        out.put_slice(buf.get(..bytes).unwrap_or_default());
        buf.advance(bytes);
        if buf.is_empty() {
            *buf = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0.connection.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0.connection.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0.connection.stream).poll_shutdown(cx)
    }
}
