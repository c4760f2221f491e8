//! An upstream that leaves HTTP: it reads each head to its last byte and not further, and then has the socket to itself.

use super::PATIENCE;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What an upstream says when it agrees to a WebSocket.
pub const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

/// Its threads end with the test process.
#[derive(Clone)]
pub struct Switching {
    pub address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

// === impl Switching ===

impl Switching {
    /// `act` is given each connection with the first head that came on it.
    pub fn start(act: impl Fn(&str, TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let switching = Self { address: listener.local_addr().unwrap(), heads: Arc::default() };
        let (clone, act) = (switching.clone(), Arc::new(act));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let (heads, act) = (Arc::clone(&clone.heads), Arc::clone(&act));
                std::thread::spawn(move || {
                    stream.set_nodelay(true).unwrap();
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.set_write_timeout(Some(PATIENCE)).unwrap();
                    let Some(head) = read_head(&mut stream) else { return };
                    heads.lock().unwrap().push(head.clone());
                    act(&head, stream);
                });
            }
        });
        switching
    }

    /// Agrees, and sends back what it gets until there is no more.
    pub fn echo() -> Self {
        Self::start(|head, mut stream| {
            _ = stream.write_all(agreed(head).as_bytes());
            _ = echo(&mut stream);
        })
    }

    /// The heads so far.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }

    /// The only head so far.
    pub fn only(&self) -> String {
        let heads = self.heads();
        assert_eq!(heads.len(), 1, "{heads:#?}");
        heads[0].clone()
    }
}

/// A 101 that has the digest which the head's key asks for.
pub fn agreed(head: &str) -> String {
    match value_of(head, "sec-websocket-key") {
        Some(key) => AGREED.replace("\r\n\r\n", &format!("\r\nSec-WebSocket-Accept: {}\r\n\r\n", accept_of(&key))),
        None => AGREED.to_owned(),
    }
}

/// The value of a field.
pub fn value_of(head: &str, name: &str) -> Option<String> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
}

/// Sends back what it gets, until that ends or breaks.
pub fn echo(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    let mut piece = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut piece).map_err(|error| error.kind())?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&piece[..read]).map_err(|error| error.kind())?;
    }
}

/// Byte for byte, so that what follows stays in the socket.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// RFC 6455, section 4.2.2, by another implementation than the gateway's.
fn accept_of(key: &str) -> String {
    let script = "import sys, base64, hashlib\n\
                  text = sys.argv[1] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'\n\
                  print(base64.b64encode(hashlib.sha1(text.encode()).digest()).decode())";
    let output = std::process::Command::new("python3").args(["-c", script, key]).output();
    let output = output.expect("python3 is missing; apt-get install python3");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
