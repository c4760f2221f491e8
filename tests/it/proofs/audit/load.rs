//! Clients of every kind, which write down what they were answered, until their gateway dies or the load ends.

use super::ledger::Ledger;
use crate::harness::Client;
use crate::harness::client::head;
use crate::harness::gateway::ENTITY;
use fastrand::Rng;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Clients with a good key, and requests that are held at the upstream.
const GOOD: u32 = 6;
const HELD: usize = 3;
/// The body of an upload, sent in parts.
const UPLOAD_BYTES: usize = 96 * 1024;
const UPLOAD_PARTS: usize = 6;

/// What the clients are to do.
pub struct Load<'a> {
    pub ledger: &'a Ledger,
    pub address: SocketAddr,
    /// The line that presents a key with `orders:read` and `orders:write`.
    pub bearer: &'a str,
    /// Requests a second of the clients with a good key; none for as many as there can be.
    pub rate: Option<u32>,
    pub clients: Clients,
    pub stop: AtomicBool,
}

/// Which clients there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Those that leave and are held as well, and strangers.
    All,
    /// All but strangers.
    Known,
    /// Those that ask one thing at a time and wait for the answer's end, which a refusal in the middle of an upload may not have.
    Patient,
}

/// What a client does again and again; none when its connection is of no use any more.
type Act<'a> = fn(&Load<'a>, &mut Rng, &mut Client) -> Option<()>;

// === impl Load ===

impl<'a> Load<'a> {
    /// Runs the clients until the load ends, while `meanwhile` runs; then ends it.
    pub fn while_running(&self, random: &mut Rng, meanwhile: impl FnOnce()) {
        let mut acts: Vec<Act<'a>> = vec![Self::be_refused, Self::download];
        acts.extend([Self::work as Act<'a>; GOOD as usize]);
        if self.clients != Clients::Patient {
            acts.push(Self::upload);
            acts.extend([Self::be_held as Act<'a>; HELD]);
        }
        if self.clients == Clients::All {
            acts.push(Self::be_strange);
        }
        std::thread::scope(|scope| {
            for act in acts {
                let random = random.fork();
                scope.spawn(move || self.until_stopped(random, act));
            }
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
            // Also when it fails: otherwise nobody would ever hear of it.
            self.stop.store(true, Ordering::SeqCst);
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Repeats `act` over one connection after the other.
    fn until_stopped(&self, mut random: Rng, act: Act<'a>) {
        while !self.is_over() {
            let Some(mut client) = Client::try_connect(self.address) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            client.stream().set_read_timeout(Some(Duration::from_millis(2500))).unwrap();
            while !self.is_over() && act(self, &mut random, &mut client).is_some() {}
        }
    }

    fn head(&self, method: &str, rest: &str, lines: &[&str]) -> String {
        head(method, &format!("/v1/entities/{ENTITY}/{rest}"), &[lines, &[self.bearer]].concat())
    }

    fn read(&self, client: &mut Client, method: &str) -> Option<()> {
        let Some(answer) = client.try_read(method).filter(|answer| answer.complete) else {
            self.ledger.note_abort();
            return None;
        };
        self.ledger.note(&answer);
        (answer.header("connection") != Some("close")).then_some(())
    }

    /// Some requests, with answers of every kind of end.
    fn work(&self, random: &mut Rng, client: &mut Client) -> Option<()> {
        let started = Instant::now();
        let count = if self.clients == Clients::Patient { 1 } else { random.u32(1..4) };
        let methods: Vec<&str> = (0..count).map(|_| random.choice(["GET", "HEAD", "DELETE"]).unwrap()).collect();
        client.send(methods.iter().map(|method| self.head(method, "orders/1", &[])).collect::<String>());
        methods.iter().try_for_each(|method| self.read(client, method))?;
        if let Some(rate) = self.rate {
            let due = started + Duration::from_secs(1) * GOOD * methods.len() as u32 / rate;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Some(())
    }

    /// A key without the scope.
    fn be_refused(&self, _: &mut Rng, client: &mut Client) -> Option<()> {
        client.send(self.head("GET", "products/1", &[]));
        std::thread::sleep(Duration::from_millis(1));
        self.read(client, "GET")
    }

    /// A long answer, read to its end or left in its middle.
    fn download(&self, random: &mut Rng, client: &mut Client) -> Option<()> {
        client.send(self.head("GET", "orders/long", &[]));
        if self.clients == Clients::Patient || random.u8(..4) > 0 {
            return self.read(client, "GET");
        }
        std::thread::sleep(Duration::from_micros(random.u64(..6000)));
        None
    }

    fn upload(&self, _: &mut Rng, client: &mut Client) -> Option<()> {
        client.send(self.head("POST", "orders/1", &[&format!("Content-Length: {UPLOAD_BYTES}")]));
        for _ in 0..UPLOAD_PARTS {
            client.send([b'x'; UPLOAD_BYTES / UPLOAD_PARTS]);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.read(client, "POST")
    }

    /// A request without a key.
    fn be_strange(&self, _: &mut Rng, client: &mut Client) -> Option<()> {
        std::thread::sleep(Duration::from_millis(1));
        self.ledger.stranger_sends();
        let answer = client.send(head("GET", &format!("/v1/entities/{ENTITY}/orders"), &[])).try_read("GET")?;
        (answer.complete && answer.status == 401).then(|| self.ledger.stranger_is_answered())
    }

    /// A request that the upstream never answers.
    fn be_held(&self, _: &mut Rng, client: &mut Client) -> Option<()> {
        client.send(self.head("GET", "orders/held", &[]));
        self.read(client, "GET")
    }
}
