//! One connection to one server: logged in, and in the right database.

use super::url::{Address, Login, Url};
use super::wire::{PATIENCE, Wire};
use ::redis::{Cmd, FromRedisValue, RedisError, Value, from_redis_value};

/// A connection, and to whom.
pub struct Connection {
    wire: Wire,
    pub address: Address,
}

/// What a server says it is (`ROLE`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// With so many replicas that are connected to it.
    Master { replicas: usize },
    /// Its own word: a replica, or a Sentinel.
    Other(String),
}

// === impl Connection ===

impl Connection {
    /// Connects, logs in, and chooses the database.
    ///
    /// # Errors
    /// Why not, in words for who runs the gateway.
    pub fn open(url: &Url, address: &Address) -> Result<Self, RedisError> {
        let mut wire = Wire::connect(address, url.tls.as_ref(), PATIENCE)?;
        if let Some(login) = &url.login {
            log_in(&mut wire, login)?;
        }
        let mut connection = Self { wire, address: address.clone() };
        if url.database != 0 {
            connection.ask::<()>(::redis::cmd("SELECT").arg(url.database))?;
        }
        Ok(connection)
    }

    /// Sends a command and reads its answer. After an error that is not the server's own the connection is of no more use.
    pub fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        ask(&mut self.wire, command)
    }

    /// What this server is now.
    pub fn role(&mut self) -> Result<Role, RedisError> {
        let answer: Vec<Value> = self.ask(&::redis::cmd("ROLE"))?;
        let role = answer.first().map_or(Ok(String::new()), |word| from_redis_value(word.clone()))?;
        let replicas = match answer.get(2) {
            Some(Value::Array(replicas)) => replicas.len(),
            _ => 0,
        };
        Ok(if role == "master" { Role::Master { replicas } } else { Role::Other(role) })
    }
}

pub fn log_in(wire: &mut Wire, login: &Login) -> Result<(), RedisError> {
    let mut command = ::redis::cmd("AUTH");
    login.username.iter().for_each(|username| _ = command.arg(username));
    ask(wire, command.arg(login.password.expose()))
}

pub fn ask<T: FromRedisValue>(wire: &mut Wire, command: &Cmd) -> Result<T, RedisError> {
    let answer = wire.ask(&command.get_packed_command())?.extract_error()?;
    Ok(from_redis_value(answer)?)
}
