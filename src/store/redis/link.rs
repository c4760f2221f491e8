//! The connection: made when needed, dropped on the first failure, bounded in time.

use super::wire::{Transport, Wire};
use super::{REPLY_BYTES, Record, StoreError, codec, schema};
use crate::clock::Instant;
use crate::secret::Secret;
use crate::tls::Tls;
use ::redis::{Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisError};
use rustls::pki_types::ServerName;
use std::fmt;
use std::sync::Arc;

const PAGE: &str = include_str!("page.lua");

/// `redis://host[:port][/database]`, or the same with `rediss`, known to be well-formed, and who logs in there.
#[derive(Clone, Debug)]
pub struct Url {
    host: String,
    port: u16,
    database: i64,
    transport: Transport,
    login: Option<Arc<Login>>,
}

/// What a server asks for first (`AUTH`).
#[derive(Debug)]
pub struct Login {
    /// The ACL user; the default one unless given.
    pub username: Option<String>,
    pub password: Secret<String>,
}

/// One connection, or none yet.
pub struct Link {
    url: Url,
    connection: Option<Wire>,
    connects: u64,
    /// The run of the server that was last seen, and since when.
    seen: Option<(String, Instant)>,
}

// === impl Url ===

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, without its text: that may hold a password, which does not belong there.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (rest, is_encrypted) = match (text.strip_prefix("redis://"), text.strip_prefix("rediss://")) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => {
                return Err("write \"redis://host:6379\", or \"rediss://host:6379\" for TLS; \
                            this version knows no other way to Redis"
                    .to_owned());
            }
        };
        if text.contains(['?', '#']) {
            return Err("a Redis URL ends with the database's number".to_owned());
        }
        let malformed = || "write a Redis URL like \"redis://host:6379/0\"".to_owned();
        let info = format!("redis://{rest}").into_connection_info().map_err(|_| malformed())?;
        let redis = info.redis_settings();
        if redis.username().is_some() || redis.password().is_some() {
            return Err("a login does not belong in the URL: give username and password beside it".to_owned());
        }
        let ConnectionAddr::Tcp(host, port) = info.addr() else { return Err(malformed()) };
        let transport = if is_encrypted {
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|_| "no certificate can be for a host of this name".to_owned())?;
            Transport::Encrypted { name, tls: Tls::default() }
        } else {
            Transport::Plain
        };
        Ok(Self { host: host.clone(), port: *port, database: redis.db(), transport, login: None })
    }

    pub const fn is_encrypted(&self) -> bool {
        matches!(self.transport, Transport::Encrypted { .. })
    }

    /// The same server, with these certificates. Nothing changes for one in plain text.
    pub fn with_tls(mut self, given: Tls) -> Self {
        match &mut self.transport {
            Transport::Encrypted { tls, .. } => *tls = given,
            Transport::Plain => {}
        }
        self
    }

    /// The same server, with a login.
    pub fn with_login(self, login: Login) -> Self {
        Self { login: Some(Arc::new(login)), ..self }
    }
}

// === impl Link ===

impl Link {
    pub fn new(url: &Url) -> Self {
        Self { url: url.clone(), connection: None, connects: 0, seen: None }
    }

    /// Sends a command that may be repeated, over a new connection if there is none. One that broke since its last use is
    /// replaced once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; [`StoreError::Refused`] when the data are a newer gateway's.
    pub fn call<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, StoreError> {
        let used = self.connection.is_some();
        match self.once(command) {
            Err(error) if used && error.is_io_error() && !error.is_timeout() => {
                self.connect()?;
                self.once(command).map_err(|error| unavailable(&error))
            }
            Err(_) if !used => {
                self.connect()?;
                self.once(command).map_err(|error| unavailable(&error))
            }
            answer => answer.map_err(|error| unavailable(&error)),
        }
    }

    fn once<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        let Some(connection) = &mut self.connection else {
            return Err(RedisError::from(std::io::Error::from(std::io::ErrorKind::NotConnected)));
        };
        let answer = ask(connection, command);
        if answer.is_err() {
            // What is still to come on it would be taken for the next command's answer.
            self.connection = None;
        }
        answer
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        let mut connection = open(&self.url).map_err(|error| unavailable(&error))?;
        let stored: Option<u32> = ask(&mut connection, ::redis::cmd("GET").arg(schema::name("schema")))
            .map_err(|error| unavailable(&error))?;
        if let Some(stored) = stored.filter(|stored| *stored != schema::VERSION) {
            return Err(newer(&stored.to_string()));
        }
        (self.connection, self.connects) = (Some(connection), self.connects + 1);
        Ok(())
    }

    /// How often it has connected: another number, and the server may be another run.
    pub const fn connects(&self) -> u64 {
        self.connects
    }

    /// Since when this run of the server has been seen by this process.
    pub fn seen_since(&mut self, run: &str, now: Instant) -> Instant {
        let seen = self.seen.take().filter(|(seen, _)| seen == run).unwrap_or_else(|| (run.to_owned(), now));
        self.seen.insert(seen).1
    }

    /// Records in the order of an index: `range` is `lex` or `score`, and the lower bound.
    pub fn page(
        &mut self,
        index: &str,
        kind: &str,
        range: (&str, &str),
        limit: usize,
    ) -> Result<Vec<Record>, StoreError> {
        let mut command = script(PAGE, &[index]);
        command.arg(schema::PREFIX).arg(range.0).arg(range.1).arg(limit).arg(REPLY_BYTES).arg(kind);
        let texts: Vec<String> = self.call(&command)?;
        texts.iter().map(|text| codec::decode(text)).collect()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("url", &self.url).field("connected", &self.connection.is_some()).finish()
    }
}

/// Connects, logs in, and chooses the database.
fn open(url: &Url) -> Result<Wire, RedisError> {
    let mut wire = Wire::connect(&url.host, url.port, &url.transport)?;
    if let Some(login) = &url.login {
        let mut command = ::redis::cmd("AUTH");
        login.username.iter().for_each(|username| _ = command.arg(username));
        ask::<()>(&mut wire, command.arg(login.password.expose()))?;
    }
    if url.database != 0 {
        ask::<()>(&mut wire, ::redis::cmd("SELECT").arg(url.database))?;
    }
    Ok(wire)
}

fn ask<T: FromRedisValue>(wire: &mut Wire, command: &Cmd) -> Result<T, RedisError> {
    let answer = wire.ask(&command.get_packed_command())?.extract_error()?;
    Ok(::redis::from_redis_value(answer)?)
}

/// A call of a script on these keys of ours.
pub fn script(text: &str, keys: &[&str]) -> Cmd {
    let mut command = ::redis::cmd("EVAL");
    command.arg(text).arg(keys.len());
    keys.iter().for_each(|key| _ = command.arg(schema::name(key)));
    command
}

/// The error for data of another layout.
pub fn newer(stored: &str) -> StoreError {
    StoreError::Refused(format!(
        "the data in Redis have schema {stored}, this version knows {}: use the keygate that wrote them",
        schema::VERSION
    ))
}

fn unavailable(error: &RedisError) -> StoreError {
    StoreError::Unavailable(format!("redis: {error}"))
}
