//! A client's socket, watched: the libraries have no deadline for silence and none for a client that takes no bytes.

use super::bare;
use super::http2::Meter;
use super::registry::ConnState;
use crate::proxy::transport::Stream;
use bytes::{Buf as _, Bytes};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// How long a client that was told the end may take to end as well.
const LINGER: Duration = Duration::from_secs(1);
/// How much it may still send meanwhile: over HTTP/1.1 an upload that nobody wants any more, over HTTP/2 a few frames. Whoever
/// floods sends more, and is not listened to.
const LINGER_BYTES_HTTP1: usize = 64 * 1024 * 1024;
const LINGER_BYTES_HTTP2: usize = 64 * 1024;
/// It is thrown away in pieces of this size.
const DISCARD: usize = 4 * 1024;

/// A socket that tells its connection's state when bytes arrive and when they are not taken.
#[derive(Debug)]
pub struct WatchedStream {
    stream: Stream,
    /// Was read before, and comes first.
    read: Bytes,
    state: Rc<ConnState>,
    /// HTTP/2: the account of the client's frames.
    meter: Option<Rc<Meter>>,
    /// HTTP/1.1: what is sent in the place of the library's own answer, and is not sent yet.
    reworded: Bytes,
    end: End,
}

/// What our own end means for what the client still sends.
#[derive(Debug)]
enum End {
    /// It is not for anybody. A socket that is closed over unread bytes is reset by the kernel, and takes away from the client
    /// the answer it has not read yet (RFC 9112, section 9.6): so they are read, for a while and up to so many.
    Whole { timer: Option<Pin<Box<Sleep>>>, left: usize },
    /// It goes on: the connection carries a tunnel.
    Half,
}

// === impl End ===

impl End {
    const fn whole(left: usize) -> Self {
        Self::Whole { timer: None, left }
    }
}

// === impl WatchedStream ===

impl WatchedStream {
    pub const fn new(stream: Stream, read: Bytes, state: Rc<ConnState>) -> Self {
        Self { stream, read, state, meter: None, reworded: Bytes::new(), end: End::whole(LINGER_BYTES_HTTP1) }
    }

    /// One that speaks HTTP/2: a request begins with its frame, not with any byte.
    pub const fn metered(stream: Stream, read: Bytes, state: Rc<ConnState>, meter: Rc<Meter>) -> Self {
        Self { stream, read, state, meter: Some(meter), reworded: Bytes::new(), end: End::whole(LINGER_BYTES_HTTP2) }
    }

    /// The connection has left HTTP, whose library has read `bytes` too early.
    pub fn leave_http(&mut self, bytes: Bytes) {
        self.end = End::Half;
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

    /// Reads what the client still sends, until it ends too or has had its time.
    fn poll_linger(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let End::Whole { timer, left } = &mut self.end else { return Poll::Ready(()) };
        if self.state.is_reset() || self.meter.as_ref().is_some_and(|meter| meter.is_exhausted()) {
            return Poll::Ready(());
        }
        let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut discarded = [0; DISCARD];
        while *left > 0 && timer.as_mut().poll(cx).is_pending() {
            let mut buf = ReadBuf::new(&mut discarded);
            let read = ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                break;
            }
            *left = left.saturating_sub(buf.filled().len());
        }
        Poll::Ready(())
    }

    fn note_read(&self, bytes: &[u8]) {
        match &self.meter {
            None => self.state.on_read(),
            Some(meter) => meter.read(bytes, &self.state),
        }
    }

    /// Sends the contract's answer in the place of `buf`, if that is the library's own: before a request nothing else is
    /// answered.
    fn poll_reworded(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Option<Poll<io::Result<usize>>> {
        if !self.state.is_before_request() || self.meter.is_some() {
            return None;
        }
        if self.reworded.is_empty() {
            self.reworded = bare::reworded(buf)?.into();
        }
        Some(self.poll_rest(cx).map_ok(|()| buf.len()))
    }

    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.reworded.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.reworded))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.reworded.advance(sent);
        }
        Poll::Ready(Ok(()))
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
        let reworded = self.poll_reworded(cx, buf);
        let result = reworded.unwrap_or_else(|| Pin::new(&mut self.stream).poll_write(cx, buf));
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty());
        let reworded = first.and_then(|first| self.poll_reworded(cx, first));
        let result = reworded.unwrap_or_else(|| Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
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
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        self.poll_linger(cx).map(Ok)
    }
}
