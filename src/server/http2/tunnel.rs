//! A tunnel on a stream of its own (RFC 8441): its frames' content is what the tunnel carries.

use super::stream::{Ended, Stall, poll_room};
use super::{Meter, Shared, stream};
use crate::proxy::body::Body;
use crate::proxy::in_flight::InFlight;
use crate::proxy::incoming::Incoming;
use crate::proxy::tunnel::{Broken, Tunnel};
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::Response;
use std::io::{self, ErrorKind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Answers, and carries until the tunnel ends.
///
/// # Errors
/// [`Ended`]. Whatever was broken off is told as a reset (RFC 8441, section 5).
pub async fn carry(
    response: Response<Body>,
    mut tunnel: Box<Tunnel>,
    respond: &mut SendResponse<Bytes>,
    in_flight: &InFlight,
    shared: &Shared,
) -> Result<(), Ended> {
    // Who asked by HTTP/2 has sent something by it.
    let Some(received) = tunnel.take_client() else { return Err(Ended::Reset(Reason::INTERNAL_ERROR)) };
    let (mut head, _) = response.into_parts();
    stream::complete(&mut head);
    let sender = respond.send_response(Response::from_parts(head, ()), false).map_err(|_| Ended::Gone)?;
    let mut client = StreamIo {
        received,
        piece: Bytes::new(),
        sender,
        meter: Rc::clone(&shared.meter),
        stall: Stall::new(shared.write_stall),
        has_stalled: false,
        is_shut: false,
    };
    let result = {
        let mut carrying = pin!(tunnel.run(&mut client));
        std::future::poll_fn(|cx| {
            in_flight.set_waker(cx.waker());
            carrying.as_mut().poll(cx)
        })
        .await
    };
    match result {
        Ok(()) => Ok(()),
        Err(Broken(_)) if client.has_stalled => Err(Ended::Stalled),
        Err(Broken(_)) => Err(Ended::Reset(Reason::CANCEL)),
    }
}

/// What one stream carries, as bytes.
struct StreamIo {
    received: Incoming,
    /// Of the last frame, what was not read yet.
    piece: Bytes,
    sender: SendStream<Bytes>,
    meter: Rc<Meter>,
    stall: Stall,
    /// The client left its window shut for too long.
    has_stalled: bool,
    is_shut: bool,
}

// === impl StreamIo ===

impl AsyncRead for StreamIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.piece.is_empty() {
            let frame = ready!(this.received.poll_frame(cx));
            match frame.map(|frame| frame.map(|frame| frame.into_data())) {
                Some(Ok(Ok(data))) => this.piece = data,
                // There is no place for trailers: they end it as its end does.
                Some(Ok(Err(_))) | None => return Poll::Ready(Ok(())),
                Some(Err(reason)) => {
                    return Poll::Ready(Err(io::Error::new(ErrorKind::ConnectionReset, reason.as_str())));
                }
            }
        }
        buf.put_slice(&this.piece.split_to(buf.remaining().min(this.piece.len())));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match poll_room(&mut this.sender, bytes.len(), cx) {
            Err(_) => Poll::Ready(Err(ErrorKind::BrokenPipe.into())),
            Ok(Poll::Pending) => {
                ready!(this.stall.poll_expired(cx));
                this.has_stalled = true;
                Poll::Ready(Err(ErrorKind::TimedOut.into()))
            }
            Ok(Poll::Ready(room)) => {
                this.stall.end();
                let part = bytes.get(..room).unwrap_or(bytes);
                let sent = this.sender.send_data(Bytes::copy_from_slice(part), false);
                this.meter.sent_data();
                Poll::Ready(sent.map(|()| part.len()).map_err(|_| ErrorKind::BrokenPipe.into()))
            }
        }
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
