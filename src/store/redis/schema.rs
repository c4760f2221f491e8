//! What the keys in Redis are called. `manual::redis_schema` describes them to other programs.

/// The layout's version, kept under `{keygate}:schema`.
pub const VERSION: u32 = 1;
/// Before every key. The braces make it one hash tag, so that a script may touch all of them.
pub const PREFIX: &str = "{keygate}";

/// A key of ours.
pub fn name(rest: &str) -> String {
    format!("{PREFIX}:{rest}")
}
