//! The files that certificates, keys and authorities are read from.

use crate::key::Digest;
use crate::secret::Secret;
use crate::tls::x509::Facts;
use crate::tls::{Chain, Identity, Key};
use rustls::sign::CertifiedKey;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest file that is read.
const BYTES_MAX: u64 = 1024 * 1024;

/// `cert` and `key`.
#[derive(Clone, Debug)]
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// `cert` as gateway.toml has it: what messages and metrics call the pair.
    pub name: String,
}

/// A certificate with its key, and what it says.
#[derive(Debug)]
pub struct Certificate {
    pub key: Arc<CertifiedKey>,
    pub facts: Arc<Facts>,
}

/// One of the settings that name files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Of the pair of this number, first is 0.
    Cert(usize),
    Key(usize),
    ClientCa,
    /// All together.
    Whole,
}

/// What is wrong with a file.
#[derive(Clone, Debug)]
pub struct Fault {
    pub place: Place,
    pub message: String,
}

/// What is in a file, or why that cannot be told.
pub struct Content {
    path: PathBuf,
    bytes: io::Result<Secret<Vec<u8>>>,
}

/// What is in both files of a pair.
pub struct Contents {
    cert: Content,
    key: Content,
}

/// Reads a file.
pub fn read(path: &Path) -> Content {
    let mut bytes = Secret::new(Vec::new());
    let read = File::open(path).and_then(|file| file.take(BYTES_MAX).read_to_end(bytes.expose_mut()));
    Content { path: path.to_owned(), bytes: read.map(|_| bytes) }
}

/// Tells whether the contents are the same as before.
pub fn mark(contents: &[&Content]) -> Digest {
    let parts: Vec<u8> = contents.iter().flat_map(|content| Digest::of(&content.told()).as_bytes().to_vec()).collect();
    Digest::of(&parts)
}

/// What a file holds.
///
/// # Errors
/// What is wrong with it, with its name.
pub fn parse<T>(content: &Content, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, String> {
    let path = content.path.display();
    match &content.bytes {
        Ok(bytes) => parse(bytes.expose()).map_err(|message| format!("{path} {message}")),
        Err(error) => Err(format!("cannot read {path}: {error}")),
    }
}

// === impl Pair ===

impl Pair {
    /// What is in the files now.
    pub fn read(&self) -> Contents {
        Contents { cert: read(&self.cert), key: read(&self.key) }
    }
}

// === impl Contents ===

impl Contents {
    pub fn mark(&self) -> Digest {
        mark(&[&self.cert, &self.key])
    }

    /// The pair of number `index`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(&self, index: usize) -> Result<Certificate, Vec<Fault>> {
        let chain = parse(&self.cert, |pem| Chain::parse(pem).and_then(|chain| Ok((chain.facts()?, chain))));
        let chain = chain.map_err(|message| Fault { place: Place::Cert(index), message });
        let key = parse(&self.key, Key::parse).map_err(|message| Fault { place: Place::Key(index), message });
        let ((facts, chain), key) = match (chain, key) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => return Err([chain.err(), key.err()].into_iter().flatten().collect()),
        };
        let identity = parse(&self.key, |_| Identity::new(chain, key, "cert"));
        let identity = identity.map_err(|message| vec![Fault { place: Place::Key(index), message }])?;
        Ok(Certificate { key: Arc::clone(identity.certified()), facts: Arc::new(facts) })
    }
}

// === impl Content ===

impl Content {
    /// What two readings are compared by.
    fn told(&self) -> Vec<u8> {
        match &self.bytes {
            Ok(bytes) => Digest::of(bytes.expose()).as_bytes().to_vec(),
            Err(error) => error.to_string().into_bytes(),
        }
    }
}
