//! The connections of this worker to one address of an upstream.

use super::connect::{Connected, connect};
use super::conversation::Connection;
use super::http2::{self, Lost, Place};
use crate::clock::{Instant, monotonic};
use crate::proxy::{Endpoint, Limits, Protocol};
use http::uri::Scheme;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How many requests share a connection before the upstream has said how many may.
const STREAMS_ASSUMED: usize = 100;
/// How often a request looks for a place: more ask for a new connection than it turns out to have room for, and some upstreams
/// end theirs at once.
const ATTEMPTS_MAX: usize = 4;
/// How long an address that could not be connected to comes after the others.
const AVOIDED: Duration = Duration::from_secs(1);

/// One address.
pub struct EndpointPool {
    /// The upstream's name, for log lines.
    upstream: Arc<str>,
    endpoint: Endpoint,
    limits: Limits,
    /// HTTP/1.1: connections that nobody uses.
    idle: RefCell<Vec<Idle>>,
    /// HTTP/2: connections that many use, the oldest first.
    shared: RefCell<Vec<Rc<http2::Connection>>>,
    /// How many requests the last of these has taken at the same time.
    room: Cell<usize>,
    /// What the upstream has last agreed to, where that is asked.
    speaks_http1: Cell<bool>,
    /// Why the last attempt to connect failed, until one succeeds.
    failing: RefCell<Option<Failing>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

struct Failing {
    words: String,
    at: Instant,
}

/// What a request can be sent on.
pub enum Usable {
    Own { connection: Connection, is_new: bool },
    Shared(Place),
}

// === impl EndpointPool ===

impl EndpointPool {
    pub fn new(upstream: Arc<str>, endpoint: Endpoint, limits: &Limits) -> Rc<Self> {
        Rc::new(Self {
            upstream,
            endpoint,
            limits: limits.clone(),
            idle: RefCell::default(),
            shared: RefCell::default(),
            room: Cell::new(STREAMS_ASSUMED),
            speaks_http1: Cell::new(false),
            failing: RefCell::default(),
        })
    }

    /// The most recently used connection that nobody uses and that still is of use.
    pub fn take_idle(&self, now: Instant) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        std::iter::from_fn(|| idle.pop())
            .find_map(|mut idle| idle.is_usable(now, &self.limits).then_some(idle.connection))
    }

    /// The connection waits for another request, from `now`.
    pub fn give_back(&self, connection: Connection, now: Instant) {
        self.idle.borrow_mut().push(Idle { connection, since: now });
    }

    /// A new connection of HTTP/1.1.
    ///
    /// # Errors
    /// In words.
    pub async fn connect(&self) -> Result<Connection, String> {
        match self.connect_to_speak(Protocol::Http1).await? {
            Connected::Http1(stream) | Connected::Http2(stream) => Ok(Connection::new(stream)),
        }
    }

    async fn connect_to_speak(&self, protocol: Protocol) -> Result<Connected, String> {
        let connecting = connect(&self.endpoint, protocol);
        let connected = tokio::time::timeout(self.limits.upstream_connect, connecting).await;
        let connected = connected.unwrap_or_else(|_| Err(io::Error::other("timed out")));
        connected.map_err(|error| {
            let words = error.to_string();
            self.note_failure(&words);
            words
        })
    }

    /// What a request can be sent on: a connection that is there, or a new one.
    ///
    /// # Errors
    /// In words.
    pub async fn acquire(self: &Rc<Self>, now: Instant) -> Result<Usable, String> {
        if let Some(connection) = self.take_idle(now) {
            return Ok(Usable::Own { connection, is_new: false });
        }
        for _ in 0..ATTEMPTS_MAX {
            if self.endpoint.protocol == Protocol::Http1 || self.speaks_http1.get() {
                match self.connect_to_speak(self.endpoint.protocol).await? {
                    Connected::Http1(stream) => {
                        return Ok(Usable::Own { connection: Connection::new(stream), is_new: true });
                    }
                    // It has changed its mind: the next attempt is made for all.
                    Connected::Http2(_) => self.speaks_http1.set(false),
                }
            }
            match self.place(now).ready().await {
                Ok(place) => return Ok(Usable::Shared(place)),
                Err(Lost::Full) => {}
                Err(Lost::Http1(connection)) => return Ok(Usable::Own { connection, is_new: true }),
                Err(Lost::Failed(words)) => return Err(words),
            }
        }
        Err("its connections take no requests".to_owned())
    }

    /// A place on a shared connection, which may still have to be made.
    fn place(self: &Rc<Self>, now: Instant) -> Place {
        let mut shared = self.shared.borrow_mut();
        if let Some(place) = shared.iter().find_map(http2::Connection::place) {
            return place;
        }
        shared.retain(|connection| !connection.is_over());
        let scheme = if self.endpoint.secured.is_some() { Scheme::HTTPS } else { Scheme::HTTP };
        let (connection, place) = http2::Connection::begin(scheme, self.room.get(), now);
        shared.push(Rc::clone(&connection));
        tokio::task::spawn_local(http2::drive(Rc::clone(self), connection));
        place
    }

    /// Closes what has not been used for longer than `upstream_idle`, and asks after those that are silent.
    pub fn look_after(&self, now: Instant) {
        self.idle.borrow_mut().retain_mut(|idle| idle.is_usable(now, &self.limits));
        self.shared.borrow_mut().retain(|connection| connection.keep(now, self.limits.upstream_idle));
    }

    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub const fn connect_max(&self) -> Duration {
        self.limits.upstream_connect
    }

    /// What came of a connection that many were to share: HTTP/1.1, or how many may.
    pub fn note_agreement(&self, room: Option<usize>) {
        self.speaks_http1.set(room.is_none());
        room.into_iter().for_each(|room| self.room.set(room));
    }

    /// It could not be connected to. Told when there is something new to tell.
    pub fn note_failure(&self, words: &str) {
        let Endpoint { host, port, .. } = &self.endpoint;
        let mut failing = self.failing.borrow_mut();
        if failing.as_ref().is_none_or(|known| known.words != words) {
            tracing::warn!(upstream = &*self.upstream, host, port, error = words, "cannot connect to an upstream");
        }
        *failing = Some(Failing { words: words.to_owned(), at: monotonic() });
    }

    /// A new connection ended before anything was heard on it. Over TLS 1.3 a server that wants to know who we are says so
    /// then.
    pub fn note_broken(&self, error: &io::Error) {
        if let Some(secured) = &self.endpoint.secured {
            self.note_failure(&secured.explain(error).to_string());
        }
    }

    /// It has answered.
    pub fn note_success(&self) {
        if self.failing.borrow().is_none() {
            return;
        }
        let Endpoint { host, port, .. } = &self.endpoint;
        tracing::info!(upstream = &*self.upstream, host, port, "an upstream answers again");
        *self.failing.borrow_mut() = None;
    }

    /// It could not be connected to a moment ago.
    pub fn is_avoided(&self, now: Instant) -> bool {
        let failing = self.failing.borrow();
        failing.as_ref().is_some_and(|failing| now.saturating_duration_since(failing.at) < AVOIDED)
    }
}

impl Idle {
    fn is_usable(&mut self, now: Instant, limits: &Limits) -> bool {
        now.saturating_duration_since(self.since) < limits.upstream_idle && self.connection.is_quiet()
    }
}
