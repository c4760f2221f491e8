//! The integration tests: a real gateway process, real sockets on free ports, real files.

mod addresses;
mod drain;
mod harness;
mod hygiene;
mod limits;
mod smoke;
mod streaming;
mod upstream_lies;
