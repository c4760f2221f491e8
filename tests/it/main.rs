//! The integration tests: a real gateway process, real sockets on free ports, real files.

mod deploy;
mod harness;
mod smoke;
