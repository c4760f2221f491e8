//! The shipper: one process of a directory holds its lock, and runs a thread for each sink and one for the keeper.

use super::Outlet;
use super::delivery::Delivery;
use super::keeping::Keeping;
use super::status::{self, Standing, Status, Told};
use super::tails::Tails;
use crate::audit::keeper::Keeper;
use crate::audit::recent::Recent;
use crate::clock::{Clock, monotonic};
use rustix::fs::{FlockOperation, flock};
use rustix::process::setpriority_process;
use std::fs::File;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Locked by the process that ships.
const LOCK_FILE: &str = "ship.lock";
/// How often a process that does not ship looks whether it should.
const TAKE_OVER: Duration = Duration::from_millis(500);
/// How long a stop waits for the last deliveries.
const LAST_DELIVERY: Duration = Duration::from_secs(2);
/// Of each journal's newest records, so much is held for the sinks that keep up.
const TAIL_BYTES: usize = 4 * 1024 * 1024;
/// Of the sinks' threads: whoever serves requests goes first.
const NICE: i32 = 10;
/// After a sink's thread failed for a defect of ours.
const AFTER_PANIC: Duration = Duration::from_secs(5);

/// What a shipper is made of.
pub struct ShipperParts {
    /// The audit directory.
    pub dir: PathBuf,
    /// The gateway's id: the first part of its journals' names.
    pub gateway: String,
    /// The sinks. Their names differ.
    pub outlets: Vec<Outlet>,
    /// What this process's own journal tells besides its files, for sinks that take that.
    pub recent: Option<Arc<Recent>>,
    /// Who compresses and deletes what the sinks have taken.
    pub keeper: Keeper,
    pub clock: Clock,
}

/// Ships the records of a directory, as soon as and for as long as no other process does.
pub struct Shipper {
    shared: Arc<Shared>,
    lead: JoinHandle<()>,
}

/// How the sinks stand, for whoever is asked.
#[derive(Clone)]
pub struct Watch(Arc<Shared>);

/// What the sinks' threads share.
pub struct Shared {
    pub dir: PathBuf,
    pub clock: Clock,
    pub stop: Stop,
    pub told: Told,
    pub tails: Tails,
    pub recent: Option<Arc<Recent>>,
    gateway: String,
    statuses: Vec<Arc<Status>>,
}

/// Set once, waited for by many.
#[derive(Debug, Default)]
pub struct Stop {
    is_set: Mutex<bool>,
    changed: Condvar,
}

// === impl Shipper ===

impl Shipper {
    /// Starts. Without a sink the segments are kept all the same.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(parts: ShipperParts) -> io::Result<Self> {
        let ShipperParts { dir, gateway, outlets, recent, keeper, clock } = parts;
        let statuses = outlets.iter().map(|outlet| Arc::new(Status::new(outlet.sink.name()))).collect();
        let shared = Arc::new(Shared { recent, ..Shared::new(dir, gateway, clock, statuses) });
        let led = Arc::clone(&shared);
        let lead = Builder::new().name("shipper".into()).spawn(move || ship(&led, outlets, keeper))?;
        Ok(Self { shared, lead })
    }

    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.shared))
    }

    /// Delivers what the journals hold now, if that takes no longer than two seconds, and ends. To be called after the
    /// journal's last sync.
    pub fn stop(self) {
        self.shared.stop.set();
        if self.lead.join().is_err() {
            tracing::error!("the shipper panicked");
        }
    }
}

// === impl Watch ===

impl Watch {
    /// Each sink's standing, in the order of gateway.toml.
    pub fn standings(&self) -> Vec<Standing> {
        let (ends, now) = (status::ends(&self.0.dir), self.0.clock.now());
        self.0.statuses.iter().map(|status| status.standing(&ends, now)).collect()
    }

    /// How many damages and gaps the sinks came upon in the journals.
    pub fn faults(&self) -> usize {
        self.0.told.count()
    }
}

// === impl Shared ===

impl Shared {
    pub fn new(dir: PathBuf, gateway: String, clock: Clock, statuses: Vec<Arc<Status>>) -> Self {
        Self {
            dir,
            clock,
            stop: Stop::default(),
            told: Told::default(),
            tails: Tails::new(TAIL_BYTES),
            recent: None,
            gateway,
            statuses,
        }
    }

    /// Whether a journal is this gateway's.
    pub fn is_ours(&self, journal: &str) -> bool {
        journal.rsplit_once('/').is_some_and(|(gateway, _)| gateway == self.gateway)
    }
}

