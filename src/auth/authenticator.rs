//! Turns a presented credential into a principal, or says why not.

use super::cache::{KeyCache, Lookup};
use super::credential;
use super::fill::{Fills, Overloaded};
use crate::clock::Moment;
use crate::key::token::Form;
use crate::key::{Digest, Prefix, Principal};
use crate::reason::Reason;
use http::HeaderMap;
use std::sync::Arc;

/// Judges credentials: form and checksum first, then the cache. Does no I/O.
#[derive(Debug)]
pub struct Authenticator {
    prefix: Prefix,
    cache: Arc<KeyCache>,
    fills: Arc<Fills>,
}

/// The verdict on a credential.
#[derive(Debug)]
pub enum Authentication {
    /// With the digest under which the key is found again.
    Authenticated(Arc<Principal>, Digest),
    /// Refused; with the principal where the key is known, for the audit record.
    Rejected(Reason, Option<Arc<Principal>>),
}

/// The truth cannot be known: the key is not known here and the store cannot be asked, or everything known is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

// === impl Authenticator ===

impl Authenticator {
    pub const fn new(prefix: Prefix, cache: Arc<KeyCache>, fills: Arc<Fills>) -> Self {
        Self { prefix, cache, fills }
    }

    /// Whether there may be keys that the cache does not hold: [`Self::fill`] before judging then.
    pub fn may_lack(&self) -> bool {
        !self.cache.is_complete()
    }

    /// Has the store asked for the key that a request presents, if the cache lacks it (protocols I7). What comes of it is in the
    /// cache then, and the request is judged as any other (I8).
    ///
    /// # Errors
    /// [`Overloaded`], when too many keys were asked for.
    pub async fn fill(&self, headers: &HeaderMap, now: Moment) -> Result<(), Overloaded> {
        match self.lacking(headers, now) {
            Some((digest, trust)) => self.fills.ask(digest, trust, now.mono).await,
            None => Ok(()),
        }
    }

    /// The digest of a key that only the store can judge now, and the trust that is put in it.
    fn lacking(&self, headers: &HeaderMap, now: Moment) -> Option<(Digest, u64)> {
        let (credential, trust) = (credential::peek(headers)?, self.cache.trust());
        let may_be_a_key = match self.prefix.judge(credential) {
            Form::Malformed => false,
            Form::Foreign => self.cache.holds_imported(),
            Form::Ours => true,
        };
        if !may_be_a_key || trust == 0 || !self.cache.is_fresh(now) {
            return None;
        }
        let digest = Digest::of(credential);
        matches!(self.cache.lookup(&digest, now), Lookup::Unknown).then_some((digest, trust))
    }

    /// Whether the right to serve has run out: no contact with the store for `max_stale` (protocols I1).
    pub fn is_stale(&self, now: Moment) -> bool {
        self.cache.is_stale(now)
    }

    /// Whether the store has been heard of just now: what is known is what holds.
    pub fn is_fresh(&self, now: Moment) -> bool {
        self.cache.is_fresh(now)
    }

    pub const fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// # Errors
    /// [`Unavailable`] when the answer would be a guess. A refusal is not an error.
    pub fn authenticate(&self, credential: &[u8], now: Moment) -> Result<Authentication, Unavailable> {
        match self.prefix.judge(credential) {
            Form::Malformed => return Ok(Authentication::Rejected(Reason::KeyMalformed, None)),
            Form::Foreign if self.cache.holds_no_imported(now) => {
                return Ok(Authentication::Rejected(Reason::KeyUnknown, None));
            }
            Form::Ours | Form::Foreign => {}
        }
        self.look_up(Digest::of(credential), now)
    }

    /// Judges a key by its digest, as when its credential was presented before.
    ///
    /// # Errors
    /// As [`Self::authenticate`].
    pub fn look_up(&self, digest: Digest, now: Moment) -> Result<Authentication, Unavailable> {
        match self.cache.lookup(&digest, now) {
            Lookup::Known(principal) => Ok(Authentication::Authenticated(principal, digest)),
            Lookup::Ended(principal) => Ok(Authentication::Rejected(Reason::KeyRevoked, principal)),
            Lookup::Expired(principal) => Ok(Authentication::Rejected(Reason::KeyExpired, Some(principal))),
            Lookup::Absent => Ok(Authentication::Rejected(Reason::KeyUnknown, None)),
            Lookup::Unknown => Err(Unavailable),
        }
    }
}
