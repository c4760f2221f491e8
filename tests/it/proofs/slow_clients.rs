//! Clients that stand still, a thousand at a time: all are sent away by their deadlines and counted exactly, and whoever behaves
//! notices nothing.

use super::process::{pss, watch_peak};
use crate::harness::http2::{self, END_STREAM, Wire, kind};
use crate::harness::{Authority, Gateway, Key, Reply, Upstream};
use std::cell::Cell;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How much later than at its deadline a connection may be seen to be counted.
const SLACK: Duration = Duration::from_secs(8);
/// What a connection that stands still may hold, and what all of them may beside it.
const BYTES_A_CONNECTION: u64 = 128 * 1024;
const GROWTH_MAX: u64 = 16 * 1024 * 1024;
/// How many connections an attack opens in a second.
const RATE: usize = 250;
/// How much of it may be taken for a client that does not read, by the library and the kernel.
const TAKEN_MAX: u64 = 1 << 20;
/// How often each of those who behave asks.
const PACE: Duration = Duration::from_millis(5);

const ROUTES: &str = r#"
upstream_connect = "10s"
upstream_requests_max = 4096

[[routes]]
path = "/v1/open/**"
upstream = "slow"
public = true
"#;

const ENDED: &str = "keygate_connections_ended_total";

/// How large a proof is.
pub struct Size {
    pub connections: usize,
    /// Of everything that can stand still: until then all connections are open at once.
    pub deadline: Duration,
    /// How long those who behave are watched before anybody attacks.
    pub calm: Duration,
}

struct Attack {
    name: &'static str,
    /// What counts one connection of it.
    counter: &'static str,
    begin: Begin,
}

/// A program that has a machine of its own elsewhere: here it gets what the others leave. Dropped: ended.
struct Process(Child);

enum Begin {
    /// `slowhttptest` with these options, at this path.
    Tool(&'static [&'static str], &'static str),
    /// The same, but it never ends by itself: whoever does not read never learns that the connection has ended.
    BlindTool(&'static [&'static str], &'static str),
    /// Connects, sends this, and no more.
    Sent(fn(&mut Wire)),
    /// The same at the listener with TLS.
    SentToTls(fn(&mut Wire)),
}

/// Where a connection is counted that ended for this cause.
macro_rules! ended {
    ($cause:literal) => {
        concat!("keygate_connections_ended_total{cause=\"", $cause, "\"}")
    };
}

/// The beginning of a TLS client's first words.
const HALF_A_HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];

