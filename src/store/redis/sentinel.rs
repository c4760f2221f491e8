//! The Sentinels: which server is the master is what a majority of them says, and nothing else.

use super::connection::{ask, log_in};
use super::url::{Address, Login};
use super::wire::Wire;
use crate::clock::{Instant, monotonic};
use crate::tls::Tls;
use ::redis::RedisError;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// All the Sentinels that are configured, and what they said last.
pub struct Sentinels {
    master: String,
    login: Option<Arc<Login>>,
    tls: Option<Tls>,
    /// Those that did not answer last time are asked last.
    sentinels: Vec<Sentinel>,
    /// Who was named, and just before they were asked.
    named: Option<(Address, Instant)>,
}

struct Sentinel {
    address: Address,
    wire: Option<Wire>,
    is_silent: bool,
}

/// For how long what they said counts: a master that they have given up is left within this time.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long connecting to a Sentinel, and its answer, may take: the others must be heard while the word still counts.
const PATIENCE: Duration = Duration::from_millis(500);

// === impl Sentinels ===

impl Sentinels {
    pub fn new(addresses: &[Address], master: &str, login: Option<Arc<Login>>, tls: Option<Tls>) -> Self {
        let sentinel = |address: &Address| Sentinel { address: address.clone(), wire: None, is_silent: false };
        let sentinels = addresses.iter().map(sentinel).collect();
        Self { master: master.to_owned(), login, tls, sentinels, named: None }
    }

    /// The master, as a majority of all Sentinels names it now, or did not long ago.
    ///
    /// # Errors
    /// When there is no such majority: which of them said what.
    pub fn master(&mut self) -> Result<Address, String> {
        let now = monotonic();
        let fresh = self.named.take().filter(|(_, at)| now.saturating_duration_since(*at) < ASK_EVERY);
        let (address, at) = match fresh {
            Some(named) => named,
            None => (self.ask()?, now),
        };
        self.named = Some((address.clone(), at));
        Ok(address)
    }

    /// Something is wrong with the master: they are asked again before it is used.
    pub fn doubt(&mut self) {
        self.named = None;
    }

    fn ask(&mut self) -> Result<Address, String> {
        let majority = self.sentinels.len() / 2 + 1;
        let (mut votes, mut told) = (HashMap::<Address, usize>::new(), Vec::new());
        self.sentinels.sort_by_key(|sentinel| sentinel.is_silent);
        for sentinel in &mut self.sentinels {
            let answer = sentinel.master(&self.master, self.login.as_deref(), self.tls.as_ref());
            sentinel.is_silent = answer.is_err();
            let said = match answer {
                Ok(Some(address)) => {
                    let count = votes.entry(address.clone()).or_insert(0);
                    *count += 1;
                    if *count >= majority {
                        return Ok(address);
                    }
                    format!("names {address}")
                }
                Ok(None) => "watches no master of this name".to_owned(),
                Err(error) => error.to_string(),
            };
            told.push(format!("{}: {said}", sentinel.address));
        }
        Err(format!(
            "{majority} of {} Sentinels must name the same master of '{}', and do not: {}; start those that are missing, or correct the URL",
            self.sentinels.len(),
            self.master,
            told.join("; ")
        ))
    }
}

// === impl Sentinel ===

impl Sentinel {
    fn master(&mut self, name: &str, login: Option<&Login>, tls: Option<&Tls>) -> Result<Option<Address>, RedisError> {
        let was_open = self.wire.is_some();
        match self.once(name, login, tls) {
            // It may have been started again since.
            Err(error) if was_open && error.is_io_error() && !error.is_timeout() => self.once(name, login, tls),
            answer => answer,
        }
    }

    fn once(&mut self, name: &str, login: Option<&Login>, tls: Option<&Tls>) -> Result<Option<Address>, RedisError> {
        // Put back only after a whole answer.
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => self.connect(login, tls)?,
        };
        let mut command = ::redis::cmd("SENTINEL");
        let master: Option<(String, u16)> = ask(&mut wire, command.arg("get-master-addr-by-name").arg(name))?;
        self.wire = Some(wire);
        Ok(master.map(|(host, port)| Address { host, port }))
    }

    fn connect(&self, login: Option<&Login>, tls: Option<&Tls>) -> Result<Wire, RedisError> {
        let mut wire = Wire::connect(&self.address, tls, PATIENCE)?;
        login.map_or(Ok(()), |login| log_in(&mut wire, login))?;
        Ok(wire)
    }
}
