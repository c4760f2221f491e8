//! Tells the store how far this gateway's journals are and what each key was last used for: folds lines of the journal into
//! accounts and hands those over every few seconds.
//!
//! At least once: an account is forgotten only when the store has taken it, and where to begin is what the store says.

use crate::clock::{Clock, Instant, Timestamp};
use crate::key::KeyId;
use crate::reason::Reason;
use crate::store::{Account, JournalAccount, KeyStore, Seal, StoreError, Use};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// Folds journals into accounts.
pub struct Reporter {
    store: Arc<dyn KeyStore>,
    clock: Clock,
    is_written: Box<dyn Fn(&str) -> bool + Send>,
    /// What the store knew of all journals; none until it was asked.
    known: Option<BTreeMap<String, JournalAccount>>,
    /// Of the journals of which lines were taken.
    accounts: BTreeMap<String, Account>,
    /// There is something the store was not told yet.
    is_changed: bool,
    told_at: Instant,
}

/// How often the store is told.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// So many keys are told at once sooner than that.
const KEYS_MAX: usize = 10_000;
/// How far what is recorded may be behind what happens, while the journal takes records: from a call's end until its record
/// can be read back.
const RECORDED_WITHIN: Duration = Duration::from_secs(5);
/// A record that is so much younger than all that was reported, and has a number that was reported, is another journal's.
const REPEATED_WITHIN: Duration = Duration::from_secs(60);

/// Why nobody is named in the record of a refused call that may have presented a good key: nobody could tell.
const UNNAMED: [Reason; 3] = [Reason::StoreUnavailable, Reason::Overloaded, Reason::Internal];
/// What stands in a sink's line for records that the journal lacks; the next record's number shows that too.
const SINK_GAPS: [&str; 2] = ["not_in_journal", "too_large"];

/// What is needed of a line.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    journal: Cow<'a, str>,
    seq: u64,
    #[serde(borrow)]
    ts: Cow<'a, str>,
    #[serde(borrow)]
    key_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    client_ip: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    route: Option<Cow<'a, str>>,
    #[serde(borrow)]
    decision: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    duration_us: Option<u64>,
    #[serde(borrow)]
    hash: Option<Cow<'a, str>>,
    #[serde(borrow)]
    counts: Option<BTreeMap<Cow<'a, str>, u64>>,
}

// === impl Reporter ===

impl Reporter {
    /// `is_written` says of a journal whether a process writes it now and it takes records: of one that takes none nobody can say
    /// that nothing has happened.
    pub fn new(store: Arc<dyn KeyStore>, clock: Clock, is_written: Box<dyn Fn(&str) -> bool + Send>) -> Self {
        let told_at = clock.moment().mono;
        Self { store, clock, is_written, known: None, accounts: BTreeMap::new(), is_changed: false, told_at }
    }

    /// The last record that the store knows of each journal, whoever reported it.
    ///
    /// # Errors
    /// The store's.
    pub fn positions(&mut self) -> Result<BTreeMap<String, u64>, StoreError> {
        let journals = self.store.accounts()?.journals;
        let known = self.known.insert(journals.into_iter().map(|journal| (journal.journal.clone(), journal)).collect());
        Ok(known.iter().map(|(name, journal)| (name.clone(), journal.seq)).collect())
    }

    /// Takes a line of a journal, without its newline; it may have been taken before.
    ///
    /// # Errors
    /// The store's, when it was not asked yet what it knows.
    pub fn fold(&mut self, text: &str) -> Result<(), StoreError> {
        if self.known.is_none() {
            self.positions()?;
        }
        // A whole line that this version cannot read stays unreported, and the next one's number shows that.
        let Ok(line) = serde_json::from_str::<Line<'_>>(text) else { return Ok(()) };
        let Some(ended_at) = line.ended_at() else { return Ok(()) };
        if !self.accounts.contains_key(&*line.journal) {
            let known = self.known.as_ref().and_then(|known| known.get(&*line.journal)).cloned();
            let journal = known.unwrap_or_else(|| JournalAccount::new(line.journal.to_string(), ended_at));
            self.accounts.insert(line.journal.to_string(), Account::new(journal));
        }
        if let Some(account) = self.accounts.get_mut(&*line.journal) {
            line.add_to(account, ended_at);
            self.is_changed = true;
        }
        Ok(())
    }

