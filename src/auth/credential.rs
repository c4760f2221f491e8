//! Takes the credential out of a request's head, so that nothing later can log or forward it.

use crate::key::Prefix;
use crate::reason::Reason;
use crate::secret::Secret;
use http::header::{AUTHORIZATION, COOKIE, Entry};
use http::{HeaderMap, HeaderName, HeaderValue};

/// A presented bearer token. Wiped when dropped.
pub type Credential = Secret<Vec<u8>>;

/// What the request presented.
#[derive(Debug)]
pub enum Presented {
    Nothing,
    /// Another scheme than Bearer: no credential for us.
    OtherScheme,
    Bearer(Credential),
}

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Moves the credential out of `headers`: `Authorization` goes whatever its scheme, and so do `X-Api-Key` and every
/// cookie that holds something like a key of ours (contract, section 3).
///
/// # Errors
/// [`Reason::CredentialsSeveral`] when there is more than one: not "the first wins", even if they are equal.
pub fn take(headers: &mut HeaderMap, prefix: &Prefix) -> Result<Presented, Reason> {
    let presented = take_authorization(headers)?;
    if let Some(other) = headers.remove(X_API_KEY)
        && prefix.occurs_in(other.as_bytes())
        && !matches!(presented, Presented::Nothing)
    {
        return Err(Reason::CredentialsSeveral);
    }
    if headers.contains_key(COOKIE) {
        strip_cookies(headers, prefix);
    }
    Ok(presented)
}

/// The bearer token that the head presents, if it presents exactly one.
pub fn peek(headers: &HeaderMap) -> Option<&[u8]> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    bearer(line.as_bytes())
}

fn take_authorization(headers: &mut HeaderMap) -> Result<Presented, Reason> {
    let Entry::Occupied(lines) = headers.entry(AUTHORIZATION) else { return Ok(Presented::Nothing) };
    if lines.iter().nth(1).is_some() {
        return Err(Reason::CredentialsSeveral);
    }
    let value = lines.remove();
    Ok(bearer(value.as_bytes()).map_or(Presented::OtherScheme, |token| Presented::Bearer(Secret::new(token.to_vec()))))
}

/// The token of a `Bearer` credential: the scheme in any case, one space (RFC 9110, section 11.4). A bare scheme is an
/// empty token, which is presented and wrong, not absent.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") {
        return None;
    }
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b" ") }
}

/// Removes the cookies that hold something like a key of ours and leaves the others as they were.
fn strip_cookies(headers: &mut HeaderMap, prefix: &Prefix) {
    if !headers.get_all(COOKIE).iter().any(|line| prefix.occurs_in(line.as_bytes())) {
        return;
    }
    let lines: Vec<HeaderValue> =
        headers.get_all(COOKIE).iter().filter_map(|line| clean_cookies(line, prefix)).collect();
    headers.remove(COOKIE);
    for line in lines {
        headers.append(COOKIE, line);
    }
}

fn clean_cookies(line: &HeaderValue, prefix: &Prefix) -> Option<HeaderValue> {
    if !prefix.occurs_in(line.as_bytes()) {
        return Some(line.clone());
    }
    let kept: Vec<&[u8]> =
        line.as_bytes().split(|byte| *byte == b';').filter(|cookie| !prefix.occurs_in(cookie)).collect();
    HeaderValue::from_bytes(kept.join(&b';').trim_ascii()).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn prefix() -> Prefix {
        Prefix::new("ark").unwrap()
    }

    fn token(lines: &[(&'static str, &'static str)]) -> Option<String> {
        match take(&mut headers(lines), &prefix()).unwrap() {
            Presented::Bearer(token) => Some(String::from_utf8(token.expose().clone()).unwrap()),
            Presented::Nothing | Presented::OtherScheme => None,
        }
    }

    #[test]
    fn bearer_is_read_in_any_case_with_one_space() {
        assert_eq!(token(&[("authorization", "Bearer abc")]).as_deref(), Some("abc"));
        assert_eq!(token(&[("authorization", "bEARER abc")]).as_deref(), Some("abc"));
        assert_eq!(token(&[("authorization", "Bearer  abc")]).as_deref(), Some(" abc"));
        assert_eq!(token(&[("authorization", "Bearer")]).as_deref(), Some(""));
        assert_eq!(token(&[("authorization", "Basic abc")]), None);
        assert_eq!(token(&[("authorization", "Bearerabc")]), None);
    }

    #[test]
    fn two_credentials_are_refused_even_if_equal() {
        let twice = [("authorization", "Bearer abc"), ("authorization", "Bearer abc")];
        assert_eq!(take(&mut headers(&twice), &prefix()).unwrap_err(), Reason::CredentialsSeveral);
        let both = [("authorization", "Bearer abc"), ("x-api-key", "ark_live_ent_acme_x")];
        assert_eq!(take(&mut headers(&both), &prefix()).unwrap_err(), Reason::CredentialsSeveral);
    }

    #[test]
    fn every_copy_is_removed_and_other_cookies_stay() {
        let mut map = headers(&[
            ("authorization", "Bearer ark_live_ent_acme_x"),
            ("cookie", "a=1; k=ark_test_ent_acme_x; b=2"),
            ("cookie", "k=ark_live_ent_acme_x"),
            ("cookie", "c=3"),
        ]);
        take(&mut map, &prefix()).unwrap();
        let cookies: Vec<_> = map.get_all(COOKIE).iter().map(|line| line.to_str().unwrap()).collect();
        assert_eq!(cookies, ["a=1; b=2", "c=3"]);
        assert!(!map.contains_key(AUTHORIZATION));
    }
}
