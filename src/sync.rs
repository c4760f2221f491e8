//! Atomics, locks, channels and threads of the key cache and of who changes it: `std`'s. Under the feature `model` they are
//! ones that tests/model.rs schedules step by step, to try every order in which the threads can meet. A *step* is one access
//! to something shared; between two steps a thread is alone.

#[cfg(not(feature = "model"))]
pub use plain::*;
#[cfg(feature = "model")]
pub use scheduled::*;

#[cfg(not(feature = "model"))]
mod plain {
    pub use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
    pub use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
    pub use std::sync::{Mutex, MutexGuard, RwLock};
    pub use std::thread;

    /// The next thing this thread does is to read `_shared`, which is not one of this module's types.
    #[inline(always)]
    pub const fn will_read<T>(_shared: &T) {}

    /// The next thing this thread does is to change `_shared`.
    #[inline(always)]
    pub const fn will_write<T>(_shared: &T) {}
}

/// Shuttle's types, which switch between threads, and a word to the scheduler of what each thread does next: steps on
/// different things need not be tried in both orders. Everything is sequentially consistent here.
#[cfg(feature = "model")]
mod scheduled {
    pub use shuttle::thread;

    use std::cell::{Cell, RefCell};
    use std::collections::HashSet;
    use std::ops::{Deref, DerefMut};
    use std::ptr::from_ref;
    use std::sync::atomic::{self, Ordering};
    use std::sync::mpsc::{RecvError, RecvTimeoutError, SendError, TryRecvError};
    use std::sync::{Arc, LockResult, PoisonError, TryLockError};
    use std::time::Duration;

    thread_local! {
        static NEXT: Cell<Option<Step>> = const { Cell::new(None) };
        /// Locks that are held and channels that are empty.
        static SHUT: RefCell<HashSet<usize>> = RefCell::default();
    }

