//! `[[listen]]`: where clients connect, and how.

use super::diagnostics::Diagnostic;
use super::reader::{Located, Section};
use super::sections::socket_address;
use crate::server::{Listen, Protocols};
use std::net::SocketAddr;

/// `[[listen]]`.
pub fn listen(root: &mut Section<'_, '_>, admin: SocketAddr) -> Vec<Listen> {
    let mut addresses: Vec<Located<SocketAddr>> = Vec::new();
    let mut listens = Vec::new();
    let given = root.has("listen");
    for mut section in root.tables("listen", "listen") {
        if !section.has("address") {
            section.missing("address", "such as address = \"0.0.0.0:8080\"");
        }
        let protocols = protocols(&mut section);
        if let Some(address) = section.parsed("address", socket_address) {
            check_address(&section, &address, &addresses, admin);
            listens.push(Listen { address: address.value, protocols });
            addresses.push(address);
        }
        section.finish();
    }
    if !given {
        root.missing("[[listen]]", "say where clients connect: [[listen]] with address = \"0.0.0.0:8080\"");
    }
    listens
}

/// `protocols`: what clients may speak; HTTP/1.1 alone unless it is said.
fn protocols(section: &mut Section<'_, '_>) -> Protocols {
    if !section.has("protocols") {
        return Protocols::HTTP1;
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
