//! TLS: whom to trust, what to show, and why it failed, in words. No check of a certificate can be left out. What clients
//! connect to is set up by `server::tls`.

pub mod x509;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use x509::Facts;

/// What to ask oneself when a server hangs up on a gateway that showed no certificate.
const PERHAPS_UNKNOWN: &str = "; does it want a client certificate (client_cert, client_key)?";

/// Whom to trust and what to show. By default: the system's authorities, and nothing.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Who may vouch for the server; nobody else may then.
    pub roots: Option<Roots>,
    /// Shown to a server that asks who we are.
    pub identity: Option<Identity>,
}

/// Certificates of authorities.
#[derive(Clone)]
pub struct Roots {
    certificates: Arc<[CertificateDer<'static>]>,
    store: Arc<RootCertStore>,
}

/// A certificate of our own, and those that lead from it to its authority.
pub struct Chain(Vec<CertificateDer<'static>>);

/// A private key.
pub struct Key(PrivateKeyDer<'static>);

/// A chain with the private key of its first certificate.
#[derive(Clone)]
pub struct Identity(Arc<CertifiedKey>);

// === impl Tls ===

impl Tls {
    /// What rustls needs. The system's authorities are read each time, if they are wanted.
    pub fn client_config(&self) -> io::Result<Arc<ClientConfig>> {
        let roots = match &self.roots {
            Some(roots) => Arc::clone(&roots.store),
            None => Arc::new(system_roots()?),
        };
        let config = ClientConfig::builder_with_provider(Arc::new(provider()));
        let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let config = config.with_root_certificates(roots);
        Ok(Arc::new(match &self.identity {
            Some(Identity(key)) => config.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key)))),
            None => config.with_no_client_auth(),
        }))
    }

    /// Who may vouch for the server, for a library that sets TLS up by itself.
    ///
    /// # Errors
    /// When this system trusts nobody.
    pub fn authorities(&self) -> io::Result<Arc<[CertificateDer<'static>]>> {
        match &self.roots {
            Some(roots) => Ok(Arc::clone(&roots.certificates)),
            None => Ok(system_certificates()?.into()),
        }
    }

    /// The same error for who runs the gateway; its kind stays. `is_new`: nothing was ever heard on this connection, so
    /// that its end may be the server's refusal: what it says to that is lost when it hangs up faster than we read.
    pub fn explain(&self, error: &io::Error, is_new: bool) -> io::Error {
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref());
        let words = match (cause, error.kind()) {
            (Some(cause), _) => self.words(cause),
            (None, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof) => {
                let doubt = if is_new && self.identity.is_none() { PERHAPS_UNKNOWN } else { "" };
                format!("the server closed the connection{doubt}")
            }
            (None, _) => error.to_string(),
        };
        io::Error::new(error.kind(), words)
    }

    fn words(&self, cause: &rustls::Error) -> String {
        match cause {
            // One of the same name, but with another key, makes the signature a bad one.
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
                let whom = if self.roots.is_some() { "in ca" } else { "this system trusts: name its own with ca" };
                format!("the server's certificate is not signed by an authority {whom}")
            }
            rustls::Error::InvalidCertificate(
                error @ (CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
            ) => format!("the server's certificate is for another name: {error}"),
            rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
                "the server's certificate has expired".to_owned()
            }
            rustls::Error::InvalidCertificate(
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
            ) => "the server's certificate is not valid yet; is this machine's clock right?".to_owned(),
            rustls::Error::InvalidCertificate(error) => format!("the server's certificate is not accepted: {error}"),
            rustls::Error::InvalidMessage(_) => format!("what answers there does not speak TLS ({cause})"),
            rustls::Error::AlertReceived(alert) => self.refusal(*alert),
            _ => format!("TLS: {cause}"),
        }
    }

    /// What a server's alert means. TLS 1.2 has no word of its own for a certificate that was not shown.
    fn refusal(&self, alert: AlertDescription) -> String {
        use AlertDescription as Alert;
        match (alert, &self.identity) {
            (Alert::CertificateRequired, None) => {
                "the server wants a client certificate: give client_cert and client_key".to_owned()
            }
            (Alert::HandshakeFailure, None) => format!("the server refused the TLS connection{PERHAPS_UNKNOWN}"),
            (
                Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::AccessDenied,
                Some(_),
            ) => format!("the server does not accept the certificate in client_cert ({alert:?})"),
            _ => format!("the server refused the TLS connection ({alert:?})"),
        }
    }
}

