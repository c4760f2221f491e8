//! A response that has begun, whichever protocol it comes by.

use super::{Slot, conversation, http2};
use crate::clock::Instant;
use crate::proxy::body::BodyError;
use bytes::Bytes;
use http_body::Frame;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A response whose head is here. Its body is on its way, and possibly the request's.
pub enum Answer {
    /// On a connection of its own.
    Http1(conversation::Conversation),
    /// On a stream of a shared one.
    Http2(http2::conversation::Conversation, Slot),
}

/// What does not carry HTTP any more. It keeps its place among the requests in flight.
pub enum Upgraded {
    /// A connection.
    Http1(conversation::Upgraded),
    /// A stream of a shared one.
    Http2(http2::tunnel::Upgraded, Slot),
}

// === impl Answer ===

impl Answer {
    /// The whole rest of the body, if it is here already: the usual case, which needs no body that is polled.
    pub fn take_whole(&mut self) -> Option<Bytes> {
        match self {
            Self::Http1(conversation) => conversation.take_whole(),
            Self::Http2(conversation, _) => conversation.take_whole(),
        }
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`BodyError`], when either body cannot go on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(conversation) => conversation.poll_frame(cx),
            Self::Http2(conversation, _) => conversation.poll_frame(cx),
        }
    }

    /// Nothing more of the body is to come.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Http1(conversation) => conversation.is_done(),
            Self::Http2(conversation, _) => conversation.is_done(),
        }
    }

    /// The bytes still to come, where the head tells.
    pub fn exact_len(&self) -> Option<u64> {
        match self {
            Self::Http1(conversation) => conversation.exact_len(),
            Self::Http2(conversation, _) => conversation.exact_len(),
        }
    }

    /// The connection itself, or the stream, once both sides have left HTTP on it.
    pub fn into_upgraded(self) -> Option<Upgraded> {
        match self {
            Self::Http1(conversation) => Some(Upgraded::Http1(conversation.into_upgraded())),
            Self::Http2(conversation, slot) => conversation.into_upgraded().map(|stream| Upgraded::Http2(stream, slot)),
        }
    }

    /// The exchange is over. A connection of its own waits for another, if it can serve one; a stream ends.
    pub fn give_back(self, now: Instant) {
        match self {
            Self::Http1(conversation) => conversation.give_back(now),
            Self::Http2(..) => {}
        }
    }
}

// === impl Upgraded ===

impl Upgraded {
    /// Dropped, it tells the upstream that it was broken off.
    pub fn reset_on_close(&mut self) {
        match self {
            Self::Http1(connection) => connection.reset_on_close(),
            Self::Http2(stream, _) => stream.reset(),
        }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_read(cx, out),
            Self::Http2(stream, _) => Pin::new(stream).poll_read(cx, out),
        }
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_write(cx, bytes),
            Self::Http2(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_flush(cx),
            Self::Http2(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Http1(connection) => Pin::new(connection).poll_shutdown(cx),
            Self::Http2(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
