//! Clients and servers by others: `tests/interop/setup` installs what the registries of Python and Node have, `tests/run` the
//! rest.

use crate::harness::eventually;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// Seconds that a client may take for all of its cases.
const CLIENT_SECONDS: &str = "120";

/// A server that writes down what it was sent. Dropped: ended.
pub struct Server {
    pub address: SocketAddr,
    dir: TempDir,
    child: Child,
}

/// A client of `tests/interop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Python(&'static str),
    Node(&'static str),
}

/// A file of `tests/interop`.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

/// What `tests/interop/setup` has installed, if it has installed what is pinned now.
fn installed(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("interop");
    let pins = ["requirements.txt", "package.json", "package-lock.json"];
    let pins: String = pins.map(|name| std::fs::read_to_string(source(name)).unwrap()).concat();
    let known = std::fs::read_to_string(root.join("pins")).unwrap_or_default();
    assert_eq!(known.trim_end(), pins.trim_end(), "run tests/interop/setup, which installs the clients and servers");
    root.join(name)
}

/// The environment's Python, to be given a file of `tests/interop` and its arguments.
pub fn python(name: &str) -> Command {
    let mut command = Command::new(installed("python/bin/python"));
    // No file is written beside the sources.
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(source(name));
    command
}

pub fn node(name: &str) -> Command {
    let mut command = tool("node", "nodejs");
    command.env("NODE_PATH", installed("node/node_modules")).arg(source(name));
    command
}

/// A program of the Debian package `package`.
pub fn tool(name: &str, package: &str) -> Command {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let found = std::env::split_paths(&paths).map(|path| path.join(name)).find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| panic!("{name} is missing: apt-get install {package}")))
}

/// Runs a program for at most so many seconds.
pub fn run_within(seconds: &str, command: &Command) -> Output {
    let mut bounded = Command::new("timeout");
    bounded.arg(seconds).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        bounded.env(name, value.unwrap_or_default());
    }
    bounded.output().unwrap()
}

// === impl Program ===

impl Program {
    /// Whether it speaks HTTP/2, and nothing else.
    pub const fn is_http2(self) -> bool {
        let (Self::Python(kind) | Self::Node(kind)) = self;
        matches!(kind.as_bytes(), b"http2" | b"h2" | [.., b'-', b'h', b'2'])
    }

    /// Goes through the cases of a file, below `url`; what the client got, a value for each. Over TLS it trusts `ca`.
    pub fn go(self, url: &str, ca: Option<&Path>, bearer: &str, cases: &Path) -> Vec<Value> {
        let (mut command, kind) = match self {
            Self::Python(kind) => (python("clients.py"), kind),
            Self::Node(kind) => (node("clients.js"), kind),
        };
        command.args([kind, url, bearer]).arg(cases).envs(ca.map(|ca| ("INTEROP_CA", ca)));
        let output = run_within(CLIENT_SECONDS, &command);
        let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{self:?} at {url}: {errors}\n{told}");
        lines(&told)
    }
}

// === impl Server ===

impl Server {
    /// One of the kinds of `servers.py`, or `node`, `grpc` or `websockets`.
    pub fn start(kind: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = match kind {
            "node" => node("servers.js"),
            "grpc" => python("grpc_server.py"),
            "websockets" => python("ws.py"),
            _ => python("servers.py"),
        };
        match kind {
            "node" | "grpc" => {}
            "websockets" => _ = command.arg("server"),
            _ => _ = command.arg(kind),
        }
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        command.arg(dir.path().join("records")).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let address = format!("127.0.0.1:{}", port.trim()).parse();
        let log = || std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let address = address.unwrap_or_else(|_| panic!("{kind} did not start: {}", log()));
        Self { address, dir, child }
    }

    /// What it was sent since that was last taken.
    pub fn take_records(&self) -> Vec<Value> {
        let records = self.records();
        _ = std::fs::remove_file(self.dir.path().join("records"));
        records
    }

    /// The same, and it stays there. A line that is being written is not there yet.
    pub fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir.path().join("records")).unwrap_or_default();
        lines(text.rsplit_once('\n').map_or("", |(whole, _)| whole))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has workers ends them.
        _ = Command::new("kill").arg(self.child.id().to_string()).status();
        eventually("the server's end", || match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(_)) | Err(_) => Some(()),
        });
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}
