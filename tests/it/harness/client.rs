//! A client on a bare socket: it sends exactly the bytes it is told, and reads responses as RFC 9112 says.

use super::PATIENCE;
use super::tls_client::TlsClient;
use rustls::{ClientConnection, StreamOwned};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

/// One connection.
pub struct Client {
    reader: BufReader<Wire>,
    refusals: Refusals,
}

/// What a connection's bytes go over.
enum Wire {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// Every answer of 400 and above that the clients of one gateway have got, for the search for keys.
pub type Refusals = Arc<Mutex<Vec<Response>>>;

/// A response as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, String)>,
    /// Whether the body was whole.
    pub complete: bool,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_noting(address, Refusals::default())
    }

    /// A client of a gateway that may not be there.
    pub fn try_connect(address: SocketAddr) -> Option<Self> {
        Some(Self::over(TcpStream::connect(address).ok()?, Refusals::default()))
    }

    /// A client that leaves a copy of every refusal in `refusals`.
    pub fn connect_noting(address: SocketAddr, refusals: Refusals) -> Self {
        Self::over(TcpStream::connect(address).expect("the gateway accepts"), refusals)
    }

    fn over(stream: TcpStream, refusals: Refusals) -> Self {
        Self { reader: BufReader::new(Wire::Plain(patient(stream))), refusals }
    }

    /// A client that asks for `name` by TLS; an error where there is no handshake.
    pub fn connect_tls(address: SocketAddr, name: &str, tls: &TlsClient) -> io::Result<Self> {
        let session = tls.session(name);
        let mut stream = StreamOwned::new(session, patient(TcpStream::connect(address)?));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { reader: BufReader::new(Wire::Tls(Box::new(stream))), refusals: Refusals::default() })
    }

    /// How TLS was agreed on.
    pub fn session(&self) -> &ClientConnection {
        match self.reader.get_ref() {
            Wire::Tls(stream) => &stream.conn,
            Wire::Plain(_) => panic!("a connection without TLS"),
        }
    }

    /// Sends bytes as they are. A gateway that has closed already is no failure here: the test looks at the answer.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        _ = self.reader.get_mut().write_all(bytes.as_ref());
        _ = self.reader.get_mut().flush();
        self
    }

    /// Sends a request without a body and reads the answer. Each header is a whole line without its end.
    pub fn request(&mut self, method: &str, target: &str, headers: &[&str]) -> Response {
        self.send(head(method, target, headers));
        self.read(method)
    }

    /// Reads one response; interim ones are skipped.
    pub fn read(&mut self, method: &str) -> Response {
        self.try_read(method).expect("a response")
    }

    /// Reads one response, if the connection gives one before it ends.
    pub fn try_read(&mut self, method: &str) -> Option<Response> {
        loop {
            let response = self.read_one(method)?;
            if response.status >= 200 {
                return Some(response);
            }
        }
    }

    /// Reads the next response, interim or not.
    pub fn read_one(&mut self, method: &str) -> Option<Response> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1)?.parse().ok()?;
        let headers = self.fields()?;
        let mut response = Response { status, headers, body: Vec::new(), trailers: Vec::new(), complete: true };
        if method != "HEAD" && status >= 200 && status != 204 && status != 304 {
            self.read_body(&mut response);
        }
        if status >= 400 {
            self.refusals.lock().unwrap().push(response.clone());
        }
        Some(response)
    }

    fn read_body(&mut self, response: &mut Response) {
        if response.header("transfer-encoding") == Some("chunked") {
            let trailers = self.read_chunks(&mut response.body);
            response.complete = trailers.is_some();
            response.trailers = trailers.unwrap_or_default();
        } else if let Some(length) = response.header("content-length") {
            let length: u64 = length.parse().expect("a valid content-length");
            _ = (&mut self.reader).take(length).read_to_end(&mut response.body);
            response.complete = response.body.len() as u64 == length;
        } else {
            response.complete = self.reader.read_to_end(&mut response.body).is_ok();
        }
    }

    fn read_chunks(&mut self, body: &mut Vec<u8>) -> Option<Vec<(String, String)>> {
        loop {
            let size = u64::from_str_radix(self.line()?.split(';').next()?.trim(), 16).ok()?;
            if size == 0 {
                return self.fields();
            }
            let before = body.len();
            (&mut self.reader).take(size).read_to_end(body).ok()?;
            if (body.len() - before) as u64 != size || !self.line()?.is_empty() {
                return None;
            }
        }
    }

    fn fields(&mut self) -> Option<Vec<(String, String)>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(fields);
            }
            let (name, value) = line.split_once(':')?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).ok()?;
        let line = line.strip_suffix(b"\r\n")?;
        Some(String::from_utf8_lossy(line).into_owned())
    }

    /// Whether the gateway has closed the connection and sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok(rest) if rest.is_empty()) || self.reader.fill_buf().is_err()
    }

    /// Everything until the connection ends.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        _ = self.reader.read_to_end(&mut rest);
        rest
    }

    /// What comes next, as soon as there is something.
    pub fn some(&mut self) -> Vec<u8> {
        let some = self.reader.fill_buf().expect("the connection goes on").to_vec();
        assert!(!some.is_empty(), "the connection goes on");
        self.reader.consume(some.len());
        some
    }

    /// The next so many bytes.
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).expect("the connection goes on");
        bytes
    }

    /// How the connection ends: with all bytes until then, or an error.
    pub fn end(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map(|_| rest)
    }

    pub fn stream(&self) -> &TcpStream {
        match self.reader.get_ref() {
            Wire::Plain(stream) => stream,
            Wire::Tls(stream) => &stream.sock,
        }
    }
}

fn patient(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl Read for Wire {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Fields and body as one text, to search in.
    pub fn transcript(&self) -> String {
        let fields = self.headers.iter().chain(&self.trailers);
        fields.map(|(name, value)| format!("{name}: {value}\n")).collect::<String>() + &self.text()
    }

    /// The `code` of a refusal.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().expect("a code").to_owned()
    }
}

/// A request's head, with a `Host` unless one is given.
pub fn head(method: &str, target: &str, headers: &[&str]) -> String {
    let mut text = format!("{method} {target} HTTP/1.1\r\n");
    if !headers.iter().any(|line| line.to_ascii_lowercase().starts_with("host:")) {
        text.push_str("Host: erp.example\r\n");
    }
    headers.iter().for_each(|line| text.push_str(&format!("{line}\r\n")));
    text + "\r\n"
}
