//! One request and its response on a stream of a shared connection. Both bodies move at once.

use super::super::conversation::{Failure, INTERIM_MAX};
use super::super::sending::Sending;
use super::tunnel::Upgraded;
use super::upload::{Stopped, Upload};
use super::{Place, request};
use crate::proxy::body::BodyError;
use crate::proxy::h1::{self, Malformed};
use crate::proxy::stream_io::StreamIo;
use crate::proxy::upgrade::SEC_WEBSOCKET_ACCEPT;
use crate::reason::Reason;
use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Response, StatusCode, Version};
use http_body::Frame;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

/// A response whose body is still on its way, and possibly the request's. Dropped before both have ended, it resets its stream,
/// and no other.
pub struct Conversation {
    body: RecvStream,
    /// What `Content-Length` says is still to come; the library ends a stream that says something else by its frames.
    left: Option<u64>,
    is_data_done: bool,
    /// `None` once the request is sent, or cannot be.
    upload: Option<Upload>,
    /// What goes up once the stream is a tunnel.
    tunnel: Option<SendStream<Bytes>>,
    place: Place,
}

/// Sends on a connection and waits for the head of the final response. What can be sent again is left in `sending`.
///
/// # Errors
/// [`Failure`]. The stream is reset then.
pub async fn begin(
    place: Place,
    sending: &mut Sending,
    to_head: bool,
) -> Result<(Response<()>, Conversation), Failure> {
    let mut request = request::read(sending.head(), place.scheme())?;
    let asks_tunnel = sending.asks_websocket() && place.takes_connect();
    let proof = asks_tunnel.then(|| request::connect(&mut request)).flatten();
    let body = sending.take_body();
    let has_body = body.is_some();
    let (mut response, stream) = match place.send(request, !has_body && proof.is_none()) {
        Ok(sent) => sent,
        Err(error) => {
            sending.restore(body);
            return Err(Failure::Unsent(error));
        }
    };
    let (mut upload, tunnel) = match body {
        Some(body) => (Some(Upload::new(stream, body, place.vitals())), None),
        None => (None, proof.map(|proof| (proof, stream))),
    };
    let mut interim = 0;
    let head = poll_fn(|cx| {
        send_on(&mut upload, cx).map_err(Failure::Body)?;
        poll_head(&mut response, sending, &mut interim, cx)
    });
    let response = match head.await {
        Ok(response) => response,
        Err(failure) => {
            place.judge(&failure);
            match upload.and_then(Upload::into_untouched) {
                Some(body) => sending.restore(Some(body)),
                None if has_body => sending.touch(),
                None => {}
            }
            return Err(failure);
        }
    };
    match tunnel {
        Some((proof, stream)) if response.status().is_success() => Ok(agree(response, proof, stream, place)),
        refused => {
            // It is sent nothing more. Where it has gone, its answer counts.
            refused.into_iter().for_each(|(_, mut stream)| _ = stream.send_data(Bytes::new(), true));
            accept(response, upload, place, to_head).await
        }
    }
}

/// Makes of a good answer to an extended CONNECT what HTTP/1.1 says instead: from here on there is a tunnel.
fn agree(
    response: Response<RecvStream>,
    proof: HeaderValue,
    stream: SendStream<Bytes>,
    place: Place,
) -> (Response<()>, Conversation) {
    let (mut head, body) = response.into_parts();
    (head.version, head.status) = (Version::HTTP_11, StatusCode::SWITCHING_PROTOCOLS);
    head.headers.remove(CONTENT_LENGTH);
    head.headers.insert(SEC_WEBSOCKET_ACCEPT, proof);
    let tunnel = Some(stream);
    let conversation = Conversation { body, left: None, is_data_done: false, upload: None, tunnel, place };
    (Response::from_parts(head, ()), conversation)
}

