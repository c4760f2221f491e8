//! Every metric, in one file. Labels come from enums and from gateway.toml, never from a request.

use crate::reason::Reason;
use metrics::{Counter, Histogram, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use std::cell::{OnceCell, RefCell};
use std::sync::Arc;
use std::time::Duration;

const REQUESTS: &str = "keygate_requests_total";
const DURATION: &str = "keygate_request_duration_seconds";
const FORKS: &str = "keygate_store_forks_total";
const FOREIGN: &str = "keygate_store_foreign_total";
const CONNECTIONS_ENDED: &str = "keygate_connections_ended_total";
const RELOADS: &str = "keygate_reloads_total";
const SNAPSHOT_REFUSED: &str = "keygate_snapshot_refused_total";
const FILLS: &str = "keygate_fills_total";
const CHANGE_DELAY: &str = "keygate_change_delay_seconds";
const BUILD: &str = "keygate_build_info";
const CERTIFICATE_ENDS: &str = "keygate_certificate_expires_timestamp_seconds";
const CERTIFICATE_RELOADS: &str = "keygate_certificate_reloads_total";
const SINK_SENT: &str = "keygate_sink_sent_total";
const SINK_RETRIES: &str = "keygate_sink_retries_total";
const SINK_DROPPED: &str = "keygate_sink_dropped_total";
const SINK_LAG_RECORDS: &str = "keygate_sink_lag_records";
const SINK_LAG_SECONDS: &str = "keygate_sink_lag_seconds";

/// Upper bounds of the duration histogram's buckets, in seconds: OpenTelemetry's advice for HTTP, and finer ones below it.
const BUCKETS: [f64; 17] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The metrics page.
#[derive(Clone)]
pub struct Page {
    handle: PrometheusHandle,
}

/// A value that is read when the page is drawn: name, help, value.
pub type Reading = (&'static str, &'static str, f64);

/// One worker's request metrics. A handle is resolved when its series first appears and is two atomic operations from then
/// on.
pub struct RequestMetrics {
    /// The label where no route was found.
    none: Arc<str>,
    /// By route number plus one; first, no route.
    routes: RefCell<Vec<RouteMetrics>>,
}

#[derive(Default)]
struct RouteMetrics {
    allowed: OnceCell<Counter>,
    refused: Vec<(Reason, Counter)>,
    duration: OnceCell<Histogram>,
}

// === impl Page ===

impl Page {
    /// Installs the recorder of this process.
    ///
    /// # Errors
    /// A sentence, when one is installed already.
    pub fn install() -> Result<Self, String> {
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(DURATION.to_owned()), &BUCKETS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Full(CHANGE_DELAY.to_owned()), &BUCKETS))
            .map_err(|error| error.to_string())?;
        let recorder = builder.build_recorder();
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
        metrics::describe_counter!(REQUESTS, "requests by route, decision and reason");
        metrics::describe_histogram!(DURATION, Unit::Seconds, "time from a request's head to its response's last byte");
        metrics::describe_counter!(
            CONNECTIONS_ENDED,
            "connections that ended without a request or for what their client did, by cause"
        );
        metrics::describe_counter!(RELOADS, "loads of the whole key set from the store, by cause");
        metrics::describe_counter!(FILLS, "keys that the cache lacked, by what came of asking the store for them");
        metrics::describe_counter!(FORKS, "losses of changes by the store that were noticed and given back");
        metrics::describe_counter!(FOREIGN, "times that the store was found to be another than the one followed");
        metrics::describe_counter!(SNAPSHOT_REFUSED, "snapshots that could not be used");
        metrics::describe_histogram!(
            CHANGE_DELAY,
            Unit::Seconds,
            "time from a change's entry in the log, by its writer's clock, until it was in force here and what it ended was cut"
        );
        metrics::describe_gauge!(
            CERTIFICATE_ENDS,
            Unit::Seconds,
            "when a listener's certificate runs out, since the epoch"
        );
        metrics::describe_counter!(CERTIFICATE_RELOADS, "replaced certificates, by whether they were taken");
        metrics::describe_counter!(SINK_SENT, "audit lines that a sink has taken, told gaps included");
        metrics::describe_counter!(SINK_RETRIES, "deliveries to a sink that failed and are tried again");
        metrics::describe_counter!(SINK_DROPPED, "audit records that a sink was told it does not get");
        metrics::describe_gauge!(SINK_LAG_RECORDS, "synced audit records that a sink has not taken");
        metrics::describe_gauge!(SINK_LAG_SECONDS, Unit::Seconds, "age of the oldest record that a sink has not taken");
        metrics::describe_gauge!(BUILD, "the version that is running");
        metrics::gauge!(BUILD, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self { handle })
    }

    /// The page in Prometheus' text format, `readings` included.
    pub fn render(&self, readings: &[Reading]) -> String {
        for (name, help, value) in readings {
            metrics::describe_gauge!(*name, *help);
            metrics::gauge!(*name).set(*value);
        }
        self.handle.render()
    }

    /// Empties what the histograms have gathered into their buckets. Without it they grow until somebody scrapes.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

