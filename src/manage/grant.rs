//! What may be granted: scopes and presets against the declared vocabulary, and what deserves a warning.

use super::{ManageError, Settings};
use crate::key::{ScopeList, Vocabulary};
use crate::net::Networks;

/// The preset that needs an expiry or a waiver, because it can move a whole company's data.
const MIGRATION: &str = "migration";

// === impl Settings ===

impl Settings {
    /// The scopes named one by one, or those of a preset, expanded now.
    ///
    /// # Errors
    /// [`ManageError::Invalid`] when a name is not declared, with the nearest that is; when both or neither were given; when
    /// an elevated scope is not acknowledged.
    pub(super) fn scopes(
        &self,
        named: &[String],
        preset: Option<&str>,
        acknowledged: bool,
    ) -> Result<ScopeList, ManageError> {
        let names = match (named, preset) {
            ([], None) => return Err(invalid("a key needs at least one --scope, or a --preset")),
            (named, None) => named.to_vec(),
            ([], Some(preset)) => self.preset(preset)?,
            (_, Some(_)) => return Err(invalid("give either --scope or --preset, not both")),
        };
        for name in &names {
            self.check_scope(name)?;
        }
        let elevated: Vec<_> = names.iter().filter(|name| self.vocabulary.is_elevated(name)).cloned().collect();
        if !elevated.is_empty() && !acknowledged {
            let elevated = elevated.join(", ");
            return Err(invalid(&format!(
                "{elevated}: elevated; whoever holds this key can do lasting harm. Grant it with --acknowledge-elevated"
            )));
        }
        Ok(ScopeList::new(names))
    }

    fn preset(&self, name: &str) -> Result<Vec<String>, ManageError> {
        self.presets.get(name).cloned().ok_or_else(|| {
            let known = self.presets.keys().map(String::as_str);
            invalid(&format!("there is no preset '{name}'{}", suggestion(name, known, "[presets] in gateway.toml")))
        })
    }

    fn check_scope(&self, name: &str) -> Result<(), ManageError> {
        if self.vocabulary.contains(name) {
            return Ok(());
        }
        let hint = suggestion(name, self.vocabulary.names(), "[scopes] in gateway.toml");
        Err(invalid(&format!("the scope '{name}' is not declared{hint}")))
    }

    /// The migration preset wants an end.
    pub(super) fn check_preset_expiry(
        &self,
        preset: Option<&str>,
        has_expiry: bool,
        waived: bool,
    ) -> Result<(), ManageError> {
        if preset == Some(MIGRATION) && !has_expiry && !waived {
            return Err(invalid("a key of the preset 'migration' needs --expires, or --no-expiry to waive it"));
        }
        Ok(())
    }

    /// # Errors
    /// [`ManageError::Invalid`] for a tier that does not exist.
    pub(super) fn check_tier(&self, tier: &str) -> Result<(), ManageError> {
        if self.tiers.iter().any(|known| known == tier) {
            return Ok(());
        }
        Err(invalid(&format!("there is no tier '{tier}'; there are: {}", self.tiers.join(", "))))
    }

    /// What a key manager should think about again.
    pub(super) fn warnings(&self, scopes: &ScopeList, allowlist: &Networks) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.is_elevated(scopes) {
            warnings.push("this key holds elevated scopes".to_owned());
        }
        if allowlist.is_empty() && self.is_powerful(scopes) {
            warnings.push("this key is powerful and works from any address; limit it with --allow".to_owned());
        }
        warnings
    }

    /// Whether a key with these scopes holds elevated ones or may write everything else.
    pub(super) fn is_powerful(&self, scopes: &ScopeList) -> bool {
        self.is_elevated(scopes) || holds_every_write(&self.vocabulary, scopes)
    }

    fn is_elevated(&self, scopes: &ScopeList) -> bool {
        scopes.iter().any(|scope| self.vocabulary.is_elevated(scope))
    }
}

/// Whether every write scope that is not elevated is in the list.
fn holds_every_write(vocabulary: &Vocabulary, scopes: &ScopeList) -> bool {
    let mut writes =
        vocabulary.names().filter(|name| name.ends_with(":write") && !vocabulary.is_elevated(name)).peekable();
    writes.peek().is_some() && writes.all(|write| scopes.iter().any(|scope| scope == write))
}

/// The nearest known name, or where the known names are.
fn suggestion<'a>(name: &str, known: impl Iterator<Item = &'a str>, place: &str) -> String {
    let nearest = known.map(|known| (strsim::damerau_levenshtein(name, known), known)).min();
    match nearest {
        Some((distance, known)) if distance <= 2 + name.len() / 8 => format!("; did you mean '{known}'?"),
        Some(_) | None => format!("; see {place}"),
    }
}

pub(super) fn invalid(message: &str) -> ManageError {
    ManageError::Invalid(message.to_owned())
}
