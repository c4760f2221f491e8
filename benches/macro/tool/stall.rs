//! Stalls of a core: times in which nothing on it ran that could, because the machine is a guest and its host does other things,
//! or the kernel did not give way.

use super::Failure;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::Write;
use std::time::Duration;

/// How often is looked.
const PERIOD: Duration = Duration::from_micros(500);
/// Who is later than this, though nothing goes before it, was kept from its work.
const LATE: u64 = 1_000_000;

/// In nanoseconds of the monotonic clock.
#[derive(Clone, Copy)]
pub struct Stall {
    begin: u64,
    end: u64,
}

// === impl Stall ===

impl Stall {
    /// Whether a request that was under way between these times met it, or what had queued up behind it: that takes as long again at
    /// the most while a core is busy for half of its time.
    pub const fn is_met(self, from: u64, to: u64) -> bool {
        to >= self.begin && from <= self.end + (self.end - self.begin)
    }
}

/// Nanoseconds of the monotonic clock.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Writes the stalls of the core that this runs on to a file that others may write to as well, a line for each. To be run as a
/// real-time task.
pub fn watch(file: &str) -> Result<(), Failure> {
    let mut file = File::options().append(true).create(true).open(file)?;
    loop {
        let begin = now();
        std::thread::sleep(PERIOD);
        let end = now();
        if end - begin > LATE {
            file.write_all(format!("{begin} {end}\n").as_bytes())?;
        }
    }
}

/// What was written so far.
pub fn read(file: &str) -> Result<Vec<Stall>, Failure> {
    let text = std::fs::read_to_string(file)?;
    let stall = |line: &str| {
        let (begin, end) = line.split_once(' ')?;
        Some(Stall { begin: begin.parse().ok()?, end: end.parse().ok()? })
    };
    text.lines().map(|line| stall(line).ok_or_else(|| format!("no stall: {line}").into())).collect()
}
