//! May this principal do this? The route table and `authorize`. Pure and synchronous.

// pub mod authorize;
pub mod route_table;

// pub use authorize::{Denial, Permit, authorize, method_allowed, permit_public};
pub use route_table::{Access, Requirement, RouteId, RouteSpec, UpstreamId};
