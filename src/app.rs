//! The composition root: a [`Config`] becomes a running gateway. Binds, spawns workers, follows the store, drains.

mod certificates;
mod sinks;

use crate::admin::{self, ControlPlane};
use crate::audit::keeper::Keeper;
use crate::audit::sinks::{self as audit_sinks, Outlet, Shipper, ShipperParts};
use crate::audit::{self, Journal, Tellers};
use crate::auth::follower::{self, Turn};
use crate::auth::{self, Authenticator, Fills, Follower, KeyCache, Snapshot};
use crate::clock::{self, Clock, Timestamp};
use crate::config::Config;
use crate::key::Digest;
use crate::manage::reporter;
use crate::policy::{RouteTable, UpstreamModes};
use crate::proxy::canonical::HeadLimits;
use crate::proxy::service::Shared;
use crate::server::Address;
use crate::server::listener::{self, Bound, Spread};
use crate::server::unix::SocketFile;
use crate::server::worker::{self, CutOrder};
use crate::store::{Change, KeyStore, Member, StoreError, codec};
use crate::telemetry::{self, Page};
use crate::ulid::{TEXT_LEN, Ulid};
use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long a worker may take to cut what is in flight (protocols I9: L).
const WORKER_SILENT_MAX: Duration = Duration::from_secs(2);
/// `EX_SOFTWARE` of sysexits.h.
const EX_SOFTWARE: i32 = 70;
/// How often a failing store is asked.
const POLL_FAILING: Duration = Duration::from_millis(500);
const UPKEEP: Duration = Duration::from_secs(5);
/// So many keys are loaded into huge pages: a start from the snapshot takes a quarter less.
const MANY_KEYS: u64 = 100_000;

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Audit(#[from] audit::AuditError),
    #[error("cannot listen on {address}: {error}")]
    Bind { address: Address, error: io::Error },
    #[error("{0}")]
    Other(String),
}

/// A running gateway.
pub struct Gateway {
    /// The addresses that are listened on, ports filled in.
    pub listening: Vec<Address>,
    pub admin: SocketAddr,
    stop: watch::Sender<bool>,
    workers: Workers,
    follower: JoinHandle<()>,
    state: Arc<State>,
    journal: Journal,
    shipper: Shipper,
    store: Arc<dyn KeyStore>,
    control: tokio::runtime::Runtime,
    /// Given back when it ends.
    _kept: (Place, Vec<SocketFile>),
}

/// Where this process stands: the snapshot's directory, which one process at a time holds by a lock.
struct Place {
    instance: String,
    /// Who held it before, and is gone, since the lock was free.
    predecessor: Option<String>,
    /// Nobody else stands here.
    is_ours: bool,
    /// Kept for as long as the process lives.
    _lock: std::fs::File,
}

type Workers = Vec<JoinHandle<()>>;

/// Reaches every worker when keys have changed.
struct Cutter(Vec<mpsc::UnboundedSender<CutOrder>>);

/// What the control plane shares.
struct State {
    cache: Arc<KeyCache>,
    clock: Clock,
    page: Page,
    health: Arc<audit::Health>,
    sinks: audit_sinks::Watch,
    ready: AtomicBool,
    stopping: AtomicBool,
    held: AtomicBool,
}

// === impl Gateway ===

