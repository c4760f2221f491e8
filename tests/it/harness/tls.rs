//! Certificates, and a Redis server with TLS, of the test's own.

use super::eventually;
use super::redis::{Port, RedisServer};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// What `openssl req` reads: who may vouch for others, and who may not.
const OPENSSL: &str = "[req]\ndistinguished_name = name\n[name]\n[authority]\nbasicConstraints = critical, CA:true\n\
                       [member]\nbasicConstraints = critical, CA:false\nsubjectAltName = ${ENV::NAMES}\n";

/// Who signs certificates.
pub struct Authority {
    dir: TempDir,
}

/// A certificate and its private key, as files.
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// A `redis-server` that also speaks plain text, on a port of its own.
pub struct TlsServer {
    pub redis: RedisServer,
    port: Port,
}

impl Authority {
    pub fn new() -> Self {
        Self::named("authority")
    }

    pub fn named(name: &str) -> Self {
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::write(authority.dir.path().join("openssl.cnf"), OPENSSL).unwrap();
        authority.make("ca", name, "DNS:nobody", &["-extensions", "authority"]);
        authority
    }

    /// The file with its own certificate.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A new pair of files called `file`, for names such as `IP:127.0.0.1`.
    pub fn issue(&self, file: &str, names: &str) -> Pair {
        self.issue_with(file, names, &[])
    }

    /// The same with more that `openssl req` takes, such as `-days 90`.
    pub fn issue_with(&self, file: &str, names: &str, more: &[&str]) -> Pair {
        let own = ["-extensions", "member", "-CA", "ca.pem", "-CAkey", "ca.key"];
        self.make(file, file, names, &[&own[..], more].concat())
    }

    /// A pair whose certificate was good for a day of 2020.
    pub fn issue_expired(&self, file: &str, names: &str) -> Pair {
        const STORE: &str = "[ca]\ndefault_ca = own\n[own]\nnew_certs_dir = .\ndatabase = index.txt\nserial = serial\n\
                             default_md = sha256\npolicy = any\nx509_extensions = member\n[any]\ncommonName = supplied\n";
        let dir = self.dir.path();
        std::fs::write(dir.join("store.cnf"), format!("{STORE}{OPENSSL}")).unwrap();
        std::fs::write(dir.join("index.txt"), "").unwrap();
        std::fs::write(dir.join("serial"), "01\n").unwrap();
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
        let [cert, key, request] = ["pem", "key", "csr"].map(|kind| format!("{file}.{kind}"));
        let subject = format!("/CN={file}");
        let asked =
            ["req", "-new", "-config", "openssl.cnf", "-noenc", "-keyout", &key, "-out", &request, "-subj", &subject];
        let own = ["-config", "store.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-in", &request, "-out", &cert];
        let times = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"];
        for args in [[&asked[..], &curve].concat(), [&["ca", "-batch", "-notext"], &own[..], &times].concat()] {
            let output = Command::new("openssl").args(args).current_dir(dir).env("NAMES", names).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Pair { cert: dir.join(cert), key: dir.join(key) }
    }

    /// The same with a clock that is set off, as `faketime` takes it, such as `-3d`.
    pub fn issue_at(&self, offset: &str, file: &str, names: &str, more: &[&str]) -> Pair {
        let own = ["-extensions", "member", "-CA", "ca.pem", "-CAkey", "ca.key"];
        let mut command = Command::new("faketime");
        command.args(["-f", offset, "openssl"]);
        self.make_by(command, file, file, names, &[&own[..], more].concat())
    }

    fn make(&self, file: &str, subject: &str, names: &str, more: &[&str]) -> Pair {
        self.make_by(Command::new("openssl"), file, subject, names, more)
    }

    fn make_by(&self, mut command: Command, file: &str, subject: &str, names: &str, more: &[&str]) -> Pair {
        command.args(["req", "-x509", "-config", "openssl.cnf", "-days", "2", "-noenc", "-subj"]);
        command.arg(format!("/CN={subject}"));
        if !more.contains(&"-newkey") {
            command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        command.args(["-keyout", &format!("{file}.key"), "-out", &format!("{file}.pem")]).args(more);
        let output = command.current_dir(self.dir.path()).env("NAMES", names).output();
        let output = output.expect("install openssl and faketime: apt-get install openssl faketime");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let [cert, key] = ["pem", "key"].map(|kind| self.dir.path().join(format!("{file}.{kind}")));
        Pair { cert, key }
    }
}

impl TlsServer {
    /// Starts a server that proves these names, with more settings, as `redis-server` takes them.
    pub fn start(authority: &Authority, names: &str, settings: &[&str]) -> Self {
        let port = Port::reserve();
        let pair = authority.issue("server", names);
        let (number, ca) = (port.number().to_string(), authority.ca());
        let files = [("--tls-cert-file", &pair.cert), ("--tls-key-file", &pair.key), ("--tls-ca-cert-file", &ca)];
        let mut all = vec!["--tls-port", &number];
        all.extend(files.into_iter().flat_map(|(name, path)| [name, text(path)]));
        all.extend(settings);
        let redis = RedisServer::start_with(&all);
        eventually("the port for TLS is open", || TcpStream::connect(("127.0.0.1", port.number())).ok());
        Self { redis, port }
    }

    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port.number())
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
