//! Routes: which scopes a path and method need, and which upstream they reach.

use crate::key::ScopeSet;
use http::{HeaderName, HeaderValue, Method};
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
    /// `strict`: served only while the key store answers, not for `max_stale` after it was last heard of.
    pub strict: bool,
    /// `trailers`: the fields that may follow a request's body.
    pub trailers: Vec<HeaderName>,
    /// `upgrades`: what a connection may speak instead of HTTP from then on, in lower case.
    pub upgrades: Vec<String>,
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
    strict: bool,
    trailers: Vec<HeaderName>,
    upgrades: Vec<String>,
    /// The methods it takes, sorted, for `Allow`.
    allow: HeaderValue,
    /// Which segment of the path is `{entity_id}`, first is 0.
    entity_segment: Option<usize>,
}

/// All routes. Literal segments win over parameters, parameters over `/**`, from left to right, whatever the order in
/// gateway.toml. A tree of our own: the router crates refuse `/p` beside `/p/**`, or let a pattern name a parameter twice.
#[derive(Debug)]
pub struct RouteTable {
    root: Node,
    /// What a connection may come to speak on any of them.
    upgrades: Vec<String>,
}

/// What can follow one prefix of segments. A look-up visits a node at most once and allocates nothing.
#[derive(Debug, Default)]
struct Node {
    literals: Vec<(Box<str>, Node)>,
    parameter: Option<Box<Node>>,
    /// The route that ends here.
    exact: Option<Arc<Route>>,
    /// The route with `/**` here.
    below: Option<Arc<Route>>,
}

/// A pattern, read.
struct Pattern<'a> {
    segments: Vec<Segment<'a>>,
    /// Whether it ends in `/**`.
    below: bool,
}

