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

    /// A string member of any bytes, at most `bytes_max` of them; a cut one ends in an ellipsis.
    pub fn text(&mut self, name: &str, value: &[u8], bytes_max: usize) {
        self.name(name);
        self.out.push(b'"');
        let cut = value.get(..bytes_max);
        escape(self.out, cut.unwrap_or(value));
        if cut.is_some() && value.len() > bytes_max {
            self.out.extend_from_slice("…".as_bytes());
        }
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

/// Escapes `bytes` as the inside of a JSON string. Valid UTF-8 stays; every other byte becomes U+FFFD.
fn escape(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        escape_str(out, chunk.valid());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn escape_str(out: &mut Vec<u8>, text: &str) {
    let needs_escape = |byte: u8| byte < 0x20 || byte == b'"' || byte == b'\\' || byte == 0x7f;
    if !text.bytes().any(needs_escape) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0x00..=0x1f | 0x7f => _ = write!(out, "\\u{byte:04x}"),
            _ => out.push(byte),
        }
    }
}
