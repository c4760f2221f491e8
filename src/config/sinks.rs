//! `[[audit.sinks]]`: where audit records are sent besides the journal.

use super::diagnostics::Diagnostic;
use super::key_store;
use super::reader::{Located, Section};
use super::values::{is_name, suggest};
use crate::audit::sinks::Room;
use crate::audit::sinks::http::{Authorization, Settings as HttpSettings};
use crate::store;
use crate::store::redis::StreamSettings;
use crate::tls::{Roots, Tls};
use std::path::Path;
use std::time::Duration;
use ureq::http::Uri;

const TYPES: [&str; 4] = ["sqlite", "redis", "http", "stdout"];
const NAME_MAX: usize = 32;
/// What tells the store of last uses is a sink as well.
const RESERVED: [&str; 1] = [crate::manage::reporter::NAME];
/// Of one batch, unless the file says otherwise. Redis does nothing else while it takes one.
const ROOM: Room = Room { records: 1000, bytes: 1024 * 1024 };
const REDIS_ROOM: Room = Room { records: 200, bytes: 256 * 1024 };
const HTTP_TIMEOUT: Duration = Duration::from_secs(10);
const STREAM: &str = "audit";
/// About 100 MiB.
const STREAM_LENGTH: u64 = 100_000;

/// One sink.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    pub name: String,
    /// How much it is sent at once.
    pub room: Room,
    pub destination: Destination,
}

/// Where a sink's records go.
#[derive(Clone, Debug)]
pub enum Destination {
    /// The index in the audit directory.
    Sqlite,
    Redis(StreamSettings),
    Http(HttpSettings),
    Stdout,
}

/// Reads the sinks. Unless the file says anything of them there is the index; an empty list is none at all.
pub fn sinks(audit: &mut Section<'_, '_>, store: Option<&store::Settings>, dir: &Path) -> Vec<SinkSettings> {
    if !audit.has("sinks") {
        return by_default();
    }
    let mut names: Vec<Located<String>> = Vec::new();
    let sections = audit.tables("sinks", "sink");
    sections.into_iter().filter_map(|section| sink(section, store, dir, &mut names)).collect()
}

/// The index alone: what else records are sent to is a load that somebody should want, the key store's Redis above all.
fn by_default() -> Vec<SinkSettings> {
    vec![SinkSettings { name: "sqlite".to_owned(), room: ROOM, destination: Destination::Sqlite }]
}

fn own_redis(store: &store::Settings) -> Option<store::redis::Url> {
    match store {
        store::Settings::Redis { url } => Some(url.clone()),
        store::Settings::Sqlite { .. } | store::Settings::Memory => None,
    }
}

fn sink(
    mut section: Section<'_, '_>,
    store: Option<&store::Settings>,
    dir: &Path,
    names: &mut Vec<Located<String>>,
) -> Option<SinkSettings> {
    if !section.has("type") {
        section.missing("type", &format!("write type = one of {}", TYPES.map(|name| format!("\"{name}\"")).join(", ")));
    }
    let kind = section.parsed("type", |text| {
        let known = TYPES.into_iter().find(|known| *known == text);
        known.ok_or_else(|| format!("there is no sink of type '{text}': {}", suggest(text, TYPES.into_iter())))
    });
    // What else belongs here depends on the type.
    let kind = kind?;
    let name = name(&mut section, &kind, names);
    let default = if kind.value == "redis" { REDIS_ROOM } else { ROOM };
    let room = room(&mut section, default);
    let destination = match kind.value {
        "sqlite" => Some(Destination::Sqlite),
        "redis" => redis(&mut section, store, dir).map(Destination::Redis),
        "http" => http(&mut section, dir).map(Destination::Http),
        _ => Some(Destination::Stdout),
    };
    section.finish();
    Some(SinkSettings { name: name?, room, destination: destination? })
}

/// The sink's name, which is also its checkpoint's.
fn name(section: &mut Section<'_, '_>, kind: &Located<&str>, names: &mut Vec<Located<String>>) -> Option<String> {
    let given = section.has("name");
    let name = section.parsed("name", |text| {
        if RESERVED.contains(&text) {
            return Err(format!("the gateway has a sink of its own that is called '{text}'"));
        }
        let valid = is_name(text) && text.len() <= NAME_MAX;
        if valid {
            Ok(text.to_owned())
        } else {
            Err(format!("a sink's name has at most {NAME_MAX} of a-z, 0-9, - and _"))
        }
    });
    let name = match (name, given) {
        (Some(name), _) => name,
        (None, true) => return None,
        (None, false) => Located { value: kind.value.to_owned(), span: kind.span.clone() },
    };
    if let Some(first) = names.iter().find(|first| first.value == name.value) {
        let diagnostic = Diagnostic::new(name.span.clone(), format!("two sinks are called '{}'", name.value));
        let diagnostic = diagnostic.other(first.span.clone(), "first here");
        section.report().add(diagnostic.help("give this one a name of its own: name = \"...\""));
    }
    names.push(name.clone());
    Some(name.value)
}

