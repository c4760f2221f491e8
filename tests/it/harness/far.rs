//! The far side: an upstream that speaks HTTP/1.1 or HTTP/2, with TLS or without, does what it is told, and says what it saw.

mod http2;

use super::tls::Pair;
use http::HeaderMap;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What is spoken on one side of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    H1,
    H1Tls,
    H2,
    H2Tls,
}

/// Fields by name; those of one name in the order they came.
pub type Fields = Vec<(String, String)>;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub target: String,
    pub scheme: Option<String>,
    pub authority: String,
    pub fields: Fields,
    pub body: Body,
    pub trailers: Fields,
    /// How it ended, once it has.
    pub end: Option<Ended>,
    /// On which connection it came, first is 0.
    pub connection: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Request and response are whole.
    Whole,
    /// The gateway has broken it off: over HTTP/2 by this reset.
    BrokenOff(Option<h2::Reason>),
}

/// Bytes that were counted and hashed, and not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    pub bytes: u64,
    pub hash: String,
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Script {
    /// Without waiting for the request's body. With [`End::Silence`] over HTTP/2 that is never read.
    pub is_early: bool,
    pub status: u16,
    pub fields: Fields,
    /// Bytes of [`pattern`].
    pub body: u64,
    /// The head says how many.
    pub is_sized: bool,
    pub trailers: Fields,
    pub end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Whole,
    /// The body's bytes are sent, and more were promised.
    BreakOff,
    /// The body's bytes are sent, and nothing follows until the gateway gives up.
    Hang,
    /// Nothing is answered until the gateway gives up.
    Silence,
    /// The connection is closed, or the stream reset, without an answer.
    Refuse,
    /// Over HTTP/2: whatever the request's body brings is sent back after the body's bytes, and then its end.
    Echo,
}

type Answer = dyn Fn(&Seen) -> Script + Send + Sync;

/// A running far side. Its threads end with the test process.
#[derive(Clone)]
pub struct Far {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    open: Arc<AtomicUsize>,
    /// Bytes of bodies that the gateway has taken.
    sent: Arc<AtomicU64>,
    streams_max: Arc<AtomicU32>,
    takes_connect: Arc<AtomicBool>,
    answer: Arc<Answer>,
}

pub trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

// === impl Speaks ===

impl Speaks {
    pub const ALL: [Self; 4] = [Self::H1, Self::H1Tls, Self::H2, Self::H2Tls];

    pub const fn is_http2(self) -> bool {
        matches!(self, Self::H2 | Self::H2Tls)
    }

    pub const fn is_tls(self) -> bool {
        matches!(self, Self::H1Tls | Self::H2Tls)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::H1 => "h1",
            Self::H1Tls => "h1+TLS",
            Self::H2 => "h2",
            Self::H2Tls => "h2+TLS",
        }
    }

    pub const fn scheme(self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }
}

// === impl Script ===

impl Script {
    /// 200 with a body of so many bytes.
    pub fn ok(body: u64) -> Self {
        let (fields, trailers) = (Vec::new(), Vec::new());
        Self { is_early: false, status: 200, fields, body, is_sized: true, trailers, end: End::Whole }
    }
}

// === impl Far ===

impl Far {
    pub fn start(
        speaks: Speaks,
        pair: Option<&Pair>,
        answer: impl Fn(&Seen) -> Script + Send + Sync + 'static,
    ) -> Self {
        let tls = speaks.is_tls().then(|| server_config(pair.expect("a certificate"), speaks.is_http2()));
        Self::start_with(speaks.is_http2(), tls, answer)
    }

    pub fn start_with(
        is_http2: bool,
        tls: Option<Arc<ServerConfig>>,
        answer: impl Fn(&Seen) -> Script + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sent, streams_max) = (Arc::default(), Arc::new(AtomicU32::new(100)));
        let takes_connect = Arc::new(AtomicBool::new(true));
        let (seen, connections, open, answer) = (Arc::default(), Arc::default(), Arc::default(), Arc::new(answer));
        let far = Self { address, seen, connections, open, sent, streams_max, takes_connect, answer };
        let clone = far.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (far, tls) = (clone.clone(), tls.clone());
                let connection = far.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    far.open.fetch_add(1, Ordering::SeqCst);
                    far.serve(stream, tls, is_http2, connection);
                    far.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        far
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Connections that have not ended.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// Bytes of bodies that it could send so far, over HTTP/2.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    /// How many requests it takes at the same time on connections from now on, over HTTP/2.
    pub fn take_at_once(&self, streams: u32) {
        self.streams_max.store(streams, Ordering::SeqCst);
    }

