//! One request's account: the audit record that every exit must write, and its metrics.

use super::body::{Body, Upload};
use super::request_id::RequestId;
use super::respond::Refusal;
use super::service::Worker;
use crate::audit::Pending;
use crate::clock::monotonic;
use crate::key::Principal;
use crate::policy::{Permit, Route};
use crate::reason::Reason;
use http::{Response, StatusCode};
use std::rc::Rc;
use std::sync::Arc;

/// Opened with the request, closed by whoever sends its last byte; dropped early, it says that the client went away.
pub struct Exchange {
    pending: Pending,
    worker: Rc<Worker>,
    route: Option<Arc<Route>>,
    upload: Option<Rc<Upload>>,
    reason: Option<Reason>,
    bytes_out: u64,
    closed: bool,
}

// === impl Exchange ===

impl Exchange {
    pub const fn new(pending: Pending, worker: Rc<Worker>) -> Self {
        Self { pending, worker, route: None, upload: None, reason: None, bytes_out: 0, closed: false }
    }

    /// The record's facts, filled as they become known.
    pub const fn pending(&mut self) -> &mut Pending {
        &mut self.pending
    }

    pub fn set_route(&mut self, route: &Arc<Route>) {
        self.pending.set_route(route.pattern());
        self.route = Some(Arc::clone(route));
    }

    pub fn set_principal(&mut self, principal: Arc<Principal>) {
        self.pending.set_principal(principal);
    }

    /// The request may pass.
    pub fn admit(&mut self, permit: &Permit) {
        self.set_route(permit.route());
        self.pending.allow();
    }

    /// The request is on its way to `upstream`.
    pub fn begin_upload(&mut self, upload: Rc<Upload>, upstream: Arc<str>) {
        self.pending.set_upstream(upstream);
        self.upload = Some(upload);
    }

    /// The upstream's head is here.
    pub fn answered(&mut self, status: StatusCode) {
        self.pending.answered(status, monotonic());
    }

    pub const fn add_bytes_out(&mut self, bytes: usize) {
        self.bytes_out += bytes as u64;
    }

    /// Everything has been handed over: commits the record.
    pub fn complete(&mut self) {
        self.close(None);
    }

    /// The exchange ended before its time. The first terminal event wins.
    pub fn end(&mut self, reason: Reason) {
        self.close(Some(reason));
    }

    /// Commits the record of a refusal and makes its response.
    pub fn refuse(mut self, refusal: Refusal, request_id: &RequestId) -> Response<Body> {
        let reason = refusal.reason;
        let response = refusal.into_response(request_id);
        self.bytes_out = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        self.pending.refused(reason);
        self.close(Some(reason));
        response
    }

    fn close(&mut self, reason: Option<Reason>) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.reason = reason;
        let bytes_in = self.upload.as_ref().map_or(0, |upload| upload.bytes());
        self.pending.set_bytes(bytes_in, self.bytes_out);
        let duration = self.pending.commit(reason, monotonic());
        let allowed = self.pending.is_allowed();
        self.worker.metrics.record(
            self.route.as_ref().map(|route| (route.id().0, route.pattern())),
            reason,
            allowed,
            duration,
        );
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() {
            Reason::Internal
        } else if self.worker.drain_expired.get() {
            Reason::DrainExpired
        } else {
            Reason::ClientAborted
        };
        self.close(Some(reason));
    }
}
