//! The admin listener: `/livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;

/// `[admin]`.
#[derive(Clone, Debug)]
pub struct Settings {
    pub address: SocketAddr,
}
