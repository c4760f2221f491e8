//! A gateway's row and what it sees of the others': what `store::redis` does, call by call, on simulated clocks; and the plainer
//! manners of rows that are locks.

use super::link::{Caller, Link};
use super::server::{Engine, Row, Server};
use keygate::clock::Instant;
use keygate::store::{Member, StoreError};
use std::collections::HashMap;
use std::time::Duration;

// As the Redis engine has them.
const BEAT: Duration = Duration::from_millis(500);
const OBSERVE: Duration = Duration::from_secs(5);
const SETTLE: Duration = Duration::from_secs(4);
const LOOK_SOON: Duration = Duration::from_millis(1);

pub struct Roster {
    link: Link,
    told: Option<(Member, Instant)>,
    beat: u64,
    observed: Option<Instant>,
    settled_at: Option<Instant>,
    /// The fork that was noted last, as of the last look.
    fork: u64,
    connects: u64,
    others: HashMap<String, (u64, Instant)>,
}

// === impl Roster ===

impl Roster {
    pub fn new(link: Link) -> Self {
        Self {
            link,
            told: None,
            beat: 0,
            observed: None,
            settled_at: None,
            fork: 0,
            connects: 0,
            others: HashMap::new(),
        }
    }

    fn now(&self) -> Instant {
        match self.link.caller {
            Caller::Gateway(process) => self.link.world.time.clock(process.machine).moment().mono,
            Caller::Manager | Caller::Nobody => unreachable!("only gateways have rows"),
        }
    }

    pub fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        match self.link.world.engine {
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
        let is_to_look = self.is_to_look(now);
        if !is_to_look && self.told.as_ref().is_some_and(|(told, at)| told == member && !is_due(at)) {
            return Ok(());
        }
        self.beat += 1;
        let (added, fork) = self.link.put_row(self.row(member))?;
        if fork != self.fork {
            self.observed = None;
        }
        if let (None, Some(gone)) = (&self.told, &member.replaces) {
            self.link.call("replace", |server| server.remove_row(gone))?;
        }
        if added && self.told.replace((member.clone(), now)).is_some() {
            return Err(StoreError::Unavailable("the row had been removed; joined again".to_owned()));
        }
        self.told = Some((member.clone(), now));
        if self.is_to_look(now) { self.observe(now) } else { Ok(()) }
    }

    fn is_to_look(&self, now: Instant) -> bool {
        let Some(observed) = self.observed else { return true };
        let has_settled = self.settled_at.is_some_and(|at| observed < at && at <= now);
        has_settled || now.saturating_duration_since(observed) >= OBSERVE
    }

    fn row(&self, member: &Member) -> Row {
        Row { beat: self.beat, member: member.clone() }
    }

    fn observe(&mut self, now: Instant) -> Result<(), StoreError> {
        self.observed = None;
        let time = &self.link.world.time;
        let looked = |server: &Server| (server.rows(time.now()), server.fork());
        let ((rows, settles_in), fork) = self.link.call("rows", looked)?;
        (self.observed, self.settled_at, self.fork) = (Some(now), Some(now + settles_in), fork);
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
        let world = &self.link.world;
        match (world.engine, self.settled_at, self.observed) {
            (Engine::Beats, Some(at), Some(observed)) if at <= observed => Duration::ZERO,
            (Engine::Beats, Some(at), Some(_)) => at.saturating_duration_since(self.now()).max(LOOK_SOON),
            (Engine::Beats, ..) => SETTLE,
            // Looked at with every row that is told.
            (Engine::Locks, ..) => world.server(self.link.caller).rows(world.time.now()).1,
        }
    }

    pub fn leave(&self) {
        let Some((member, _)) = &self.told else { return };
        _ = self.link.call("leave", |server| server.remove_row(&member.instance));
    }
}
