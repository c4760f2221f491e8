//! Syncs that fail, as strace has the kernel tell the journal's writer.

use crate::harness::{Gateway, Trace, eventually};
use std::collections::BTreeSet;

/// While it is there, every sync of the journal's writer fails. Dropped: ended, and what the writer did meanwhile is judged.
pub struct FailingSync(Option<Trace>);

// === impl FailingSync ===

impl FailingSync {
    pub fn of(gateway: &Gateway) -> Self {
        let calls = "trace=write,pwrite64,writev,fdatasync,fsync,close";
        let trace = Trace::attach(gateway, "journal", &["-e", calls, "-e", "inject=fdatasync,fsync:error=EIO"]);
        eventually("a sync has failed", || trace.text().contains("INJECTED").then_some(()));
        Self(Some(trace))
    }
}

impl Drop for FailingSync {
    fn drop(&mut self) {
        let trace = self.0.take().map(Trace::end).unwrap_or_default();
        if !std::thread::panicking() {
            judge(&trace);
        }
    }
}

/// What a descriptor holds after a sync of it has failed nobody knows: it may only be closed.
fn judge(trace: &str) {
    let mut failed = BTreeSet::new();
    for line in trace.lines() {
        let Some((call, rest)) = line.split_once('(') else { continue };
        let descriptor = rest.split([',', ')']).next().unwrap();
        if call == "close" {
            failed.remove(descriptor);
            continue;
        }
        assert!(!failed.contains(descriptor), "a descriptor was used after its sync had failed:\n{trace}");
        if line.contains("INJECTED") {
            failed.insert(descriptor);
        }
    }
}
