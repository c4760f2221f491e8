//! nginx, a server of files, answers through the gateway as it does directly: over HTTP/1.1 to a client that sees every byte,
//! over HTTP/2 to curl.

use super::programs::{run_within, source, tool};
use crate::harness::client::head;
use crate::harness::redis::Port;
use crate::harness::{Client, Gateway, Key, Response, eventually};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// Dropped: ended.
struct Nginx {
    port: Port,
    dir: TempDir,
    child: Child,
}

impl Nginx {
    fn start() -> Self {
        let (port, dir) = (Port::reserve(), tempfile::tempdir().unwrap());
        std::fs::create_dir(dir.path().join("files")).unwrap();
        let written = std::fs::read_to_string(source("nginx.conf")).unwrap();
        let path = dir.path().display().to_string();
        let written = written.replace("DIR", &path).replace("PORT", &port.number().to_string());
        std::fs::write(dir.path().join("nginx.conf"), written).unwrap();
        let mut command = tool("nginx", "nginx");
        command.arg("-p").arg(dir.path()).arg("-e").arg(dir.path().join("error.log"));
        command.arg("-c").arg(dir.path().join("nginx.conf")).stdin(Stdio::null()).stderr(Stdio::null());
        let nginx = Self { child: command.spawn().unwrap(), port, dir };
        eventually("nginx listens", || Client::try_connect(nginx.address()));
        nginx
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port.number()))
    }

    fn file(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.dir.path().join("files").join(path.trim_start_matches('/'))).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

fn pattern(size: usize) -> Vec<u8> {
    (0..251).cycle().take(size).collect()
}

/// An answer without what belongs to its connection, and without the request's id.
fn comparable(mut answer: Response) -> Response {
    let of_a_connection = ["connection", "date", "keep-alive", "transfer-encoding", "x-request-id"];
    answer.headers.retain(|(name, _)| !of_a_connection.contains(&name.as_str()));
    answer.headers.sort_by(|(one, _), (other, _)| one.cmp(other));
    answer
}

fn ask(address: SocketAddr, key: &Key, method: &str, path: &str, lines: &[&str]) -> Response {
    let lines: Vec<&str> = lines.iter().copied().chain(["TE: trailers"]).collect();
    let bearer = key.bearer();
    let lines: Vec<&str> = lines.into_iter().chain([bearer.as_str()]).collect();
    comparable(Client::connect(address).request(method, path, &lines))
}

#[test]
fn files_ranges_conditions_compression_and_trailers_are_as_nginx_sends_them() {
    let nginx = Nginx::start();
    let gateway = Gateway::builder().live_at(nginx.address()).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let body = pattern(8 << 20);
    let put = |path: &str, framing: &str, sent: &[u8]| {
        let mut client = gateway.client();
        client.send(head("PUT", path, &[&key.bearer(), framing])).send(sent);
        assert_eq!(client.read("PUT").status, 201, "{path} {framing}");
        assert!(nginx.file(path) == body, "{path} {framing}: it arrived changed");
    };
    let (sized, compressed) = (gateway.path("orders/sized"), gateway.path("orders/compressed"));
    put(&sized, &format!("Content-Length: {}", body.len()), &body);
    let chunks: Vec<u8> = body
        .chunks(30_000)
        .flat_map(|piece| [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect();
    put(&compressed, "Transfer-Encoding: chunked", &chunks);

    let known = ask(nginx.address(), &key, "HEAD", &sized, &[]);
    let (tag, time) = (known.header("etag").unwrap(), known.header("last-modified").unwrap());
    let (same, unmodified) = (format!("If-None-Match: {tag}"), format!("If-Modified-Since: {time}"));
    let cases: [(&str, &str, &[&str], u16); 11] = [
        ("GET", &sized, &[], 200),
        ("HEAD", &sized, &[], 200),
        ("GET", &sized, &["Range: bytes=100-4000000"], 206),
        ("GET", &sized, &["Range: bytes=1-2, 100-200"], 206),
        ("GET", &sized, &["Range: bytes=99999999-"], 416),
        ("GET", &sized, &[&same], 304),
        ("GET", &sized, &[&unmodified], 304),
        ("GET", &sized, &["If-Match: \"other\""], 412),
        ("GET", &compressed, &["Accept-Encoding: gzip"], 200),
        ("GET", &gateway.path("orders/none"), &[], 404),
        ("POST", &sized, &["Content-Length: 0"], 405),
    ];
    for (method, path, lines, status) in cases {
        let mut direct = ask(nginx.address(), &key, method, path, lines);
        let mut through = ask(gateway.address, &key, method, path, lines);
        assert_eq!((direct.status, direct.complete), (status, true), "{method} {lines:?}");
        if lines.iter().any(|line| line.contains(',')) {
            // Its boundaries differ.
            assert_eq!(direct.body.len(), through.body.len());
            for answer in [&mut direct, &mut through] {
                answer.headers.retain(|(name, _)| name != "content-type");
                answer.body.clear();
            }
        }
        assert!(direct == through, "{method} {lines:?}:\n{:?}\n{:?}", direct.headers, through.headers);
        if path == compressed {
            assert_eq!(through.header("content-encoding"), Some("gzip"));
            assert_eq!(through.trailers, [("x-sum".to_owned(), compressed.clone())]);
        }
    }
    let gone = ask(gateway.address, &key, "DELETE", &sized, &[]);
    assert_eq!((gone.status, ask(nginx.address(), &key, "GET", &sized, &[]).status), (204, 404));
}

#[test]
fn nginx_serves_clients_of_http2() {
    let nginx = Nginx::start();
    let gateway = Gateway::builder().live_at(nginx.address()).listen("protocols = [\"h1\", \"h2\"]").start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    let body = pattern(8 << 20);
    let file = nginx.dir.path().join("given");
    std::fs::write(&file, &body).unwrap();
    let path = gateway.path("orders/by-curl");
    let url = format!("http://{}{path}", gateway.address);
    let mut command = tool("curl", "curl");
    command.args(["-sS", "--http2-prior-knowledge", "-H", &key.bearer(), "-w", "%{stderr}%{http_code} ", "-T"]);
    command.arg(&file).arg(&url);
    let output = run_within("60", &command);
    assert_eq!(String::from_utf8_lossy(&output.stderr), "201 ");
    assert!(nginx.file(&path) == body);
    let mut command = tool("curl", "curl");
    command.args(["-sS", "--http2-prior-knowledge", "-H", &key.bearer(), &url]);
    assert!(run_within("60", &command).stdout == body);
}