// === impl Roots ===

impl Roots {
    /// Reads PEM text.
    ///
    /// # Errors
    /// What is wrong with it, to be put behind the file's name.
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let (certificates, mut store) = (certificates(pem)?, RootCertStore::empty());
        let added = certificates.iter().try_for_each(|certificate| store.add(certificate.clone()));
        added.map_err(|error| unusable(&error))?;
        Ok(Self { certificates: certificates.into(), store: Arc::new(store) })
    }

    /// As rustls takes them.
    pub const fn store(&self) -> &Arc<RootCertStore> {
        &self.store
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Roots").field(&self.certificates.len()).finish()
    }
}

// === impl Chain ===

impl Chain {
    /// Reads PEM text, our own certificate first.
    ///
    /// # Errors
    /// As of [`Roots::parse`].
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let chain = certificates(pem)?;
        let parsed = chain.iter().try_for_each(|certificate| ParsedCertificate::try_from(certificate).map(drop));
        parsed.map_err(|error| unusable(&error))?;
        Ok(Self(chain))
    }

    /// What its first certificate says.
    ///
    /// # Errors
    /// As of [`Roots::parse`].
    pub fn facts(&self) -> Result<Facts, String> {
        let facts = self.0.first().and_then(|certificate| Facts::read(certificate));
        facts.ok_or_else(|| "has a certificate whose names and times cannot be read".to_owned())
    }
}

// === impl Key ===

impl Key {
    /// Reads PEM text.
    ///
    /// # Errors
    /// As of [`Roots::parse`].
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        const PROTECTED: &[u8] = b"ENCRYPTED";
        if pem.windows(PROTECTED.len()).any(|word| word == PROTECTED) {
            return Err("is protected by a passphrase, which nobody can be asked for: store it without".to_owned());
        }
        PrivateKeyDer::from_pem_slice(pem).map(Self).map_err(|error| unreadable("private key", &error))
    }
}

// === impl Identity ===

impl Identity {
    /// `cert` is the setting that names the chain.
    ///
    /// # Errors
    /// As of [`Roots::parse`], when the key is another certificate's or of an unknown kind.
    pub fn new(chain: Chain, key: Key, cert: &str) -> Result<Self, String> {
        CertifiedKey::from_der(chain.0, key.0, &provider()).map(|key| Self(Arc::new(key))).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => format!("is not the key of the certificate in {cert}"),
                error => format!("has a private key that cannot be used: {error}"),
            },
        )
    }

    /// As rustls takes it.
    pub const fn certified(&self) -> &Arc<CertifiedKey> {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity([redacted])")
    }
}

/// Where all of our cryptography comes from.
pub fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

fn system_roots() -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    // One that cannot be read vouches for nobody; the others still do.
    roots.add_parsable_certificates(system_certificates()?);
    if roots.is_empty() { Err(trusts_nobody("")) } else { Ok(roots) }
}

fn system_certificates() -> io::Result<Vec<CertificateDer<'static>>> {
    let found = rustls_native_certs::load_native_certs();
    if !found.certs.is_empty() {
        return Ok(found.certs);
    }
    let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
    Err(trusts_nobody(&why))
}

fn trusts_nobody(why: &str) -> io::Error {
    io::Error::other(format!("this system trusts no authorities{why}: install them, or name the server's with ca"))
}

/// The certificates in PEM text, at least one.
fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.and_then(|all| if all.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(all) });
    all.map_err(|error| unreadable("certificate", &error))
}

fn unreadable(what: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::NoItemsFound => format!("has no {what} in PEM form"),
        pem::Error::MissingSectionEnd { .. } => format!("ends in the middle of a {what}"),
        pem::Error::IllegalSectionStart { .. } => format!("has a damaged line before a {what}"),
        error => format!("has a {what} that cannot be read: {error}"),
    }
}

fn unusable(error: &rustls::Error) -> String {
    match error {
        rustls::Error::InvalidCertificate(error) => format!("has a certificate that cannot be used: {error}"),
        error => format!("has a certificate that cannot be used: {error}"),
    }
}
