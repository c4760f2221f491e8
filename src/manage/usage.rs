//! What one key is used for, and whether it can be done without.

use super::coverage::{self, Coverage, Verdict};
use super::{Manage, ManageError};
use crate::audit::usage::Usage;
use crate::clock::Timestamp;
use crate::key::{KeyId, KeyRecord};
use crate::policy::{Access, RouteSpec};
use crate::store::LastUses;
use ipnet::IpNet;
use std::collections::BTreeSet;

/// What is known of a key's calls.
#[derive(Clone, Debug)]
pub struct KeyUsage {
    pub key: KeyRecord,
    /// When the time begins by which it is judged; it ends now.
    pub begin: Timestamp,
    pub verdict: Verdict,
    pub coverage: Coverage,
    /// On any gateway.
    pub last: LastUses,
    /// Of the journals of one machine.
    pub details: Usage,
    /// Scopes that the key holds and no call of the details needed; none when there were more routes than are told apart.
    pub unused_scopes: Option<Vec<String>>,
    /// Entries of its allowlist that matched no call of the details; none when there were more addresses than are told apart.
    pub unmatched: Option<Vec<IpNet>>,
}

// === impl Manage ===

impl Manage<'_> {
    /// Judges a key by the time since `since`. `details` are its calls in the journals at hand, `routes` what is configured.
    ///
    /// # Errors
    /// [`ManageError::NotFound`], or the store's.
    pub fn key_usage(
        &self,
        id: KeyId,
        since: Timestamp,
        details: Usage,
        routes: &[RouteSpec],
    ) -> Result<KeyUsage, ManageError> {
        let key = self.key(id)?;
        let coverage = self.coverage()?;
        let last = self.store.last_uses(&[id])?.into_iter().next().unwrap_or_default();
        let begin = coverage::begin(&key, since);
        // What is in the journals at hand may not be reported yet.
        let is_used_here = details.last().is_some_and(|last| last.at >= begin);
        let verdict = if is_used_here { Verdict::InUse } else { Verdict::on(&key, &last, &coverage, since) };
        let (unused_scopes, unmatched) = (unused_scopes(&key, &details, routes), unmatched(&key, &details));
        Ok(KeyUsage { key, begin, verdict, coverage, last, details, unused_scopes, unmatched })
    }
}

fn unused_scopes(key: &KeyRecord, details: &Usage, routes: &[RouteSpec]) -> Option<Vec<String>> {
    let used = details.routes();
    if used.others() > 0 {
        return None;
    }
    let needed = used.iter().filter_map(|(route, _)| needed(routes, route.pattern.as_deref()?, &route.method));
    let needed: BTreeSet<&str> = needed.flat_map(str::split_whitespace).collect();
    Some(key.scopes.iter().filter(|scope| !needed.contains(scope)).map(str::to_owned).collect())
}

/// The names of the scopes that a method of a route needs; none for a public route, or one that is not configured any more.
fn needed<'a>(routes: &'a [RouteSpec], pattern: &str, method: &str) -> Option<&'a str> {
    match &routes.iter().find(|route| route.path == pattern)?.access {
        Access::Public => None,
        Access::Keyed(methods) => {
            methods.iter().find(|(known, _)| known == method).map(|(_, requirement)| requirement.text.as_str())
        }
    }
}

fn unmatched(key: &KeyRecord, details: &Usage) -> Option<Vec<IpNet>> {
    let seen = details.addresses();
    let is_unmatched = |net: &&IpNet| !seen.iter().any(|(ip, _)| net.contains(ip));
    (seen.others() == 0).then(|| key.allowlist.iter().filter(is_unmatched).copied().collect())
}
