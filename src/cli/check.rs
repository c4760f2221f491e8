//! `keygate check`: all mistakes of gateway.toml at once, or what it means.

use super::exit;
use crate::clock::Clock;
use crate::config::Config;
use crate::policy::Access;
use crate::server::Listen;
use crate::server::tls::watch::near_end;
use crate::store::{Settings, redis};
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// Checks the file at `path`.
pub fn run(path: &Path) -> ExitCode {
    match Config::load(path) {
        Ok(config) => match super::output::line(summary(&config)) {
            Ok(()) => {
                warn(&config);
                exit::DONE
            }
            Err(failure) => super::report(failure.as_ref()),
        },
        Err(errors) => {
            say!("{errors}");
            exit::config()
        }
    }
}

/// What is no mistake of the file, and still unwise. Servers of which one may take another's place are asked.
fn warn(config: &Config) {
    if let Settings::Redis { url } = &config.store {
        redis::warnings(url).iter().for_each(|warning| say!("warning: {warning}"));
    }
    let now = Clock::system().now();
    let certificates =
        config.server.listen.iter().filter_map(|listen| listen.tls.as_ref()).flat_map(|tls| tls.certificates());
    for (cert, facts) in certificates {
        if let Some(warning) = near_end(&facts, now) {
            say!("warning: {cert}: the certificate {warning}");
        }
    }
}

/// What an operator wants to see once more: where it listens, and what is open.
fn summary(config: &Config) -> String {
    let mut text = format!("{}: no mistakes\n", config.path.display());
    let listen: Vec<_> = config.server.listen.iter().map(listening).collect();
    // Writing to a string cannot fail.
    _ = writeln!(text, "listens on {}; admin on {}", listen.join(", "), config.admin.address);
    _ = writeln!(text, "{} routes to {} upstreams", config.routes.len(), config.proxy.upstreams.len());
    let public = config.routes.iter().filter(|route| matches!(route.access, Access::Public));
    for route in public {
        _ = writeln!(text, "open to everybody, without a key: {}", route.path);
    }
    text.trim_end().to_owned()
}

fn listening(listen: &Listen) -> String {
    let tls = if listen.tls.is_some() { " (TLS)" } else { "" };
    let proxies = if listen.proxies.is_some() { " (PROXY protocol)" } else { "" };
    format!("{}{tls}{proxies}", listen.address)
}
