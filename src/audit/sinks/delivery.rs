//! One sink's thread: reads, delivers, moves the checkpoint, and comes again when that fails.

use super::checkpoint::{Checkpoint, smaller};
use super::feed::{Entry, Feed, Room};
use super::gap::{Gap, Lack};
use super::shipper::Shared;
use super::status::{Said, State, Status};
use super::{Line, Outlet, Positions, Sink, SinkError};
use crate::audit::recent::Group;
use crate::clock::{Instant, Timestamp, monotonic};
use crate::telemetry;
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at journals that were at their end: records gather to a batch meanwhile.
const IDLE: Duration = Duration::from_millis(200);
/// Checkpoints are saved this often: what a kill lets be sent again.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// The first rest after a failure, and the longest. What a destination asks for may be longer.
const REST_MIN: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(30);
const ASKED_MAX: Duration = Duration::from_secs(3600);

/// A sink and where it stands.
pub struct Delivery {
    sink: Box<dyn Sink>,
    room: Room,
    shared: Arc<Shared>,
    status: Arc<Status>,
    checkpoint: Checkpoint,
    /// None until it is known where to begin.
    feed: Option<Feed>,
    /// Read and not taken yet.
    pending: Vec<Line>,
    /// Those lines of `pending` that stand for records.
    gaps: Vec<Gap>,
    /// Of other journals, the newest first.
    groups: Vec<Arc<Group>>,
    positions: Positions,
    saved: Positions,
    saved_at: Instant,
    /// How many lines are offered at once: fewer after they were too many.
    part: usize,
    failures: u32,
    /// What was said of its failures, and whether the one that lasts was among it.
    said: Said,
    is_told: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There is more to read.
    GoOn,
    /// Everything was taken.
    Rest,
}

// === impl Delivery ===

impl Delivery {
    pub fn new(outlet: Outlet, shared: Arc<Shared>, status: Arc<Status>) -> Self {
        let Outlet { sink, room } = outlet;
        Self {
            checkpoint: Checkpoint::of(&shared.dir, sink.name()),
            part: room.records,
            sink,
            room,
            shared,
            status,
            feed: None,
            pending: Vec::new(),
            gaps: Vec::new(),
            groups: Vec::new(),
            positions: Positions::new(),
            saved: Positions::new(),
            saved_at: monotonic(),
            failures: 0,
            said: Said::default(),
            is_told: false,
        }
    }

    /// Delivers until the shipper stops, and then once more what there is.
    pub fn run(&mut self) {
        while !self.shared.stop.is_set() {
            let rest = match self.turn() {
                Ok(Next::GoOn) => {
                    // Between two batches: a worker on the same core does not wait until the scheduler's slice ends, which is
                    // longer than a request takes.
                    std::thread::yield_now();
                    Duration::ZERO
                }
                Ok(Next::Rest) => IDLE,
                Err(error) => self.hold(error),
            };
            self.shared.stop.wait(rest);
        }
        while let Ok(Next::GoOn) = self.turn() {}
        if let Err(error) = self.sink.flush() {
            self.tell(&error.to_string());
        }
        self.save(true);
    }

    /// Forgets what was in hand: it is read again, from what was taken.
    pub fn start_over(&mut self) {
        (self.feed, self.pending, self.gaps, self.groups) = Default::default();
    }

    /// Reads a batch, if none is in hand, and delivers it.
    fn turn(&mut self) -> Result<Next, SinkError> {
        if self.feed.is_none() {
            self.resume()?;
        }
        let read_at = self.shared.clock.now();
        let is_empty = self.pending.is_empty() && self.groups.is_empty();
        let (is_full, is_whole) = if is_empty { self.refill()? } else { (true, false) };
        self.deliver()?;
        if is_whole {
            self.sink.caught_up(read_at, self.shared.stop.is_set())?;
        }
        self.recovered();
        self.save(false);
        Ok(if is_full { Next::GoOn } else { Next::Rest })
    }

