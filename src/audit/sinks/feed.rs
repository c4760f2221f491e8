//! Reads the synced records of all journals of a directory, from where a sink stands, in batches.

use super::gap::{Gap, Lack};
use super::tails::{Tails, Wish, line};
use super::{Line, Positions};
use crate::audit::reader::{self, Follow};
use crate::audit::recent::{Group, Taker};
use crate::audit::segment;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How much a batch may hold. Its last record may go beyond the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub records: usize,
    pub bytes: usize,
}

/// So many records of groups are taken at once: they are small, and in memory already.
const GROUPED_MAX: usize = 20_000;

/// What was read at once.
#[derive(Debug)]
pub struct Batch {
    pub entries: Vec<Entry>,
    /// Of journals of which there are no entries.
    pub groups: Vec<Arc<Group>>,
    /// What is damaged or cannot be read, in sentences.
    pub troubles: Vec<String>,
    /// Everything that was synced was read, of every journal.
    pub is_whole: bool,
    room: Room,
    bytes: usize,
}

/// What stands at the next place of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Record(Line),
    Gap(Gap),
}

/// Reads on where it ended, across all journals.
#[derive(Debug)]
pub struct Feed {
    dir: PathBuf,
    positions: Positions,
    /// For who needs no lines.
    taker: Option<Arc<Taker>>,
    slots: BTreeMap<PathBuf, Slot>,
    /// The slot that was read first last time: none starves behind one that is never at its end.
    first: usize,
}

#[derive(Debug)]
struct Slot {
    path: PathBuf,
    /// A reader of its own, while what comes next is not in the journal's tail.
    follow: Option<Follow>,
    /// The last number that was read; none in a journal of which the sink has nothing yet.
    last: Option<u64>,
}

// === impl Feed ===

impl Feed {
    /// Begins behind `positions`; a journal that they do not name begins with the oldest record it still has.
    pub const fn new(dir: PathBuf, positions: Positions) -> Self {
        Self { dir, positions, taker: None, slots: BTreeMap::new(), first: 0 }
    }

    /// Gives groups instead of entries where there are any.
    pub fn with_groups(self, taker: Option<Arc<Taker>>) -> Self {
        Self { taker, ..self }
    }

    /// What has been written and synced since the last call, as much as there is room for.
    ///
    /// # Errors
    /// As of reading the directory; what is wrong with a single journal is one of the batch's troubles.
    pub fn read(&mut self, room: Room, tails: &Tails) -> io::Result<Batch> {
        let mut batch = Batch::of(room);
        self.find_slots(&mut batch)?;
        let (count, first) = (self.slots.len(), self.first);
        self.first = if count == 0 { 0 } else { (first + 1) % count };
        let mut slots: Vec<_> = self.slots.values_mut().collect();
        slots.rotate_left(first.min(count));
        for slot in slots {
            if batch.is_full() {
                break;
            }
            slot.read(&mut batch, tails, self.taker.as_deref());
        }
        batch.is_whole &= !batch.is_full();
        Ok(batch)
    }

    fn find_slots(&mut self, batch: &mut Batch) -> io::Result<()> {
        for path in reader::journals(&self.dir)? {
            if !self.slots.contains_key(&path) {
                let slot = Slot::open(path.clone(), &self.positions, &mut batch.troubles);
                self.slots.insert(path, slot);
            }
        }
        Ok(())
    }
}

// === impl Slot ===

impl Slot {
    fn open(path: PathBuf, positions: &Positions, troubles: &mut Vec<String>) -> Self {
        let last = position_in(&path, positions).filter(|last| {
            let end = end_of(&path).ok().flatten();
            let replaced = end.filter(|end| end < last);
            troubles.extend(replaced.map(|end| {
                format!(
                    "{} ends with record {end}, though {last} was sent already: it is another journal, sent from its beginning; give the gateway another id",
                    path.display()
                )
            }));
            replaced.is_none()
        });
        Self { path, follow: None, last }
    }

