//! One slot, read from its first record to its last.

use super::seals::{Seals, Shown};
use super::survey::{Candidate, Survey, open};
use super::{Event, Finding, Head, Summary};
use crate::audit::pieces::Piece;
use crate::audit::seal::Seal;
use crate::audit::{SCHEMA, reader, segment};
use crate::clock::Timestamp;
use std::io;
use std::path::{Path, PathBuf};

/// What is done with what is met; an error ends verifying.
pub type Take<'a> = dyn FnMut(Event<'_>) -> io::Result<()> + 'a;

/// The state of verifying a slot.
pub struct Scan<'a> {
    /// The names of the slot's journal.
    names: Vec<String>,
    heads: Vec<Head>,
    /// Whether a process holds the slot: its newest segment may end within a line.
    is_held: bool,
    take: &'a mut Take<'a>,
    /// The last number that has been dealt with, as a record or as a fault.
    last: Option<u64>,
    /// Damage of which it is not known yet what lacks for it: segment, start, bytes.
    damage: Vec<(PathBuf, u64, u64)>,
    /// Repeated or foreign records that may go on.
    run: Option<Finding>,
    /// Not handed over yet.
    found: Vec<Finding>,
    seals: Seals,
    summary: Summary,
}

/// Verifies one slot. `heads` may be of any journals; those of this one count. With `since`, old segments without a record of
/// that time or later are left out, up to the last one before those that have some.
///
/// # Errors
/// As of reading the files. What is wrong with their contents is no error.
pub fn verify(slot: &Path, heads: &[Head], since: Option<Timestamp>, take: &mut Take<'_>) -> io::Result<Summary> {
    // Before the segments: what is synced now must be in them.
    let synced = reader::synced(slot)?;
    let is_held = reader::is_held(slot)?;
    let survey = Survey::of(slot)?;
    let mut scan = Scan {
        heads: heads_of(&survey.names, heads, synced),
        names: survey.names.clone(),
        is_held,
        take,
        last: None,
        damage: Vec::new(),
        run: None,
        found: Vec::new(),
        seals: Seals::default(),
        summary: Summary { dir: slot.to_owned(), names: survey.names.clone(), ..Summary::default() },
    };
    let from = since.map_or(Ok(0), |since| survey.index_since(since))?;
    for (index, candidate) in survey.candidates.iter().enumerate().skip(from) {
        scan.segment(&survey, index, candidate)?;
    }
    scan.end();
    scan.tell()?;
    Ok(scan.summary)
}

/// The heads of this journal, and what its writer has synced.
fn heads_of(names: &[String], heads: &[Head], synced: Option<u64>) -> Vec<Head> {
    let local = names.last().zip(synced).map(|(journal, seq)| Head { journal: journal.clone(), seq, hash: None });
    heads.iter().filter(|head| names.contains(&head.journal)).cloned().chain(local).collect()
}

// === impl Scan ===

