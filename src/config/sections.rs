//! The sections with plain settings. Every limit has a default and bounds; zero is never one of them.

use super::reader::Section;
use crate::audit::{Durability, Overload, Retention, Rotation};
use crate::key::Prefix;
use crate::net::{Networks, parse_network};
use crate::{admin, audit, proxy, server};
use http::HeaderName;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
const KEYS_MAX: u64 = 1_000_000;
const MAX_STALE: Duration = Duration::from_secs(15 * 60);
const WORKERS_MAX: u64 = 256;
/// Deadlines are at least a millisecond and at most a day.
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(24 * 3600);

/// `[limits]`, by the module that keeps them.
pub struct Limits {
    pub server: server::Limits,
    pub proxy: proxy::Limits,
}

/// `address:port`, IPv6 in brackets.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("'{text}' is not an address; write it like \"0.0.0.0:8080\" or \"[::1]:8080\""))
}

/// `[admin]`.
pub fn admin(mut section: Section<'_, '_>) -> admin::Settings {
    let address = section.parsed("address", |text| {
        let address = socket_address(text)?;
        let loopback = address.ip().is_loopback();
        if loopback {
            Ok(address)
        } else {
            Err("the admin listener has no credential yet: use a loopback address".to_owned())
        }
    });
    section.finish();
    admin::Settings { address: address.map_or(ADMIN, |address| address.value) }
}

/// `[gateway]`.
pub fn gateway(mut section: Section<'_, '_>) -> (Option<String>, usize) {
    let id = section.parsed("id", |text| {
        let valid = (1..=64).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if valid {
            Ok(text.to_owned())
        } else {
            Err("an id has 1 to 64 characters of A-Z, a-z, 0-9, - and _".to_owned())
        }
    });
    let workers = section.number("workers", 1..=WORKERS_MAX).and_then(|workers| usize::try_from(workers).ok());
    section.finish();
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (id.map(|id| id.value), workers.unwrap_or_else(cores))
}

/// `[keys]`. None after an error alone.
pub fn keys(mut section: Section<'_, '_>) -> Option<Prefix> {
    let given = section.take("prefix");
    let prefix = match given {
        None => Prefix::new("ark").ok(),
        Some(raw) => section.as_string(raw).and_then(|text| section.read(text, Prefix::new)).map(|prefix| prefix.value),
    };
    section.finish();
    prefix
}

/// `[cache]`: how many keys, how stale they may be, and the snapshot's path.
pub fn cache(mut section: Section<'_, '_>, dir: &Path) -> (u64, Duration, PathBuf) {
    let keys_max = section.number("keys_max", 1..=100_000_000).unwrap_or(KEYS_MAX);
    let max_stale = section.duration("max_stale", Duration::from_secs(1)..=*DEADLINE.end()).unwrap_or(MAX_STALE);
    let snapshot = section.string("snapshot").map_or_else(|| "data/keys.snapshot".to_owned(), |path| path.value);
    section.finish();
    (keys_max, max_stale, dir.join(snapshot))
}

/// `[audit]`.
pub fn audit(mut section: Section<'_, '_>, dir: &Path) -> audit::Settings {
    let path = section.string("dir").map_or_else(|| "data/audit".to_owned(), |path| path.value);
    let durability = section.parsed("durability", |text| match text {
        "async" => Ok(Durability::Async),
        "written" => Ok(Durability::Written),
        "synced" => Ok(Durability::Synced),
        _ => Err(format!("'{text}' is none of async, written and synced")),
    });
    let overload = section.parsed("overload", |text| match text {
        "reject" => Ok(Overload::Reject),
        "drop" => Ok(Overload::Drop),
        _ => Err(format!("'{text}' is neither reject nor drop")),
    });
    let anonymous = section.number("anonymous_per_second", 1..=1_000_000);
    let query_names = section.list("query_names", query_name);
    let unsaid = audit::Settings::of(dir.join(path));
    let rotation = rotation(section.table("rotate"), unsaid.rotation);
    let retention = retention(section.table("retain"), unsaid.retention);
    section.finish();
    audit::Settings {
        durability: durability.map_or(unsaid.durability, |durability| durability.value),
        overload: overload.map_or(unsaid.overload, |overload| overload.value),
        anonymous_per_second: anonymous
            .and_then(|count| u32::try_from(count).ok())
            .unwrap_or(unsaid.anonymous_per_second),
        query_names: query_names.into_iter().map(|name| name.value).collect(),
        rotation,
        retention,
        ..unsaid
    }
}

/// A name as it stands in a query, encoded.
fn query_name(text: &str) -> Result<String, String> {
    let is_name = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#\"\\".contains(&byte));
    if is_name { Ok(text.to_owned()) } else { Err(format!("'{text}' is no parameter's name")) }
}

