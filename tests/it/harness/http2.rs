//! HTTP/2 clients: one that behaves, by the library, and one that sends exactly the frames it is told.

use super::{PATIENCE, TlsClient};
use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, response};
use rustls::pki_types::ServerName;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

/// A connection of a client that behaves. It is driven in the background.
pub struct Http2 {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    /// What its paths are put behind.
    origin: String,
    connection: Option<JoinHandle<Result<(), h2::Error>>>,
}

/// One request of it.
pub struct Exchange {
    handle: Handle,
    response: Option<ResponseFuture>,
    pub body: Option<RecvStream>,
    pub upload: SendStream<Bytes>,
}

/// A response that came whole.
#[derive(Debug)]
pub struct Answer {
    pub head: response::Parts,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

// === impl Http2 ===

impl Http2 {
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &Builder::new())
    }

    pub fn connect_with(address: SocketAddr, builder: &Builder) -> Self {
        let runtime = runtime();
        let (sender, connection) =
            block(runtime.handle(), async { builder.handshake(tcp(address).await).await.unwrap() });
        let connection = Some(runtime.spawn(connection));
        Self { runtime, sender, origin: "http://erp.example".to_owned(), connection }
    }

    /// One that asks for `name` by TLS, and for HTTP/2 by ALPN.
    pub fn connect_tls(address: SocketAddr, name: &str, tls: &TlsClient) -> Self {
        let runtime = runtime();
        let connector = TlsConnector::from(tls.offering(&["h2"]).config);
        let server = ServerName::try_from(name.to_owned()).unwrap();
        let (sender, connection) = block(runtime.handle(), async {
            let stream = connector.connect(server, tcp(address).await).await.unwrap();
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Builder::new().handshake(stream).await.unwrap()
        });
        let connection = Some(runtime.spawn(connection));
        Self { runtime, sender, origin: format!("https://{name}"), connection }
    }

    /// Sends a head. Each field is a line.
    pub fn begin(&mut self, method: &str, path: &str, lines: &[&str], is_end: bool) -> Exchange {
        self.begin_with(request(method, &format!("{}{path}", self.origin), lines), is_end)
    }

    pub fn begin_with(&mut self, request: Request<()>, is_end: bool) -> Exchange {
        let handle = self.runtime.handle().clone();
        let mut sender = block(&handle, self.sender.clone().ready()).expect("the connection takes requests");
        let (response, upload) = sender.send_request(request, is_end).unwrap();
        Exchange { handle, response: Some(response), body: None, upload }
    }

    /// A request with a body, or none, and its whole answer.
    pub fn request(&mut self, method: &str, path: &str, lines: &[&str], body: &[u8]) -> Answer {
        let mut exchange = self.begin(method, path, lines, body.is_empty());
        if !body.is_empty() {
            exchange.send(body, true);
        }
        exchange.answer().expect("a whole response")
    }

    /// Waits until the gateway has ended the connection, and tells how.
    pub fn ended(&mut self) -> Result<(), h2::Error> {
        let connection = self.connection.take().expect("only once");
        block(self.runtime.handle(), connection).unwrap()
    }
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if let Some(connection) = &self.connection {
            connection.abort();
        }
    }
}

// === impl Exchange ===

impl Exchange {
    /// Sends a part of the body once there is room for it.
    pub fn send(&mut self, data: &[u8], is_end: bool) {
        self.upload.send_data(Bytes::copy_from_slice(data), is_end).unwrap();
    }

    /// The next head that comes before the answer's; none once that is there.
    pub fn interim(&mut self) -> Option<http::Response<()>> {
        let response = self.response.as_mut().expect("before the answer");
        block(&self.handle, std::future::poll_fn(|cx| response.poll_informational(cx))).map(Result::unwrap)
    }

    pub fn head(&mut self) -> Result<response::Parts, h2::Error> {
        let (head, body) = block(&self.handle, self.response.take().expect("only once"))?.into_parts();
        self.body = Some(body);
        Ok(head)
    }

    /// The next part of the body.
    pub fn data(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let body = self.body.as_mut().expect("a head came");
        let data = block(&self.handle, body.data())?;
        if let Ok(data) = &data {
            body.flow_control().release_capacity(data.len()).unwrap();
        }
        Some(data)
    }

    /// How the gateway has reset it, once its body can no longer be sent.
    pub fn reset(&mut self) -> h2::Reason {
        let upload = &mut self.upload;
        block(&self.handle, std::future::poll_fn(|cx| upload.poll_reset(cx))).expect("a reset")
    }

    /// Takes the request back.
    pub fn take_back(mut self) {
        self.upload.send_reset(h2::Reason::CANCEL);
    }

    pub fn answer(&mut self) -> Result<Answer, h2::Error> {
        let head = self.head()?;
        let mut received = Vec::new();
        while let Some(data) = self.data() {
            received.extend_from_slice(&data?);
        }
        let trailers = block(&self.handle, self.body.as_mut().expect("a head came").trailers())?;
        Ok(Answer { head, body: received, trailers })
    }
}

// === impl Answer ===

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The `code` of a refusal.
    pub fn code(&self) -> String {
        let value: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        value["code"].as_str().expect("a code").to_owned()
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

async fn tcp(address: SocketAddr) -> tokio::net::TcpStream {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A request's head.
pub fn request(method: &str, uri: &str, lines: &[&str]) -> Request<()> {
    let builder = Request::builder().method(method).uri(uri);
    let builder = lines.iter().fold(builder, |builder, line| {
        let (name, value) = line.split_once(':').unwrap();
        builder.header(name, value.trim())
    });
    builder.body(()).unwrap()
}

fn block<T>(handle: &Handle, future: impl Future<Output = T>) -> T {
    handle.block_on(async { tokio::time::timeout(PATIENCE, future).await.expect("no wait is so long") })
}

pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection of a client that sends what it is told.
pub struct Wire {
    stream: TcpStream,
}

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

// === impl Wire ===

impl Wire {
    /// Nothing is sent yet.
    pub fn bare(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// The preface and these settings are sent.
    pub fn connect(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut wire = Self::bare(address);
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| id.to_be_bytes().into_iter().chain(value.to_be_bytes()).collect::<Vec<_>>())
            .collect();
        wire.send(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &payload)].concat());
        wire
    }

    /// Sends; false where the gateway takes no more.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// The next frame; none at the end of the connection.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The next frame of this kind; the others are skipped.
    pub fn wait_for(&mut self, kind: u8) -> Option<Frame> {
        std::iter::from_fn(|| self.next()).find(|frame| frame.kind == kind)
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

// === impl Frame ===

impl Frame {
    /// The error of an RST_STREAM or a GOAWAY.
    pub fn error(&self) -> u32 {
        let at = if self.kind == kind::GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Fields as they are, none indexed, none compressed (RFC 7541, section 6.2.2).
pub fn block_of(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            push_number(&mut block, 127, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A number behind a prefix that is all ones when it does not fit (RFC 7541, section 5.1).
fn push_number(block: &mut Vec<u8>, most: usize, number: usize) {
    if number < most {
        block.push(number as u8);
        return;
    }
    block.push(most as u8);
    let mut rest = number - most;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// A HEADERS frame with a whole head that ends its stream.
pub fn get(stream: u32, path: &str, lines: &[(&str, &str)]) -> Vec<u8> {
    head("GET", stream, path, lines, END_STREAM | END_HEADERS)
}

pub fn head(method: &str, stream: u32, path: &str, lines: &[(&str, &str)], flags: u8) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", "erp.example"), (":path", path)];
    frame(kind::HEADERS, flags, stream, &block_of(&[&pseudo, lines].concat()))
}
