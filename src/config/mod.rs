//! gateway.toml: raw text becomes a [`Config`] whose networks, routes and times are already built, or a list of all its
//! mistakes (contract, section 4).

pub mod diagnostics;
mod key_store;
mod listen;
mod reader;
mod routes;
mod sections;
mod sinks;
mod upstreams;
pub mod values;

pub use diagnostics::Diagnostics;
pub use sinks::{Destination, SinkSettings};

use crate::key::Digest;
use crate::policy::RouteSpec;
use crate::{admin, audit, auth, manage, proxy, server, store};
use diagnostics::{Diagnostic, Report};
use reader::Section;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::de::DeTable;

/// The largest file that is read: a thousand routes are a tenth of it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Everything gateway.toml says, in the form each module wants it.
#[derive(Clone, Debug)]
pub struct Config {
    pub path: PathBuf,
    /// The first 16 hex digits of the file's SHA-256: says in audit records which rules were in force.
    pub hash: String,
    pub gateway_id: Option<String>,
    /// Where a made-up gateway id is kept: `data` beside the file.
    pub data_dir: PathBuf,
    /// `[cache] snapshot`.
    pub snapshot: PathBuf,
    pub server: server::Settings,
    pub proxy: proxy::Settings,
    pub routes: Vec<RouteSpec>,
    pub auth: auth::Settings,
    pub store: store::Settings,
    pub manage: manage::Settings,
    pub audit: audit::Settings,
    /// `[[audit.sinks]]`.
    pub sinks: Vec<SinkSettings>,
    pub admin: admin::Settings,
}

/// What a configuration is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To serve, or to say whether that would do: everything that is named must be there.
    Serve,
    /// For a command about keys or records. It needs no certificate of a listener, which may be just being replaced, and whose
    /// key the command's user may not be allowed to read.
    Command,
}

/// What to do where the file is not there.
const NO_FILE: &str =
    "there is no such file; say where it is with --config or KEYGATE_CONFIG. `keygate demo` needs none";

// === impl Config ===

impl Config {
    /// Reads the file at `path`, to serve.
    ///
    /// # Errors
    /// [`Diagnostics`], all at once.
    pub fn load(path: &Path) -> Result<Self, Diagnostics> {
        Self::load_for(Purpose::Serve, path)
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// [`Diagnostics`], all at once.
    pub fn load_for(purpose: Purpose, path: &Path) -> Result<Self, Diagnostics> {
        let unreadable = |message: String| Diagnostics::unreadable(path, message);
        let bytes = read_bounded(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => unreadable(NO_FILE.to_owned()),
            _ => unreadable(error.to_string()),
        })?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(unreadable("not read to its end: a gateway.toml has at most 1 MiB".to_owned()));
        }
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            unreadable(format!("not UTF-8 at byte {at}; save it as UTF-8"))
        })?;
        Self::parse_for(purpose, &text, path)
    }

    /// Reads `text` as the file at `path`, to whose directory relative paths are relative, to serve.
    ///
    /// # Errors
    /// [`Diagnostics`], all at once.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Diagnostics> {
        Self::parse_for(Purpose::Serve, text, path)
    }

    fn parse_for(purpose: Purpose, text: &str, path: &Path) -> Result<Self, Diagnostics> {
        let report = Report::default();
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            report.add(Diagnostic::new(error.span().unwrap_or(0..0), error.message().trim().to_owned()));
        }
        // What follows a syntax error is guesswork: meaning is judged only in a file that parses.
        let config = report.is_empty().then(|| {
            let root = Section::new(&report, "gateway.toml", 0..0, document.into_inner());
            build(root, path, text, purpose)
        });
        match config.flatten() {
            Some(config) if report.is_empty() => Ok(config),
            _ => Err(Diagnostics::new(path, text, report.into_list())),
        }
    }
}

/// Reads one byte more than a file may have, at most: a device has no length to ask for, and no end.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn short_hash(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string().trim_start_matches("sha256:").chars().take(16).collect()
}

fn build(mut root: Section<'_, '_>, path: &Path, text: &str, purpose: Purpose) -> Option<Config> {
    let dir = path.parent().map(Path::to_owned).unwrap_or_default();
    let admin = sections::admin(root.table("admin"));
    let trusted_proxies = sections::client_ip(root.table("client_ip"));
    let surroundings = listen::Surroundings { admin: admin.address, dir: &dir, trusted: &trusted_proxies, purpose };
    let listen = listen::listen(&mut root, &surroundings);
    let (gateway_id, workers) = sections::gateway(root.table("gateway"));
    let store = key_store::store(root.table("store"), &dir);
    let prefix = sections::keys(root.table("keys"));
    let (keys_max, max_stale, snapshot) = sections::cache(root.table("cache"), &dir);
    let mut audit = root.table("audit");
    let sinks = sinks::sinks(&mut audit, store.as_ref(), &dir);
    let audit = sections::audit(audit, &dir);
    let (version_header, api_version) = sections::versions(root.table("versions"));
    let limits = sections::limits(root.table("limits"));
    let vocabulary = routes::vocabulary(root.table("scopes"));
    let presets = routes::presets(root.table("presets"), &vocabulary);
    let upstreams = upstreams::upstreams(root.table("upstreams"), &dir);
    let known = routes::Known { vocabulary: &vocabulary, upstreams: &upstreams };
    let route_sections = root.tables("routes", "route");
    if route_sections.is_empty() {
        root.missing("[[routes]]", "without a route every request is refused");
    }
    let routes = routes::routes(route_sections, &known);
    root.finish();
    let prefix = prefix?;
    Some(Config {
        path: path.to_owned(),
        hash: short_hash(text),
        gateway_id,
        data_dir: dir.join("data"),
        snapshot,
        server: server::Settings { listen, workers, limits: limits.server },
        proxy: proxy::Settings { trusted_proxies, version_header, limits: limits.proxy, upstreams },
        routes,
        auth: auth::Settings { prefix: prefix.clone(), keys_max, max_stale, vocabulary: Arc::new(vocabulary.clone()) },
        store: store?,
        manage: manage::Settings { prefix, vocabulary, presets, tiers: sections::tiers(), api_version },
        audit,
        sinks,
        admin,
    })
}
