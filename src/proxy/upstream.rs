//! This worker's own connections to the upstreams. Nothing here is shared between threads, so nothing is locked.

use super::body::RequestBody;
use super::gather::GatheringStream;
use super::{Endpoint, Limits, UpstreamSettings};
use crate::key::Mode;
use crate::policy::UpstreamId;
use crate::reason::Reason;
use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;

/// The largest response head that is read.
const RESPONSE_HEAD_MAX: usize = 64 * 1024;

/// The pools of one worker: one for each upstream and mode, so that a test key can never be given a live connection.
pub struct Upstreams {
    pools: Vec<ModePools>,
}

struct ModePools {
    live: Option<Rc<Pool>>,
    test: Option<Rc<Pool>>,
}

/// The connections to one upstream in one mode.
pub struct Pool {
    /// The upstream's name, for audit records.
    pub name: Arc<str>,
    /// Replaces the client's `Host` when set.
    pub host: Option<HeaderValue>,
    endpoints: Vec<EndpointPool>,
    next: Cell<usize>,
    in_flight: Cell<usize>,
    limits: Limits,
}

struct EndpointPool {
    endpoint: Endpoint,
    idle: RefCell<Vec<Idle>>,
}

struct Idle {
    sender: SendRequest<RequestBody>,
    since: Instant,
}

/// A connection that belongs to one exchange. Dropped: the connection is closed, because the exchange did not end cleanly.
pub struct Lease {
    sender: Option<SendRequest<RequestBody>>,
    endpoint: usize,
    slot: Slot,
}

/// A place among the requests in flight.
struct Slot(Rc<Pool>);

// === impl Upstreams ===

impl Upstreams {
    pub fn new(settings: &[UpstreamSettings], limits: &Limits) -> Self {
        Self { pools: settings.iter().map(|upstream| ModePools::new(upstream, limits)).collect() }
    }

    /// The pool of an upstream in a mode, if it has any address there.
    pub fn pool(&self, id: UpstreamId, mode: Mode) -> Option<&Rc<Pool>> {
        let pools = self.pools.get(id.0 as usize)?;
        match mode {
            Mode::Live => pools.live.as_ref(),
            Mode::Test => pools.test.as_ref(),
        }
    }

    /// Closes the connections that have been idle for longer than `limits.upstream_idle`.
    pub fn close_idle(&self, now: Instant) {
        let pools = self.pools.iter().flat_map(|pools| [&pools.live, &pools.test]).flatten();
        pools.for_each(|pool| pool.close_idle(now));
    }
}

impl ModePools {
    fn new(upstream: &UpstreamSettings, limits: &Limits) -> Self {
        let name: Arc<str> = upstream.name.as_str().into();
        let pool = |endpoints: &[Endpoint]| {
            (!endpoints.is_empty())
                .then(|| Rc::new(Pool::new(Arc::clone(&name), upstream.host.clone(), endpoints, limits)))
        };
        Self { live: pool(&upstream.live), test: pool(&upstream.test) }
    }
}

// === impl Pool ===

impl Pool {
    fn new(name: Arc<str>, host: Option<HeaderValue>, endpoints: &[Endpoint], limits: &Limits) -> Self {
        let endpoints = endpoints
            .iter()
            .map(|endpoint| EndpointPool { endpoint: endpoint.clone(), idle: RefCell::default() })
            .collect();
        Self { name, host, endpoints, next: Cell::new(0), in_flight: Cell::new(0), limits: limits.clone() }
    }

