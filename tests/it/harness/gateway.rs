//! A gateway process of the test's own, with its entity and keys.

use super::client::{self, Refusals};
use super::{Canary, Client, PATIENCE, Pair, Upstream, eventually};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tempfile::TempDir;

/// The entity every test gateway has.
pub const ENTITY: &str = "8f14e45f-ceea-467f-9d5d-6a9f1f0b1b1b";

/// The routes every test gateway has, besides those it adds.
const BASE: &str = r#"
[scopes]
accounts = ["read", "write"]
orders = ["read", "write"]
products = ["read", "write"]
migration = { permissions = ["read", "write", "admin"], elevated = true }

[presets]
analytics = ["accounts:read", "orders:read", "products:read"]
full = ["accounts:read", "accounts:write", "orders:read", "orders:write", "products:read", "products:write"]
migration = ["accounts:write", "orders:write", "products:write", "migration:write"]

[versions]
header = "Arcus-Version"
current = "2026-11-01"

[[routes]]
path = "/v1/entities/{entity_id}/orders/**"
upstream = "erp"
read = "orders:read"
write = "orders:write"

[[routes]]
path = "/v1/entities/{entity_id}/products/**"
upstream = "erp"
read = "products:read"
write = "products:write"

[[routes]]
path = "/v1/entities/{entity_id}/migration/cutover/**"
upstream = "erp"
methods = { GET = "migration:read", POST = ["migration:write", "migration:admin"] }

[[routes]]
path = "/v1/status"
upstream = "erp"
public = true
"#;

/// A key as `keys create --output json` shows it.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: String,
    pub text: String,
}

/// What a gateway is to be like.
pub struct Builder {
    live: Vec<String>,
    test: Vec<String>,
    /// Lines of its [upstreams.erp].
    upstream: String,
    sections: String,
    /// Lines of its [[listen]].
    listen: String,
    workers: usize,
    upstreams: Vec<Upstream>,
    id: &'static str,
    /// The store is another gateway's: the entity is there.
    joins: bool,
}

/// A running gateway. Dropped: killed, searched for keys, and its directory removed.
pub struct Gateway {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub dir: TempDir,
    pub log: Arc<Mutex<String>>,
    pub canary: Canary,
    upstreams: Vec<Upstream>,
    refusals: Refusals,
    /// What it wrote before it was restarted.
    earlier_logs: String,
    child: Child,
}

impl Builder {
    /// Adds an address; several are balanced.
    pub fn live(mut self, upstream: &Upstream) -> Self {
        self.live.push(format!("http://{}", upstream.address));
        self.upstreams.push(upstream.clone());
        self
    }

    pub fn test(mut self, upstream: &Upstream) -> Self {
        self.test.push(format!("http://{}", upstream.address));
        self.upstreams.push(upstream.clone());
        self
    }

    /// An address that is not an `Upstream`.
    pub fn live_at(self, address: SocketAddr) -> Self {
        self.live_url(format!("http://{address}"))
    }

    pub fn live_url(mut self, url: impl Into<String>) -> Self {
        self.live.push(url.into());
        self
    }

    pub fn test_url(mut self, url: impl Into<String>) -> Self {
        self.test.push(url.into());
        self
    }

    /// Adds a line to its [upstreams.erp].
    pub fn upstream(mut self, line: &str) -> Self {
        self.upstream.push_str(line);
        self.upstream.push('\n');
        self
    }

    /// Adds sections to gateway.toml.
    pub fn toml(mut self, text: &str) -> Self {
        self.sections.push_str(text);
        self.sections.push('\n');
        self
    }

    /// Adds a line to its [[listen]].
    pub fn listen(mut self, line: &str) -> Self {
        self.listen.push_str(line);
        self.listen.push('\n');
        self
    }

    /// Adds a listener with TLS, `tls` being more of its settings; its address is [`Gateway::tls_address`]. Clients choose the
    /// protocol unless `listen` says otherwise.
    pub fn tls_with(self, pair: &Pair, tls: &str, listen: &str) -> Self {
        let (cert, key) = (pair.cert.display(), pair.key.display());
        self.toml(&format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\ntls = {{ cert = \"{cert}\", key = \"{key}\"{tls} }}\n{listen}"
        ))
    }

    pub fn tls(self, pair: &Pair) -> Self {
        self.tls_with(pair, "", "")
    }

    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers;
        self
    }

