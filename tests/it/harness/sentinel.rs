//! A Redis master with two replicas, and three Sentinels that watch them, all of the test's own.

use super::eventually;
use super::redis::{Port, RedisServer};
use super::resp::ask;
use std::collections::HashMap;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The name under which the Sentinels know the master.
pub const MASTER: &str = "keys";
/// How long, in milliseconds, the master may be silent.
const DOWN_AFTER: u32 = 1000;

/// The servers and who watches them. Dropped: all are killed.
pub struct Watched {
    pub servers: Vec<RedisServer>,
    pub sentinels: Vec<Sentinel>,
}

/// A `redis-server --sentinel`. Dropped: killed.
pub struct Sentinel {
    port: Port,
    child: Child,
    _dir: TempDir,
}

// === impl Watched ===

impl Watched {
    /// Starts all, and waits until everybody knows everybody.
    pub fn start() -> Self {
        let master = RedisServer::start_with(&words(SETTINGS));
        let port = master.address().port();
        let replica = || {
            let server = RedisServer::start_with(&words(SETTINGS));
            server.command(&format!("REPLICAOF 127.0.0.1 {port}"));
            server
        };
        let servers = vec![master, replica(), replica()];
        let login = format!("sentinel auth-user {MASTER} watcher\nsentinel auth-pass {MASTER} watching\n");
        let sentinels = (0..3).map(|_| Sentinel::start(port, &login)).collect();
        let watched = Self { servers, sentinels };
        watched.wait_until_whole();
        watched
    }

    /// Both replicas have what the master has, and every Sentinel knows of all.
    pub fn wait_until_whole(&self) {
        let knows_all = |sentinel: &Sentinel| {
            let text = sentinel.ask("INFO sentinel").concat();
            text.contains("status=ok") && text.contains("slaves=2,sentinels=3")
        };
        eventually("the Sentinels know each other", || self.sentinels.iter().all(knows_all).then_some(()));
        let follows = |server: &&RedisServer| {
            let text = ask(server.address().port(), "INFO replication").concat();
            text.contains("role:slave") && text.contains("master_link_status:up")
        };
        eventually("two replicas follow", || (self.servers.iter().filter(follows).count() == 2).then_some(()));
    }

    /// What stands in `[store] url`.
    pub fn url(&self) -> String {
        url(self.sentinels.iter().map(|sentinel| sentinel.port.number()))
    }

    /// The port that two Sentinels name.
    pub fn named(&self) -> Option<u16> {
        let mut votes = HashMap::new();
        for sentinel in &self.sentinels {
            if let Some(port) = sentinel.names() {
                *votes.entry(port).or_insert(0) += 1;
            }
        }
        votes.into_iter().find(|(_, count)| *count >= 2).map(|(port, _)| port)
    }

    /// Which server the Sentinels name.
    pub fn master(&self) -> usize {
        let port = eventually("the Sentinels name a master", || self.named());
        self.servers.iter().position(|server| server.address().port() == port).unwrap()
    }

    /// Waits until another one than `old` is named and is a master; which.
    pub fn successor_of(&self, old: usize) -> usize {
        eventually("there is another master", || {
            let new = self.master();
            let is_master =
                || ask(self.servers[new].address().port(), "ROLE").first().is_some_and(|role| role == "master");
            (new != old && is_master()).then_some(new)
        })
    }

    /// A server that was the master, and runs again, becomes a replica without waiting until a Sentinel sees to it.
    pub fn demote(&self, old: usize, new: usize) {
        self.servers[old].command(&format!("REPLICAOF 127.0.0.1 {}", self.servers[new].address().port()));
        self.wait_until_whole();
    }

    /// From now on this server is unreachable for all but those who log in as `edge`.
    pub fn cut_off(&self, server: usize) {
        // On one connection: the next one would not be let in.
        let commands = [
            "ACL SETUSER watcher off",
            "ACL SETUSER follower off",
            "ACL SETUSER default off",
            "CLIENT KILL USER watcher",
            "CLIENT KILL USER follower",
            "CLIENT KILL USER default",
        ];
        assert_eq!(self.servers[server].command(&commands.join("\r\n")), "+OK");
    }
}

/// Sentinels, replicas and gateways may log in under names of their own, by which they can be told apart.
const SETTINGS: &str = "--user watcher on >watching ~* &* +@all --user follower on >following ~* &* +@all \
                        --user edge on >edges ~* &* +@all \
                        --masteruser follower --masterauth following --repl-diskless-sync-delay 0";

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// A store's URL for Sentinels on these ports.
pub fn url(ports: impl Iterator<Item = u16>) -> String {
    let hosts: Vec<_> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis+sentinel://{}/{MASTER}", hosts.join(","))
}

// === impl Sentinel ===

impl Sentinel {
    /// Watches the master on a port; more settings are lines of its own.
    pub fn start(master: u16, more: &str) -> Self {
        let (port, dir) = (Port::reserve(), tempfile::tempdir().unwrap());
        let file = dir.path().join("sentinel.conf");
        let settings = format!(
            "port {}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {MASTER} {DOWN_AFTER}\nsentinel failover-timeout {MASTER} 4000\n\
             {more}",
            port.number(),
            dir.path().display()
        );
        std::fs::write(&file, settings).unwrap();
        let mut command = Command::new("redis-server");
        command.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("install redis-server: apt-get install redis-server");
        let sentinel = Self { port, child, _dir: dir };
        eventually("a Sentinel answers", || {
            let answer = sentinel.ask("PING").concat();
            (answer == "PONG" || answer.starts_with("-NOAUTH")).then_some(())
        });
        sentinel
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn ask(&self, words: &str) -> Vec<String> {
        ask(self.port(), words)
    }

    /// Whom it takes for the master.
    pub fn names(&self) -> Option<u16> {
        self.ask(&format!("SENTINEL get-master-addr-by-name {MASTER}")).get(1)?.parse().ok()
    }

    /// Ends it as `kill -9` does.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
