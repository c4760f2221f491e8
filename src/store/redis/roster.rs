//! The rows of a Redis store's gateways: one field of a hash each. A row shows that it lives by its beat alone, and how long ago
//! that was is measured by whoever looks: the store's clock decides nothing.

use super::link::{self, Link};
use super::{Fleet, Member, StoreError, codec, schema};
use crate::clock::{Clock, Instant, monotonic};
use crate::ulid::Ulid;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

const FLEET: &str = include_str!("fleet.lua");
const SETTLED: &str = include_str!("settled.lua");
const TELL: &str = include_str!("tell.lua");
/// How long the rows of a server that has just started, or whose history has just turned out to be another one, prove nothing:
/// 2 L, in which every gateway that lives has told of itself again (protocols, Settle).
const SETTLE: Duration = Duration::from_secs(4);
/// Until it has been looked whether a time of settling that has passed was the last.
const LOOK_SOON: Duration = Duration::from_millis(1);
/// How often a row shows that its gateway lives.
const BEAT: Duration = Duration::from_millis(500);
/// Of how many beats a process knows that they were its own: more than an hour's.
const BEATS_MAX: usize = 8192;
/// How often the others' rows are looked at.
const OBSERVE: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct RowWire {
    /// Another number each time, which no other process comes upon.
    beat: u64,
    #[serde(flatten)]
    member: Member,
}

/// A gateway's own row, and what it has seen of the others.
#[derive(Debug, Default)]
pub struct Row {
    told: Option<(Member, Instant)>,
    /// The row as it was last confirmed to be written, and as it may have been written since; empty if never.
    text: String,
    sent: String,
    /// The beats of this process, the latest last.
    beats: VecDeque<u64>,
    /// Instead of the member's own, which another process has taken.
    instance: Option<String>,
    observed: Option<Instant>,
    /// When nobody can be missing any more, as of the last look.
    settled_at: Option<Instant>,
    /// The fork that was noted last, as of the last look; empty if none.
    fork: String,
    /// Which connection of the link the row was last told over.
    connects: u64,
    /// By instance: its last beat, and since when it is unchanged.
    others: HashMap<String, (u64, Instant)>,
}

/// The rows of all gateways, by instance, as of one moment.
struct Rows {
    settles_in: Duration,
    /// The fork that was noted last; empty if none.
    fork: String,
    texts: HashMap<String, String>,
}

/// What came of writing a row.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Written {
    Kept,
    /// It was not there any more, or that cannot be told.
    Anew,
    /// It is this one, which this process has not left like that.
    Taken(String),
}

// === impl Row ===

impl Row {
    /// Tells what has changed, and in any case that this gateway lives.
    ///
    /// # Errors
    /// Also when the row had to be made anew: somebody may have missed to wait for this gateway, so this turn proves nothing.
    /// The next one does.
    pub fn tell(&mut self, link: &mut Link, member: &Member) -> Result<(), StoreError> {
        let now = monotonic();
        let is_due = |told: &Instant| now.saturating_duration_since(*told) >= BEAT;
        let is_known = self.told.as_ref().is_some_and(|(told, at)| told == member && !is_due(at));
        if is_known && self.connects == link.connects() && !self.is_to_look(now) {
            return Ok(());
        }
        let written = self.write(link, member)?;
        if let Written::Taken(row) = &written {
            self.part_from(row, member);
            self.write(link, member)?;
        }
        if let (None, Some(gone)) = (&self.told, &member.replaces) {
            // Not before: until this row is there, that one speaks for what this gateway may serve from its disk.
            remove(link, gone)?;
        }
        self.told = Some((member.clone(), now));
        if self.connects != link.connects() {
            // It may be another run of the server.
            (self.connects, self.observed) = (link.connects(), None);
        }
        if self.is_to_look(now) {
            self.look(link, now)?;
        }
        match written {
            Written::Kept => Ok(()),
            Written::Anew => {
                Err(StoreError::Unavailable("the row was gone, or may have been; joined again".to_owned()))
            }
            Written::Taken(_) => Err(StoreError::Unavailable("the row was not as it was left; joined anew".to_owned())),
        }
    }

    /// The row is not as this process left it. One that it left earlier is its own, from a store that was put back; any other was
    /// written by a process that takes itself for this one: this one takes another name.
    fn part_from(&mut self, row: &str, member: &Member) {
        let beat = read(&member.instance, row).map(|row| row.beat);
        let is_own = beat.is_ok_and(|beat| self.beats.contains(&beat));
        if is_own {
            row.clone_into(&mut self.text);
        } else {
            self.instance = Some(Ulid::new(Clock::system().now(), fastrand::u128(..)).to_string());
            self.text.clear();
        }
        self.sent.clear();
    }

    fn write(&mut self, link: &mut Link, member: &Member) -> Result<Written, StoreError> {
        let failed = |error: &dyn std::fmt::Display| StoreError::Unavailable(format!("no row: {error}"));
        let beat = getrandom::u64().map_err(|error| failed(&error))?;
        let mut row = RowWire { beat, member: member.clone() };
        row.member.instance = self.instance.clone().unwrap_or(row.member.instance);
        let text = serde_json::to_string(&row).map_err(|error| failed(&error))?;
        let mut command = link::script(TELL, &["fleet", "fork"]);
        command.arg(&row.member.instance).arg(&self.text).arg(&self.sent).arg(&text);
        self.sent.clone_from(&text);
        if self.beats.len() == BEATS_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back(beat);
        let (answer, found, fork): (String, String, String) = link.call(&command)?;
        if fork != self.fork {
            self.observed = None;
        }
        let written = match answer.as_str() {
            "kept" => Written::Kept,
            "again" | "back" => Written::Anew,
            "taken" => return Ok(Written::Taken(found)),
            _ => return Err(codec::corrupt(&format!("a row was answered with '{answer}'"))),
        };
        (self.text, self.sent) = (text, String::new());
        Ok(written)
    }

