//! A request's body as it arrives, whatever protocol it arrives by.

use crate::reason::Reason;
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::{Body as _, Frame};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
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
    /// The client waits to be told that its body is wanted (RFC 9110, section 10.1.1).
    is_awaited: bool,
    interim: Rc<Interim>,
}

/// What the client of one request is told before its answer; whoever answers it sends this first.
#[derive(Debug, Default)]
pub struct Interim(RefCell<Vec<Response<()>>>);

// === impl Interim ===

impl Interim {
    pub fn push(&self, response: Response<()>) {
        self.0.borrow_mut().push(response);
    }

    /// What was not sent yet.
    pub fn take(&self) -> Vec<Response<()>> {
        self.0.take()
    }
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

    /// Where to put what comes before the answer; `None` where the library cannot send it.
    pub const fn interim(&self) -> Option<&Rc<Interim>> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(body) => Some(&body.interim),
        }
    }

    /// The stream of HTTP/2 that it comes on.
    pub fn into_stream(self) -> Option<h2::RecvStream> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(body) => Some(body.stream),
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
    /// `length` is what `Content-Length` says; `is_awaited`, that the client waits for 100 before it sends.
    pub const fn new(stream: h2::RecvStream, length: Option<u64>, is_awaited: bool, interim: Rc<Interim>) -> Self {
        Self { stream, left: length, is_data_done: false, is_awaited, interim }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        if !self.is_data_done {
            let data = self.stream.poll_data(cx);
            if std::mem::take(&mut self.is_awaited) && data.is_pending() {
                let mut go_on = Response::new(());
                *go_on.status_mut() = StatusCode::CONTINUE;
                self.interim.push(go_on);
            }
            match ready!(data) {
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
