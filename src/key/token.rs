//! The key's text: `<prefix>_<mode>_ent_<code>_<secret>` with its checksum (contract, section 2).

use super::{Digest, Mode, entity};
use crate::secret::Secret;

/// The configurable first part of every key: `[a-z0-9]{2,12}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix(Box<str>);

/// A freshly made key: its text, shown once, and what is stored of it.
#[derive(Debug)]
pub struct Token {
    pub text: Secret<String>,
    pub digest: Digest,
    pub last4: String,
}

/// What a presented credential looks like, before any cache or store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Our prefix, a valid form and the right checksum.
    Ours,
    /// Begins with our prefix, but is not a key of ours: refused without a look-up.
    Malformed,
    /// Another system's token of 16 to 256 visible characters: looked up only while imported keys exist.
    Foreign,
}

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Characters of the secret that carry its 256 random bits.
const RANDOM_LEN: usize = 43;
/// Characters of the secret that carry the CRC-32 of everything before them.
const CHECKSUM_LEN: usize = 6;
/// The longest foreign token that is looked up.
const FOREIGN_MAX: usize = 256;
const FOREIGN_MIN: usize = 16;

// === impl Prefix ===

impl Prefix {
    /// # Errors
    /// A sentence for the operator when `text` is not `[a-z0-9]{2,12}`.
    pub fn new(text: &str) -> Result<Self, String> {
        let valid = (2..=12).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        valid.then(|| Self(text.into())).ok_or_else(|| format!("'{text}' is not 2 to 12 characters of a-z and 0-9"))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text after `<prefix>_`, when `credential` begins with it.
    fn strip<'a>(&self, credential: &'a [u8]) -> Option<&'a [u8]> {
        credential.strip_prefix(self.0.as_bytes())?.strip_prefix(b"_")
    }

    /// Whether `text` holds something that begins like one of our keys, anywhere: a cookie to remove, a target to refuse.
    /// Looks for the underscore first: a path has few of them.
    pub fn occurs_in(&self, text: &[u8]) -> bool {
        let prefix = self.0.as_bytes();
        memchr::memchr_iter(b'_', text).any(|at| {
            let (before, after) = text.split_at(at);
            before.ends_with(prefix) && (after.starts_with(b"_test_") || after.starts_with(b"_live_"))
        })
    }

    /// Judges a presented credential by its form and checksum alone.
    pub fn judge(&self, credential: &[u8]) -> Form {
        match self.strip(credential) {
            Some(rest) if is_ours(credential, rest) => Form::Ours,
            Some(_) => Form::Malformed,
            None if is_foreign(credential) => Form::Foreign,
            None => Form::Malformed,
        }
    }
}

// === impl Token ===

impl Token {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the machine gives no random bytes.
    pub fn generate(prefix: &Prefix, mode: Mode, code: &str) -> Result<Self, getrandom::Error> {
        let mut random = Secret::new([0u8; 32]);
        getrandom::fill(random.expose_mut())?;
        Ok(Self::from_random(prefix, mode, code, random.expose()))
    }

    /// The key that carries `random`: a real one takes [`Token::generate`], a set that must be the same every time this.
    pub fn from_random(prefix: &Prefix, mode: Mode, code: &str, random: &[u8; 32]) -> Self {
        // Reserved up front: growing would leave a copy of the secret behind in freed memory.
        let mut text = String::with_capacity(prefix.0.len() + 11 + code.len() + RANDOM_LEN + CHECKSUM_LEN);
        text.push_str(&prefix.0);
        text.push('_');
        text.push_str(mode.as_str());
        text.push_str("_ent_");
        text.push_str(code);
        text.push('_');
        push_base62_256(&mut text, random);
        let checksum = checksum(text.as_bytes());
        text.extend(checksum.iter().map(|byte| char::from(*byte)));
        let digest = Digest::of(text.as_bytes());
        let last4 = text.chars().skip(text.len() - 4).collect();
        Self { text: Secret::new(text), digest, last4 }
    }
}

/// Whether `rest`, the text after the prefix, has the form `<mode>_ent_<code>_<secret>` and `credential` its checksum.
fn is_ours(credential: &[u8], rest: &[u8]) -> bool {
    let Some(rest) = rest.strip_prefix(b"live_ent_").or_else(|| rest.strip_prefix(b"test_ent_")) else { return false };
    let Some(split) = rest.len().checked_sub(RANDOM_LEN + CHECKSUM_LEN) else { return false };
    let (code, secret) = rest.split_at(split);
    let Some(code) = code.strip_suffix(b"_") else { return false };
    let code_valid = std::str::from_utf8(code).is_ok_and(entity::is_code);
    let secret_valid = secret.iter().all(u8::is_ascii_alphanumeric);
    let (body, given) = credential.split_at(credential.len() - CHECKSUM_LEN);
    code_valid && secret_valid && checksum(body) == *given
}

