//! One request, top to bottom: this is the file to read first.

use super::Settings;
use super::body::Body;
use super::canonical::{HeadLimits, Judged};
use super::catch::{Panicked, caught, caught_now};
use super::client_addr::{self, ClientAddr};
use super::deadline::Deadlines;
use super::downstream::Downstream;
use super::exchange::Exchange;
use super::forward::{Call, Outgoing};
use super::headers::{self, Forwarded};
use super::in_flight::{Admitted, InFlight};
use super::incoming::Incoming;
use super::request_id::RequestId;
use super::respond::Refusal;
use super::trace::Trace;
use super::upgrade::WEBSOCKET;
use super::upstream::Upstreams;
use crate::audit::{self, NotSynced, Recorder};
use crate::auth::{self, Authentication, Authenticator, Overloaded, Presented, Unavailable};
use crate::clock::{Clock, Instant, Moment};
use crate::key::{Digest, Principal};
use crate::policy::{self, Facts, Permit, RouteTable, UpstreamModes};
use crate::reason::Reason;
use crate::telemetry::RequestMetrics;
use http::{Request, Response, request};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// What all workers share, immutable.
pub struct Shared {
    pub settings: Settings,
    pub head_limits: HeadLimits,
    pub routes: RouteTable,
    pub modes: UpstreamModes,
    pub authenticator: Authenticator,
    pub clock: Clock,
}

/// What the exchanges of one worker share.
pub struct Worker {
    pub metrics: RequestMetrics,
    /// The drain's bound has passed: whatever is dropped now was cut off by us.
    pub drain_expired: Cell<bool>,
}

/// The data plane of one worker.
pub struct Service {
    shared: Arc<Shared>,
    upstreams: Upstreams,
    deadlines: Rc<Deadlines>,
    recorder: Rc<Recorder>,
    worker: Rc<Worker>,
}

/// What a request's head came to.
enum Prepared {
    Call(Box<Call>),
    Refused(Response<Body>),
}

/// A request whose record is open.
struct Opened {
    head: request::Parts,
    incoming: Incoming,
    addr: Result<ClientAddr, Reason>,
    exchange: Exchange,
}

/// What is known of a request before it is judged.
pub struct Arrival {
    pub now: Moment,
    /// As of when its key is judged: later, where the store had to be asked for it.
    judged: Moment,
    /// The store could not be asked for its key, because it was asked for too many.
    is_overloaded: bool,
    pub addr: ClientAddr,
    /// What the client's connection speaks.
    pub scheme: &'static str,
    pub request_id: RequestId,
    pub trace: Trace,
    /// The client speaks gRPC, and reads a refusal of that kind.
    pub is_grpc: bool,
}

// === impl Service ===

impl Service {
    pub fn new(shared: Arc<Shared>, recorder: Recorder) -> Rc<Self> {
        let upstreams = Upstreams::new(&shared.settings.upstreams, &shared.settings.limits);
        let worker = Rc::new(Worker { metrics: RequestMetrics::default(), drain_expired: Cell::new(false) });
        Rc::new(Self { shared, upstreams, deadlines: Rc::default(), recorder: Rc::new(recorder), worker })
    }

