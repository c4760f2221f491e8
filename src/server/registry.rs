//! The open connections of one worker: what each is doing, and the way to wake it.

use super::Limits;
use crate::clock::{Instant, Moment, monotonic};
use crate::proxy::in_flight::{Again, InFlight};
use crate::proxy::service::Shared;
use crate::proxy::tunnel::Tunnel;
use http::Version;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tokio::sync::Notify;

/// All connections of a worker.
#[derive(Debug)]
pub struct Registry {
    slots: RefCell<Vec<Option<Rc<ConnState>>>>,
    free: RefCell<Vec<usize>>,
    open: Cell<usize>,
    open_max: usize,
    draining: Cell<bool>,
    freed: Notify,
}

/// What one connection is doing, as its I/O and its service see it.
#[derive(Debug)]
pub struct ConnState {
    phase: Cell<Phase>,
    /// Since when the client has not taken a byte that was ready for it.
    blocked_since: Cell<Option<Instant>>,
    evicted: Cell<bool>,
    /// What is being served, for who ends it from outside.
    in_flight: Rc<InFlight>,
    /// The connection is to be reset: not even what the kernel holds may arrive.
    reset: Cell<bool>,
    ends_by_close: Cell<bool>,
    /// HTTP/1.1: what the connection carries once the head of a 101 is out.
    tunnel: RefCell<Option<Box<Tunnel>>>,
    /// HTTP/2: what is being served on each stream.
    streams: RefCell<Vec<Option<Rc<InFlight>>>>,
}

/// The part of a connection's life that decides which deadline holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A head is awaited or has begun to arrive.
    Head(Instant),
    /// Kept alive, silent.
    Idle(Instant),
    /// A request is being served; its own deadlines hold.
    Exchange,
}

/// Why a connection was closed for standing still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    HeadTimeout,
    IdleTimeout,
    WriteStall,
}

/// A connection's place in the registry; given back when dropped.
#[derive(Debug)]
pub struct Registered {
    registry: Rc<Registry>,
    index: usize,
    pub state: Rc<ConnState>,
}

/// Held by what sends last: while it lives, the connection is serving a request.
#[derive(Debug)]
pub struct ExchangeGuard(Rc<ConnState>);

/// A request on a stream of its own, among others of its connection. Held by what sends last.
#[derive(Debug)]
pub struct StreamGuard {
    state: Rc<ConnState>,
    index: usize,
    in_flight: Rc<InFlight>,
}

// === impl Registry ===

impl Registry {
    pub fn new(open_max: usize) -> Rc<Self> {
        Rc::new(Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            open: Cell::new(0),
            open_max,
            draining: Cell::new(false),
            freed: Notify::new(),
        })
    }

    pub fn register(self: &Rc<Self>) -> Registered {
        let state = Rc::new(ConnState::new());
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or(slots.len());
        if index == slots.len() {
            slots.push(None);
        }
        if let Some(slot) = slots.get_mut(index) {
            *slot = Some(Rc::clone(&state));
        }
        self.open.set(self.open.get() + 1);
        Registered { registry: Rc::clone(self), index, state }
    }

    pub const fn open(&self) -> usize {
        self.open.get()
    }

    pub const fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Tells every connection to finish what it is doing and close.
    pub fn drain(&self) {
        self.draining.set(true);
        self.slots.borrow().iter().flatten().for_each(|state| state.wake());
    }

    /// Judges what is in flight again, after keys have changed or when nothing about them is known any more.
    pub fn judge_again(&self, shared: &Shared, why: Again<'_>, now: Moment) {
        self.slots.borrow().iter().flatten().for_each(|state| {
            state.in_flight.judge_again(shared, why, now);
            state.streams.borrow().iter().flatten().for_each(|stream| stream.judge_again(shared, why, now));
        });
    }

    /// Waits until there is room for one more, closing the connection that has been idle longest if that helps.
    pub async fn room(&self) {
        while self.open.get() >= self.open_max {
            self.evict_idle();
            self.freed.notified().await;
        }
    }

    /// Waits until no connection is open.
    pub async fn empty(&self) {
        while self.open.get() > 0 {
            self.freed.notified().await;
        }
    }

    /// Closes the connection that has been idle longest.
    pub fn evict_idle(&self) {
        let slots = self.slots.borrow();
        let idle = slots.iter().flatten().filter_map(|state| match state.phase.get() {
            Phase::Idle(since) if !state.evicted.get() && !state.is_blocked() => Some((since, state)),
            Phase::Idle(_) | Phase::Head(_) | Phase::Exchange => None,
        });
        if let Some((_, state)) = idle.min_by_key(|(since, _)| *since) {
            state.evicted.set(true);
            state.wake();
        }
    }
}

// === impl Registered ===

impl Registered {
    pub fn is_draining(&self) -> bool {
        self.registry.is_draining()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Some(slot) = self.registry.slots.borrow_mut().get_mut(self.index) {
            *slot = None;
        }
        self.registry.free.borrow_mut().push(self.index);
        self.registry.open.set(self.registry.open.get().saturating_sub(1));
        self.registry.freed.notify_waiters();
        self.registry.freed.notify_one();
    }
}

