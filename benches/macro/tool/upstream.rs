//! A trivial upstream: every request head gets the same 298-byte JSON with six header fields.

use super::Failure;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};

const LISTENER: Token = Token(0);

struct Connection {
    stream: TcpStream,
    /// How many bytes of the empty line that ends a head have been seen.
    matched: usize,
}

pub fn run(address: &str) -> Result<(), Failure> {
    let answer = answer();
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address.parse()?)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let (mut events, mut next) = (Events::with_capacity(256), 1);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    stream.set_nodelay(true)?;
                    poll.registry().register(&mut stream, Token(next), Interest::READABLE)?;
                    connections.insert(Token(next), Connection { stream, matched: 0 });
                    next += 1;
                }
            } else if let Some(connection) = connections.get_mut(&event.token())
                && !connection.serve(&answer)
            {
                connections.remove(&event.token());
            }
        }
    }
}

impl Connection {
    /// Answers what has arrived; false when the connection has ended.
    fn serve(&mut self, answer: &[u8]) -> bool {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return false,
                Ok(read) => {
                    for _ in 0..self.heads(&buffer[..read]) {
                        if self.stream.write_all(answer).is_err() {
                            return false;
                        }
                    }
                    if read < buffer.len() {
                        return true;
                    }
                }
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
    }

    /// How many heads end in these bytes.
    fn heads(&mut self, bytes: &[u8]) -> usize {
        const END: &[u8; 4] = b"\r\n\r\n";
        let mut heads = 0;
        for byte in bytes {
            self.matched = if *byte == END[self.matched] { self.matched + 1 } else { usize::from(*byte == b'\r') };
            if self.matched == END.len() {
                (self.matched, heads) = (0, heads + 1);
            }
        }
        heads
    }
}

fn answer() -> Vec<u8> {
    let mut body =
        String::from(r#"{"id":"ord_7","object":"order","status":"open","currency":"EUR","total":"129.90","note":""#);
    while body.len() < 296 {
        body.push('x');
    }
    body.push_str("\"}");
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nServer: erp\r\nCache-Control: no-store\r\n\
         X-Version: 2026-11-01\r\nDate: Tue, 24 Nov 2026 10:00:00 GMT\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
