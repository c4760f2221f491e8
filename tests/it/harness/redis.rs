//! A Redis server process of the test's own.

use socket2::{Domain, Socket, Type};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A loopback port that is given to nobody else while this lives: bound, but open for a server to listen there.
pub struct Port(Socket);

/// A `redis-server` on a free loopback port. Dropped: killed.
pub struct RedisServer {
    port: Port,
    dir: TempDir,
    settings: Vec<String>,
    child: Child,
}

impl Port {
    pub fn reserve() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self(socket)
    }

    pub fn number(&self) -> u16 {
        self.0.local_addr().unwrap().as_socket().unwrap().port()
    }
}

impl RedisServer {
    /// Starts an empty server that writes every command to its file before it answers, as one in production should.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more settings, as `redis-server` takes them.
    pub fn start_with(settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = Port::reserve();
        let settings: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        let child = spawn(port.number(), &dir, &settings);
        Self { port, dir, settings, child }
    }

    /// Runs one command, words separated by spaces; gives the first line of the answer.
    #[allow(dead_code, reason = "this file serves three test programs, and two of them send no commands")]
    pub fn command(&self, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.ask(words);
            // Just started, it reads its file first.
            if !answer.starts_with("-LOADING") || Instant::now() > deadline {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The bulk string that a command answers; none for nil.
    #[allow(dead_code, reason = "this file serves three test programs, and two of them send no commands")]
    pub fn value(&self, words: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("{words}\r\n").as_bytes()).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let length = line.trim_end().strip_prefix('$').unwrap_or_else(|| panic!("{words}: {line}")).parse().ok()?;
        let mut value = vec![0; length];
        reader.read_exact(&mut value).unwrap();
        Some(String::from_utf8(value).unwrap())
    }

    #[allow(dead_code, reason = "this file serves three test programs, and two of them send no commands")]
    fn ask(&self, words: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port.number())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(format!("{words}\r\n").as_bytes()).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port.number())
    }

    #[allow(dead_code, reason = "this file serves three test programs, and some of them need the URL alone")]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.number()))
    }

    /// Where its files are.
    #[allow(dead_code, reason = "this file serves three test programs, and one of them looks at its files")]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends a signal.
    #[allow(dead_code, reason = "this file serves three test programs, and some of them send none")]
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Ends it as `kill -9` does.
    #[allow(dead_code, reason = "this file serves two test programs, and one of them never kills")]
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// From its next start on it has these settings besides the usual ones.
    #[allow(dead_code, reason = "this file serves three test programs, and some of them change none")]
    pub fn set(&mut self, settings: &[&str]) {
        self.settings = settings.iter().map(|&setting| setting.to_owned()).collect();
    }

    /// Starts it again with the data it had.
    #[allow(dead_code, reason = "this file serves two test programs, and one of them never kills")]
    pub fn restart(&mut self) {
        self.child = spawn(self.port.number(), &self.dir, &self.settings);
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn spawn(port: u16, dir: &TempDir, settings: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.args(["--appendonly", "yes", "--appendfsync", "always", "--dir"]).arg(dir.path()).args(settings);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
    let mut child = child.expect("install redis-server: apt-get install redis-server");
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "redis-server does not listen on port {port}");
        if child.try_wait().unwrap().is_some() {
            // Somebody's connection had the port for a moment, which was free while there was no server.
            child = command.spawn().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}
