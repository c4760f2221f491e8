//! Tells the store how far this gateway's journals are and what each key was last used for: folds lines of the journal into
//! accounts and hands those over every few seconds.
//!
//! At least once: an account is forgotten only when the store has taken it, and where to begin is what the store says.

mod line;
#[cfg(test)]
mod tests;

use super::quiet;
use crate::audit::recent::{Group, Record};
use crate::audit::sinks::{self, Positions, Sink, SinkError};
use crate::clock::{Clock, Instant, Timestamp};
use crate::store::{Account, JournalAccount, KeyStore, StoreError, Use};
use line::{Latest, Told};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Folds journals into accounts.
pub struct Reporter {
    store: Arc<dyn KeyStore>,
    clock: Clock,
    /// Whose reporter it is.
    gateway: String,
    is_written: Box<dyn Fn(&str) -> bool + Send>,
    under_way: Box<dyn Fn() -> Vec<String> + Send>,
    /// Not told yet.
    ended: Vec<(String, u64)>,
    /// What the store knew of all journals; none until it was asked.
    known: Option<BTreeMap<String, JournalAccount>>,
    /// What has been taken since the store was told last.
    latest: Latest,
    /// Of the journals of which lines were taken.
    accounts: BTreeMap<String, Account>,
    /// The last record of each journal that the store has taken.
    told: BTreeMap<String, u64>,
    /// There is something the store was not told yet.
    is_changed: bool,
    told_at: Instant,
}

/// What a reporter is made of.
pub struct ReporterParts {
    pub store: Arc<dyn KeyStore>,
    pub clock: Clock,
    /// Whose reporter it is.
    pub gateway: String,
    /// Whether a process writes a journal now and it takes records: of one that takes none nobody can say that nothing has happened.
    pub is_written: Box<dyn Fn(&str) -> bool + Send>,
    /// Lines of the requests that are under way: a stream may be so for days before it leaves a record.
    pub under_way: Box<dyn Fn() -> Vec<String> + Send>,
    /// Journals of processes that are gone, with their last records.
    pub ended: Vec<(String, u64)>,
}

/// Why the store was not told.
#[derive(Debug, thiserror::Error)]
pub enum NotTold {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("the store has lost what keys were last used for; it is told again what the journals hold")]
    Lost,
}

/// What it is called among the sinks.
pub const NAME: &str = "accounts";
/// How often the store is told.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// So many last calls are told sooner than that.
const CALLS_MAX: usize = 10_000;
/// A request that is under way for so long is told before it leaves a record.
const UNDER_WAY_AFTER: Duration = Duration::from_secs(1);
/// How far what is recorded may be behind what happens, while the journal takes records: from a call's end until its record
/// can be read back.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);
/// Gives up a journal of which nothing more will ever be reported, because its machine is gone: what it recorded and did not
/// report stays unknown, and nobody waits for it any more. Whether there is one to give up.
///
/// # Errors
/// The store's.
pub fn abandon(store: &dyn KeyStore, journal: &str, now: Timestamp) -> Result<bool, StoreError> {
    let accounts = store.accounts()?.journals;
    let open = accounts.into_iter().find(|known| known.journal == journal && !known.is_closed());
    let Some(open) = open else { return Ok(false) };
    // Also of one that told its end and was never reported so far.
    let seq = open.seq.max(open.closed_seq).max(1);
    let given_up = JournalAccount { seq, closed_seq: seq, whole_since: now, ..open };
    store.account(&Account::new(given_up)).map(|()| true)
}

// === impl Reporter ===

impl Reporter {
    pub fn new(parts: ReporterParts) -> Self {
        let ReporterParts { store, clock, gateway, is_written, under_way, ended } = parts;
        let told_at = clock.moment().mono;
        Self {
            store,
            clock,
            gateway,
            is_written,
            under_way,
            ended,
            told_at,
            known: None,
            latest: Latest::default(),
            accounts: BTreeMap::new(),
            told: BTreeMap::new(),
            is_changed: false,
        }
    }

