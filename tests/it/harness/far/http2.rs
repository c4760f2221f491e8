//! The far side as it speaks HTTP/2.

use super::{End, Ended, Far, Hasher, Script, Seen, fields_of, pattern, promised};
use bytes::Bytes;
use h2::ext::Protocol;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response};
use rustls::ServerConfig;
use std::future::poll_fn;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

// === impl Far ===

impl Far {
    pub(super) async fn serve_http2(&self, stream: TcpStream, tls: Option<Arc<ServerConfig>>, connection: usize) {
        stream.set_nonblocking(true).unwrap();
        let stream = tokio::net::TcpStream::from_std(stream).unwrap();
        match tls {
            None => self.drive(stream, connection).await,
            Some(config) => {
                let Ok(stream) = tokio_rustls::TlsAcceptor::from(config).accept(stream).await else { return };
                self.drive(stream, connection).await;
            }
        }
    }

    async fn drive(&self, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, connection: usize) {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(self.streams_max.load(Ordering::SeqCst));
        if self.takes_connect.load(Ordering::SeqCst) {
            builder.enable_connect_protocol();
        }
        let Ok(mut http2) = builder.handshake::<_, Bytes>(stream).await else { return };
        while let Some(Ok((request, respond))) = http2.accept().await {
            let far = self.clone();
            tokio::task::spawn_local(async move { far.serve_stream(request, respond, connection).await });
        }
    }

    async fn serve_stream(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>, connection: usize) {
        let (head, mut body) = request.into_parts();
        let mut fields = fields_of(&head.headers);
        fields.extend(head.extensions.get::<Protocol>().map(|name| (":protocol".into(), name.as_str().into())));
        let seen = Seen {
            method: head.method.to_string(),
            target: head.uri.path_and_query().unwrap().to_string(),
            scheme: head.uri.scheme_str().map(str::to_owned),
            authority: head.uri.authority().unwrap().to_string(),
            fields,
            body: super::Body::default(),
            trailers: Vec::new(),
            end: None,
            connection,
        };
        let script = (self.answer)(&seen);
        let at = self.begin(seen.clone());
        let served = self.exchange(at, &seen, &script, &mut body, &mut respond).await;
        let hangs = matches!(script.end, End::Hang | End::Silence);
        let end = match served {
            Ok(stream) if hangs => {
                let mut stream = stream;
                let reset = match &mut stream {
                    Some(stream) => poll_fn(|cx| stream.poll_reset(cx)).await,
                    None => poll_fn(|cx| respond.poll_reset(cx)).await,
                };
                Ended::BrokenOff(reset.ok())
            }
            Ok(_) => Ended::Whole,
            Err(error) => Ended::BrokenOff(error.reason()),
        };
        self.note(at, |seen| seen.end = Some(end));
    }

    async fn exchange(
        &self,
        at: usize,
        seen: &Seen,
        script: &Script,
        body: &mut RecvStream,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<Option<SendStream<Bytes>>, h2::Error> {
        let mut stream = None;
        if script.is_early {
            stream = self.send_answer(seen, script, respond).await?;
        }
        if script.is_early && matches!(script.end, End::Whole | End::Silence) {
            // What it did not read it does not want, or does not come to.
            return Ok(stream);
        }
        let mut hasher = Hasher::default();
        while let Some(data) = body.data().await {
            let data = data?;
            body.flow_control().release_capacity(data.len())?;
            hasher.add(&data);
            if let (End::Echo, Some(stream)) = (script.end, &mut stream) {
                stream.send_data(data, false)?;
            }
        }
        let trailers = body.trailers().await?.map(|trailers| fields_of(&trailers)).unwrap_or_default();
        self.note(at, |seen| (seen.body, seen.trailers) = (hasher.end(), trailers));
        if !script.is_early {
            stream = self.send_answer(seen, script, respond).await?;
        }
        if let (End::Echo, Some(stream)) = (script.end, &mut stream) {
            stream.send_data(Bytes::new(), true)?;
        }
        Ok(stream)
    }

    async fn send_answer(
        &self,
        seen: &Seen,
        script: &Script,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<Option<SendStream<Bytes>>, h2::Error> {
        match script.end {
            End::Silence => return Ok(None),
            End::Refuse => {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                return Ok(None);
            }
            End::Whole | End::BreakOff | End::Hang | End::Echo => {}
        }
        let is_bodiless = seen.method == "HEAD" || matches!(script.status, 204 | 304);
        let mut builder = Response::builder().status(script.status);
        for (name, value) in &script.fields {
            builder = builder.header(name, value);
        }
        if script.is_sized && script.status != 204 {
            builder = builder.header("content-length", promised(script));
        }
        let mut stream = respond.send_response(builder.body(()).unwrap(), is_bodiless)?;
        if is_bodiless {
            return Ok(None);
        }
        let mut at = 0;
        while at < script.body {
            stream.reserve_capacity(usize::try_from(script.body - at).unwrap_or(60_000).min(60_000));
            let room = poll_fn(|cx| stream.poll_capacity(cx)).await;
            let room = room.unwrap_or_else(|| Err(h2::Reason::CANCEL.into()))? as u64;
            let end = script.body.min(at + room);
            stream.send_data(Bytes::from(pattern(at, end)), false)?;
            self.sent.fetch_add(end - at, Ordering::SeqCst);
            at = end;
        }
        match script.end {
            End::Whole if script.trailers.is_empty() => stream.send_data(Bytes::new(), true)?,
            End::Whole => {
                let mut trailers = HeaderMap::new();
                for (name, value) in &script.trailers {
                    trailers.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
                }
                stream.send_trailers(trailers)?;
            }
            End::BreakOff => {
                // What was sent before goes out first.
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream.send_reset(h2::Reason::INTERNAL_ERROR);
            }
            End::Hang | End::Silence | End::Refuse | End::Echo => {}
        }
        Ok(Some(stream))
    }
}