    /// Finds out where to begin: what was saved, and what the destination says, whichever is less.
    fn resume(&mut self) -> Result<(), SinkError> {
        let saved = self.checkpoint.load().unwrap_or_else(|error| {
            self.trouble(&format!("{error}; what was sent may be sent again"));
            None
        });
        self.status.advance(saved.as_ref().unwrap_or(&self.positions));
        self.positions = match (saved, self.sink.position()?) {
            (saved, None) => saved.unwrap_or_default(),
            (Some(saved), Some(kept)) => smaller(&saved, &kept),
            // It may hold other gateways' records, whose slots have the same numbers.
            (None, Some(kept)) => kept.into_iter().filter(|(journal, _)| self.shared.is_ours(journal)).collect(),
        };
        self.status.advance(&self.positions);
        let recent = self.shared.recent.as_ref().filter(|_| self.sink.takes_groups());
        let feed = Feed::new(self.shared.dir.clone(), self.positions.clone());
        self.feed = Some(feed.with_groups(recent.map(|recent| recent.taker())));
        Ok(())
    }

    /// Reads a batch; whether there may be more, and whether it is known that there is not.
    fn refill(&mut self) -> Result<(bool, bool), SinkError> {
        let Some(feed) = &mut self.feed else { return Ok((false, false)) };
        let batch = feed.read(self.room, &self.shared.tails).map_err(|error| SinkError::later(error.to_string()))?;
        batch.troubles.iter().for_each(|trouble| self.trouble(trouble));
        let read = (batch.is_full(), batch.is_whole);
        let now = self.shared.clock.now();
        for entry in batch.entries {
            let line = match entry {
                Entry::Record(line) => line,
                Entry::Gap(gap) => {
                    let line = gap.line(self.sink.name(), now);
                    self.gaps.push(gap);
                    line
                }
            };
            self.pending.push(line);
        }
        self.groups = batch.groups;
        self.groups.reverse();
        self.begin_journals();
        let first = self.pending.first().map(|line| written_at(line).unwrap_or(now));
        self.status.wait_since(first.or(self.groups.last().map(|_| now)));
        Ok(read)
    }

    /// Holds on to where a journal began before anything of it was taken: what goes from there on is a gap.
    fn begin_journals(&mut self) {
        let known = self.positions.len();
        let lines = runs(&self.pending).filter_map(|lines| lines.first()).map(|line| (&line.journal, line.seq));
        for (journal, first) in lines.chain(self.groups.iter().rev().map(|group| (&group.journal, group.first))) {
            if !self.positions.contains_key(&**journal) {
                self.positions.insert(journal.to_string(), first.saturating_sub(1));
            }
        }
        self.save(self.positions.len() > known);
    }

    /// Offers what is in hand, in parts that are not too large.
    fn deliver(&mut self) -> Result<(), SinkError> {
        while !self.pending.is_empty() {
            let part = self.part.clamp(1, self.pending.len());
            let lines = self.pending.get(..part).unwrap_or_default();
            match self.sink.deliver(lines) {
                Ok(()) => self.took(part),
                Err(SinkError::TooLarge { why }) if part > 1 => {
                    tracing::debug!(sink = self.sink.name(), lines = part, why, "a batch is too large");
                    self.part = part / 2;
                }
                Err(SinkError::TooLarge { why }) => self.replace_first(&why)?,
                Err(error) => return Err(error),
            }
        }
        while let Some(group) = self.groups.last() {
            self.sink.deliver_group(group)?;
            let before = self.positions.insert(group.journal.to_string(), group.last());
            let records = group.last().saturating_sub(before.unwrap_or(group.first - 1));
            telemetry::sink_sent(self.sink.name(), usize::try_from(records).unwrap_or(0));
            self.groups.pop();
        }
        self.status.advance(&self.positions);
        self.status.wait_since(None);
        Ok(())
    }

    fn took(&mut self, part: usize) {
        let lines = self.pending.get(..part).unwrap_or_default();
        let is_told = |gap: &mut Gap| lines.iter().any(|line| gap.is_told_by(line));
        for gap in self.gaps.extract_if(.., is_told) {
            lose(self.sink.name(), &gap, "the journal lacks them");
        }
        for line in runs(lines).filter_map(<[Line]>::last) {
            // Its journal is known since it was read.
            if let Some(position) = self.positions.get_mut(&*line.journal) {
                *position = line.seq.max(*position);
            }
        }
        self.pending.drain(..part);
        self.part = (self.part + self.part / 16 + 1).min(self.room.records);
        self.status.advance(&self.positions);
        telemetry::sink_sent(self.sink.name(), part);
    }

