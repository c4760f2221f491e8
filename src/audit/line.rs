//! Lines of the journal that tell of requests, made from the drafts that their workers left.

use super::draft::{Draft, Text};
use super::json::{escape, push_hex};
use super::segment::{self, Kind};
use crate::clock::Timestamp;
use crate::net::{push_ip, push_number};
use std::net::IpAddr;

/// What no line is longer than (protocols J2).
const LINE_BYTES_MAX: usize = 4096;
/// The length of a time up to its second.
const SECOND: usize = 19;

/// Makes the lines of one journal under one configuration.
#[derive(Clone, Debug)]
pub struct RequestLines {
    /// What all of them begin and end with, up to the number and from the gateway on.
    begin: Vec<u8>,
    end: Vec<u8>,
    /// The second of the last one, and its text: thousands share it.
    second: (i64, [u8; SECOND]),
}

// === impl RequestLines ===

impl RequestLines {
    pub fn new(journal: &str, config: &str) -> Self {
        let (begin, end) = (segment::begin(Kind::Request, journal), segment::end(journal, config));
        Self { begin, end, second: (i64::MIN, [b' '; SECOND]) }
    }

    /// Appends a request's line, and gives its checksum. Each member is written with what stands before it: many short pieces
    /// cost more than all they hold.
    pub fn write(&mut self, out: &mut Vec<u8>, seq: u64, draft: &Draft<'_>) -> u32 {
        let start = out.len();
        out.reserve(LINE_BYTES_MAX);
        out.extend_from_slice(&self.begin);
        push_number(out, seq);
        self.push_time(out, draft.at);
        push_text(out, br#"","request_id":"#, draft, Text::RequestId);
        out.extend_from_slice(br#","trace_id":""#);
        push_hex(out, &draft.trace_id);
        push_address(out, br#"","client_ip":"#, draft.client_ip);
        push_address(out, br#","peer_ip":"#, draft.peer_ip);
        push_text(out, br#","method":"#, draft, Text::Method);
        push_text(out, br#","host":"#, draft, Text::Host);
        push_text(out, br#","path":"#, draft, Text::Path);
        if draft.text(Text::Query).is_some() {
            push_text(out, br#","query":"#, draft, Text::Query);
        }
        push_text(out, br#","route":"#, draft, Text::Route);
        out.extend_from_slice(br#","protocol":""#);
        out.extend_from_slice(draft.protocol.as_str().as_bytes());
        push_text(out, br#"","user_agent":"#, draft, Text::UserAgent);
        push_text(out, br#","client_identity":"#, draft, Text::ClientIdentity);
        push_key(out, draft);
        push_outcome(out, draft);
        out.extend_from_slice(&self.end);
        segment::push_crc(out, start)
    }

    /// RFC 3339 with microseconds.
    fn push_time(&mut self, out: &mut Vec<u8>, time: Timestamp) {
        let (second, micros) = (time.as_micros().div_euclid(1_000_000), time.as_micros().rem_euclid(1_000_000));
        if self.second.0 != second {
            let text = time.to_string();
            self.second = (second, text.as_bytes().first_chunk().copied().unwrap_or([b'0'; SECOND]));
        }
        out.extend_from_slice(br#","ts":""#);
        out.extend_from_slice(&self.second.1);
        let mut fraction = *b".000000Z";
        let mut rest = micros as u32;
        for digit in fraction.iter_mut().skip(1).take(6).rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&fraction);
    }
}

fn push_key(out: &mut Vec<u8>, draft: &Draft<'_>) {
    let Some((id, mode)) = draft.key else {
        out.extend_from_slice(br#","key_id":null,"key_name":null,"entity_id":null,"mode":null"#);
        return;
    };
    out.extend_from_slice(br#","key_id":"key_"#);
    out.extend_from_slice(&id.ulid().text());
    push_text(out, br#"","key_name":"#, draft, Text::KeyName);
    push_text(out, br#","entity_id":"#, draft, Text::EntityId);
    out.extend_from_slice(br#","mode":""#);
    out.extend_from_slice(mode.as_str().as_bytes());
    out.push(b'"');
}

fn push_outcome(out: &mut Vec<u8>, draft: &Draft<'_>) {
    out.extend_from_slice(if draft.allowed { br#","decision":"allow""# } else { br#","decision":"deny""# });
    push_text(out, br#","reason":"#, draft, Text::Reason);
    push_count(out, br#","status":"#, draft.status.map(u64::from));
    push_count(out, br#","bytes_in":"#, draft.bytes_in);
    push_count(out, br#","bytes_out":"#, draft.bytes_out);
    push_count(out, br#","duration_us":"#, draft.duration_us);
    push_text(out, br#","upstream":"#, draft, Text::Upstream);
    push_count(out, br#","upstream_us":"#, draft.upstream_us);
}

fn push_text<const N: usize>(out: &mut Vec<u8>, name: &[u8; N], draft: &Draft<'_>, text: Text) {
    out.extend_from_slice(name);
    match draft.text(text) {
        Some(bytes) => {
            out.push(b'"');
            escape(out, bytes, text.shown_max());
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

fn push_address<const N: usize>(out: &mut Vec<u8>, name: &[u8; N], address: Option<IpAddr>) {
    out.extend_from_slice(name);
    match address {
        Some(ip) => {
            out.push(b'"');
            push_ip(out, ip);
            out.push(b'"');
        }
        None => out.extend_from_slice(b"null"),
    }
}

fn push_count<const N: usize>(out: &mut Vec<u8>, name: &[u8; N], count: Option<u64>) {
    out.extend_from_slice(name);
    match count {
        Some(count) => push_number(out, count),
        None => out.extend_from_slice(b"null"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::draft::tests::sample;
    use super::super::fields::Fields;
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    proptest! {
        #[test]
        fn a_line_is_whole_bounded_and_tells_what_the_draft_does(sample in sample(), seq: u64) {
            let (draft, mut line) = (sample.draft(), b"before".to_vec());
            RequestLines::new("edge-1/3", "0123456789abcdef").write(&mut line, seq, &draft);
            prop_assert_eq!((&line[..6], line.last()), (&b"before"[..], Some(&b'\n')));
            let text = std::str::from_utf8(&line[6..]).unwrap().trim_end();
            prop_assert!(text.len() < LINE_BYTES_MAX && segment::is_whole(text.as_bytes()));
            let json: Value = serde_json::from_str(text).unwrap();
            for (name, number) in [
                ("seq", Some(seq)), ("status", draft.status.map(u64::from)), ("bytes_in", draft.bytes_in),
                ("bytes_out", draft.bytes_out), ("duration_us", draft.duration_us), ("upstream_us", draft.upstream_us),
            ] {
                prop_assert_eq!(&json[name], &Value::from(number), "{}", name);
            }
            for (name, ip) in [("client_ip", draft.client_ip), ("peer_ip", draft.peer_ip)] {
                prop_assert_eq!(&json[name], &Value::from(ip.map(|ip| ip.to_string())));
            }
            prop_assert_eq!(&json["key_id"], &Value::from(draft.key.map(|(id, _)| id.to_string())));
            let decision = if draft.allowed { "allow" } else { "deny" };
            prop_assert_eq!(&json["decision"], &Value::from(decision));
            let fields = Fields::read(text).unwrap();
            prop_assert_eq!(fields.at(), Some(draft.at));
        }

        #[test]
        fn a_text_is_shown_as_it_is_or_cut_the_same_whether_the_ring_has_all_of_it(text in "[ -~é\u{7f}]{0,400}") {
            let shown = |texts: &[u8]| {
                let mut out = Vec::new();
                escape(&mut out, texts, Text::Path.shown_max());
                out
            };
            prop_assert_eq!(shown(text.as_bytes()), shown(&text.as_bytes()[..text.len().min(Text::Path.shown_max() + 4)]));
        }
    }
}
