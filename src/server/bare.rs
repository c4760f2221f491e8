//! The contract's answers to bytes of HTTP/1.1 that never became a request. The library answers some by itself, and bare.

use super::http2::date;
use crate::clock::Clock;
use crate::proxy::respond::Unheard;

/// The line that the library's bare answers have and ours have not: they have a body, or a request's id.
const EMPTY: &str = "content-length: 0\r\n";

/// The answer to send in the place of `written`, if that is one of the library's own, whole.
pub fn reworded(written: &[u8]) -> Option<Vec<u8>> {
    let head = std::str::from_utf8(written).ok()?;
    let unheard = match head.strip_prefix("HTTP/1.1 ")?.get(..3)? {
        "400" => Unheard::Malformed,
        "414" => Unheard::TargetTooLong,
        "431" => Unheard::HeadTooLarge,
        _ => return None,
    };
    let is_whole = head.find("\r\n\r\n")? + 4 == head.len();
    if !is_whole || head.contains("x-request-id") {
        return None;
    }
    let (before, after) = head.split_once(EMPTY)?;
    let (fields, body) = unheard.answer(Clock::system().now());
    Some([before, &fields, after, &body].concat().into_bytes())
}

/// The answer to a head that began and did not end in time, which the library does not answer.
pub fn late() -> Vec<u8> {
    let (fields, body) = Unheard::Late.answer(Clock::system().now());
    let date = date::now();
    let date =
        date.as_ref().and_then(|date| date.to_str().ok()).map_or_else(String::new, |date| format!("date: {date}\r\n"));
    format!("HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n{fields}{date}\r\n{body}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_librarys_own_answers_are_reworded() {
        let bare = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: today\r\n\r\n";
        let said = String::from_utf8(reworded(bare.as_bytes()).unwrap()).unwrap();
        let (head, body) = said.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: application/json\r\n")
        );
        assert!(head.ends_with(&format!("\r\ncontent-length: {}\r\ndate: today", body.len())));
        assert!(body.starts_with(r#"{"error":"bad_request""#) && body.ends_with("\"}"));
        for other in [
            bare.replace("400", "404"),
            bare.replace("date: today", "x-request-id: a"),
            bare.replace("length: 0", "length: 1") + "a",
            bare.to_owned() + bare,
            bare.trim_end().to_owned(),
        ] {
            assert_eq!(reworded(other.as_bytes()), None, "{other}");
        }
    }
}
