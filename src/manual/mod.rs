//! The manual, as pages.

#[doc = include_str!("request_life.md")]
pub mod request_life {}
#[doc = include_str!("threat_model.md")]
pub mod threat_model {}
#[doc = include_str!("invariants.md")]
pub mod invariants {}
#[doc = include_str!("lexicon.md")]
pub mod lexicon {}
#[doc = include_str!("settings.md")]
pub mod settings {}
#[doc = include_str!("operations.md")]
pub mod operations {}
#[doc = include_str!("audit_format.md")]
pub mod audit_format {}
#[doc = include_str!("sinks.md")]
pub mod sinks {}
#[doc = include_str!("store_loss.md")]
pub mod store_loss {}
#[doc = include_str!("redis_schema.md")]
pub mod redis_schema {}
#[doc = include_str!("sqlite_schema.md")]
pub mod sqlite_schema {}