const ATTACKS: [Attack; 13] = [
    Attack {
        name: "slow heads (-H)",
        counter: ended!("head_timeout"),
        begin: Begin::Tool(&["-H", "-i", "1"], "/v1/open/a"),
    },
    Attack {
        name: "slow bodies (-B)",
        counter: r#"keygate_requests_total{route="/v1/open/**",decision="allow",reason="request_timeout"}"#,
        begin: Begin::Tool(&["-B", "-i", "10", "-s", "8192"], "/v1/open/a"),
    },
    Attack {
        name: "slow bodies (-B) of strangers",
        counter: r#"keygate_requests_total{route="",decision="deny",reason="missing_api_key"}"#,
        begin: Begin::Tool(&["-B", "-i", "10", "-s", "8192"], "/v1/closed"),
    },
    Attack {
        name: "slow readers (-X)",
        counter: ended!("write_stall"),
        begin: Begin::BlindTool(&["-X", "-w", "10", "-y", "20", "-n", "10", "-z", "1"], "/v1/open/large"),
    },
    Attack {
        name: "ranges (-R) of strangers",
        counter: r#"keygate_requests_total{route="",decision="deny",reason="missing_api_key"}"#,
        begin: Begin::Tool(&["-R", "-a", "10", "-b", "1000", "-t", "HEAD"], "/v1/closed"),
    },
    Attack { name: "silence", counter: ended!("handshake_timeout"), begin: Begin::Sent(|_| {}) },
    Attack {
        name: "half a preface",
        counter: ended!("handshake_timeout"),
        begin: Begin::Sent(|wire| _ = wire.send(&http2::PREFACE[..12])),
    },
    Attack {
        name: "a preface alone",
        counter: ended!("head_timeout"),
        begin: Begin::Sent(|wire| _ = wire.send(http2::PREFACE)),
    },
    Attack {
        name: "a preface and settings",
        counter: ended!("head_timeout"),
        begin: Begin::Sent(|wire| _ = wire.send(&[http2::PREFACE, &http2::frame(kind::SETTINGS, 0, 0, &[])].concat())),
    },
    Attack {
        name: "half a head of HTTP/2",
        counter: ended!("head_timeout"),
        begin: Begin::Sent(|wire| {
            let begun = http2::head("GET", 1, "/v1/open/a", &[], END_STREAM);
            _ = wire.send(&[http2::PREFACE, &http2::frame(kind::SETTINGS, 0, 0, &[]), &begun].concat());
        }),
    },
    Attack { name: "silence before TLS", counter: ended!("handshake_timeout"), begin: Begin::SentToTls(|_| {}) },
    Attack {
        name: "half a hello of TLS",
        counter: ended!("handshake_timeout"),
        begin: Begin::SentToTls(|wire| _ = wire.send(&HALF_A_HELLO)),
    },
    Attack {
        name: "a shut window",
        counter: ended!("write_stall"),
        begin: Begin::Sent(|wire| {
            let shut = http2::frame(kind::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
            _ = wire.send(&[http2::PREFACE, &shut, &http2::get(1, "/v1/open/large", &[])].concat());
        }),
    },
];

/// What those who behave have met.
#[derive(Default)]
struct Behaved {
    latencies: Vec<Duration>,
    failed: Vec<String>,
}

pub fn prove(size: &Size) {
    let (upstream, mut slow) = (answering(), Process::upstream());
    let listen = "protocols = [\"h1\", \"h2\"]";
    let authority = Authority::new();
    let pair = authority.issue("server", "IP:127.0.0.1");
    let toml = size.limits() + ROUTES + &format!("[upstreams.slow]\nlive = [\"http://127.0.0.1:{}\"]\n", slow.port());
    let gateway = Gateway::builder().live(&upstream).listen(listen).toml(&toml).tls(&pair).start();
    let key = gateway.key(&["orders:read"]);
    let rest = || while_behaving(&gateway, &key, || std::thread::sleep(size.calm));
    // Watched as the attacks are, since that takes time as well.
    let ((), calm) = watch_peak(gateway.pid(), rest).1;
    let calm_p99 = calm.told("nobody attacks", None);
    let mut expected = std::collections::BTreeMap::new();
    for attack in &ATTACKS {
        let before = pss(gateway.pid());
        let counted = gateway.metric(attack.counter);
        let (peak, (took, behaved)) =
            watch_peak(gateway.pid(), || while_behaving(&gateway, &key, || attack.run(&gateway, size, counted)));
        behaved.told(attack.name, Some(calm_p99));
        let growth = peak.saturating_sub(before);
        println!(
            "  all {} gone after {:.1} s; {} KiB more memory",
            size.connections,
            took.as_secs_f64(),
            growth / 1024
        );
        let allowed = GROWTH_MAX + size.connections as u64 * BYTES_A_CONNECTION;
        assert!(growth < allowed, "{}: {growth} bytes more", attack.name);
        *expected.entry(attack.counter).or_insert(0.0) += size.connections as f64;
    }
    assert_counted_exactly(&gateway, &expected);
    let records = gateway.records();
    let stalled = records.iter().filter(|one| one["route"] == "/v1/open/**" && !one["reason"].is_null());
    let taken: Vec<_> = stalled.filter_map(|one| one["bytes_out"].as_u64()).collect();
    println!("at most {} KiB were taken for a client that does not read", taken.iter().max().unwrap() / 1024);
    assert!(taken.iter().all(|bytes| *bytes < TAKEN_MAX), "{taken:?}");
}

/// The upstream of those who behave.
fn answering() -> Upstream {
    Upstream::start(|_| {
        go_first();
        Reply::ok("live")
    })
}

/// The page and the journal tell of every connection once, and of no other.
fn assert_counted_exactly(gateway: &Gateway, expected: &std::collections::BTreeMap<&str, f64>) {
    // The tool asks now and then whether it is still answered: of strangers there are more.
    for (counter, count) in expected.iter().filter(|(counter, _)| !counter.contains("missing_api_key")) {
        assert_eq!(gateway.metric(counter), *count, "{counter}");
    }
    let page = gateway.admin_page("/metrics").text();
    let ended: Vec<_> = page.lines().filter(|line| line.starts_with(ENDED)).collect();
    assert_eq!(ended.len(), expected.keys().filter(|counter| counter.starts_with(ENDED)).count(), "{ended:#?}");
    crate::harness::eventually("the journal tells the same", || {
        let mut told = std::collections::BTreeMap::new();
        for record in gateway.records().iter().filter(|record| record["kind"] == "connection") {
            for (cause, count) in record["counts"].as_object().unwrap() {
                *told.entry(format!("{ENDED}{{cause=\"{cause}\"}}")).or_insert(0.0) += count.as_f64().unwrap();
            }
        }
        let counted = expected.iter().filter(|(counter, _)| counter.starts_with(ENDED));
        counted.map(|(counter, count)| (counter.to_string(), *count)).eq(told).then_some(())
    });
}

// === impl Size ===

impl Size {
    fn limits(&self) -> String {
        let names = ["head_timeout", "handshake_timeout", "body_idle", "write_stall"];
        let deadline = self.deadline.as_secs();
        let begun = format!("[limits]\nidle_timeout = \"{}s\"\n", deadline + 1);
        names.iter().fold(begun, |text, name| text + &format!("{name} = \"{deadline}s\"\n"))
    }
}

// === impl Attack ===

impl Attack {
    /// Attacks, and gives the time until the last connection of it was counted, which `counted` were already.
    fn run(&self, gateway: &Gateway, size: &Size, counted: f64) -> Duration {
        let Size { connections, deadline, .. } = *size;
        let began = Instant::now();
        let wanted = counted + connections as f64;
        let start = |options, path| Process::attack(gateway, options, path, connections);
        let at = |address, act: fn(&mut Wire)| (0..connections).map(|_| begun(address, act)).collect();
        let (tool, mut held): (_, Vec<Wire>) = match self.begin {
            Begin::Tool(options, path) | Begin::BlindTool(options, path) => (Some(start(options, path)), Vec::new()),
            Begin::Sent(act) => (None, at(gateway.address, act)),
            Begin::SentToTls(act) => (None, at(gateway.tls_address(), act)),
        };
        let bound = began.elapsed() + deadline + SLACK + 2 * Duration::from_secs(connections as u64) / RATE as u32;
        while gateway.metric(self.counter) < wanted {
            let counted = gateway.metric(self.counter);
            assert!(began.elapsed() < bound, "{}: {counted} of {wanted} are counted", self.name);
            std::thread::sleep(Duration::from_millis(50));
        }
        let took = began.elapsed();
        held.iter_mut().for_each(|wire| _ = wire.rest());
        if let (Begin::Tool(..), Some(tool)) = (&self.begin, tool) {
            let told = tool.told();
            assert!(told.contains("No open connections left"), "{}: {told}", self.name);
        }
        took
    }
}

fn begun(address: SocketAddr, act: fn(&mut Wire)) -> Wire {
    std::thread::sleep(Duration::from_secs(1) / RATE as u32);
    let mut wire = Wire::bare(address);
    act(&mut wire);
    wire
}

// === impl Process ===

impl Process {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0", program]).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        Self(command.spawn().expect("chrt is missing: apt-get install util-linux"))
    }

    /// `slowhttptest`, attacking; it opens each connection once, and ends by itself when the last has ended.
    fn attack(gateway: &Gateway, options: &[&str], path: &str, connections: usize) -> Self {
        let (count, rate) = (connections.to_string(), RATE.to_string());
        let url = format!("http://{}{path}", gateway.address);
        let rest = ["-c", &count, "-r", &rate, "-l", "60", "-p", "5", "-v", "1", "-u", &url];
        Self::start("slowhttptest", &[options, &rest].concat())
    }

    /// The upstream of those who stand still.
    fn upstream() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/proofs/slow_upstream.py");
        Self::start("python3", &[script])
    }

    /// The port that it says first.
    fn port(&mut self) -> u16 {
        let mut line = String::new();
        let mut out = BufReader::new(self.0.stdout.as_mut().unwrap());
        out.read_line(&mut line).unwrap();
        line.trim().parse().expect("python3 is missing: apt-get install python3")
    }

    /// Waits for its end, and gives what it said.
    fn told(mut self) -> String {
        let mut told = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut told).unwrap();
        assert!(self.0.wait().unwrap().code() != Some(127), "slowhttptest is missing: apt-get install slowhttptest");
        told
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Runs `work` while some go on asking as they should.
fn while_behaving<T: Send>(gateway: &Gateway, key: &Key, work: impl FnOnce() -> T + Send) -> (T, Behaved) {
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let askers: Vec<_> = [true, true, false, false]
            .map(|is_kept_alive| scope.spawn(move || ask_until(done, gateway, key, is_kept_alive)))
            .into_iter()
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let mut all = Behaved::default();
        for asker in askers {
            let mut one = asker.join().unwrap();
            all.latencies.append(&mut one.latencies);
            all.failed.append(&mut one.failed);
        }
        (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), all)
    })
}