/// Takes a response whose head is here. One that has no body by definition is whole when its stream has ended.
async fn accept(
    response: Response<RecvStream>,
    upload: Option<Upload>,
    place: Place,
    to_head: bool,
) -> Result<(Response<()>, Conversation), Failure> {
    let (mut head, body) = response.into_parts();
    head.version = Version::HTTP_11;
    let length = h1::one_length(&mut head.headers).inspect_err(|_| place.retire())?;
    let is_bodiless = to_head || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let left = if is_bodiless { Some(0) } else { length };
    let mut conversation = Conversation { body, left, is_data_done: false, upload, tunnel: None, place };
    while is_bodiless && !conversation.is_done() {
        let frame = poll_fn(|cx| {
            send_on(&mut conversation.upload, cx).map_err(Failure::Body)?;
            conversation.poll_piece(cx)
        });
        match frame.await.inspect_err(|failure| conversation.place.judge(failure))? {
            Some(frame) if frame.is_data() => {
                conversation.place.retire();
                return Err(Malformed("a body where there can be none").into());
            }
            Some(_) | None => {}
        }
    }
    Ok((Response::from_parts(head, ()), conversation))
}

/// Sends what can be sent of a request's body.
fn send_on(upload: &mut Option<Upload>, cx: &mut Context<'_>) -> Result<(), BodyError> {
    let Some(sending) = upload else { return Ok(()) };
    match sending.poll(cx) {
        Poll::Pending => Ok(()),
        // Nobody may read the rest: an upstream may have answered, and the answer counts.
        Poll::Ready(Ok(()) | Err(Stopped::Gone)) => {
            *upload = None;
            Ok(())
        }
        Poll::Ready(Err(Stopped::Body(error))) => Err(error),
    }
}

fn poll_head(
    response: &mut ResponseFuture,
    sending: &Sending,
    interim: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Response<RecvStream>, Failure>> {
    while let Poll::Ready(Some(passed)) = response.poll_informational(cx) {
        let passed = passed?;
        *interim += 1;
        // There are no other protocols to switch to (RFC 9113, section 8.6).
        if passed.status() == StatusCode::SWITCHING_PROTOCOLS || *interim > INTERIM_MAX {
            return Poll::Ready(Err(Malformed("no final response").into()));
        }
        sending.pass_interim(passed);
    }
    std::pin::Pin::new(response).poll(cx).map_err(Failure::Http2)
}

// === impl Conversation ===

impl Conversation {
    /// The whole rest of the body, if it is known to be nothing.
    pub fn take_whole(&self) -> Option<Bytes> {
        self.is_done().then(Bytes::new)
    }

    /// The next part of the body; `None` at its end.
    ///
    /// # Errors
    /// [`BodyError`], when either body cannot go on.
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Err(error) = send_on(&mut self.upload, cx) {
            return Poll::Ready(Some(Err(error)));
        }
        let frame = ready!(self.poll_piece(cx)).map_err(|failure| {
            tracing::debug!(%failure, "a response broke off");
            self.place.judge(&failure);
            BodyError(Reason::UpstreamAborted)
        });
        Poll::Ready(frame.transpose())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Failure>> {
        while !self.is_data_done {
            match ready!(self.body.poll_data(cx)) {
                Some(data) => {
                    let data = data?;
                    // Asked for means that there is room for it: the upstream may send as much again.
                    _ = self.body.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(Frame::data(data))));
                    }
                }
                None => self.is_data_done = true,
            }
        }
        Poll::Ready(Ok(ready!(self.body.poll_trailers(cx))?.map(Frame::trailers)))
    }

    /// The stream itself, if it has become a tunnel.
    pub fn into_upgraded(self) -> Option<Upgraded> {
        self.tunnel.map(|sender| Upgraded::new(StreamIo::new(self.body, sender), self.place))
    }

    /// Nothing more of the body is to come.
    pub fn is_done(&self) -> bool {
        self.body.is_end_stream()
    }

    pub fn exact_len(&self) -> Option<u64> {
        if self.is_done() { Some(0) } else { self.left }
    }
}
