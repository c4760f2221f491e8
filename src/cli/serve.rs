//! `keygate serve`: runs the gateway in the foreground until SIGTERM or SIGINT.

use super::exit;
use crate::app::{Gateway, StartError};
use crate::config::Config;
use crate::store;
use crate::telemetry::logging;
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

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
        Ok(gateway) => wait(gateway),
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

/// Opens the store and starts the gateway.
///
/// # Errors
/// As [`Gateway::start`].
pub fn start(config: Config) -> Result<Gateway, StartError> {
    let store = store::open(&config.store)?;
    let gateway = Gateway::start(config, store)?;
    for address in &gateway.listening {
        tracing::info!(%address, "listening");
    }
    tracing::info!(admin = %gateway.admin, "ready");
    Ok(gateway)
}

/// Waits for the signal to stop, then drains. SIGHUP is kept for reloading and changes nothing yet.
pub fn wait(gateway: Gateway) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say!("error: cannot wait for signals: {error}");
            return exit::FAILED;
        }
    };
    let second = match runtime.block_on(stop_signal()) {
        Ok(second) => second,
        Err(error) => {
            say!("error: cannot wait for signals: {error}");
            return exit::FAILED;
        }
    };
    // On a thread of its own: draining blocks this one, and nobody would drive the runtime.
    std::thread::spawn(move || {
        runtime.block_on(second);
        std::process::exit(130);
    });
    _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping; requests in flight may finish");
    gateway.drain();
    tracing::info!("stopped");
    exit::DONE
}

/// Waits for the signal to stop; gives what waits for the second, which ends the process at once.
async fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => tracing::warn!("SIGHUP: reloading is not in this version; restart to apply gateway.toml"),
        }
    }
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    })
}
