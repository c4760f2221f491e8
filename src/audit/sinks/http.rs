//! Records by HTTP: batches of lines (NDJSON), for ClickHouse, Vector, or whatever takes a POST.

use super::{Line, Positions, Sink, SinkError};
use crate::clock::Timestamp;
use crate::secret::Secret;
use crate::tls::{self, Tls};
use flate2::Compression;
use flate2::write::GzEncoder;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, ErrorKind, Write as _};
use std::sync::Arc;
use std::time::Duration;
use ureq::http::{Response, StatusCode, Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// What of an answer's body is read.
const ANSWER_BYTES_MAX: u64 = 16 * 1024;
/// What of it is shown.
const SHOWN_CHARS_MAX: usize = 200;
/// A server that takes no more may close the connection before it is heard: so many times, and the batch is made smaller.
const BREAKS_MAX: u32 = 3;

/// A server that takes records.
#[derive(Clone, Debug)]
pub struct Settings {
    pub url: Uri,
    pub authorization: Option<Authorization>,
    /// Whether batches are sent compressed (gzip).
    pub compress: bool,
    /// For one batch, from connecting to the answer's head.
    pub timeout: Duration,
    pub tls: Tls,
}

/// What is shown to the server: a value of `Authorization`.
#[derive(Clone, Debug)]
pub struct Authorization {
    scheme: &'static str,
    credential: Arc<Secret<String>>,
}

/// Posts batches to one URL. Taken is what was answered with 2xx.
pub struct Http {
    name: String,
    settings: Settings,
    agent: Option<Agent>,
    /// Connections in a row that broke under a batch.
    breaks: u32,
}

// === impl Authorization ===

impl Authorization {
    /// A token (RFC 6750).
    pub fn bearer(token: Secret<String>) -> Self {
        Self { scheme: "Bearer", credential: Arc::new(token) }
    }

    /// A user's name and password (RFC 7617).
    pub fn basic(username: &str, password: &Secret<String>) -> Self {
        let login = Secret::new(format!("{username}:{}", password.expose()));
        Self { scheme: "Basic", credential: Arc::new(Secret::new(base64(login.expose().as_bytes()))) }
    }

    fn header(&self) -> String {
        format!("{} {}", self.scheme, self.credential.expose())
    }

    fn is_in(&self, text: &str) -> bool {
        text.contains(self.credential.expose().as_str())
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group.iter().chain([0, 0].iter()).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for place in 0..4 {
            let digit = DIGITS.get(bits >> (18 - 6 * place) & 63).copied().unwrap_or_default();
            text.push(if place <= group.len() { digit.into() } else { '=' });
        }
    }
    text
}

// === impl Http ===

impl Http {
    /// Nothing is connected before there is something to send.
    pub const fn new(name: String, settings: Settings) -> Self {
        Self { name, settings, agent: None, breaks: 0 }
    }

    /// The system's authorities are read when they are first needed, and again as long as that fails.
    fn agent(&mut self) -> Result<Agent, SinkError> {
        if let Some(agent) = &self.agent {
            return Ok(agent.clone());
        }
        let agent = connector(&self.settings).map_err(|error| SinkError::later(error.to_string()))?;
        Ok(self.agent.insert(agent).clone())
    }

    fn post(&mut self, batch: &[Line]) -> Result<Response<Body>, SinkError> {
        let body = body(batch, self.settings.compress).map_err(|error| SinkError::later(error.to_string()))?;
        let mut request = self.agent()?.post(&self.settings.url);
        request = request.header(header::CONTENT_TYPE, "application/x-ndjson");
        request =
            request.header("X-Keygate-Journal", ranges(batch)).header("X-Keygate-Records", batch.len().to_string());
        if self.settings.compress {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        if let Some(authorization) = &self.settings.authorization {
            request = request.header(header::AUTHORIZATION, authorization.header());
        }
        request.send(&body[..]).map_err(|error| self.broken(error, batch.len()))
    }

    /// No answer: again, but in smaller pieces when the connection broke under each of the last ones.
    fn broken(&mut self, error: ureq::Error, lines: usize) -> SinkError {
        let broke = matches!(&error, ureq::Error::Io(error) if is_break(error.kind()));
        let why = self.explain(error);
        self.breaks = if broke { self.breaks + 1 } else { 0 };
        if self.breaks < BREAKS_MAX || lines == 1 {
            return SinkError::later(why);
        }
        self.breaks = 0;
        SinkError::TooLarge { why }
    }

    fn explain(&self, error: ureq::Error) -> String {
        match error {
            ureq::Error::Io(error) => self.settings.tls.explain(&error, false).to_string(),
            ureq::Error::Timeout(_) => format!("no answer within {:?}", self.settings.timeout),
            error => error.to_string(),
        }
    }

    /// What an answer other than 2xx says, without what it must not show.
    fn refusal(&self, mut answer: Response<Body>) -> SinkError {
        let status = answer.status();
        let after = answer.headers().get(header::RETRY_AFTER).and_then(|value| retry_after(value.to_str().ok()?));
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec().unwrap_or_default();
        let mut why = format!("the server answered {status}");
        let shown = shown(&text);
        let is_secret = self.settings.authorization.as_ref().is_some_and(|authorization| authorization.is_in(&shown));
        if !shown.is_empty() && !is_secret {
            // Writing to a string cannot fail.
            _ = write!(why, ": {shown}");
        }
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => SinkError::TooLarge { why },
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => SinkError::Later { why, after },
            _ => SinkError::later(why),
        }
    }
}

impl Sink for Http {
    fn name(&self) -> &str {
        &self.name
    }

    fn position(&mut self) -> Result<Option<Positions>, SinkError> {
        Ok(None)
    }

    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        let mut answer = self.post(batch)?;
        self.breaks = 0;
        if !answer.status().is_success() {
            return Err(self.refusal(answer));
        }
        // Read, so that the connection can be used again. What it says changes nothing: the status has said it.
        _ = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        Ok(())
    }
}

