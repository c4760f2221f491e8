//! Connections that speak HTTP/2 with an upstream, each shared by many requests of this worker.

pub mod conversation;
mod driver;
mod request;
pub mod tunnel;
mod upload;
mod vitals;

pub use driver::drive;

use super::conversation::{Connection as OwnConnection, Failure};
use crate::clock::{Instant, monotonic};
use bytes::Bytes;
use h2::PingPong;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use http::uri::Scheme;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};
use tokio::sync::Notify;
use vitals::{Care, Vitals};

/// Requests that share a connection, at most: each may leave a stream's window full of what its client does not take, and all
/// of these together have room in the connection's, so that none holds up another.
const STREAMS_MAX: usize = 100;

/// A connection, from when it is wanted until it is of no more use.
pub struct Connection {
    state: RefCell<State>,
    changed: Notify,
    /// Places that were given: to requests that wait for it, and to those under way.
    taken: Cell<usize>,
    /// How many to give while the upstream has not said it.
    assumed: usize,
    idle_since: Cell<Instant>,
    /// It is given to nobody any more.
    is_retired: Cell<bool>,
    vitals: Rc<Vitals>,
    scheme: Scheme,
}

enum State {
    Connecting,
    Open {
        sender: SendRequest<Bytes>,
        pings: Option<PingPong>,
    },
    /// The upstream speaks HTTP/1.1: one request may have it.
    Http1(Option<OwnConnection>),
    /// It could not be made: why, in words.
    Failed(String),
    Closed,
}

/// A request's place on a connection. Its stream ends before it.
pub struct Place(Rc<Connection>);

/// Why a place on a connection came to nothing.
pub enum Lost {
    /// Another connection may have room.
    Full,
    Http1(OwnConnection),
    /// In words.
    Failed(String),
}

// === impl Connection ===

impl Connection {
    /// One that is about to be made, and a place on it.
    pub fn begin(scheme: Scheme, assumed: usize, now: Instant) -> (Rc<Self>, Place) {
        let connection = Rc::new(Self {
            state: RefCell::new(State::Connecting),
            changed: Notify::new(),
            taken: Cell::new(1),
            assumed,
            idle_since: Cell::new(now),
            is_retired: Cell::new(false),
            vitals: Vitals::new(now),
            scheme,
        });
        (Rc::clone(&connection), Place(connection))
    }

    /// A place, if there is one.
    pub fn place(self: &Rc<Self>) -> Option<Place> {
        (!self.is_retired.get() && self.taken.get() < self.room()).then(|| {
            self.taken.set(self.taken.get() + 1);
            Place(Rc::clone(self))
        })
    }

    /// How many requests it takes at the same time.
    pub fn room(&self) -> usize {
        match &mut *self.state.borrow_mut() {
            State::Connecting => self.assumed,
            State::Open { sender, .. } => {
                // A connection that the upstream has said farewell to takes none.
                let takes = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
                let is_over = matches!(takes, std::task::Poll::Ready(Err(_)));
                if is_over { 0 } else { sender.current_max_send_streams().min(STREAMS_MAX) }
            }
            State::Http1(connection) => usize::from(connection.is_some()),
            State::Failed(_) | State::Closed => 0,
        }
    }

    /// It has ended, or never began.
    pub fn is_over(&self) -> bool {
        matches!(&*self.state.borrow(), State::Failed(_) | State::Closed)
    }

    /// It is given to nobody any more; those that have it go on.
    pub fn retire(&self) {
        self.is_retired.set(true);
    }

    /// Looks after it: whether it is to be kept. Let go of, it is closed as soon as nobody uses it.
    pub fn keep(&self, now: Instant, idle_max: std::time::Duration) -> bool {
        let is_of_use = !self.is_retired.get() && self.room() > 0;
        if self.taken.get() == 0 {
            return is_of_use && now.saturating_duration_since(self.idle_since.get()) < idle_max;
        }
        if self.vitals.care(now) == Care::Ask {
            self.ping();
        }
        is_of_use
    }

    fn ping(&self) {
        let State::Open { pings: Some(pings), .. } = &mut *self.state.borrow_mut() else { return };
        // Its answer shows in what is read; asked for here, it makes room for the next question.
        _ = pings.poll_pong(&mut Context::from_waker(Waker::noop()));
        _ = pings.send_ping(h2::Ping::opaque());
    }

    fn set(&self, state: State) {
        let before = std::mem::replace(&mut *self.state.borrow_mut(), state);
        // What it drops may ask for the state.
        drop(before);
        self.changed.notify_waiters();
    }
}

// === impl Place ===

impl Place {
    /// Waits until the connection takes requests.
    ///
    /// # Errors
    /// [`Lost`].
    pub async fn ready(self) -> Result<Self, Lost> {
        loop {
            let changed = self.0.changed.notified();
            match &mut *self.0.state.borrow_mut() {
                State::Connecting => {}
                State::Open { .. } => break,
                State::Http1(connection) => {
                    return Err(connection.take().map_or(Lost::Full, Lost::Http1));
                }
                State::Failed(words) => return Err(Lost::Failed(words.clone())),
                State::Closed => return Err(Lost::Full),
            }
            changed.await;
        }
        // More have waited than it takes: the last to ask go elsewhere.
        let is_over = self.0.taken.get() > self.0.room();
        if is_over { Err(Lost::Full) } else { Ok(self) }
    }

    /// Sends a head; `is_whole` says that no body follows.
    fn send(&self, request: Request<()>, is_whole: bool) -> Result<(ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        self.0.vitals.begin_request(monotonic());
        match &mut *self.0.state.borrow_mut() {
            // A handle of its own: that one is not told to wait for this request's turn.
            State::Open { sender, .. } => sender.clone().send_request(request, is_whole),
            State::Connecting | State::Http1(_) | State::Failed(_) | State::Closed => {
                Err(h2::Reason::REFUSED_STREAM.into())
            }
        }
    }

    /// Whether the upstream takes an extended CONNECT.
    fn takes_connect(&self) -> bool {
        let State::Open { sender, .. } = &*self.0.state.borrow() else { return false };
        sender.is_extended_connect_protocol_enabled()
    }

    fn vitals(&self) -> Rc<Vitals> {
        Rc::clone(&self.0.vitals)
    }

    fn scheme(&self) -> Scheme {
        self.0.scheme.clone()
    }

    /// The upstream has broken the protocol: whoever comes next gets another connection.
    fn retire(&self) {
        self.0.retire();
    }

    /// Retires the connection where it was the upstream that broke the protocol.
    fn judge(&self, failure: &Failure) {
        let is_broken = match failure {
            Failure::Malformed(_) => true,
            Failure::Http2(error) => error.is_library(),
            Failure::Io(_) | Failure::Unsent(_) | Failure::Body(_) => false,
        };
        if is_broken {
            self.retire();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get().saturating_sub(1));
        self.0.idle_since.set(monotonic());
    }
}
