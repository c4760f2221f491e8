//! The byte stream under a connection, to a client or to an upstream.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::unconstrained;
use tokio_rustls::TlsStream;

/// Messages longer than this are written from where they lie: copying them costs more than the vectored write does.
const GATHERED_MAX: usize = 4096;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(Vec::with_capacity(GATHERED_MAX));
}

/// A socket, or TLS over one.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Boxed: its buffers and keys are many times a socket's size.
    Tls(Box<TlsStream<TcpStream>>),
}

// === impl Stream ===

impl Stream {
    /// Nothing has arrived, not even the end. Asks the kernel only when the runtime was told of an event. What arrived is
    /// lost then: such a stream is of no further use.
    pub fn is_quiet(&mut self) -> bool {
        let read = match self {
            Self::Tcp(stream) => stream.try_read(&mut [0]),
            Self::Unix(stream) => stream.try_read(&mut [0]),
            Self::Tls(stream) => return is_quiet_inside(stream),
        };
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Tells a TLS peer that nothing more comes, if the socket takes that now: an end without it looks cut off.
    pub fn say_end(&mut self) {
        let Self::Tls(stream) = self else { return };
        let TlsStream::Server(stream) = &mut **stream else { return };
        let (socket, session) = stream.get_mut();
        session.send_close_notify();
        // Whoever does not take it goes without.
        while session.wants_write() && session.write_tls(&mut Now(socket)).is_ok_and(|bytes| bytes > 0) {}
    }

    /// What was written may not have gone to the kernel yet: only a flush tells whether the peer takes it.
    pub const fn is_buffering(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Closing it from now on drops what the kernel still holds, and tells the peer by a reset. A Unix socket knows neither.
    pub fn reset_on_close(&self) {
        // Closed either way, by a reset or without one.
        _ = match self {
            Self::Tcp(stream) => stream.set_zero_linger(),
            Self::Unix(_) => Ok(()),
            Self::Tls(stream) => stream.get_ref().0.set_zero_linger(),
        };
    }
}

/// Writes what a socket takes at once.
struct Now<'a>(&'a TcpStream);

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same for what is under TLS: a session ticket that arrives late is no word of the server's, and what was decrypted and
/// not read yet is one.
fn is_quiet_inside(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut byte = [0];
    let mut buf = ReadBuf::new(&mut byte);
    // Whatever this task has done before: `Pending` is to mean that there is nothing.
    let read = unconstrained(poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, &mut buf)));
    pin!(read).poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    /// A small message, head and body, goes out with one plain `send`: cheaper for the kernel than a vectored one.
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream),
            Self::Unix(stream) => return Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => return Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > GATHERED_MAX {
            return stream.poll_write_vectored(cx, bufs);
        }
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            bufs.iter().for_each(|buf| buffer.extend_from_slice(buf));
            stream.poll_write(cx, buffer)
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
