//! May this principal do this? The route table and `authorize`. Pure and synchronous.

pub mod authorize;
pub mod route_table;

pub use authorize::{Denial, Facts, Permit, UpstreamModes, authorize, permit_public};
pub use route_table::{Access, Match, Requirement, Route, RouteId, RouteSpec, RouteTable, UpstreamId};
