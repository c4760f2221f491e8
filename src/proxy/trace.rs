//! W3C trace context: the trace is continued if the client sent a valid `traceparent`, or begun (Trace Context, section 3.2).

use http::HeaderMap;

/// The trace a request belongs to, and this gateway's span in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub id: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

const HEADER: &str = "traceparent";
const TEXT_LEN: usize = 55;

// === impl Trace ===

impl Trace {
    /// Continues the client's trace, or begins a new, unsampled one; a bad value is ignored, never an error. A
    /// `tracestate` without a valid parent is dropped.
    pub fn choose(headers: &mut HeaderMap) -> Self {
        let span = fastrand::u64(1..).to_be_bytes();
        let mut lines = headers.get_all(HEADER).iter();
        let (first, second) = (lines.next(), lines.next());
        let parent = first.filter(|_| second.is_none()).and_then(|value| parse(value.as_bytes()));
        let (id, flags) = parent.unwrap_or_else(|| {
            headers.remove("tracestate");
            (fastrand::u128(1..).to_be_bytes(), 0)
        });
        Self { id, span, flags }
    }

    /// Appends `00-<trace>-<span>-<flags>`.
    pub fn push(&self, out: &mut Vec<u8>) {
        let mut text = [b'-'; TEXT_LEN];
        write_hex(&mut text, 0, &[0]);
        write_hex(&mut text, 3, &self.id);
        write_hex(&mut text, 36, &self.span);
        write_hex(&mut text, 53, &[self.flags]);
        out.extend_from_slice(&text);
    }
}

fn write_hex(text: &mut [u8; TEXT_LEN], at: usize, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let Some(text) = text.get_mut(at..) else { return };
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]); // tidy: allow(four bits index 16 digits)
    }
}

/// The trace id and flags of a valid version-00 value with ids that are not all zero.
fn parse(value: &[u8]) -> Option<([u8; 16], u8)> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.len() == TEXT_LEN)?;
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let valid = version == "00" && trace.len() == 32 && span.len() == 16 && flags.len() == 2;
    let lower_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !valid || ![trace, span, flags].into_iter().all(lower_hex) || span.bytes().all(|byte| byte == b'0') {
        return None;
    }
    let id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
    Some((id.to_be_bytes(), u8::from_str_radix(flags, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn text(trace: Trace) -> String {
        let mut text = Vec::new();
        trace.push(&mut text);
        String::from_utf8(text).unwrap()
    }

    fn headers(value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_static(value));
        headers.insert("tracestate", HeaderValue::from_static("a=b"));
        headers
    }

    #[test]
    fn a_valid_trace_is_continued_under_a_new_span() {
        let mut headers = headers("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        let text = text(Trace::choose(&mut headers));
        assert!(text.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && text.ends_with("-01"), "{text}");
        assert!(!text.contains("00f067aa0ba902b7"));
        assert!(headers.contains_key("tracestate"));
    }

    #[test]
    fn a_bad_trace_is_replaced_and_its_state_dropped() {
        for bad in [
            "",
            "00-0",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            let mut headers = headers(bad);
            let trace = Trace::choose(&mut headers);
            assert_ne!(trace.id, [0; 16]);
            assert_eq!(text(trace).len(), TEXT_LEN);
            assert!(!headers.contains_key("tracestate"), "{bad}");
        }
    }
}
