//! The newest records of each journal, read once for all sinks that keep up. One that is further behind reads by itself.

use super::Line;
use crate::audit::reader::{self, Follow};
use crate::audit::segment;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The tails of a directory's journals.
#[derive(Debug)]
pub struct Tails {
    /// Of the lines of one journal that are held.
    bytes_max: usize,
    tails: Mutex<BTreeMap<PathBuf, Tail>>,
}

#[derive(Debug)]
struct Tail {
    follow: Follow,
    lines: VecDeque<Line>,
    bytes: usize,
    /// The numbers of the record before the first line, and of the last that was read.
    before: u64,
    last: u64,
}

/// What `take` says to each line: whether it wants another.
pub type Wish = ControlFlow<()>;

// === impl Tails ===

impl Tails {
    pub const fn new(bytes_max: usize) -> Self {
        Self { bytes_max, tails: Mutex::new(BTreeMap::new()) }
    }

    /// Gives what follows `last` in a slot, up to `through`, until `take` wants no more; whether it could: false when what
    /// follows is not held any more. What is damaged is told to whoever comes upon it first.
    ///
    /// # Errors
    /// As of reading the journal.
    pub fn read(
        &self,
        slot: &Path,
        last: u64,
        through: u64,
        troubles: &mut Vec<String>,
        take: &mut impl FnMut(&Line) -> Wish,
    ) -> io::Result<bool> {
        let mut tails = self.tails.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = tails.entry(slot.to_owned()).or_insert_with(|| Tail::after(slot, last));
        if last < tail.before {
            return Ok(false);
        }
        if last > tail.last {
            // Nobody else has come that far.
            *tail = Tail::after(slot, last);
        }
        if tail.give(last, take).is_continue() {
            let read = tail.advance(through, self.bytes_max, take);
            troubles.extend(tail.follow.take_faults().iter().map(ToString::to_string));
            read?;
        }
        Ok(true)
    }
}

// === impl Tail ===

impl Tail {
    fn after(slot: &Path, last: u64) -> Self {
        let follow = Follow::after(slot.to_owned(), last);
        Self { follow, lines: VecDeque::new(), bytes: 0, before: last, last }
    }

    /// What is held.
    fn give(&self, last: u64, take: &mut impl FnMut(&Line) -> Wish) -> Wish {
        let begin = self.lines.partition_point(|line| line.seq <= last);
        self.lines.range(begin..).try_for_each(take)
    }

    /// What is not yet: it is held from now on, in the place of the oldest.
    fn advance(&mut self, through: u64, bytes_max: usize, take: &mut impl FnMut(&Line) -> Wish) -> io::Result<()> {
        let Self { follow, lines, bytes, before, last } = self;
        follow.read_through(through, |record| {
            let line = line(record, lines.back());
            let wish = take(&line);
            (*last, *bytes) = (line.seq, *bytes + line.text.len());
            lines.push_back(line);
            while *bytes > bytes_max {
                let Some(oldest) = lines.pop_front() else { break };
                (*before, *bytes) = (oldest.seq, *bytes - oldest.text.len());
            }
            wish
        })
    }
}

/// A record with its journal's name, which is kept as long as it is the same: thousands of lines share it.
pub fn line(record: reader::Line<'_>, before: Option<&Line>) -> Line {
    let name = segment::journal_of(record.text.as_bytes()).unwrap_or_default();
    let known = before.filter(|before| *before.journal == *name);
    let journal = known.map_or_else(|| name.into(), |before| Arc::clone(&before.journal));
    Line { journal, seq: record.seq, text: record.text.into() }
}
