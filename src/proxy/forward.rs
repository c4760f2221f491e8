//! Sends a permitted request to its upstream. A [`Call`] cannot be made without a [`Permit`].

use super::body::{Body, RequestBody, ResponseBody, Upload};
use super::canonical::Judged;
use super::deadline::Deadlines;
use super::exchange::Exchange;
use super::headers::{self, Forwarded, Vouched};
use super::request_id::RequestId;
use super::service::Arrival;
use super::upstream::{Lease, Pool, Upstreams};
use super::{Limits, Settings};
use crate::clock::monotonic;
use crate::policy::Permit;
use crate::reason::Reason;
use http::header;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use std::rc::Rc;
use std::sync::Arc;

/// A judged request with its body, ready to go.
pub struct Outgoing {
    pub judged: Judged,
    pub incoming: Incoming,
    pub forwarded: Forwarded,
}

/// An upstream request that has been built and not been sent yet.
pub struct Call {
    pool: Rc<Pool>,
    request: Request<RequestBody>,
    upload: Option<Rc<Upload>>,
    is_head: bool,
    exchange: Exchange,
}

/// There is no response to pass on: why, and the exchange, to be refused with it.
pub struct Unanswered {
    pub reason: Reason,
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
            return Err(Unanswered { reason: Reason::ModeMismatch, exchange });
        };
        let bytes_max = permit.route().body_bytes_max();
        if bytes_max.is_some_and(|max| outgoing.incoming.size_hint().lower() > max) {
            return Err(Unanswered { reason: Reason::BodyTooLarge, exchange });
        }
        let upload = (!outgoing.incoming.is_end_stream()).then(|| Upload::new(arrival.now.mono));
        exchange.begin_upload(upload.clone(), Arc::clone(&pool.name));
        let Outgoing { judged, incoming, forwarded } = outgoing;
        let body = match &upload {
            None => RequestBody::empty(),
            Some(upload) => RequestBody::new(incoming, Rc::clone(upload), bytes_max, settings.limits.body_idle),
        };
        let is_head = judged.method == Method::HEAD;
        let request = rebuild(judged, body, forwarded, permit, arrival, settings, pool.host.as_ref());
        Ok(Box::new(Self { pool: Rc::clone(pool), request, upload, is_head, exchange }))
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
        let Self { pool, request, upload, is_head, exchange } = *self;
        // Counted from the head, or from when the request's body last moved: a long upload is not a slow upstream.
        let deadline = || upload.as_deref().map_or(arrival.now.mono, Upload::progress) + limits.upstream_head;
        let answer = std::pin::pin!(pool.send(request, arrival.now.mono));
        let sent = deadlines.bound(answer, deadline).await.unwrap_or(Err(Reason::UpstreamTimeout));
        match sent {
            Ok((response, lease)) => accept(response, lease, exchange, &arrival.request_id, limits, is_head),
            Err(reason) => {
                // What went wrong with the request's body explains why the upstream did not answer.
                let failure = upload.as_deref().and_then(Upload::failure);
                Err(Unanswered { reason: failure.unwrap_or(reason), exchange })
            }
        }
    }
}

// === impl Unanswered ===

impl Unanswered {
    /// The refusal in the upstream's stead.
    pub fn refuse(self, request_id: &RequestId) -> Response<Body> {
        self.exchange.refuse(self.reason.into(), request_id)
    }
}

/// Rebuilds the request from what was judged.
fn rebuild(
    judged: Judged,
    body: RequestBody,
    forwarded: Forwarded,
    permit: &Permit,
    arrival: &Arrival,
    settings: &Settings,
    host: Option<&HeaderValue>,
) -> Request<RequestBody> {
    let mut headers = judged.headers;
    let vouched = Vouched {
        request_id: &arrival.request_id,
        trace: &arrival.trace,
        addr: arrival.addr,
        principal: permit.principal().map(AsRef::as_ref),
        mode: permit.mode(),
        host: &judged.host,
        version_header: settings.version_header.as_ref(),
    };
    headers::rewrite(&mut headers, &vouched, forwarded);
    headers.insert(header::HOST, host.unwrap_or(&judged.host).clone());
    if judged.takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    let mut request = Request::new(body);
    *request.method_mut() = judged.method;
    *request.uri_mut() = Uri::from(judged.target);
    *request.headers_mut() = headers;
    request
}

/// Judges the upstream's head and hands its body on.
fn accept(
    response: Response<Incoming>,
    lease: Lease,
    mut exchange: Exchange,
    request_id: &RequestId,
    limits: &Limits,
    is_head: bool,
) -> Result<Response<Body>, Unanswered> {
    let (mut head, incoming) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for it: what follows would not be HTTP.
        return Err(Unanswered { reason: Reason::UpstreamUnreachable, exchange });
    }
    headers::clean_response(&mut head.headers, request_id);
    let now = monotonic();
    exchange.answered(head.status, now);
    if is_head || is_bodiless(head.status) || incoming.is_end_stream() {
        // The library may drop such a body without polling it to its end: the record is committed now.
        exchange.complete(now);
        lease.give_back(now);
        head.headers.remove(header::TRAILER);
        return Ok(Response::from_parts(head, Body::Own(None)));
    }
    let body = ResponseBody::new(incoming, exchange, lease, limits.body_idle);
    Ok(Response::from_parts(head, Body::Upstream(Box::new(body))))
}

fn is_bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}
