//! A reader of a store that behaves as a test has it.

use super::*;
use crate::store::memory::MemoryStore;
use crate::store::{FleetId, Page};
use std::sync::mpsc;

/// A reader of the log of a store that may settle, and may lose something at one of the polls.
pub(super) struct Watched {
    pub(super) inner: Box<dyn Changes>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) settles_in: Duration,
    /// Entries given at a time.
    pub(super) limit: usize,
    pub(super) polls: u32,
    /// What is put in the store's place just before the poll of that number.
    pub(super) lost: Option<(u32, MemoryStore)>,
    /// Nobody reads who is not in the fleet's list.
    pub(super) is_for_members: bool,
    pub(super) fails: bool,
    /// Pages are short, and each is read when that is told, and its end told back.
    pub(super) paging: Option<(mpsc::Receiver<()>, mpsc::Sender<()>)>,
}

/// Has the next page read, and hears of its end. Dropped: pages are read by themselves.
pub(super) type Gate = (mpsc::Sender<()>, mpsc::Receiver<()>);

/// Records on a page of one that is told to read.
const SHORT: usize = 3;

// === impl Watched ===

impl Watched {
    pub(super) fn of(store: &Arc<MemoryStore>) -> Box<Self> {
        Box::new(Self {
            inner: store.changes().unwrap(),
            store: Arc::clone(store),
            settles_in: Duration::ZERO,
            limit: ENTRIES,
            polls: 0,
            lost: None,
            is_for_members: false,
            fails: false,
            paging: None,
        })
    }

    /// A reader that reads a page when it is told to.
    pub(super) fn gated(store: &Arc<MemoryStore>) -> (Box<Self>, Gate) {
        let ((go, told), (read, done)) = (mpsc::channel(), mpsc::channel());
        (Box::new(Self { paging: Some((told, read)), ..*Self::of(store) }), (go, done))
    }
}

impl Changes for Watched {
    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        self.polls += 1;
        if self.fails {
            return Err(StoreError::Unavailable("it fails".to_owned()));
        }
        if let Some((_, copy)) = self.lost.take_if(|(poll, _)| *poll == self.polls) {
            self.store.put_back(&copy);
        }
        assert!(
            !self.is_for_members || !self.store.fleet().unwrap().members.is_empty(),
            "it reads before it has joined"
        );
        self.inner.poll(from, fleet, limit.min(self.limit))
    }

    fn settles_in(&self) -> Duration {
        self.settles_in
    }

    fn head(&mut self) -> Result<Position, StoreError> {
        self.inner.head()
    }

    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError> {
        self.inner.past(limit)
    }

    fn wait(&mut self, from: Position) {
        self.inner.wait(from);
    }

    fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        self.inner.tell(member)
    }

    fn leave(&mut self, member: &Member) {
        self.inner.leave(member);
    }

    fn outlives_process(&self) -> bool {
        false
    }

    fn page(&mut self, after: u64, limit: usize) -> Result<Page, StoreError> {
        let Some((told, read)) = &self.paging else { return self.inner.page(after, limit) };
        _ = told.recv();
        let page = self.inner.page(after, SHORT);
        _ = read.send(());
        page
    }
}
