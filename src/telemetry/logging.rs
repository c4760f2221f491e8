//! The process log: lines for people on a terminal, JSON otherwise, always on stderr. The audit trail is not here.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

/// Starts logging. `KEYGATE_LOG` takes the filter, such as `debug` or `keygate::proxy=debug`; the default is `info`.
pub fn start() {
    let filter = EnvFilter::try_from_env("KEYGATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    // A second start in one process keeps the first subscriber.
    _ = if std::io::stderr().is_terminal() {
        builder.with_ansi(!plain).with_target(false).try_init()
    } else {
        builder.json().flatten_event(true).with_target(false).try_init()
    };
}
