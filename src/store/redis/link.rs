//! The connection to whoever is the master: made when needed, dropped on the first failure, bounded in time.

use super::cluster::{self, Nodes, Redirection};
use super::connection::{Connection, Role};
use super::sentinel::Sentinels;
use super::url::{Address, Topology, Url};
use super::{REPLY_BYTES, Record, StoreError, codec, schema};
use crate::clock::Instant;
use crate::store::Copies;
use ::redis::{Cmd, FromRedisValue, RedisError};
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

const PAGE: &str = include_str!("page.lua");
/// How long a change may take to reach a replica until it is said that it has not.
const REPLICATION: Duration = Duration::from_millis(500);

/// One connection, or none yet.
pub struct Link {
    url: Url,
    master: Master,
    connection: Option<Connection>,
    /// Whom the latest connection was to.
    latest: Option<Address>,
    connects: u64,
    /// The run of the server that was last seen, and since when.
    seen: Option<(String, Instant)>,
}

/// Who is connected to.
enum Master {
    Given(Vec<Address>),
    Named(Sentinels),
    Owner(Nodes),
}

// === impl Link ===

impl Link {
    pub fn new(url: &Url) -> Self {
        let servers = &url.servers;
        let master = match &url.topology {
            Topology::Single => Master::Given(servers.clone()),
            Topology::Sentinel { master, login } => {
                Master::Named(Sentinels::new(servers, master, login.clone(), url.tls.clone()))
            }
            Topology::Cluster => Master::Owner(Nodes::new(servers)),
        };
        Self { url: url.clone(), master, connection: None, latest: None, connects: 0, seen: None }
    }

    /// Sends a command that may be repeated, over a new connection if there is none. One that broke since its last use is
    /// replaced once.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; [`StoreError::Refused`] when the data are a newer gateway's.
    pub fn call<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, StoreError> {
        self.leave_deposed()?;
        let was_open = self.connection.is_some();
        let mut answer = self.once(command)?;
        let broke = |error: &RedisError| error.is_io_error() && !error.is_timeout();
        if was_open && answer.as_ref().is_err_and(broke) {
            answer = self.once(command)?;
        }
        for _ in 0..cluster::REDIRECTIONS_MAX {
            let Some(redirection) = answer.as_ref().err().and_then(|error| self.redirection(error)) else { break };
            match redirection {
                Redirection::Moved(_) => answer = self.once(command)?,
                Redirection::Ask(address) if cluster::names_its_keys(command) => {
                    answer = self.ask_there(&address, command);
                }
                Redirection::Ask(_) => break,
            }
        }
        answer.map_err(|error| self.unavailable(&error))
    }

