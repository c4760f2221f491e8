//! Routes: which scopes a path and method need, and which upstream they reach.

use crate::key::ScopeSet;
use http::Method;

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
