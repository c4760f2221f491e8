//! Sends a permitted request to its upstream. A [`Call`] cannot be made without a [`Permit`].

use super::body::{Body, RequestBody, ResponseBody, Upload};
use super::canonical::Judged;
use super::deadline::Deadlines;
use super::exchange::Exchange;
use super::headers::{self, Forwarded, Vouched};
use super::incoming::Incoming;
use super::respond::Refusal;
use super::service::Arrival;
use super::tunnel::Tunnel;
use super::upgrade::Upgrade;
use super::upstream::answer::Answer;
use super::upstream::sending::Sending;
use super::upstream::{Pool, Upstreams};
use super::{Limits, Settings};
use crate::clock::monotonic;
use crate::policy::Permit;
use crate::reason::Reason;
use http::header;
use http::{HeaderValue, Method, Response, StatusCode, Version};
use std::rc::Rc;
use std::sync::Arc;

/// Bytes that the head of most requests fits in.
const HEAD_USUAL: usize = 1024;

/// A judged request with its body, ready to go.
pub struct Outgoing {
    pub judged: Judged,
    pub incoming: Incoming,
    pub forwarded: Forwarded,
}

/// An upstream request that has been built and not been sent yet.
pub struct Call {
    pool: Rc<Pool>,
    sending: Sending,
    upload: Option<Rc<Upload>>,
    upgrade: Option<Rc<Upgrade>>,
    /// What the client sends on its stream once the connection is upgraded.
    client: Option<Incoming>,
    is_head: bool,
    /// The client takes trailers of those names alone that the response's head announces.
    announces_grpc: bool,
    exchange: Exchange,
}

/// There is no response to pass on: why, and the exchange, to be refused with it.
pub struct Unanswered {
    pub refusal: Refusal,
    pub exchange: Exchange,
}

// === impl Call ===

impl Call {
    /// Builds the upstream request that `permit` allows.
    ///
    /// # Errors
    /// [`Unanswered`], when the upstream has no such mode or the body is longer than the route allows.
    pub fn new(
        upstreams: &Upstreams,
        settings: &Settings,
        permit: &Permit,
        outgoing: Outgoing,
        arrival: &Arrival,
        mut exchange: Exchange,
    ) -> Result<Box<Self>, Unanswered> {
        let Some(pool) = upstreams.pool(permit.upstream(), permit.mode()) else {
            return Err(Unanswered { refusal: Reason::ModeMismatch.into(), exchange });
        };
        let bytes_max = permit.route().body_bytes_max();
        if bytes_max.is_some_and(|max| outgoing.incoming.exact_len().is_some_and(|length| length > max)) {
            return Err(Unanswered { refusal: Reason::BodyTooLarge.into(), exchange });
        }
        let Outgoing { judged, incoming, forwarded } = outgoing;
        let has_body = !incoming.is_end_stream();
        let upgrade = judged.wanted.as_ref().and_then(|wanted| {
            let is_allowed = |protocol: &str| permit.route().upgrades_to(protocol);
            Upgrade::choose(wanted, &judged.method, has_body, is_allowed).map(Rc::new)
        });
        let upload = (has_body || upgrade.is_some()).then(|| Upload::new(arrival.now.mono));
        exchange.begin_upload(upload.clone(), Arc::clone(&pool.name));
        let framing = if upgrade.is_some() { Framing::Unsaid } else { Framing::of(&judged, &incoming) };
        let upstream = Towards { settings, host: pool.host.as_ref(), upgrade: upgrade.as_deref() };
        let head = write_head(&judged, framing, &forwarded, permit, arrival, &upstream);
        let interim = incoming.interim().cloned();
        let (body, client) = match &upload {
            Some(upload) if upgrade.is_none() => {
                let trailers = judged.trailers(permit.route().trailers());
                let idle_max = settings.limits.body_idle;
                (Some(RequestBody::new(incoming, Rc::clone(upload), bytes_max, trailers, idle_max)), None)
            }
            Some(_) => (None, Some(incoming)),
            None => (None, None),
        };
        let sending = Sending::new(head, body, framing == Framing::Chunked).asking(upgrade.clone(), interim);
        let is_head = judged.method == Method::HEAD;
        let announces_grpc = judged.takes_trailers && judged.version <= Version::HTTP_11;
        let pool = Rc::clone(pool);
        Ok(Box::new(Self { pool, sending, upload, upgrade, client, is_head, announces_grpc, exchange }))
    }

    /// Sends it, and answers with the upstream's response, whose body owns the exchange from here on.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub async fn run(
        self: Box<Self>,
        limits: &Limits,
        deadlines: &Rc<Deadlines>,
        arrival: &Arrival,
    ) -> Result<Response<Body>, Unanswered> {
        let Self { pool, sending, upload, upgrade, client, is_head, announces_grpc, exchange } = *self;
        // Counted from the head, or from when the request's body last moved: a long upload is not a slow upstream.
        let deadline = || upload.as_deref().map_or(arrival.now.mono, Upload::progress) + limits.upstream_head;
        let answer = std::pin::pin!(pool.send(sending, is_head, arrival.now.mono));
        let answered = exchange.in_flight().unless_cut(deadlines.bound(answer, deadline)).await;
        let sent = match answered {
            Ok(sent) => sent.unwrap_or(Err(Reason::UpstreamTimeout)),
            Err(refusal) => return Err(Unanswered { refusal, exchange }),
        };
        match sent {
            Ok((mut response, conversation)) => {
                headers::clean_response(response.headers_mut(), &arrival.request_id);
                if let Some((upgrade, upload)) = upgrade.zip(upload) {
                    return change(response, conversation, Change { upgrade, upload, client, exchange }, limits);
                }
                if announces_grpc {
                    headers::announce_grpc(response.headers_mut());
                }
                Ok(accept(response, conversation, exchange, limits))
            }
            Err(reason) => {
                // What went wrong with the request's body explains why the upstream did not answer.
                let failure = upload.as_deref().and_then(Upload::failure);
                Err(Unanswered { refusal: failure.unwrap_or(reason).into(), exchange })
            }
        }
    }
}

