//! What the kernel says of a process.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Runs `work` and gives the highest memory seen meanwhile.
pub fn watch_peak<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> (u64, T) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = pss(pid);
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                peak = peak.max(pss(pid));
            }
            peak
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        let peak = watcher.join().unwrap();
        (peak, result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