    /// Sends word of a record in its place, because not even alone it is taken. A destination that does not take that either
    /// takes nothing now.
    fn replace_first(&mut self, why: &str) -> Result<(), SinkError> {
        let Some(line) = self.pending.first() else { return Ok(()) };
        if self.gaps.iter().any(|gap| gap.is_told_by(line)) {
            return Err(SinkError::later(why));
        }
        let journal = Arc::clone(&line.journal);
        let gap = Gap { journal, first: line.seq, last: line.seq, why: Lack::TooLarge };
        let word = [gap.line(self.sink.name(), self.shared.clock.now())];
        match self.sink.deliver(&word) {
            Ok(()) => {
                lose(self.sink.name(), &gap, why);
                self.took(1);
                Ok(())
            }
            Err(SinkError::TooLarge { why }) => Err(SinkError::later(why)),
            Err(error) => Err(error),
        }
    }

    /// After a failure: says so, and gives the time to rest.
    fn hold(&mut self, error: SinkError) -> Duration {
        telemetry::sink_retried(self.sink.name());
        let (why, asked) = match error {
            SinkError::Later { why, after } => (why, after.unwrap_or_default().min(ASKED_MAX)),
            SinkError::TooLarge { why } => (why, Duration::ZERO),
            SinkError::Behind { why } => {
                self.start_over();
                (why, Duration::ZERO)
            }
        };
        if self.pending.is_empty() {
            self.status.wait_since(Some(self.shared.clock.now()));
        }
        self.tell(&why);
        self.save(false);
        let rest = REST_MIN.saturating_mul(1 << self.failures.min(16)).min(REST_MAX);
        self.failures = self.failures.saturating_add(1);
        rest.mul_f64(0.5 + 0.5 * fastrand::f64()).max(asked)
    }

    /// One line when it begins to fail and when it fails differently; not one each time where it fails now and then.
    fn tell(&mut self, why: &str) {
        self.status.enter(State::Failing(why.to_owned()));
        if self.said.is_news(why, monotonic()) {
            tracing::warn!(
                sink = self.sink.name(),
                error = why,
                "a sink does not take audit records; the journal keeps them"
            );
            self.is_told = true;
        }
    }

    fn recovered(&mut self) {
        self.status.enter(State::Delivering);
        if std::mem::take(&mut self.is_told) {
            tracing::info!(sink = self.sink.name(), retries = self.failures, "a sink takes audit records again");
        }
        self.failures = 0;
    }

    fn trouble(&self, trouble: &str) {
        if self.shared.told.is_new(trouble) {
            tracing::error!("{trouble}");
        }
    }

    /// Saves the positions, if they have changed and it is time or `now`.
    fn save(&mut self, now: bool) {
        let time = monotonic();
        let is_due = now || time.saturating_duration_since(self.saved_at) >= SAVE_EVERY;
        if !is_due || self.feed.is_none() {
            return;
        }
        let positions = match self.sink.settled() {
            Some(settled) => smaller(&self.positions, &settled),
            None => self.positions.clone(),
        };
        self.saved_at = time;
        if positions == self.saved {
            return;
        }
        match self.checkpoint.save(&positions) {
            Ok(()) => self.saved = positions,
            Err(error) => self.trouble(&error.to_string()),
        }
    }
}

/// Lines that follow each other in one journal.
fn runs(lines: &[Line]) -> impl Iterator<Item = &[Line]> {
    lines.chunk_by(|line, next| Arc::ptr_eq(&line.journal, &next.journal))
}

fn lose(sink: &str, gap: &Gap, why: &str) {
    let Gap { journal, first, last, .. } = gap;
    tracing::error!(sink, %journal, first, last, why, "audit records do not reach a sink; it was told which");
    telemetry::sink_dropped(sink, gap.records());
}

/// When a record was written.
fn written_at(line: &Line) -> Option<Timestamp> {
    let (_, rest) = line.text.split_once("\"ts\":\"")?;
    Timestamp::parse(rest.split_once('"')?.0)
}

#[cfg(test)]
mod tests;