    /// Connections from now on take no extended CONNECT.
    pub fn take_no_connect(&self) {
        self.takes_connect.store(false, Ordering::SeqCst);
    }

    fn serve(&self, stream: TcpStream, tls: Option<Arc<ServerConfig>>, is_http2: bool, connection: usize) {
        stream.set_nodelay(true).unwrap();
        if is_http2 {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            return tokio::task::LocalSet::new().block_on(&runtime, self.serve_http2(stream, tls, connection));
        }
        let stream: Box<dyn Socket> = match tls {
            None => Box::new(stream),
            Some(config) => Box::new(rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), stream)),
        };
        let mut reader = BufReader::with_capacity(64 * 1024, stream);
        while self.serve_one(&mut reader, connection).is_some() {}
    }

    /// Its place in the list.
    fn begin(&self, seen: Seen) -> usize {
        let mut all = self.seen.lock().unwrap();
        all.push(seen);
        all.len() - 1
    }

    fn note(&self, at: usize, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.seen.lock().unwrap().get_mut(at) {
            change(seen);
        }
    }
}

/// A server with this certificate that asks for none.
pub fn server_config(pair: &Pair, is_http2: bool) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    with_certificate(builder.with_no_client_auth(), pair, is_http2)
}

pub fn with_certificate(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    pair: &Pair,
    is_http2: bool,
) -> Arc<ServerConfig> {
    let chain = vec![CertificateDer::from_pem_file(&pair.cert).unwrap()];
    let mut config = builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&pair.key).unwrap()).unwrap();
    config.alpn_protocols = vec![if is_http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Arc::new(config)
}

/// A part of a body that repeats nowhere soon: what stands at each place is known.
pub fn pattern(from: u64, to: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((to - from) as usize + 8);
    (from / 8..to.div_ceil(8)).for_each(|word| bytes.extend(word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()));
    bytes.drain(..(from % 8) as usize);
    bytes.truncate((to - from) as usize);
    bytes
}

/// The body of so many bytes of [`pattern`].
pub fn body_of(bytes: u64) -> Body {
    let mut hasher = Hasher::default();
    pieces(bytes, |piece| {
        hasher.add(&piece);
        Some(())
    });
    hasher.end()
}

/// Gives a body of [`pattern`] piece by piece, until nobody takes it.
pub fn pieces(bytes: u64, mut take: impl FnMut(Vec<u8>) -> Option<()>) -> Option<()> {
    const PIECE: u64 = 60_000;
    let mut at = 0;
    while at < bytes {
        let end = bytes.min(at + PIECE);
        take(pattern(at, end))?;
        at = end;
    }
    Some(())
}

#[derive(Default)]
pub struct Hasher {
    hash: Sha256,
    bytes: u64,
}

impl Hasher {
    pub fn add(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
    }