    /// Answers one request. Every way out of here leaves exactly one record; a panic too, and it ends this request alone.
    ///
    /// What waits is boxed: the library copies this function's state when the request begins, so it is kept small.
    pub async fn handle(
        &self,
        request: Request<Incoming>,
        downstream: &Downstream,
        in_flight: &Rc<InFlight>,
    ) -> Response<Body> {
        let now = self.shared.clock.moment();
        let (mut head, incoming) = request.into_parts();
        let addr = client_addr::decide(downstream.peer, &head.headers, &self.shared.settings.trusted_proxies);
        let mut arrival = Arrival::new(&mut head, addr, downstream, now);
        // From here every way out leaves a record.
        let exchange = match caught_now(|| self.open(&head, &arrival, downstream, in_flight)) {
            Ok(Ok(exchange)) => exchange,
            Ok(Err(audit::Unavailable::Slots)) => return arrival.refuse(Reason::Overloaded),
            Ok(Err(audit::Unavailable::Journal)) | Err(Panicked) => return arrival.refuse(Reason::AuditUnavailable),
        };
        let mut opened = Opened { head, incoming, addr, exchange };
        if self.shared.authenticator.may_lack() {
            opened = Box::pin(self.fill(opened, &mut arrival)).await;
        }
        let response = match caught_now(|| self.prepare(opened, &arrival, downstream)) {
            Ok(Prepared::Call(call)) => {
                let run = caught(call.run(&self.shared.settings.limits, &self.deadlines, &arrival));
                match Box::pin(run).await {
                    Ok(Ok(response)) => response,
                    Ok(Err(unanswered)) => unanswered.refuse(&arrival),
                    Err(Panicked) => arrival.refuse(Reason::Internal),
                }
            }
            Ok(Prepared::Refused(response)) => response,
            Err(Panicked) => arrival.refuse(Reason::Internal),
        };
        if self.recorder.holds() && response.body().is_own() {
            return Box::pin(self.hold(response, &arrival)).await;
        }
        response
    }

    /// Asks the store for a key that may be there and not here.
    async fn fill(&self, opened: Opened, arrival: &mut Arrival) -> Opened {
        let fill = self.shared.authenticator.fill(&opened.head.headers, arrival.now);
        arrival.is_overloaded = matches!(caught(fill).await, Ok(Err(Overloaded)));
        arrival.judged = self.shared.clock.moment();
        opened
    }

    /// Holds a response that goes out in one piece until its record is synced (protocols J5).
    async fn hold(&self, response: Response<Body>, arrival: &Arrival) -> Response<Body> {
        match self.recorder.synced().await {
            Ok(()) => response,
            // Whatever the upstream did: nobody may take it for recorded.
            Err(NotSynced) => arrival.refuse(Reason::AuditUnavailable),
        }
    }

    /// From the head to an upstream request that may be sent, or the refusal.
    fn prepare(&self, opened: Opened, arrival: &Arrival, downstream: &Downstream) -> Prepared {
        let Opened { head, incoming, addr, mut exchange } = opened;
        let forwarded = Forwarded::take(&head.headers, arrival.addr);
        let (judged, permit) = match self.admit(head, addr, arrival, downstream, &mut exchange) {
            Ok(admitted) => admitted,
            Err(refusal) => return Prepared::Refused(exchange.refuse(refusal, arrival)),
        };
        let outgoing = Outgoing { judged, incoming, forwarded };
        match Call::new(&self.upstreams, &self.shared.settings, &permit, outgoing, arrival, exchange) {
            Ok(call) => Prepared::Call(call),
            Err(unanswered) => Prepared::Refused(unanswered.refuse(arrival)),
        }
    }

    /// Opens the request's record.
    fn open(
        &self,
        head: &request::Parts,
        arrival: &Arrival,
        downstream: &Downstream,
        in_flight: &Rc<InFlight>,
    ) -> Result<Exchange, audit::Unavailable> {
        let mut pending = self.recorder.begin(arrival.now)?;
        pending.set_request(head, arrival.request_id.to_header(), arrival.trace.id);
        pending.set_addresses(arrival.addr.client, arrival.addr.peer);
        pending.set_client_identity(downstream.identity());
        Ok(Exchange::new(pending, Rc::clone(&self.worker), Rc::clone(in_flight)))
    }

