//! A Redis cluster of the test's own: three masters, and a replica of the one that has the keys.

use super::eventually;
use super::redis::{Port, RedisServer};
use super::resp::ask;
use std::time::Duration;

/// Nodes; the last one was started as the replica of the keys' owner. Dropped: all are killed.
pub struct Cluster {
    pub nodes: Vec<RedisServer>,
    /// For the nodes' own talk.
    _buses: Vec<Port>,
    /// Where nobody listens.
    absent: Port,
    /// Neither the keys' first owner nor its replica.
    others: Vec<usize>,
    pub slot: u16,
}

const MASTERS: usize = 3;
const SLOTS: usize = 16384;

// === impl Cluster ===

impl Cluster {
    pub fn start() -> Self {
        let buses: Vec<_> = (0..=MASTERS).map(|_| Port::reserve()).collect();
        let nodes: Vec<_> = buses.iter().map(start_node).collect();
        for (node, number) in nodes[..MASTERS].iter().zip(0..) {
            let [from, to] = [number, number + 1].map(|number| number * SLOTS / MASTERS);
            assert_eq!(node.command(&format!("CLUSTER ADDSLOTSRANGE {from} {}", to - 1)), "+OK");
        }
        for (node, bus) in nodes.iter().zip(&buses).skip(1) {
            let (port, bus) = (node.address().port(), bus.number());
            assert_eq!(nodes[0].command(&format!("CLUSTER MEET 127.0.0.1 {port} {bus}")), "+OK");
        }
        let slot = nodes[0].command("CLUSTER KEYSLOT keygate")[1..].parse().unwrap();
        let mut cluster = Self { nodes, _buses: buses, absent: Port::reserve(), others: Vec::new(), slot };
        let is_whole = |node| cluster.info(node).contains("cluster_state:ok\r\ncluster_slots_assigned:16384");
        let know_all =
            || (0..=MASTERS).all(|node| is_whole(node) && cluster.info(node).contains("cluster_known_nodes:4"));
        eventually("the nodes know each other", || know_all().then_some(()));
        let owner = cluster.owner();
        cluster.others.extend((0..MASTERS).filter(|node| *node != owner));
        cluster.follow(MASTERS, owner);
        cluster
    }

    /// What stands in `[store] url`: a node that is not there, and those that have no keys.
    pub fn url(&self) -> String {
        let nodes: Vec<_> = self.others.iter().map(|node| self.nodes[*node].address().to_string()).collect();
        format!("redis+cluster://127.0.0.1:{},{}", self.absent.number(), nodes.join(","))
    }

    /// Makes one a replica of another, and waits until it has everything.
    pub fn follow(&self, replica: usize, master: usize) {
        let id = self.id(master);
        eventually("the master is known there", || {
            (self.nodes[replica].command(&format!("CLUSTER REPLICATE {id}")) == "+OK").then_some(())
        });
        self.wait_until_followed(replica);
    }

    /// A node that was started again follows whoever has taken its place.
    pub fn wait_until_followed(&self, replica: usize) {
        let follows = || {
            let text = self.ask(replica, "INFO replication").concat();
            text.contains("role:slave") && text.contains("master_link_status:up")
        };
        eventually("the replica follows", || follows().then_some(()));
        eventually("the cluster is whole", || self.info(replica).contains("cluster_state:ok").then_some(()));
    }

    /// Which node takes the keys for its own.
    pub fn owner(&self) -> usize {
        eventually("a node owns the keys", || self.owner_but(None))
    }

    /// Waits until another node than `old` owns the keys; which.
    pub fn successor_of(&self, old: usize) -> usize {
        eventually("another node owns the keys", || self.owner_but(Some(old)))
    }

    fn owner_but(&self, not: Option<usize>) -> Option<usize> {
        let owns = |node: &usize| !self.ask(*node, "GET {keygate}:none").concat().starts_with('-');
        (0..self.nodes.len()).filter(|node| Some(*node) != not).find(owns)
    }

    /// Moves the keys' slot, a few keys at a time with `rest` in between.
    pub fn move_slot(&self, from: usize, to: usize, rest: Duration) {
        let (slot, source, target) = (self.slot, self.id(from), self.id(to));
        let done = |node: usize, words: String| assert_eq!(self.nodes[node].command(&words), "+OK", "{words}");
        done(to, format!("CLUSTER SETSLOT {slot} IMPORTING {source}"));
        done(from, format!("CLUSTER SETSLOT {slot} MIGRATING {target}"));
        std::thread::sleep(rest);
        loop {
            let keys = self.ask(from, &format!("CLUSTER GETKEYSINSLOT {slot} 3"));
            if keys.is_empty() {
                break;
            }
            let port = self.nodes[to].address().port();
            self.ask(from, &format!("MIGRATE 127.0.0.1 {port} \"\" 0 5000 KEYS {}", keys.join(" ")));
            std::thread::sleep(rest);
        }
        for node in [to, from].into_iter().chain((0..MASTERS).filter(|node| ![to, from].contains(node))) {
            // A replica is told by its master.
            self.ask(node, &format!("CLUSTER SETSLOT {slot} NODE {target}"));
        }
    }

    pub fn ask(&self, node: usize, words: &str) -> Vec<String> {
        ask(self.nodes[node].address().port(), words)
    }

    fn info(&self, node: usize) -> String {
        self.ask(node, "CLUSTER INFO").concat()
    }

    fn id(&self, node: usize) -> String {
        self.ask(node, "CLUSTER MYID").concat()
    }
}

fn start_node(bus: &Port) -> RedisServer {
    let bus = bus.number().to_string();
    RedisServer::start_with(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        "1000",
        "--cluster-replica-validity-factor",
        "0",
        "--repl-diskless-sync-delay",
        "0",
    ])
}
