//! A request's body as it arrives, whatever protocol it arrives by.

use crate::reason::Reason;
use bytes::Bytes;
use http_body::{Body as _, Frame};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// The body of one request.
pub enum Incoming {
    Http1(hyper::body::Incoming),
    Http2(Received),
}

/// The body of a request on a stream of HTTP/2.
pub struct Received {
    stream: h2::RecvStream,
    /// What `Content-Length` says is still to come; the library ends a stream that says something else by its frames.
    left: Option<u64>,
    /// All data is here: trailers may follow.
    is_data_done: bool,
}

// === impl Incoming ===

impl Incoming {
    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`Reason::ClientAborted`] or [`Reason::BodyMalformed`].
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self {
            Self::Http1(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|error| why_of_http1(&error)))),
            Self::Http2(body) => body.poll_frame(cx),
        }
    }

    /// Nothing is to come.
    pub fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(body) => body.stream.is_end_stream(),
        }
    }

    /// The bytes to come, where the head tells.
    pub fn exact_len(&self) -> Option<u64> {
        match self {
            Self::Http1(body) => body.size_hint().exact(),
            Self::Http2(body) if body.stream.is_end_stream() => Some(0),
            Self::Http2(body) => body.left,
        }
    }
}

/// In the middle of a body the library tells an end of file or a reset by the error's source alone.
fn why_of_http1(error: &hyper::Error) -> Reason {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    let is_ended = source.is_some_and(|source| {
        matches!(
            source.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        )
    });
    let is_gone = is_ended || error.is_incomplete_message() || error.is_closed() || error.is_canceled();
    if is_gone { Reason::ClientAborted } else { Reason::BodyMalformed }
}

// === impl Received ===

impl Received {
    /// `length` is what `Content-Length` says.
    pub const fn new(stream: h2::RecvStream, length: Option<u64>) -> Self {
        Self { stream, left: length, is_data_done: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if !self.is_data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Asked for means that there is room for it: the client may send as much again.
                    _ = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(why_of_http2(&error)))),
                None => self.is_data_done = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(why_of_http2(&error))),
        })
    }
}

/// A client that resets its stream or goes away, rather than sends what is no body.
fn why_of_http2(error: &h2::Error) -> Reason {
    if error.is_remote() || error.is_io() { Reason::ClientAborted } else { Reason::BodyMalformed }
}
