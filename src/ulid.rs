//! ULIDs: 48 bits of milliseconds and 80 random bits in 26 characters of Crockford base32, sortable by time.

use crate::clock::Timestamp;
use std::fmt;

/// A 128-bit ULID. `Display` gives its 26 characters; prefixes such as `req_` and `key_` belong to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ulid(u128);

/// The length of a ULID's text.
pub const TEXT_LEN: usize = 26;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// By character, its value; `NO_DIGIT` for what is not in the alphabet. A load reads a million ids.
const VALUES: [u8; 256] = values();
const NO_DIGIT: u8 = 0xff;

const fn values() -> [u8; 256] {
    let mut values = [NO_DIGIT; 256];
    let mut digit = 0;
    while digit < ALPHABET.len() {
        values[ALPHABET[digit] as usize] = digit as u8; // tidy: allow(a byte indexes 256 values, at compile time)
        digit += 1;
    }
    values
}

// === impl Ulid ===

impl Ulid {
    /// Made of `now` and 80 bits of `random`; its upper bits are ignored.
    pub const fn new(now: Timestamp, random: u128) -> Self {
        let millis = (now.as_millis() as u128) & ((1 << 48) - 1);
        Self((millis << 80) | (random & ((1 << 80) - 1)))
    }

    pub const fn to_bits(self) -> u128 {
        self.0
    }

    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The 26 characters, without allocating.
    pub fn text(self) -> [u8; TEXT_LEN] {
        let mut text = [0; TEXT_LEN];
        let mut rest = self.0;
        for slot in text.iter_mut().rev() {
            *slot = ALPHABET[(rest & 31) as usize]; // tidy: allow(five bits index 32 symbols)
            rest >>= 5;
        }
        text
    }

    /// Reads exactly 26 upper-case characters.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TEXT_LEN || text.as_bytes().first().is_some_and(|first| *first > b'7') {
            return None;
        }
        text.bytes()
            .try_fold(0u128, |bits, byte| {
                let digit = VALUES[usize::from(byte)]; // tidy: allow(a byte indexes 256 values)
                (digit != NO_DIGIT).then_some((bits << 5) | u128::from(digit))
            })
            .map(Self)
    }
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_round_trips(bits: u128) {
            let ulid = Ulid::from_bits(bits);
            prop_assert_eq!(Ulid::parse(&ulid.to_string()), Some(ulid));
        }
    }

    #[test]
    fn text_sorts_by_time() {
        let at = |micros| Ulid::new(Timestamp::from_micros(micros), 7).to_string();
        assert!(at(1_000_000) < at(2_000_000));
        assert_eq!(Ulid::parse("8ZZZZZZZZZZZZZZZZZZZZZZZZZ"), None);
    }
}
