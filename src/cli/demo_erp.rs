//! The demo's ERP: two small servers, live and sandbox, that answer with what they received.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use tokio::net::TcpListener;

/// The running ERP. Its thread ends with the process.
pub struct Erp {
    pub live: SocketAddr,
    pub test: SocketAddr,
}

/// Request bodies longer than this are counted, not shown.
const SHOWN_MAX: usize = 16 * 1024;

/// Starts both servers on free ports of the loopback address.
///
/// # Errors
/// When the machine gives no port or no thread.
pub fn start() -> io::Result<Erp> {
    let (live, test) = (listener()?, listener()?);
    let erp = Erp { live: live.local_addr()?, test: test.local_addr()? };
    std::thread::Builder::new().name("demo-erp".into()).spawn(move || run(live, test))?;
    Ok(erp)
}

fn listener() -> io::Result<StdListener> {
    let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn run(live: StdListener, test: StdListener) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::try_join!(serve(live, "live"), serve(test, "sandbox"))?;
        Ok(())
    })
}

async fn serve(listener: StdListener, world: &'static str) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let service = hyper::service::service_fn(move |request| answer(request, world));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

/// Shows what reached the ERP: which world, the request line, every field, the body.
async fn answer(request: Request<Incoming>, world: &'static str) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut fields = Map::new();
    for (name, value) in &head.headers {
        fields.insert(name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes())));
    }
    let shown = if body.len() <= SHOWN_MAX { Value::from(String::from_utf8_lossy(&body)) } else { Value::Null };
    let text = json!({
        "data": world,
        "received": {
            "method": head.method.as_str(), "target": head.uri.to_string(), "headers": fields,
            "body": shown, "body_bytes": body.len(),
        }
    });
    let mut response = Response::new(Full::new(Bytes::from(format!("{text:#}\n"))));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}
