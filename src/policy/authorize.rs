//! The decision: a [`Permit`], or why not.

use super::route_table::{Route, RouteTable, UpstreamId};
use crate::key::{Mode, Principal};
use crate::reason::Reason;
use http::{HeaderValue, Method};
use std::net::IpAddr;
use std::sync::Arc;

/// The facts of a request that policy looks at, all of them canonical.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub client_ip: IpAddr,
}

/// Leave to call an upstream. Made by [`authorize`] and [`permit_public`] alone: its fields are private, and without one
/// `proxy::forward` cannot be called.
#[derive(Debug)]
pub struct Permit {
    route: Arc<Route>,
    mode: Mode,
    principal: Option<Arc<Principal>>,
}

/// A refusal by policy.
#[derive(Debug)]
pub struct Denial {
    pub reason: Reason,
    /// The route, where one was found.
    pub route: Option<Arc<Route>>,
    /// The scopes the route needs, separated by spaces; with [`Reason::ScopeMissing`] only.
    pub required: Option<String>,
    /// The methods the route takes; with [`Reason::MethodNotAllowed`] only.
    pub allow: Option<HeaderValue>,
}

/// Which modes each upstream has an address for.
#[derive(Clone, Debug)]
pub struct UpstreamModes(Vec<(bool, bool)>);

/// Judges a request of a verified principal, in the contract's order (section 3): allowlist, route, method, mode, entity,
/// scope.
///
/// # Errors
/// The first check that fails.
pub fn authorize(
    routes: &RouteTable,
    modes: &UpstreamModes,
    request: &Facts<'_>,
    principal: &Arc<Principal>,
) -> Result<Permit, Denial> {
    if principal.allowlist.as_ref().is_some_and(|allowlist| !allowlist.contains(request.client_ip)) {
        return Err(Denial::without_route(Reason::IpNotAllowlisted));
    }
    let found = routes.find(request.path).ok_or_else(|| Denial::without_route(Reason::RouteUnknown))?;
    let route = found.route;
    let requirement = route.requirement(request.method).ok_or_else(|| Denial::method(route))?;
    if !modes.has(route.upstream(), principal.mode) {
        return Err(Denial::new(Reason::ModeMismatch, route));
    }
    if found.entity_id.is_some_and(|entity| *entity != *principal.entity.id) {
        return Err(Denial::new(Reason::EntityMismatch, route));
    }
    if let Some(requirement) = requirement.filter(|needed| !principal.grant.scopes.contains_all(needed.scopes)) {
        let required = Some(requirement.text.clone());
        return Err(Denial { required, ..Denial::new(Reason::ScopeMissing, route) });
    }
    Ok(Permit { route: Arc::clone(route), mode: principal.mode, principal: Some(Arc::clone(principal)) })
}

/// Lets a request through a public route: to live without a key, to the key's mode with one.
///
/// # Errors
/// When the route is not public, or does not take the method or the mode.
pub fn permit_public(
    route: &Arc<Route>,
    modes: &UpstreamModes,
    method: &Method,
    principal: Option<Arc<Principal>>,
) -> Result<Permit, Denial> {
    if !route.is_public() {
        return Err(Denial::new(Reason::KeyMissing, route));
    }
    if route.requirement(method).is_none() {
        return Err(Denial::method(route));
    }
    let mode = principal.as_ref().map_or(Mode::Live, |principal| principal.mode);
    if !modes.has(route.upstream(), mode) {
        return Err(Denial::new(Reason::ModeMismatch, route));
    }
    Ok(Permit { route: Arc::clone(route), mode, principal })
}

// === impl Permit ===

impl Permit {
    pub const fn route(&self) -> &Arc<Route> {
        &self.route
    }

    pub fn upstream(&self) -> UpstreamId {
        self.route.upstream()
    }

    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Who acts; nobody on a public route without a key.
    pub const fn principal(&self) -> Option<&Arc<Principal>> {
        self.principal.as_ref()
    }
}

// === impl Denial ===

impl Denial {
    fn new(reason: Reason, route: &Arc<Route>) -> Self {
        Self { route: Some(Arc::clone(route)), ..Self::without_route(reason) }
    }

    const fn without_route(reason: Reason) -> Self {
        Self { reason, route: None, required: None, allow: None }
    }

    fn method(route: &Arc<Route>) -> Self {
        Self { allow: Some(route.allow().clone()), ..Self::new(Reason::MethodNotAllowed, route) }
    }
}

// === impl UpstreamModes ===

impl UpstreamModes {
    /// By upstream, in the order of their ids: has it a test address, has it a live one.
    pub fn new(modes: impl IntoIterator<Item = (bool, bool)>) -> Self {
        Self(modes.into_iter().collect())
    }

    fn has(&self, upstream: UpstreamId, mode: Mode) -> bool {
        self.0.get(upstream.0 as usize).is_some_and(|(test, live)| match mode {
            Mode::Test => *test,
            Mode::Live => *live,
        })
    }
}
