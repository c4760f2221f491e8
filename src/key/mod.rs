//! What a key is: its text, its digest, its record, its scopes, and the principal a request acts as. Pure.

pub mod digest;
pub mod entity;
pub mod principal;
pub mod record;
pub mod scope;
pub mod token;

pub use digest::Digest;
pub use entity::{EntityId, EntityRecord};
pub use principal::Principal;
pub use record::{KeyId, KeyRecord, KeyState, Mode};
pub use scope::{ScopeList, ScopeSet, Vocabulary};
pub use token::{Prefix, Token};
