//! The near side: a client that speaks HTTP/1.1 or HTTP/2, with TLS or without, and keeps of bodies only what they hash to.

use super::PATIENCE;
use super::far::{
    Body, Fields, Hasher, Socket, Speaks, fields_of, pattern, pieces, read_chunks, read_fields, read_length, read_line,
};
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderName, Request};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::future::poll_fn;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

/// Where and how to ask.
#[derive(Clone)]
pub struct Near {
    pub speaks: Speaks,
    pub address: SocketAddr,
    /// Whom to trust, with TLS.
    pub tls: Option<Arc<ClientConfig>>,
}

/// What to ask.
#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub fields: Fields,
    pub upload: Upload,
    pub trailers: Fields,
    /// Goes away when so many bytes of the answer's body are here; without any it does not even wait for the head.
    pub leaves_after: Option<u64>,
}

/// A request's body: bytes of [`super::far::pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upload {
    None,
    /// The head says how long it is.
    Sized(u64),
    Unsized(u64),
    /// More is promised than comes before an answer does.
    Part(u64),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    pub status: u16,
    pub fields: Fields,
    pub body: Body,
    pub trailers: Fields,
    pub is_whole: bool,
}

/// More than is sent before the answer.
pub const PROMISED: u64 = 10_000_000;

// === impl Upload ===

impl Upload {
    pub const fn bytes(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Sized(bytes) | Self::Unsized(bytes) | Self::Part(bytes) => bytes,
        }
    }

    /// What the head says.
    pub const fn length(self) -> Option<u64> {
        match self {
            Self::None | Self::Unsized(_) => None,
            Self::Sized(bytes) => Some(bytes),
            Self::Part(_) => Some(PROMISED),
        }
    }
}

// === impl Near ===

impl Near {
    /// Asks on a connection of its own. `while_waiting` runs when the request is sent, as far as it is.
    pub fn ask(&self, ask: &Ask, while_waiting: impl FnOnce()) -> Option<Got> {
        if self.speaks.is_http2() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let asked = async { tokio::time::timeout(PATIENCE * 30, self.ask_http2(ask, while_waiting)).await };
            let got = tokio::task::LocalSet::new().block_on(&runtime, asked);
            return got.expect("no wait is so long");
        }
        self.ask_http1(ask, while_waiting)
    }

    fn ask_http1(&self, ask: &Ask, while_waiting: impl FnOnce()) -> Option<Got> {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut stream: Box<dyn Socket> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let name = ServerName::try_from("erp.example").unwrap();
                Box::new(rustls::StreamOwned::new(
                    rustls::ClientConnection::new(Arc::clone(config), name).unwrap(),
                    stream,
                ))
            }
        };
        stream.write_all(head(ask).as_bytes()).unwrap();
        // One that answers early may close before it has read.
        _ = send_body(ask, &mut *stream);
        _ = stream.flush();
        while_waiting();
        if ask.leaves_after == Some(0) {
            return None;
        }
        read_answer(ask, &mut BufReader::with_capacity(64 * 1024, stream))
    }
}

// === HTTP/1.1 ===

fn head(ask: &Ask) -> String {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: erp.example\r\n", ask.method, ask.target);
    ask.fields.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    match (ask.upload, ask.upload.length()) {
        (_, Some(length)) => head.push_str(&format!("content-length: {length}\r\n")),
        (Upload::Unsized(_), None) => head.push_str("transfer-encoding: chunked\r\n"),
        _ => {}
    }
    head + "\r\n"
}

fn send_body(ask: &Ask, stream: &mut dyn Socket) -> Option<()> {
    let is_chunked = matches!(ask.upload, Upload::Unsized(_));
    pieces(ask.upload.bytes(), |piece| {
        if !is_chunked {
            return stream.write_all(&piece).ok();
        }
        write!(stream, "{:x}\r\n", piece.len()).ok()?;
        stream.write_all(&piece).ok()?;
        stream.write_all(b"\r\n").ok()
    })?;
    if is_chunked {
        let trailers: String = ask.trailers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(stream, "0\r\n{trailers}\r\n").ok()?;
    }
    Some(())
}

