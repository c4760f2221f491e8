//! A request's body on its way to an upstream that speaks HTTP/2, as far as the upstream's windows are open.

use super::vitals::Vitals;
use crate::proxy::body::{BodyError, RequestBody};
use crate::proxy::stream_io::{Gone, poll_room};
use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;
use http_body::Body as _;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// A body that is being sent. Dropped before its end, with the response, it resets the stream.
pub struct Upload {
    stream: SendStream<Bytes>,
    body: RequestBody,
    vitals: Rc<Vitals>,
    /// Taken from the body, and not sent yet.
    piece: Bytes,
    is_last: bool,
    /// Whether anything was taken from the body.
    is_begun: bool,
}

/// Why sending stopped.
pub enum Stopped {
    /// The upstream takes no more: its answer tells why.
    Gone,
    /// The request's own body failed.
    Body(BodyError),
}

// === impl Upload ===

impl Upload {
    pub const fn new(stream: SendStream<Bytes>, body: RequestBody, vitals: Rc<Vitals>) -> Self {
        Self { stream, body, vitals, piece: Bytes::new(), is_last: false, is_begun: false }
    }

    /// The body, if it can still be sent elsewhere.
    pub fn into_untouched(self) -> Option<RequestBody> {
        (!self.is_begun).then_some(self.body)
    }

    /// Sends as much as the body gives and the upstream takes; ready when the request is sent.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if !self.piece.is_empty() {
                ready!(self.poll_piece(cx))?;
                if self.piece.is_empty() && self.is_last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else { return Poll::Ready(self.end()) };
            self.is_begun = true;
            match frame.map_err(Stopped::Body)?.into_data() {
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

    /// Sends as much of the piece as the upstream takes. No more is given to the library, which would keep it.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let room = ready!(poll_room(&mut self.stream, self.piece.len(), cx)).map_err(|Gone| Stopped::Gone)?;
        let part = self.piece.split_to(room.min(self.piece.len()));
        let is_end = self.piece.is_empty() && self.is_last;
        self.vitals.send_part();
        Poll::Ready(self.stream.send_data(part, is_end).map_err(|_| Stopped::Gone))
    }

    fn send_trailers(&mut self, trailers: HeaderMap) -> Result<(), Stopped> {
        if trailers.is_empty() {
            return self.end();
        }
        self.stream.send_trailers(trailers).map_err(|_| Stopped::Gone)
    }

    fn end(&mut self) -> Result<(), Stopped> {
        self.stream.send_data(Bytes::new(), true).map_err(|_| Stopped::Gone)
    }
}
