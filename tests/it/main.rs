//! The integration tests: a real gateway process, real sockets on free ports, real files.

mod addresses;
mod audit;
mod canary;
mod cli;
mod config;
mod confirm;
mod corpora;
mod cut;
mod deploy;
mod drain;
mod harness;
mod hygiene;
mod journal;
mod lifecycle;
mod limits;
mod logs;
mod order;
mod proofs;
mod proofs_small;
mod readme;
mod redis;
mod refusals;
mod smoke;
mod streaming;
mod upstream_lies;
mod upstreams;
