//! The closed list of reasons for which keygate refuses or ends a request, and the public code of each.
//!
//! A [`Reason`] is what the audit record says; a [`Code`] is what the client sees (contract, section 3). Several
//! reasons share one code on purpose: an unknown, a revoked and a malformed key must look alike to a guesser. No match
//! on either enum has a catch-all arm, so that a new reason breaks the build until its answer, its golden file and the
//! manual follow.

use http::StatusCode;

/// The public code of a refusal: the `error` and `code` members of its body (contract, section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    MissingApiKey,
    InvalidApiKey,
    ExpiredApiKey,
    ModeMismatch,
    IpNotAllowlisted,
    EntityMismatch,
    InsufficientScope,
    NotFound,
    MethodNotAllowed,
    BadRequest,
    PayloadTooLarge,
    UriTooLong,
    HeadersTooLarge,
    RequestTimeout,
    ExpectationFailed,
    MisdirectedRequest,
    KeyStoreUnavailable,
    AuditUnavailable,
    Overloaded,
    UpstreamUnreachable,
    UpstreamTimeout,
    InternalError,
}

// === impl Code ===

impl Code {
    /// The code as it stands in the refusal's body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MissingApiKey => "missing_api_key",
            Self::InvalidApiKey => "invalid_api_key",
            Self::ExpiredApiKey => "expired_api_key",
            Self::ModeMismatch => "mode_mismatch",
            Self::IpNotAllowlisted => "ip_not_allowlisted",
            Self::EntityMismatch => "entity_mismatch",
            Self::InsufficientScope => "insufficient_scope",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::BadRequest => "bad_request",
            Self::PayloadTooLarge => "payload_too_large",
            Self::UriTooLong => "uri_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::RequestTimeout => "request_timeout",
            Self::ExpectationFailed => "expectation_failed",
            Self::MisdirectedRequest => "misdirected_request",
            Self::KeyStoreUnavailable => "key_store_unavailable",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Overloaded => "overloaded",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::InternalError => "internal_error",
        }
    }

    /// The HTTP status of the refusal.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::MissingApiKey | Self::InvalidApiKey | Self::ExpiredApiKey | Self::ModeMismatch => {
                StatusCode::UNAUTHORIZED
            }
            Self::IpNotAllowlisted | Self::EntityMismatch | Self::InsufficientScope => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UriTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::MisdirectedRequest => StatusCode::MISDIRECTED_REQUEST,
            Self::KeyStoreUnavailable | Self::AuditUnavailable | Self::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamUnreachable => StatusCode::BAD_GATEWAY,
            Self::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The refusal's status in gRPC (contract, section 3).
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::MissingApiKey | Self::InvalidApiKey | Self::ExpiredApiKey | Self::ModeMismatch => 16,
            Self::IpNotAllowlisted | Self::EntityMismatch | Self::InsufficientScope => 7,
            Self::NotFound => 12,
            Self::KeyStoreUnavailable | Self::AuditUnavailable | Self::Overloaded | Self::UpstreamUnreachable => 14,
            Self::UpstreamTimeout => 4,
            Self::MethodNotAllowed
            | Self::BadRequest
            | Self::PayloadTooLarge
            | Self::UriTooLong
            | Self::HeadersTooLarge
            | Self::RequestTimeout
            | Self::ExpectationFailed
            | Self::MisdirectedRequest
            | Self::InternalError => 13,
        }
    }

    /// The `type` member of the refusal's body.
    pub const fn error_type(self) -> &'static str {
        match self {
            Self::MissingApiKey
            | Self::InvalidApiKey
            | Self::ExpiredApiKey
            | Self::ModeMismatch
            | Self::IpNotAllowlisted
            | Self::EntityMismatch
            | Self::InsufficientScope => "permission_error",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed
            | Self::BadRequest
            | Self::PayloadTooLarge
            | Self::UriTooLong
            | Self::HeadersTooLarge
            | Self::RequestTimeout
            | Self::ExpectationFailed
            | Self::MisdirectedRequest => "validation_error",
            Self::KeyStoreUnavailable
            | Self::AuditUnavailable
            | Self::Overloaded
            | Self::UpstreamUnreachable
            | Self::UpstreamTimeout
            | Self::InternalError => "internal",
        }
    }
}

