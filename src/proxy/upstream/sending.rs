//! A request on its way to an upstream: a head, and a body that is framed anew.

use crate::proxy::body::{BodyError, RequestBody};
use crate::proxy::h1::{BodyReader, ResponseHead};
use crate::proxy::headers::{clean_hops, push_received};
use crate::proxy::incoming::Interim;
use crate::proxy::transport::Stream;
use crate::proxy::upgrade::Upgrade;
use bytes::{Buf as _, Bytes};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body as _;
use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::AsyncWrite;

/// Pieces of a body up to this length are copied behind what is still to be sent: one plain `send` is cheaper for the kernel
/// than a vectored one. Longer ones are sent from where they lie.
const COPIED_MAX: usize = 4096;

/// What is still to be sent of a request.
pub struct Sending {
    /// Bytes to send first: the head, chunk sizes, small pieces.
    buf: Vec<u8>,
    sent: usize,
    /// A large piece, sent after `buf`.
    piece: Bytes,
    body: Option<RequestBody>,
    is_chunked: bool,
    /// Whether any byte has been taken by a connection.
    is_untouched: bool,
    /// What else the connection may come to speak.
    upgrade: Option<Rc<Upgrade>>,
    interim: Option<Rc<Interim>>,
}

/// Why sending stopped.
#[derive(Debug)]
pub enum Interrupted {
    /// The connection takes no more.
    Io(io::Error),
    /// The request's own body failed.
    Body(BodyError),
}

// === impl Sending ===

impl Sending {
    /// A request of `head`, which says how `body` is framed: by chunks, or by the length that the body says it has.
    pub const fn new(head: Vec<u8>, body: Option<RequestBody>, is_chunked: bool) -> Self {
        Self {
            buf: head,
            sent: 0,
            piece: Bytes::new(),
            body,
            is_chunked,
            is_untouched: true,
            upgrade: None,
            interim: None,
        }
    }

    /// The same, where the head may ask for an upgrade, and the client may be told what comes before the answer.
    pub fn asking(self, upgrade: Option<Rc<Upgrade>>, interim: Option<Rc<Interim>>) -> Self {
        Self { upgrade, interim, ..self }
    }

    /// Passes on what came before the answer, where that can be. A 100 is not among it: the gateway has asked for nothing.
    pub fn pass_interim(&self, mut head: Response<()>) {
        if let Some(interim) = self.interim.as_ref().filter(|_| head.status() != StatusCode::CONTINUE) {
            clean_hops(head.headers_mut());
            interim.push(head);
        }
    }

    /// Whether the head asks for an upgrade, which takes a connection of its own.
    pub const fn asks_upgrade(&self) -> bool {
        self.upgrade.is_some()
    }

    /// Whether it asks for a WebSocket.
    pub fn asks_websocket(&self) -> bool {
        self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_websocket())
    }

    /// Whether this head agrees to the upgrade that was asked for, with nothing left to be said in HTTP on either side.
    pub fn is_agreed(&self, answer: &ResponseHead) -> bool {
        let is_framed = !matches!(answer.body, BodyReader::UntilClose);
        let is_over = self.is_done() && !is_framed;
        is_over && self.upgrade.as_ref().is_some_and(|upgrade| upgrade.is_agreed(answer.response.headers()))
    }

    /// Takes it, leaving nothing to send.
    pub fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(Vec::new(), None, false))
    }

    /// The head as it was written, while nothing was sent.
    pub fn head(&self) -> &[u8] {
        &self.buf
    }

    /// Takes the body alone, for a connection that frames it by itself.
    pub const fn take_body(&mut self) -> Option<RequestBody> {
        self.body.take()
    }

    /// Gives a body back of which nothing was taken.
    pub fn restore(&mut self, body: Option<RequestBody>) {
        self.body = body;
    }

    /// Something was taken of the body: it cannot be sent again.
    pub const fn touch(&mut self) {
        self.is_untouched = false;
    }

    pub const fn is_untouched(&self) -> bool {
        self.is_untouched
    }

    pub fn is_done(&self) -> bool {
        self.body.is_none() && self.is_flushed()
    }

    fn is_flushed(&self) -> bool {
        self.sent == self.buf.len() && self.piece.is_empty()
    }

    /// Sends as much as the body gives and the connection takes; ready when the request is sent.
    pub fn poll(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Interrupted>> {
        loop {
            let filled = self.poll_fill(cx).map_err(Interrupted::Body)?;
            if self.is_flushed() {
                // TLS keeps what the socket does not take yet.
                ready!(Pin::new(stream).poll_flush(cx)).map_err(Interrupted::Io)?;
                return filled.map(Ok);
            }
            let written = ready!(self.poll_write(Pin::new(&mut *stream), cx)).map_err(Interrupted::Io)?;
            self.advance(written);
        }
    }

    /// Takes from the body what may be sent together; ready when the body is at its end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        while let Some(body) = &mut self.body {
            if !self.piece.is_empty() || self.buf.len() - self.sent > COPIED_MAX {
                return Poll::Pending;
            }
            match ready!(Pin::new(body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.push(data),
                    Err(frame) => self.end(frame.trailers_ref()),
                },
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => self.end(None),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if self.is_chunked {
            // Writing to memory does not fail.
            _ = write!(self.buf, "{:x}\r\n", data.len());
        }
        if data.len() > COPIED_MAX {
            self.piece = data;
            return;
        }
        self.buf.extend_from_slice(&data);
        self.end_chunk();
    }

    fn end_chunk(&mut self) {
        if self.is_chunked {
            self.buf.extend_from_slice(b"\r\n");
        }
    }

    /// Trailers have a place behind chunks alone (RFC 9112, section 7.1.2): behind a length they are dropped.
    fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.body = None;
        if self.is_chunked {
            self.buf.extend_from_slice(b"0\r\n");
            trailers.into_iter().flatten().for_each(|(name, value)| push_received(&mut self.buf, name, value));
            self.buf.extend_from_slice(b"\r\n");
        }
    }

    fn poll_write(&self, stream: Pin<&mut Stream>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let rest = self.buf.get(self.sent..).unwrap_or_default();
        let written = ready!(match (rest.is_empty(), self.piece.is_empty()) {
            (false, true) => stream.poll_write(cx, rest),
            (true, _) => stream.poll_write(cx, &self.piece),
            (false, false) => stream.poll_write_vectored(cx, &[IoSlice::new(rest), IoSlice::new(&self.piece)]),
        })?;
        Poll::Ready(if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) })
    }

    fn advance(&mut self, written: usize) {
        self.is_untouched = false;
        let from_buf = written.min(self.buf.len() - self.sent);
        let from_piece = written - from_buf;
        self.sent += from_buf;
        self.piece.advance(from_piece);
        if self.sent == self.buf.len() {
            self.buf.clear();
            self.sent = 0;
        }
        if from_piece > 0 && self.piece.is_empty() {
            self.end_chunk();
        }
    }
}
