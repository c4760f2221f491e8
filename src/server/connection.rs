//! One downstream connection, from accept to its end.

use super::greeting::{Protocol, greet};
use super::registry::Registered;
use super::{Limits, Listen, http1, http2};
use crate::audit::ConnectionEvents;
use crate::proxy::service::Service;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::TcpStream;

/// What a worker's connections are served with.
#[derive(Clone)]
pub struct Serving {
    pub service: Rc<Service>,
    pub limits: Rc<Limits>,
    pub events: ConnectionEvents,
}

/// Serves one connection until it ends, misses a deadline, is evicted or drained.
pub async fn serve(stream: TcpStream, peer: SocketAddr, listen: Rc<Listen>, registered: Registered, serving: Serving) {
    match greet(stream, peer, &listen, &serving.limits).await {
        Ok(greeted) => match greeted.protocol {
            Protocol::Http1 => http1::serve(greeted, registered, serving).await,
            // Boxed: its state is larger, and most connections need none of it.
            Protocol::Http2 => Box::pin(http2::serve(greeted, registered, serving)).await,
        },
        Err(cause) => serving.events.count(cause),
    }
}
