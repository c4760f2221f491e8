//! Records against the seals that cover them.

use crate::audit::seal::{Chain, Seal};
use crate::audit::segment::{self, Kind};

/// What a record shows about the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shown {
    /// Nothing: it is no seal.
    Nothing,
    /// They are what was sealed.
    Sealed,
    /// They are not.
    Altered { first: u64, last: u64 },
    /// They cannot be checked: some of them, or the seal before them, are not there.
    Unchecked { last: u64 },
}

/// The chain, computed from the records that are there.
#[derive(Debug, Default)]
pub struct Seals {
    /// None while a record lacks that the next seal covers.
    chain: Option<Chain>,
    last: u64,
}

// === impl Seals ===

impl Seals {
    /// Takes the next record that counts.
    pub fn take(&mut self, seq: u64, line: &str) -> Shown {
        if seq == 1 {
            self.chain = Some(Chain::start());
        } else if Some(seq) != self.last.checked_add(1) {
            self.chain = None;
        }
        self.last = seq;
        if segment::kind_of(line.as_bytes()) != Some(Kind::Seal.as_str()) {
            self.chain.iter_mut().for_each(|chain| chain.add(line.as_bytes()));
            return Shown::Nothing;
        }
        let told = Seal::read(line);
        let shown = match self.chain.as_ref().map(Chain::seal) {
            Some(seal) if Some(seal) == told => Shown::Sealed,
            Some(seal) => Shown::Altered { first: seal.first, last: seal.last },
            None => Shown::Unchecked { last: seq.saturating_sub(1) },
        };
        self.chain = told.map(|told| Chain::after(told.hash, seq, line.as_bytes()));
        shown
    }
}