    /// Everything that could be read back of the journals at `read_at` has been taken.
    pub fn caught_up(&mut self, read_at: Timestamp) {
        let through = read_at.minus(RECORDED_WITHIN);
        let journals = self.accounts.values_mut().map(|account| &mut account.journal);
        for journal in journals.filter(|journal| journal.through < through && (self.is_written)(&journal.journal)) {
            journal.through = through;
            self.is_changed = true;
        }
    }

    /// Whether the store should be told now.
    pub fn is_due(&self) -> bool {
        let waited = self.clock.moment().mono.saturating_duration_since(self.told_at);
        let keys: usize = self.accounts.values().map(|account| account.uses.len()).sum();
        self.is_changed && (waited >= TELL_EVERY || keys >= KEYS_MAX)
    }

    /// Tells the store what it does not know yet.
    ///
    /// # Errors
    /// The store's; what it has not taken is told again the next time.
    pub fn hand_over(&mut self) -> Result<(), StoreError> {
        self.told_at = self.clock.moment().mono;
        for account in self.accounts.values_mut() {
            self.store.account(account)?;
            account.uses.clear();
        }
        self.is_changed = false;
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

// === impl Line ===

impl Line<'_> {
    /// When what it tells of was over.
    fn ended_at(&self) -> Option<Timestamp> {
        let duration = Duration::from_micros(self.duration_us.unwrap_or(0));
        Timestamp::parse(&self.ts).map(|at| at.plus(duration))
    }

    fn add_to(&self, account: &mut Account, ended_at: Timestamp) {
        if let Some((key, call)) = self.call(ended_at) {
            account.add(key, &call);
        }
        let journal = &mut account.journal;
        if self.is_sinks() {
            return;
        }
        let is_new = self.seq > journal.seq;
        let is_another = !is_new && ended_at > journal.through.max(journal.whole_since).plus(REPEATED_WITHIN);
        let is_missing = is_new && self.seq != journal.seq + 1;
        if is_missing || is_another || self.is_hole() {
            journal.whole_since = journal.whole_since.max(ended_at);
        }
        journal.since = journal.since.min(ended_at);
        journal.seq = journal.seq.max(self.seq);
        if let Some(hash) = self.hash.as_ref().filter(|_| self.kind == "seal") {
            journal.seal = journal.seal.take().max(Some(Seal { seq: self.seq, hash: hash.to_string() }));
        }
    }

    /// The call with a key that it tells of.
    fn call(&self, ended_at: Timestamp) -> Option<(KeyId, Use)> {
        let key = self.key_id.as_deref().filter(|_| self.kind == "request").and_then(KeyId::parse)?;
        let call = Use {
            at: Timestamp::parse(&self.ts)?,
            ended_at,
            gateway: self.journal.split('/').next().unwrap_or_default().to_owned(),
            journal: self.journal.to_string(),
            seq: self.seq,
            client_ip: self.client_ip.as_deref().and_then(|ip| ip.parse().ok()),
            method: self.method.as_deref().unwrap_or_default().to_owned(),
            route: self.route.as_deref().map(str::to_owned),
            allowed: !self.is_denied(),
            reason: self.reason.as_deref().map(str::to_owned),
        };
        Some((key, call.bounded()))
    }

    fn is_denied(&self) -> bool {
        self.decision.as_deref() == Some("deny")
    }

    /// Whether calls may have been made before it of which no record names the key.
    fn is_hole(&self) -> bool {
        let is_unnamed = |reason: &str| UNNAMED.iter().any(|unnamed| unnamed.as_str() == reason);
        match &*self.kind {
            "request" => self.key_id.is_none() && self.is_denied() && self.reason.as_deref().is_some_and(is_unnamed),
            "summary" => {
                let mut reasons = self.counts.iter().flat_map(BTreeMap::keys);
                reasons.any(|reason| is_unnamed(reason))
            }
            "change" | "connection" | "start" | "seal" => false,
            // A gap, or what only a newer version can read.
            _ => true,
        }
    }

    fn is_sinks(&self) -> bool {
        self.kind == "gap" && self.reason.as_deref().is_some_and(|reason| SINK_GAPS.contains(&reason))
    }
}

impl std::fmt::Debug for Reporter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reporter").field("accounts", &self.accounts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::segment::{self, Kind};
    use crate::clock::Hand;
    use crate::store::memory::MemoryStore;
    use crate::store::{KeyFilter, LastUses};
    use crate::ulid::Ulid;
    use std::sync::atomic::{AtomicBool, Ordering};

