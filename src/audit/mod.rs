//! Exactly one record for every request: the recorder, the rings, the journal and what reads it.

use std::path::PathBuf;

/// `[audit]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `dir`: where the journal's segments are.
    pub dir: PathBuf,
    /// `anonymous_per_second`: refusals without a valid key beyond this become exact counts.
    pub anonymous_per_second: u32,
}
