//! Upstreams that speak HTTP/2: how connections are shared, what ends one stream and not the others, and what is not believed.

mod lies;
mod sharing;
mod websockets;