fn connector(settings: &Settings) -> io::Result<Agent> {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // A redirect would carry records and token to somebody who is not in gateway.toml.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(None)
        .user_agent(concat!("keygate/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(settings.timeout));
    if settings.url.scheme_str() != Some("https") {
        return Ok(config.build().into());
    }
    let authorities = settings.tls.authorities()?;
    let certificates = authorities.iter().map(|authority| Certificate::from_der(authority).to_owned());
    let tls = TlsConfig::builder().root_certs(RootCerts::from(certificates));
    let tls = tls.unversioned_rustls_crypto_provider(Arc::new(tls::provider()));
    Ok(config.tls_config(tls.build()).build().into())
}

fn body(batch: &[Line], compress: bool) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(batch.iter().map(|line| line.text.len() + 1).sum());
    super::push_lines(&mut text, batch);
    if !compress {
        return Ok(text);
    }
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 4), Compression::fast());
    encoder.write_all(&text)?;
    encoder.finish()
}

/// Which numbers of which journals a batch holds: `edge-1/0:101-200, edge-1/1:7-7`.
fn ranges(batch: &[Line]) -> String {
    let mut ranges = BTreeMap::<&str, (u64, u64)>::new();
    for line in batch {
        ranges.entry(&line.journal).or_insert((line.seq, line.seq)).1 = line.seq;
    }
    let ranges = ranges.iter().map(|(journal, (first, last))| format!("{journal}:{first}-{last}"));
    ranges.collect::<Vec<_>>().join(", ")
}

fn is_break(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::UnexpectedEof
    )
}

/// Seconds, or the time until a date (RFC 9110, section 10.2.3).
fn retry_after(text: &str) -> Option<Duration> {
    let until = |date: &str| {
        let date = jiff::fmt::rfc2822::parse(date).ok()?;
        let now = crate::clock::Clock::system().now();
        Some(Timestamp::from_micros(date.timestamp().as_microsecond()).since(now))
    };
    text.parse().ok().map(Duration::from_secs).or_else(|| until(text))
}

/// The first line of an answer, for a log.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.trim().lines().next().unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(journal: &str, seq: u64) -> Line {
        Line { journal: journal.into(), seq, text: format!("{{\"seq\":{seq}}}").into() }
    }

    #[test]
    fn a_login_is_written_as_the_rfc_shows_it() {
        let login = |user, password: &str| Authorization::basic(user, &Secret::new(password.to_owned())).header();
        assert_eq!(login("Aladdin", "open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        for (text, expected) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(text.as_bytes()), expected);
        }
    }

    #[test]
    fn a_batch_says_which_numbers_it_holds() {
        let batch = [line("gw/0", 7), line("gw/1", 1), line("gw/0", 8), line("gw/1", 3)];
        assert_eq!(ranges(&batch), "gw/0:7-8, gw/1:1-3");
        assert_eq!(body(&batch[..2], false).unwrap(), b"{\"seq\":7}\n{\"seq\":1}\n");
    }

    #[test]
    fn when_to_come_again_is_read_in_both_forms() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert!(retry_after("Fri, 31 Dec 2100 23:59:59 GMT").is_some_and(|wait| wait > Duration::from_secs(3600)));
        for text in ["", "-1", "soon", "1.5"] {
            assert_eq!(retry_after(text), None, "{text}");
        }
    }
}