    /// Follows the store of `other`, under an id of its own.
    pub fn beside(mut self, other: &Gateway, id: &'static str) -> Self {
        let path = other.dir.path().join("data/keygate.db");
        self = self.toml(&format!("[store]\nurl = \"sqlite:{}\"", path.display()));
        self.joining(id)
    }

    /// Follows a store that another gateway has made, under an id of its own.
    pub fn joining(self, id: &'static str) -> Self {
        Self { id, joins: true, ..self }
    }

    /// Writes gateway.toml, makes the entity, and starts the process.
    pub fn start(self) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("gateway.toml"), self.config()).unwrap();
        if !self.joins {
            let created = run(dir.path(), &["entities", "create", "--code", "acme", "--id", ENTITY]);
            assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        }
        let (child, log, address, admin) = spawn(keygate(dir.path()).arg("serve"));
        let (canary, refusals) = (Canary::default(), Refusals::default());
        Gateway {
            address,
            admin,
            dir,
            log,
            canary,
            upstreams: self.upstreams,
            refusals,
            earlier_logs: String::new(),
            child,
        }
    }

    fn config(&self) -> String {
        let list = |urls: &[String]| urls.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
        format!(
            "[[listen]]\naddress = \"127.0.0.1:0\"\n{}[admin]\naddress = \"127.0.0.1:0\"\n[gateway]\nid = \"{}\"\nworkers = {}\n\
             {BASE}\n[upstreams.erp]\nlive = [{}]\ntest = [{}]\n{}{}",
            self.listen,
            self.id,
            self.workers,
            list(&self.live),
            list(&self.test),
            self.upstream,
            self.sections
        )
    }
}

impl Gateway {
    pub fn builder() -> Builder {
        Builder {
            live: Vec::new(),
            test: Vec::new(),
            upstream: String::new(),
            sections: String::new(),
            listen: String::new(),
            workers: 2,
            upstreams: Vec::new(),
            id: "edge-1",
            joins: false,
        }
    }

    /// A gateway in front of `upstream` for live keys, and of a sandbox that nobody looks at.
    pub fn before(upstream: &Upstream) -> Self {
        Self::builder().live(upstream).test(&Upstream::named("test")).start()
    }

    pub fn client(&self) -> Client {
        Client::connect_noting(self.address, Refusals::clone(&self.refusals))
    }

    /// Where its second listener is, which [`Builder::tls`] adds.
    pub fn tls_address(&self) -> SocketAddr {
        self.listening()[1].parse().unwrap()
    }