    const KEY: KeyId = KeyId::new(Ulid::from_bits(7));

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn line(kind: Kind, seq: u64, second: i64, body: &str) -> String {
        let mut line = Vec::new();
        let body = format!("\"ts\":\"{}\",{body}", at(second));
        segment::write_line(&mut line, kind, "edge-1/0", seq, "cfg", body.as_bytes());
        String::from_utf8(line).unwrap().trim_end().to_owned()
    }

    /// A call with the key, of one second.
    fn call(seq: u64, second: i64, decision: &str) -> String {
        let body = format!(
            r#""client_ip":"192.0.2.1","method":"GET","route":"/v1/x","key_id":"{KEY}","decision":"{decision}","reason":null,"duration_us":1000000,"#
        );
        line(Kind::Request, seq, second, &body)
    }

    fn refused(seq: u64, second: i64, reason: &str) -> String {
        let body = format!(r#""key_id":null,"decision":"deny","reason":"{reason}","duration_us":5,"#);
        line(Kind::Request, seq, second, &body)
    }

    fn reporter(store: &Arc<MemoryStore>) -> (Reporter, Arc<Hand>) {
        let (clock, hand) = Clock::manual(at(1000));
        (Reporter::new(Arc::clone(store) as Arc<dyn KeyStore>, clock, Box::new(|_| true)), hand)
    }

    fn told(store: &MemoryStore) -> (JournalAccount, LastUses) {
        let journal = store.accounts().unwrap().journals.remove(0);
        (journal, store.last_uses(&[KEY]).unwrap().remove(0))
    }

    /// The whole account of these lines.
    fn account_of(lines: &[String]) -> (JournalAccount, LastUses) {
        let store = Arc::new(MemoryStore::default());
        let (mut reporter, _) = reporter(&store);
        lines.iter().for_each(|line| reporter.fold(line).unwrap());
        reporter.hand_over().unwrap();
        told(&store)
    }

    #[test]
    fn calls_seals_and_the_way_a_journal_has_come_are_told() {
        let seal = line(Kind::Change, 4, 13, r#""hash":"c0ffee","#).replace("change", "seal");
        let lines = [line(Kind::Start, 1, 10, ""), call(2, 11, "allow"), call(3, 12, "deny"), seal];
        let (journal, uses) = account_of(&lines);
        assert_eq!((journal.seq, journal.since, journal.whole_since), (4, at(10), at(0)));
        assert_eq!(journal.seal, Some(Seal { seq: 4, hash: "c0ffee".into() }));
        let (any, allowed) = (uses.any.unwrap(), uses.allowed.unwrap());
        assert_eq!((any.seq, any.at, any.ended_at, any.allowed), (3, at(12), at(13), false));
        assert_eq!((allowed.seq, allowed.gateway.as_str(), allowed.allowed), (2, "edge-1", true));
        assert_eq!(allowed.client_ip, "192.0.2.1".parse().ok());
    }

    #[test]
    fn what_may_hide_a_call_is_a_hole_up_to_its_end() {
        let whole_since = |lines: &[String]| account_of(lines).0.whole_since;
        let start = line(Kind::Start, 1, 10, "");
        assert_eq!(whole_since(&[start.clone(), call(2, 11, "allow")]), at(0));
        // Older segments were removed before anything was told of them; numbers are missing; records were given up.
        assert_eq!(whole_since(&[call(5, 11, "allow")]), at(12));
        assert_eq!(whole_since(&[start.clone(), call(3, 20, "allow")]), at(21));
        assert_eq!(whole_since(&[start.clone(), line(Kind::Gap, 2, 30, r#""requests_refused":3,"#)]), at(30));
        // A good key may have been presented, and nobody could tell which.
        let stranger = refused(2, 40, "key_unknown");
        assert_eq!(whole_since(&[start.clone(), stranger]), at(0));
        assert!(whole_since(&[start.clone(), refused(2, 40, "key_store_unavailable")]) > at(40));
        let counts = |reason: &str| line(Kind::Summary, 2, 50, &format!(r#""counts":{{"{reason}":9}},"#));
        assert_eq!(whole_since(&[start.clone(), counts("key_unknown")]), at(0));
        assert_eq!(whole_since(&[start.clone(), counts("overloaded")]), at(50));
        assert_eq!(whole_since(&[start, line(Kind::Change, 2, 60, "").replace("change", "novelty")]), at(60));
    }

    #[test]
    fn a_sinks_word_for_missing_records_is_as_good_as_their_absence() {
        let start = line(Kind::Start, 1, 10, "");
        let word = line(Kind::Gap, 5, 999, r#""sink":"accounts","reason":"not_in_journal","first":2,"last":5,"#);
        assert_eq!(account_of(&[start, word, call(6, 20, "allow")]).0.whole_since, at(21));
    }

    #[test]
    fn lines_may_come_again_and_another_journal_under_the_same_numbers_is_a_hole() {
        let store = Arc::new(MemoryStore::default());
        let (mut first, _) = reporter(&store);
        let lines = [line(Kind::Start, 1, 10, ""), call(2, 900, "allow"), call(3, 901, "allow")];
        lines.iter().for_each(|line| first.fold(line).unwrap());
        first.caught_up(at(1000));
        first.hand_over().unwrap();
        let before = told(&store);
        let (mut second, _) = reporter(&store);
        assert_eq!(second.positions().unwrap(), BTreeMap::from([("edge-1/0".to_owned(), 3)]));
        lines.iter().for_each(|line| second.fold(line).unwrap());
        second.hand_over().unwrap();
        assert_eq!(told(&store), before);
        // Somebody has removed the directory.
        second.fold(&line(Kind::Start, 1, 2000, "")).unwrap();
        second.hand_over().unwrap();
        assert_eq!(told(&store).0.whole_since, at(2000));
    }

    #[test]
    fn an_idle_journal_is_reported_up_to_now_while_it_is_written() {
        let store = Arc::new(MemoryStore::default());
        let (clock, hand) = Clock::manual(at(1000));
        let written = Arc::new(AtomicBool::new(true));
        let is_written = Arc::clone(&written);
        let is_written = Box::new(move |_: &str| is_written.load(Ordering::Relaxed));
        let mut reporter = Reporter::new(Arc::clone(&store) as Arc<dyn KeyStore>, clock, is_written);
        reporter.fold(&line(Kind::Start, 1, 1000, "")).unwrap();
        reporter.caught_up(at(1000));
        assert!(!reporter.is_due());
        hand.pass(TELL_EVERY);
        assert!(reporter.is_due());
        reporter.hand_over().unwrap();
        assert_eq!(told(&store).0.through, at(995));
        hand.pass(TELL_EVERY);
        assert!(!reporter.is_due());
        written.store(false, Ordering::Relaxed);
        reporter.caught_up(at(2000));
        assert!(!reporter.is_due());
        written.store(true, Ordering::Relaxed);
        reporter.caught_up(at(2000));
        assert!(reporter.is_due());
        reporter.hand_over().unwrap();
        assert_eq!(told(&store).0.through, at(1995));
    }

    #[test]
    fn a_journal_is_closed_when_all_of_it_is_reported_and_open_again_with_its_next_record() {
        let store = Arc::new(MemoryStore::default());
        let (mut reporter, _) = reporter(&store);
        reporter.fold(&line(Kind::Start, 1, 10, "")).unwrap();
        reporter.hand_over().unwrap();
        close(store.as_ref(), "edge-1/0", 2, at(20)).unwrap();
        let is_closed = || told(&store).0.is_closed();
        assert!(!is_closed());
        for (text, closed) in [(call(2, 11, "allow"), true), (line(Kind::Start, 3, 30, ""), false)] {
            reporter.fold(&text).unwrap();
            reporter.hand_over().unwrap();
            assert_eq!(is_closed(), closed);
        }
        assert_eq!(store.keys(&KeyFilter::default(), None, 9).unwrap(), []);
    }
}
