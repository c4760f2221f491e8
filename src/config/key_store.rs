//! `[store]`: where the keys are, and how to log in there. What other sections say of servers is read here too.

use super::diagnostics::Diagnostic;
use super::reader::{Located, Section};
use crate::secret::Secret;
use crate::store::Settings;
use crate::store::redis::{Login, Url};
use crate::tls::{Chain, Identity, Key, Roots, Tls};
use std::io::Read as _;
use std::path::Path;

/// `[store]`.
pub fn store(mut section: Section<'_, '_>, dir: &Path) -> Option<Settings> {
    let given = section.take("url").map(|raw| section.as_string(raw));
    let settings = match given {
        None => Some(Settings::Sqlite { path: dir.join("data/keygate.db") }),
        Some(text) => text.and_then(|text| section.read(text, |text| store_url(text, dir))).map(|url| url.value),
    };
    let settings = with_tls(settings, &mut section, dir);
    let settings = with_logins(settings, &mut section, dir);
    section.finish();
    settings
}

/// A Redis server that is not the store, with the same settings.
pub fn redis(section: &mut Section<'_, '_>, dir: &Path) -> Option<Url> {
    let url = section.parsed("url", Url::parse).map(|url| Settings::Redis { url: url.value });
    let settings = with_tls(url, section, dir);
    match with_logins(settings, section, dir)? {
        Settings::Redis { url } => Some(url),
        Settings::Sqlite { .. } | Settings::Memory => None,
    }
}

/// Adds who logs in, at the servers and at those who watch them.
fn with_logins(settings: Option<Settings>, section: &mut Section<'_, '_>, dir: &Path) -> Option<Settings> {
    let login = login(section, dir);
    let at_sentinels = login_called(section, ["sentinel_username", "sentinel_password"], dir);
    let refuse = |message: &str| {
        section.report().add(Diagnostic::new(section.span.clone(), message));
        None
    };
    let url = match settings {
        Some(Settings::Redis { url }) => url,
        Some(Settings::Sqlite { .. } | Settings::Memory) if login.is_some() || at_sentinels.is_some() => {
            return refuse("only Redis takes a user name and a password");
        }
        settings => return settings,
    };
    let url = login.map_or(url.clone(), |login| url.with_login(login));
    match at_sentinels {
        Some(_) if !url.has_sentinels() => refuse("only \"redis+sentinel://\" has Sentinels to log in at"),
        Some(login) => Some(Settings::Redis { url: url.with_sentinel_login(login) }),
        None => Some(Settings::Redis { url }),
    }
}

fn store_url(text: &str, dir: &Path) -> Result<Settings, String> {
    if text.starts_with("redis") {
        return Url::parse(text).map(|url| Settings::Redis { url });
    }
    match text.strip_prefix("sqlite:") {
        Some(path) if !path.is_empty() && !path.contains(['?', '\0']) => Ok(Settings::Sqlite { path: dir.join(path) }),
        _ => Err("a store's URL is written like \"sqlite:data/keygate.db\"".to_owned()),
    }
}

/// Adds what `ca`, `client_cert` and `client_key` name. Read now, so that a mistake in them is one of this file.
fn with_tls(settings: Option<Settings>, section: &mut Section<'_, '_>, dir: &Path) -> Option<Settings> {
    let (ca, cert, key) = (section.string("ca"), section.string("client_cert"), section.string("client_key"));
    match settings {
        Some(Settings::Redis { url }) if url.is_encrypted() => {
            let roots = ca.and_then(|ca| section.read(ca, |path| read_pem(path, dir, Roots::parse)));
            let identity = identity(section, cert, key, dir);
            let tls = Tls { roots: roots.map(|roots| roots.value), identity };
            Some(Settings::Redis { url: url.with_tls(tls) })
        }
        Some(Settings::Redis { .. } | Settings::Sqlite { .. } | Settings::Memory) => {
            for file in [ca, cert, key].into_iter().flatten() {
                let diagnostic = Diagnostic::new(file.span, "only a Redis store with TLS has certificates");
                section.report().add(diagnostic.help("write url = \"rediss://HOST:PORT\""));
            }
            settings
        }
        None => None,
    }
}

/// `client_cert` and `client_key`.
pub fn client_identity(section: &mut Section<'_, '_>, dir: &Path) -> Option<Identity> {
    let (cert, key) = (section.string("client_cert"), section.string("client_key"));
    identity(section, cert, key, dir)
}