fn read_answer(ask: &Ask, reader: &mut BufReader<Box<dyn Socket>>) -> Option<Got> {
    let (status, fields) = loop {
        let status: u16 = read_line(reader)?.split(' ').nth(1)?.parse().ok()?;
        let fields = read_fields(reader)?.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value));
        let fields = super::far::sorted(fields.collect());
        if status >= 200 {
            break (status, fields);
        }
    };
    let mut hasher = Hasher::default();
    if let Some(bytes) = ask.leaves_after {
        let mut left = bytes;
        while left > 0 {
            let read = reader.fill_buf().unwrap().len();
            reader.consume(read);
            left = left.saturating_sub(read as u64);
        }
        return None;
    }
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
    let is_bodiless = ask.method == "HEAD" || matches!(status, 204 | 304);
    let trailers = if is_bodiless {
        Some(Vec::new())
    } else if field("transfer-encoding").is_some() {
        read_chunks(reader, &mut hasher)
    } else {
        let length = field("content-length")?.parse().unwrap();
        read_length(reader, &mut hasher, length)
    };
    let is_whole = trailers.is_some();
    Some(Got { status, fields, body: hasher.end(), trailers: trailers.unwrap_or_default(), is_whole })
}

// === HTTP/2 ===

impl Near {
    async fn ask_http2(&self, ask: &Ask, while_waiting: impl FnOnce()) -> Option<Got> {
        let stream = tokio::net::TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        match &self.tls {
            None => exchange(stream, "http", ask, while_waiting).await,
            Some(config) => {
                let name = ServerName::try_from("erp.example").unwrap();
                let connecting = tokio_rustls::TlsConnector::from(Arc::clone(config)).connect(name, stream);
                exchange(connecting.await.unwrap(), "https", ask, while_waiting).await
            }
        }
    }
}

async fn exchange(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
    scheme: &str,
    ask: &Ask,
    while_waiting: impl FnOnce(),
) -> Option<Got> {
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::task::spawn_local(async move { _ = connection.await });
    let mut request = Request::builder().method(ask.method).uri(format!("{scheme}://erp.example{}", ask.target));
    for (name, value) in &ask.fields {
        // In crumbs, as browsers send it (RFC 9113, section 8.2.3).
        for value in if name == "cookie" { value.split("; ").collect() } else { vec![value.as_str()] } {
            request = request.header(name, value);
        }
    }
    if let Some(length) = ask.upload.length() {
        request = request.header("content-length", length);
    }
    let is_whole = ask.upload == Upload::None;
    let (response, mut stream) = sender.send_request(request.body(()).unwrap(), is_whole).unwrap();
    if !is_whole {
        _ = upload(ask, &mut stream).await;
    }
    // What was sent goes out while that runs.
    tokio::task::yield_now().await;
    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    while_waiting();
    if ask.leaves_after == Some(0) {
        stream.send_reset(h2::Reason::CANCEL);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        return None;
    }
    let (head, mut body) = response.await.ok()?.into_parts();
    let mut hasher = Hasher::default();
    let read = read_stream(&mut body, &mut hasher, ask.leaves_after).await;
    if ask.leaves_after.is_some() {
        stream.send_reset(h2::Reason::CANCEL);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        return None;
    }
    let (is_whole, trailers) = (read.is_ok(), read.unwrap_or_default());
    Some(Got { status: head.status.as_u16(), fields: fields_of(&head.headers), body: hasher.end(), trailers, is_whole })
}

async fn upload(ask: &Ask, stream: &mut h2::SendStream<Bytes>) -> Result<(), h2::Error> {
    let mut at = 0;
    while at < ask.upload.bytes() {
        let end = ask.upload.bytes().min(at + 60_000);
        let mut piece = Bytes::from(pattern(at, end));
        at = end;
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
            let room = room.unwrap_or_else(|| Err(h2::Reason::CANCEL.into()))?;
            let room = room.min(piece.len());
            stream.send_data(piece.split_to(room), false)?;
        }
    }
    if matches!(ask.upload, Upload::Part(_)) {
        return Ok(());
    }
    if ask.trailers.is_empty() {
        return stream.send_data(Bytes::new(), true);
    }
    let mut trailers = HeaderMap::new();
    for (name, value) in &ask.trailers {
        trailers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
    }
    stream.send_trailers(trailers)
}

/// The trailers, once the body is read.
async fn read_stream(
    body: &mut RecvStream,
    hasher: &mut Hasher,
    leaves_after: Option<u64>,
) -> Result<Fields, h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        hasher.add(&data);
        if leaves_after.is_some_and(|bytes| hasher.end().bytes >= bytes) {
            return Ok(Vec::new());
        }
    }
    Ok(body.trailers().await?.map(|trailers| fields_of(&trailers)).unwrap_or_default())
}
