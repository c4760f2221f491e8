//! The whole set on its way into the cache: read on a thread of its own while the follower applies it, since the two cost
//! about the same.
//!
//! A store may forget while it is read. Hence a page counts only once the log has led to the head that the page was read at: what
//! it holds, and what it lacks because it was changed meanwhile, is then of the history that is followed.

use super::applier::{Applier, Origin};
use super::lineage::Lineage;
use super::snapshot::Draft;
use crate::clock::Clock;
use crate::store::{Changes, Page, Position, Record, StoreError};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, Receiver, SyncSender, sync_channel};
use std::sync::PoisonError;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

/// Records read at a time.
const PAGE: usize = 1024;
/// Pages that may wait to be applied.
const PAGES_AHEAD: usize = 4;
/// How long the follower goes on with a load before it looks at the log again.
const SLICE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 20 });

/// Why the whole set is read: the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// There is no snapshot to start from.
    Start,
    /// The cache has lost a key.
    Eviction,
    /// Changes could not be kept on disk, or not be merged into the snapshot: another one is due.
    Snapshot,
}

/// The set on its way from the store.
pub struct Load {
    pages: Receiver<Page>,
    /// The log has not led to its head yet.
    early: Option<Page>,
    reader: JoinHandle<Result<Option<Draft>, StoreError>>,
    /// Where the log stood before the first page was read: from there, the log tells what the pages may lack.
    pub since: Position,
    pub reason: Reload,
}

/// Gathers records into pages.
pub struct Batches {
    sender: SyncSender<Vec<Record>>,
    batch: Vec<Record>,
}

/// Has `read` produce records on a thread of its own while `apply` takes them here.
pub fn pipe<T: Send>(read: impl FnOnce(&mut Batches) -> T + Send, apply: impl FnMut(Vec<Record>)) -> T {
    let (sender, pages) = sync_channel(PAGES_AHEAD);
    thread::scope(|scope| {
        let reading = scope.spawn(|| read(&mut Batches { sender, batch: Vec::new() }));
        // Owned here: if applying panics, who reads is not left waiting.
        let pages = pages;
        pages.iter().for_each(apply);
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

// === impl Reload ===

impl Reload {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Eviction => "eviction",
            Self::Snapshot => "snapshot",
        }
    }
}

// === impl Load ===

impl Load {
    /// Begins to read through `changes`, and to write down in `draft` what was read.
    ///
    /// # Errors
    /// When the machine gives no thread.
    pub fn begin(
        changes: Box<dyn Changes>,
        draft: Option<Draft>,
        since: Position,
        reason: Reload,
    ) -> Result<Self, StoreError> {
        let (sender, pages) = sync_channel(PAGES_AHEAD);
        let reader = thread::Builder::new().name("load".into()).spawn(move || read_pages(changes, draft, &sender));
        let reader = reader.map_err(|error| StoreError::Unavailable(format!("no thread to load the keys: {error}")))?;
        Ok(Self { pages, early: None, reader, since, reason })
    }

    /// Applies pages for a while, as far as `lineage` leads, which ends with the log if `is_caught_up`; whether all have been.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], when a page is of another history: the whole set is to be read again.
    pub fn go_on(
        &mut self,
        applier: &Mutex<Applier>,
        lineage: &Lineage,
        is_caught_up: bool,
        clock: &Clock,
    ) -> Result<bool, StoreError> {
        let begun = clock.moment().mono;
        // The end of the log was asked for after this page was read.
        if is_caught_up && self.early.as_ref().is_some_and(|page| page.head.seq > lineage.last().seq) {
            return Err(lost());
        }
        while clock.moment().mono.saturating_duration_since(begun) < SLICE {
            let page = match self.early.take().map_or_else(|| self.pages.recv_timeout(SLICE), Ok) {
                Ok(page) => page,
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
            };
            if page.head.seq > lineage.last().seq {
                self.early = Some(page);
                return Ok(false);
            }
            let is_followed = page.head == self.since || page.head.seq > self.since.seq && lineage.holds(page.head);
            if !is_followed {
                return Err(lost());
            }
            apply(applier, &page.records);
        }
        Ok(false)
    }

    /// What was written down, once every page has been applied.
    ///
    /// # Errors
    /// The store's, which ended the reading before its time.
    pub fn end(self) -> Result<Option<Draft>, StoreError> {
        self.reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Applies a page of a load.
pub fn apply(applier: &Mutex<Applier>, page: &[Record]) {
    let mut applier = applier.lock().unwrap_or_else(PoisonError::into_inner);
    page.iter().for_each(|record| applier.apply(record, Origin::Page));
}

// === impl Batches ===

impl Batches {
    pub fn push(&mut self, record: Record) {
        self.batch.push(record);
        if self.batch.len() >= PAGE {
            self.send();
        }
    }

    fn send(&mut self) {
        // Whoever receives outlives whoever sends.
        _ = self.sender.send(std::mem::take(&mut self.batch));
    }
}

impl Drop for Batches {
    fn drop(&mut self) {
        self.send();
    }
}

/// Sends every page, in the order of versions, until there is none or nobody takes it, and writes it down as well.
fn read_pages(
    mut changes: Box<dyn Changes>,
    mut draft: Option<Draft>,
    pages: &SyncSender<Page>,
) -> Result<Option<Draft>, StoreError> {
    let mut after = 0;
    loop {
        let page = changes.page(after, PAGE)?;
        let last = page.records.last().map(Record::version);
        draft = draft.and_then(|draft| written(draft, &page.records));
        // The last one as well, which is empty: that nothing is left is true only at its head.
        if pages.send(page).is_err() {
            return Ok(None);
        }
        let Some(last) = last else { return Ok(draft) };
        after = last;
    }
}

fn lost() -> StoreError {
    StoreError::Unavailable("the key store has lost changes while all keys were read: they are read again".to_owned())
}

fn written(mut draft: Draft, page: &[Record]) -> Option<Draft> {
    let written = page.iter().try_for_each(|record| draft.add(record));
    written.inspect_err(|error| tracing::error!(%error, "no snapshot of the keys can be written")).ok().map(|()| draft)
}
