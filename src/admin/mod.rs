//! The admin listener: `/livez`, `/readyz`, `/metrics` (contract, section 8). Loopback, and never reachable through the data
//! plane.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
}

/// What the admin listener asks of the running gateway; `app` implements it.
pub trait ControlPlane: Send + Sync + 'static {
    /// Whether requests are served: the keys are loaded and nobody has asked the process to stop. Does not depend on the
    /// store's health.
    fn is_ready(&self) -> bool;
    /// What is degraded and how things stand, a line each, for `/readyz?verbose`.
    fn report(&self) -> String;
    /// The metrics page.
    fn metrics(&self) -> String;
}

/// Connections at a time: probes and scrapers are few.
const CONNECTIONS_MAX: usize = 64;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Serves until the task is dropped.
pub async fn serve(listener: TcpListener, control: Arc<dyn ControlPlane>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let control = Arc::clone(&control);
                tokio::spawn(async move {
                    connection(stream, control).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin listener cannot accept");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, control: Arc<dyn ControlPlane>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, control.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = served.await {
        tracing::debug!(%error, "admin connection ended");
    }
}

fn answer<B>(request: &Request<B>, control: &dyn ControlPlane) -> Response<Full<Bytes>> {
    if *request.method() != Method::GET && *request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".into());
    }
    let verbose = request.uri().query().is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    match request.uri().path() {
        "/livez" => text(StatusCode::OK, "ok\n".into()),
        "/readyz" => {
            let (status, word) = match control.is_ready() {
                true => (StatusCode::OK, "ok\n"),
                false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            };
            let report = if verbose { control.report() } else { String::new() };
            text(status, format!("{report}{word}"))
        }
        "/metrics" => {
            let mut page = text(StatusCode::OK, control.metrics());
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            page.headers_mut().insert(header::CONTENT_TYPE, format);
            page
        }
        _ => text(StatusCode::NOT_FOUND, "there is /livez, /readyz and /metrics\n".into()),
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