fn identity(
    section: &Section<'_, '_>,
    cert: Option<Located<String>>,
    key: Option<Located<String>>,
    dir: &Path,
) -> Option<Identity> {
    let (cert, key) = match (cert, key) {
        (Some(cert), Some(key)) => (cert, key),
        (None, None) => return None,
        (Some(one), None) | (None, Some(one)) => {
            let diagnostic = Diagnostic::new(one.span, "client_cert and client_key belong together");
            section.report().add(diagnostic.help("give both, or none"));
            return None;
        }
    };
    let chain = section.read(cert, |path| read_pem(path, dir, Chain::parse));
    let path = dir.join(&key.value);
    let key = section.read(key, |path| read_pem(path, dir, Key::parse));
    let (Some(chain), Some(key)) = (chain, key) else { return None };
    let identity = Identity::new(chain.value, key.value, "client_cert");
    let told = identity.map_err(|message| {
        section.report().add(Diagnostic::new(key.span, format!("{} {message}", path.display())));
    });
    told.ok()
}

/// `username` and `password`.
pub fn login(section: &mut Section<'_, '_>, dir: &Path) -> Option<Login> {
    login_called(section, ["username", "password"], dir)
}

fn login_called(section: &mut Section<'_, '_>, [username, password]: [&'static str; 2], dir: &Path) -> Option<Login> {
    let (name, has_password) = (section.string(username), section.has(password));
    let secret = secret(section, password, dir);
    if let (Some(name), false) = (&name, has_password) {
        let diagnostic = Diagnostic::new(name.span.clone(), "a user name without a password");
        section.report().add(diagnostic.help(format!("add {password} = {{ env = \"VARIABLE\" }}")));
    }
    Some(Login { username: name.map(|name| name.value), password: secret? })
}

/// A secret, which is never in the file itself: `{ env = "VARIABLE" }` or `{ file = "PATH" }`, relative to the file.
pub fn secret(section: &mut Section<'_, '_>, key: &'static str, dir: &Path) -> Option<Secret<String>> {
    let raw = section.take(key)?;
    let span = raw.span();
    if raw.get_ref().is_str() {
        let diagnostic = Diagnostic::new(span, format!("a {key} does not belong in this file"));
        let help = format!("write {key} = {{ env = \"VARIABLE\" }}, or {{ file = \"PATH\" }}");
        section.report().add(diagnostic.help(help));
        return None;
    }
    let mut source = section.as_section(key, raw);
    let (env, file) = (source.string("env"), source.string("file"));
    source.finish();
    match read_source(env.as_ref(), file.as_ref(), dir) {
        Ok(secret) => Some(secret),
        Err(message) => {
            section.report().add(Diagnostic::new(span, message));
            None
        }
    }
}

fn read_source(
    env: Option<&Located<String>>,
    file: Option<&Located<String>>,
    dir: &Path,
) -> Result<Secret<String>, String> {
    match (env, file) {
        (Some(name), None) => {
            let value = std::env::var(&name.value).ok().filter(|value| !value.is_empty());
            value.map(Secret::new).ok_or_else(|| format!("the environment has no {} that can be read", name.value))
        }
        (None, Some(path)) => read_file(&dir.join(&path.value)),
        (Some(_), Some(_)) | (None, None) => Err("give one of env and file".to_owned()),
    }
}

/// What a PEM file holds.
pub fn read_pem<T>(path: &str, dir: &Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<T, String> {
    const BYTES_MAX: u64 = 1024 * 1024;
    let path = dir.join(path);
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut pem = Secret::new(Vec::new());
    let file = std::fs::File::open(&path).map_err(failed)?;
    file.take(BYTES_MAX).read_to_end(pem.expose_mut()).map_err(failed)?;
    parse(pem.expose()).map_err(|message| format!("{} {message}", path.display()))
}

/// The first line of a small file.
fn read_file(path: &Path) -> Result<Secret<String>, String> {
    const BYTES_MAX: u64 = 4096;
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let mut text = Secret::new(String::new());
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(BYTES_MAX).read_to_string(text.expose_mut()).map_err(failed)?;
    let line = text.expose().lines().next().filter(|line| !line.is_empty());
    line.map(|line| Secret::new(line.to_owned())).ok_or_else(|| format!("{} is empty", path.display()))
}
