//! The only place that turns a reason into bytes (contract, section 3).

use super::body::Body;
use super::headers::X_REQUEST_ID;
use super::request_id::RequestId;
use super::service::Arrival;
use crate::clock::Timestamp;
use crate::policy::Denial;
use crate::reason::{Code, Reason};
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use std::borrow::Cow;

/// What a client should wait before it tries again, in seconds.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// A refusal on its way to becoming a response.
#[derive(Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// The scopes the route needs; with `insufficient_scope` only.
    required: Option<String>,
    /// The methods the resource takes; with `method_not_allowed` only.
    allow: Option<HeaderValue>,
}

/// Why bytes from a client never became a request that could be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unheard {
    Malformed,
    TargetTooLong,
    HeadTooLarge,
    /// A head that began and did not end in time.
    Late,
}

// === impl Refusal ===

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, required: None, allow: None }
    }
}

impl From<Denial> for Refusal {
    fn from(denial: Denial) -> Self {
        Self { reason: denial.reason, required: denial.required, allow: denial.allow }
    }
}

impl Refusal {
    /// The refusal's response, as the client that sent `arrival` can read it.
    pub fn into_response(self, arrival: &Arrival) -> Response<Body> {
        if arrival.is_grpc { self.into_trailers_only(&arrival.request_id) } else { self.into_json(&arrival.request_id) }
    }

    fn into_json(self, request_id: &RequestId) -> Response<Body> {
        let code = self.reason.code();
        let body = Bytes::from(self.body(request_id));
        let mut response = Response::new(Body::Own(Some(body)));
        *response.status_mut() = code.status();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_REQUEST_ID, request_id.to_header());
        self.add_fields(code, headers);
        response
    }

    /// A gRPC call that fails at once: its trailers in the place of a head, with a status of HTTP that says nothing
    /// ("Responses" in gRPC's PROTOCOL-HTTP2).
    fn into_trailers_only(self, request_id: &RequestId) -> Response<Body> {
        let code = self.reason.code();
        let mut response = Response::new(Body::Own(None));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code.grpc_status())));
        if let Ok(message) = HeaderValue::try_from(percent_encoded(&self.hint())) {
            headers.insert(GRPC_MESSAGE, message);
        }
        headers.insert(X_REQUEST_ID, request_id.to_header());
        if let Some(challenge) = self.challenge(code) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if closes(code) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn body(&self, request_id: &RequestId) -> String {
        let required = self.required.as_ref().map_or_else(String::new, |scope| format!(r#""required":"{scope}","#));
        json(self.reason.code(), &self.hint(), &required, request_id)
    }

    fn hint(&self) -> Cow<'static, str> {
        match &self.required {
            Some(scope) if scope.contains(' ') => format!("This key does not hold all of the scopes {scope}.").into(),
            Some(scope) => format!("This key does not hold the scope {scope}.").into(),
            None => self.reason.hint().into(),
        }
    }

    fn add_fields(self, code: Code, headers: &mut HeaderMap) {
        if let Some(challenge) = self.challenge(code) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if matches!(code, Code::KeyStoreUnavailable | Code::Overloaded | Code::AuditUnavailable) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        if closes(code) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if code == Code::MethodNotAllowed {
            // RFC 9110, section 15.5.6: `Allow` is there even when the list is empty.
            headers.insert(header::ALLOW, self.allow.unwrap_or_else(|| HeaderValue::from_static("")));
        }
    }

    /// RFC 6750, section 3: no `error` when nothing was presented.
    fn challenge(&self, code: Code) -> Option<HeaderValue> {
        match code {
            Code::MissingApiKey => Some(HeaderValue::from_static(r#"Bearer realm="keygate""#)),
            Code::InvalidApiKey | Code::ExpiredApiKey | Code::ModeMismatch => {
                Some(HeaderValue::from_static(r#"Bearer realm="keygate", error="invalid_token""#))
            }
            Code::InsufficientScope => {
                let scope = self.required.as_deref().unwrap_or_default();
                let text = format!(r#"Bearer realm="keygate", error="insufficient_scope", scope="{scope}""#);
                HeaderValue::try_from(text).ok()
            }
            Code::IpNotAllowlisted
            | Code::EntityMismatch
            | Code::NotFound
            | Code::MethodNotAllowed
            | Code::BadRequest
            | Code::PayloadTooLarge
            | Code::UriTooLong
            | Code::HeadersTooLarge
            | Code::RequestTimeout
            | Code::ExpectationFailed
            | Code::MisdirectedRequest
            | Code::KeyStoreUnavailable
            | Code::AuditUnavailable
            | Code::Overloaded
            | Code::UpstreamUnreachable
            | Code::UpstreamTimeout
            | Code::InternalError => None,
        }
    }
}

// === impl Unheard ===

impl Unheard {
    pub const fn code(self) -> Code {
        match self {
            Self::Malformed => Code::BadRequest,
            Self::TargetTooLong => Code::UriTooLong,
            Self::HeadTooLarge => Code::HeadersTooLarge,
            Self::Late => Code::RequestTimeout,
        }
    }

    const fn hint(self) -> &'static str {
        match self {
            Self::Malformed => "What was sent is not a well-formed HTTP request.",
            Self::TargetTooLong => Reason::TargetTooLong.hint(),
            Self::HeadTooLarge => Reason::HeadTooLarge.hint(),
            Self::Late => "The request's head did not arrive in time.",
        }
    }

    /// The lines of the answer's fields that are not the connection's, and its body.
    pub fn answer(self, now: Timestamp) -> (String, String) {
        let id = RequestId::new(now);
        let body = json(self.code(), self.hint(), "", &id);
        let (name, id, length) = (X_REQUEST_ID, id.as_str(), body.len());
        let fields = format!(
            "content-type: application/json\r\ncache-control: no-store\r\n{name}: {id}\r\ncontent-length: {length}\r\n"
        );
        (fields, body)
    }
}

/// A refusal's body. Every part is a literal, a scope's name or an id of `[A-Za-z0-9_.-]`: nothing needs escaping.
fn json(code: Code, hint: &str, required: &str, request_id: &RequestId) -> String {
    let (name, kind, id) = (code.as_str(), code.error_type(), request_id.as_str());
    format!(
        r#"{{"error":"{name}","code":"{name}","type":"{kind}","hint":"{hint}","param":null,{required}"request_id":"{id}"}}"#
    )
}

/// The form of `grpc-message`: printable ASCII, everything else and `%` escaped.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// After these the connection is not trusted to be in step with the client any more.
const fn closes(code: Code) -> bool {
    matches!(
        code,
        Code::BadRequest | Code::PayloadTooLarge | Code::UriTooLong | Code::HeadersTooLarge | Code::RequestTimeout
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_message_is_printable_ascii_without_a_bare_percent_sign() {
        assert_eq!(percent_encoded("Send 'a' at 100%."), "Send 'a' at 100%25.");
        assert_eq!(percent_encoded("\u{e4}\n~"), "%C3%A4%0A~");
    }
}
