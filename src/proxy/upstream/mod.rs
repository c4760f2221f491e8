//! This worker's own connections to the upstreams. Nothing here is shared between threads, so nothing is locked.

pub mod conversation;
pub mod sending;

use super::{Endpoint, Limits, UpstreamSettings};
use crate::clock::Instant;
use crate::key::Mode;
use crate::policy::UpstreamId;
use crate::proxy::transport::Stream;
use crate::reason::Reason;
use conversation::{Connection, Conversation, Failure};
use http::{HeaderValue, Response};
use sending::Sending;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use tokio::net::TcpStream;

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
    connection: Connection,
    since: Instant,
}

/// A connection that belongs to one exchange. Dropped: the connection is closed, because the exchange did not end cleanly.
pub struct Lease {
    connection: Connection,
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

    /// Sends a request on an idle connection or a new one, and waits for the response's head. `to_head` says that it is a
    /// HEAD, `now` is when it arrived.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] at the limit of requests in flight, [`Reason::UpstreamUnreachable`] otherwise, or why the
    /// request's body failed. A request is sent again only when not a byte of it was sent.
    pub async fn send(
        self: &Rc<Self>,
        mut sending: Sending,
        to_head: bool,
        now: Instant,
    ) -> Result<(Response<()>, Conversation), Reason> {
        let slot = Slot::take(self).ok_or(Reason::Overloaded)?;
        let start = self.next.get();
        self.next.set(start.wrapping_add(1));
        let slot = match self.take_idle(start, now) {
            None => slot,
            Some((endpoint, connection)) => {
                let lease = Lease { connection, endpoint, slot };
                match conversation::begin(lease, &mut sending, to_head).await {
                    Ok(begun) => return Ok(begun),
                    Err(Failure::Io(_) | Failure::Malformed(_)) if sending.is_untouched() => {
                        Slot::take(self).ok_or(Reason::Overloaded)?
                    }
                    Err(failure) => return Err(self.give_up(&failure)),
                }
            }
        };
        // Boxed: connecting is rare, and its state is large.
        Box::pin(self.send_on_new(sending, to_head, start, slot)).await
    }

    async fn send_on_new(
        &self,
        mut sending: Sending,
        to_head: bool,
        start: usize,
        slot: Slot,
    ) -> Result<(Response<()>, Conversation), Reason> {
        let (endpoint, connection) = self.connect(start).await?;
        let lease = Lease { connection, endpoint, slot };
        conversation::begin(lease, &mut sending, to_head).await.map_err(|failure| self.give_up(&failure))
    }

    fn give_up(&self, failure: &Failure) -> Reason {
        tracing::debug!(upstream = &*self.name, %failure, "no response");
        match failure {
            Failure::Io(_) | Failure::Malformed(_) => Reason::UpstreamUnreachable,
            Failure::Body(error) => error.0,
        }
    }

    /// The most recently used connection of the first endpoint that has one, beginning at `start`.
    fn take_idle(&self, start: usize, now: Instant) -> Option<(usize, Connection)> {
        self.order(start).find_map(|index| {
            let endpoint = self.endpoints.get(index)?;
            endpoint.take_idle(now, &self.limits).map(|connection| (index, connection))
        })
    }

    /// Connects to the first endpoint that accepts, beginning at `start`.
    async fn connect(&self, start: usize) -> Result<(usize, Connection), Reason> {
        for index in self.order(start) {
            let Some(endpoint) = self.endpoints.get(index) else { continue };
            match endpoint.connect(&self.limits).await {
                Ok(connection) => return Ok((index, connection)),
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
            endpoint.idle.borrow_mut().retain(|idle| idle.is_usable(now, &self.limits));
        }
    }
}

impl EndpointPool {
    fn take_idle(&self, now: Instant, limits: &Limits) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop()).find(|idle| idle.is_usable(now, limits)).map(|idle| idle.connection)
    }

    async fn connect(&self, limits: &Limits) -> Result<Connection, String> {
        let address = (self.endpoint.host.as_str(), self.endpoint.port);
        let connected = tokio::time::timeout(limits.upstream_connect, TcpStream::connect(address)).await;
        let stream = connected.map_err(|_| "timed out".to_owned())?.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Connection::new(Stream::Tcp(stream)))
    }
}

impl Idle {
    fn is_usable(&self, now: Instant, limits: &Limits) -> bool {
        now.saturating_duration_since(self.since) < limits.upstream_idle && self.connection.is_quiet()
    }
}

// === impl Lease ===

impl Lease {
    /// The connection waits for another exchange, from `now`.
    fn give_back(self, now: Instant) {
        if let Some(endpoint) = self.slot.0.endpoints.get(self.endpoint) {
            endpoint.idle.borrow_mut().push(Idle { connection: self.connection, since: now });
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