    pub fn end(&self) -> Body {
        let hash = self.hash.clone().finalize();
        Body { bytes: self.bytes, hash: hash.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

/// Sorted by name.
pub fn fields_of(map: &HeaderMap) -> Fields {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    sorted(map.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect())
}

pub fn sorted(mut fields: Fields) -> Fields {
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

// === HTTP/1.1 ===

impl Far {
    fn serve_one(&self, reader: &mut BufReader<Box<dyn Socket>>, connection: usize) -> Option<()> {
        let seen = read_head(reader, connection)?;
        let is_chunked = seen.fields.iter().any(|(name, _)| name == "transfer-encoding");
        let length =
            seen.fields.iter().find(|(name, _)| name == "content-length").map_or(0, |(_, n)| n.parse().unwrap());
        let script = (self.answer)(&seen);
        let at = self.begin(seen.clone());
        let served = (|| {
            if script.is_early {
                self.write_answer(reader.get_mut(), &seen, &script)?;
            }
            let mut hasher = Hasher::default();
            let trailers =
                if is_chunked { read_chunks(reader, &mut hasher)? } else { read_length(reader, &mut hasher, length)? };
            self.note(at, |seen| (seen.body, seen.trailers) = (hasher.end(), trailers));
            if !script.is_early {
                self.write_answer(reader.get_mut(), &seen, &script)?;
            }
            Some(())
        })();
        if script.end == End::Hang || script.end == End::Silence {
            // The gateway gives up: the end of what it sends.
            _ = reader.read(&mut [0]);
            self.note(at, |seen| seen.end = Some(Ended::BrokenOff(None)));
            return None;
        }
        let end = if served.is_some() { Ended::Whole } else { Ended::BrokenOff(None) };
        self.note(at, |seen| seen.end = Some(end));
        served.filter(|()| script.end == End::Whole)
    }

    fn write_answer(&self, stream: &mut dyn Socket, seen: &Seen, script: &Script) -> Option<()> {
        if matches!(script.end, End::Silence | End::Refuse) {
            return Some(());
        }
        let is_bodiless = seen.method == "HEAD" || matches!(script.status, 204 | 304);
        let mut head = format!("HTTP/1.1 {} Told\r\n", script.status);
        script.fields.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        match script.is_sized {
            // More is promised than comes.
            true if script.status != 204 => head.push_str(&format!("content-length: {}\r\n", promised(script))),
            false if !is_bodiless => head.push_str("transfer-encoding: chunked\r\n"),
            _ => {}
        }
        stream.write_all((head + "\r\n").as_bytes()).ok()?;
        if is_bodiless {
            return stream.flush().ok();
        }
        pieces(script.body, |piece| {
            if script.is_sized {
                return stream.write_all(&piece).ok();
            }
            write!(stream, "{:x}\r\n", piece.len()).ok()?;
            stream.write_all(&piece).ok()?;
            stream.write_all(b"\r\n").ok()
        })?;
        if !script.is_sized && script.end == End::Whole {
            stream.write_all(b"0\r\n").ok()?;
            script.trailers.iter().try_for_each(|(name, value)| write!(stream, "{name}: {value}\r\n")).ok()?;
            stream.write_all(b"\r\n").ok()?;
        }
        stream.flush().ok()
    }
}

fn promised(script: &Script) -> u64 {
    match script.end {
        End::Whole => script.body,
        End::BreakOff | End::Hang | End::Silence | End::Refuse | End::Echo => script.body + 1000,
    }
}

pub fn read_line(reader: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).ok()?;
    Some(String::from_utf8_lossy(line.strip_suffix(b"\r\n")?).into_owned())
}

pub fn read_fields(reader: &mut impl BufRead) -> Option<Fields> {
    let mut fields = Vec::new();
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(':') else { return line.is_empty().then(|| sorted(fields)) };
        fields.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn read_head(reader: &mut impl BufRead, connection: usize) -> Option<Seen> {
    let line = read_line(reader)?;
    let mut parts = line.split(' ').map(str::to_owned);
    let (method, target) = (parts.next()?, parts.next()?);
    let mut fields = read_fields(reader)?;
    let host = fields.iter().position(|(name, _)| name == "host")?;
    let authority = fields.remove(host).1;
    let (body, trailers) = (Body::default(), Vec::new());
    Some(Seen { method, target, scheme: None, authority, fields, body, trailers, end: None, connection })
}

pub fn read_length(reader: &mut impl BufRead, hasher: &mut Hasher, length: u64) -> Option<Fields> {
    let mut left = length;
    while left > 0 {
        let piece = reader.fill_buf().ok()?;
        let taken = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if taken == 0 {
            return None;
        }
        hasher.add(&piece[..taken]);
        reader.consume(taken);
        left -= taken as u64;
    }
    Some(Vec::new())
}

pub fn read_chunks(reader: &mut impl BufRead, hasher: &mut Hasher) -> Option<Fields> {
    loop {
        let size = u64::from_str_radix(&read_line(reader)?, 16).ok()?;
        if size == 0 {
            return read_fields(reader);
        }
        read_length(reader, hasher, size)?;
        read_line(reader).filter(String::is_empty)?;
    }
}
