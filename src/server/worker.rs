//! A worker: one OS thread, one `current_thread` runtime, its own listeners and upstream connections. A request lives and
//! dies on one worker.

use super::connection::{self, Serving};
use super::listener::{Accepted, HandedOver, Listener, Spread, StdListener, accept};
use super::registry::Registry;
use super::{Limits, Listen};
use crate::audit::{ConnectionEvents, Recorder};
use crate::key::Digest;
use crate::proxy::catch::{Panicked, caught};
use crate::proxy::in_flight::Again;
use crate::proxy::service::{Service, Shared};
use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};

/// `EX_SOFTWARE` of sysexits.h.
const EX_SOFTWARE: i32 = 70;
/// How often a worker looks at its deadlines, closes idle upstream connections and moves along what waits in its recorder.
const UPKEEP: Duration = Duration::from_millis(100);

/// Asks a worker to judge again what it has in flight by entries that have ended, and by these keys.
pub struct CutOrder {
    pub changed: Arc<HashSet<Digest>>,
    /// Dropped when it is done, which whoever sent it waits for.
    pub done: std::sync::mpsc::Sender<()>,
}

/// Everything a worker is given when it starts.
pub struct Parts {
    pub index: usize,
    /// By `[[listen]]` table.
    pub listeners: Vec<(Listen, StdListener)>,
    pub handed_over: mpsc::UnboundedReceiver<HandedOver>,
    pub spread: Spread,
    pub limits: Limits,
    pub connections_max: usize,
    /// TLS handshakes that are computed at the same time.
    pub handshakes_max: usize,
    pub shared: Arc<Shared>,
    pub recorder: Recorder,
    pub events: ConnectionEvents,
    /// Keys have changed.
    pub cuts: mpsc::UnboundedReceiver<CutOrder>,
    /// Turns true when the process drains.
    pub stop: watch::Receiver<bool>,
}

/// Starts a worker's thread. It ends after the drain.
///
/// # Errors
/// When the machine gives no thread.
pub fn spawn(parts: Parts) -> io::Result<JoinHandle<()>> {
    let name = format!("worker-{}", parts.index);
    let run = move || {
        let result = catch_unwind(AssertUnwindSafe(|| run(parts)));
        match &result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => die(&format!("a worker failed: {error}")),
            Err(_) => die("a worker panicked"),
        }
    };
    std::thread::Builder::new().name(name).spawn(run)
}

/// Without a worker, or without what cuts and ends what it has in flight, the process might honour keys that have ended: it does
/// not live on (protocols I9).
fn die(why: &str) {
    tracing::error!("{why}; ending the process");
    std::process::exit(EX_SOFTWARE);
}

/// Runs a task that must not end before it is stopped.
async fn unending(what: &str, task: impl Future<Output = ()>) {
    let why = match caught(task).await {
        Ok(()) => "ended",
        Err(Panicked) => "panicked",
    };
    die(&format!("the {what} of a worker {why}"));
}

fn run(parts: Parts) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = tokio::task::LocalSet::new();
    let result = tasks.block_on(&runtime, work(parts));
    // What the drain's bound cut off is dropped here, while the recorder still takes its records.
    drop(tasks);
    result
}

async fn work(parts: Parts) -> io::Result<()> {
    let Parts {
        listeners,
        mut handed_over,
        spread,
        limits,
        connections_max,
        handshakes_max,
        shared,
        recorder,
        events,
        cuts,
        mut stop,
        ..
    } = parts;
    let registry = Registry::new(connections_max);
    let service = Service::new(Arc::clone(&shared), recorder);
    let limits = Rc::new(limits);
    let (listens, listeners): (Vec<_>, Vec<_>) =
        listeners.into_iter().map(|(listen, listener)| (Rc::new(listen), listener)).unzip();
    let turns = Rc::new(Semaphore::new(handshakes_max));
    let serving = Serving { service: Rc::clone(&service), limits: Rc::clone(&limits), events, turns };
    let serve = {
        let (registry, listens) = (Rc::clone(&registry), Rc::new(listens));
        move |listen, socket: Accepted, peer: IpAddr| {
            // It names one of the listeners, whoever accepted.
            let Some(listen) = listens.get(listen).map(Rc::clone) else { return };
            let registered = registry.register();
            tokio::task::spawn_local(connection::serve(socket, peer, listen, registered, serving.clone()));
        }
    };
    let mut accepting = tokio::task::JoinSet::new();
    for (listen, listener) in listeners.into_iter().enumerate() {
        let listener = Listener::new(listener)?;
        accepting.spawn_local(accept(listen, listener, Rc::clone(&registry), spread.clone(), serve.clone()));
    }
    accepting.spawn_local(async move {
        while let Some(handed) = handed_over.recv().await {
            let (listen, peer) = (handed.listen, handed.peer);
            if let Ok(socket) = handed.into_socket() {
                serve(listen, socket, peer);
            }
        }
    });
    // Goes on through the drain: what is in flight keeps its deadlines.
    let upkeep = upkeep(Rc::clone(&service), Rc::clone(&registry), Arc::clone(&shared), spread);
    let upkeep = tokio::task::spawn_local(unending("upkeep", upkeep));
    let cutting = tokio::task::spawn_local(unending("cutting", cut(cuts, Rc::clone(&registry), shared)));

    _ = stop.wait_for(|stop| *stop).await;
    accepting.shutdown().await;
    registry.drain();
    if tokio::time::timeout(limits.drain, registry.empty()).await.is_err() {
        tracing::warn!(connections = registry.open(), "drain bound reached; the rest is cut off");
        service.expire_drain();
    }
    upkeep.abort();
    cutting.abort();
    Ok(())
}

/// Judges what is in flight again each time keys have changed.
async fn cut(mut cuts: mpsc::UnboundedReceiver<CutOrder>, registry: Rc<Registry>, shared: Arc<Shared>) {
    // Whoever sends goes last, when the process ends anyway.
    while let Some(order) = cuts.recv().await {
        registry.judge_again(&shared, Again::Changed(&order.changed), shared.clock.moment());
        drop(order.done);
    }
}

async fn upkeep(service: Rc<Service>, registry: Rc<Registry>, shared: Arc<Shared>, spread: Spread) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        spread.publish(registry.open());
        let now = shared.clock.moment();
        if shared.authenticator.is_stale(now) {
            registry.judge_again(&shared, Again::Stale, now);
        }
        service.upkeep(now.mono);
    }
}
