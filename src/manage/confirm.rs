//! Waiting until every gateway has acted on a change (protocols I11, I12).

use super::Manage;
use crate::clock::{Timestamp, monotonic};
use crate::store::{FleetId, Member, Position, Record, StoreError};
use std::time::Duration;

/// Who has confirmed a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// The gateways that have applied it and cut what was in flight.
    pub confirmed: usize,
    /// Those that have not, in the order of their ids.
    pub silent: Vec<Silent>,
    /// The store started again, was put back or lost changes not long ago: gateways may be missing.
    pub is_settling: bool,
    /// From the first question to the last answer.
    pub took: Duration,
}

/// A gateway that has not confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silent {
    pub gateway: String,
    pub instance: String,
    /// Until when it may at most honour what was before.
    pub until: Timestamp,
    /// The fleet whose keys it knows, if it is held: it takes nothing from this store.
    pub held: Option<FleetId>,
}

/// How a fleet stands to a change, as of one moment.
#[derive(Clone, Debug)]
pub struct Standing {
    pub confirmed: usize,
    pub behind: Vec<Member>,
    pub is_settling: bool,
}

/// How often the gateways are looked at: at first, and when one takes longer than that.
const LOOK: Duration = Duration::from_millis(1);
const LOOK_LATER: Duration = Duration::from_millis(10);
const LATER: Duration = Duration::from_millis(100);

// === impl Confirmation ===

impl Confirmation {
    /// All gateways that were registered.
    pub fn members(&self) -> usize {
        self.confirmed + self.silent.len()
    }

    /// Nobody is left who could act otherwise.
    pub fn is_complete(&self) -> bool {
        self.silent.is_empty() && !self.is_settling
    }
}

// === impl Standing ===

impl Standing {
    /// Nobody is left to wait for.
    pub const fn is_done(&self) -> bool {
        self.behind.is_empty() && !self.is_settling
    }
}

// === impl Manage ===

impl Manage<'_> {
    /// Waits until every registered gateway has confirmed `written`, which has just been written, for `timeout` at most. The
    /// rows are read after that: a gateway that is not among them yet loads the change when it joins.
    ///
    /// # Errors
    /// The store's, when it cannot say who follows it, or has lost the change: it may be repeated.
    pub fn confirm(&self, written: &Record, timeout: Duration) -> Result<Confirmation, StoreError> {
        let (begun, at) = (monotonic(), self.clock.now());
        loop {
            let looked = self.look(written.version());
            let took = monotonic().saturating_duration_since(begun);
            if took >= timeout || looked.as_ref().is_ok_and(Standing::is_done) {
                let concluded = self.conclude(written, looked?, at, took)?;
                if concluded.is_complete() || took >= timeout {
                    return Ok(concluded);
                }
            }
            std::thread::sleep(if took < LATER { LOOK } else { LOOK_LATER });
        }
    }

    /// What is said of `written`, of which `standing` was seen after it had been written at `at` or before.
    ///
    /// # Errors
    /// The store's, also when it has lost the change.
    pub fn conclude(
        &self,
        written: &Record,
        standing: Standing,
        at: Timestamp,
        took: Duration,
    ) -> Result<Confirmation, StoreError> {
        let version = self.check_kept(written)?;
        // Under another number it may not be with those who have the one that it had.
        let standing = if version > written.version() { self.look(version)? } else { standing };
        let Standing { confirmed, behind, is_settling } = standing;
        let silent = behind.into_iter().map(|member| Silent::new(member, at)).collect();
        Ok(Confirmation { confirmed, silent, is_settling, took })
    }

    /// A store that was restored or failed over may have given the change's number to another, and the change another number. The
    /// number under which it stands.
    fn check_kept(&self, written: &Record) -> Result<u64, StoreError> {
        let kept = match written {
            Record::Key(key) => self.store.key(key.id)?.map(Record::Key),
            Record::Entity(entity) => self.store.entity(entity.id)?.map(Record::Entity),
        };
        let kept = kept.filter(|kept| {
            kept == written || kept.version() > written.version() && (kept.is_ended() || !written.is_ended())
        });
        let lost = || StoreError::Unavailable("the store has lost the change; repeat the command".to_owned());
        kept.map(|kept| kept.version()).ok_or_else(lost)
    }

    /// How many gateways have applied `seq`, and those that have not. A position that the store's log does not hold belongs to
    /// another history and confirms nothing.
    ///
    /// # Errors
    /// The store's.
    pub fn look(&self, seq: u64) -> Result<Standing, StoreError> {
        let (mut confirmed, mut behind) = (0, Vec::new());
        let fleet = self.store.fleet()?;
        for member in fleet.members {
            let position = Position { seq: member.pos, token: member.token };
            if member.pos >= seq && self.store.holds(position)? {
                confirmed += 1;
            } else {
                behind.push(member);
            }
        }
        Ok(Standing { confirmed, behind, is_settling: !fleet.settles_in.is_zero() })
    }
}

// === impl Silent ===

impl Silent {
    fn new(member: Member, at: Timestamp) -> Self {
        let until = at.plus(member.may_serve_for());
        let held = member.held.map(|held| held.fleet);
        Self { gateway: member.gateway, instance: member.instance, until, held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::key::{Prefix, Vocabulary};
    use crate::manage::{NewEntity, Settings};
    use crate::store::KeyStore;
    use crate::store::memory::MemoryStore;
    use std::collections::BTreeMap;

    #[test]
    fn i11_i12_another_history_confirms_nothing_and_may_act_as_before_for_max_stale() {
        let (store, clock) = (MemoryStore::default(), Clock::system());
        let settings = Settings {
            prefix: Prefix::new("ark").unwrap(),
            vocabulary: Vocabulary::new([]).unwrap(),
            presets: BTreeMap::new(),
            tiers: Vec::new(),
            api_version: None,
        };
        let manage = Manage::new(&store, &settings, &clock, "test".into());
        manage.create_entity(NewEntity { code: "acme".into(), ..NewEntity::default() }).unwrap();
        let mut gateway = store.changes().unwrap();
        let Position { seq: pos, token } = gateway.head().unwrap();
        let member = Member { gateway: "edge-1".into(), max_stale_ms: 60_000, pos, token, ..Member::default() };
        gateway.tell(&Member { token: token ^ 1, ..member.clone() }).unwrap();
        let standing = manage.look(pos).unwrap();
        assert!(standing.confirmed == 0 && standing.behind.len() == 1);
        let written = Record::Entity(store.entity_by_code("acme").unwrap().unwrap());
        let conclude = |standing: Standing| manage.conclude(&written, standing, Timestamp::from_micros(0), LATER);
        let until = conclude(standing).unwrap().silent.pop().unwrap().until;
        // And what two clocks may differ by.
        assert_eq!(until, Timestamp::from_micros(60_310_000));
        gateway.tell(&member).unwrap();
        let standing = manage.look(pos).unwrap();
        assert!(standing.confirmed == 1 && standing.is_done());
        assert!(conclude(standing.clone()).unwrap().is_complete());
        store.put_back(&MemoryStore::default());
        assert!(conclude(standing).unwrap_err().to_string().contains("the store has lost the change"));
    }
}
