//! Makes a shared connection and moves its frames, in a task of its own: whoever asked for it first may go away.

use super::super::connect::{Connected, connect};
use super::super::conversation::Connection as OwnConnection;
use super::super::endpoint::EndpointPool;
use super::vitals::{Vitals, Watched};
use super::{Connection, STREAMS_MAX, State};
use crate::proxy::Endpoint;
use crate::proxy::transport::Stream;
use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// How much an upstream may send on a stream, before the client takes it.
const STREAM_WINDOW: u32 = 64 * 1024;
/// As much on all streams at the same time: what one client does not take is no reason for another to wait.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS_MAX as u32;
/// How much of a request waits in the library for the socket.
const SEND_BUFFER: usize = 64 * 1024;
const FRAME_MAX: u32 = 16 * 1024;
/// The largest head that is read, as of HTTP/1.1.
const HEAD_MAX: u32 = 64 * 1024;
/// Streams that were reset here and whose rest may still arrive.
const RESETS_REMEMBERED: usize = 1000;

type Http2 = h2::client::Connection<Watched, Bytes>;

/// Connects, and serves the connection until it ends.
pub async fn drive(endpoint: Rc<EndpointPool>, connection: Rc<Connection>) {
    let opened = tokio::time::timeout(endpoint.connect_max(), open(endpoint.endpoint(), &connection.vitals)).await;
    let (sender, mut http2) = match opened.unwrap_or_else(|_| Err(io::Error::other("timed out"))) {
        Ok(Opened::Http2(sender, http2)) => (sender, http2),
        Ok(Opened::Http1(stream)) => {
            endpoint.note_agreement(None);
            return connection.set(State::Http1(Some(OwnConnection::new(stream))));
        }
        Err(error) => {
            let words = error.to_string();
            endpoint.note_failure(&words);
            return connection.set(State::Failed(words));
        }
    };
    endpoint.note_success();
    endpoint.note_agreement(Some(sender.current_max_send_streams().min(STREAMS_MAX)));
    connection.set(State::Open { sender, pings: http2.ping_pong() });
    let vitals = Rc::clone(&connection.vitals);
    // Whoever has a place keeps the connection; without any, it closes.
    let known = Rc::downgrade(&connection);
    drop((connection, endpoint));
    let why = poll_fn(|cx| poll_until_end(&mut http2, &vitals, cx)).await;
    tracing::debug!(why, "a connection to an upstream has ended");
    // Its streams learn of the end before anybody is told that there is no place.
    drop(http2);
    if let Some(connection) = known.upgrade() {
        connection.set(State::Closed);
    }
}

enum Opened {
    Http1(Stream),
    Http2(SendRequest<Bytes>, Box<Http2>),
}

/// Connects, and waits for the upstream's first words.
async fn open(endpoint: &Endpoint, vitals: &Rc<Vitals>) -> io::Result<Opened> {
    let stream = match connect(endpoint, endpoint.protocol).await? {
        Connected::Http1(stream) => return Ok(Opened::Http1(stream)),
        Connected::Http2(stream) => stream,
    };
    let handshake = builder().handshake(Watched::new(stream, Rc::clone(vitals))).await;
    let (sender, http2) = handshake.map_err(|error| explain(endpoint, vitals, error))?;
    let mut http2 = Box::new(http2);
    // None may be sent until the upstream has said how many.
    let greeted = poll_fn(|cx| match Pin::new(&mut http2).poll(cx) {
        Poll::Ready(result) => Poll::Ready(result.and(Err(h2::Reason::NO_ERROR.into()))),
        Poll::Pending if sender.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    });
    greeted.await.map_err(|error| explain(endpoint, vitals, error))?;
    Ok(Opened::Http2(sender, http2))
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(0)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEAD_MAX)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_reset_streams(RESETS_REMEMBERED)
        // Clients that go away are no reason to break off what others have on the same connection.
        .max_local_error_reset_streams(None);
    builder
}

/// What is wrong with an upstream that breaks off before it has said how many requests it takes.
fn explain(endpoint: &Endpoint, vitals: &Vitals, error: h2::Error) -> io::Error {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    if let (Some(secured), Some(error)) = (&endpoint.secured, vitals.take_failure()) {
        return secured.explain(&error);
    }
    if error.is_io() {
        let error = error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
        return match &endpoint.secured {
            Some(secured) => secured.explain(&error),
            None if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof) => {
                io::Error::other("the server closed the connection; does it speak HTTP/2?")
            }
            None => error,
        };
    }
    io::Error::other(format!("what answers there does not speak HTTP/2 ({error})"))
}

fn poll_until_end(http2: &mut Http2, vitals: &Vitals, cx: &mut Context<'_>) -> Poll<String> {
    vitals.set_driver(cx.waker());
    if let Poll::Ready(ended) = Pin::new(http2).poll(cx) {
        return Poll::Ready(ended.err().map_or_else(|| "it was closed".to_owned(), |error| error.to_string()));
    }
    vitals.condemned().map_or(Poll::Pending, |why| Poll::Ready(why.to_owned()))
}
