//! The load generator: keep-alive connections, one request outstanding on each, keys round robin. Closed loop with rate 0;
//! otherwise an open loop, whose latencies count from the time a request was due.

use super::Failure;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// How exactly the poller can wait, with room to spare.
const POLL_GRAIN: Duration = Duration::from_millis(2);

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// When the outstanding request was due.
    due: Option<Instant>,
}

struct Load {
    requests: Vec<Vec<u8>>,
    next_request: usize,
    connections: Vec<Connection>,
    idle: Vec<usize>,
    /// In nanoseconds, by the status of the answer.
    latencies: BTreeMap<u16, Vec<u64>>,
}

/// `ADDR PATH CONNECTIONS SECONDS RATE KEYS_FILE`; prints one JSON object.
pub fn run(args: &[&str]) -> Result<(), Failure> {
    let [address, path, connections, seconds, rate, keys] = args else { return Err("load takes six arguments".into()) };
    let keys = std::fs::read_to_string(keys)?;
    let mut load = Load::new(address.parse()?, path, connections.parse()?, &keys)?;
    let (seconds, rate): (f64, f64) = (seconds.parse()?, rate.parse()?);
    let started = Instant::now();
    load.drive(started + Duration::from_secs_f64(seconds), rate)?;
    load.print(started.elapsed());
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
        Ok(Self { requests, next_request: 0, connections, idle, latencies: BTreeMap::new() })
    }

    fn drive(&mut self, end: Instant, rate: f64) -> Result<(), Failure> {
        let mut poll = Poll::new()?;
        for (index, connection) in self.connections.iter_mut().enumerate() {
            poll.registry().register(&mut connection.stream, Token(index), Interest::READABLE)?;
        }
        let mut events = Events::with_capacity(256);
        let step = (rate > 0.0).then(|| Duration::from_secs_f64(1.0 / rate));
        let mut due = Instant::now();
        loop {
            let now = Instant::now();
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
                }
            }
            // The poller waits in whole milliseconds: an open loop that is due sooner gives way to the upstream instead.
            let wait = match step {
                None => end - now,
                Some(_) if due.saturating_duration_since(now) < POLL_GRAIN => Duration::ZERO,
                Some(_) => due - now - POLL_GRAIN,
            };
            poll.poll(&mut events, Some(wait.min(end - now)))?;
            if events.is_empty() {
                std::thread::yield_now();
            }
            for event in &events {
                self.receive(event.token().0)?;
            }
        }
    }

    fn send_all(&mut self, now: Instant) -> Result<(), Failure> {
        while !self.idle.is_empty() {
            self.send(now)?;
        }
        Ok(())
    }

    fn send(&mut self, due: Instant) -> Result<(), Failure> {
        let Some(index) = self.idle.pop() else { return Ok(()) };
        let request = &self.requests[self.next_request];
        self.next_request = (self.next_request + 1) % self.requests.len();
        let connection = &mut self.connections[index];
        connection.due = Some(due);
        connection.stream.write_all(request)?;
        Ok(())
    }

    fn receive(&mut self, index: usize) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        if !connection.read()? {
            return Ok(());
        }
        let status = connection.take_status().ok_or("an answer that is not HTTP")?;
        if let Some(due) = connection.due.take() {
            self.latencies.entry(status).or_default().push(u64::try_from(due.elapsed().as_nanos())?);
        }
        self.idle.insert(0, index);
        Ok(())
    }

    fn print(&mut self, elapsed: Duration) {
        let statuses: Vec<_> =
            self.latencies.iter().map(|(status, all)| format!("\"{status}\":{}", all.len())).collect();
        let by_status: Vec<_> = (self.latencies.iter_mut())
            .map(|(status, latencies)| format!("\"{status}\":{{{}}}", percentiles(latencies)))
            .collect();
        let mut all: Vec<u64> = self.latencies.values().flatten().copied().collect();
        println!(
            "{{\"answered\":{},\"seconds\":{:.3},{},\"statuses\":{{{}}},\"by_status\":{{{}}}}}",
            all.len(),
            elapsed.as_secs_f64(),
            percentiles(&mut all),
            statuses.join(","),
            by_status.join(",")
        );
    }
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
