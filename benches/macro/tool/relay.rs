//! A byte relay: the floor. For each downstream connection one upstream connection; bytes are copied, nothing is parsed.

use super::Failure;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use std::io::{ErrorKind, Read, Write};

const LISTENER: Token = Token(0);
const BUFFER: usize = 64 * 1024;

/// Both ends of a relayed connection. Tokens are 2n + 2 for the client's and 2n + 3 for the upstream's.
type Pair = [TcpStream; 2];

pub fn run(address: &str, to: &str) -> Result<(), Failure> {
    let to = to.parse()?;
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(address.parse()?)?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut pairs: Vec<Option<Pair>> = Vec::new();
    let (mut events, mut buffer) = (Events::with_capacity(256), vec![0; BUFFER]);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    let mut pair = [client, TcpStream::from_std(connect(to)?)];
                    for (side, stream) in pair.iter_mut().enumerate() {
                        stream.set_nodelay(true)?;
                        poll.registry().register(stream, Token(2 * pairs.len() + 2 + side), Interest::READABLE)?;
                    }
                    pairs.push(Some(pair));
                }
                continue;
            }
            let (index, side) = ((event.token().0 - 2) / 2, event.token().0 % 2);
            if let Some(pair) = &mut pairs[index]
                && !copy(pair, side, &mut buffer)
            {
                pairs[index] = None;
            }
        }
    }
}

fn connect(to: std::net::SocketAddr) -> Result<std::net::TcpStream, Failure> {
    let stream = std::net::TcpStream::connect(to)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Copies what has arrived on one side to the other; false when the connection has ended.
fn copy(pair: &mut Pair, side: usize, buffer: &mut [u8]) -> bool {
    loop {
        match pair[side].read(buffer) {
            Ok(0) => return false,
            Ok(read) => {
                if !write_all(&mut pair[1 - side], &buffer[..read]) {
                    return false;
                }
                if read < buffer.len() {
                    return true;
                }
            }
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
    }
}

/// Messages of the benchmark fit the socket's buffer; for a large body this spins, which only makes the floor higher.
fn write_all(stream: &mut TcpStream, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => return false,
        }
    }
    true
}
