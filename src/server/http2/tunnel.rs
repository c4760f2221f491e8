//! A tunnel on a stream of its own (RFC 8441): its frames' content is what the tunnel carries.

use super::stream::{Ended, Stall};
use super::{Meter, Shared, stream};
use crate::proxy::body::Body;
use crate::proxy::in_flight::InFlight;
use crate::proxy::incoming::Incoming;
use crate::proxy::stream_io::StreamIo;
use crate::proxy::tunnel::{Broken, Tunnel};
use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
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
    let Some(received) = tunnel.take_client().and_then(Incoming::into_stream) else {
        return Err(Ended::Reset(Reason::INTERNAL_ERROR));
    };
    let (mut head, _) = response.into_parts();
    stream::complete(&mut head);
    let sender = respond.send_response(Response::from_parts(head, ()), false).map_err(|_| Ended::Gone)?;
    let mut client = Client {
        stream: StreamIo::new(received, sender),
        meter: Rc::clone(&shared.meter),
        stall: Stall::new(shared.write_stall),
        has_stalled: false,
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

/// What one stream carries, as bytes, for as long as its client takes them.
struct Client {
    stream: StreamIo,
    meter: Rc<Meter>,
    stall: Stall,
    /// The client left its window shut for too long.
    has_stalled: bool,
}

// === impl Client ===

impl AsyncRead for Client {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Client {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Poll::Ready(sent) = Pin::new(&mut this.stream).poll_write(cx, bytes) {
            this.stall.end();
            this.meter.sent_data();
            return Poll::Ready(sent);
        }
        ready!(this.stall.poll_expired(cx));
        this.has_stalled = true;
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