    fn read(&mut self, batch: &mut Batch, tails: &Tails, taker: Option<&Taker>) {
        let mut troubles = Vec::new();
        let read = reader::synced_through(&self.path);
        if let Ok(through) = &read
            && let Some(groups) = taker.and_then(|taker| taker.take(&self.path, self.last?, GROUPED_MAX))
        {
            self.follow = None;
            self.last = groups.last().map(|group| group.last()).or(self.last);
            batch.is_whole &= self.last >= *through;
            return batch.groups.extend(groups);
        }
        let read = read.and_then(|through| self.read_through(through.unwrap_or(u64::MAX), batch, tails, &mut troubles));
        batch.is_whole &= read.is_ok();
        batch.troubles.append(&mut troubles);
        batch.troubles.extend(read.err().map(|error| error.to_string()));
    }

    fn read_through(
        &mut self,
        through: u64,
        batch: &mut Batch,
        tails: &Tails,
        troubles: &mut Vec<String>,
    ) -> io::Result<()> {
        let Self { path, follow, last } = self;
        let (begin, mut before) = (*last, None);
        let mut take = |line: &Line| batch.take(line, last.replace(line.seq));
        if let Some(begin) = begin
            && tails.read(path, begin, through, troubles, &mut take)?
        {
            *follow = None;
            return Ok(());
        }
        let open = || begin.map_or_else(|| Follow::new(path.clone()), |begin| Follow::after(path.clone(), begin));
        let follow = follow.get_or_insert_with(open);
        let read = follow.read_through(through, |record| take(before.insert(line(record, before.as_ref()))));
        troubles.extend(follow.take_faults().iter().map(ToString::to_string));
        read
    }
}

fn gap(journal: &Arc<str>, last: u64, next: u64) -> Option<Gap> {
    let (first, last) = (last.saturating_add(1), next.saturating_sub(1));
    (first <= last).then(|| Gap { journal: Arc::clone(journal), first, last, why: Lack::NotInJournal })
}

/// How far a sink has come in a slot. Its numbers go on when the gateway gets another id, under another journal's name.
fn position_in(slot: &Path, positions: &Positions) -> Option<u64> {
    let number = slot.file_name().and_then(|name| name.to_str())?;
    let here = positions.iter().filter(|(journal, _)| journal.rsplit_once('/').is_some_and(|(_, slot)| slot == number));
    here.map(|(_, seq)| *seq).max()
}

/// The last record of a slot that may be read, where it can be told without reading the whole journal.
pub fn end_of(slot: &Path) -> io::Result<Option<u64>> {
    const TAIL: u64 = 256 * 1024;
    if let Some(synced) = reader::synced_through(slot)? {
        return Ok(Some(synced));
    }
    let newest = segment::list(slot)?.pop().filter(|(_, path)| !segment::is_compressed(path));
    let Some((_, path)) = newest else { return Ok(None) };
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.take(TAIL).read_to_end(&mut tail)?;
    let mut lines = tail.split_inclusive(|byte| *byte == b'\n').rev().filter_map(|line| line.strip_suffix(b"\n"));
    Ok(lines.find(|line| segment::is_whole(line)).and_then(segment::seq_of))
}

// === impl Batch ===

impl Batch {
    fn of(room: Room) -> Self {
        let (entries, groups, troubles) = (Vec::new(), Vec::new(), Vec::new());
        Self { entries, groups, troubles, is_whole: true, room, bytes: 0 }
    }

    pub fn is_full(&self) -> bool {
        let grouped: usize = self.groups.iter().map(|group| group.records.len()).sum();
        self.entries.len() >= self.room.records || self.bytes >= self.room.bytes || grouped >= GROUPED_MAX
    }