/// A connection ended for one of the causes that the journal knows.
pub fn connection_ended(cause: &'static str) {
    metrics::counter!(CONNECTIONS_ENDED, "cause" => cause).increment(1);
}

/// A load of the whole set has begun.
pub fn reload_begun(cause: &'static str) {
    metrics::counter!(RELOADS, "cause" => cause).increment(1);
}

/// The store had lost changes, and is given them again.
pub fn store_forked() {
    metrics::counter!(FORKS).increment(1);
}

/// The store is not the one that was followed.
pub fn store_foreign() {
    metrics::counter!(FOREIGN).increment(1);
}

/// A snapshot was found and could not be used.
pub fn snapshot_refused() {
    metrics::counter!(SNAPSHOT_REFUSED).increment(1);
}

/// What came of asking the store for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    Found,
    Absent,
    /// The log told of the key meanwhile: what it told counts.
    Outdated,
    Failed,
    /// Too many keys were asked for.
    Refused,
}

/// The store was asked for a key that the cache lacked, or was not.
pub fn filled(outcome: Filled) {
    let outcome = match outcome {
        Filled::Found => "found",
        Filled::Absent => "absent",
        Filled::Outdated => "outdated",
        Filled::Failed => "failed",
        Filled::Refused => "refused",
    };
    metrics::counter!(FILLS, "outcome" => outcome).increment(1);
}

/// A change of keys is in force here, so long after it was made.
pub fn change_applied(delay: Duration) {
    metrics::histogram!(CHANGE_DELAY).record(delay);
}

/// A listener's certificate, by its file in gateway.toml, runs out at this time, in seconds since the epoch.
pub fn certificate_ends(listen: &str, cert: &str, at: i64) {
    metrics::gauge!(CERTIFICATE_ENDS, "listen" => listen.to_owned(), "cert" => cert.to_owned()).set(at as f64);
}

/// A listener's files were replaced; whether with something that is good.
pub fn certificates_reloaded(is_taken: bool) {
    let outcome = if is_taken { "taken" } else { "refused" };
    metrics::counter!(CERTIFICATE_RELOADS, "outcome" => outcome).increment(1);
}

/// A sink, by its name in gateway.toml, has taken so many lines.
pub fn sink_sent(sink: &str, lines: usize) {
    metrics::counter!(SINK_SENT, "sink" => sink.to_owned()).increment(lines as u64);
}

/// A delivery to a sink failed.
pub fn sink_retried(sink: &str) {
    metrics::counter!(SINK_RETRIES, "sink" => sink.to_owned()).increment(1);
}

/// A sink was told that it does not get so many records.
pub fn sink_dropped(sink: &str, records: u64) {
    metrics::counter!(SINK_DROPPED, "sink" => sink.to_owned()).increment(records);
}

/// How far a sink is behind the journals.
pub fn sink_lag(sink: &str, records: u64, age: Duration) {
    metrics::gauge!(SINK_LAG_RECORDS, "sink" => sink.to_owned()).set(records as f64);
    metrics::gauge!(SINK_LAG_SECONDS, "sink" => sink.to_owned()).set(age.as_secs_f64());
}

// === impl RequestMetrics ===

impl Default for RequestMetrics {
    fn default() -> Self {
        Self { none: "".into(), routes: RefCell::default() }
    }
}

impl RequestMetrics {
    /// Counts one request on its route, by number and pattern, or on none. `reason` is none for one served whole.
    pub fn record(&self, route: Option<(u32, &Arc<str>)>, reason: Option<Reason>, allowed: bool, duration: Duration) {
        let (index, route) = route.map_or((0, &self.none), |(number, pattern)| (number as usize + 1, pattern));
        let mut routes = self.routes.borrow_mut();
        if routes.len() <= index {
            routes.resize_with(index + 1, RouteMetrics::default);
        }
        let Some(metrics) = routes.get_mut(index) else { return };
        metrics.duration.get_or_init(|| metrics::histogram!(DURATION, "route" => Arc::clone(route))).record(duration);
        match reason {
            None => metrics.allowed.get_or_init(|| counter(route, "allow", "")).increment(1),
            Some(reason) => metrics.refused(reason, route, allowed).increment(1),
        }
    }
}

impl RouteMetrics {
    fn refused(&mut self, reason: Reason, route: &Arc<str>, allowed: bool) -> &Counter {
        let known = self.refused.iter().position(|(known, _)| *known == reason);
        let index = known.unwrap_or_else(|| {
            let decision = if allowed { "allow" } else { "deny" };
            self.refused.push((reason, counter(route, decision, reason.as_str())));
            self.refused.len() - 1
        });
        &self.refused[index].1 // tidy: allow(the index was found or has just been pushed)
    }
}

fn counter(route: &Arc<str>, decision: &'static str, reason: &'static str) -> Counter {
    metrics::counter!(REQUESTS, "route" => Arc::clone(route), "decision" => decision, "reason" => reason)
}