/// One segment of a pattern. The empty literal is what follows a trailing slash.
#[derive(Clone, Copy, PartialEq)]
enum Segment<'a> {
    Literal(&'a str),
    Parameter(&'a str),
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
    fn new(id: RouteId, spec: RouteSpec, entity_segment: Option<usize>) -> Self {
        let allow = allow(&spec.access);
        Self {
            id,
            pattern: spec.path.into(),
            upstream: spec.upstream,
            access: spec.access,
            body_bytes_max: spec.body_bytes_max,
            strict: spec.strict,
            trailers: spec.trailers,
            upgrades: spec.upgrades,
            allow,
            entity_segment,
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

    /// Whether it needs a key store that answers now (protocols I1).
    pub const fn is_strict(&self) -> bool {
        self.strict
    }

    /// The fields that may follow a request's body.
    pub fn trailers(&self) -> &[HeaderName] {
        &self.trailers
    }

    /// Whether a connection may come to speak `protocol`, whose case does not count (RFC 9110, section 7.8).
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        self.upgrades.iter().any(|known| known.eq_ignore_ascii_case(protocol))
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
    /// A sentence that names the pattern when it is malformed, or both patterns when two match the same paths.
    pub fn build(specs: Vec<RouteSpec>) -> Result<Self, String> {
        let mut root = Node::default();
        let upgrades = specs.iter().flat_map(|spec| spec.upgrades.iter().cloned()).collect();
        for (id, spec) in (0..).zip(specs) {
            let path = spec.path.clone();
            let pattern = Pattern::parse(&path).map_err(|why| format!("route '{path}': {why}"))?;
            let entity_segment = pattern.segments.iter().position(|one| *one == Segment::Parameter(ENTITY_ID));
            root.insert(&pattern, Arc::new(Route::new(RouteId(id), spec, entity_segment)))?;
        }
        Ok(Self { root, upgrades })
    }

    /// Whether there is a route on which a connection may come to speak `protocol`.
    pub fn upgrades_to(&self, protocol: &str) -> bool {
        self.upgrades.iter().any(|known| known.eq_ignore_ascii_case(protocol))
    }

    /// The route for a canonical path.
    pub fn find<'a>(&'a self, path: &'a str) -> Option<Match<'a>> {
        let path = path.strip_prefix('/')?;
        let route = self.root.find(Some(path))?;
        Some(Match { route, entity_id: route.entity_segment.and_then(|at| segment(path, at)) })
    }
}

/// The segment at this place of a path without its first slash.
fn segment(path: &str, at: usize) -> Option<&str> {
    let bytes = path.as_bytes();
    let segment = bytes.split(|byte| *byte == b'/').nth(at)?;
    // Cut at slashes, which are no part of a longer character.
    std::str::from_utf8(segment).ok()
}

// === impl Node ===

impl Node {
    fn insert(&mut self, pattern: &Pattern<'_>, route: Arc<Route>) -> Result<(), String> {
        let node = pattern.segments.iter().fold(self, |node, segment| node.child(*segment));
        let place = if pattern.below { &mut node.below } else { &mut node.exact };
        match place {
            Some(other) => Err(format!("routes '{}' and '{}' match the same paths", other.pattern, route.pattern)),
            None => {
                *place = Some(route);
                Ok(())
            }
        }
    }

    fn child(&mut self, segment: Segment<'_>) -> &mut Self {
        let Segment::Literal(text) = segment else { return self.parameter.get_or_insert_default() };
        let at = self.literals.binary_search_by(|(known, _)| (**known).cmp(text)).unwrap_or_else(|at| {
            self.literals.insert(at, (text.into(), Self::default()));
            at
        });
        &mut self.literals[at].1 // tidy: allow(found or inserted at this place)
    }

    fn literal(&self, text: &str) -> Option<&Self> {
        let at = self.literals.binary_search_by(|(known, _)| (**known).cmp(text)).ok()?;
        self.literals.get(at).map(|(_, node)| node)
    }

    /// The most specific route for what is left of a path; `None` is left after its last segment.
    fn find(&self, left: Option<&str>) -> Option<&Arc<Route>> {
        let Some(left) = left else { return self.exact.as_ref().or(self.below.as_ref()) };
        // A path's segments are short: a plain loop beats a searcher that is set up for each.
        let (segment, left) = match left.bytes().position(|byte| byte == b'/').and_then(|at| left.split_at_checked(at))
        {
            Some((segment, rest)) => (segment, rest.get(1..)),
            None => (left, None),
        };
        let literal = || self.literal(segment).and_then(|node| node.find(left));
        let parameter = || self.parameter.as_ref().filter(|_| !segment.is_empty()).and_then(|node| node.find(left));
        literal().or_else(parameter).or(self.below.as_ref())
    }
}

// === impl Pattern ===

impl<'a> Pattern<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let path = text.strip_prefix('/').ok_or("a path begins with '/'")?;
        let (path, below) = match text.strip_suffix("/**") {
            Some(above) => (above.strip_prefix('/'), true),
            None => (Some(path), false),
        };
        let segments = path.map_or(Ok(Vec::new()), |path| path.split('/').map(Segment::parse).collect())?;
        let last = segments.len().saturating_sub(1);
        for (at, segment) in segments.iter().enumerate() {
            if *segment == Segment::Literal("") && (below || at != last) {
                return Err("a segment is empty".into());
            }
            if matches!(segment, Segment::Parameter(_)) && segments.iter().take(at).any(|other| other == segment) {
                return Err("a parameter is named twice".into());
            }
        }
        Ok(Self { segments, below })
    }
}

// === impl Segment ===

impl<'a> Segment<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        match name {
            Some(name) if !name.is_empty() && !name.contains(['{', '}', '*']) => Ok(Self::Parameter(name)),
            None if !text.contains(['{', '}', '*']) => Ok(Self::Literal(text)),
            Some(_) | None => {
                Err(format!("'{text}' is not a segment; write text or {{name}}, and '**' only as the last"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(paths: &[String]) -> Result<RouteTable, String> {
        let spec = |path: &String| RouteSpec {
            path: path.clone(),
            upstream: UpstreamId(0),
            access: Access::Public,
            body_bytes_max: None,
            strict: false,
            trailers: Vec::new(),
            upgrades: Vec::new(),
        };
        RouteTable::build(paths.iter().map(spec).collect())
    }

    /// How specific `pattern` is for `path`, segment by segment: 3 literal, 2 parameter, 0 `/**`; `None`: no match.
    fn naive_rank(pattern: &str, path: &str) -> Option<Vec<u8>> {
        let (pattern, below) = pattern.strip_suffix("/**").map_or((pattern, false), |above| (above, true));
        let want: Vec<&str> = pattern.split('/').skip(1).collect();
        let have: Vec<&str> = path.split('/').skip(1).collect();
        if have.len() < want.len() || (have.len() > want.len() && !below) {
            return None;
        }
        let one = |(want, have): (&&str, &&str)| match want.starts_with('{') {
            true => (!have.is_empty()).then_some(2),
            false => (want == have).then_some(3),
        };
        let mut rank: Vec<u8> = want.iter().zip(&have).map(one).collect::<Option<_>>()?;
        rank.push(u8::from(!below));
        Some(rank)
    }

    fn naive_find<'a>(patterns: &'a [String], path: &str) -> Option<&'a str> {
        let ranked = patterns.iter().filter_map(|one| Some((naive_rank(one, path)?, one)));
        ranked.max_by(|(left, _), (right, _)| left.cmp(right)).map(|(_, one)| one.as_str())
    }

    proptest! {
        #[test]
        fn the_most_specific_route_is_found(
            patterns in prop::collection::vec("(/(a|b|\\{x\\})){1,4}(/|/\\*\\*)?|/|/\\*\\*", 1..12),
            paths in prop::collection::vec("(/(a|b|c)){0,5}/?", 1..20),
        ) {
            let once = |one: &String| one.matches("{x}").count() < 2;
            let patterns: Vec<String> = patterns.into_iter().filter(once).collect();
            let distinct: std::collections::HashSet<_> = patterns.iter().collect();
            prop_assume!(distinct.len() == patterns.len());
            let table = table(&patterns).map_err(TestCaseError::fail)?;
            for path in paths.iter().filter(|path| !path.is_empty()) {
                let found = table.find(path).map(|found| &**found.route.pattern());
                prop_assert_eq!(found, naive_find(&patterns, path), "path {}", path);
            }
        }
    }

    #[test]
    fn the_entity_is_the_segment_that_the_pattern_names() {
        let table = table(&["/v1/entities/{entity_id}/orders/**".into()]).unwrap();
        for path in ["/v1/entities/e1/orders", "/v1/entities/e1/orders/", "/v1/entities/e1/orders/7/lines"] {
            assert_eq!(table.find(path).and_then(|found| found.entity_id), Some("e1"), "{path}");
        }
        for path in ["/v1/entities/e1/ordersx", "/v1/entities//orders", "/v1/entities/e1", "v1", ""] {
            assert!(table.find(path).is_none(), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_matched_one_way_is_refused() {
        for paths in [&["/a/{x}", "/a/{y}"][..], &["/a/**", "/a/**"]] {
            let paths: Vec<String> = paths.iter().map(ToString::to_string).collect();
            let error = table(&paths).unwrap_err();
            assert!(paths.iter().all(|path| error.contains(path)), "{error}");
        }
        for path in ["", "a", "//a", "/a//b", "/a//**", "/a/{}", "/a/x{y}", "/a/**/b", "/a*", "/{e}/{e}"] {
            assert!(table(&[path.to_owned()]).is_err(), "{path}");
        }
    }
}