// === impl Unanswered ===

impl Unanswered {
    /// The refusal in the upstream's stead.
    pub fn refuse(self, arrival: &Arrival) -> Response<Body> {
        self.exchange.refuse(self.refusal, arrival)
    }
}

/// How a request's body is told from what follows it (RFC 9112, section 6.2).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    /// There is no body, and nobody said so.
    Unsaid,
    Length(u64),
    Chunked,
}

// === impl Framing ===

impl Framing {
    fn of(judged: &Judged, incoming: &Incoming) -> Self {
        match incoming.exact_len() {
            Some(0) if !judged.headers.contains_key(header::CONTENT_LENGTH) => Self::Unsaid,
            Some(length) => Self::Length(length),
            None => Self::Chunked,
        }
    }
}

/// What a head depends on besides the request.
struct Towards<'a> {
    settings: &'a Settings,
    /// Replaces the client's `Host` when set.
    host: Option<&'a HeaderValue>,
    upgrade: Option<&'a Upgrade>,
}

/// Writes the request's head anew, from what was judged.
fn write_head(
    judged: &Judged,
    framing: Framing,
    forwarded: &Forwarded,
    permit: &Permit,
    arrival: &Arrival,
    upstream: &Towards<'_>,
) -> Vec<u8> {
    let vouched = Vouched {
        request_id: &arrival.request_id,
        trace: &arrival.trace,
        addr: arrival.addr,
        scheme: arrival.scheme,
        principal: permit.principal().map(AsRef::as_ref),
        mode: permit.mode(),
        host: &judged.host,
        version_header: upstream.settings.version_header.as_ref(),
    };
    let mut head = Vec::with_capacity(HEAD_USUAL);
    for part in [judged.method.as_str(), " ", judged.target.as_str(), " HTTP/1.1\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    headers::push(&mut head, "host: ", upstream.host.unwrap_or(&judged.host).as_bytes());
    headers::write(&mut head, &judged.headers, &vouched, forwarded);
    if let Some(upgrade) = upstream.upgrade {
        upgrade.write(&mut head);
    } else if judged.takes_trailers {
        headers::push(&mut head, "te: ", b"trailers");
        headers::push(&mut head, "connection: ", b"te");
    }
    match framing {
        Framing::Unsaid => {}
        Framing::Length(length) => headers::push_length(&mut head, length),
        Framing::Chunked => {
            headers::push(&mut head, "transfer-encoding: ", b"chunked");
            for name in judged.announced(&judged.trailers(permit.route().trailers())) {
                headers::push(&mut head, "trailer: ", name.as_str().as_bytes());
            }
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// An upgrade that was asked for.
struct Change {
    upgrade: Rc<Upgrade>,
    upload: Rc<Upload>,
    client: Option<Incoming>,
    exchange: Exchange,
}

/// Hands the connection over if the upstream has agreed, or its ordinary answer.
///
/// # Errors
/// [`Unanswered`], where a good answer to an extended CONNECT would be taken for the tunnel.
fn change(
    mut response: Response<()>,
    conversation: Answer,
    change: Change,
    limits: &Limits,
) -> Result<Response<Body>, Unanswered> {
    let Change { upgrade, upload, client, mut exchange } = change;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        if upgrade.is_by_connect() && response.status().is_success() {
            return Err(Unanswered { refusal: Reason::UpstreamUnreachable.into(), exchange });
        }
        return Ok(accept(response, conversation, exchange, limits));
    }
    // Only a connection of its own comes to speak something else.
    let Some(upgraded) = conversation.into_upgraded() else {
        return Err(Unanswered { refusal: Reason::UpstreamUnreachable.into(), exchange });
    };
    upgrade.answer(&mut response);
    exchange.answered(response.status(), monotonic());
    exchange.in_flight().begin_answer();
    let tunnel = Tunnel::new(upgraded, client, exchange, upload, limits.tunnel_idle);
    Ok(response.map(|()| Body::Tunnel(tunnel)))
}

/// Judges the upstream's head and hands its body on.
fn accept(
    mut response: Response<()>,
    mut conversation: Answer,
    mut exchange: Exchange,
    limits: &Limits,
) -> Response<Body> {
    let now = monotonic();
    exchange.answered(response.status(), now);
    let Some(whole) = conversation.take_whole() else {
        exchange.in_flight().begin_answer();
        let body = ResponseBody::new(conversation, exchange, limits.body_idle);
        return response.map(|()| Body::Upstream(Box::new(body)));
    };
    // It goes out in one piece: the record is committed before that.
    exchange.add_bytes_out(whole.len());
    exchange.complete(now);
    conversation.give_back(now);
    response.headers_mut().remove(header::TRAILER);
    response.map(|()| Body::Own((!whole.is_empty()).then_some(whole)))
}