/// Declares every reason once: its name in audit records, its public code, and the hint the client reads.
macro_rules! reasons {
    ($( $(#[$doc:meta])* $name:ident = $text:literal => $code:ident, $hint:literal; )+) => {
        /// Why a request was refused or ended early: the `reason` member of its audit record (contract, section 6).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $( $(#[$doc])* $name, )+ }

        impl Reason {
            /// Every reason, in declaration order: the label set of the request counter.
            pub const ALL: &'static [Self] = &[ $( Self::$name, )+ ];

            /// The reason's name in audit records and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$name => $text, )+ }
            }

            /// What the client is told.
            pub const fn code(self) -> Code {
                match self { $( Self::$name => Code::$code, )+ }
            }

            /// One sentence that helps an honest caller and tells a guesser nothing.
            pub const fn hint(self) -> &'static str {
                match self { $( Self::$name => $hint, )+ }
            }
        }
    };
}

reasons! {
    // HTTP hygiene: what is ambiguous is refused before anything else is looked at.
    /// No `Host`, several, or one that is not a host.
    HostInvalid = "host_invalid" => BadRequest, "Send exactly one valid Host header.";
    /// The authority of an absolute target differs from `Host`.
    HostMismatch = "host_mismatch" => BadRequest, "The request target names another host than the Host header.";
    /// The target is not a path that begins with a slash.
    TargetForm = "target_form" => BadRequest, "The request target must be a path that begins with '/'.";
    /// The path has an empty, `.` or `..` segment, an encoded separator, a bad escape, or `;`, `\`, a control.
    PathAmbiguous = "path_ambiguous" => BadRequest, "The request path can be read in more than one way; send it in its plain form.";
    /// `Transfer-Encoding` other than exactly `chunked`.
    FramingAmbiguous = "framing_ambiguous" => BadRequest, "The length of the request body is ambiguous.";
    /// A `Connection` header that names a field the gateway relies on.
    ConnectionInvalid = "connection_invalid" => BadRequest, "The Connection header names a field that cannot be removed.";
    /// A header that collides, `_` read as `-`, with one the gateway sets; or a value with forbidden bytes.
    HeaderInvalid = "header_invalid" => BadRequest, "A request header is malformed or not allowed.";
    /// More than one credential.
    CredentialsSeveral = "credentials_several" => BadRequest, "Send exactly one credential.";
    /// Something like one of our keys in the request target, where every log would keep it.
    CredentialInTarget = "credential_in_target" => BadRequest, "Send the API key in the Authorization header, never in the URL.";
    /// The request body broke its own framing.
    BodyMalformed = "body_malformed" => BadRequest, "The request body is malformed.";
    /// TRACE, TRACK or CONNECT, or a method that no route can name.
    MethodForbidden = "method_forbidden" => MethodNotAllowed, "This method is not allowed.";
    /// `Expect` other than `100-continue`.
    ExpectationUnknown = "expectation_failed" => ExpectationFailed, "The only supported expectation is 100-continue.";
    /// The authority is another host's than the TLS connection is for.
    Misdirected = "misdirected_request" => MisdirectedRequest, "This connection was made for another host; use a connection of its own for this one.";

    // Limits.
    /// The request target is longer than `limits.target_max`.
    TargetTooLong = "uri_too_long" => UriTooLong, "The request target is too long.";
    /// The head has more fields or bytes than the limits allow.
    HeadTooLarge = "headers_too_large" => HeadersTooLarge, "The request's header fields are too large.";
    /// The body is longer than the route's `body_max`.
    BodyTooLarge = "payload_too_large" => PayloadTooLarge, "The request body is larger than this route allows.";
    /// The body stopped arriving for longer than `limits.body_idle`.
    BodyTimeout = "request_timeout" => RequestTimeout, "The request body did not arrive in time.";

    // Credential and key state.
    /// No credential, or another scheme than Bearer.
    KeyMissing = "missing_api_key" => MissingApiKey, "Send your API key as 'Authorization: Bearer <key>'.";
    /// A credential that cannot be a key: empty, wrong form, or wrong checksum.
    KeyMalformed = "key_malformed" => InvalidApiKey, "This API key is not valid.";
    /// Well formed, but no such key.
    KeyUnknown = "key_unknown" => InvalidApiKey, "This API key is not valid.";
    /// Revoked, or its entity was deleted.
    KeyRevoked = "key_revoked" => InvalidApiKey, "This API key is not valid.";
    /// Past its expiry.
    KeyExpired = "expired_api_key" => ExpiredApiKey, "This API key has expired; use its successor or ask for a new one.";
    /// The key is not known here and the store cannot be asked, or everything known is too old.
    StoreUnavailable = "key_store_unavailable" => KeyStoreUnavailable, "The key cannot be checked at the moment; try again.";

    // Policy.
    /// The client's address is not on the key's allowlist.
    IpNotAllowlisted = "ip_not_allowlisted" => IpNotAllowlisted, "This key may not be used from this address.";
    /// No route matches.
    RouteUnknown = "not_found" => NotFound, "There is no such resource.";
    /// The route does not take this method.
    MethodNotAllowed = "method_not_allowed" => MethodNotAllowed, "This resource does not take this method.";
    /// The route has no upstream for the key's mode.
    ModeMismatch = "mode_mismatch" => ModeMismatch, "This resource is not available in this key's mode.";
    /// `{entity_id}` in the path is not the key's entity.
    EntityMismatch = "entity_mismatch" => EntityMismatch, "This key belongs to another entity.";
    /// The route needs a scope that the key does not hold.
    ScopeMissing = "insufficient_scope" => InsufficientScope, "This key does not hold a scope that this request needs.";

    // What keygate or the upstream cannot do.
    /// Audit is mandatory and cannot be written.
    AuditUnavailable = "audit_unavailable" => AuditUnavailable, "The request cannot be recorded at the moment; try again.";
    /// A concurrency limit is reached.
    Overloaded = "overloaded" => Overloaded, "Too many requests are in flight; try again.";
    /// The upstream cannot be connected to, or broke the protocol before its response's head was complete.
    UpstreamUnreachable = "upstream_unreachable" => UpstreamUnreachable, "The service behind the gateway did not answer.";
    /// The upstream did not answer in time.
    UpstreamTimeout = "upstream_timeout" => UpstreamTimeout, "The service behind the gateway did not answer in time.";
    /// A defect in keygate; caught and counted.
    Internal = "internal_error" => InternalError, "The gateway failed; the failure was recorded.";

    // How an admitted request can end after its head was answered: the client sees a broken response, not a code.
    /// The client went away before the response was complete.
    ClientAborted = "client_aborted" => InternalError, "The client closed the connection.";
    /// The upstream broke off its response after the head.
    UpstreamAborted = "upstream_aborted" => UpstreamUnreachable, "The service behind the gateway broke off.";
    /// Nothing passed through an upgraded connection for `limits.tunnel_idle`.
    TunnelIdle = "tunnel_idle" => RequestTimeout, "Nothing was sent on the connection for too long.";
    /// The gateway's drain bound passed before the exchange ended.
    DrainExpired = "drain_expired" => Overloaded, "The gateway was stopped.";
    /// The key was revoked while the request was in flight.
    CutByRevocation = "cut_by_revocation" => InvalidApiKey, "This API key is not valid.";
    /// Nothing was heard of the key store for `max_stale`.
    CutByStaleness = "cut_by_staleness" => KeyStoreUnavailable, "The key cannot be checked at the moment; try again.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_distinct() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(names.len(), Reason::ALL.len());
    }

    #[test]
    fn what_must_look_alike_to_a_guesser_does() {
        for reason in [Reason::KeyUnknown, Reason::KeyRevoked] {
            assert_eq!(reason.code(), Reason::KeyMalformed.code());
            assert_eq!(reason.hint(), Reason::KeyMalformed.hint());
        }
    }
}
