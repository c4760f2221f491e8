//! One downstream connection, from accept to its end.

use super::greeting::{Greeted, Protocol, greet};
use super::registry::Registered;
use super::{Limits, Listen, http1};
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
    match greet(stream, peer, &listen).await {
        Ok(Greeted { stream, downstream, protocol: Protocol::Http1 }) => {
            http1::serve(stream, downstream, registered, serving).await;
        }
        Err(cause) => serving.events.count(cause),
    }
}
