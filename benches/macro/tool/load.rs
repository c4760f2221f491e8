//! The load generator: keep-alive connections, one request outstanding on each, keys round robin. Closed loop with rate 0;
//! otherwise an open loop, whose latencies count from the time a request was due.

use super::Failure;
use super::stall::{self, Stall};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

const TIMER: Token = Token(usize::MAX);

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// When the outstanding request was due.
    due: Option<u64>,
}

/// When a request was due, and when it was answered.
#[derive(Clone, Copy)]
struct Latency {
    due: u64,
    at: u64,
}

/// All times are nanoseconds of the monotonic clock.
struct Load {
    requests: Vec<Vec<u8>>,
    next_request: usize,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    answered: BTreeMap<u16, Vec<Latency>>,
}

/// `ADDR PATH CONNECTIONS SECONDS RATE KEYS_FILE [STALLS_FILE]`; prints one JSON object. Without requests that met one of the stalls.
pub fn run(args: &[&str]) -> Result<(), Failure> {
    let [address, path, connections, seconds, rate, keys, stalls @ ..] = args else {
        return Err("load takes six or seven arguments".into());
    };
    let keys = std::fs::read_to_string(keys)?;
    let mut load = Load::new(address.parse()?, path, connections.parse()?, &keys)?;
    let (seconds, rate): (f64, f64) = (seconds.parse()?, rate.parse()?);
    let started = stall::now();
    load.drive(started + nanos(seconds), rate)?;
    let elapsed = stall::now() - started;
    let stalls = stalls.first().map_or(Ok(Vec::new()), |file| stall::read(file))?;
    load.print(elapsed, &stalls);
    Ok(())
}

impl Load {
    fn new(address: SocketAddr, path: &str, count: usize, keys: &str) -> Result<Self, Failure> {
        let request = |key: &str| {
            format!(
                "GET {path} HTTP/1.1\r\nHost: erp.example\r\nAuthorization: Bearer {key}\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"
            )
        };
        let requests: Vec<_> =
            keys.lines().filter(|key| !key.is_empty()).map(|key| request(key).into_bytes()).collect();
        if requests.is_empty() {
            return Err("the key file is empty".into());
        }
        let connections = (0..count).map(|_| Connection::open(address)).collect::<Result<Vec<_>, _>>()?;
        let idle = (0..count).collect();
        Ok(Self { requests, next_request: 0, connections, idle, answered: BTreeMap::new() })
    }

    fn drive(&mut self, end: u64, rate: f64) -> Result<(), Failure> {
        let mut poll = Poll::new()?;
        for (index, connection) in self.connections.iter_mut().enumerate() {
            poll.registry().register(&mut connection.stream, Token(index), Interest::READABLE)?;
        }
        let mut events = Events::with_capacity(256);
        let step = (rate > 0.0).then(|| nanos(1.0 / rate));
        // The poller waits in whole milliseconds.
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let mut due = stall::now();
        loop {
            let now = stall::now();
            if now >= end {
                return Ok(());
            }
            match step {
                None => self.send_all(now)?,
                Some(step) => {
                    while due <= now && !self.idle.is_empty() {
                        self.send(due)?;
                        due += step;
                    }
                    // Where every connection waits for its answer, that wakes us.
                    if !self.idle.is_empty() {
                        wake(&timer, due.saturating_sub(stall::now()))?;
                    }
                }
            }
            poll.poll(&mut events, Some(Duration::from_nanos(end - now)))?;
            // Of all that have arrived: what we take to read those before it is no latency.
            let arrived = stall::now();
            for event in events.iter().filter(|event| event.token() != TIMER) {
                self.receive(event.token().0, arrived)?;
            }
        }
    }

    fn send_all(&mut self, now: u64) -> Result<(), Failure> {
        while !self.idle.is_empty() {
            self.send(now)?;
        }
        Ok(())
    }

    fn send(&mut self, due: u64) -> Result<(), Failure> {
        let Some(index) = self.idle.pop() else { return Ok(()) };
        let request = &self.requests[self.next_request];
        self.next_request = (self.next_request + 1) % self.requests.len();
        let connection = &mut self.connections[index];
        connection.due = Some(due);
        connection.stream.write_all(request)?;
        Ok(())
    }

    fn receive(&mut self, index: usize, arrived: u64) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        if !connection.read()? {
            return Ok(());
        }
        let status = connection.take_status().ok_or("an answer that is not HTTP")?;
        if let Some(due) = connection.due.take() {
            self.answered.entry(status).or_default().push(Latency { due, at: arrived });
        }
        self.idle.insert(0, index);
        Ok(())
    }

    /// Latencies are those of requests that met no stall.
    fn print(&self, elapsed: u64, stalls: &[Stall]) {
        let (mut all, mut by_status, mut statuses) = (Vec::new(), Vec::new(), Vec::new());
        for (status, answers) in &self.answered {
            let undisturbed = |one: &&Latency| !stalls.iter().any(|stall| stall.is_met(one.due, one.at));
            let mut latencies: Vec<_> = answers.iter().filter(undisturbed).map(|one| one.at - one.due).collect();
            all.extend_from_slice(&latencies);
            by_status.push(format!("\"{status}\":{{{}}}", percentiles(&mut latencies)));
            statuses.push(format!("\"{status}\":{}", answers.len()));
        }
        let answered: usize = self.answered.values().map(Vec::len).sum();
        let met_stall = answered - all.len();
        println!(
            "{{\"answered\":{answered},\"met_stall\":{met_stall},\"seconds\":{:.3},{},\"statuses\":{{{}}},\"by_status\":{{{}}}}}",
            elapsed as f64 / 1e9,
            percentiles(&mut all),
            statuses.join(","),
            by_status.join(",")
        );
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

/// Has the timer wake us after that long.
fn wake(timer: &OwnedFd, after: u64) -> Result<(), Failure> {
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    // No time would mean never.
    let spec = Itimerspec { it_interval: none, it_value: Duration::from_nanos(after.max(1)).try_into()? };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec)?;
    Ok(())
}

/// Members of a JSON object, in microseconds.
fn percentiles(latencies: &mut [u64]) -> String {
    latencies.sort_unstable();
    let at = |part: f64| {
        let index = (latencies.len() as f64 * part) as usize;
        let nanos = latencies.get(index.min(latencies.len().saturating_sub(1)));
        nanos.map_or(0.0, |nanos| *nanos as f64 / 1000.0)
    };
    format!("\"p50_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1}", at(0.5), at(0.99), at(0.999))
}

impl Connection {
    fn open(address: SocketAddr) -> Result<Self, Failure> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream: TcpStream::from_std(stream), received: Vec::with_capacity(4096), due: None })
    }

    /// Reads what has arrived; true when the answer is whole.
    fn read(&mut self) -> Result<bool, Failure> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err("the connection was closed".into()),
                Ok(read) => self.received.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
            if self.is_whole() {
                return Ok(true);
            }
        }
        Ok(self.is_whole())
    }

    fn is_whole(&self) -> bool {
        let Some(end) = self.received.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
        let head = String::from_utf8_lossy(&self.received[..end]).to_ascii_lowercase();
        let length = head.split("\r\n").find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        self.received.len() >= end + 4 + length
    }

    fn take_status(&mut self) -> Option<u16> {
        let status = std::str::from_utf8(self.received.get(9..12)?).ok()?.parse().ok();
        self.received.clear();
        status
    }
}
