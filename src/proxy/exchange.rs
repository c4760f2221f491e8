//! One request's account: the audit record that every exit must write, and its metrics.

use super::body::{Body, Upload};
use super::in_flight::{Admitted, InFlight};
use super::respond::Refusal;
use super::service::{Arrival, Worker};
use crate::audit::{Pending, Recorder};
use crate::clock::{Instant, monotonic};
use crate::key::Principal;
use crate::policy::{Permit, Route};
use crate::reason::Reason;
use http::{Response, StatusCode};
use std::rc::Rc;
use std::sync::Arc;

/// Opened with the request, closed by whoever sends its last byte; dropped early, it says that the client went away.
///
/// One box: it is handed on several times, from the head to the last byte of the response.
pub struct Exchange(Box<Account>);

struct Account {
    pending: Pending,
    worker: Rc<Worker>,
    in_flight: Rc<InFlight>,
    route: Option<Arc<Route>>,
    upload: Option<Rc<Upload>>,
    bytes_out: u64,
    closed: bool,
}

// === impl Exchange ===

impl Exchange {
    pub fn new(pending: Pending, worker: Rc<Worker>, in_flight: Rc<InFlight>) -> Self {
        Self(Box::new(Account { pending, worker, in_flight, route: None, upload: None, bytes_out: 0, closed: false }))
    }

    /// It was admitted by a key: from now until it is closed, a change of the key reaches it.
    pub fn register(&self, admitted: Admitted) {
        self.0.in_flight.admit(admitted);
    }

    /// Its place among what is in flight: registered there until it is closed.
    pub fn in_flight(&self) -> &Rc<InFlight> {
        &self.0.in_flight
    }

    /// The record's facts, filled as they become known.
    pub fn pending(&mut self) -> &mut Pending {
        &mut self.0.pending
    }

    /// Who takes its record.
    pub fn recorder(&self) -> &Rc<Recorder> {
        self.0.pending.recorder()
    }

    pub fn set_route(&mut self, route: &Arc<Route>) {
        self.0.pending.set_route(route.pattern());
        self.0.route = Some(Arc::clone(route));
    }

    pub fn set_principal(&mut self, principal: Arc<Principal>) {
        self.0.pending.set_principal(principal);
    }

    /// The request may pass.
    pub fn admit(&mut self, permit: &Permit) {
        self.set_route(permit.route());
        self.0.pending.allow();
    }

    /// The request is about to go to `upstream`; `upload` is its body, if it has one.
    pub fn begin_upload(&mut self, upload: Option<Rc<Upload>>, upstream: Arc<str>) {
        self.0.pending.open(upstream);
        self.0.upload = upload;
    }

    /// When the request's body last moved, if it has one.
    pub fn upload_progress(&self) -> Option<Instant> {
        self.0.upload.as_ref().map(|upload| upload.progress())
    }

    /// The upstream's head is here.
    pub fn answered(&mut self, status: StatusCode, now: Instant) {
        self.0.pending.answered(status, now);
    }

    pub fn add_bytes_out(&mut self, bytes: usize) {
        self.0.bytes_out += bytes as u64;
    }

    /// Everything has been handed over: commits the record.
    pub fn complete(&mut self, now: Instant) {
        self.0.close(None, now);
    }

    /// The exchange ended before its time. The first terminal event wins.
    pub fn end(&mut self, reason: Reason) {
        self.0.close(Some(reason), monotonic());
    }

    /// Commits the record of a refusal and makes its response.
    pub fn refuse(mut self, refusal: Refusal, arrival: &Arrival) -> Response<Body> {
        let reason = refusal.reason;
        let response = refusal.into_response(arrival);
        self.0.bytes_out = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        self.0.pending.refused(response.status());
        self.end(reason);
        response
    }
}

// === impl Account ===

impl Account {
    fn close(&mut self, reason: Option<Reason>, now: Instant) {
        if self.closed {
            return;
        }
        self.closed = true;
        match reason {
            None => self.in_flight.complete(),
            Some(_) => self.in_flight.end(),
        }
        let bytes_in = self.upload.as_ref().map_or(0, |upload| upload.bytes());
        self.pending.set_bytes(bytes_in, self.bytes_out);
        let duration = self.pending.commit(reason, now);
        let allowed = self.pending.is_allowed();
        let route = self.route.as_ref().map(|route| (route.id().0, route.pattern()));
        self.worker.metrics.record(route, reason, allowed, duration);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() {
            Reason::Internal
        } else if let Some(cut) = self.in_flight.cut() {
            cut
        } else if self.worker.drain_expired.get() {
            Reason::DrainExpired
        } else {
            Reason::ClientAborted
        };
        if !self.closed {
            self.close(Some(reason), monotonic());
        }
    }
}