thread_local! {
    static GOES_FIRST: Cell<bool> = const { Cell::new(false) };
}

/// Has this thread run as soon as it can: whoever behaves and the upstream have machines of their own elsewhere, and their wait for a
/// core is none of the gateway's.
fn go_first() {
    if !GOES_FIRST.replace(true) {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        let status = Command::new("chrt").args(["--fifo", "--pid", "1", &thread]).status();
        assert!(status.is_ok_and(|status| status.success()), "a real-time thread takes chrt of util-linux, and root");
    }
}

/// Asks at a pace, whatever the answers take: a time counts from when it should have been asked.
fn ask_until(done: &AtomicBool, gateway: &Gateway, key: &Key, is_kept_alive: bool) -> Behaved {
    go_first();
    let mut behaved = Behaved::default();
    let path = gateway.path("orders");
    let mut client = gateway.client();
    let mut due = Instant::now();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if !is_kept_alive {
            client = gateway.client();
        }
        let answer = client.send(crate::harness::client::head("GET", &path, &[&key.bearer()])).try_read("GET");
        behaved.latencies.push(due.elapsed());
        if answer.as_ref().is_none_or(|answer| answer.status != 200) {
            behaved.failed.push(format!("{answer:?}"));
            client = gateway.client();
        }
        due += PACE;
    }
    behaved
}

impl Behaved {
    /// Says what they met; fails when anything went wrong. Gives the time that 99 of 100 answers took at most.
    fn told(mut self, when: &str, calm: Option<Duration>) -> Duration {
        self.latencies.sort();
        let at = |part: usize| self.latencies[(self.latencies.len() - 1) * part / 100];
        let (half, p99) = (at(50), at(99));
        let ratio =
            calm.map_or(String::new(), |calm| format!(", {:.2} x calm", p99.as_secs_f64() / calm.as_secs_f64()));
        println!("{when}: {} answers, p50 {half:.1?}, p99 {p99:.1?}{ratio}", self.latencies.len());
        assert!(self.failed.is_empty(), "{when}: {} failed: {:?}", self.failed.len(), self.failed.first());
        p99
    }
}
