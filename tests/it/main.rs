//! The integration tests: a real gateway process, real sockets on free ports, real files.

mod canary;
mod harness;
mod proofs;
mod proofs_small;
mod smoke;
