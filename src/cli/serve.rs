//! `keygate serve`: runs the gateway in the foreground until SIGTERM or SIGINT.

use super::exit;
use crate::app::{Gateway, StartError};
use crate::config::Config;
use crate::store;
use crate::telemetry::logging;
use std::path::Path;
use std::process::ExitCode;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that a gateway obeys, caught for as long as the process lives.
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// Starts the gateway of `config` and waits until it is told to stop. A clean drain is success.
pub fn run(path: &Path) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(errors) => {
            say!("{errors}");
            return exit::config();
        }
    };
    logging::start();
    match start(config) {
        Ok((gateway, signals)) => wait(gateway, signals),
        Err(StartError::Store(error)) => {
            say!("error: {error}");
            exit::unavailable()
        }
        Err(error) => {
            say!("error: {error}");
            exit::FAILED
        }
    }
}

/// Opens the store and starts the gateway. The signals are caught before anybody is told that it serves: a stop that
/// comes at once drains like any other.
///
/// # Errors
/// As [`Gateway::start`], and when signals cannot be caught.
pub fn start(config: Config) -> Result<(Gateway, Signals), StartError> {
    let store = store::open(&config.store)?;
    let gateway = Gateway::start(config, store)?;
    let signals = Signals::catch().map_err(|error| StartError::Other(format!("cannot wait for signals: {error}")))?;
    for address in &gateway.listening {
        tracing::info!(%address, "listening");
    }
    tracing::info!(admin = %gateway.admin, "ready");
    Ok((gateway, signals))
}

/// Waits for the signal to stop, then drains. SIGHUP is kept for reloading and changes nothing yet.
pub fn wait(gateway: Gateway, mut signals: Signals) -> ExitCode {
    _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    signals.wait_for_stop();
    // On a thread of its own: draining blocks this one, and nobody would drive the runtime.
    std::thread::spawn(move || {
        signals.wait_for_stop();
        std::process::exit(130);
    });
    _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping; requests in flight may finish");
    gateway.drain();
    tracing::info!("stopped");
    exit::DONE
}

// === impl Signals ===

impl Signals {
    fn catch() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let entered = runtime.enter();
        let [terminate, interrupt, hangup] =
            [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        drop(entered);
        Ok(Self { runtime, terminate: terminate?, interrupt: interrupt?, hangup: hangup? })
    }

    /// Waits for SIGTERM or SIGINT.
    fn wait_for_stop(&mut self) {
        let Self { runtime, terminate, interrupt, hangup } = self;
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = hangup.recv() => tracing::warn!("SIGHUP: reloading is not in this version; restart to apply gateway.toml"),
                }
            }
        });
    }
}