    /// Sends `request` on an idle connection or a new one, and waits for the response's head. `now` is when the request
    /// arrived.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] at the limit of requests in flight, [`Reason::UpstreamUnreachable`] otherwise. A request is
    /// sent again only when the library hands it back unsent.
    pub async fn send(
        self: &Rc<Self>,
        request: Request<RequestBody>,
        now: Instant,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let slot = Slot::take(self).ok_or(Reason::Overloaded)?;
        let start = self.next.get();
        self.next.set(start.wrapping_add(1));
        let unsent = match self.take_idle(start, now) {
            None => request,
            Some((endpoint, mut sender)) => match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Lease { sender: Some(sender), endpoint, slot })),
                Err(mut error) => error.take_message().ok_or(Reason::UpstreamUnreachable)?,
            },
        };
        // Boxed: connecting is rare, and its state is large.
        Box::pin(self.send_on_new(unsent, start, slot)).await
    }

    async fn send_on_new(
        &self,
        request: Request<RequestBody>,
        start: usize,
        slot: Slot,
    ) -> Result<(Response<Incoming>, Lease), Reason> {
        let (endpoint, mut sender) = self.connect(start).await?;
        let response = sender.try_send_request(request).await.map_err(|_| Reason::UpstreamUnreachable)?;
        Ok((response, Lease { sender: Some(sender), endpoint, slot }))
    }

    /// The most recently used connection of the first endpoint that has one ready, beginning at `start`.
    fn take_idle(&self, start: usize, now: Instant) -> Option<(usize, SendRequest<RequestBody>)> {
        self.order(start).find_map(|index| {
            let endpoint = self.endpoints.get(index)?;
            endpoint.take_idle(now, &self.limits).map(|sender| (index, sender))
        })
    }

    /// Connects to the first endpoint that accepts, beginning at `start`.
    async fn connect(&self, start: usize) -> Result<(usize, SendRequest<RequestBody>), Reason> {
        for index in self.order(start) {
            let Some(endpoint) = self.endpoints.get(index) else { continue };
            match endpoint.connect(&self.limits).await {
                Ok(sender) => return Ok((index, sender)),
                Err(error) => tracing::debug!(
                    upstream = &*self.name,
                    host = endpoint.endpoint.host,
                    port = endpoint.endpoint.port,
                    error,
                    "cannot connect"
                ),
            }
        }
        Err(Reason::UpstreamUnreachable)
    }

    fn order(&self, start: usize) -> impl Iterator<Item = usize> + use<> {
        let len = self.endpoints.len();
        (0..len).map(move |offset| start.wrapping_add(offset) % len)
    }

    fn close_idle(&self, now: Instant) {
        for endpoint in &self.endpoints {
            endpoint.idle.borrow_mut().retain(|idle| idle.is_fresh(now, &self.limits));
        }
    }
}

impl EndpointPool {
    fn take_idle(&self, now: Instant, limits: &Limits) -> Option<SendRequest<RequestBody>> {
        let mut idle = self.idle.borrow_mut();
        while let Some(position) = idle.iter().rposition(|idle| idle.sender.is_ready() || idle.sender.is_closed()) {
            let candidate = idle.swap_remove(position);
            if !candidate.sender.is_closed() && candidate.is_fresh(now, limits) {
                return Some(candidate.sender);
            }
        }
        None
    }

    async fn connect(&self, limits: &Limits) -> Result<SendRequest<RequestBody>, String> {
        let address = (self.endpoint.host.as_str(), self.endpoint.port);
        let connected = tokio::time::timeout(limits.upstream_connect, TcpStream::connect(address)).await;
        let stream = connected.map_err(|_| "timed out".to_owned())?.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let handshake = http1::Builder::new()
            .max_buf_size(RESPONSE_HEAD_MAX)
            .handshake(TokioIo::new(GatheringStream(stream)))
            .await;
        let (sender, connection) = handshake.map_err(|error| error.to_string())?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "upstream connection ended");
            }
        });
        Ok(sender)
    }
}

impl Idle {
    fn is_fresh(&self, now: Instant, limits: &Limits) -> bool {
        now.saturating_duration_since(self.since) < limits.upstream_idle
    }
}

// === impl Lease ===

impl Lease {
    /// The exchange ended cleanly at `now`: the connection waits for another.
    pub fn give_back(mut self, now: Instant) {
        let Some(sender) = self.sender.take().filter(|sender| !sender.is_closed()) else { return };
        if let Some(endpoint) = self.slot.0.endpoints.get(self.endpoint) {
            endpoint.idle.borrow_mut().push(Idle { sender, since: now });
        }
    }
}

// === impl Slot ===

impl Slot {
    fn take(pool: &Rc<Pool>) -> Option<Self> {
        let in_flight = pool.in_flight.get();
        (in_flight < pool.limits.upstream_requests_max).then(|| {
            pool.in_flight.set(in_flight + 1);
            Self(Rc::clone(pool))
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}