    /// Takes the next record of a journal, and what lacks before it.
    fn take(&mut self, line: &Line, last: Option<u64>) -> Wish {
        self.entries.extend(last.and_then(|last| gap(&line.journal, last, line.seq)).map(Entry::Gap));
        self.bytes += line.text.len() + 1;
        self.entries.push(Entry::Record(line.clone()));
        if self.is_full() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::recent::{Gathering, Recent};
    use crate::audit::segment::{Kind, file_name, write_line};
    use proptest::prelude::*;

    const ROOM: Room = Room { records: 3, bytes: 1 << 20 };

    fn write(dir: &Path, journal: &str, first: u64, last: u64) {
        let slot = dir.join(journal.rsplit_once('/').unwrap().1);
        std::fs::create_dir_all(&slot).unwrap();
        let mut lines = Vec::new();
        (first..=last).for_each(|seq| write_line(&mut lines, Kind::Request, journal, seq, "cfg", b""));
        std::fs::write(slot.join(file_name(first)), lines).unwrap();
    }

    fn positions(list: &[(&str, u64)]) -> Positions {
        list.iter().map(|(journal, seq)| ((*journal).to_owned(), *seq)).collect()
    }

    /// Everything in order, gaps as ranges.
    fn read_all(feed: &mut Feed) -> Vec<(String, u64, u64)> {
        let tails = &Tails::new(1 << 20);
        let mut all = Vec::new();
        loop {
            let batch = feed.read(ROOM, tails).unwrap();
            assert!(batch.entries.len() <= ROOM.records + 1);
            if batch.entries.is_empty() {
                return all;
            }
            all.extend(batch.entries.into_iter().map(|entry| match entry {
                Entry::Record(line) => (line.journal.to_string(), line.seq, line.seq),
                Entry::Gap(gap) => (gap.journal.to_string(), gap.first, gap.last),
            }));
        }
    }

    fn of(journal: &str, ranges: &[(u64, u64)]) -> Vec<(String, u64, u64)> {
        ranges.iter().map(|(first, last)| (journal.to_owned(), *first, *last)).collect()
    }

    #[test]
    fn l7_it_goes_on_behind_a_position_and_a_hole_is_told_exactly() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gw/0", 11, 14);
        let from = |list| read_all(&mut Feed::new(dir.path().to_owned(), positions(list)));
        assert_eq!(
            from(&[]),
            of("gw/0", &[(11, 11), (12, 12), (13, 13), (14, 14)]),
            "what is older was never promised"
        );
        assert_eq!(from(&[("gw/0", 12)]), of("gw/0", &[(13, 13), (14, 14)]));
        assert_eq!(from(&[("gw/0", 8)]), of("gw/0", &[(9, 10), (11, 11), (12, 12), (13, 13), (14, 14)]));
        assert_eq!(from(&[("gw/0", 14), ("gw/1", 99)]), []);
        write(dir.path(), "gw/0", 20, 20);
        assert_eq!(from(&[("gw/0", 14)]), of("gw/0", &[(15, 19), (20, 20)]));
    }

    #[test]
    fn no_journal_starves_and_the_numbers_go_on_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gw/0", 1, 9);
        write(dir.path(), "gw/1", 1, 1);
        let mut feed = Feed::new(dir.path().to_owned(), Positions::new());
        let read: Vec<_> = (0..2).flat_map(|_| feed.read(ROOM, &Tails::new(1 << 20)).unwrap().entries).collect();
        assert!(read.iter().any(|entry| matches!(entry, Entry::Record(line) if &*line.journal == "gw/1")));