/// Waits for the directory's lock, runs the sinks and the keeper, and ends when it is told to.
fn ship(shared: &Arc<Shared>, outlets: Vec<Outlet>, keeper: Keeper) {
    let Some(_lock) = wait_for_lock(shared) else { return };
    let (ended, ends) = channel();
    let durable = outlets.iter().filter(|outlet| outlet.sink.is_durable());
    let keeping =
        Keeping::new(keeper, Arc::clone(shared), durable.map(|outlet| outlet.sink.name().to_owned()).collect());
    let keeper = start(keeping, ended.clone());
    let started = outlets.into_iter().zip(&shared.statuses);
    let started = started.map(|(outlet, status)| {
        let delivery = Delivery::new(outlet, Arc::clone(shared), Arc::clone(status));
        spawn(delivery, &status.name, Arc::clone(shared), ended.clone())
    });
    let threads = started.filter(|started| *started).count() + usize::from(keeper);
    shared.stop.wait_until_set();
    wait_for_ends(&ends, threads);
}

fn wait_for_ends(ends: &Receiver<()>, threads: usize) {
    let deadline = monotonic() + LAST_DELIVERY;
    for ended in 0..threads {
        if ends.recv_timeout(deadline.saturating_duration_since(monotonic())).is_err() {
            let sinks = threads - ended;
            tracing::warn!(
                sinks,
                "stopped before every sink had taken the last records; they are sent after the next start"
            );
            return;
        }
    }
}

/// The lock that says who ships; none when the stop came first.
fn wait_for_lock(shared: &Shared) -> Option<File> {
    while !shared.stop.is_set() {
        match try_lock(&shared.dir) {
            Ok(Some(lock)) => return Some(lock),
            Ok(None) => {}
            Err(error) => {
                let trouble = format!("cannot lock {}/ship.lock: {error}", shared.dir.display());
                if shared.told.is_new(&trouble) {
                    tracing::error!("{trouble}; audit records are not sent to the sinks");
                }
            }
        }
        shared.stop.wait(TAKE_OVER);
    }
    None
}

fn try_lock(dir: &Path) -> io::Result<Option<File>> {
    let mut file = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    if directory_id(dir).is_err() {
        file.set_len(0)?;
        file.write_all(format!("{:032x}", fastrand::u128(..)).as_bytes())?;
        file.sync_all()?;
    }
    Ok(Some(file))
}

/// What tells an audit directory from every other, one in the same place included: made when records are first shipped, kept
/// in the lock's file.
///
/// # Errors
/// As of reading the file.
pub fn directory_id(dir: &Path) -> io::Result<String> {
    let path = dir.join(LOCK_FILE);
    let id = std::fs::read_to_string(&path).ok();
    let id = id.filter(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    id.ok_or_else(|| io::Error::other(format!("{} holds no id of this directory", path.display())))
}

/// Starts a sink's thread; whether it started.
fn spawn(mut delivery: Delivery, name: &str, shared: Arc<Shared>, ended: Sender<()>) -> bool {
    let thread = Builder::new().name(format!("sink-{name}"));
    let run = move || {
        // Of this thread alone. One that may not step back runs all the same.
        _ = setpriority_process(None, NICE);
        while catch_unwind(AssertUnwindSafe(|| delivery.run())).is_err() {
            delivery.start_over();
            if shared.stop.wait(AFTER_PANIC) {
                break;
            }
        }
        // Nobody listens any more when the stop did not wait.
        _ = ended.send(());
    };
    let started = thread.spawn(run);
    if let Err(error) = &started {
        tracing::error!(sink = name, %error, "cannot start a sink's thread; its records stay in the journal");
    }
    started.is_ok()
}

/// Starts the keeper's thread; whether it started.
fn start(mut keeping: Keeping, ended: Sender<()>) -> bool {
    let run = move || {
        _ = setpriority_process(None, NICE);
        if catch_unwind(AssertUnwindSafe(|| keeping.run())).is_err() {
            tracing::error!("the keeper panicked: segments are neither compressed nor deleted until the next start");
        }
        _ = ended.send(());
    };
    let started = Builder::new().name("keeper".into()).spawn(run);
    if let Err(error) = &started {
        tracing::error!(%error, "cannot start the keeper's thread; segments are neither compressed nor deleted");
    }
    started.is_ok()
}

// === impl Stop ===

impl Stop {
    pub fn set(&self) {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub fn is_set(&self) -> bool {
        *self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the stop, but no longer than this; whether it is set.
    pub fn wait(&self, time: Duration) -> bool {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is_set, time, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn wait_until_set(&self) {
        let is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(is_set, |is_set| !*is_set));
    }
}
