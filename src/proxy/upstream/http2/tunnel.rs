//! A WebSocket's tunnel on a stream of a shared connection (RFC 8441).

use super::Place;
use crate::proxy::stream_io::StreamIo;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream that does not carry HTTP any more. It ends before its place on the connection.
pub struct Upgraded {
    stream: StreamIo,
    place: Place,
}

// === impl Upgraded ===

impl Upgraded {
    pub const fn new(stream: StreamIo, place: Place) -> Self {
        Self { stream, place }
    }

    pub fn reset(&mut self) {
        self.stream.reset();
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let sent = Pin::new(&mut this.stream).poll_write(cx, bytes);
        if sent.is_ready() {
            this.place.0.vitals.send_part();
        }
        sent
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
