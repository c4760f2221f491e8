//! Syncs that fail, as strace has the kernel tell the journal's writer.

use super::disk::as_root;
use crate::harness::{Gateway, eventually};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Child;
use tempfile::TempDir;

/// The name of the thread that writes the journal.
const WRITER: &str = "journal";

/// While it is there, every sync of the journal's writer fails. Dropped: ended, and what the writer did meanwhile is judged.
pub struct FailingSync {
    strace: Child,
    dir: TempDir,
}

// === impl FailingSync ===

impl FailingSync {
    pub fn of(gateway: &Gateway) -> Self {
        let (dir, task) = (tempfile::tempdir().unwrap(), format!("/proc/{}/task", gateway.pid()));
        let tasks = std::fs::read_dir(task).unwrap().map(|entry| entry.unwrap().path());
        let is_writer =
            |task: &std::path::PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().trim() == WRITER;
        let writer = tasks.into_iter().find(is_writer).expect("a thread that writes the journal");
        let mut command = as_root("strace");
        command.args(["-qq", "-e", "trace=write,pwrite64,writev,fdatasync,fsync,close"]);
        command.args(["-e", "inject=fdatasync,fsync:error=EIO", "-o"]).arg(trace(&dir));
        command.arg("-p").arg(writer.file_name().unwrap());
        let strace = command
            .spawn()
            .unwrap_or_else(|error| panic!("strace: {error}: see tests/run for what has to be installed"));
        eventually("a sync has failed", || {
            std::fs::read_to_string(trace(&dir)).is_ok_and(|text| text.contains("INJECTED")).then_some(())
        });
        Self { strace, dir }
    }
}

impl Drop for FailingSync {
    fn drop(&mut self) {
        _ = as_root("kill").arg(self.strace.id().to_string()).status();
        _ = self.strace.wait();
        if !std::thread::panicking() {
            judge(&std::fs::read_to_string(trace(&self.dir)).unwrap());
        }
    }
}

fn trace(dir: &TempDir) -> std::path::PathBuf {
    Path::join(dir.path(), "trace")
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
