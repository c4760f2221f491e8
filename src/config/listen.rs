//! `[[listen]]`: where clients connect, and how.

use super::diagnostics::Diagnostic;
use super::reader::{Located, Section};
use super::sections::socket_address;
use crate::server::Listen;
use std::net::SocketAddr;

/// `[[listen]]`.
pub fn listen(root: &mut Section<'_, '_>, admin: SocketAddr) -> Vec<Listen> {
    let mut addresses: Vec<Located<SocketAddr>> = Vec::new();
    let given = root.has("listen");
    for mut section in root.tables("listen", "listen") {
        if !section.has("address") {
            section.missing("address", "such as address = \"0.0.0.0:8080\"");
        }
        if let Some(address) = section.parsed("address", socket_address) {
            check_address(&section, &address, &addresses, admin);
            addresses.push(address);
        }
        section.finish();
    }
    if !given {
        root.missing("[[listen]]", "say where clients connect: [[listen]] with address = \"0.0.0.0:8080\"");
    }
    addresses.into_iter().map(|address| Listen { address: address.value }).collect()
}

fn check_address(
    section: &Section<'_, '_>,
    address: &Located<SocketAddr>,
    known: &[Located<SocketAddr>],
    admin: SocketAddr,
) {
    if address.value.port() == 0 {
        return;
    }
    if let Some(first) = known.iter().find(|known| overlap(known.value, address.value)) {
        let message = match first.value == address.value {
            true => format!("{} is listened on twice", address.value),
            false => format!("{} and {} overlap", address.value, first.value),
        };
        let diagnostic = Diagnostic::new(address.span.clone(), message);
        section.report().add(diagnostic.other(first.span.clone(), "first here"));
    }
    if overlap(address.value, admin) {
        let message = match address.value == admin {
            true => format!("{admin} is the admin listener's address too"),
            false => format!("{} takes in the admin listener's address, {admin}", address.value),
        };
        section.report().add(Diagnostic::new(address.span.clone(), message).help("give [admin] another address"));
    }
}

/// Whether the system would not give both: the same port, and one address takes in the other. `[::]` takes in IPv4 too.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let takes_in = |wide: SocketAddr, address: SocketAddr| {
        wide.ip().is_unspecified() && (wide.is_ipv6() || address.is_ipv4()) || wide.ip() == address.ip()
    };
    one.port() == other.port() && (takes_in(one, other) || takes_in(other, one))
}