/// `rotate` in `[audit]`.
fn rotation(mut section: Section<'_, '_>, unsaid: Rotation) -> Rotation {
    let bytes = section.size("size", 1024 * 1024..=1024 * 1024 * 1024).unwrap_or(unsaid.bytes);
    let age =
        section.duration("age", Duration::from_secs(1)..=Duration::from_secs(365 * 24 * 3600)).unwrap_or(unsaid.age);
    section.finish();
    Rotation { bytes, age }
}

/// `retain` in `[audit]`.
fn retention(mut section: Section<'_, '_>, unsaid: Retention) -> Retention {
    let days = section.number("days", 1..=36_500);
    let bytes = section.size("size", 1024 * 1024..=1 << 50).unwrap_or(unsaid.bytes);
    section.finish();
    Retention { age: days.map_or(unsaid.age, |days| Duration::from_secs(days * 24 * 3600)), bytes }
}

/// `[client_ip]`.
pub fn client_ip(mut section: Section<'_, '_>) -> Networks {
    let proxies = section.list("trusted_proxies", |text| {
        let network = parse_network(text)?;
        let everybody = network.prefix_len() == 0;
        if everybody {
            Err(format!("'{text}' trusts everybody: any client could choose its own address"))
        } else {
            Ok(network)
        }
    });
    section.finish();
    Networks::new(proxies.into_iter().map(|network| network.value).collect())
}

/// `[versions]`: both settings or none.
pub fn versions(mut section: Section<'_, '_>) -> (Option<HeaderName>, Option<String>) {
    let (has_header, has_current) = (section.has("header"), section.has("current"));
    let header = section.parsed("header", |text| {
        let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| format!("'{text}' is not a header's name"))?;
        let reserved = crate::proxy::headers::is_reserved(&name);
        if reserved { Err(format!("'{text}' is a header that the gateway sets itself")) } else { Ok(name) }
    });
    let current = section.parsed("current", |text| {
        let date = text.parse::<jiff::civil::Date>().ok().filter(|date| date.to_string() == text);
        date.map(|_| text.to_owned()).ok_or_else(|| format!("'{text}' is not a date; write it like \"2026-11-01\""))
    });
    match (has_header, has_current) {
        (true, false) => section.missing("current", "the version that new keys remember"),
        (false, true) => section.missing("header", "the header that names a version"),
        (true, true) | (false, false) => {}
    }
    section.finish();
    (header.map(|header| header.value), current.map(|current| current.value))
}

/// `[limits]`.
pub fn limits(mut section: Section<'_, '_>) -> Limits {
    let (server, proxy) = (server::Limits::default(), proxy::Limits::default());
    let mut deadline = |key, default| section.duration(key, DEADLINE).unwrap_or(default);
    let handshake_timeout = deadline("handshake_timeout", server.handshake_timeout);
    let head_timeout = deadline("head_timeout", server.head_timeout);
    let idle_timeout = deadline("idle_timeout", server.idle_timeout);
    let write_stall = deadline("write_stall", server.write_stall);
    let drain = deadline("drain", server.drain);
    let body_idle = deadline("body_idle", proxy.body_idle);
    let tunnel_idle = deadline("tunnel_idle", proxy.tunnel_idle);
    let upstream_connect = deadline("upstream_connect", proxy.upstream_connect);
    let upstream_head = deadline("upstream_head", proxy.upstream_head);
    let upstream_idle = deadline("upstream_idle", proxy.upstream_idle);
    let connections_max = count(section.number("connections_max", 1..=1_000_000), server.connections_max);
    let handshakes_max = count(section.number("handshakes_max", 1..=100_000), server.handshakes_max);
    let streams_max = section.number("streams_max", 1..=10_000).and_then(|max| u32::try_from(max).ok());
    let head_bytes_max = count(section.size("head_max", 1024..=256 * 1024), server.head_bytes_max);
    let head_fields_max = count(section.number("fields_max", 8..=1000), server.head_fields_max);
    let target_bytes_max = count(section.size("target_max", 256..=32 * 1024), proxy.target_bytes_max);
    let upstream_requests_max =
        count(section.number("upstream_requests_max", 1..=1_000_000), proxy.upstream_requests_max);
    section.finish();
    Limits {
        server: server::Limits {
            connections_max,
            head_bytes_max,
            head_fields_max,
            handshake_timeout,
            handshakes_max,
            head_timeout,
            streams_max: streams_max.unwrap_or(server.streams_max),
            idle_timeout,
            write_stall,
            drain,
        },
        proxy: proxy::Limits {
            target_bytes_max,
            body_idle,
            tunnel_idle,
            upstream_connect,
            upstream_head,
            upstream_idle,
            upstream_requests_max,
        },
    }
}

fn count(given: Option<u64>, default: usize) -> usize {
    given.and_then(|given| usize::try_from(given).ok()).unwrap_or(default)
}

/// The tiers a key can be given (contract, section 1). Stored; enforced when rate limits are.
pub fn tiers() -> Vec<String> {
    ["test", "standard", "elevated", "unlimited"].map(str::to_owned).to_vec()
}
