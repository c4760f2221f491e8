//! Scopes, `<resource>:<permission>`, and the vocabulary that an operator declares.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The scopes a key was granted, as stored: names, sorted, separated by spaces. One string, because a gateway holds a
/// million of these while it loads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScopeList(String);

/// A set of declared scopes as bits: what a request's authorization compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ScopeSet(u128);

/// The declared scopes (`[scopes]` in gateway.toml), each with its bit.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    bits: BTreeMap<String, ScopeBit>,
}

#[derive(Clone, Copy, Debug)]
struct ScopeBit {
    bit: u32,
    elevated: bool,
}

/// How many scopes can be declared: one bit each.
pub const SCOPES_MAX: usize = 128;

// === impl ScopeList ===

impl ScopeList {
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        let names: BTreeSet<String> = names.into_iter().collect();
        Self(names.into_iter().collect::<Vec<_>>().join(" "))
    }

    /// Reads the stored form; order and repetition are repaired.
    pub fn parse(text: &str) -> Self {
        // As it was written, nearly always: a load of a million keys should not sort each.
        if !text.is_empty()
            && text.split(' ').all(|name| !name.is_empty())
            && text.split(' ').is_sorted_by(|a, b| a < b)
        {
            return Self(text.to_owned());
        }
        Self::new(text.split(' ').filter(|name| !name.is_empty()).map(str::to_owned))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.split(' ').filter(|name| !name.is_empty())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for ScopeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl ScopeSet ===

impl ScopeSet {
    pub const fn contains_all(self, required: Self) -> bool {
        self.0 & required.0 == required.0
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

// === impl Vocabulary ===

impl Vocabulary {
    /// The vocabulary of `declared` scopes: name and whether it is elevated.
    ///
    /// # Errors
    /// When more than [`SCOPES_MAX`] are declared.
    pub fn new(declared: impl IntoIterator<Item = (String, bool)>) -> Result<Self, String> {
        let mut bits = BTreeMap::new();
        for (name, elevated) in declared {
            // By the number of names so far: a name declared twice must not use up a bit, or two names could share one.
            let bit = u32::try_from(bits.len()).unwrap_or(u32::MAX);
            bits.entry(name).or_insert(ScopeBit { bit, elevated });
            if bits.len() > SCOPES_MAX {
                return Err(format!("more than {SCOPES_MAX} scopes are declared"));
            }
        }
        Ok(Self { bits })
    }

    pub fn contains(&self, name: &str) -> bool {
        self.bits.contains_key(name)
    }

    /// Whether a person must acknowledge granting this scope.
    pub fn is_elevated(&self, name: &str) -> bool {
        self.bits.get(name).is_some_and(|scope| scope.elevated)
    }

    /// The set with `name` alone; `None` when it is not declared.
    pub fn set(&self, name: &str) -> Option<ScopeSet> {
        self.bits.get(name).map(|scope| ScopeSet(1 << scope.bit))
    }

    /// The declared names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.bits.keys().map(String::as_str)
    }

    /// The bits of a stored list. Undeclared names grant nothing and are returned for a warning.
    pub fn resolve<'a>(&self, list: &'a ScopeList) -> (ScopeSet, Vec<&'a str>) {
        let mut set = ScopeSet::default();
        let mut undeclared = Vec::new();
        for name in list.iter() {
            match self.set(name) {
                Some(one) => set = set.union(one),
                None => undeclared.push(name),
            }
        }
        (set, undeclared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsing_gives_the_sorted_set_whatever_the_order(text in "[ab ]{0,12}") {
            let naive: BTreeSet<&str> = text.split(' ').filter(|name| !name.is_empty()).collect();
            let parsed = ScopeList::parse(&text);
            prop_assert_eq!(parsed.as_str(), naive.into_iter().collect::<Vec<_>>().join(" "));
        }
    }

    #[test]
    fn no_two_scopes_share_a_bit_however_often_one_is_declared() {
        let repeated = std::iter::repeat_n(("a:read".to_owned(), false), 500);
        let others = (1..SCOPES_MAX).map(|number| (format!("b:p{number}"), false));
        let vocabulary = Vocabulary::new(repeated.chain(others)).unwrap();
        let sets: Vec<ScopeSet> = vocabulary.names().filter_map(|name| vocabulary.set(name)).collect();
        assert_eq!(sets.len(), SCOPES_MAX);
        for (at, one) in sets.iter().enumerate() {
            assert!(sets.iter().skip(at + 1).all(|other| !one.contains_all(*other)));
        }
        assert!(Vocabulary::new((0..=SCOPES_MAX).map(|number| (format!("c:p{number}"), false))).is_err());
    }
}
