//! A JSON object written into a reused buffer: no allocation, no reflection, one line whatever the input.

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

    /// A member whose value is written by `value` as it stands: a number, or text known to need no escaping.
    pub fn raw(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        // Writing to a vector cannot fail.
        _ = write!(self.out, "{value},");
    }

    /// A string member of text known to need no escaping: names from enums, ids, addresses.
    pub fn plain(&mut self, name: &str, value: impl std::fmt::Display) {
        self.name(name);
        _ = write!(self.out, "\"{value}\",");
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

/// What a cut text ends with.
const ELLIPSIS: &str = "…";

/// Escapes `bytes` as the inside of a JSON string of at most `bytes_max` bytes. Valid UTF-8 stays; every other byte becomes
/// U+FFFD.
fn escape(out: &mut Vec<u8>, bytes: &[u8], bytes_max: usize) {
    if bytes.len() <= bytes_max && bytes.iter().all(|byte| is_plain(*byte)) {
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
    matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'
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
}