    /// The last record that the store knows of each journal, whoever reported it.
    ///
    /// # Errors
    /// The store's.
    pub fn positions(&mut self) -> Result<BTreeMap<String, u64>, StoreError> {
        let journals = self.store.accounts()?.journals;
        // Asked after that: what another fleet's store says of a journal is not where this one is to go on.
        self.store.check_fleet()?;
        let known = self.known.insert(journals.into_iter().map(|journal| (journal.journal.clone(), journal)).collect());
        Ok(known.iter().map(|(name, journal)| (name.clone(), journal.seq)).collect())
    }

    /// Takes lines of journals, without their newlines; they may have been taken before.
    ///
    /// # Errors
    /// The store's, when it was not asked yet what it knows.
    pub fn fold<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) -> Result<(), StoreError> {
        self.ask_once()?;
        for text in lines {
            // A whole line that this version cannot read stays unreported, and the next one's number shows that.
            Told::read(text).iter().for_each(|told| self.take(told));
        }
        Ok(())
    }

    /// The same for the records of a group.
    ///
    /// # Errors
    /// As of [`Self::fold`].
    pub fn fold_group(&mut self, group: &Group) -> Result<(), StoreError> {
        self.ask_once()?;
        let numbers = self.latest.numbers(group);
        let ended_at = |record: &Record| match record {
            Record::Call(call) => Some(call.ended_at),
            Record::Line(_) => None,
        };
        let since = group.records.iter().find_map(ended_at).unwrap_or_else(|| self.clock.now());
        let account = account_of(&mut self.accounts, self.known.as_ref(), &group.journal, since);
        for (seq, record) in group.after_record(0) {
            match record {
                Record::Call(call) => {
                    self.latest.add_call(seq, call, &numbers);
                    numbers.place(seq, call).add_to(&mut account.journal);
                }
                Record::Line(text) => Told::read(text).iter().for_each(|told| told.add_to(&mut account.journal)),
            }
        }
        self.is_changed = true;
        Ok(())
    }

    fn ask_once(&mut self) -> Result<(), StoreError> {
        if self.known.is_none() {
            self.positions()?;
        }
        Ok(())
    }

    fn take(&mut self, told: &Told<'_>) {
        self.latest.add(told);
        told.add_to(&mut self.account_of(&told.journal, told.place.ended_at).journal);
        self.is_changed = true;
    }

    /// Moves the latest calls into their accounts.
    fn settle(&mut self) {
        for (key, call) in self.latest.take() {
            self.account_of(&call.journal, call.ended_at).add(key, &call);
        }
    }

    fn account_of(&mut self, journal: &str, ended_at: Timestamp) -> &mut Account {
        account_of(&mut self.accounts, self.known.as_ref(), journal, ended_at)
    }

    /// Everything that could be read back of the journals at `read_at` has been taken.
    pub fn advance(&mut self, read_at: Timestamp) {
        let through = read_at.minus(RECORDED_WITHIN);
        let journals = self.accounts.values_mut().map(|account| &mut account.journal);
        for journal in journals.filter(|journal| journal.through < through && (self.is_written)(&journal.journal)) {
            journal.through = through;
            self.is_changed = true;
        }
        self.close_ended();
    }

    /// Takes the calls that are under way: each is in use now.
    fn take_under_way(&mut self, now: Timestamp) {
        for text in (self.under_way)() {
            // One that has just begun is in its record before long.
            let told = Told::read(&text).filter(|told| told.place.ended_at.plus(UNDER_WAY_AFTER) <= now);
            if let Some((key, call)) = told.and_then(|told| told.call()) {
                self.account_of(&call.journal, call.ended_at).add(key, &Use { ended_at: now, reason: None, ..call });
                self.is_changed = true;
            }
        }
    }

    /// Everything of the journals that have ended was taken.
    fn close_ended(&mut self) {
        for (name, last) in std::mem::take(&mut self.ended) {
            let known = self.known.as_ref().and_then(|known| known.get(&name));
            if let Some(known) = known.filter(|_| !self.accounts.contains_key(&name)) {
                self.accounts.insert(name.clone(), Account::new(known.clone()));
            }
            if let Some(account) = self.accounts.get_mut(&name) {
                account.journal.closed_seq = account.journal.closed_seq.max(last);
                self.is_changed = true;
            }
        }
    }

    /// Whether the store should be told now.
    pub fn is_due(&self) -> bool {
        let waited = self.clock.moment().mono.saturating_duration_since(self.told_at);
        self.is_changed && (waited >= TELL_EVERY || self.latest.len() >= CALLS_MAX)
    }

    /// Tells the store what it does not know yet.
    ///
    /// # Errors
    /// What it has not taken is told again the next time; what it has lost must be taken again, from [`Self::positions`] on.
    pub fn hand_over(&mut self) -> Result<(), NotTold> {
        self.told_at = self.clock.moment().mono;
        let known = self.positions()?;
        let is_lost = |(name, told): (&String, &u64)| known.get(name).is_none_or(|seq| seq < told);
        if self.told.iter().any(is_lost) {
            // Put back from a copy, or failed over: it has lost uses too, which nobody holds any more but the journals.
            (self.accounts, self.told, self.latest) = Default::default();
            return Err(NotTold::Lost);
        }
        self.settle();
        for (name, account) in &mut self.accounts {
            self.store.account(account)?;
            account.uses.clear();
            self.told.insert(name.clone(), account.journal.seq);
        }
        self.is_changed = false;
        Ok(())
    }

    /// Ends what is quiet. That it fails is no reason to hold the accounts back.
    fn end_quiet_keys(&self) {
        match quiet::step(self.store.as_ref(), &self.clock, &self.gateway) {
            Ok(ended) => ended.iter().for_each(|key| tracing::info!(%key, "a rotated key was quiet, and has ended")),
            Err(error) => tracing::warn!(%error, "rotated keys that are quiet cannot be ended now"),
        }
    }
}