// === impl ConnState ===

impl ConnState {
    fn new() -> Self {
        Self {
            phase: Cell::new(Phase::Head(monotonic())),
            blocked_since: Cell::new(None),
            evicted: Cell::new(false),
            in_flight: Rc::default(),
            reset: Cell::new(false),
            ends_by_close: Cell::new(false),
            tunnel: RefCell::default(),
            streams: RefCell::default(),
        }
    }

    /// Bytes arrived.
    pub fn on_read(&self) {
        if let Phase::Idle(_) = self.phase.get() {
            self.phase.set(Phase::Head(monotonic()));
        }
    }

    /// The client takes no more bytes, or takes them again.
    pub fn on_write(&self, blocked: bool) {
        match (blocked, self.blocked_since.get()) {
            (true, None) => self.blocked_since.set(Some(monotonic())),
            (false, Some(_)) => {
                self.blocked_since.set(None);
                if let Phase::Idle(_) = self.phase.get() {
                    // The end of the last response is only now on its way.
                    self.phase.set(Phase::Idle(monotonic()));
                }
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// A request's head is complete.
    /// The end of the connection is the end of the response for an HTTP/1.0 client: broken off, it must not look like one.
    pub fn begin_exchange(self: &Rc<Self>, version: Version) -> ExchangeGuard {
        self.ends_by_close.set(version == Version::HTTP_10);
        self.phase.set(Phase::Exchange);
        ExchangeGuard(Rc::clone(self))
    }

    /// A request's head is complete, on a stream of its own.
    pub fn begin_stream(self: &Rc<Self>) -> StreamGuard {
        self.phase.set(Phase::Exchange);
        let in_flight = Rc::new(InFlight::of_stream());
        let mut streams = self.streams.borrow_mut();
        let index = streams.iter().position(Option::is_none).unwrap_or(streams.len());
        match streams.get_mut(index) {
            Some(place) => *place = Some(Rc::clone(&in_flight)),
            None => streams.push(Some(Rc::clone(&in_flight))),
        }
        StreamGuard { state: Rc::clone(self), index, in_flight }
    }

    /// What the connection becomes, once the library is done with it.
    pub fn take_tunnel(&self) -> Option<Box<Tunnel>> {
        self.tunnel.borrow_mut().take()
    }

    /// Whether a request is being served.
    pub fn is_serving(&self) -> bool {
        self.phase.get() == Phase::Exchange
    }

    /// Whether a head is awaited or has begun to arrive, and what was answered before is handed over.
    pub fn is_before_request(&self) -> bool {
        matches!(self.phase.get(), Phase::Head(_))
    }

    /// The client takes no bytes although there are some for it: it is not idle, whatever was handed over.
    pub fn is_blocked(&self) -> bool {
        self.blocked_since.get().is_some()
    }

    pub fn is_evicted(&self) -> bool {
        self.evicted.get()
    }

    /// The deadline that holds now, and what it means to miss it.
    pub fn deadline(&self, limits: &Limits) -> Option<(Instant, Expiry)> {
        let stall = self.blocked_since.get().map(|since| (since + limits.write_stall, Expiry::WriteStall));
        let phase = match self.phase.get() {
            Phase::Head(since) => Some((since + limits.head_timeout, Expiry::HeadTimeout)),
            Phase::Idle(since) if !self.is_blocked() => Some((since + limits.idle_timeout, Expiry::IdleTimeout)),
            Phase::Idle(_) | Phase::Exchange => None,
        };
        stall.into_iter().chain(phase).min_by_key(|(deadline, _)| *deadline)
    }

    pub const fn in_flight(&self) -> &Rc<InFlight> {
        &self.in_flight
    }

    /// Closing the socket drops what it still holds, so that a body cut short can never look whole.
    pub fn reset(&self) {
        self.reset.set(true);
    }

    /// Whether closing now is to be a reset: ordered, or in the middle of a response that only its end tells to be whole.
    pub fn is_reset(&self) -> bool {
        self.reset.get() || (self.ends_by_close.get() && self.phase.get() == Phase::Exchange)
    }

    /// What was sent last was broken off.
    pub fn break_off(&self) {
        self.reset.set(self.ends_by_close.get());
    }

    fn wake(&self) {
        self.in_flight.wake();
    }
}

// === impl ExchangeGuard ===

impl ExchangeGuard {
    /// The exchange goes on in `tunnel`.
    pub fn hand_over(&self, tunnel: Box<Tunnel>) {
        *self.0.tunnel.borrow_mut() = Some(tunnel);
    }
}

impl Drop for ExchangeGuard {
    fn drop(&mut self) {
        self.0.phase.set(Phase::Idle(monotonic()));
    }
}

// === impl StreamGuard ===

impl StreamGuard {
    pub const fn in_flight(&self) -> &Rc<InFlight> {
        &self.in_flight
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut streams = self.state.streams.borrow_mut();
        if let Some(place) = streams.get_mut(self.index) {
            *place = None;
        }
        if streams.iter().all(Option::is_none) {
            streams.clear();
            self.state.phase.set(Phase::Idle(monotonic()));
            // Another deadline holds now.
            self.state.wake();
        }
    }
}
