//! This worker's own connections to the upstreams. Nothing here is shared between threads, so nothing is locked.

pub mod answer;
pub mod connect;
pub mod conversation;
mod endpoint;
pub mod http2;
pub mod sending;

use super::{Endpoint, Limits, Protocol, UpstreamSettings};
use crate::clock::Instant;
use crate::key::Mode;
use crate::policy::UpstreamId;
use crate::reason::Reason;
use answer::Answer;
use conversation::{Connection, Failure};
use endpoint::{EndpointPool, Usable};
use http::{HeaderValue, Response};
use sending::Sending;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

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
    endpoints: Vec<Rc<EndpointPool>>,
    /// Connections may be shared: some address speaks HTTP/2, or may.
    shares: bool,
    /// Some address can be asked for a connection of HTTP/1.1.
    has_own: bool,
    next: Cell<usize>,
    in_flight: Cell<usize>,
    limits: Limits,
}

/// A connection that belongs to one exchange. Dropped: the connection is closed, because the exchange did not end cleanly.
pub struct Lease {
    connection: Connection,
    endpoint: usize,
    slot: Slot,
}

/// A place among the requests in flight.
pub struct Slot(Rc<Pool>);

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

    /// Closes the connections that have been idle for longer than `limits.upstream_idle`, and asks after those that are silent.
    pub fn look_after(&self, now: Instant) {
        let pools = self.pools.iter().flat_map(|pools| [&pools.live, &pools.test]).flatten();
        pools.flat_map(|pool| &pool.endpoints).for_each(|endpoint| endpoint.look_after(now));
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
        let shares = endpoints.iter().any(|endpoint| endpoint.protocol != Protocol::Http1);
        let has_own = endpoints.iter().any(|endpoint| endpoint.protocol != Protocol::Http2);
        let pool = |endpoint: &Endpoint| EndpointPool::new(Arc::clone(&name), endpoint.clone(), limits);
        let endpoints = endpoints.iter().map(pool).collect();
        Self {
            name,
            host,
            endpoints,
            shares,
            has_own,
            next: Cell::new(0),
            in_flight: Cell::new(0),
            limits: limits.clone(),
        }
    }

    /// Sends a request on a connection that is there or a new one, and waits for the response's head. `to_head` says that it is
    /// a HEAD, `now` is when it arrived.
    ///
    /// # Errors
    /// [`Reason::Overloaded`] at the limit of requests in flight, [`Reason::UpstreamUnreachable`] otherwise, or why the
    /// request's body failed. A request is sent again only when not a byte of it was sent, or the upstream says that it has
    /// not looked at it.
    pub async fn send(
        self: &Rc<Self>,
        mut sending: Sending,
        to_head: bool,
        now: Instant,
    ) -> Result<(Response<()>, Answer), Reason> {
        let slot = Slot::take(self).ok_or(Reason::Overloaded)?;
        let start = self.next.get();
        self.next.set(start.wrapping_add(1));
        // An upgrade is asked for over HTTP/2 only where there is nothing else.
        if self.shares && !(sending.asks_upgrade() && self.has_own) {
            return Box::pin(self.send_shared(sending, to_head, start, now, slot)).await;
        }
        let slot = match self.take_idle(start, now) {
            None => slot,
            Some((endpoint, connection)) => {
                let lease = Lease { connection, endpoint, slot };
                match conversation::begin(lease, &mut sending, to_head).await {
                    Ok((response, conversation)) => return Ok((response, Answer::Http1(conversation))),
                    Err(Failure::Io(_) | Failure::Malformed(_)) if sending.is_untouched() => {
                        Slot::take(self).ok_or(Reason::Overloaded)?
                    }
                    Err(failure) => return Err(self.give_up(&failure)),
                }
            }
        };
        // Boxed: connecting is rare, and its state is large.
        Box::pin(self.send_on_new(sending, to_head, start, now, slot)).await
    }

    async fn send_on_new(
        &self,
        mut sending: Sending,
        to_head: bool,
        start: usize,
        now: Instant,
        slot: Slot,
    ) -> Result<(Response<()>, Answer), Reason> {
        let (endpoint, connection) = self.connect(start, now).await?;
        let lease = Lease { connection, endpoint, slot };
        let begun = conversation::begin(lease, &mut sending, to_head).await;
        self.note(endpoint, begun.as_ref().err());
        let (response, conversation) = begun.map_err(|failure| self.give_up(&failure))?;
        Ok((response, Answer::Http1(conversation)))
    }

    /// Sends a request to an upstream whose connections may be shared. It is sent again once at most.
    async fn send_shared(
        self: &Rc<Self>,
        mut sending: Sending,
        to_head: bool,
        start: usize,
        now: Instant,
        mut slot: Slot,
    ) -> Result<(Response<()>, Answer), Reason> {
        let mut is_again = false;
        loop {
            let (endpoint, usable) = self.acquire(start, now).await?;
            let (failure, may_again) = match usable {
                Usable::Shared(place) => match http2::conversation::begin(place, &mut sending, to_head).await {
                    Ok((response, conversation)) => {
                        return Ok((response, Answer::Http2(conversation, slot)));
                    }
                    Err(failure) => {
                        let may_again = failure.is_unprocessed() && sending.is_untouched();
                        (failure, may_again)
                    }
                },
                Usable::Own { connection, is_new } => {
                    let begun = conversation::begin(Lease { connection, endpoint, slot }, &mut sending, to_head).await;
                    if is_new {
                        self.note(endpoint, begun.as_ref().err());
                    }
                    match begun {
                        Ok((response, conversation)) => return Ok((response, Answer::Http1(conversation))),
                        Err(failure) => (failure, sending.is_untouched()),
                    }
                }
            };
            if is_again || !may_again {
                return Err(self.give_up(&failure));
            }
            is_again = true;
            slot = Slot::take(self).ok_or(Reason::Overloaded)?;
        }
    }

    fn give_up(&self, failure: &Failure) -> Reason {
        tracing::debug!(upstream = &*self.name, %failure, "no response");
        match failure {
            Failure::Io(_) | Failure::Malformed(_) | Failure::Http2(_) | Failure::Unsent(_) => {
                Reason::UpstreamUnreachable
            }
            Failure::Body(error) => error.0,
        }
    }

    /// Remembers what came of a new connection.
    fn note(&self, endpoint: usize, failure: Option<&Failure>) {
        let Some(endpoint) = self.endpoints.get(endpoint) else { return };
        match failure {
            None => endpoint.note_success(),
            Some(Failure::Io(error)) => endpoint.note_broken(error),
            Some(Failure::Malformed(_) | Failure::Http2(_) | Failure::Unsent(_) | Failure::Body(_)) => {}
        }
    }

    /// The most recently used connection of the first endpoint that has one, beginning at `start`.
    fn take_idle(&self, start: usize, now: Instant) -> Option<(usize, Connection)> {
        let len = self.endpoints.len();
        (0..len).map(|offset| start.wrapping_add(offset) % len).find_map(|index| {
            let endpoint = self.endpoints.get(index)?;
            endpoint.take_idle(now).map(|connection| (index, connection))
        })
    }

    /// Connects to the first endpoint that accepts, beginning at `start`, to speak HTTP/1.1.
    async fn connect(&self, start: usize, now: Instant) -> Result<(usize, Connection), Reason> {
        for (index, endpoint) in self.order(start, now) {
            if endpoint.endpoint().protocol == Protocol::Http2 {
                continue;
            }
            if let Ok(connection) = endpoint.connect().await {
                return Ok((index, connection));
            }
        }
        Err(Reason::UpstreamUnreachable)
    }

    /// What a request can be sent on at the first endpoint that has it, beginning at `start`.
    async fn acquire(&self, start: usize, now: Instant) -> Result<(usize, Usable), Reason> {
        for (index, endpoint) in self.order(start, now) {
            if let Ok(usable) = endpoint.acquire(now).await {
                return Ok((index, usable));
            }
        }
        Err(Reason::UpstreamUnreachable)
    }

    /// The endpoints in the order in which they are asked: those that could not be connected to a moment ago go last.
    fn order(&self, start: usize, now: Instant) -> Vec<(usize, &Rc<EndpointPool>)> {
        let (before, after) = self.endpoints.split_at(start % self.endpoints.len().max(1));
        let after = after.iter().enumerate().map(|(offset, endpoint)| (before.len() + offset, endpoint));
        let mut order: Vec<_> = after.chain(before.iter().enumerate()).collect();
        order.sort_by_key(|(_, endpoint)| endpoint.is_avoided(now));
        order
    }
}

// === impl Lease ===

impl Lease {
    /// The connection waits for another exchange, from `now`.
    fn give_back(self, now: Instant) {
        if let Some(endpoint) = self.slot.0.endpoints.get(self.endpoint) {
            endpoint.give_back(self.connection, now);
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