    /// Everything between a head and a permit, in the contract's order of checks (section 3). Synchronous: nothing here
    /// waits.
    fn admit(
        &self,
        head: request::Parts,
        addr: Result<ClientAddr, Reason>,
        arrival: &Arrival,
        downstream: &Downstream,
        exchange: &mut Exchange,
    ) -> Result<(Judged, Permit), Refusal> {
        let shared = &*self.shared;
        let mut judged = Judged::judge(head, shared.head_limits, shared.authenticator.prefix())?;
        exchange.pending().set_target(&judged.target);
        let addr = addr?;
        downstream.check_host(&judged.host)?;
        let presented = auth::credential::take(&mut judged.headers, shared.authenticator.prefix())?;
        let found = shared.routes.find(judged.path());
        if let Some(route) = found.as_ref().map(|found| found.route).filter(|route| route.is_public()) {
            exchange.set_route(route);
            let known = self.known(&presented, arrival.judged);
            let principal = known.as_ref().map(|(principal, _)| Arc::clone(principal));
            principal.iter().for_each(|principal| exchange.set_principal(Arc::clone(principal)));
            let permit = policy::permit_public(route, &shared.modes, &judged.method, principal)?;
            judged.check_connect(&permit)?;
            exchange.admit(&permit);
            if let Some((principal, digest)) = known {
                exchange.register(Admitted::new(principal, digest, &permit, &judged.method, addr));
            }
            return Ok((judged, permit));
        }
        let (principal, digest) = self.authenticate(&presented, arrival, exchange)?;
        let facts = Facts { method: &judged.method, client_ip: addr.client };
        let permit = policy::authorize(found.as_ref(), &shared.modes, &facts, &principal);
        let permit = permit.inspect_err(|denial| denial.route.iter().for_each(|route| exchange.set_route(route)))?;
        judged.check_connect(&permit)?;
        if permit.route().is_strict() && !shared.authenticator.is_fresh(arrival.judged) {
            exchange.set_route(permit.route());
            return Err(Reason::StoreUnavailable.into());
        }
        exchange.admit(&permit);
        exchange.register(Admitted::new(principal, digest, &permit, &judged.method, addr));
        Ok((judged, permit))
    }

    fn authenticate(
        &self,
        presented: &Presented,
        arrival: &Arrival,
        exchange: &mut Exchange,
    ) -> Result<(Arc<Principal>, Digest), Reason> {
        let Presented::Bearer(credential) = presented else { return Err(Reason::KeyMissing) };
        match self.shared.authenticator.authenticate(credential.expose(), arrival.judged) {
            Ok(Authentication::Authenticated(principal, digest)) => {
                exchange.set_principal(Arc::clone(&principal));
                Ok((principal, digest))
            }
            Ok(Authentication::Rejected(reason, known)) => {
                if let Some(principal) = known {
                    exchange.set_principal(principal);
                }
                Err(reason)
            }
            Err(Unavailable) if arrival.is_overloaded => Err(Reason::Overloaded),
            Err(Unavailable) => Err(Reason::StoreUnavailable),
        }
    }

    /// The principal of a valid key on a public route, where anything else counts as no key.
    fn known(&self, presented: &Presented, now: Moment) -> Option<(Arc<Principal>, Digest)> {
        let Presented::Bearer(credential) = presented else { return None };
        match self.shared.authenticator.authenticate(credential.expose(), now) {
            Ok(Authentication::Authenticated(principal, digest)) => Some((principal, digest)),
            Ok(Authentication::Rejected(..)) | Err(Unavailable) => None,
        }
    }

    /// Work that may be a little late.
    pub fn upkeep(&self, now: Instant) {
        self.deadlines.sweep(now);
        self.upstreams.look_after(now);
        self.recorder.flush();
    }

    /// Whether a client of HTTP/2 may ask for a WebSocket somewhere.
    pub fn takes_websockets(&self) -> bool {
        self.shared.routes.upgrades_to(WEBSOCKET)
    }

    /// From now on, an exchange that is dropped was cut off by the drain's bound.
    pub fn expire_drain(&self) {
        self.worker.drain_expired.set(true);
    }
}

// === impl Arrival ===

impl Arrival {
    fn new(head: &mut request::Parts, addr: Result<ClientAddr, Reason>, downstream: &Downstream, now: Moment) -> Self {
        let request_id = RequestId::choose(&head.headers, addr.ok(), now.wall);
        let trace = Trace::choose(&mut head.headers);
        let addr = addr.unwrap_or_else(|_| ClientAddr::unproven(downstream.peer));
        let (scheme, is_grpc) = (downstream.scheme(), headers::is_grpc(&head.headers));
        Self { now, judged: now, is_overloaded: false, addr, scheme, request_id, trace, is_grpc }
    }

    /// A refusal without a record of its own.
    fn refuse(&self, reason: Reason) -> Response<Body> {
        Refusal::from(reason).into_response(self)
    }
}
