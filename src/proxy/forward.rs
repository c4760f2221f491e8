//! Sends a permitted request to its upstream. Cannot be called without a [`Permit`].

use super::body::{Body, RequestBody, ResponseBody, Upload};
use super::exchange::Exchange;
use super::headers::{self, Forwarded, Vouched};
use super::request_id::RequestId;
use super::service::Arrival;
use super::upstream::{Lease, Upstreams};
use super::{Limits, canonical::Judged};
use crate::clock::monotonic;
use crate::policy::Permit;
use crate::reason::Reason;
use http::header::{self, HeaderName};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A judged request with its body, ready to go.
pub struct Outgoing<'a> {
    pub judged: Judged,
    pub incoming: Incoming,
    pub forwarded: Forwarded,
    pub arrival: &'a Arrival,
    pub version_header: Option<&'a HeaderName>,
}

/// There is no response to pass on: why, and the exchange, to be refused with it.
pub struct Unanswered {
    pub reason: Reason,
    pub exchange: Exchange,
}

// === impl Unanswered ===

impl Unanswered {
    fn new(reason: Reason, exchange: Exchange) -> Box<Self> {
        Box::new(Self { reason, exchange })
    }
}

/// Forwards, and answers with the upstream's response, whose body owns the exchange from here on.
///
/// # Errors
/// [`Unanswered`].
pub async fn forward(
    upstreams: &Upstreams,
    limits: &Limits,
    permit: Permit,
    outgoing: Outgoing<'_>,
    mut exchange: Exchange,
) -> Result<Response<Body>, Box<Unanswered>> {
    let Some(pool) = upstreams.pool(permit.upstream(), permit.mode()) else {
        return Err(Unanswered::new(Reason::ModeMismatch, exchange));
    };
    let body_bytes_max = permit.route().body_bytes_max();
    if too_long(&outgoing.incoming, body_bytes_max) {
        return Err(Unanswered::new(Reason::BodyTooLarge, exchange));
    }
    let upload = Upload::new(monotonic());
    exchange.begin_upload(Rc::clone(&upload), Arc::clone(&pool.name));
    let is_head = outgoing.judged.method == Method::HEAD;
    let request_id = outgoing.arrival.request_id.clone();
    let request = build(outgoing, &permit, pool.host.as_ref(), |incoming| {
        RequestBody::new(incoming, Rc::clone(&upload), body_bytes_max, limits.body_idle)
    });
    let sent = within(pool.send(request), &upload, limits.upstream_head).await;
    match sent {
        Ok((response, lease)) => accept(response, lease, exchange, &request_id, limits, is_head),
        // What went wrong with the request's body explains why the upstream did not answer.
        Err(reason) => Err(Unanswered::new(upload.failure().unwrap_or(reason), exchange)),
    }
}

fn too_long(incoming: &Incoming, bytes_max: Option<u64>) -> bool {
    bytes_max.is_some_and(|max| incoming.size_hint().lower() > max)
}

/// Waits for the response's head, at most `limit` after the request's body last moved.
async fn within<T>(
    answer: impl Future<Output = Result<T, Reason>>,
    upload: &Upload,
    limit: Duration,
) -> Result<T, Reason> {
    tokio::pin!(answer);
    loop {
        let deadline = upload.progress() + limit;
        match tokio::time::timeout_at(deadline.into(), &mut answer).await {
            Ok(result) => return result,
            Err(_) if upload.progress() + limit <= deadline => return Err(Reason::UpstreamTimeout),
            Err(_) => {}
        }
    }
}

/// Rebuilds the request from what was judged.
fn build(
    outgoing: Outgoing<'_>,
    permit: &Permit,
    host: Option<&HeaderValue>,
    body: impl FnOnce(Incoming) -> RequestBody,
) -> Request<RequestBody> {
    let Outgoing { judged, incoming, forwarded, arrival, version_header } = outgoing;
    let mut headers = judged.headers;
    let vouched = Vouched {
        request_id: &arrival.request_id,
        trace: &arrival.trace,
        addr: arrival.addr,
        principal: permit.principal().map(AsRef::as_ref),
        mode: permit.mode(),
        host: &judged.host,
        version_header,
    };
    headers::rewrite(&mut headers, &vouched, forwarded);
    headers.insert(header::HOST, host.unwrap_or(&judged.host).clone());
    if judged.takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    let mut request = Request::new(body(incoming));
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
) -> Result<Response<Body>, Box<Unanswered>> {
    let (mut head, incoming) = response.into_parts();
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // Nobody asked for it: what follows would not be HTTP.
        return Err(Unanswered::new(Reason::UpstreamUnreachable, exchange));
    }
    headers::clean_response(&mut head.headers, request_id);
    exchange.answered(head.status);
    if is_head || is_bodiless(head.status) || incoming.is_end_stream() {
        // The library may drop such a body without polling it to its end: the record is committed now.
        exchange.complete();
        lease.give_back();
        head.headers.remove(header::TRAILER);
        return Ok(Response::from_parts(head, Body::Own(None)));
    }
    let body = ResponseBody::new(incoming, exchange, lease, limits.body_idle);
    Ok(Response::from_parts(head, Body::Upstream(Box::new(body))))
}

fn is_bodiless(status: StatusCode) -> bool {
    status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}