impl Gateway {
    /// Starts everything and returns once requests are served.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running then.
    pub fn start(config: Config, store: Arc<dyn KeyStore>) -> Result<Self, StartError> {
        let count = store.count().unwrap_or(0);
        if count < MANY_KEYS {
            forgo_huge_pages();
        }
        let clock = Clock::system();
        let page = Page::install().map_err(StartError::Other)?;
        let gateway = gateway_id(&config)?;
        let bound = config.server.listen.iter().map(|listen| bind(&listen.address, config.server.workers));
        let mut bound = bound.collect::<Result<Vec<_>, _>>()?;
        let admin_listener = std::net::TcpListener::bind(config.admin.address)
            .map_err(|error| StartError::Bind { address: Address::Tcp(config.admin.address), error })?;
        let workers = config.server.workers;
        let requests_max = config.server.limits.connections_max.div_ceil(workers);
        let (journal, tellers) =
            Journal::open(&config.audit, &gateway, &config.hash, clock.clone(), workers, requests_max)?;
        let cache = Arc::new(KeyCache::new(config.auth.keys_max, config.auth.max_stale, count));
        let (cutter, cuts) = Cutter::new(config.server.workers);
        let place = Place::take(&config.snapshot, clock.now())?;
        let changes = journal.changes();
        let accounts = sinks::accounts(&config, Arc::clone(&store), clock.clone(), &gateway, &journal);
        let (shipped, told) = (gateway.clone(), Arc::clone(&store));
        let (fills, asked) = Fills::new();
        let mut follower = Follower::new(follower::Parts {
            cache: Arc::clone(&cache),
            store,
            settings: config.auth.clone(),
            fills: Arc::clone(&fills),
            snapshot: place.is_ours.then(|| Snapshot::at(config.snapshot.clone())),
            clock: clock.clone(),
            member: member(&config, gateway, &place),
            cut: Box::new(move |changed| cutter.cut(changed)),
            heard: Box::new(move |change| journal_change(change, &changes)),
        })?;
        first_load(&mut follower)?;
        forgo_huge_pages();
        let shipper = start_shipper(&config, accounts, shipped, &journal, clock.clone())?;
        let state = Arc::new(State {
            cache: Arc::clone(&cache),
            clock: clock.clone(),
            page,
            health: journal.health(),
            sinks: shipper.watch(),
            ready: AtomicBool::new(true),
            stopping: AtomicBool::new(false),
            held: AtomicBool::new(false),
        });
        let (stop, stopped) = watch::channel(false);
        let authenticator = Authenticator::new(config.auth.prefix.clone(), cache, fills);
        let shared = Arc::new(shared(&config, authenticator, clock)?);
        let listening = bound.iter().map(|bound| bound.address.clone()).collect();
        let sockets = bound.iter_mut().filter_map(|bound| bound.file.take()).collect();
        let workers = spawn_workers(&config, bound, &shared, tellers, cuts, &stopped)?;
        let control = control_plane(admin_listener, &state)?;
        let admin = control.1;
        certificates::watch(&control.0, &config.server.listen, &state.clock);
        spawn_filler(follower.filler(asked))?;
        let follower = spawn_follower(follower, Arc::clone(&state))?;
        let control = control.0;
        let store = told;
        let _kept = (place, sockets);
        Ok(Self { listening, admin, stop, workers, follower, state, journal, shipper, store, control, _kept })
    }

    /// Lets what is in flight finish within the drain's bound, flushes the journal, and ends.
    pub fn drain(self) {
        self.state.ready.store(false, Ordering::SeqCst);
        _ = self.stop.send(true);
        for worker in self.workers {
            // One that failed has ended the process.
            _ = worker.join();
        }
        self.state.stopping.store(true, Ordering::SeqCst);
        if self.follower.join().is_err() {
            tracing::error!("follower panicked");
        }
        let ended = self.journal.shutdown();
        self.shipper.stop();
        if let Some((journal, last)) = ended
            && let Err(error) = reporter::close(self.store.as_ref(), &journal, last, self.state.clock.now())
        {
            tracing::warn!(%error, "the store was not told that this journal has ended; the next start tells it");
        }
        self.control.shutdown_timeout(Duration::from_millis(100));
    }
}

