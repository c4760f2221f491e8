//! One request's record: filled through the request's life, drafted once.

use super::draft::{Draft, Protocol};
use super::recorder::Recorder;
use crate::clock::{Instant, Moment, Timestamp};
use crate::key::Principal;
use crate::reason::Reason;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, StatusCode, Version, header, request};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The reason in the record of a request that was under way when its gateway died.
pub const GATEWAY_DIED: &str = "gateway_died";

/// An open record. What it holds are cheap copies; nothing of it is a header dump, a query or a body.
#[derive(Debug)]
pub struct Pending {
    recorder: Rc<Recorder>,
    /// Where it is from beginning to end, in the worker's ring.
    slot: usize,
    /// It may be upstream.
    open: bool,
    started: Moment,
    request_id: Option<HeaderValue>,
    trace_id: [u8; 16],
    client_ip: Option<IpAddr>,
    peer_ip: Option<IpAddr>,
    method: Method,
    host: Option<HeaderValue>,
    target: Option<PathAndQuery>,
    user_agent: Option<HeaderValue>,
    client_identity: Option<Arc<str>>,
    version: Version,
    principal: Option<Arc<Principal>>,
    route: Option<Arc<str>>,
    allowed: bool,
    status: Option<StatusCode>,
    upstream: Option<Arc<str>>,
    upstream_time: Option<Duration>,
    bytes_in: u64,
    bytes_out: u64,
    committed: bool,
}

// === impl Pending ===

impl Pending {
    pub(super) const fn new(recorder: Rc<Recorder>, slot: usize, started: Moment) -> Self {
        Self {
            recorder,
            slot,
            open: false,
            started,
            request_id: None,
            trace_id: [0; 16],
            client_ip: None,
            peer_ip: None,
            method: Method::GET,
            host: None,
            target: None,
            user_agent: None,
            client_identity: None,
            version: Version::HTTP_11,
            principal: None,
            route: None,
            allowed: false,
            status: None,
            upstream: None,
            upstream_time: None,
            bytes_in: 0,
            bytes_out: 0,
            committed: false,
        }
    }

    /// What the head says, besides its target, which is set once it has been judged.
    pub fn set_request(&mut self, head: &request::Parts, request_id: HeaderValue, trace_id: [u8; 16]) {
        if cfg!(feature = "without-audit") {
            return;
        }
        self.request_id = Some(request_id);
        self.trace_id = trace_id;
        self.method = head.method.clone();
        self.version = head.version;
        self.host = head.headers.get(header::HOST).cloned();
        self.user_agent = head.headers.get(header::USER_AGENT).cloned();
    }

    pub const fn set_addresses(&mut self, client: IpAddr, peer: IpAddr) {
        self.client_ip = Some(client);
        self.peer_ip = Some(peer);
    }

    /// Whom the certificate names that the client has shown.
    pub fn set_client_identity(&mut self, identity: Option<&Arc<str>>) {
        self.client_identity = identity.map(Arc::clone);
    }

    /// The canonical target; its query is never written.
    pub fn set_target(&mut self, target: &PathAndQuery) {
        self.target = (!cfg!(feature = "without-audit")).then(|| target.clone());
    }

    pub fn set_principal(&mut self, principal: Arc<Principal>) {
        self.principal = Some(principal);
    }

    pub fn set_route(&mut self, pattern: &Arc<str>) {
        self.route = Some(Arc::clone(pattern));
    }

    pub const fn allow(&mut self) {
        self.allowed = true;
    }

    pub const fn is_allowed(&self) -> bool {
        self.allowed
    }

    /// It goes to this upstream: to be called before its first byte does.
    pub fn open(&mut self, upstream: Arc<str>) {
        self.upstream = Some(upstream);
        self.open = true;
        self.recorder.open(self);
    }

    /// Whose record it is.
    pub const fn recorder(&self) -> &Rc<Recorder> {
        &self.recorder
    }

    /// The upstream's head arrived at `now`.
    pub fn answered(&mut self, status: StatusCode, now: Instant) {
        self.status = Some(status);
        self.upstream_time = Some(now.saturating_duration_since(self.started.mono));
    }

