//! A list of `seq`, ascending: the first one, and the distances between them as varints of seven bits a byte.

/// Numbers, each greater than the one before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Postings {
    first: u64,
    last: u64,
    /// The distances after `first`.
    distances: Vec<u8>,
}

// === impl Postings ===

impl Postings {
    pub const fn new(first: u64) -> Self {
        Self { first, last: first, distances: Vec::new() }
    }

    /// As it was stored.
    pub const fn stored(first: u64, last: u64, distances: Vec<u8>) -> Self {
        Self { first, last, distances }
    }

    pub const fn first(&self) -> u64 {
        self.first
    }

    pub const fn last(&self) -> u64 {
        self.last
    }

    pub fn distances(&self) -> &[u8] {
        &self.distances
    }

    /// Adds a number; one that is not greater than the last is there already.
    pub fn push(&mut self, seq: u64) {
        if seq > self.last {
            push_varint(&mut self.distances, seq - self.last);
            self.last = seq;
        }
    }

    /// Adds a later list.
    pub fn append(&mut self, later: &Self) {
        if later.first > self.last {
            push_varint(&mut self.distances, later.first - self.last);
            self.distances.extend_from_slice(&later.distances);
            self.last = later.last;
        }
    }

    /// All of them; `None` when the list is not one that was written here.
    pub fn decode(&self) -> Option<Vec<u64>> {
        let (mut seq, mut all, mut rest) = (self.first, vec![self.first], &*self.distances);
        while let Some((distance, after)) = split_varint(rest) {
            seq = seq.checked_add(distance)?;
            all.push(seq);
            rest = after;
        }
        (rest.is_empty() && seq == self.last).then_some(all)
    }
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// The first number, and what follows it.
fn split_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(index).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(index + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    fn list(numbers: &[u64]) -> Postings {
        let mut list = Postings::new(numbers[0]);
        numbers.iter().for_each(|seq| list.push(*seq));
        list
    }

    proptest! {
        #[test]
        fn what_was_put_in_comes_out(numbers in btree_set(any::<u64>(), 1..50), cut in 1_usize..50) {
            let numbers: Vec<u64> = numbers.into_iter().collect();
            prop_assert_eq!(list(&numbers).decode(), Some(numbers.clone()));
            let (early, late) = numbers.split_at(cut.min(numbers.len()));
            let mut joined = list(early);
            if !late.is_empty() {
                joined.append(&list(late));
            }
            prop_assert_eq!(joined, list(&numbers));
        }

        #[test]
        fn damaged_bytes_give_no_list_or_an_ascending_one(first: u64, last: u64, bytes in vec(any::<u8>(), 0..30)) {
            if let Some(numbers) = Postings::stored(first, last, bytes).decode() {
                prop_assert_eq!((numbers.first(), numbers.last()), (Some(&first), Some(&last)));
            }
        }
    }
}