        write(dir.path(), "other/0", 10, 11);
        let from = |list| read_all(&mut Feed::new(dir.path().to_owned(), positions(list)));
        let rest = of("other/0", &[(10, 10), (11, 11)]);
        assert_eq!(from(&[("gw/0", 9), ("gw/1", 1)]), rest);
        assert_eq!(from(&[("gw/0", 9), ("gw/1", 1), ("other/0", 10)]), rest[1..]);
    }

    #[test]
    fn what_is_told_from_memory_is_not_read_and_what_was_missed_is() {
        let dir = tempfile::tempdir().unwrap();
        let recent = Recent::new(dir.path().join("0"), 5);
        let mut gathering = Gathering::after("gw/0", 5);
        let mut tell = |count| {
            (0..count).for_each(|_| gathering.add_line(b"{}\n"));
            recent.push(gathering.take());
        };
        let feed = |list| Feed::new(dir.path().to_owned(), positions(list)).with_groups(Some(recent.taker()));
        let room = Room { records: 100, bytes: 1 << 20 };
        let read = |feed: &mut Feed| {
            let batch = feed.read(room, &Tails::new(1 << 20)).unwrap();
            let groups = batch.groups.iter().map(|group| (group.first, group.last())).collect::<Vec<_>>();
            (batch.entries.len(), groups, batch.is_whole)
        };
        write(dir.path(), "gw/0", 1, 5);
        let mut first = feed(&[]);
        assert_eq!(read(&mut first), (5, vec![], true));
        // They are not even in a file, and still they are not missed.
        tell(3);
        tell(1);
        assert_eq!(read(&mut first), (0, vec![(6, 8), (9, 9)], true));
        write(dir.path(), "gw/0", 6, 9);
        let mut late = feed(&[("gw/0", 3)]);
        assert_eq!(read(&mut late), (6, vec![], true));
        tell(2);
        assert_eq!([read(&mut first), read(&mut late)], [(0, vec![(10, 11)], true), (0, vec![(10, 11)], true)]);
        assert_eq!(read(&mut late), (0, vec![], true));
    }

    #[test]
    fn j6_nothing_is_read_that_is_not_synced() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gw/0", 1, 5);
        let mut feed = Feed::new(dir.path().to_owned(), Positions::new());
        let lock = File::create(dir.path().join("0").join(reader::LOCK_FILE)).unwrap();
        lock.lock().unwrap();
        for (synced, expected) in [(0, &[][..]), (2, &[(1, 1), (2, 2)]), (5, &[(3, 3), (4, 4), (5, 5)])] {
            std::fs::write(dir.path().join("0").join(reader::SYNCED_FILE), u64::to_le_bytes(synced)).unwrap();
            assert_eq!(read_all(&mut feed), of("gw/0", expected));
            assert_eq!(end_of(&dir.path().join("0")).unwrap(), Some(synced));
        }
    }

    #[test]
    fn another_journal_in_the_place_of_the_one_that_was_sent_is_sent_from_its_beginning_and_told() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gw/0", 1, 2);
        let mut feed = Feed::new(dir.path().to_owned(), positions(&[("gw/0", 500)]));
        let batch = feed.read(ROOM, &Tails::new(1 << 20)).unwrap();
        assert_eq!(batch.entries.len(), 2);
        assert!(batch.troubles[0].contains("ends with record 2, though 500"), "{:?}", batch.troubles);
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Write(u64),
        /// A feed reads, with room for so many records.
        Read(usize, usize),
        /// A feed begins anew, where it stood.
        Reopen(usize),
        RemoveOldest,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (1..30_u64).prop_map(Step::Write),
            6 => (0..3_usize, 1..40_usize).prop_map(|(feed, records)| Step::Read(feed, records)),
            1 => (0..3_usize).prop_map(Step::Reopen),
            1 => Just(Step::RemoveOldest),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        /// Each gets every number once and in order, as a record or in a gap, whatever the others read meanwhile; and no gap
        /// where nothing was removed.
        #[test]
        fn l7_feeds_that_share_tails_read_what_each_would_read_alone(steps in steps(), tail_bytes in 0..6000_usize) {
            let (dir, tails) = (tempfile::tempdir().unwrap(), Tails::new(tail_bytes));
            let open = |last: u64| Feed::new(dir.path().to_owned(), positions(&[("gw/0", last)]));
            write(dir.path(), "gw/0", 1, 1);
            let (mut next, mut removed) = (2, 0);
            let mut feeds: Vec<(Feed, u64)> = (0..3).map(|_| (open(0), 0)).collect();
            let read = |feeds: &mut Vec<(Feed, u64)>, feed: usize, records: usize, removed: u64| {
                let (feed, last) = &mut feeds[feed];
                let batch = feed.read(Room { records, bytes: 1 << 20 }, &tails).unwrap();
                for entry in &batch.entries {
                    let (begin, end) = match entry {
                        Entry::Record(line) => (line.seq, line.seq),
                        Entry::Gap(gap) => (gap.first, gap.last),
                    };
                    assert_eq!(begin, *last + 1);
                    assert!(matches!(entry, Entry::Record(_)) || end <= removed, "{entry:?} was there");
                    *last = end;
                }
                batch.is_whole
            };
            for step in steps {
                match step {
                    Step::Write(count) => {
                        write(dir.path(), "gw/0", next, next + count - 1);
                        next += count;
                    }
                    Step::Read(feed, records) => _ = read(&mut feeds, feed, records, removed),
                    Step::Reopen(feed) => feeds[feed].0 = open(feeds[feed].1),
                    Step::RemoveOldest => if let [(_, oldest), (after, _), ..] = &segment::list(&dir.path().join("0")).unwrap()[..] {
                        std::fs::remove_file(oldest).unwrap();
                        removed = after - 1;
                    },
                }
            }
            for feed in 0..3 {
                while !read(&mut feeds, feed, 1000, removed) {}
                prop_assert_eq!(feeds[feed].1, next - 1);
            }
        }
    }
}