    /// How long it takes until nobody can be missing. Only a look says that it has come so far: meanwhile another fork may have
    /// been noted.
    pub fn settles_in(&self) -> Duration {
        match (self.settled_at, self.observed) {
            (Some(at), Some(observed)) if at <= observed => Duration::ZERO,
            (Some(at), Some(_)) => at.saturating_duration_since(monotonic()).max(LOOK_SOON),
            (None, _) | (_, None) => SETTLE,
        }
    }

    fn is_to_look(&self, now: Instant) -> bool {
        let Some(observed) = self.observed else { return true };
        let has_settled = self.settled_at.is_some_and(|at| observed < at && at <= now);
        has_settled || now.saturating_duration_since(observed) >= OBSERVE
    }

    /// Removes the rows of gateways that have been silent for so long that they cannot honour anything any more.
    fn look(&mut self, link: &mut Link, now: Instant) -> Result<(), StoreError> {
        self.observed = None;
        let Rows { settles_in, fork, texts } = rows(link)?;
        (self.observed, self.settled_at, self.fork) = (Some(now), Some(now + settles_in), fork);
        self.others.retain(|instance, _| texts.contains_key(instance));
        for (instance, text) in texts {
            // One that cannot be read stays until it is forgotten: who waits is told of it.
            let Ok(row) = read(&instance, &text) else { continue };
            let seen = self.others.entry(instance.clone()).or_insert((row.beat, now));
            if seen.0 != row.beat {
                *seen = (row.beat, now);
            }
            // Its last contact may be as much as a beat later than the beat.
            if now.saturating_duration_since(seen.1) > BEAT + row.member.may_serve_for() {
                remove_unchanged(link, &instance, &text)?;
            }
        }
        Ok(())
    }

    /// The gateway leaves, if the store can be told.
    pub fn leave(&self, link: &mut Link, member: &Member) {
        _ = remove(link, self.instance.as_ref().unwrap_or(&member.instance));
    }
}

/// The rows of all gateways.
pub fn fleet(link: &mut Link) -> Result<Fleet, StoreError> {
    let Rows { settles_in, texts, .. } = rows(link)?;
    let rows = texts.into_iter().map(|(instance, text)| read(&instance, &text).map(|row| row.member));
    let mut members = rows.collect::<Result<Vec<_>, _>>()?;
    members.sort_by(|left, right| (&left.gateway, &left.instance).cmp(&(&right.gateway, &right.instance)));
    Ok(Fleet { members, settles_in })
}

/// Another history was found in the store: settling begins anew, for everybody who looks from now on.
pub fn note_fork(link: &mut Link) -> Result<(), StoreError> {
    let fork = getrandom::u64().map_err(|error| StoreError::Unavailable(format!("no random numbers: {error}")))?;
    link.call(::redis::cmd("SET").arg(schema::name("fork")).arg(format!("{fork:016x}")))
}

/// The rows, and how long it takes until they are whole. Whoever has seen this run of the server, and the fork that was noted
/// last, for long enough tells the others.
fn rows(link: &mut Link) -> Result<Rows, StoreError> {
    loop {
        let asked = monotonic();
        let (seen, whole, texts): (String, String, _) = link.call(&link::script(FLEET, &["run", "fork", "fleet"]))?;
        let fork = seen.split_once(' ').map_or_else(String::new, |(_, fork)| fork.to_owned());
        if seen == whole {
            return Ok(Rows { settles_in: Duration::ZERO, fork, texts });
        }
        // From when it was first known to when it was asked: what was on its way in between proves nothing.
        let since = link.seen_since(&seen, monotonic());
        let settles_in = SETTLE.saturating_sub(asked.saturating_duration_since(since));
        if !settles_in.is_zero() {
            return Ok(Rows { settles_in, fork, texts });
        }
        // Not taken if another fork was noted just now: that one has not been seen for long.
        let is_taken: bool = link.call(link::script(SETTLED, &["run", "fork"]).arg(&seen))?;
        if is_taken {
            return Ok(Rows { settles_in, fork, texts });
        }
    }
}

fn read(instance: &str, text: &str) -> Result<RowWire, StoreError> {
    serde_json::from_str(text).map_err(|error| codec::corrupt(&format!("the row of instance {instance}: {error}")))
}

/// Removes a row unless its gateway has told something meanwhile.
fn remove_unchanged(link: &mut Link, instance: &str, text: &str) -> Result<(), StoreError> {
    const REMOVE: &str =
        "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end";
    let mut command = link::script(REMOVE, &["fleet"]);
    command.arg(instance).arg(text);
    link.call::<()>(&command)
}

/// Removes a row; whether there was one.
pub fn remove(link: &mut Link, instance: &str) -> Result<bool, StoreError> {
    let removed: u64 = link.call(::redis::cmd("HDEL").arg(schema::name("fleet")).arg(instance))?;
    Ok(removed > 0)
}
