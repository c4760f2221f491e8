//! Stands between a client of Redis and its server, and acts at a word.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A way to `server` on which `act` happens before a request with this word in it goes on; where it says false, the request is
/// answered, and the connection ends in the answer's place.
pub fn relay(server: SocketAddr, word: &'static [u8], mut act: impl FnMut() -> bool + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // One after the other: a client that lost its connection opens the next.
        while let Ok((client, _)) = listener.accept() {
            pass(client, TcpStream::connect(server).unwrap(), word, &mut act);
        }
    });
    address
}

/// Carries requests and answers in turn, until the client leaves or an answer is withheld.
fn pass(mut client: TcpStream, mut server: TcpStream, word: &[u8], act: &mut impl FnMut() -> bool) {
    let mut piece = vec![0; 1 << 20];
    while let Ok(read @ 1..) = client.read(&mut piece) {
        let request = &piece[..read];
        let passes = !request.windows(word.len()).any(|found| found == word) || act();
        server.write_all(request).unwrap();
        let Ok(answered @ 1..) = server.read(&mut piece) else { return };
        if !passes || client.write_all(&piece[..answered]).is_err() {
            return;
        }
    }
}