fn room(section: &mut Section<'_, '_>, default: Room) -> Room {
    let mut batch = section.table("batch");
    let records = batch.number("records", 1..=10_000).and_then(|records| usize::try_from(records).ok());
    let bytes = batch.size("size", 1024..=16 * 1024 * 1024).and_then(|bytes| usize::try_from(bytes).ok());
    batch.finish();
    Room { records: records.unwrap_or(default.records), bytes: bytes.unwrap_or(default.bytes) }
}

fn redis(section: &mut Section<'_, '_>, store: Option<&store::Settings>, dir: &Path) -> Option<StreamSettings> {
    let given = section.has("url");
    let url = match given {
        true => key_store::redis(section, dir),
        false => {
            let own = store.and_then(own_redis);
            // After an error in [store] nobody knows whether it would be Redis.
            if own.is_none() && store.is_some() {
                section.missing("url", "the store is not Redis: write url = \"redis://HOST:6379\"");
            }
            own
        }
    };
    let stream = section.parsed("stream", |text| {
        // Every other key of ours begins with another name.
        let valid = is_name(text) && text.starts_with(STREAM);
        if valid {
            Ok(text.to_owned())
        } else {
            Err(format!("a stream's name begins with {STREAM}, then a-z, 0-9, - and _"))
        }
    });
    let length_max = section.number("max_length", 1000..=1_000_000_000).unwrap_or(STREAM_LENGTH);
    let stream = stream.map_or_else(|| STREAM.to_owned(), |stream| stream.value);
    Some(StreamSettings { url: url?, stream, length_max })
}

fn http(section: &mut Section<'_, '_>, dir: &Path) -> Option<HttpSettings> {
    if !section.has("url") {
        section.missing("url", "where records are posted, such as url = \"http://127.0.0.1:8686/\"");
    }
    let url = section.parsed("url", http_url);
    let authorization = authorization(section, dir);
    let compress = section.boolean("compress").is_none_or(|compress| compress.value);
    let timeout = section.duration("timeout", Duration::from_millis(100)..=Duration::from_secs(600));
    let roots = section.string("ca").and_then(|ca| authorities(section, ca, url.as_ref(), dir));
    Some(HttpSettings {
        url: url?.value,
        authorization,
        compress,
        timeout: timeout.unwrap_or(HTTP_TIMEOUT),
        tls: Tls { roots, identity: None },
    })
}

/// A token, or a name and a password.
fn authorization(section: &mut Section<'_, '_>, dir: &Path) -> Option<Authorization> {
    if section.has("token") {
        // A login beside it is an unknown setting.
        return key_store::secret(section, "token", dir).map(Authorization::bearer);
    }
    let login = key_store::login(section, dir)?;
    Some(Authorization::basic(login.username.as_deref().unwrap_or_default(), &login.password))
}

fn authorities(
    section: &Section<'_, '_>,
    ca: Located<String>,
    url: Option<&Located<Uri>>,
    dir: &Path,
) -> Option<Roots> {
    if url.is_some_and(|url| url.value.scheme_str() == Some("http")) {
        let diagnostic = Diagnostic::new(ca.span, "only a server with TLS has certificates");
        section.report().add(diagnostic.help("write url = \"https://HOST/PATH\""));
        return None;
    }
    section.read(ca, |path| key_store::read_pem(path, dir, Roots::parse)).map(|roots| roots.value)
}

fn http_url(text: &str) -> Result<Uri, String> {
    let malformed = || "write a URL like \"http://127.0.0.1:8686/\" or \"https://logs.example.com/ingest\"".to_owned();
    let url: Uri = text.parse().map_err(|_| malformed())?;
    let authority = url.authority().ok_or_else(malformed)?;
    match url.scheme_str() {
        Some("http" | "https") if authority.as_str().contains('@') => {
            Err("a login does not belong in the URL: give token beside it".to_owned())
        }
        Some("http" | "https") => Ok(url),
        Some(_) | None => Err(malformed()),
    }
}
