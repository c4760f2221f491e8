//! A hash for what is looked up for each record, where the library's costs more than everything else that is done to it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// Begins each hash with a random number of its own, which nobody outside knows: clients choose some of the texts, and must
/// not be able to choose ones whose hashes collide.
#[derive(Clone, Debug)]
pub struct Seeded {
    seed: u64,
    factor: u64,
}

/// Folds eight bytes at a time by multiplication.
#[derive(Debug)]
pub struct Folding {
    state: u64,
    factor: u64,
}

// === impl Seeded ===

impl Default for Seeded {
    fn default() -> Self {
        let random = |number: u8| RandomState::new().hash_one(number);
        // An odd factor loses nothing.
        Self { seed: random(0), factor: random(1) | 1 }
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding { state: self.seed, factor: self.factor }
    }
}

// === impl Folding ===

impl Folding {
    #[inline]
    fn add(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for Folding {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.add(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(slot, byte)| *slot = *byte);
        self.add(u64::from_le_bytes(last));
        self.add(bytes.len() as u64);
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.add(number);
    }

    #[inline]
    fn write_u128(&mut self, number: u128) {
        self.add(number as u64);
        self.add((number >> 64) as u64);
    }

    #[inline]
    fn write_usize(&mut self, number: usize) {
        self.add(number as u64);
    }

    /// What follows a text; its length has been added.
    #[inline]
    fn write_u8(&mut self, _: u8) {}

    fn finish(&self) -> u64 {
        self.state
    }
}
