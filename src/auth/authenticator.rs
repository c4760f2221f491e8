//! Turns a presented credential into a principal, or says why not.

use super::cache::{KeyCache, Lookup};
use crate::clock::Moment;
use crate::key::token::Form;
use crate::key::{Digest, Prefix, Principal};
use crate::reason::Reason;
use std::sync::Arc;

/// Judges credentials: form and checksum first, then the cache. Does no I/O.
#[derive(Debug)]
pub struct Authenticator {
    prefix: Prefix,
    cache: Arc<KeyCache>,
}

/// The verdict on a credential.
#[derive(Debug)]
pub enum Authentication {
    Authenticated(Arc<Principal>),
    /// Refused; with the principal where the key is known, for the audit record.
    Rejected(Reason, Option<Arc<Principal>>),
}

/// The truth cannot be known: the key is not known here and the store cannot be asked, or everything known is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unavailable;

// === impl Authenticator ===

impl Authenticator {
    pub const fn new(prefix: Prefix, cache: Arc<KeyCache>) -> Self {
        Self { prefix, cache }
    }

    pub const fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    /// # Errors
    /// [`Unavailable`] when the answer would be a guess. A refusal is not an error.
    pub fn authenticate(&self, credential: &[u8], now: Moment) -> Result<Authentication, Unavailable> {
        match self.prefix.judge(credential) {
            Form::Malformed => return Ok(Authentication::Rejected(Reason::KeyMalformed, None)),
            Form::Foreign if !self.cache.holds_imported() && self.cache.is_authoritative(now) => {
                return Ok(Authentication::Rejected(Reason::KeyUnknown, None));
            }
            Form::Ours | Form::Foreign => {}
        }
        match self.cache.lookup(&Digest::of(credential), now) {
            Lookup::Known(principal) => Ok(Authentication::Authenticated(principal)),
            Lookup::Ended(principal) => Ok(Authentication::Rejected(Reason::KeyRevoked, Some(principal))),
            Lookup::Expired(principal) => Ok(Authentication::Rejected(Reason::KeyExpired, Some(principal))),
            Lookup::Absent => Ok(Authentication::Rejected(Reason::KeyUnknown, None)),
            Lookup::Unknown => Err(Unavailable),
        }
    }
}
