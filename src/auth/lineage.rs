//! Which history this gateway has followed: the fleet, and the positions it came through (protocols I4).

use crate::store::{FleetId, Position};
use std::collections::VecDeque;

/// How many positions are remembered, the latest: a store that has lost more changes than this is for a person to judge.
const POSITIONS_MAX: usize = 65_536;

/// The fleet, once it is known, and the latest positions, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lineage {
    pub fleet: Option<FleetId>,
    positions: VecDeque<Position>,
}

// === impl Lineage ===

impl Lineage {
    /// Adds positions, each later than the one before; what is known already is passed over.
    pub fn extend(&mut self, positions: impl IntoIterator<Item = Position>) {
        for position in positions {
            if position.seq > self.last().seq {
                self.positions.push_back(position);
            }
        }
        let excess = self.positions.len().saturating_sub(POSITIONS_MAX);
        self.positions.drain(..excess);
    }

    /// The latest one; the start before there is any.
    pub fn last(&self) -> Position {
        self.positions.back().copied().unwrap_or_default()
    }

    /// Whether this is one of the positions that are remembered.
    pub fn holds(&self, position: Position) -> bool {
        let index = self.positions.partition_point(|known| known.seq < position.seq);
        self.positions.get(index) == Some(&position)
    }

    /// Forgets every position after this `seq`.
    pub fn cut(&mut self, seq: u64) {
        let kept = self.positions.partition_point(|position| position.seq <= seq);
        self.positions.truncate(kept);
    }

    /// The positions up to a `seq`, in order.
    pub fn up_to(&self, seq: u64) -> impl Iterator<Item = Position> {
        self.positions.iter().copied().take_while(move |position| position.seq <= seq)
    }

    /// The greatest position that `holds` holds too; none where none is. What it holds is asked for a few positions only: of a
    /// history that parted from this one, it holds everything up to there that its log still has, and nothing after.
    ///
    /// # Errors
    /// Those of `holds`.
    pub fn common<E>(&self, mut holds: impl FnMut(Position) -> Result<bool, E>) -> Result<Option<Position>, E> {
        let mut at = |index: usize| self.positions.get(index).map_or(Ok(false), |position| holds(*position));
        // Back from the end in growing steps to one that is held; between that and the last that was not, by halves.
        let (mut lost, mut step) = (self.positions.len(), 1);
        let mut held = loop {
            let Some(index) = lost.checked_sub(step).or_else(|| lost.checked_sub(1).map(|_| 0)) else {
                return Ok(None);
            };
            if at(index)? {
                break index;
            }
            (lost, step) = (index, step * 2);
        };
        while lost - held > 1 {
            let middle = held + (lost - held) / 2;
            if at(middle)? { held = middle } else { lost = middle }
        }
        Ok(self.positions.get(held).copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn i4_the_greatest_common_position_is_found_in_few_questions(
            count in 0_u64..400, parted in 0_u64..400, trimmed in 0_u64..400
        ) {
            let at = |seq: u64| Position { seq, token: seq * 7 };
            let mut lineage = Lineage::default();
            lineage.extend((1..=count).map(at));
            let mut questions = 0;
            let common = lineage.common(|position: Position| {
                questions += 1;
                Ok::<_, ()>(position.seq > trimmed && position.seq <= parted)
            }).unwrap();
            let greatest = parted.min(count);
            // Where the log begins after the greatest one, or holds few, steps may pass over what it holds: then a person judges.
            if let Some(common) = common {
                prop_assert_eq!(common, at(greatest));
            } else {
                prop_assert!(greatest == 0 || trimmed > 0);
            }
            prop_assert!(questions <= 40);
        }
    }

    #[test]
    fn what_was_parted_from_is_forgotten_and_the_oldest_make_room() {
        let mut lineage = Lineage::default();
        let at = |seq: u64| Position { seq, token: 1 };
        lineage.extend((1..=70_000).map(at));
        assert_eq!((lineage.up_to(u64::MAX).count(), lineage.last()), (POSITIONS_MAX, at(70_000)));
        assert!(lineage.holds(at(70_000)) && !lineage.holds(at(1)) && !lineage.holds(at(70_001)));
        assert!(!lineage.holds(Position { seq: 70_000, token: 2 }));
        lineage.cut(69_990);
        lineage.extend([at(69_990), at(69_991)]);
        assert_eq!(lineage.last(), at(69_991));
    }
}