fn is_foreign(credential: &[u8]) -> bool {
    (FOREIGN_MIN..=FOREIGN_MAX).contains(&credential.len()) && credential.iter().all(u8::is_ascii_graphic)
}

/// The CRC-32 (IEEE) of `body` in base62, most significant digit first, zero-padded.
fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(body);
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize]; // tidy: allow(a remainder by 62 indexes 62 symbols)
        rest /= 62;
    }
    digits
}

/// Appends a 256-bit number, most significant byte first, as 43 base62 digits (62^43 > 2^256).
fn push_base62_256(text: &mut String, number: &[u8; 32]) {
    let mut rest = Secret::new(*number);
    let mut digits = Secret::new([0u8; RANDOM_LEN]);
    for digit in digits.expose_mut().iter_mut().rev() {
        let mut carry = 0u32;
        for byte in rest.expose_mut() {
            let value = (carry << 8) | u32::from(*byte);
            *byte = (value / 62) as u8;
            carry = value % 62;
        }
        *digit = BASE62[carry as usize]; // tidy: allow(a remainder by 62 indexes 62 symbols)
    }
    text.extend(digits.expose().iter().map(|byte| char::from(*byte)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix() -> Prefix {
        Prefix::new("ark").unwrap()
    }

    proptest! {
        #[test]
        fn a_token_round_trips_and_any_changed_character_is_refused(
            random: [u8; 32], live: bool, code in "[a-z0-9]{2,16}", position: prop::sample::Index, byte in 0x21u8..0x7f,
        ) {
            let mode = if live { Mode::Live } else { Mode::Test };
            let token = Token::from_random(&prefix(), mode, &code, &random);
            let text = token.text.expose();
            let start = format!("ark_{mode}_ent_{code}_");
            prop_assert!(text.starts_with(&start));
            prop_assert_eq!(prefix().judge(text.as_bytes()), Form::Ours);
            prop_assert_eq!(Digest::of(text.as_bytes()), token.digest);

            let mut changed = text.clone().into_bytes();
            let position = position.index(changed.len());
            prop_assume!(changed[position] != byte);
            changed[position] = byte;
            prop_assert_ne!(prefix().judge(&changed), Form::Ours);
            // A change behind the prefix is refused without a look-up; one inside it makes a foreign token.
            if position >= "ark_".len() {
                prop_assert_eq!(prefix().judge(&changed), Form::Malformed);
            }
        }

        #[test]
        fn judging_never_panics(credential: Vec<u8>) {
            let _ = prefix().judge(&credential);
            let _ = prefix().judge(&[b"ark_", credential.as_slice()].concat());
            let _ = prefix().judge(&[b"ark_live_ent_", credential.as_slice()].concat());
        }
    }

    #[test]
    fn the_secret_is_43_and_6_characters_for_the_extremes() {
        for random in [[0u8; 32], [0xff; 32]] {
            let token = Token::from_random(&prefix(), Mode::Test, "acme", &random);
            assert_eq!(token.text.expose().len(), "ark_test_ent_acme_".len() + 49);
        }
        let zero = Token::from_random(&prefix(), Mode::Test, "acme", &[0; 32]);
        assert!(zero.text.expose().starts_with("ark_test_ent_acme_0000000000000000000000000000000000000000000"));
    }

    #[test]
    fn a_key_is_found_anywhere_in_a_text() {
        for text in ["ark_live_", "k=ark_test_ent_x; a", "_ark_live_", "a_b_ark_live_x"] {
            assert!(prefix().occurs_in(text.as_bytes()), "{text}");
        }
        for text in ["", "_", "ark", "ark_liv", "ark_other_", "arK_live_", "rk_live_"] {
            assert!(!prefix().occurs_in(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn foreign_tokens_have_a_length_window() {
        assert_eq!(prefix().judge(&[b'x'; 15]), Form::Malformed);
        assert_eq!(prefix().judge(&[b'x'; 16]), Form::Foreign);
        assert_eq!(prefix().judge(&[b'x'; 256]), Form::Foreign);
        assert_eq!(prefix().judge(&[b'x'; 257]), Form::Malformed);
        assert_eq!(prefix().judge(b"sixteen chars ok\x80"), Form::Malformed);
    }
}
