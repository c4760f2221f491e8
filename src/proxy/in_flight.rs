//! What a connection has in flight for a key, and how that is ended from outside (protocols I8 to I10).
//!
//! The look-up of the key and the registration here happen in one poll of the request's task; whatever sends last owns the
//! registration. A change of keys therefore reaches every exchange that was admitted before it: the worker marks those
//! that may not go on, and each looks at its mark before it moves another byte.

use super::client_addr::ClientAddr;
use super::respond::Refusal;
use super::service::Shared;
use crate::auth::{Authentication, Unavailable};
use crate::clock::Moment;
use crate::key::{Digest, Principal};
use crate::policy::{self, Facts, Match, Permit, Route};
use crate::reason::Reason;
use http::Method;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// The exchange of one connection, or of one HTTP/2 stream, as its worker can reach it.
#[derive(Debug, Default)]
pub struct InFlight {
    admitted: RefCell<Option<Admitted>>,
    /// Why it may not go on.
    cut: RefCell<Option<Refusal>>,
    /// The upstream's head has been handed over: too late for a refusal, the connection itself must go.
    is_answering: Cell<bool>,
    /// It is one stream's, and ends with it: what was handed over and waits for the client's window can still be cut.
    is_stream: bool,
    waker: RefCell<Option<Waker>>,
}

/// Why what is in flight is judged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again<'a> {
    /// Nothing about keys is known any more (protocols I1).
    Stale,
    /// Entries have ended, and these keys have changed.
    Changed(&'a HashSet<Digest>),
}

/// What an exchange was admitted by.
#[derive(Debug)]
pub struct Admitted {
    digest: Digest,
    principal: Arc<Principal>,
    route: Arc<Route>,
    method: Method,
    client_ip: IpAddr,
}

// === impl InFlight ===

impl InFlight {
    /// For one stream, and no other after it.
    pub fn of_stream() -> Self {
        Self { is_stream: true, ..Self::default() }
    }

    /// Registers a keyed exchange.
    pub fn admit(&self, admitted: Admitted) {
        *self.admitted.borrow_mut() = Some(admitted);
    }

    /// The upstream's head is about to be handed over.
    pub fn begin_answer(&self) {
        self.is_answering.set(true);
    }

    /// All of the response was handed over.
    pub fn complete(&self) {
        if !self.is_stream {
            self.end();
        }
    }

    /// The exchange is over, one way or the other.
    pub fn end(&self) {
        *self.admitted.borrow_mut() = None;
        *self.cut.borrow_mut() = None;
        self.is_answering.set(false);
    }

    /// Judges the exchange again where there is a reason to. What would be refused now is marked.
    pub fn judge_again(&self, shared: &Shared, why: Again<'_>, now: Moment) {
        let mut admitted = self.admitted.borrow_mut();
        let Some(known) = admitted.as_mut().filter(|known| known.is_concerned(why)) else { return };
        if self.cut.borrow().is_some() {
            return;
        }
        match known.judge(shared, why == Again::Stale, now) {
            Ok(principal) => known.principal = principal,
            Err(refusal) => {
                *self.cut.borrow_mut() = Some(refusal);
                self.wake();
            }
        }
    }

    /// Why the exchange was cut, if it was.
    pub fn cut(&self) -> Option<Reason> {
        self.cut.borrow().as_ref().map(|refusal| refusal.reason)
    }

    /// The exchange was cut when it was too late to say so.
    pub fn is_to_be_closed(&self) -> bool {
        self.is_answering.get() && self.cut.borrow().is_some()
    }

    /// Keeps the waker of the connection's task, or of the stream's.
    pub fn set_waker(&self, waker: &Waker) {
        let mut slot = self.waker.borrow_mut();
        if !slot.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Runs `future` unless the exchange is cut first; then it is dropped without being polled again.
    ///
    /// # Errors
    /// The refusal that cut it.
    pub async fn unless_cut<F: Future>(self: &Rc<Self>, future: F) -> Result<F::Output, Refusal> {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| self.poll_unless_cut(future.as_mut(), cx)).await
    }

    fn poll_unless_cut<F: Future>(
        &self,
        future: Pin<&mut F>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<F::Output, Refusal>> {
        // Not borrowed any more while the future runs.
        let cut = self.cut.borrow_mut().take();
        match cut {
            Some(refusal) => Poll::Ready(Err(refusal)),
            None => future.poll(cx).map(Ok),
        }
    }
}

// === impl Admitted ===

impl Admitted {
    pub fn new(principal: Arc<Principal>, digest: Digest, permit: &Permit, method: &Method, addr: ClientAddr) -> Self {
        let (route, method) = (Arc::clone(permit.route()), method.clone());
        Self { digest, principal, route, method, client_ip: addr.client }
    }

    fn is_concerned(&self, why: Again<'_>) -> bool {
        match why {
            Again::Stale => true,
            Again::Changed(keys) => !self.principal.is_live() || keys.contains(&self.digest),
        }
    }

    /// The principal under which the exchange may go on.
    fn judge(&self, shared: &Shared, is_stale: bool, now: Moment) -> Result<Arc<Principal>, Refusal> {
        let principal = match shared.authenticator.look_up(self.digest, now) {
            Ok(Authentication::Authenticated(principal, _)) => principal,
            // An expiry that comes by time ends nothing that has begun; one that was brought forward does.
            Ok(Authentication::Rejected(Reason::KeyExpired, Some(principal)))
                if principal.expires_at == self.principal.expires_at =>
            {
                if is_stale {
                    return Err(Reason::CutByStaleness.into());
                }
                principal
            }
            Ok(Authentication::Rejected(..)) => return Err(Reason::CutByRevocation.into()),
            Err(Unavailable) => return Err(Reason::CutByStaleness.into()),
        };
        if self.route.is_public() {
            return Ok(principal);
        }
        let found = Match { route: &self.route, entity_id: Some(&principal.entity.id) };
        let facts = Facts { method: &self.method, client_ip: self.client_ip };
        policy::authorize(Some(&found), &shared.modes, &facts, &principal)?;
        Ok(principal)
    }
}
