//! The follower's side: one call of `poll.lua` reads the head, checks the position and gives what is new.

use super::fleet;
use super::link::{self, Link};
use super::roster::Row;
use super::{Member, REPLY_BYTES, StoreError, codec, schema};
use crate::clock::Timestamp;
use crate::store::{Action, Change, Changes, Feed, FleetId, Page, Position};
use std::time::Duration;

const POLL: &str = include_str!("poll.lua");
const PAST: &str = include_str!("past.lua");
/// Positions read by one call: the server reads whole entries for them, and does nothing else meanwhile.
const PAST_PAGE: usize = 1000;

/// How long a turn waits for the log to grow: freshness must be proved more often than every 2 s.
const BLOCK: Duration = Duration::from_millis(500);

/// A reader with a connection of its own, and its row.
pub struct RedisChanges {
    link: Link,
    row: Row,
}

// === impl RedisChanges ===

impl RedisChanges {
    pub fn new(link: Link) -> Self {
        Self { link, row: Row::default() }
    }
}

impl Changes for RedisChanges {
    fn head(&mut self) -> Result<Position, StoreError> {
        let head: Option<String> = self.link.call(::redis::cmd("GET").arg(schema::name("head")))?;
        head.map_or_else(|| Ok(Position::default()), |head| codec::need("head", &head, read_position))
    }

    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        let command = poll(from, fleet, limit, REPLY_BYTES);
        let (kind, head, entries): (String, String, Vec<Vec<String>>) = self.link.call(&command)?;
        if kind == "foreign" {
            let fleet = Some(head).filter(|id| !id.is_empty());
            return Ok(Feed::Foreign { fleet: fleet.as_deref().map(fleet::read_id).transpose()? });
        }
        let head = codec::need("head", &head, read_position)?;
        match kind.as_str() {
            "diverged" => Ok(Feed::Diverged { head }),
            "entries" => {
                let entries = entries.iter().map(|entry| read_change(entry)).collect::<Result<Vec<_>, _>>()?;
                // A log with a hole in it is not the one that was written.
                let is_whole = (from.seq + 1..).zip(&entries).all(|(seq, entry)| entry.seq == seq);
                let is_there = head.seq == from.seq || !entries.is_empty();
                Ok(if is_whole && is_there { Feed::Entries { head, entries } } else { Feed::Diverged { head } })
            }
            _ => Err(codec::corrupt(&format!("a poll was answered with '{kind}'"))),
        }
    }

    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError> {
        let (mut latest_first, mut before) = (Vec::new(), Position::default());
        while latest_first.len() < limit {
            let wanted = PAST_PAGE.min(limit - latest_first.len());
            let page = past_page(&mut self.link, before, wanted)?;
            latest_first.extend_from_slice(&page);
            match page.last() {
                Some(earliest) if page.len() == wanted => before = *earliest,
                Some(_) | None => break,
            }
        }
        latest_first.reverse();
        Ok(latest_first)
    }

    /// A bell: it rings when the log grows.
    fn wait(&mut self, from: Position) {
        let mut command = ::redis::cmd("XREAD");
        command.arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis() as u64);
        command.arg("STREAMS").arg(schema::name("log")).arg(format!("{}-0", from.seq));
        if self.link.call::<::redis::Value>(&command).is_err() {
            // The next poll says what is wrong.
            std::thread::sleep(BLOCK);
        }
    }

    fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        self.row.tell(&mut self.link, member)
    }

    fn leave(&mut self, member: &Member) {
        self.row.leave(&mut self.link, member);
    }

    fn outlives_process(&self) -> bool {
        true
    }

    fn settles_in(&self) -> Duration {
        self.row.settles_in()
    }

    fn page(&mut self, after: u64, limit: usize) -> Result<Page, StoreError> {
        let (head, records) = self.link.page("versions", "", ("score", &format!("({after}")), limit)?;
        Ok(Page { head: codec::need("head", &head, read_position)?, records })
    }
}

/// Whether the log holds the entry at `position`.
pub fn holds(link: &mut Link, position: Position) -> Result<bool, StoreError> {
    let (kind, _, _): (String, String, Vec<Vec<String>>) = link.call(&poll(position, None, 1, 0))?;
    Ok(kind == "entries")
}

fn poll(from: Position, fleet: Option<FleetId>, limit: usize, bytes: usize) -> ::redis::Cmd {
    let mut command = link::script(POLL, &["head", "log", "fleet_id"]);
    command.arg(from.seq).arg(from.token).arg(limit).arg(bytes);
    command.arg(fleet.map_or_else(String::new, |fleet| fleet.to_string()));
    command
}

/// Positions before one that the log must still hold, or before its end: the latest first.
fn past_page(link: &mut Link, before: Position, limit: usize) -> Result<Vec<Position>, StoreError> {
    let mut command = link::script(PAST, &["log"]);
    command.arg(before.seq).arg(before.token).arg(limit);
    let (kind, positions): (String, Vec<String>) = link.call(&command)?;
    match kind.as_str() {
        "positions" => positions.iter().map(|text| codec::need("log", text, read_position)).collect(),
        // Of two histories no list can be made.
        "diverged" => Err(StoreError::Unavailable("redis: the log was replaced while it was read".to_owned())),
        _ => Err(codec::corrupt(&format!("a question for positions was answered with '{kind}'"))),
    }
}

fn read_position(text: &str) -> Option<Position> {
    let (seq, token) = text.split_once(' ')?;
    Some(Position { seq: seq.parse().ok()?, token: token.parse().ok()? })
}

fn read_change(entry: &[String]) -> Result<Change, StoreError> {
    let [seq, token, at, actor, action, before, after] = entry else {
        return Err(codec::corrupt(&format!("a log entry has {} fields", entry.len())));
    };
    Ok(Change {
        seq: codec::need("log.seq", seq, |text| text.parse().ok())?,
        token: codec::need("log.token", token, |text| text.parse().ok())?,
        at: Timestamp::from_micros(codec::need("log.at", at, |text| text.parse().ok())?),
        actor: actor.clone(),
        action: codec::need("log.action", action, Action::parse)?,
        before: if before.is_empty() { None } else { Some(codec::decode(before)?) },
        after: codec::decode(after)?,
    })
}
