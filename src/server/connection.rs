//! One downstream connection, from accept to its end.

use super::greeting::{Protocol, Ungreeted, greet};
use super::listener::Accepted;
use super::registry::Registered;
use super::{Limits, Listen, http1, http2};
use crate::audit::ConnectionEvents;
use crate::proxy::service::Service;
use std::net::IpAddr;
use std::rc::Rc;
use tokio::sync::Semaphore;

/// What a worker's connections are served with.
#[derive(Clone)]
pub struct Serving {
    pub service: Rc<Service>,
    pub limits: Rc<Limits>,
    pub events: ConnectionEvents,
    /// To compute a TLS handshake.
    pub turns: Rc<Semaphore>,
}

/// Serves one connection until it ends, misses a deadline, is evicted or drained.
pub async fn serve(socket: Accepted, peer: IpAddr, listen: Rc<Listen>, registered: Registered, serving: Serving) {
    match greet(socket, peer, &listen, &serving.limits, &serving.turns).await {
        Ok(greeted) => match greeted.protocol {
            Protocol::Http1 => http1::serve(greeted, registered, serving).await,
            // Boxed: its state is larger, and most connections need none of it.
            Protocol::Http2 => Box::pin(http2::serve(greeted, registered, serving)).await,
        },
        Err(Ungreeted::Counted(cause)) => serving.events.count(cause),
        Err(Ungreeted::Left) => {}
    }
}
