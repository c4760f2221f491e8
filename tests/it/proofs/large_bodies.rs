//! A body of any size passes whole in both directions, and the gateway does not hold it.

use super::process::{pss, watch_peak};
use crate::harness::{Gateway, PATIENCE};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// How much more memory the gateway may take while bodies pass.
const GROWTH_MAX: u64 = 16 * 1024 * 1024;
const CHUNK: usize = 64 * 1024;

type Hash = [u8; 32];

/// Sends `length` bytes up and as many down.
pub fn prove(length: u64) {
    let gateway = Gateway::builder().live_at(start_upstream(length)).start();
    let key = gateway.key(&["orders:read", "orders:write"]);
    // The first request makes buffers that stay.
    assert_eq!(gateway.client().request("GET", &gateway.path("products"), &[&key.bearer()]).status, 403);
    let before = pss(gateway.pid());
    let (peak, ()) = watch_peak(gateway.pid(), || {
        let expected = write_body(&mut std::io::sink(), length).unwrap();
        assert_eq!(upload(&gateway, &key.bearer(), length), hex(&expected), "the upload arrived changed");
        assert_eq!(download(&gateway, &key.bearer(), length), expected, "the download arrived changed");
    });
    let growth = peak.saturating_sub(before);
    println!("{length} bytes up and down: memory {before} bytes before, at most {growth} more");
    assert!(growth < GROWTH_MAX, "the gateway grew by {growth} bytes");
}

/// Sends a body and gives what the upstream says is its hash.
fn upload(gateway: &Gateway, bearer: &str, length: u64) -> String {
    let mut client = gateway.client();
    let target = gateway.path("orders");
    client.send(format!("POST {target} HTTP/1.1\r\nHost: erp\r\n{bearer}\r\nContent-Length: {length}\r\n\r\n"));
    write_body(&mut client.stream(), length).unwrap();
    let answer = client.read("POST");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text()
}

/// Asks for a body and hashes it as it comes.
fn download(gateway: &Gateway, bearer: &str, length: u64) -> Hash {
    let mut stream = connect(gateway.address);
    let target = gateway.path("orders");
    write!(stream, "GET {target} HTTP/1.1\r\nHost: erp\r\n{bearer}\r\n\r\n").unwrap();
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    let head = read_head(&mut reader).unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    hash_body(&mut reader, length).unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// An upstream that hashes what it is sent and sends `length` bytes when asked.
fn start_upstream(length: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, length));
        }
    });
    address
}

fn serve(stream: TcpStream, length: u64) -> Option<()> {
    let mut reader = BufReader::with_capacity(CHUNK, stream);
    loop {
        let head = read_head(&mut reader)?;
        if head.starts_with("POST") {
            let hash = hex(&hash_body(&mut reader, length)?);
            write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{hash}", hash.len()).ok()?;
        } else {
            write!(reader.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").ok()?;
            write_body(reader.get_mut(), length).ok()?;
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// Writes `length` bytes that repeat nowhere, and gives their hash.
fn write_body(out: &mut impl Write, length: u64) -> std::io::Result<Hash> {
    let (mut random, mut hash, mut left) = (fastrand::Rng::with_seed(7), Sha256::new(), length);
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        random.fill(&mut chunk);
        let size = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        hash.update(&chunk[..size]);
        out.write_all(&chunk[..size])?;
        left -= size as u64;
    }
    Ok(hash.finalize().into())
}

fn hash_body(reader: &mut impl Read, length: u64) -> Option<Hash> {
    let (mut hash, mut left) = (Sha256::new(), length);
    let mut chunk = vec![0; CHUNK];
    while left > 0 {
        let size = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        reader.read_exact(&mut chunk[..size]).ok()?;
        hash.update(&chunk[..size]);
        left -= size as u64;
    }
    Some(hash.finalize().into())
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
