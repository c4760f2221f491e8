//! An upstream of HTTP/2 that answers with exactly the frames it is told.

use super::http2::{END_HEADERS, PREFACE, block_of, frame, kind};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What to do about a request on a stream.
pub type Lie = fn(stream: u32) -> Vec<u8>;

/// Whether the connection is closed behind a lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    GoOn,
    Close,
}

/// A running liar. Its threads end with the test process.
#[derive(Clone)]
pub struct Liar {
    pub address: SocketAddr,
    /// Lies for the next requests; whoever finds none is answered well.
    lies: Arc<Mutex<VecDeque<(Lie, Then)>>>,
    /// By request: the connection it came on, first is 0, and its stream.
    heads: Arc<Mutex<Vec<(usize, u32)>>>,
    /// By reset of the gateway's: its error.
    resets: Arc<Mutex<Vec<u32>>>,
}

impl Liar {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let liar = Self { address, lies: Arc::default(), heads: Arc::default(), resets: Arc::default() };
        let clone = liar.clone();
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().flatten().enumerate() {
                let liar = clone.clone();
                std::thread::spawn(move || liar.serve(stream, connection));
            }
        });
        liar
    }

    pub fn tell(&self, lie: Lie, then: Then) {
        self.lies.lock().unwrap().push_back((lie, then));
    }

    /// Takes what it has seen of requests since it was last asked.
    pub fn take_heads(&self) -> Vec<(usize, u32)> {
        self.lies.lock().unwrap().clear();
        std::mem::take(&mut self.heads.lock().unwrap())
    }

    fn serve(&self, mut stream: TcpStream, connection: usize) -> Option<()> {
        stream.set_nodelay(true).unwrap();
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).ok()?;
        stream.write_all(&frame(kind::SETTINGS, 0, 0, &[])).ok()?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let mut payload = vec![0; length];
            stream.read_exact(&mut payload).ok()?;
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match (head[3], head[4]) {
                (kind::SETTINGS, 0) => stream.write_all(&frame(kind::SETTINGS, 1, 0, &[])).ok()?,
                (kind::HEADERS, _) => self.answer(&mut stream, connection, id)?,
                (kind::RST_STREAM, _) => {
                    self.resets.lock().unwrap().push(u32::from_be_bytes(payload.try_into().unwrap()));
                }
                _ => {}
            }
        }
    }

    fn answer(&self, stream: &mut TcpStream, connection: usize, id: u32) -> Option<()> {
        self.heads.lock().unwrap().push((connection, id));
        let lie = self.lies.lock().unwrap().pop_front();
        match lie {
            None => stream.write_all(&good(id)).ok(),
            Some((lie, then)) => {
                // The gateway may hang up in the middle.
                _ = stream.write_all(&lie(id));
                if then == Then::Close {
                    // What was sent is not lost to what was not read.
                    _ = stream.shutdown(std::net::Shutdown::Write);
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                (then == Then::GoOn).then_some(())
            }
        }
    }
}

pub const GOOD: &str = "good";

/// 200, and a few bytes.
pub fn good(stream: u32) -> Vec<u8> {
    [head(stream, &[(":status", "200")], 0), data(stream, GOOD.as_bytes(), true)].concat()
}

/// A whole head with these flags besides.
pub fn head(stream: u32, fields: &[(&str, &str)], flags: u8) -> Vec<u8> {
    frame(kind::HEADERS, flags | END_HEADERS, stream, &block_of(fields))
}

pub fn data(stream: u32, bytes: &[u8], is_end: bool) -> Vec<u8> {
    frame(kind::DATA, u8::from(is_end), stream, bytes)
}

pub fn reset(stream: u32, error: u32) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, &error.to_be_bytes())
}

/// A farewell: streams after `last` were not looked at.
pub fn go_away(last: u32, error: u32) -> Vec<u8> {
    frame(kind::GOAWAY, 0, 0, &[last.to_be_bytes(), error.to_be_bytes()].concat())
}