    /// The path of a resource of the test's entity.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/entities/{ENTITY}/{rest}")
    }

    /// Makes a live key with these scopes, and waits until it is in force.
    pub fn key(&self, scopes: &[&str]) -> Key {
        let mut args = vec!["--mode", "live"];
        scopes.iter().for_each(|scope| args.extend(["--scope", scope]));
        self.key_with(&args)
    }

    /// Makes a key with these arguments of `keys create`, and waits until it is in force.
    pub fn key_with(&self, args: &[&str]) -> Key {
        let mut all = vec!["keys", "create", "--entity", "acme", "--name", "test key", "--output", "json"];
        all.extend(args);
        let value = self.json(&all);
        let key = Key { id: value["id"].as_str().unwrap().to_owned(), text: value["key"].as_str().unwrap().to_owned() };
        self.wait_until_known(&key);
        key
    }

    /// Waits until the gateway knows the key.
    pub fn wait_until_known(&self, key: &Key) {
        eventually("the key is in force", || {
            let response = self.client().request("GET", "/v1/no-such-route", &[&key.bearer()]);
            (response.status != 401).then_some(())
        });
    }

    /// Runs a command on this gateway's configuration and gives its output.
    pub fn run(&self, args: &[&str]) -> Output {
        let output = run(self.dir.path(), args);
        self.canary.remember_all(&output.stdout);
        output
    }

    /// Runs a command that must succeed and print JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {errors}"))
    }

    /// The addresses it says it listens on, in the order of gateway.toml.
    pub fn listening(&self) -> Vec<String> {
        let log = self.log_text();
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter_map(|event| event["address"].as_str().map(str::to_owned)).collect()
    }

    /// A page of the admin listener.
    pub fn admin_page(&self, path: &str) -> super::Response {
        Client::connect(self.admin).request("GET", path, &[])
    }

    /// A metric's value; 0 while its series has not appeared.
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.admin_page("/metrics").text();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// All audit records written so far, in order, seals included.
    pub fn records(&self) -> Vec<Value> {
        let output = self.run(&["logs", "--kind", "all", "--output", "ndjson", "--limit", "1000000"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The record of one request, once it is written.
    pub fn record_of(&self, request_id: &str) -> Value {
        eventually("the request's record", || {
            let found: Vec<_> =
                self.records().into_iter().filter(|record| record["request_id"] == request_id).collect();
            assert!(found.len() <= 1, "{found:#?}");
            found.into_iter().next()
        })
    }

    /// Where keys made here can be found that belong nowhere: files, the log, heads at the upstreams, refusals, pages.
    pub fn leaks(&self) -> Vec<String> {
        let mut places: Vec<String> =
            self.canary.files_holding(self.dir.path()).iter().map(|file| file.display().to_string()).collect();
        let refusals: String = self.refusals.lock().unwrap().iter().map(super::Response::transcript).collect();
        let mut texts =
            vec![("the log", self.earlier_logs.clone() + &self.log_text()), ("a refusal or a page", refusals)];
        texts.extend(self.upstreams.iter().map(|upstream| ("a head at an upstream", upstream.heads())));
        let held = texts.into_iter().filter(|(_, text)| self.canary.occurs_in(text.as_bytes()));
        places.extend(held.map(|(place, _)| place.to_owned()));
        places
    }

    /// Keeps the admin listener's pages for the search, if the gateway still runs.
    fn note_pages(&self) {
        let Ok(_) = std::net::TcpStream::connect(self.admin) else { return };
        for page in ["/metrics", "/readyz?verbose"] {
            let answer = Client::connect(self.admin).send(client::head("GET", page, &[])).try_read("GET");
            self.refusals.lock().unwrap().extend(answer);
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log_text(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends a signal.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end and gives its exit code; none for one that a signal ended.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE * 2;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("the gateway did not end");
    }

    /// Stops the gateway if it runs, and starts it again on the same directory.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// The same with more variables in its environment.
    pub fn restart_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = keygate(self.dir.path());
        self.restart_as(command.arg("serve").envs(environment.iter().copied()));
    }

    /// The same through a program that becomes the gateway: it is given the command's words after its own.
    pub fn restart_through(&mut self, program: &str, args: &[&str]) {
        let own = keygate(self.dir.path());
        let mut command = Command::new(program);
        command.current_dir(self.dir.path()).args(args).arg(own.get_program()).arg("serve");
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => _ = command.env(name, value),
                None => _ = command.env_remove(name),
            }
        }
        self.restart_as(&mut command);
    }

    fn restart_as(&mut self, serve: &mut Command) {
        _ = self.child.kill();
        _ = self.child.wait();
        self.earlier_logs.push_str(&self.log_text());
        let (child, log, address, admin) = spawn(serve);
        (self.child, self.log, self.address, self.admin) = (child, log, address, admin);
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.note_pages();
        _ = self.child.kill();
        _ = self.child.wait();
        if !std::thread::panicking() {
            assert_eq!(self.leaks(), Vec::<String>::new(), "a key was found where no key belongs");
        }
    }
}

impl Key {
    /// The header line that presents this key.
    pub fn bearer(&self) -> String {
        format!("Authorization: Bearer {}", self.text)
    }
}

/// The command under test.
pub fn keygate(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keygate"));
    command.current_dir(dir).env_remove("KEYGATE_CONFIG").env_remove("KEYGATE_LOG").env("USER", "tester");
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    keygate(dir).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Starts a gateway by this command and waits until it is ready.
fn spawn(serve: &mut Command) -> (Child, Arc<Mutex<String>>, SocketAddr, SocketAddr) {
    let mut child = serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (mut address, mut admin, mut text) = (None, None, String::new());
    while admin.is_none() {
        let Some(Ok(line)) = lines.next() else { panic!("the gateway did not start:\n{text}") };
        text.push_str(&line);
        text.push('\n');
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let read = |name: &str| event[name].as_str().and_then(|text| text.parse().ok());
        address = address.or(read("address"));
        admin = read("admin");
    }
    let log = Arc::new(Mutex::new(text));
    let sink = Arc::clone(&log);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let mut log = sink.lock().unwrap();
            log.push_str(&line);
            log.push('\n');
        }
    });
    (child, log, address.unwrap(), admin.unwrap())
}