/// Has the kernel give no huge pages from now on. To clear one takes milliseconds, for which some kernels let no worker onto the
/// core; and what a gateway of few keys has of them is mostly empty.
fn forgo_huge_pages() {
    // Where it is not to be had, everything works as well.
    _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Starts to ship what the journal holds. Whatever fails after this leaves the records where they are.
fn start_shipper(
    config: &Config,
    accounts: Outlet,
    gateway: String,
    journal: &Journal,
    clock: Clock,
) -> Result<Shipper, StartError> {
    let mut outlets = sinks::build(&config.sinks, &config.audit.dir)?;
    outlets.push(accounts);
    let keeper = Keeper::new(&config.audit, clock.clone());
    let parts =
        ShipperParts { dir: config.audit.dir.clone(), gateway, outlets, recent: Some(journal.recent()), keeper, clock };
    Shipper::start(parts).map_err(|error| StartError::Other(format!("cannot start the shipper: {error}")))
}

/// What the fleet is told of this process when it joins.
fn member(config: &Config, gateway: String, place: &Place) -> Member {
    Member {
        instance: place.instance.clone(),
        replaces: place.predecessor.clone(),
        gateway,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: config.hash.clone(),
        max_stale_ms: u64::try_from(config.auth.max_stale.as_millis()).unwrap_or(u64::MAX),
        pos: 0,
        token: 0,
        keys: 0,
        complete: false,
        caught_up_at: 0,
        volatile: false,
        held: None,
    }
}

/// The gateway's id: the operator's, or one made once and kept beside the data.
fn gateway_id(config: &Config) -> Result<String, StartError> {
    if let Some(id) = &config.gateway_id {
        return Ok(id.clone());
    }
    let path = config.data_dir.join("gateway-id");
    let failed =
        |error: io::Error| StartError::Other(format!("cannot keep the gateway's id in {}: {error}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(id) if is_gateway_id(id.trim()) => Ok(id.trim().to_owned()),
        Ok(_) => {
            Err(StartError::Other(format!("{} does not hold a gateway id; remove it to get a new one", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_gateway_id(&path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

fn is_gateway_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

fn make_gateway_id(path: &Path) -> io::Result<String> {
    let id = format!("gw-{:08x}", fastrand::u32(..));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, format!("{id}\n"))?;
    Ok(id)
}

fn bind(address: &Address, workers: usize) -> Result<Bound, StartError> {
    listener::bind(address, workers).map_err(|error| StartError::Bind { address: address.clone(), error })
}

fn shared(config: &Config, authenticator: Authenticator, clock: Clock) -> Result<Shared, StartError> {
    let head_limits = HeadLimits {
        target_bytes_max: config.proxy.limits.target_bytes_max,
        head_bytes_max: config.server.limits.head_bytes_max,
        head_fields_max: config.server.limits.head_fields_max,
    };
    let modes = config.proxy.upstreams.iter().map(|upstream| (!upstream.test.is_empty(), !upstream.live.is_empty()));
    Ok(Shared {
        settings: config.proxy.clone(),
        head_limits,
        routes: RouteTable::build(config.routes.clone()).map_err(StartError::Other)?,
        modes: UpstreamModes::new(modes),
        authenticator,
        clock,
    })
}

fn spawn_workers(
    config: &Config,
    bound: Vec<Bound>,
    shared: &Arc<Shared>,
    tellers: Vec<Tellers>,
    cuts: Vec<mpsc::UnboundedReceiver<CutOrder>>,
    stopped: &watch::Receiver<bool>,
) -> Result<Workers, StartError> {
    let workers = config.server.workers;
    let open: Arc<[AtomicUsize]> = (0..workers).map(|_| AtomicUsize::new(0)).collect();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
    let senders: Arc<[_]> = senders.into();
    // By address, then by worker; wanted by worker.
    let mut by_address: Vec<_> = bound.into_iter().map(|bound| bound.listeners.into_iter()).collect();
    let mut threads = Vec::with_capacity(workers);
    for (index, ((tellers, handed_over), cuts)) in tellers.into_iter().zip(receivers).zip(cuts).enumerate() {
        let parts = worker::Parts {
            index,
            listeners: config
                .server
                .listen
                .iter()
                .cloned()
                .zip(by_address.iter_mut().filter_map(Iterator::next))
                .collect(),
            handed_over,
            spread: Spread { mine: index, open: Arc::clone(&open), senders: Arc::clone(&senders) },
            limits: config.server.limits.clone(),
            connections_max: config.server.limits.connections_max.div_ceil(workers),
            handshakes_max: config.server.limits.handshakes_max.div_ceil(workers),
            shared: Arc::clone(shared),
            recorder: tellers.recorder,
            events: tellers.events,
            cuts,
            stop: stopped.clone(),
        };
        threads
            .push(worker::spawn(parts).map_err(|error| StartError::Other(format!("cannot start a worker: {error}")))?);
    }
    Ok(threads)
}

/// The control plane's own runtime, which cannot stall a worker.
fn control_plane(
    listener: std::net::TcpListener,
    state: &Arc<State>,
) -> Result<(tokio::runtime::Runtime, SocketAddr), StartError> {
    let failed = |error: io::Error| StartError::Other(format!("cannot start the control plane: {error}"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let control: Arc<dyn ControlPlane> = Arc::clone(state) as _;
    let page = state.page.clone();
    let _entered = runtime.enter();
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    runtime.spawn(admin::serve(listener, control));
    runtime.spawn(async move {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            page.upkeep();
        }
    });
    Ok((runtime, address))
}

fn spawn_follower(follower: Follower, state: Arc<State>) -> Result<JoinHandle<()>, StartError> {
    let run = move || {
        // It keeps the row, the cache and the right to serve true: the process does not live on without it.
        if catch_unwind(AssertUnwindSafe(|| follow(follower, &state))).is_err() {
            std::process::exit(EX_SOFTWARE);
        }
    };
    std::thread::Builder::new()
        .name("follower".into())
        .spawn(run)
        .map_err(|error| StartError::Other(format!("cannot start the follower: {error}")))
}

/// Ends when the follower leaves.
fn spawn_filler(filler: auth::Filler) -> Result<(), StartError> {
    let run = move || {
        // What it leaves half done would be the cache: the process does not live on with that.
        if catch_unwind(AssertUnwindSafe(|| filler.run())).is_err() {
            std::process::exit(EX_SOFTWARE);
        }
    };
    std::thread::Builder::new()
        .name("filler".into())
        .spawn(run)
        .map(drop)
        .map_err(|error| StartError::Other(format!("cannot start the filler: {error}")))
}

fn follow(mut follower: Follower, state: &State) {
    let mut failing = false;
    while !state.stopping.load(Ordering::SeqCst) {
        match rest_after(&follower.turn(), state, &mut failing) {
            Rest::None => {}
            Rest::UntilChange => follower.wait(),
            Rest::Failing => std::thread::sleep(POLL_FAILING),
        }
    }
    follower.leave();
}

/// Makes the keys known. A store that cannot be asked now does not keep the gateway from starting: it serves from its
/// snapshot for as long as that gives the right to, and answers keyed requests 503 otherwise.
fn first_load(follower: &mut Follower) -> Result<(), StoreError> {
    match follower.start() {
        Err(error @ StoreError::Unavailable(_)) => {
            tracing::error!(%error, "started without the key store; only keys from a snapshot that is not too old are accepted until it can be read");
            Ok(())
        }
        started => started,
    }
}

/// Copies a change of the store's log into the journal.
fn journal_change(change: &Change, journal: &audit::Changes) {
    let before = change.before.as_ref().map(codec::encode).transpose();
    match (before, codec::encode(&change.after)) {
        (Ok(before), Ok(after)) => journal.record(audit::ChangeEntry {
            seq: change.seq,
            at: change.at,
            actor: change.actor.clone(),
            action: change.action.as_str(),
            before,
            after,
        }),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, seq = change.seq, "a change could not be journaled")
        }
    }
}

/// How to pass the time until the next turn.
enum Rest {
    None,
    UntilChange,
    Failing,
}

/// Says what is worth saying once, and how to rest before the next turn.
fn rest_after(turn: &Result<Turn, StoreError>, state: &State, failing: &mut bool) -> Rest {
    match turn {
        Ok(Turn::Behind) => Rest::None,
        Ok(Turn::CaughtUp) => {
            if std::mem::take(failing) | state.held.swap(false, Ordering::SeqCst) {
                tracing::info!("the key store answers again");
            }
            Rest::UntilChange
        }
        Ok(Turn::Held) => {
            state.held.store(true, Ordering::SeqCst);
            Rest::Failing
        }
        Err(error) => {
            if !std::mem::replace(failing, true) {
                tracing::error!(%error, "the key store cannot be asked; known keys go on working until max_stale");
            }
            Rest::Failing
        }
    }
}

// === impl Place ===

impl Place {
    /// Takes the place of whoever ran here before: beside the snapshot, which it then owns. That one is known to be gone only
    /// where the lock was this kernel's: a copied directory, or one on another machine, holds the name of somebody who may live.
    fn take(snapshot: &Path, now: Timestamp) -> Result<Self, StartError> {
        let dir = snapshot.parent().unwrap_or(Path::new("."));
        let path = dir.join("instance");
        let failed = |error: io::Error| StartError::Other(format!("cannot use {}: {error}", path.display()));
        std::fs::create_dir_all(dir).map_err(failed)?;
        let options = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(failed)?;
        let (instance, boot) = (Ulid::new(now, fastrand::u128(..)).to_string(), clock::boot_id());
        let mut predecessor = None;
        let is_ours = file.try_lock().is_ok();
        if is_ours {
            let mut earlier = [0; TEXT_LEN + 1 + 32];
            let read = file.read_at(&mut earlier, 0).map_err(failed)?;
            let text = earlier.get(..read).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default();
            let here = boot.map(|boot| format!("{boot:032x}"));
            let known =
                text.split_once(' ').filter(|(name, on)| Ulid::parse(name).is_some() && Some(*on) == here.as_deref());
            predecessor = known.map(|(name, _)| name.to_owned());
            file.set_len(0).map_err(failed)?;
            file.write_all_at(format!("{instance} {}", here.unwrap_or_default()).as_bytes(), 0).map_err(failed)?;
        }
        Ok(Self { instance, predecessor, is_ours, _lock: file })
    }
}

// === impl Cutter ===

impl Cutter {
    fn new(workers: usize) -> (Self, Vec<mpsc::UnboundedReceiver<CutOrder>>) {
        let (orders, cuts) = (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
        (Self(orders), cuts)
    }

    /// Has every worker judge what it has in flight again. What is given returns when all have done so. A worker that does
    /// not answer may be serving with keys that have ended: the process does not live on with it (protocols I9).
    fn cut(&self, changed: HashSet<Digest>) -> Box<dyn FnOnce()> {
        let (sender, done) = std::sync::mpsc::channel();
        let changed = Arc::new(changed);
        // A worker that has ended serves nothing.
        let order = || CutOrder { changed: Arc::clone(&changed), done: sender.clone() };
        self.0.iter().for_each(|worker| _ = worker.send(order()));
        Box::new(move || wait_for_workers(&done))
    }
}

fn wait_for_workers(done: &std::sync::mpsc::Receiver<()>) {
    // Twice: a process that was stopped for a while finds its first wait over before its workers had a chance.
    let silent = (0..2).all(|_| done.recv_timeout(WORKER_SILENT_MAX) == Err(RecvTimeoutError::Timeout));
    if silent {
        tracing::error!("a worker does not answer; ending the process, since it may honour keys that were revoked");
        std::process::exit(EX_SOFTWARE);
    }
}

// === impl State ===

impl ControlPlane for State {
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    fn report(&self) -> String {
        let now = self.clock.moment();
        let staleness = self.cache.staleness(now);
        let store = match (self.held.load(Ordering::SeqCst), self.cache.is_fresh(now)) {
            (true, _) => "not the one that was followed (held)",
            (false, false) => "out of reach",
            (false, true) => "followed",
        };
        let complete = if self.cache.is_complete() { "complete" } else { "incomplete" };
        let journal = if self.health.is_healthy() { "writing" } else { "failing" };
        let sinks: String = self.sinks.standings().iter().map(sinks::line).collect();
        format!(
            "[store] {store}, last caught up {} ms ago\n[cache] {complete}, {} records\n[journal] {journal}\n{sinks}",
            staleness.as_millis(),
            self.cache.records()
        )
    }

    fn metrics(&self) -> String {
        let now = self.clock.moment();
        let staleness = self.cache.staleness(now);
        for sink in self.sinks.standings() {
            telemetry::sink_lag(&sink.name, sink.lag_records, sink.lag);
        }
        self.page.render(&[
            ("keygate_cache_records", "keys held, revoked ones included", self.cache.records() as f64),
            (
                "keygate_cache_complete",
                "1 while a miss is a definite refusal",
                f64::from(u8::from(self.cache.is_complete())),
            ),
            (
                "keygate_cache_lookups",
                "look-ups since the start; a malformed key makes none",
                self.cache.lookups() as f64,
            ),
            ("keygate_feed_lag_seconds", "time since the last caught-up poll of the store", staleness.as_secs_f64()),
            (
                "keygate_right_to_serve_seconds",
                "for how long known keys are served if nothing more is heard of the store",
                self.cache.serves_for(now).as_secs_f64(),
            ),
            (
                "keygate_journal_healthy",
                "1 while audit records can be written",
                f64::from(u8::from(self.health.is_healthy())),
            ),
            ("keygate_journal_records", "audit records written since the start", self.health.records() as f64),
            (
                "keygate_journal_refused",
                "requests refused because they could not be recorded",
                self.health.refused() as f64,
            ),
            (
                "keygate_journal_faults",
                "damages and gaps that the sinks came upon in the journals, since the start",
                self.sinks.faults() as f64,
            ),
            (
                "keygate_journal_dropped",
                "audit records dropped because there was no room, as overload = \"drop\" allows",
                self.health.dropped() as f64,
            ),
        ])
    }
}
