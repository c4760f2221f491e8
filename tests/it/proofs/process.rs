//! What the kernel says of a process.

use std::fs;
use std::time::Duration;

/// Proportional set size in bytes: private memory, and its share of what is shared.
pub fn pss(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

/// Time on a CPU of all threads so far.
pub fn cpu_time(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let nanos = threads.map(|thread| {
        let schedstat = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        schedstat.split(' ').next().unwrap().parse::<u64>().unwrap_or(0)
    });
    Duration::from_nanos(nanos.sum())
}
