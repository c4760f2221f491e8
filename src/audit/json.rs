//! A JSON object written into a reused buffer: no allocation, no reflection, one line whatever the input.

use crate::net::push_number;
use std::io::Write as _;

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

    /// A whole number.
    pub fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        push_number(self.out, value);
        self.out.push(b',');
    }

    /// A string member of text known to need no escaping: names from enums, ids.
    pub fn plain(&mut self, name: &str, value: &str) {
        self.name(name);
        self.out.push(b'"');
        self.out.extend_from_slice(value.as_bytes());
        self.out.extend_from_slice(b"\",");
    }

    /// Bytes as lower-case hex.
    pub fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        self.out.push(b'"');
        push_hex(self.out, bytes);
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
    let digits = |byte: &u8| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]; // tidy: allow(four bits index 16 digits)
    out.extend(bytes.iter().flat_map(digits));
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
#[inline]
pub fn escape(out: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) {
    if bytes.len() <= bytes_max && are_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        escape_each(out, bytes, bytes_max);
    }
}

fn escape_each(out: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) {
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

/// Whether all of them stand for themselves. Eight at a time: nearly all texts are short and plain.
fn are_plain(bytes: &[u8]) -> bool {
    let word = |marks: u64, word: &[u8; 8]| marks | not_plain(u64::from_le_bytes(*word));
    match bytes.last_chunk() {
        // Its bytes are looked at twice, some of them.
        Some(last) => word(bytes.as_chunks().0.iter().fold(0, word), last) == 0,
        None => bytes.iter().all(|byte| not_plain(u64::from(*byte) | SPACES << 8) == 0),
    }
}

const SPACES: u64 = u64::from_le_bytes(*b"        ");

/// Zero if no byte is a control, a quote, a backslash or beyond ASCII. A borrow or a carry only ever comes out of such a byte.
const fn not_plain(word: u64) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let (quote, backslash) = (word ^ (ONES * b'"' as u64), word ^ (ONES * b'\\' as u64));
    let controls = word.wrapping_sub(ONES * 0x20) & !word;
    let found = quote.wrapping_sub(ONES) & !quote | backslash.wrapping_sub(ONES) & !backslash;
    (word | word.wrapping_add(ONES) | controls | found) & (ONES << 7)
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
        fn what_is_written_by_hand_reads_as_the_library_writes_it(number: u64, bytes: [u8; 4]) {
            let mut out = Vec::new();
            let mut object = ObjectWriter::new(&mut out);
            object.number("n", number);
            object.hex("h", &bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let expected = format!("\"n\":{number},\"h\":\"{hex}\",");
            prop_assert_eq!(String::from_utf8(out).unwrap(), expected);
        }

        #[test]
        fn bytes_are_plain_eight_at_a_time_as_one_by_one(bytes: Vec<u8>, at in 0_usize..40) {
            let plain = |byte: &u8| matches!(byte, 0x20..=0x7e) && !matches!(byte, b'"' | b'\\');
            prop_assert_eq!(are_plain(&bytes), bytes.iter().all(plain));
            let mut text = *b"/v1/entities/0190c0de-0000/orders/ 4711?";
            if let Some(byte) = bytes.first() {
                text[at] = *byte;
            }
            prop_assert_eq!(are_plain(&text), text.iter().all(plain));
        }
    }
}