impl Scan<'_> {
    fn segment(&mut self, survey: &Survey, index: usize, candidate: &Candidate) -> io::Result<()> {
        let Some((path, mut pieces)) = open(&candidate.path)? else {
            // Its time was over meanwhile, and so was that of all before it.
            self.last = None;
            return Ok(());
        };
        self.summary.segments += 1;
        self.begin(&path, candidate, survey.is_own(candidate));
        let (void_from, is_newest) = (survey.void_from(index), index + 1 == survey.candidates.len());
        let mut schema = u64::from(SCHEMA);
        while let Some(piece) = pieces.read().map_err(|error| reader::about("read", &path, &error))? {
            match piece {
                Piece::Record { seq, line } => {
                    let told = segment::schema_of(line.as_bytes()).unwrap_or_default();
                    if std::mem::replace(&mut schema, told) != told {
                        self.find(Finding::Version { segment: path.clone(), schema });
                    }
                    let counts = self.record(&path, void_from, seq, line);
                    self.tell()?;
                    if counts {
                        (self.take)(Event::Record { seq, line })?;
                    }
                }
                Piece::Torn { .. } if is_newest && self.is_held => {}
                Piece::Damage { start, bytes } | Piece::Torn { start, bytes } => self.add_damage(&path, start, bytes),
            }
        }
        self.end_run();
        if pieces.position() == 0 {
            self.find(Finding::Empty { segment: path });
        }
        self.tell()
    }

    /// What a segment's name says.
    fn begin(&mut self, path: &Path, candidate: &Candidate, is_own: bool) {
        let is_named_right = candidate.is_named_right();
        if !is_named_right {
            self.find(Finding::Misnamed { segment: path.to_owned(), begins: candidate.begins });
        }
        if let Some(named) = candidate.named.filter(|_| is_named_right && is_own) {
            self.reach(named, true);
        }
    }

    /// A whole record; true if it counts.
    fn record(&mut self, path: &Path, void_from: Option<u64>, seq: u64, line: &str) -> bool {
        let journal = segment::journal_of(line.as_bytes());
        if !journal.is_some_and(|journal| self.names.iter().any(|name| name == journal)) {
            let (segment, journal) = (path.to_owned(), journal.unwrap_or_default().to_owned());
            self.go_on(Finding::Foreign { segment, journal, first: seq, last: seq });
        } else if self.last.is_some_and(|last| seq <= last) {
            self.go_on(Finding::Repeated { segment: path.to_owned(), first: seq, last: seq });
        } else if void_from.is_none_or(|void_from| seq < void_from) {
            self.count(seq, line);
            return true;
        }
        false
    }

    fn count(&mut self, seq: u64, line: &str) {
        self.end_run();
        self.reach(seq, false);
        self.last = Some(seq);
        self.summary.first.get_or_insert(seq);
        self.summary.last = Some(seq);
        self.summary.records += 1;
        match self.seals.take(seq, line) {
            Shown::Nothing | Shown::Sealed => {}
            Shown::Altered { first, last } => self.find(Finding::Altered { first, last, seal: seq }),
            // Only at the beginning; of others it has been told what lacks.
            Shown::Unchecked { last } => {
                let first = self.summary.first.filter(|first| *first > 1 && self.summary.sealed_through.is_none());
                self.summary.unchecked =
                    self.summary.unchecked.or(first.map(|first| (first, last))).filter(|(first, last)| first <= last);
            }
        }
        self.check_head(seq, line);
    }

    fn check_head(&mut self, seq: u64, line: &str) {
        let seal = Seal::read(line);
        if seal.is_some() {
            self.summary.sealed_through = Some(seq);
        }
        let known = self.heads.iter().filter(|head| head.seq == seq).find_map(|head| head.hash);
        if known.is_some() && known != seal.map(|seal| seal.hash) {
            self.find(Finding::Forked { seq });
        }
    }

    /// The numbers before `seq` will not come any more. `at_beginning`: a segment begins there, so that damage at the end of
    /// the one before it is a torn end, if no number lacks.
    fn reach(&mut self, seq: u64, at_beginning: bool) {
        let lacking =
            self.last.map(|last| (last.saturating_add(1), seq.saturating_sub(1))).filter(|(first, last)| first <= last);
        let damage = std::mem::take(&mut self.damage);
        match lacking {
            Some((first, last)) if damage.is_empty() => self.find(Finding::Missing { first, last }),
            None if at_beginning => self.summary.torn_bytes += damage.iter().map(|(_, _, bytes)| bytes).sum::<u64>(),
            Some(_) | None => self.find_damage(damage, lacking.map(|(first, last)| (first, Some(last)))),
        }
        self.last = self.last.max(Some(seq.saturating_sub(1)));
    }

    fn find_damage(&mut self, damage: Vec<(PathBuf, u64, u64)>, records: Option<(u64, Option<u64>)>) {
        for (segment, start, bytes) in damage {
            self.find(Finding::Damaged { segment, start, bytes, records });
        }
    }

    fn add_damage(&mut self, path: &Path, start: u64, bytes: u64) {
        self.end_run();
        match self.damage.last_mut() {
            Some((segment, from, length)) if segment == path && *from + *length == start => *length += bytes,
            Some(_) | None => self.damage.push((path.to_owned(), start, bytes)),
        }
    }

    /// Takes one more record of a run in.
    fn go_on(&mut self, next: Finding) {
        let (first, _) = next.numbers();
        match (&mut self.run, &next) {
            (Some(Finding::Repeated { segment, last, .. }), Finding::Repeated { segment: same, .. })
                if segment == same && last.checked_add(1) == first =>
            {
                *last += 1;
            }
            (
                Some(Finding::Foreign { segment, journal, last, .. }),
                Finding::Foreign { segment: same, journal: of, .. },
            ) if segment == same && journal == of && last.checked_add(1) == first => {
                *last += 1;
            }
            _ => {
                self.end_run();
                self.run = Some(next);
            }
        }
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.find(run);
        }
    }

    fn end(&mut self) {
        let after = self.last.map_or(1, |last| last.saturating_add(1));
        let damage = std::mem::take(&mut self.damage);
        self.find_damage(damage, Some((after, None)));
        let known = self.heads.iter().map(|head| head.seq).max();
        let journal = self.names.last().cloned();
        if let (Some(known), Some(journal)) = (known.filter(|known| Some(*known) > self.summary.last), journal) {
            self.find(Finding::Cut { journal, last: self.summary.last, known });
        }
    }

    fn find(&mut self, finding: Finding) {
        self.summary.faults += 1;
        self.found.push(finding);
    }

    /// Hands over what has been found.
    fn tell(&mut self) -> io::Result<()> {
        self.found.drain(..).try_for_each(|finding| (self.take)(Event::Fault(&finding)))
    }
}
