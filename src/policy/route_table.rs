//! Routes: which scopes a path and method need, and which upstream they reach.

use crate::key::ScopeSet;
use http::{HeaderValue, Method};
use std::sync::Arc;

/// A route's place in gateway.toml, first is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteId(pub u32);

/// An upstream's place among `[upstreams]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub u32);

/// One `[[routes]]` table, parsed: what [`RouteTable::build`] takes.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// The pattern: `/v1/entities/{entity_id}/orders/**`. `{name}` is one segment; a final `/**` means itself and all below.
    pub path: String,
    pub upstream: UpstreamId,
    pub access: Access,
    /// `body_max`: the longest request body in bytes; `None`: no bound.
    pub body_bytes_max: Option<u64>,
}

/// Who may pass.
#[derive(Clone, Debug)]
pub enum Access {
    /// `public = true`: without a key too. Usual methods only.
    Public,
    /// By method: the scopes, all of which a key must hold.
    Keyed(Vec<(Method, Requirement)>),
}

/// The scopes a method of a route needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub scopes: ScopeSet,
    /// Their names as the refusal shows them, separated by spaces.
    pub text: String,
}

/// A route in force.
#[derive(Debug)]
pub struct Route {
    id: RouteId,
    pattern: Arc<str>,
    upstream: UpstreamId,
    access: Access,
    body_bytes_max: Option<u64>,
    /// The methods it takes, sorted, for `Allow`.
    allow: HeaderValue,
}

/// All routes. Literal segments win over parameters, parameters over `/**`, from left to right, whatever the order in
/// gateway.toml.
#[derive(Debug)]
pub struct RouteTable {
    router: matchit::Router<Arc<Route>>,
}

/// A route that matches a path.
#[derive(Debug)]
pub struct Match<'a> {
    pub route: &'a Arc<Route>,
    /// What stands where the pattern says `{entity_id}`.
    pub entity_id: Option<&'a str>,
}

/// The parameter that is compared with the key's entity.
pub const ENTITY_ID: &str = "entity_id";
/// The methods that a public route takes.
const USUAL: [Method; 7] =
    [Method::DELETE, Method::GET, Method::HEAD, Method::OPTIONS, Method::PATCH, Method::POST, Method::PUT];

// === impl Route ===

impl Route {
    fn new(id: RouteId, spec: RouteSpec) -> Self {
        let allow = allow(&spec.access);
        Self {
            id,
            pattern: spec.path.into(),
            upstream: spec.upstream,
            access: spec.access,
            body_bytes_max: spec.body_bytes_max,
            allow,
        }
    }

    pub const fn id(&self) -> RouteId {
        self.id
    }

    /// The pattern as written in gateway.toml.
    pub const fn pattern(&self) -> &Arc<str> {
        &self.pattern
    }

    pub const fn upstream(&self) -> UpstreamId {
        self.upstream
    }

    pub const fn body_bytes_max(&self) -> Option<u64> {
        self.body_bytes_max
    }

    pub const fn allow(&self) -> &HeaderValue {
        &self.allow
    }

    pub const fn is_public(&self) -> bool {
        matches!(self.access, Access::Public)
    }

    /// What `method` needs here; `None` when the route does not take it.
    pub fn requirement(&self, method: &Method) -> Option<Option<&Requirement>> {
        match &self.access {
            Access::Public => USUAL.contains(method).then_some(None),
            Access::Keyed(methods) => {
                methods.iter().find(|(known, _)| known == method).map(|(_, requirement)| Some(requirement))
            }
        }
    }
}

fn allow(access: &Access) -> HeaderValue {
    let mut names: Vec<&str> = match access {
        Access::Public => USUAL.iter().map(Method::as_str).collect(),
        Access::Keyed(methods) => methods.iter().map(|(method, _)| method.as_str()).collect(),
    };
    names.sort_unstable();
    HeaderValue::from_str(&names.join(", ")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

// === impl RouteTable ===

impl RouteTable {
    /// Builds the table.
    ///
    /// # Errors
    /// A sentence that names both patterns, when two routes would match the same paths.
    pub fn build(specs: Vec<RouteSpec>) -> Result<Self, String> {
        let mut router = matchit::Router::new();
        for (id, spec) in (0..).zip(specs) {
            let route = Arc::new(Route::new(RouteId(id), spec));
            for pattern in matchit_patterns(&route.pattern) {
                let inserted = router.insert(&*pattern, Arc::clone(&route));
                inserted.map_err(|error| format!("route '{}': {error}", route.pattern))?;
            }
        }
        Ok(Self { router })
    }

    /// The route for a canonical path.
    pub fn find<'a>(&'a self, path: &'a str) -> Option<Match<'a>> {
        let found = self.router.at(path).ok()?;
        Some(Match { route: found.value, entity_id: found.params.get(ENTITY_ID) })
    }

    /// The route for `path`, if it is a public one.
    pub fn public(&self, path: &str) -> Option<&Arc<Route>> {
        self.router.at(path).ok().map(|found| found.value).filter(|route| route.is_public())
    }
}

/// The router's catch-all needs something to catch: a final `/**` is three patterns.
fn matchit_patterns(pattern: &str) -> Vec<String> {
    match pattern.strip_suffix("/**") {
        None => vec![pattern.to_owned()],
        Some("") => vec!["/".into(), "/{*rest}".into()],
        Some(above) => vec![above.to_owned(), format!("{above}/"), format!("{above}/{{*rest}}")],
    }
}
