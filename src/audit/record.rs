//! One request's record: filled through the request's life, encoded once.

use super::json::ObjectWriter;
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

/// Longest shown part of each free text, in bytes once escaped. Together they fit a record.
const PATH_MAX: usize = 256;
const HOST_MAX: usize = 100;
const USER_AGENT_MAX: usize = 120;
const NAME_MAX: usize = 64;
const ROUTE_MAX: usize = 200;
const QUERY_MAX: usize = 200;
const IDENTITY_MAX: usize = 160;
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

    pub(super) const fn is_open(&self) -> bool {
        self.open
    }

    /// Encodes what does not change any more once the request is on its way. What the journal's writer adds is not among it:
    /// schema, kind, journal, seq and crc.
    pub(super) fn encode_request(&self, out: &mut Vec<u8>, ts: &str, query_names: &[String]) {
        let mut object = ObjectWriter::new(out);
        object.plain("ts", ts);
        self.encode_head(&mut object, query_names);
        self.encode_key(&mut object);
    }

    /// Encodes what came of it.
    pub(super) fn encode_outcome(&self, out: &mut Vec<u8>, reason: Option<Reason>, duration: Duration) {
        let mut object = ObjectWriter::new(out);
        object.plain("decision", if self.allowed { "allow" } else { "deny" });
        or_null(&mut object, "reason", reason.map(Reason::as_str), |object, name, text| object.plain(name, text));
        or_null(&mut object, "status", self.status.map(|status| status.as_u16().into()), |object, name, number| {
            object.number(name, number)
        });
        object.number("bytes_in", self.bytes_in);
        object.number("bytes_out", self.bytes_out);
        object.number("duration_us", micros(duration));
        self.encode_upstream(&mut object);
    }

    /// The same for a request whose gateway died: nothing is known but that it had been sent on.
    pub(super) fn encode_death(&self, out: &mut Vec<u8>) {
        let mut object = ObjectWriter::new(out);
        object.plain("decision", "allow");
        object.plain("reason", GATEWAY_DIED);
        ["status", "bytes_in", "bytes_out", "duration_us"].into_iter().for_each(|name| object.null(name));
        self.encode_upstream(&mut object);
    }

    fn encode_head(&self, object: &mut ObjectWriter<'_>, query_names: &[String]) {
        text_or_null(object, "request_id", self.request_id.as_ref().map(HeaderValue::as_bytes), 128);
        object.hex("trace_id", &self.trace_id);
        or_null(object, "client_ip", self.client_ip, |object, name, ip| object.ip(name, ip));
        or_null(object, "peer_ip", self.peer_ip, |object, name, ip| object.ip(name, ip));
        object.text("method", self.method.as_str().as_bytes(), 32);
        text_or_null(object, "host", self.host.as_ref().map(HeaderValue::as_bytes), HOST_MAX);
        text_or_null(object, "path", self.target.as_ref().map(|target| target.path().as_bytes()), PATH_MAX);
        if let Some(query) = self.target.as_ref().and_then(|target| target.query()).filter(|_| !query_names.is_empty())
        {
            object.text("query", allowed_query(query, query_names).as_bytes(), QUERY_MAX);
        }
        text_or_null(object, "route", self.route.as_ref().map(|route| route.as_bytes()), ROUTE_MAX);
        object.plain("protocol", protocol(self.version));
        text_or_null(object, "user_agent", self.user_agent.as_ref().map(HeaderValue::as_bytes), USER_AGENT_MAX);
        text_or_null(
            object,
            "client_identity",
            self.client_identity.as_ref().map(|name| name.as_bytes()),
            IDENTITY_MAX,
        );
    }

    fn encode_key(&self, object: &mut ObjectWriter<'_>) {
        let Some(principal) = &self.principal else {
            ["key_id", "key_name", "entity_id", "mode"].into_iter().for_each(|name| object.null(name));
            return;
        };
        object.parts("key_id", &[b"key_", &principal.id.ulid().text()]);
        object.text("key_name", principal.name.as_bytes(), NAME_MAX);
        object.plain("entity_id", &principal.entity.id);
        object.plain("mode", principal.mode.as_str());
    }

    fn encode_upstream(&self, object: &mut ObjectWriter<'_>) {
        text_or_null(object, "upstream", self.upstream.as_ref().map(|name| name.as_bytes()), NAME_MAX);
        or_null(object, "upstream_us", self.upstream_time.map(micros), |object, name, number| {
            object.number(name, number)
        });
    }
}

impl Drop for Pending {
    /// A request that was begun leaves its record, whatever became of it: only a failure of ours ends one without a commit.
    fn drop(&mut self) {
        self.commit(Some(Reason::Internal), crate::clock::monotonic());
    }
}

/// The parts of a query whose names the operator allows (`audit.query_names`).
fn allowed_query(query: &str, names: &[String]) -> String {
    let is_allowed = |part: &&str| names.iter().any(|name| part.split('=').next() == Some(name));
    query.split('&').filter(is_allowed).collect::<Vec<_>>().join("&")
}

/// HTTP/1.1 is what is spoken unless it is said otherwise.
const fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn text_or_null(object: &mut ObjectWriter<'_>, name: &str, value: Option<&[u8]>, bytes_max: usize) {
    match value {
        Some(value) => object.text(name, value, bytes_max),
        None => object.null(name),
    }
}

/// A member by `write`, or null.
fn or_null<T>(
    object: &mut ObjectWriter<'_>,
    name: &str,
    value: Option<T>,
    write: impl FnOnce(&mut ObjectWriter<'_>, &str, T),
) {
    match value {
        Some(value) => write(object, name, value),
        None => object.null(name),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
