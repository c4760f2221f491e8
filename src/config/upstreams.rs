//! `[upstreams]`: where requests go, and how the servers there are spoken to.

use super::diagnostics::Diagnostic;
use super::key_store;
use super::reader::{Located, Raw, Section};
use super::values::is_name;
use crate::proxy::{Endpoint, Protocol, Secured, UpstreamSettings};
use crate::tls::{Roots, Tls};
use http::HeaderValue;
use http::uri::Authority;
use rustls::pki_types::ServerName;
use std::path::Path;

/// One address, as it is written.
#[derive(Clone)]
struct Address {
    host: String,
    port: u16,
    is_secured: bool,
}

/// `tls`: how the servers of an upstream prove who they are, and we to them.
#[derive(Default)]
struct Security {
    tls: Tls,
    server_name: Option<ServerName<'static>>,
}

/// `[upstreams.<name>]`. Paths are relative to `dir`.
pub fn upstreams(mut section: Section<'_, '_>, dir: &Path) -> Vec<UpstreamSettings> {
    let tables = section.rest();
    tables.into_iter().map(|(name, raw)| upstream(name, &section, raw, dir)).collect()
}

fn upstream<'t>(name: Located<String>, section: &Section<'_, 't>, raw: Raw<'t>, dir: &Path) -> UpstreamSettings {
    if !is_name(&name.value) {
        section.report().add(
            Diagnostic::new(name.span, format!("'{}' is not an upstream name", name.value))
                .help("use a-z, 0-9, _ and -"),
        );
    }
    let mut table = section.as_section(format!("[upstreams.{}]", name.value), raw);
    let before = section.report().len();
    let given = table.has("live") || table.has("test");
    let (live, test) = (table.list("live", address), table.list("test", address));
    check_apart(&table, &live, &test);
    let host = table.parsed("host", host);
    let protocol = table.parsed("protocol", protocol);
    let is_secured = live.iter().chain(&test).any(|address| address.value.is_secured);
    let security = security(&mut table, is_secured, dir);
    if live.is_empty() && test.is_empty() && (!given || section.report().len() == before) {
        table.missing("address", "give live or test, or both: live = [\"http://127.0.0.1:9001\"]");
    }
    let protocol = protocol.map(|protocol| protocol.value);
    // A mode of its own has TLS sessions of its own, too.
    let endpoints = |addresses| endpoints(&table, addresses, protocol, security.as_ref());
    let (live, test) = (endpoints(live), endpoints(test));
    table.finish();
    UpstreamSettings { name: name.value, live, test, host: host.map(|host| host.value) }
}

/// What stands in for the client's `Host`.
fn host(text: &str) -> Result<HeaderValue, String> {
    let is_host = text.parse::<Authority>().is_ok() && !text.contains('@');
    let host = HeaderValue::from_str(text).ok().filter(|_| is_host);
    host.ok_or_else(|| format!("'{text}' is not a host"))
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "h1" => Ok(Protocol::Http1),
        "h2" => Ok(Protocol::Http2),
        _ => Err(format!("'{text}' is neither h1 nor h2")),
    }
}

/// `tls`. None after an error alone.
fn security(table: &mut Section<'_, '_>, is_secured: bool, dir: &Path) -> Option<Security> {
    let Some(raw) = table.take("tls") else { return Some(Security::default()) };
    let span = raw.span();
    let before = table.report().len();
    let mut section = table.as_section("tls", raw);
    let ca = section.string("ca").and_then(|ca| section.read(ca, |path| key_store::read_pem(path, dir, Roots::parse)));
    let identity = key_store::client_identity(&mut section, dir);
    let server_name = section.parsed("server_name", server_name);
    section.finish();
    if !is_secured {
        let diagnostic = Diagnostic::new(span, "only a server with TLS has certificates");
        table.report().add(diagnostic.help("write its address with https://"));
    }
    let tls = Tls { roots: ca.map(|ca| ca.value), identity };
    (table.report().len() == before).then(|| Security { tls, server_name: server_name.map(|name| name.value) })
}

fn server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| format!("'{text}' is not a name that a certificate can be for"))
}

fn endpoints(
    table: &Section<'_, '_>,
    addresses: Vec<Located<Address>>,
    protocol: Option<Protocol>,
    security: Option<&Security>,
) -> Vec<Endpoint> {
    let endpoint = |Located { value: Address { host, port, is_secured }, span }| {
        if !is_secured {
            return Some(Endpoint { host, port, protocol: protocol.unwrap_or(Protocol::Http1), secured: None });
        }
        let protocol = protocol.unwrap_or(Protocol::Negotiated);
        let security = security?;
        let name = security.server_name.clone().map_or_else(|| server_name(&host), Ok);
        let secured = name.and_then(|name| {
            Secured::new(&security.tls, name, protocol).map_err(|error| format!("TLS cannot be set up: {error}"))
        });
        match secured {
            Ok(secured) => Some(Endpoint { host, port, protocol, secured: Some(secured) }),
            Err(message) => {
                table.report().add(Diagnostic::new(span, message));
                None
            }
        }
    };
    addresses.into_iter().filter_map(endpoint).collect()
}

/// A test key must never reach live data: no address serves both modes. Compared as written; what two names resolve to
/// is the operator's to know.
fn check_apart(section: &Section<'_, '_>, live: &[Located<Address>], test: &[Located<Address>]) {
    for address in test {
        let is_same = |live: &&Located<Address>| {
            live.value.host.eq_ignore_ascii_case(&address.value.host) && live.value.port == address.value.port
        };
        if let Some(other) = live.iter().find(is_same) {
            let message = "a test key would reach live data: this address is in live too";
            let diagnostic = Diagnostic::new(address.span.clone(), message).other(other.span.clone(), "live here");
            section.report().add(diagnostic.help("name the sandbox, or leave test out"));
        }
    }
}

/// `http://host:port` or `https://host:port`, nothing more.
fn address(text: &str) -> Result<Address, String> {
    let help = || format!("'{text}' is not an upstream's address; write it like \"http://10.0.0.5:8080\"");
    let uri: http::Uri = text.parse().map_err(|_| help())?;
    let authority = uri.authority().ok_or_else(help)?;
    let (is_secured, port_usual) = match uri.scheme_str() {
        Some("http") => (false, 80),
        Some("https") => (true, 443),
        Some(_) | None => return Err(help()),
    };
    if uri.path() != "/"
        || uri.query().is_some()
        || authority.as_str().contains('@')
        || text.ends_with('/')
        || text.contains('#')
    {
        return Err(format!("'{text}': write the address alone, without path, query or user"));
    }
    let port = match authority.as_str().strip_prefix(authority.host()) {
        Some("") => Some(port_usual),
        rest => rest.and_then(|rest| rest.strip_prefix(':')).and_then(|port| port.parse().ok()),
    };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    match port {
        Some(port) if port > 0 && !host.is_empty() => Ok(Address { host, port, is_secured }),
        Some(_) | None => Err(help()),
    }
}
