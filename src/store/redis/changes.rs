//! The follower's side: one call of `poll.lua` reads the head, checks the position and gives what is new.

use super::link::{self, Link};
use super::{REPLY_BYTES, Record, StoreError, codec, schema};
use crate::clock::Timestamp;
use crate::store::{Action, Change, Changes, Feed, Position};

const POLL: &str = include_str!("poll.lua");

/// A reader with a connection of its own.
pub struct RedisChanges(Link);

// === impl RedisChanges ===

impl RedisChanges {
    pub const fn new(link: Link) -> Self {
        Self(link)
    }
}

impl Changes for RedisChanges {
    fn head(&mut self) -> Result<Position, StoreError> {
        let head: Option<String> = self.0.call(::redis::cmd("GET").arg(schema::name("head")))?;
        head.map_or_else(|| Ok(Position::default()), |head| codec::need("head", &head, read_position))
    }

    fn poll(&mut self, from: Position, limit: usize) -> Result<Feed, StoreError> {
        let mut command = link::script(POLL, &["head", "log"]);
        command.arg(from.seq).arg(from.token).arg(limit).arg(REPLY_BYTES);
        let (kind, head, entries): (String, String, Vec<Vec<String>>) = self.0.call(&command)?;
        let head = codec::need("head", &head, read_position)?;
        match kind.as_str() {
            "diverged" => Ok(Feed::Diverged { head }),
            "entries" => {
                let entries = entries.iter().map(|entry| read_change(entry)).collect::<Result<_, _>>()?;
                Ok(Feed::Entries { head, entries })
            }
            _ => Err(codec::corrupt(&format!("a poll was answered with '{kind}'"))),
        }
    }

    fn page(&mut self, after: u64, limit: usize) -> Result<Vec<Record>, StoreError> {
        self.0.page("versions", "", ("score", &format!("({after}")), limit)
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
