//! `[[listen]]`: where clients connect, and how.

mod tls;

use super::Purpose;
use super::diagnostics::Diagnostic;
use super::reader::{Located, Section};
use super::sections::socket_address;
use crate::net::Networks;
use crate::server::unix::PATH_BYTES_MAX;
use crate::server::{Address, Listen, Protocols};
use std::net::SocketAddr;
use std::path::Path;

/// What an address on the file system begins with.
const UNIX: &str = "unix:";

/// What else decides about listeners.
pub struct Surroundings<'a> {
    pub admin: SocketAddr,
    /// To which paths are relative.
    pub dir: &'a Path,
    /// `[client_ip] trusted_proxies`
    pub trusted: &'a Networks,
    pub purpose: Purpose,
}

/// `[[listen]]`.
pub fn listen(root: &mut Section<'_, '_>, around: &Surroundings<'_>) -> Vec<Listen> {
    let Surroundings { admin, dir, trusted, purpose } = *around;
    let mut known: Vec<Located<Address>> = Vec::new();
    let mut listens = Vec::new();
    let given = root.has("listen");
    for mut section in root.tables("listen", "listen") {
        if !section.has("address") {
            section.missing("address", "such as address = \"0.0.0.0:8080\"");
        }
        let protocols = protocols(&mut section);
        let address = section.parsed("address", |text| read_address(text, dir));
        let proxies = section.boolean("proxy_protocol").filter(|asked| asked.value);
        if let Some(address) = address {
            check_address(&section, &address, &known, admin);
            if let (Some(asked), Address::Tcp(_), true) = (&proxies, &address.value, trusted.is_empty()) {
                let message = "nobody may name the client here: [client_ip] trusted_proxies is empty";
                let help = "write the addresses of the proxies that connect here into trusted_proxies";
                section.report().add(Diagnostic::new(asked.span.clone(), message).help(help));
            }
            if let Address::Unix(_) = address.value {
                refuse_tls(&mut section);
            }
            let tls = tls::tls(&mut section, protocols, dir, purpose);
            let proxies = proxies.is_some().then(|| trusted.clone());
            listens.push(Listen { address: address.value.clone(), protocols, proxies, tls });
            known.push(address);
        }
        section.finish();
    }
    if !given {
        root.missing("[[listen]]", "say where clients connect: [[listen]] with address = \"0.0.0.0:8080\"");
    }
    listens
}

/// `protocols`: what clients may speak. Unless it is said both where they can choose, which is with TLS, and HTTP/1.1 alone
/// elsewhere.
fn protocols(section: &mut Section<'_, '_>) -> Protocols {
    if !section.has("protocols") {
        return if section.has("tls") { Protocols::BOTH } else { Protocols::HTTP1 };
    }
    let given = section.list("protocols", |text| Ok(text.to_owned()));
    if given.is_empty() {
        section.missing("protocols", "name at least one: protocols = [\"h1\", \"h2\"]");
    }
    let named = given.into_iter().filter_map(|text| {
        section.read(text, |text| match text {
            "h1" => Ok(Protocols { http1: true, http2: false }),
            "h2" => Ok(Protocols { http1: false, http2: true }),
            _ => Err(format!("'{text}' is neither h1 nor h2")),
        })
    });
    let named: Vec<_> = named.map(|protocol| protocol.value).collect();
    Protocols { http1: named.iter().any(|protocol| protocol.http1), http2: named.iter().any(|protocol| protocol.http2) }
}

/// Nobody can read on the way to a socket of this machine.
fn refuse_tls(section: &mut Section<'_, '_>) {
    if let Some(raw) = section.take("tls") {
        let message = "a Unix socket is not listened on with TLS";
        section
            .report()
            .add(Diagnostic::new(raw.span(), message).help("remove it: what is sent there stays on this machine"));
    }
}

fn read_address(text: &str, dir: &Path) -> Result<Address, String> {
    let Some(path) = text.strip_prefix(UNIX) else { return socket_address(text).map(Address::Tcp) };
    let path = dir.join(path);
    if text.len() == UNIX.len() || path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err("unix: is followed by the socket's path, such as \"unix:run/keygate.sock\"".to_owned());
    }
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        let path = path.display();
        return Err(format!("{path} has {length} bytes; the path of a socket has at most {PATH_BYTES_MAX}"));
    }
    Ok(Address::Unix(path))
}

fn check_address(section: &Section<'_, '_>, address: &Located<Address>, known: &[Located<Address>], admin: SocketAddr) {
    if let Some(first) = known.iter().find(|known| overlap(&known.value, &address.value)) {
        let message = match first.value == address.value {
            true => format!("{} is listened on twice", address.value),
            false => format!("{} and {} overlap", address.value, first.value),
        };
        let diagnostic = Diagnostic::new(address.span.clone(), message);
        section.report().add(diagnostic.other(first.span.clone(), "first here"));
    }
    let admin = Address::Tcp(admin);
    if overlap(&address.value, &admin) {
        let message = match address.value == admin {
            true => format!("{admin} is the admin listener's address too"),
            false => format!("{} takes in the admin listener's address, {admin}", address.value),
        };
        section.report().add(Diagnostic::new(address.span.clone(), message).help("give [admin] another address"));
    }
}

/// Whether the system would not give both: the same path or port, and one address takes in the other. `[::]` takes in IPv4
/// too. Of port 0 it gives as many as are wanted.
fn overlap(one: &Address, other: &Address) -> bool {
    let (one, other) = match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => (*one, *other),
        (Address::Unix(one), Address::Unix(other)) => return one == other,
        (Address::Tcp(_), Address::Unix(_)) | (Address::Unix(_), Address::Tcp(_)) => return false,
    };
    let takes_in = |wide: SocketAddr, address: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || address.is_ipv4()) || wide.ip() == address.ip()
    };
    one.port() == other.port() && one.port() != 0 && (takes_in(one, other) || takes_in(other, one))
}
