//! A JSON object written into a reused buffer: no allocation, no reflection, one line whatever the input.

use crate::net::{push_ip, push_number};
use std::io::Write as _;
use std::net::IpAddr;

/// Writes the members of one object.
pub struct ObjectWriter<'a> {
    out: &'a mut Vec<u8>,
}

// === impl ObjectWriter ===

impl<'a> ObjectWriter<'a> {
    /// Continues an object whose last member, if any, ends with a comma.
    pub const fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// A member whose value is JSON already. For records that are not on the request path.
    pub fn raw(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        // Writing to a vector cannot fail.
        _ = write!(self.out, "{value},");
    }

    /// A whole number. By hand, like all that follows: the formatting machinery costs more than the rest of a record.
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        push_number(self.out, value);
        self.out.push(b',');
    }

    /// A string member of text known to need no escaping: names from enums, ids.
    pub fn plain(&mut self, name: &str, value: &str) {
        self.parts(name, &[value.as_bytes()]);
    }

    /// The same, in parts.
    pub fn parts(&mut self, name: &str, parts: &[&[u8]]) {
        self.name(name);
        self.out.push(b'"');
        parts.iter().for_each(|part| self.out.extend_from_slice(part));
        self.out.extend_from_slice(b"\",");
    }

    /// Bytes as lower-case hex.
    pub fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        push_hex(self.out, bytes);
        self.out.extend_from_slice(b"\",");
    }

    /// An address.
    pub fn ip(&mut self, name: &str, ip: IpAddr) {
        self.name(name);
        self.out.push(b'"');
        push_ip(self.out, ip);
        self.out.extend_from_slice(b"\",");
    }

    /// A string member of any bytes, at most `bytes_max` long once escaped; a cut one ends in an ellipsis.
    pub fn text(&mut self, name: &str, value: &[u8], bytes_max: usize) {
        self.name(name);
        self.out.push(b'"');
        escape(self.out, value, bytes_max);
        self.out.extend_from_slice(b"\",");
    }

    pub fn null(&mut self, name: &str) {
        self.name(name);
        self.out.extend_from_slice(b"null,");
    }

    fn name(&mut self, name: &str) {
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// Appends bytes in lower-case hex.
pub fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        let (high, low) = (usize::from(byte >> 4), usize::from(byte & 15));
        out.extend_from_slice(&[DIGITS[high], DIGITS[low]]); // tidy: allow(four bits index 16 digits)
    }
}

/// Reads what [`push_hex`] wrote, and nothing else.
pub fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let pairs = text.as_bytes().chunks(2);
    if text.len() != 2 * N || text.bytes().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// What a cut text ends with.
const ELLIPSIS: &str = "…";

/// Escapes `bytes` as the inside of a JSON string of at most `bytes_max` bytes. Valid UTF-8 stays; every other byte becomes
/// U+FFFD.
fn escape(out: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) {
    // Without an early exit: the compiler looks at many bytes at once.
    if bytes.len() <= bytes_max && bytes.iter().fold(true, |plain, byte| plain & is_plain(*byte)) {
        out.extend_from_slice(bytes);
        return;
    }
    let end = out.len() + bytes_max;
    let mut cut = out.len();
    for c in bytes.utf8_chunks().flat_map(chars) {
        if out.len() + ELLIPSIS.len() <= end {
            cut = out.len();
        }
        push_escaped(out, c);
        if out.len() > end {
            out.truncate(cut);
            out.extend_from_slice(ELLIPSIS.as_bytes());
            return;
        }
    }
}

fn chars(chunk: std::str::Utf8Chunk<'_>) -> impl Iterator<Item = char> {
    let replaced = (!chunk.invalid().is_empty()).then_some(char::REPLACEMENT_CHARACTER);
    chunk.valid().chars().chain(replaced)
}

const fn is_plain(byte: u8) -> bool {
    (byte >= 0x20) & (byte <= 0x7e) & (byte != b'"') & (byte != b'\\')
}

fn push_escaped(out: &mut Vec<u8>, c: char) {
    match c {
        '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
        '\0'..='\x1f' | '\x7f' => _ = write!(out, "\\u{:04x}", u32::from(c)),
        _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_become_one_bounded_line(value: Vec<u8>, bytes_max in 3_usize..300) {
            let mut out = b"{".to_vec();
            ObjectWriter::new(&mut out).text("a", &value, bytes_max);
            let around = r#"{"a":"","#.len();
            prop_assert!(out.len() <= bytes_max + around);
            out.pop();
            out.push(b'}');
            prop_assert!(!out.contains(&b'\n'));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok());
        }
    }

    proptest! {
        #[test]
        fn what_is_written_by_hand_reads_as_the_library_writes_it(number: u64, bytes: [u8; 4], v6: [u8; 16]) {
            let mut out = Vec::new();
            let mut object = ObjectWriter::new(&mut out);
            object.number("n", number);
            object.hex("h", &bytes);
            object.ip("4", IpAddr::from(bytes));
            object.ip("6", IpAddr::from(v6));
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let (v4, v6) = (IpAddr::from(bytes), IpAddr::from(v6));
            let expected = format!("\"n\":{number},\"h\":\"{hex}\",\"4\":\"{v4}\",\"6\":\"{v6}\",");
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }
    }
}
