//! The follower's side: one call of `poll.lua` reads the head, checks the position and gives what is new.

use super::link::{self, Link};
use super::roster::Row;
use super::{Member, REPLY_BYTES, Record, StoreError, codec, schema};
use crate::clock::Timestamp;
use crate::store::{Action, Change, Changes, Feed, FleetId, Position};
use std::time::Duration;

const POLL: &str = include_str!("poll.lua");

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

    fn poll(&mut self, from: Position, _fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        let mut command = link::script(POLL, &["head", "log"]);
        command.arg(from.seq).arg(from.token).arg(limit).arg(REPLY_BYTES);
        let (kind, head, entries): (String, String, Vec<Vec<String>>) = self.link.call(&command)?;
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

    fn past(&mut self, _: usize) -> Result<Vec<Position>, StoreError> {
        Ok(Vec::new())
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

    fn page(&mut self, after: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.link.page("versions", "", ("score", &format!("({after}")), limit)
    }
}

/// Whether the log holds the entry at `position`.
pub fn holds(link: &mut Link, position: Position) -> Result<bool, StoreError> {
    let mut command = link::script(POLL, &["head", "log"]);
    command.arg(position.seq).arg(position.token).arg(1).arg(0);
    let (kind, _, _): (String, String, Vec<Vec<String>>) = link.call(&command)?;
    Ok(kind == "entries")
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
