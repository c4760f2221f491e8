//! Request ids: `req_` and a ULID, or the one that a trusted proxy sent.

use super::client_addr::ClientAddr;
use super::headers::X_REQUEST_ID;
use crate::clock::Timestamp;
use crate::ulid::{TEXT_LEN, Ulid};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

const PREFIX: &[u8; 4] = b"req_";
const KEPT_MAX: usize = 128;

/// A request's id. It goes to the upstream, the response, the error body and the audit record.
#[derive(Clone, Debug)]
pub struct RequestId(HeaderValue);

// === impl RequestId ===

impl RequestId {
    /// Keeps a trusted proxy's id if it matches `[A-Za-z0-9_.-]{1,128}`; makes a new one otherwise.
    pub fn choose(headers: &HeaderMap, addr: Option<ClientAddr>, now: Timestamp) -> Self {
        let trusted = addr.is_some_and(|addr| addr.peer_trusted);
        let sent = if trusted { headers.get(X_REQUEST_ID) } else { None };
        let kept = sent.filter(|id| is_acceptable(id.as_bytes()));
        kept.map_or_else(|| Self::new(now), |id| Self(id.clone()))
    }

    pub fn new(now: Timestamp) -> Self {
        let mut text = [0; PREFIX.len() + TEXT_LEN];
        let (prefix, rest) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        rest.copy_from_slice(&Ulid::new(now, fastrand::u128(..)).text());
        let text = Bytes::copy_from_slice(&text);
        Self(HeaderValue::from_maybe_shared(text).unwrap_or_else(|_| HeaderValue::from_static("req_")))
    }

    pub fn to_header(&self) -> HeaderValue {
        self.0.clone()
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

fn is_acceptable(id: &[u8]) -> bool {
    (1..=KEPT_MAX).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}
