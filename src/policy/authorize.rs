//! The decision: a [`Permit`], or why not.

use super::route_table::{Match, Route, UpstreamId};
use crate::key::{Mode, Principal};
use crate::reason::Reason;
use http::{HeaderValue, Method};
use std::net::IpAddr;
use std::sync::Arc;

/// The facts of a request that policy looks at, all of them canonical.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub method: &'a Method,
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

/// Judges a request of a verified principal, for whose path the table found `found`, in the contract's order (section 3): allowlist, route, method, mode, entity,
/// scope.
///
/// # Errors
/// The first check that fails.
pub fn authorize(
    found: Option<&Match<'_>>,
    modes: &UpstreamModes,
    request: &Facts<'_>,
    principal: &Arc<Principal>,
) -> Result<Permit, Denial> {
    if principal.allowlist.as_ref().is_some_and(|allowlist| !allowlist.contains(request.client_ip)) {
        return Err(Denial::without_route(Reason::IpNotAllowlisted));
    }
    let found = found.ok_or_else(|| Denial::without_route(Reason::RouteUnknown))?;
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

    /// The route does not take the request's method.
    pub fn method(route: &Arc<Route>) -> Self {
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

#[cfg(test)]
mod tests {
    use super::super::RouteTable;
    use super::*;
    use crate::clock::Timestamp;
    use crate::key::principal::{Grant, PrincipalEntity};
    use crate::key::{Digest, EntityId, KeyId, KeyRecord, ScopeList, Vocabulary};
    use crate::net::Networks;
    use crate::policy::{Access, Requirement, RouteSpec};
    use crate::ulid::Ulid;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const ENTITY: &str = "6f1c1f0a-0000-4000-8000-0000000000aa";
    const OTHER: &str = "6F1C1F0A-0000-4000-8000-0000000000AA";

    fn vocabulary() -> Vocabulary {
        Vocabulary::new(["a:read", "a:write"].map(|name| (name.to_owned(), false))).unwrap()
    }

    fn principal(mode: Mode, scopes: &str, allowlist: Networks) -> Arc<Principal> {
        let scopes = ScopeList::parse(scopes);
        let entity_id = EntityId::parse(ENTITY).unwrap();
        let grant =
            Grant { scopes: vocabulary().resolve(&scopes).0, header: HeaderValue::from_str(scopes.as_str()).unwrap() };
        let record = KeyRecord {
            id: KeyId::new(Ulid::new(Timestamp::from_micros(0), 1)),
            version: 1,
            digest: Digest::of(b"key"),
            entity_id,
            name: "key".into(),
            mode,
            scopes,
            allowlist,
            tier: "standard".into(),
            api_version: None,
            last4: String::new(),
            imported: false,
            created_at: Timestamp::from_micros(0),
            expires_at: None,
            revoked_at: None,
            rotated_to: None,
            rotated_from: None,
            until_quiet: None,
        };
        Arc::new(Principal::new(&record, Arc::new(PrincipalEntity::new(entity_id)), Arc::new(grant), None))
    }

    fn routes() -> RouteTable {
        let text = "a:read a:write";
        let requirement = Requirement { scopes: vocabulary().resolve(&ScopeList::parse(text)).0, text: text.into() };
        let spec = |path: &str, access| RouteSpec {
            path: path.into(),
            upstream: UpstreamId(0),
            access,
            body_bytes_max: None,
            strict: false,
            trailers: Vec::new(),
            upgrades: Vec::new(),
        };
        let keyed = Access::Keyed(vec![(Method::POST, requirement.clone()), (Method::GET, requirement)]);
        RouteTable::build(vec![spec("/e/{entity_id}/**", keyed), spec("/open", Access::Public)]).unwrap()
    }

    fn naive_network(bits: u128, prefix: u32, width: u32, ip: u128) -> bool {
        let shift = width - prefix;
        shift == 128 || (bits >> shift) == (ip >> shift)
    }

    proptest! {
        /// The order of contract section 3, and a permit only when every condition holds.
        #[test]
        fn the_first_check_that_fails_decides(
            address: bool, known: bool, taken: bool, live: bool, test_up: bool, live_up: bool, own: bool, scope: bool,
        ) {
            let mode = if live { Mode::Live } else { Mode::Test };
            let allowlist = if address { "127.0.0.0/8" } else { "10.0.0.0/8" };
            let scopes = if scope { "a:read a:write" } else { "a:read" };
            let key = principal(mode, scopes, Networks::parse(allowlist).unwrap());
            let path = format!("/{}/{}/x", if known { "e" } else { "f" }, if own { ENTITY } else { OTHER });
            let method = if taken { Method::GET } else { Method::DELETE };
            let facts = Facts { method: &method, client_ip: Ipv4Addr::LOCALHOST.into() };
            let order = [
                (address, Reason::IpNotAllowlisted),
                (known, Reason::RouteUnknown),
                (taken, Reason::MethodNotAllowed),
                (if live { live_up } else { test_up }, Reason::ModeMismatch),
                (own, Reason::EntityMismatch),
                (scope, Reason::ScopeMissing),
            ];
            let expected = order.iter().find(|(holds, _)| !holds).map(|(_, reason)| *reason);
            let modes = UpstreamModes::new([(test_up, live_up)]);
            match authorize(routes().find(&path).as_ref(), &modes, &facts, &key) {
                Ok(permit) => {
                    prop_assert_eq!(expected, None);
                    prop_assert_eq!((permit.mode(), permit.upstream()), (mode, UpstreamId(0)));
                    prop_assert!(permit.principal().is_some_and(|one| Arc::ptr_eq(one, &key)));
                }
                Err(denial) => {
                    prop_assert_eq!(Some(denial.reason), expected);
                    let required = (denial.reason == Reason::ScopeMissing).then_some("a:read a:write");
                    prop_assert_eq!(denial.required.as_deref(), required);
                    let allow = (denial.reason == Reason::MethodNotAllowed).then_some("GET, POST");
                    prop_assert_eq!(denial.allow.as_ref().map(|value| value.to_str().unwrap()), allow);
                }
            }
        }

        #[test]
        fn an_allowlist_is_bit_arithmetic(
            nets in prop::collection::vec((any::<bool>(), any::<u128>(), 0u32..=128), 1..6),
            near: prop::sample::Index, flip in 0u32..128, v4: bool, mapped: bool,
        ) {
            let nets: Vec<(bool, u128, u32)> = nets.into_iter().map(|(v4, bits, prefix)| {
                if v4 { (true, bits & 0xffff_ffff, prefix % 33) } else { (false, bits, prefix) }
            }).collect();
            let parsed = nets.iter().map(|(v4, bits, prefix)| {
                let ip = if *v4 { IpAddr::V4(Ipv4Addr::from(*bits as u32)) } else { Ipv6Addr::from(*bits).into() };
                ipnet::IpNet::new(ip, *prefix as u8).unwrap().trunc()
            });
            let networks = Networks::new(parsed.collect());
            let ip = nets[near.index(nets.len())].1 ^ (1 << flip);
            let (address, ip) = match (v4, mapped) {
                (true, false) => (IpAddr::V4(Ipv4Addr::from(ip as u32)), ip & 0xffff_ffff),
                (true, true) => (Ipv4Addr::from(ip as u32).to_ipv6_mapped().into(), ip & 0xffff_ffff),
                (false, _) => (Ipv6Addr::from(ip).into(), ip),
            };
            let inside = nets.iter().any(|(net_v4, bits, prefix)| {
                *net_v4 == v4 && naive_network(*bits, *prefix, if v4 { 32 } else { 128 }, ip)
            });
            prop_assert_eq!(networks.contains(address), inside);
        }
    }

    #[test]
    fn a_public_route_goes_to_live_without_a_key_and_to_the_keys_mode_with_one() {
        let routes = routes();
        let open = routes.find("/open").unwrap().route;
        let test_key = || Some(principal(Mode::Test, "", Networks::default()));
        let (both, live_only) = (UpstreamModes::new([(true, true)]), UpstreamModes::new([(false, true)]));
        assert_eq!(permit_public(open, &both, &Method::GET, None).unwrap().mode(), Mode::Live);
        assert_eq!(permit_public(open, &both, &Method::GET, test_key()).unwrap().mode(), Mode::Test);
        let denied = permit_public(open, &live_only, &Method::GET, test_key()).unwrap_err();
        assert_eq!(denied.reason, Reason::ModeMismatch);
        let denied = permit_public(open, &both, &Method::from_bytes(b"PURGE").unwrap(), None).unwrap_err();
        assert_eq!(denied.reason, Reason::MethodNotAllowed);
        assert_eq!(denied.allow.unwrap(), "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");
    }

    #[test]
    fn a_route_that_needs_a_key_is_never_public() {
        let routes = routes();
        assert!(!routes.find("/e/x").unwrap().route.is_public());
        let keyed = routes.find("/e/x").unwrap().route;
        let denied = permit_public(keyed, &UpstreamModes::new([(true, true)]), &Method::GET, None).unwrap_err();
        assert_eq!(denied.reason, Reason::KeyMissing);
    }
}