    /// What a thread does next.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Step {
        /// Where the thing is.
        object: usize,
        writes: bool,
        /// Nothing comes of it while the thing is shut.
        waits: bool,
    }

    #[derive(Debug)]
    pub struct AtomicBool(atomic::AtomicBool);

    #[derive(Debug)]
    pub struct AtomicI64(atomic::AtomicI64);

    #[derive(Debug, Default)]
    pub struct AtomicU64(atomic::AtomicU64);

    #[derive(Debug)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    pub struct MutexGuard<'a, T> {
        lock: &'a Mutex<T>,
        /// None while it is given back.
        guard: Option<shuttle::sync::MutexGuard<'a, T>>,
    }

    /// Held only between steps.
    #[derive(Debug, Default)]
    pub struct RwLock<T>(std::sync::RwLock<T>);

    #[derive(Debug)]
    pub struct Sender<T> {
        inner: shuttle::sync::mpsc::Sender<T>,
        channel: Arc<Channel>,
        _open: Arc<Open>,
    }

    #[derive(Debug)]
    pub struct SyncSender<T> {
        inner: shuttle::sync::mpsc::SyncSender<T>,
        channel: Arc<Channel>,
        _open: Arc<Open>,
    }

    #[derive(Debug)]
    pub struct Receiver<T>(shuttle::sync::mpsc::Receiver<T>, Arc<Channel>);

    /// What is known of a channel.
    #[derive(Debug, Default)]
    struct Channel {
        messages: atomic::AtomicUsize,
        /// Nobody sends any more.
        ended: atomic::AtomicBool,
    }

    /// Dropped with the last sender of a channel.
    #[derive(Debug)]
    struct Open(Arc<Channel>);

    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let ((inner, receiver), (channel, _open)) = (shuttle::sync::mpsc::channel(), Channel::new());
        (Sender { inner, channel: Arc::clone(&channel), _open }, Receiver(receiver, channel))
    }

    pub fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
        let ((inner, receiver), (channel, _open)) = (shuttle::sync::mpsc::sync_channel(bound), Channel::new());
        (SyncSender { inner, channel: Arc::clone(&channel), _open }, Receiver(receiver, channel))
    }

    /// What the running thread has last said that it does next.
    pub fn take_next() -> Option<Step> {
        NEXT.take()
    }

    /// The next thing this thread does is to read `shared`, which is not one of this module's types.
    pub fn will_read<T>(shared: &T) {
        announce(shared, false);
        thread::yield_now();
    }

    /// The next thing this thread does is to change `shared`.
    pub fn will_write<T>(shared: &T) {
        announce(shared, true);
        thread::yield_now();
    }

    fn announce<T>(shared: &T, writes: bool) {
        NEXT.set(Some(Step { object: from_ref(shared).addr(), writes, waits: false }));
    }

    fn announce_waiting<T>(shared: &T) {
        NEXT.set(Some(Step { object: from_ref(shared).addr(), writes: true, waits: true }));
    }

    fn shut<T>(shared: &T, is_shut: bool) {
        let object = from_ref(shared).addr();
        SHUT.with_borrow_mut(|all| if is_shut { all.insert(object) } else { all.remove(&object) });
    }

    /// A store that changes nothing is no more than a look: said so, unless somebody comes between.
    fn will_store<T>(shared: &T, changes: impl Fn() -> bool) {
        if !changes() {
            will_read(shared);
        }
        if changes() {
            will_write(shared);
        }
    }

    // === impl Step ===

    impl Step {
        /// Whether it matters which of the two comes first.
        pub fn meets(self, other: Self) -> bool {
            self.object == other.object && (self.writes || other.writes)
        }

        /// Whether it can be taken now.
        pub fn is_possible(self) -> bool {
            !self.waits || !SHUT.with_borrow(|all| all.contains(&self.object))
        }
    }

    // === impl AtomicBool ===

    impl AtomicBool {
        pub const fn new(value: bool) -> Self {
            Self(atomic::AtomicBool::new(value))
        }

        pub fn load(&self, order: Ordering) -> bool {
            will_read(self);
            self.0.load(order)
        }

        pub fn store(&self, value: bool, order: Ordering) {
            will_store(self, || self.0.load(Ordering::SeqCst) != value);
            self.0.store(value, order);
        }
    }

    // As `std`'s, which says so as well.
    impl Default for AtomicBool {
        fn default() -> Self {
            Self::new(false)
        }
    }

    // === impl AtomicI64 ===

    impl AtomicI64 {
        pub const fn new(value: i64) -> Self {
            Self(atomic::AtomicI64::new(value))
        }

        pub fn load(&self, order: Ordering) -> i64 {
            will_read(self);
            self.0.load(order)
        }

        pub fn store(&self, value: i64, order: Ordering) {
            will_store(self, || self.0.load(Ordering::SeqCst) != value);
            self.0.store(value, order);
        }
    }

    // === impl AtomicU64 ===

    impl AtomicU64 {
        pub const fn new(value: u64) -> Self {
            Self(atomic::AtomicU64::new(value))
        }

        pub fn load(&self, order: Ordering) -> u64 {
            will_read(self);
            self.0.load(order)
        }

        pub fn store(&self, value: u64, order: Ordering) {
            will_store(self, || self.0.load(Ordering::SeqCst) != value);
            self.0.store(value, order);
        }

        pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
            will_write(self);
            self.0.fetch_add(value, order)
        }

        pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
            will_write(self);
            self.0.fetch_sub(value, order)
        }
    }

    // === impl Mutex ===

    impl<T> Mutex<T> {
        pub const fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            announce_waiting(self);
            let wrap = |guard| {
                shut(self, true);
                MutexGuard { lock: self, guard: Some(guard) }
            };
            self.0.lock().map(wrap).map_err(|poisoned| PoisonError::new(wrap(poisoned.into_inner())))
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            // tidy: allow(the guard is taken out when it is dropped)
            self.guard.as_ref().unwrap_or_else(|| unreachable!("it is being given back"))
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            // tidy: allow(the guard is taken out when it is dropped)
            self.guard.as_mut().unwrap_or_else(|| unreachable!("it is being given back"))
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        /// A step of its own.
        fn drop(&mut self) {
            announce(self.lock, true);
            drop(self.guard.take());
            shut(self.lock, false);
        }
    }

    // === impl RwLock ===

    impl<T> RwLock<T> {
        pub fn read(&self) -> LockResult<std::sync::RwLockReadGuard<'_, T>> {
            will_read(self);
            free(self.0.try_read())
        }

        pub fn write(&self) -> LockResult<std::sync::RwLockWriteGuard<'_, T>> {
            will_write(self);
            free(self.0.try_write())
        }
    }

    fn free<G>(attempt: Result<G, TryLockError<G>>) -> LockResult<G> {
        match attempt {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Err(poisoned),
            // tidy: allow(a mistake in a model, which no program holds)
            Err(TryLockError::WouldBlock) => unreachable!("a step was taken by who holds this lock"),
        }
    }

    // === impl Channel ===

    impl Channel {
        fn new() -> (Arc<Self>, Arc<Open>) {
            let channel = Arc::default();
            shut(&*channel, true);
            (Arc::clone(&channel), Arc::new(Open(channel)))
        }

        fn count(&self, sent: bool) {
            let add = if sent { 1 } else { usize::MAX };
            self.messages.fetch_add(add, Ordering::SeqCst);
            self.set_shut();
        }

        fn set_shut(&self) {
            shut(self, self.messages.load(Ordering::SeqCst) == 0 && !self.ended.load(Ordering::SeqCst));
        }
    }

    impl Drop for Channel {
        fn drop(&mut self) {
            shut(self, false);
        }
    }

    impl Drop for Open {
        fn drop(&mut self) {
            self.0.ended.store(true, Ordering::SeqCst);
            self.0.set_shut();
        }
    }

    // === impl Sender, SyncSender ===

    impl<T> Sender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            announce(&*self.channel, true);
            self.inner.send(message).inspect(|()| self.channel.count(true))
        }
    }

    impl<T> Clone for Sender<T> {
        fn clone(&self) -> Self {
            let (channel, _open) = (Arc::clone(&self.channel), Arc::clone(&self._open));
            Self { inner: self.inner.clone(), channel, _open }
        }
    }

    impl<T> SyncSender<T> {
        pub fn send(&self, message: T) -> Result<(), SendError<T>> {
            announce(&*self.channel, true);
            self.inner.send(message).inspect(|()| self.channel.count(true))
        }
    }

    // === impl Receiver ===

    impl<T> Receiver<T> {
        pub fn recv(&self) -> Result<T, RecvError> {
            announce_waiting(&*self.1);
            self.0.recv().inspect(|_| self.1.count(false))
        }

        pub fn try_recv(&self) -> Result<T, TryRecvError> {
            announce(&*self.1, true);
            self.0.try_recv().inspect(|_| self.1.count(false))
        }

        /// The time is over at once: whatever could come in time is another order of steps.
        pub fn recv_timeout(&self, _: Duration) -> Result<T, RecvTimeoutError> {
            self.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }

        pub fn iter(&self) -> impl Iterator<Item = T> {
            std::iter::from_fn(|| self.recv().ok())
        }
    }
}
