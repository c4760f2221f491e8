//! A disk of a test's own, which can become full and lose its power. Mounting is root's business.

use crate::harness::eventually;
use crate::harness::trace::as_root;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The request of ext4 and XFS to stop at once, and the flag that keeps even their own log from the disk.
const SHUT_DOWN: &str = "import fcntl, os, struct, sys, time\n\
    print(time.clock_gettime_ns(time.CLOCK_MONOTONIC), flush=True)\n\
    fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";

/// An ext4 file system in a file. Dropped: unmounted.
pub struct Disk {
    dir: TempDir,
}

// === impl Disk ===

impl Disk {
    pub fn new(bytes: u64) -> Self {
        let disk = Self { dir: tempfile::tempdir().unwrap() };
        File::create(disk.image()).unwrap().set_len(bytes).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        // Nothing is left to be made ready in the background, nor kept for root. Blocks are as large as those of any disk that is
        // not this small: of smaller ones SQLite, which the index is kept in, reserves only some for the file that it maps, and
        // then a full disk ends the process by SIGBUS.
        let options = ["-q", "-F", "-b", "4096", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"];
        run(Command::new("mkfs.ext4").args(options).arg(disk.image()));
        disk.mount();
        let owner = rustix::process::geteuid().as_raw().to_string();
        run(as_root("chown").arg(owner).arg(disk.path()));
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub fn mount(&self) {
        run(as_root("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()));
    }

    /// Takes it away, as soon as nobody uses it any more.
    pub fn unmount(&self) {
        eventually("nobody uses the disk", || {
            as_root("umount").arg(self.path()).output().unwrap().status.success().then_some(())
        });
    }

    /// As if the power failed: what has not been synced is gone, and nothing can be written until it is mounted again. Gives
    /// the moment.
    pub fn lose_power(&self) -> Instant {
        let output = run(as_root("python3").args(["-c", SHUT_DOWN]).arg(self.path()));
        let nanos: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
        let (now, clock) = (Instant::now(), clock_gettime(ClockId::Monotonic));
        let since = Duration::new(clock.tv_sec.try_into().unwrap(), clock.tv_nsec.try_into().unwrap());
        now.checked_sub(since - Duration::from_nanos(nanos)).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        _ = as_root("umount").arg("--lazy").arg(self.path()).output();
    }
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: see tests/run for what has to be installed"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {errors}: this proof needs root, or sudo without a password, and loop devices"
    );
    output
}
