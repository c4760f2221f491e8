//! A gateway's row and what it sees of the others': what `store::redis` does, call by call, on simulated clocks; and the plainer
//! manners of rows that are locks.

use super::link::{Caller, Link};
use super::server::{Engine, Row};
use keygate::clock::Instant;
use keygate::store::{Member, StoreError};
use std::collections::HashMap;
use std::time::Duration;

// As the Redis engine has them.
const BEAT: Duration = Duration::from_millis(500);
const OBSERVE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(4);

pub struct Roster {
    link: Link,
    told: Option<(Member, Instant)>,
    beat: u64,
    observed: Option<Instant>,
    settled_at: Option<Instant>,
    connects: u64,
    others: HashMap<String, (u64, Instant)>,
}

// === impl Roster ===

impl Roster {
    pub fn new(link: Link) -> Self {
        Self { link, told: None, beat: 0, observed: None, settled_at: None, connects: 0, others: HashMap::new() }
    }

    fn now(&self) -> Instant {
        match self.link.caller {
            Caller::Gateway(process) => self.link.world.time.clock(process.machine).moment().mono,
            Caller::Manager | Caller::Nobody => unreachable!("only gateways have rows"),
        }
    }

    pub fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        match self.link.world.server.engine {
            Engine::Beats => self.tell_and_observe(member),
            Engine::Locks => self.link.put_row(self.row(member)).map(|_| ()),
        }
    }

    fn tell_and_observe(&mut self, member: &Member) -> Result<(), StoreError> {
        let now = self.now();
        if self.connects != self.link.connects() {
            (self.connects, self.observed) = (self.link.connects(), None);
        }
        let is_due = |told: &Instant| now.saturating_duration_since(*told) >= BEAT;
        if self.observed.is_some() && self.told.as_ref().is_some_and(|(told, at)| told == member && !is_due(at)) {
            return Ok(());
        }
        self.beat += 1;
        let added = self.link.put_row(self.row(member))?;
        if let (None, Some(gone)) = (&self.told, &member.replaces) {
            self.link.call("replace", |server| server.remove_row(gone))?;
        }
        if added && self.told.replace((member.clone(), now)).is_some() {
            return Err(StoreError::Unavailable("the row had been removed; joined again".to_owned()));
        }
        self.told = Some((member.clone(), now));
        self.observe(now)
    }

    fn row(&self, member: &Member) -> Row {
        Row { beat: self.beat, member: member.clone() }
    }

    fn observe(&mut self, now: Instant) -> Result<(), StoreError> {
        let has_settled = self.settled_at.is_some_and(|at| self.observed < Some(at) && at <= now);
        if !has_settled && self.observed.is_some_and(|last| now.saturating_duration_since(last) < OBSERVE) {
            return Ok(());
        }
        self.observed = Some(now);
        let time = &self.link.world.time;
        let (rows, settles_in) = self.link.call("rows", |server| server.rows(time.now()))?;
        self.settled_at = Some(now + settles_in);
        self.others.retain(|instance, _| rows.iter().any(|row| row.member.instance == *instance));
        for row in rows {
            let seen = self.others.entry(row.member.instance.clone()).or_insert((row.beat, now));
            if seen.0 != row.beat {
                *seen = (row.beat, now);
            }
            if now.saturating_duration_since(seen.1) > BEAT + row.member.may_serve_for() {
                self.link.call("remove", |server| server.remove_unchanged(&row))?;
            }
        }
        Ok(())
    }

    pub fn settles_in(&self) -> Duration {
        match self.link.world.server.engine {
            Engine::Beats => self.settled_at.map_or(SETTLE, |at| at.saturating_duration_since(self.now())),
            Engine::Locks => Duration::ZERO,
        }
    }

    pub fn leave(&self) {
        let Some((member, _)) = &self.told else { return };
        _ = self.link.call("leave", |server| server.remove_row(&member.instance));
    }
}
