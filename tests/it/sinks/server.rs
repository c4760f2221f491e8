//! An HTTP server that takes audit records, or fails in every way a server can.

use flate2::read::GzDecoder;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How a batch is answered.
#[derive(Clone, Debug)]
pub enum Mood {
    Take,
    /// With these bytes, and the connection is closed.
    Say(String),
    /// Not at all, until the mood changes.
    Nothing,
    /// Taken, and answered byte by byte.
    Slow,
    /// Half of the batch is read, then the connection is closed.
    Cut,
    /// Taken, and the connection is closed without an answer.
    TakeAndCut,
    /// More than so many lines are too large.
    Lines(usize),
    /// More than so many bytes, as announced, are too large: answered without reading them.
    Bytes(usize),
}

/// One batch that came whole.
#[derive(Clone, Debug)]
pub struct Batch {
    /// By lower-case name.
    pub headers: BTreeMap<String, String>,
    pub lines: Vec<String>,
}

/// A server on a port of its own. It ends with the test's process.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    mood: Mood,
    /// Answered with 2xx, or taken without an answer.
    taken: Vec<Batch>,
    requests: Vec<Instant>,
}

trait Stream: Read + Write + Send {}

impl<S: Read + Write + Send> Stream for S {}

impl Server {
    pub fn start(mood: Mood) -> Self {
        Self::start_with(mood, None)
    }

    /// The same over TLS.
    pub fn start_with(mood: Mood, tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let state = State { mood, taken: Vec::new(), requests: Vec::new() };
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::new(Mutex::new(state)) };
        let accepting = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (server, tls) = (accepting.clone(), tls.clone());
                std::thread::spawn(move || server.connection(stream, tls));
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}/ingest?x=1", self.address)
    }

    pub fn set(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    pub fn batches(&self) -> Vec<Batch> {
        self.state.lock().unwrap().taken.clone()
    }

    pub fn requests(&self) -> Vec<Instant> {
        self.state.lock().unwrap().requests.clone()
    }

    /// All lines that were taken, in order.
    pub fn lines(&self) -> Vec<String> {
        self.batches().into_iter().flat_map(|batch| batch.lines).collect()
    }

    fn mood(&self) -> Mood {
        self.state.lock().unwrap().mood.clone()
    }

    fn connection(&self, stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(config) => Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
        };
        let mut stream = BufReader::new(stream);
        while let Ok(true) = self.request(&mut stream) {}
    }

    /// Serves one request; whether another may follow.
    fn request(&self, stream: &mut BufReader<Box<dyn Stream>>) -> Result<bool> {
        let Some(headers) = read_head(stream)? else { return Ok(false) };
        let mood = self.mood();
        self.state.lock().unwrap().requests.push(Instant::now());
        let length: usize = headers["content-length"].parse().unwrap();
        match mood {
            Mood::Bytes(most) if length > most => {
                stream.get_mut().write_all(TOO_LARGE.as_bytes())?;
                return Ok(false);
            }
            Mood::Cut => {
                stream.read_exact(&mut vec![0; length / 2])?;
                return Ok(false);
            }
            _ => {}
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let batch = Batch { lines: lines(&headers, &body), headers };
        self.answer(stream.get_mut(), mood, batch)
    }

    fn answer(&self, stream: &mut dyn Stream, mood: Mood, batch: Batch) -> Result<bool> {
        const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n";
        let take = |batch| self.state.lock().unwrap().taken.push(batch);
        match mood {
            Mood::Take | Mood::Bytes(_) => {
                take(batch);
                stream.write_all(OK.as_bytes())?;
                Ok(true)
            }
            Mood::Lines(most) if batch.lines.len() > most => {
                stream.write_all(TOO_LARGE.as_bytes())?;
                Ok(false)
            }
            Mood::Lines(_) => {
                take(batch);
                stream.write_all(OK.as_bytes())?;
                Ok(true)
            }
            Mood::Say(text) => {
                stream.write_all(text.as_bytes())?;
                Ok(false)
            }
            Mood::Nothing => {
                while matches!(self.mood(), Mood::Nothing) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(false)
            }
            Mood::Slow => {
                take(batch);
                for byte in OK.as_bytes().chunks(1) {
                    stream.write_all(byte)?;
                    stream.flush()?;
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(true)
            }
            Mood::Cut => Ok(false),
            Mood::TakeAndCut => {
                take(batch);
                Ok(false)
            }
        }
    }
}

const TOO_LARGE: &str = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn read_head(stream: &mut impl BufRead) -> Result<Option<BTreeMap<String, String>>> {
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return if headers.is_empty() { Ok(None) } else { Err(ErrorKind::UnexpectedEof.into()) };
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) => _ = headers.insert(name.to_lowercase(), value.to_owned()),
            None if line.trim_end().is_empty() => return Ok(Some(headers)),
            None => _ = headers.insert("request-line".to_owned(), line.trim_end().to_owned()),
        }
    }
}

fn lines(headers: &BTreeMap<String, String>, body: &[u8]) -> Vec<String> {
    let mut text = String::new();
    match headers.get("content-encoding").map(String::as_str) {
        Some("gzip") => _ = GzDecoder::new(body).read_to_string(&mut text).unwrap(),
        None => text = String::from_utf8(body.to_vec()).unwrap(),
        Some(other) => panic!("encoded as {other}"),
    }
    assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
    text.lines().map(str::to_owned).collect()
}

/// The journal and the number of a line.
pub fn name(line: &str) -> (String, u64) {
    let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    (value["journal"].as_str().unwrap().to_owned(), value["seq"].as_u64().unwrap())
}