/// The account of a journal, which goes on from what the store knew.
fn account_of<'a>(
    accounts: &'a mut BTreeMap<String, Account>,
    known: Option<&BTreeMap<String, JournalAccount>>,
    journal: &str,
    since: Timestamp,
) -> &'a mut Account {
    accounts.entry(journal.to_owned()).or_insert_with(|| {
        let known = known.and_then(|known| known.get(journal)).cloned();
        Account::new(known.unwrap_or_else(|| JournalAccount::new(journal.to_owned(), since)))
    })
}

/// As the store says it, in a sink's words.
fn again(error: StoreError) -> SinkError {
    SinkError::later(error.to_string())
}

impl From<NotTold> for SinkError {
    fn from(error: NotTold) -> Self {
        match error {
            NotTold::Store(error) => again(error),
            NotTold::Lost => Self::Behind { why: error.to_string() },
        }
    }
}

impl Sink for Reporter {
    fn name(&self) -> &str {
        NAME
    }

    fn position(&mut self) -> Result<Option<Positions>, SinkError> {
        self.positions().map(Some).map_err(again)
    }

    /// Takes them; the store has them once it was told, and where to go on after a restart is what it has.
    fn deliver(&mut self, batch: &[sinks::Line]) -> Result<(), SinkError> {
        self.fold(batch.iter().map(|line| &*line.text)).map_err(again)?;
        if self.is_due() { Ok(self.hand_over()?) } else { Ok(()) }
    }

    fn takes_groups(&self) -> bool {
        true
    }

    fn deliver_group(&mut self, group: &Group) -> Result<(), SinkError> {
        self.fold_group(group).map_err(again)?;
        if self.is_due() { Ok(self.hand_over()?) } else { Ok(()) }
    }

    fn caught_up(&mut self, read_at: Timestamp, is_last: bool) -> Result<(), SinkError> {
        self.take_under_way(read_at);
        self.advance(read_at);
        if !is_last && !self.is_due() {
            return Ok(());
        }
        self.hand_over()?;
        self.end_quiet_keys();
        Ok(())
    }
}

/// Tells the store that the process which wrote `journal` has ended in good order with the record `last_seq`: once everything up
/// to there is reported, nothing more is to be expected of it.
///
/// # Errors
/// The store's.
pub fn close(store: &dyn KeyStore, journal: &str, last_seq: u64, now: Timestamp) -> Result<(), StoreError> {
    let journal = JournalAccount { closed_seq: last_seq, ..JournalAccount::new(journal.to_owned(), now) };
    store.account(&Account::new(journal))
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}
