//! TLS towards clients: which certificate is shown to whom, from files that may be replaced at any time.
//!
//! What new connections are secured with is one value that is swapped; a connection keeps what it began with. Tickets for
//! resuming a session are a listener's own, so that none leads past another's `client_ca`, and no session is resumed from
//! before that file was replaced. There is no early data (0-RTT): a request that can be sent again by a stranger is none.

pub mod files;
pub mod handshake;
pub mod watch;

use super::Protocols;
use crate::key::Digest;
use crate::tls::x509::Facts;
use crate::tls::{Roots, provider};
use files::{Certificate, Fault, Pair, Place};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

/// `tls` in `[[listen]]`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `cert` and `key`, or `certificates`: at least one. The first is shown to clients that ask for no name of any.
    pub pairs: Vec<Pair>,
    /// `client_ca`: clients show a certificate that is signed by one of its authorities.
    pub client_ca: Option<PathBuf>,
    /// `client_auth`: they must, or may.
    pub is_client_required: bool,
    /// `min_version`
    pub oldest: Version,
    /// What is offered by ALPN.
    pub protocols: Protocols,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Tls12,
    Tls13,
}

/// What a listener's connections are secured with.
pub struct Tls {
    settings: Settings,
    current: RwLock<Arc<Current>>,
}

/// What it is at a time.
pub struct Current {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// Of the clients.
    roots: Option<Roots>,
    tickets: Arc<dyn ProducesTickets>,
    /// Of the files' contents that all this was read from: by pair, and of the authorities.
    marks: Vec<Digest>,
    mark_of_roots: Option<Digest>,
}

/// Those of a listener, in the order of gateway.toml.
#[derive(Debug)]
pub struct Certificates(Vec<Arc<Certificate>>);

// === impl Tls ===

impl Tls {
    /// Reads all files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(settings: Settings) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let (mut certificates, mut marks) = (Vec::new(), Vec::new());
        for (index, pair) in settings.pairs.iter().enumerate() {
            let contents = pair.read();
            marks.push(contents.mark());
            match contents.parse(index) {
                Ok(certificate) => certificates.push(Arc::new(certificate)),
                Err(more) => faults.extend(more),
            }
        }
        let contents = settings.client_ca.as_deref().map(files::read);
        let mark_of_roots = contents.as_ref().map(|contents| files::mark(&[contents]));
        let roots = contents.map(|contents| files::parse(&contents, Roots::parse)).transpose();
        let roots = roots.unwrap_or_else(|message| {
            faults.push(Fault { place: Place::ClientCa, message });
            None
        });
        if !faults.is_empty() {
            return Err(faults);
        }
        let tickets = tickets().map_err(whole)?;
        let certificates = Arc::new(Certificates(certificates));
        let config = config(&settings, &certificates, roots.as_ref(), &tickets).map_err(whole)?;
        let current = Current { config, certificates, roots, tickets, marks, mark_of_roots };
        Ok(Self { settings, current: RwLock::new(Arc::new(current)) })
    }

    /// What new connections are secured with.
    pub fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What each certificate says, with the file it is from, as gateway.toml names it.
    pub fn certificates(&self) -> Vec<(String, Arc<Facts>)> {
        let current = self.current();
        let facts = current.certificates.0.iter().map(|certificate| Arc::clone(&certificate.facts));
        self.settings.pairs.iter().map(|pair| pair.name.clone()).zip(facts).collect()
    }

    fn swap(&self, current: Current) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tls").field(&self.settings).finish()
    }
}

fn whole(message: String) -> Vec<Fault> {
    vec![Fault { place: Place::Whole, message }]
}

fn tickets() -> Result<Arc<dyn ProducesTickets>, String> {
    Ticketer::new().map_err(|error| format!("no key for tickets: {error}"))
}

fn config(
    settings: &Settings,
    certificates: &Arc<Certificates>,
    roots: Option<&Roots>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, String> {
    let config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(settings.oldest.and_later())
        .map_err(|error| error.to_string())?;
    let config = match roots {
        None => config.with_no_client_auth(),
        Some(roots) => config.with_client_cert_verifier(verifier(roots, settings.is_client_required)?),
    };
    let mut config = config.with_cert_resolver(Arc::clone(certificates) as _);
    config.alpn_protocols = settings.protocols.offered();
    // All ciphers are strong; but who scans a server looks for an order of its own.
    config.ignore_client_order = true;
    config.ticketer = Arc::clone(tickets);
    // Sessions are in the clients' tickets alone: workers share nothing that they would have to lock.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn verifier(roots: &Roots, is_required: bool) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots.store()), Arc::new(provider()));
    let builder = if is_required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| error.to_string())
}

// === impl Version ===

impl Version {
    fn and_later(self) -> &'static [&'static SupportedProtocolVersion] {
        static ALL: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls12 => &ALL,
            Self::Tls13 => &ALL[..1], // tidy: allow(there are two)
        }
    }
}

// === impl Protocols ===

impl Protocols {
    /// Their names in ALPN (RFC 7301, section 6). A client of HTTP/1.0 may say so.
    fn offered(self) -> Vec<Vec<u8>> {
        let http1: &[&str] = if self.http1 { &["http/1.1", "http/1.0"] } else { &[] };
        let http2: &[&str] = if self.http2 { &["h2"] } else { &[] };
        http2.iter().chain(http1).map(|name| name.as_bytes().to_vec()).collect()
    }
}

// === impl Certificates ===

impl Certificates {
    /// Those that are for this name: that have it, else those with a `*` that stands for it, else all.
    fn of(&self, name: Option<&str>) -> Vec<&Arc<Certificate>> {
        let those = |is_for: fn(&Facts, &str) -> bool| {
            let those = self.0.iter().filter(|certificate| name.is_some_and(|name| is_for(&certificate.facts, name)));
            those.collect::<Vec<_>>()
        };
        [Facts::is_exactly, Facts::covers_by_wildcard]
            .into_iter()
            .map(those)
            .find(|found| !found.is_empty())
            .unwrap_or_else(|| self.0.iter().collect())
    }

    /// For whom a connection is whose client asked for this name: what the certificate says that it was shown, and others of
    /// the same name.
    fn facts_of(&self, name: &str) -> Vec<Arc<Facts>> {
        let those = self.of(Some(name));
        let is_for_name = |certificate: &&&Arc<Certificate>| certificate.facts.covers(name);
        let named: Vec<_> =
            those.iter().filter(is_for_name).map(|certificate| Arc::clone(&certificate.facts)).collect();
        if named.is_empty() {
            self.0.first().map(|first| Arc::clone(&first.facts)).into_iter().collect()
        } else {
            named
        }
    }
}

impl ResolvesServerCert for Certificates {
    /// The first for the name the client asks for whose key it can check: of a name there may be one with RSA, for old clients.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let those = self.of(hello.server_name());
        let can_check = |one: &&&Arc<Certificate>| one.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let chosen = those.iter().find(can_check).or(those.first());
        chosen.map(|certificate| Arc::clone(&certificate.key))
    }
}
