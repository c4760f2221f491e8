//! A key store that is not the one that the gateways followed: what they do, what they say, and what a person can do about it
//! (protocols I4, I5; the manual's page `store_loss`).

mod commands;
mod file;
mod manual;
mod stores;

use crate::harness::redis::RedisServer;
use crate::harness::{Gateway, Key, Upstream, eventually};
use serde_json::Value;
use std::path::PathBuf;

/// A gateway on a Redis of its own, with a key that is good and one that was revoked, which it has confirmed.
struct Fleet {
    gateway: Gateway,
    redis: RedisServer,
    upstream: Upstream,
    good: Key,
    revoked: Key,
    copies: tempfile::TempDir,
}

/// What a command said: its exit code, and its words.
type Said = (Option<i32>, String);

// === impl Fleet ===

impl Fleet {
    fn start() -> Self {
        Self::start_with("")
    }

    /// `more` is added to gateway.toml.
    fn start_with(more: &str) -> Self {
        let (upstream, redis) = (Upstream::named("erp"), RedisServer::start());
        let toml = format!("[store]\nurl = \"{}\"\n{more}", redis.url());
        let gateway = Gateway::builder().live(&upstream).workers(1).toml(&toml).start();
        let (good, revoked) = (gateway.key(&["orders:read"]), gateway.key(&["orders:read"]));
        let (code, words) = said(&gateway, &["keys", "revoke", &revoked.id, "--yes"]);
        assert!(code == Some(0) && words.starts_with("revoked on 1/1 gateways in "), "{words}");
        Self { gateway, redis, upstream, good, revoked, copies: tempfile::tempdir().unwrap() }
    }

    /// Another gateway of the same fleet, without a snapshot.
    fn joining(&self, id: &'static str) -> Gateway {
        let toml = format!("[store]\nurl = \"{}\"", self.redis.url());
        Gateway::builder().live(&self.upstream).workers(1).toml(&toml).joining(id).start()
    }

    fn run(&self, args: &[&str]) -> Said {
        said(&self.gateway, args)
    }

    fn answers(&self) -> [u16; 2] {
        [status(&self.gateway, &self.good), status(&self.gateway, &self.revoked)]
    }

    /// Copies the server's files, as they are now.
    fn copy_as(&self, name: &str) {
        run("cp", &["-r".as_ref(), self.redis.dir(), &self.copied(name)]);
    }

    fn copied(&self, name: &str) -> PathBuf {
        self.copies.path().join(name)
    }

    /// The server starts again with these files; with none without a name.
    fn put_back(&mut self, copy: Option<PathBuf>) {
        self.redis.kill();
        run("rm", &["-rf".as_ref(), &self.redis.dir().join("appendonlydir")]);
        if let Some(copy) = copy {
            run("cp", &["-r".as_ref(), &copy.join("appendonlydir"), self.redis.dir()]);
        }
        self.redis.restart();
        assert_eq!(self.redis.command("PING"), "+PONG");
    }

    /// The state that `keygate store status` tells of each gateway, and its exit code.
    fn states(&self) -> (Option<i32>, Vec<String>) {
        let output = self.gateway.run(&["store", "status", "--output", "json"]);
        let members: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let state = |member: &Value| member["state"].as_str().unwrap().to_owned();
        (output.status.code(), members.as_array().into_iter().flatten().map(state).collect())
    }

    fn becomes(&self, code: i32, states: &[&str]) {
        let wanted = (Some(code), states.iter().map(|&state| state.to_owned()).collect::<Vec<_>>());
        eventually(&format!("{states:?}; it is {:?}", self.states()), || (self.states() == wanted).then_some(()));
    }

    /// The same, though another fleet's gateway is listed too that left its row in the files: it is forgotten first.
    fn becomes_but(&self, other: &Gateway, states: &[&str]) {
        let row = |gateway: &Gateway| gateway.json(&["fleet", "list", "--output", "json"]);
        for member in row(other).as_array().unwrap() {
            said(&self.gateway, &["fleet", "forget", member["instance"].as_str().unwrap()]);
        }
        self.becomes(0, states);
    }

    fn follows(&self) {
        self.becomes(0, &["following"]);
    }

    /// It has noticed that the store has lost changes, and has put that right.
    fn recovers(&self) {
        eventually("it is told", || (self.gateway.metric("keygate_store_forks_total") >= 1.0).then_some(()));
        let is_said = || self.gateway.log_text().contains("the key store has lost changes");
        eventually("the log says so", || is_said().then_some(()));
        self.follows();
        eventually("it answers as before", || (self.answers() == [200, 401]).then_some(()));
    }

    /// Held, it goes on, and says so.
    fn is_held(&self) {
        eventually("it is held", || {
            let (code, states) = self.states();
            (code == Some(1) && states.iter().any(|state| state == "held: another fleet")).then_some(())
        });
        assert_eq!(self.answers(), [200, 401]);
        let words = "the key store is not the one that was followed";
        eventually("it is told", || self.gateway.log_text().contains(words).then_some(()));
        assert!(self.gateway.metric("keygate_store_foreign_total") >= 1.0);
        eventually("its report says so", || {
            self.gateway.admin_page("/readyz?verbose").text().contains("held").then_some(())
        });
    }

    fn head(&self) -> String {
        let redis = &self.redis;
        ["head", "fleet_id"].map(|name| redis.value(&format!("GET {{keygate}}:{name}")).unwrap_or_default()).join(" ")
    }
}

fn said(gateway: &Gateway, args: &[&str]) -> Said {
    let output = gateway.run(args);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

fn status(gateway: &Gateway, key: &Key) -> u16 {
    gateway.client().request("GET", &gateway.path("orders"), &[&key.bearer()]).status
}

fn run(program: &str, args: &[&std::path::Path]) {
    assert!(std::process::Command::new(program).args(args).status().unwrap().success());
}
