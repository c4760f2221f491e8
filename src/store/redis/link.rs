//! The connection: made when needed, dropped on the first failure, bounded in time.

use super::{REPLY_BYTES, Record, StoreError, codec, schema};
use ::redis::io::tcp::TcpSettings;
use ::redis::{Client, Cmd, Connection, FromRedisValue, IntoConnectionInfo, RedisError};
use socket2::TcpKeepalive;
use std::fmt;
use std::time::Duration;

/// How long connecting, and each answer, may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a connection may be idle before the other end is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
const PAGE: &str = include_str!("page.lua");

/// `redis://[user:password@]host[:port][/database]`, known to be well-formed. Debug does not show the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(String);

/// One connection, or none yet.
pub struct Link {
    url: Url,
    connection: Option<Connection>,
}

// === impl Url ===

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// What is wrong with it, without its text: that may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with("redis://") {
            return Err("this version connects to Redis in plain text: write \"redis://host:6379\"".to_owned());
        }
        Client::open(text).map_err(|_| "write a Redis URL like \"redis://host:6379/0\"".to_owned())?;
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Url(redis://***)")
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
        let answer = command.query(connection);
        if answer.is_err() {
            // What is still to come on it would be taken for the next command's answer.
            self.connection = None;
        }
        answer
    }

    fn connect(&mut self) -> Result<(), StoreError> {
        let mut connection = open(&self.url).map_err(|error| unavailable(&error))?;
        let stored: Option<u32> = ::redis::cmd("GET")
            .arg(schema::name("schema"))
            .query(&mut connection)
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

fn open(url: &Url) -> Result<Connection, RedisError> {
    let info = url.0.as_str().into_connection_info()?;
    // Whoever went away without a word is noticed although nothing is asked, and its socket is given back.
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(TcpKeepalive::new().with_time(KEEPALIVE));
    let connection = Client::open(info.set_tcp_settings(tcp))?.get_connection_with_timeout(PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
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