    /// The gateway's own answer.
    pub const fn refused(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub const fn set_bytes(&mut self, bytes_in: u64, bytes_out: u64) {
        self.bytes_in = bytes_in;
        self.bytes_out = bytes_out;
    }

    /// Writes the record, once; `reason` is null for a request that was served whole. Gives the request's duration.
    pub fn commit(&mut self, reason: Option<Reason>, now: Instant) -> Duration {
        let duration = now.saturating_duration_since(self.started.mono);
        if !self.committed {
            self.committed = true;
            let recorder = Rc::clone(&self.recorder);
            recorder.commit(self, reason, duration);
        }
        duration
    }

    pub(super) const fn started(&self) -> Timestamp {
        self.started.wall
    }

    /// Refused, and nobody is known to have asked.
    pub(super) const fn is_anonymous(&self) -> bool {
        self.principal.is_none() && !self.allowed
    }

    pub(super) const fn slot(&self) -> usize {
        self.slot
    }

    /// The parts of its query that the operator allows (`audit.query_names`).
    pub(super) fn allowed_query(&self, names: &[String]) -> Option<String> {
        let query = self.target.as_ref().and_then(|target| target.query()).filter(|_| !names.is_empty())?;
        let is_allowed = |part: &&str| names.iter().any(|name| part.split('=').next() == Some(name));
        Some(query.split('&').filter(is_allowed).collect::<Vec<_>>().join("&"))
    }

    /// What came of it.
    pub(super) fn draft<'a>(&'a self, query: Option<&'a str>, reason: Option<Reason>, duration: Duration) -> Draft<'a> {
        let reason = reason.map(Reason::as_str);
        Draft {
            duration_us: Some(micros(duration)),
            bytes_in: Some(self.bytes_in),
            bytes_out: Some(self.bytes_out),
            status: self.status.map(|status| status.as_u16()),
            ..self.draft_as(query, reason)
        }
    }

    /// The same for a request whose gateway died: nothing is known but that it had been sent on.
    pub(super) fn death<'a>(&'a self, query: Option<&'a str>) -> Draft<'a> {
        Draft { allowed: true, ..self.draft_as(query, Some(GATEWAY_DIED)) }
    }

    fn draft_as<'a>(&'a self, query: Option<&'a str>, reason: Option<&'static str>) -> Draft<'a> {
        let principal = self.principal.as_deref();
        Draft {
            at: self.started.wall,
            duration_us: None,
            bytes_in: None,
            bytes_out: None,
            upstream_us: self.upstream_time.map(micros),
            trace_id: self.trace_id,
            key: principal.map(|principal| (principal.id, principal.mode)),
            client_ip: self.client_ip,
            peer_ip: self.peer_ip,
            status: None,
            protocol: protocol(self.version),
            allowed: self.allowed,
            // In the order of `Text`.
            texts: [
                self.request_id.as_ref().map(HeaderValue::as_bytes),
                Some(self.method.as_str().as_bytes()),
                self.host.as_ref().map(HeaderValue::as_bytes),
                self.target.as_ref().map(|target| target.path().as_bytes()),
                query.map(str::as_bytes),
                self.route.as_ref().map(|route| route.as_bytes()),
                self.user_agent.as_ref().map(HeaderValue::as_bytes),
                self.client_identity.as_ref().map(|name| name.as_bytes()),
                principal.map(|principal| principal.name.as_bytes()),
                principal.map(|principal| principal.entity.id.as_bytes()),
                reason.map(str::as_bytes),
                self.upstream.as_ref().map(|name| name.as_bytes()),
            ],
        }
    }
}

impl Drop for Pending {
    /// A request that was begun leaves its record, whatever became of it: only a failure of ours ends one without a commit.
    fn drop(&mut self) {
        self.commit(Some(Reason::Internal), crate::clock::monotonic());
    }
}

/// HTTP/1.1 is what is spoken unless it is said otherwise.
const fn protocol(version: Version) -> Protocol {
    match version {
        Version::HTTP_10 => Protocol::Http10,
        Version::HTTP_2 => Protocol::Http2,
        _ => Protocol::Http11,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
