//! What is not a request but belongs into the journal or onto the metrics page: counts, changes, health.

use super::ring::{Counter, Ring};
use crate::clock::{Instant, Timestamp};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, OnceLock};

/// Why bytes from a client never became a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Unparseable,
    HeadTooLarge,
    HeadTimeout,
    WriteStall,
    Evicted,
    /// Not done with what comes before a first request in time.
    HandshakeTimeout,
    /// HTTP/2: far more frames or resets than its requests explain.
    Flooded,
    /// Whoever is not a trusted proxy has no say in whose connection it is.
    ProxyUntrusted,
    ProxyHeaderMissing,
    ProxyHeaderMalformed,
    /// The first byte is none of TLS.
    NotTls,
    /// The client went away in the middle of a TLS handshake.
    TlsBrokenOff,
    /// What the client said in its TLS handshake is no such thing.
    TlsMalformed,
    /// No version, cipher, signature or protocol is known to both sides.
    TlsUnsupported,
    /// The client gave up by a TLS alert: it does not trust the certificate, as a rule.
    TlsRefused,
    /// The client's certificate is missing, of nobody who may vouch for it, or has run out.
    TlsClientCertificate,
}

/// One worker's counts of connections that ended without a request, by cause; told to the journal once a second.
#[derive(Clone, Debug)]
pub struct ConnectionEvents(pub(super) Arc<Ring>);

/// The journal's condition, for metrics and readiness.
#[derive(Debug)]
pub struct Health {
    healthy: AtomicBool,
    /// See [`Self::synced_until`].
    synced_until: AtomicU64,
    /// The rings' files are gone: they do not outlive the process any more.
    rings_lost: AtomicBool,
    records: AtomicU64,
    refused: AtomicU64,
    dropped: AtomicU64,
}

/// Refusals without a valid key: the first `per_second` of a second are recorded, the rest are counted exactly, by each worker.
#[derive(Debug)]
pub struct Anonymous {
    per_second: u32,
    second: AtomicI64,
    recorded: AtomicU32,
}

/// A change of a key or an entity, as the store's log has it.
#[derive(Clone, Debug)]
pub struct ChangeEntry {
    /// The change's `seq` in the store's log.
    pub seq: u64,
    pub at: Timestamp,
    pub actor: String,
    pub action: &'static str,
    /// JSON objects.
    pub before: Option<String>,
    pub after: String,
}

/// Where the follower hands changes over to the journal.
#[derive(Clone, Debug)]
pub struct Changes {
    pub(super) sender: SyncSender<ChangeEntry>,
    pub(super) health: Arc<Health>,
}

// === impl Cause ===

impl Cause {
    pub const ALL: [Self; 16] = [
        Self::Unparseable,
        Self::HeadTooLarge,
        Self::HeadTimeout,
        Self::WriteStall,
        Self::Evicted,
        Self::HandshakeTimeout,
        Self::Flooded,
        Self::ProxyUntrusted,
        Self::ProxyHeaderMissing,
        Self::ProxyHeaderMalformed,
        Self::NotTls,
        Self::TlsBrokenOff,
        Self::TlsMalformed,
        Self::TlsUnsupported,
        Self::TlsRefused,
        Self::TlsClientCertificate,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unparseable => "unparseable",
            Self::HeadTooLarge => "head_too_large",
            Self::HeadTimeout => "head_timeout",
            Self::WriteStall => "write_stall",
            Self::Evicted => "evicted",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Flooded => "flooded",
            Self::ProxyUntrusted => "proxy_untrusted",
            Self::ProxyHeaderMissing => "proxy_header_missing",
            Self::ProxyHeaderMalformed => "proxy_header_malformed",
            Self::NotTls => "not_tls",
            Self::TlsBrokenOff => "tls_broken_off",
            Self::TlsMalformed => "tls_malformed",
            Self::TlsUnsupported => "tls_unsupported",
            Self::TlsRefused => "tls_refused",
            Self::TlsClientCertificate => "tls_client_certificate",
        }
    }
}

// === impl ConnectionEvents ===

impl ConnectionEvents {
    /// Counts a connection that ended for `cause`, here and on the metrics page.
    pub fn count(&self, cause: Cause) {
        crate::telemetry::metrics::connection_ended(cause.as_str());
        self.0.count(Counter::Connection(cause));
    }
}

// === impl Health ===

impl Health {
    pub(super) const fn new() -> Self {
        Self {
            healthy: AtomicBool::new(true),
            synced_until: AtomicU64::new(0),
            rings_lost: AtomicBool::new(false),
            records: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
        }
    }

    /// Whether records can be written now.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    /// Everything that was recorded before this time is synced.
    pub fn synced_until(&self) -> Instant {
        Instant::from_nanos(self.synced_until.load(Ordering::Relaxed))
    }

    pub(super) fn tell_synced_until(&self, time: Instant) {
        self.synced_until.store(time.as_nanos(), Ordering::Relaxed);
    }

    /// Records written since the start.
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    /// Requests refused since the start because they could not be recorded.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Records dropped since the start because there was no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether the rings' files were removed.
    pub(super) fn has_lost_rings(&self) -> bool {
        self.rings_lost.load(Ordering::Relaxed)
    }

    pub(super) fn set_rings_lost(&self) {
        self.rings_lost.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    pub(super) fn add_records(&self, records: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
    }

    pub(super) fn add_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Anonymous ===

impl Anonymous {
    pub(super) const fn new(per_second: u32) -> Self {
        Self { per_second, second: AtomicI64::new(0), recorded: AtomicU32::new(0) }
    }

    /// Whether a refusal gets a record of its own.
    pub(super) fn admits(&self, now: Timestamp) -> bool {
        let second = now.as_micros().div_euclid(1_000_000);
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.recorded.store(0, Ordering::Relaxed);
        }
        self.recorded.fetch_add(1, Ordering::Relaxed) < self.per_second
    }
}

// === impl Changes ===

impl Changes {
    /// Hands a change over. Waits when the journal is far behind; a journal that fails is told by its health, and the
    /// change stays in the store's log.
    pub fn record(&self, entry: ChangeEntry) {
        static LOST: OnceLock<()> = OnceLock::new();
        match self.sender.try_send(entry) {
            Ok(()) => {}
            Err(TrySendError::Full(entry)) if self.health.is_healthy() => _ = self.sender.send(entry),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                LOST.get_or_init(|| tracing::error!("a key change could not be journaled; it is in the store's log"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    fn change(seq: u64) -> ChangeEntry {
        let at = Timestamp::from_micros(0);
        ChangeEntry { seq, at, actor: "cli:a".into(), action: "key.created", before: None, after: "{}".into() }
    }

    #[test]
    fn j9_l4_a_change_waits_for_a_journal_that_is_behind_and_for_none_that_fails() {
        let (sender, receiver) = sync_channel(1);
        let changes = Changes { sender, health: Arc::new(Health::new()) };
        let heard = std::thread::scope(|scope| {
            scope.spawn(|| (1..=3).for_each(|seq| changes.record(change(seq))));
            std::thread::sleep(Duration::from_millis(50));
            let heard = std::iter::from_fn(|| receiver.recv_timeout(Duration::from_secs(1)).ok());
            heard.take(3).map(|entry| entry.seq).collect::<Vec<_>>()
        });
        assert_eq!(heard, [1, 2, 3]);
        changes.health.set_healthy(false);
        (4..=6).for_each(|seq| changes.record(change(seq)));
        assert_eq!(receiver.try_iter().map(|entry| entry.seq).collect::<Vec<_>>(), [4]);
    }
}
