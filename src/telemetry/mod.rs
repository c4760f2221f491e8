//! Metrics, logs, health. A leaf: everything may use it, it uses nothing but other leaves.

pub mod logging;
pub mod metrics;

pub use metrics::{
    Filled, Page, RequestMetrics, certificate_ends, certificates_reloaded, change_applied, filled, reload_begun,
    sink_dropped, sink_lag, sink_retried, sink_sent, snapshot_refused, store_foreign, store_forked,
};
