//! A client's socket, watched: the libraries have no deadline for silence and none for a client that takes no bytes.

use super::http2::Meter;
use super::registry::ConnState;
use crate::proxy::transport::Stream;
use bytes::Bytes;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A socket that tells its connection's state when bytes arrive and when they are not taken.
#[derive(Debug)]
pub struct WatchedStream {
    stream: Stream,
    /// Was read before, and comes first.
    read: Bytes,
    state: Rc<ConnState>,
    /// HTTP/2: the account of the client's frames.
    meter: Option<Rc<Meter>>,
}

// === impl WatchedStream ===

impl WatchedStream {
    pub const fn new(stream: Stream, read: Bytes, state: Rc<ConnState>) -> Self {
        Self { stream, read, state, meter: None }
    }

    /// One that speaks HTTP/2: a request begins with its frame, not with any byte.
    pub const fn metered(stream: Stream, read: Bytes, state: Rc<ConnState>, meter: Rc<Meter>) -> Self {
        Self { stream, read, state, meter: Some(meter) }
    }

    /// Gives back what was read too early.
    pub fn unread(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.read = if self.read.is_empty() { bytes } else { [bytes, self.read.split_off(0)].concat().into() };
        }
    }

    fn note(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.state.on_write(result.is_pending());
        if let (Some(meter), Poll::Ready(Ok(bytes))) = (&self.meter, &result) {
            meter.wrote(*bytes);
        }
        result
    }

    fn note_read(&self, bytes: &[u8]) {
        match &self.meter {
            None => self.state.on_read(),
            Some(meter) => meter.read(bytes, &self.state),
        }
    }

    /// Gives what was read before.
    fn reread(&mut self, buf: &mut ReadBuf<'_>) {
        let bytes = self.read.len().min(buf.remaining());
        let again = self.read.split_to(bytes);
        buf.put_slice(&again);
        self.note_read(&again);
    }
}

impl Drop for WatchedStream {
    fn drop(&mut self) {
        if self.state.is_reset() {
            self.stream.reset_on_close();
        } else if !self.state.is_serving() {
            self.stream.say_end();
        }
    }
}

impl AsyncRead for WatchedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            self.reread(buf);
            return Poll::Ready(Ok(()));
        }
        if self.meter.as_ref().is_some_and(|meter| meter.is_exhausted()) {
            // Nothing more of it is read: whoever polls ends the connection.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some(bytes) = buf.filled().get(before..).filter(|bytes| !bytes.is_empty()) {
            self.note_read(bytes);
        }
        result
    }
}

impl AsyncWrite for WatchedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if self.stream.is_buffering() {
            self.state.on_write(result.is_pending());
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
