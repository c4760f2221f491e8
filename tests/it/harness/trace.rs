//! strace on one thread of a gateway: what it asks of the kernel, and what the kernel is made to answer.

use super::{Gateway, eventually};
use std::path::PathBuf;
use std::process::{Child, Command};
use tempfile::TempDir;

/// While it is there, the thread is traced.
pub struct Trace {
    strace: Child,
    dir: TempDir,
}

// === impl Trace ===

impl Trace {
    /// Traces the gateway's thread of this name with these arguments of strace, from before this returns: the thread must do
    /// something that is traced also when nobody asks it to.
    pub fn attach(gateway: &Gateway, thread: &str, args: &[&str]) -> Self {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), format!("/proc/{}/task", gateway.pid()));
        let tasks = std::fs::read_dir(tasks).unwrap().map(|entry| entry.unwrap().path());
        let is_named = |task: &PathBuf| std::fs::read_to_string(task.join("comm")).unwrap().trim() == thread;
        let task = tasks.into_iter().find(is_named).unwrap_or_else(|| panic!("a thread with the name {thread}"));
        let mut command = as_root("strace");
        command.arg("-qq").args(args).arg("-o").arg(dir.path().join("trace")).arg("-p").arg(task.file_name().unwrap());
        let strace = command
            .spawn()
            .unwrap_or_else(|error| panic!("strace: {error}: see tests/run for what has to be installed"));
        let trace = Self { strace, dir };
        eventually("strace is attached", || (!trace.text().is_empty()).then_some(()));
        trace
    }

    /// What was traced so far.
    pub fn text(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("trace")).unwrap_or_default()
    }

    /// Ends it; gives what was traced.
    pub fn end(mut self) -> String {
        self.detach();
        self.text()
    }

    fn detach(&mut self) {
        if self.strace.try_wait().unwrap().is_none() {
            _ = as_root("kill").arg(self.strace.id().to_string()).status();
            _ = self.strace.wait();
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.detach();
    }
}

/// A command that root runs, or whoever may become root without a password.
pub fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.args(["-n", program]);
    command
}
