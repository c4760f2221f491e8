//! A stream of HTTP/2 and how it is written: no more than the other side's windows and the library have room for, since the
//! library would keep the rest.

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The other side takes no more.
#[derive(Debug)]
pub struct Gone;

/// The room for what is wanted, at least one byte, in the other side's windows and in the library.
///
/// # Errors
/// [`Gone`].
pub fn poll_room(stream: &mut SendStream<Bytes>, wanted: usize, cx: &mut Context<'_>) -> Poll<Result<usize, Gone>> {
    stream.reserve_capacity(wanted);
    loop {
        let room = stream.capacity();
        if room > 0 {
            return Poll::Ready(Ok(room));
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
        }
    }
}

/// What the frames of a stream carry, as bytes (RFC 8441, section 5). Dropped before both sides have ended it, it is reset.
pub struct StreamIo {
    received: RecvStream,
    /// Of the last frame, what was not read yet.
    piece: Bytes,
    sender: SendStream<Bytes>,
    is_shut: bool,
}

// === impl StreamIo ===

impl StreamIo {
    pub const fn new(received: RecvStream, sender: SendStream<Bytes>) -> Self {
        Self { received, piece: Bytes::new(), sender, is_shut: false }
    }

    /// Tells the other side that it was broken off.
    pub fn reset(&mut self) {
        self.sender.send_reset(Reason::CANCEL);
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.piece.is_empty() {
            // There is no place for trailers: they end it as its end does.
            let Some(data) = ready!(this.received.poll_data(cx)) else { return Poll::Ready(Ok(())) };
            this.piece = data.map_err(|error| io::Error::new(ErrorKind::ConnectionReset, error))?;
            // Asked for means that there is room for it: the other side may send as much again.
            _ = this.received.flow_control().release_capacity(this.piece.len());
        }
        buf.put_slice(&this.piece.split_to(buf.remaining().min(this.piece.len())));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let sender = &mut self.get_mut().sender;
        let room = ready!(poll_room(sender, bytes.len(), cx)).map_err(|Gone| ErrorKind::BrokenPipe)?;
        let part = bytes.get(..room).unwrap_or(bytes);
        let sent = sender.send_data(Bytes::copy_from_slice(part), false);
        Poll::Ready(sent.map(|()| part.len()).map_err(|_| ErrorKind::BrokenPipe.into()))
    }

    /// There is nothing to flush; but this is asked for while there is nothing to send, when nobody else hears of a reset.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().sender.poll_reset(cx) {
            Poll::Ready(_) => Poll::Ready(Err(ErrorKind::ConnectionReset.into())),
            Poll::Pending => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.is_shut, true) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(this.sender.send_data(Bytes::new(), true).map_err(|_| ErrorKind::BrokenPipe.into()))
    }
}
