//! Use cases of key managers: create, list, show, update, rotate, revoke, import; entities. Knows no HTTP.

use crate::key::{Prefix, Vocabulary};
use std::collections::BTreeMap;

/// What the use cases need of gateway.toml.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `[keys] prefix`.
    pub prefix: Prefix,
    /// `[scopes]`: what can be granted.
    pub vocabulary: Vocabulary,
    /// `[presets]`: name to scopes.
    pub presets: BTreeMap<String, Vec<String>>,
    /// `[tiers]`: the names a key can be given.
    pub tiers: Vec<String>,
    /// `[versions] current`: the version pinned on a new key; `None` without `[versions]`.
    pub api_version: Option<String>,
}
