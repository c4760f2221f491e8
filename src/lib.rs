//! keygate decides, in microseconds, whether an integration may touch a company's ERP, and can prove afterwards what it
//! decided.
//!
//! # The code map
//!
//! A request's way through the code begins in [`proxy::service`]; read that file first. Imports go one way only:
//!
//! | layer | modules | what they are |
//! | --- | --- | --- |
//! | leaves | [`reason`], [`clock`], [`secret`], [`net`], [`ulid`], [`sync`], [`tls`], [`telemetry`] | know nothing of keygate |
//! | key | [`key`] | what a key is; pure |
//! | rules and stores | [`policy`], [`store`], [`audit`] | may this principal do this; where records live; what was decided |
//! | identity | [`auth`], [`manage`] | credential to principal; the use cases of key managers |
//! | network | [`proxy`], [`server`], [`admin`] | the data plane; workers and connections; the admin listener |
//! | composition | [`config`], [`app`], [`cli`] | gateway.toml; the running gateway; the command line |
//!
//! `tests/tidy.rs` holds these directions. The manual is [`manual`].

pub mod admin;
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod key;
pub mod manage;
pub mod manual;
pub mod net;
pub mod policy;
pub mod proxy;
pub mod reason;
pub mod secret;
pub mod server;
pub mod store;
pub mod sync;
pub mod telemetry;
pub mod tls;
pub mod ulid;
