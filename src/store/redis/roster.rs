//! The rows of a Redis store's gateways: one field of a hash each. A row shows that it lives by its beat alone: the store's
//! clock decides nothing.

use super::link::{self, Link};
use super::{Fleet, Member, StoreError, codec, schema};
use crate::clock::{Instant, monotonic};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::time::Duration;

const FLEET: &str = include_str!("fleet.lua");
/// How long the rows of a server that has just started prove nothing: 2 L, in which every gateway that lives has told of itself
/// again (protocols, Settle).
const SETTLE: Duration = Duration::from_secs(4);
/// How often a row shows that its gateway lives.
const BEAT: Duration = Duration::from_millis(500);
/// How often the others' rows are looked at.
const OBSERVE: Duration = Duration::from_secs(5);
/// What two clocks may differ by, besides one part in a thousand: d of the protocols.
const CLOCK_SLACK: Duration = Duration::from_millis(250);

#[derive(Serialize, Deserialize)]
struct RowWire {
    /// Another number each time.
    beat: u64,
    #[serde(flatten)]
    member: Member,
}

/// A gateway's own row, and what it has seen of the others.
#[derive(Debug, Default)]
pub struct Row {
    told: Option<(Member, Instant)>,
    beat: u64,
    observed: Option<Instant>,
    /// Which connection of the link the row was last told over.
    connects: u64,
    /// By instance: its last beat, and since when it is unchanged.
    others: HashMap<String, (u64, Instant)>,
}

// === impl Row ===

impl Row {
    /// Tells what has changed, and in any case that this gateway lives.
    pub fn tell(&mut self, link: &mut Link, member: &Member) -> Result<(), StoreError> {
        let now = monotonic();
        if self.connects != link.connects() {
            // It may be another run of the server: that it was seen is written down at once.
            (self.connects, self.observed) = (link.connects(), None);
        }
        let is_due = |told: &Instant| now.saturating_duration_since(*told) >= BEAT;
        if self.observed.is_some() && self.told.as_ref().is_some_and(|(told, at)| told == member && !is_due(at)) {
            return Ok(());
        }
        self.beat += 1;
        let row = RowWire { beat: self.beat, member: member.clone() };
        let text = serde_json::to_string(&row).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let added: u64 = link.call(::redis::cmd("HSET").arg(schema::name("fleet")).arg(&member.instance).arg(text))?;
        if let (None, Some(gone)) = (&self.told, &member.replaces) {
            // Not before: until this row is there, that one speaks for what this gateway may serve from its disk.
            remove(link, gone)?;
        }
        if added > 0 && self.told.replace((member.clone(), now)).is_some() {
            // It may have missed to be waited for: this turn proves nothing, the next one does.
            return Err(StoreError::Unavailable("the row had been removed; joined again".to_owned()));
        }
        self.told = Some((member.clone(), now));
        self.observe(link, now)
    }

    /// Removes the rows of gateways that have been silent for so long that they cannot honour anything any more.
    fn observe(&mut self, link: &mut Link, now: Instant) -> Result<(), StoreError> {
        if self.observed.is_some_and(|last| now.saturating_duration_since(last) < OBSERVE) {
            return Ok(());
        }
        self.observed = Some(now);
        let (_, texts) = rows(link)?;
        self.others.retain(|instance, _| texts.contains_key(instance));
        for (instance, text) in texts {
            // One that cannot be read stays until it is forgotten: who waits is told of it.
            let Ok(row) = read(&instance, &text) else { continue };
            let seen = self.others.entry(instance.clone()).or_insert((row.beat, now));
            if seen.0 != row.beat {
                *seen = (row.beat, now);
            }
            let max_stale = Duration::from_millis(row.member.max_stale_ms);
            if now.saturating_duration_since(seen.1) > max_stale + max_stale / 1000 + CLOCK_SLACK {
                remove_unchanged(link, &instance, &text)?;
            }
        }
        Ok(())
    }

    /// The gateway leaves, if the store can be told.
    pub fn leave(&self, link: &mut Link) {
        if let Some((member, _)) = &self.told {
            _ = remove(link, &member.instance);
        }
    }
}

/// The rows of all gateways.
pub fn fleet(link: &mut Link) -> Result<Fleet, StoreError> {
    let (seen_for, texts) = rows(link)?;
    let rows = texts.into_iter().map(|(instance, text)| read(&instance, &text).map(|row| row.member));
    let mut members = rows.collect::<Result<Vec<_>, _>>()?;
    members.sort_by(|left, right| (&left.gateway, &left.instance).cmp(&(&right.gateway, &right.instance)));
    Ok(Fleet { members, settles_in: SETTLE.saturating_sub(seen_for) })
}

/// For how long the gateways have seen this run of the server, and their rows by instance.
fn rows(link: &mut Link) -> Result<(Duration, HashMap<String, String>), StoreError> {
    let (seen_for, texts): (i64, _) = link.call(&link::script(FLEET, &["run", "fleet"]))?;
    Ok((Duration::from_millis(u64::try_from(seen_for).unwrap_or(0)), texts))
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
