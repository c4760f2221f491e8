//! The connection: made when needed, dropped on the first failure, bounded in time.

use super::wire::Wire;
use super::{REPLY_BYTES, Record, StoreError, codec, schema};
use crate::secret::Secret;
use ::redis::{Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, RedisError};
use std::fmt;
use std::io;
use std::sync::Arc;

const PAGE: &str = include_str!("page.lua");

/// `redis://host[:port][/database]`, known to be well-formed, and who logs in there.
#[derive(Clone, Debug)]
pub struct Url {
    text: String,
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
}

// === impl Url ===

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, without its text: that may hold a password, which does not belong there.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with("redis://") {
            return Err("this version connects to Redis in plain text: write \"redis://host:6379\"".to_owned());
        }
        if text.contains(['?', '#']) {
            return Err("a Redis URL ends with the database's number".to_owned());
        }
        let info =
            text.into_connection_info().map_err(|_| "write a Redis URL like \"redis://host:6379/0\"".to_owned())?;
        let redis = info.redis_settings();
        if redis.username().is_some() || redis.password().is_some() {
            return Err("a login does not belong in the URL: give username and password beside it".to_owned());
        }
        Ok(Self { text: text.to_owned(), login: None })
    }

    /// The same server, with a login.
    pub fn with_login(self, login: Login) -> Self {
        Self { login: Some(Arc::new(login)), ..self }
    }
}

// === impl Link ===

impl Link {
    pub fn new(url: &Url) -> Self {
        Self { url: url.clone(), connection: None }
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
        self.connection = Some(connection);
        Ok(())
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
    let info = url.text.as_str().into_connection_info()?;
    let ConnectionAddr::Tcp(host, port) = info.addr() else {
        return Err(io::Error::from(io::ErrorKind::Unsupported).into());
    };
    let mut wire = Wire::connect(host, *port)?;
    if let Some(login) = &url.login {
        let mut command = ::redis::cmd("AUTH");
        login.username.iter().for_each(|username| _ = command.arg(username));
        ask::<()>(&mut wire, command.arg(login.password.expose()))?;
    }
    let database = info.redis_settings().db();
    if database != 0 {
        ask::<()>(&mut wire, ::redis::cmd("SELECT").arg(database))?;
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