    /// Sends a command once; the outer error is that there is nobody to send it to.
    fn once<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<Result<T, RedisError>, StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let answer = connection.ask(command);
        // After any other error what is still to come would be taken for the next command's answer, or this is not the master
        // any more. A slot's owner remains that until it has given all of it away.
        if answer.as_ref().err().is_none_or(|error| self.is_owner() && cluster::is_being_moved(error)) {
            self.connection = Some(connection);
        } else {
            self.doubt();
        }
        Ok(answer)
    }

    const fn is_owner(&self) -> bool {
        matches!(self.master, Master::Owner(_))
    }

    /// A master that the Sentinels do not name any more is not asked: what it says may be what nobody else knows.
    fn leave_deposed(&mut self) -> Result<(), StoreError> {
        let Master::Named(sentinels) = &mut self.master else { return Ok(()) };
        let named = sentinels.master();
        self.connection = self.connection.take().filter(|connection| named.as_ref() == Ok(&connection.address));
        named.map(drop).map_err(|why| no_master(&why))
    }

    fn doubt(&mut self) {
        if let Master::Named(sentinels) = &mut self.master {
            sentinels.doubt();
        }
    }

    fn redirection(&mut self, error: &RedisError) -> Option<Redirection> {
        let Master::Owner(nodes) = &mut self.master else { return None };
        let redirection = Redirection::of(self.latest.as_ref()?, error)?;
        if let Redirection::Moved(address) = &redirection {
            nodes.set_owner(address.clone());
        }
        Some(redirection)
    }

    fn connect(&mut self) -> Result<Connection, StoreError> {
        let candidates = match &mut self.master {
            Master::Given(servers) => servers.clone(),
            Master::Named(sentinels) => vec![sentinels.master().map_err(|why| no_master(&why))?],
            Master::Owner(nodes) => nodes.candidates(),
        };
        let found = self.open_first(candidates.into()).inspect_err(|_| self.doubt());
        let (connection, stored) = found.map_err(|why| no_master(&why))?;
        if let Some(stored) = stored.filter(|stored| *stored != schema::VERSION) {
            return Err(newer(&stored.to_string()));
        }
        if let Master::Owner(nodes) = &mut self.master {
            nodes.set_owner(connection.address.clone());
        }
        (self.latest, self.connects) = (Some(connection.address.clone()), self.connects + 1);
        Ok(connection)
    }

    /// The first of these servers that has our keys, or whom it names in its place; and the layout that is stored there.
    fn open_first(&self, mut candidates: VecDeque<Address>) -> Result<(Connection, Option<u32>), String> {
        let mut failed = Vec::<(Address, String)>::new();
        for _ in 0..candidates.len() + cluster::REDIRECTIONS_MAX {
            let Some(address) = candidates.pop_front() else { break };
            if failed.iter().any(|(one, _)| *one == address) {
                continue;
            }
            match self.open(&address) {
                Ok(found) => return Ok(found),
                Err(error) => {
                    if let (Some(Redirection::Moved(owner)), true) =
                        (Redirection::of(&address, &error), self.is_owner())
                    {
                        candidates.push_front(owner);
                    }
                    failed.push((address, error.to_string()));
                }
            }
        }
        Err(match (&self.url.topology, &failed[..]) {
            (Topology::Single, [(_, why)]) => why.clone(),
            _ => failed.iter().map(|(address, why)| format!("{address}: {why}")).collect::<Vec<_>>().join("; "),
        })
    }

    fn open(&self, address: &Address) -> Result<(Connection, Option<u32>), RedisError> {
        let mut connection = Connection::open(&self.url, address)?;
        if let Master::Named(_) = &self.master
            && let Role::Other(role) = connection.role()?
        {
            let why = format!("the Sentinels name it as the master, and it says '{role}': a failover is under way");
            return Err(std::io::Error::other(why).into());
        }
        let command = ::redis::cmd("GET").arg(schema::name("schema")).clone();
        let stored = match connection.ask(&command) {
            Err(error) if self.is_owner() => match Redirection::of(address, &error) {
                Some(Redirection::Ask(there)) => self.ask_there(&there, &command)?,
                Some(Redirection::Moved(_)) | None => return Err(error),
            },
            answer => answer?,
        };
        Ok((connection, stored))
    }

    /// Asks a node to which a slot is being moved.
    fn ask_there<T: FromRedisValue>(&self, address: &Address, command: &Cmd) -> Result<T, RedisError> {
        let mut connection = Connection::open(&self.url, address)?;
        connection.ask::<()>(&::redis::cmd("ASKING"))?;
        connection.ask(command)
    }

    /// How many replicas hold what was written last over this connection, waiting a little for one of them; none where nobody
    /// would take the master's place, or it cannot be told.
    pub fn copies(&mut self) -> Option<Copies> {
        if let Master::Given(_) = self.master {
            return None;
        }
        let connection = self.connection.as_mut()?;
        let count = |connection: &mut Connection| {
            let Role::Master { replicas } = connection.role()? else { return Ok(None) };
            if replicas == 0 {
                return Ok(Some(Copies { held: 0, replicas: 0 }));
            }
            let mut command = ::redis::cmd("WAIT");
            let held = connection.ask(command.arg(1).arg(REPLICATION.as_millis() as u64))?;
            Ok(Some(Copies { held, replicas: replicas as u64 }))
        };
        let counted: Result<_, RedisError> = count(connection);
        if let Err(error) = &counted {
            tracing::warn!(%error, "it is not known whether a replica holds the change");
            self.connection = None;
        }
        counted.ok().flatten()
    }

    fn unavailable(&self, error: &RedisError) -> StoreError {
        let at = match (&self.master, &self.latest) {
            (Master::Named(_) | Master::Owner(_), Some(address)) => format!("{address}: "),
            (Master::Given(_), _) | (_, None) => String::new(),
        };
        let hint = match self.is_owner() && cluster::is_being_moved(error) {
            true => "; the keys are being moved to another node of the cluster: repeat the command when that is done",
            false => "",
        };
        StoreError::Unavailable(format!("redis: {at}{error}{hint}"))
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

    /// Records in the order of an index, and the log's head as it is stored: `range` is `lex` or `score`, and the lower bound.
    pub fn page(
        &mut self,
        index: &str,
        kind: &str,
        range: (&str, &str),
        limit: usize,
    ) -> Result<(String, Vec<Record>), StoreError> {
        let mut command = script(PAGE, &[index, "head"]);
        command.arg(schema::PREFIX).arg(range.0).arg(range.1).arg(limit).arg(REPLY_BYTES).arg(kind);
        let (head, texts): (String, Vec<String>) = self.call(&command)?;
        Ok((head, texts.iter().map(|text| codec::decode(text)).collect::<Result<_, _>>()?))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("url", &self.url).field("connected", &self.connection.is_some()).finish()
    }
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

/// Nobody is there to be asked.
fn no_master(why: &str) -> StoreError {
    StoreError::Unavailable(format!("redis: {why}"))
}
