//! The files under `deploy/` are what the tools that read them accept.

use std::path::Path;
use std::process::{Command, Output};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/systemd/keygate.service");

fn systemd_analyze(arguments: &[&str], unit: &Path) -> Output {
    let mut command = Command::new("systemd-analyze");
    command.args(arguments).arg(unit).output().expect("systemd-analyze runs: Debian's package systemd")
}

#[test]
fn systemd_accepts_the_unit() {
    let text = std::fs::read_to_string(UNIT).unwrap();
    assert_eq!(text.matches("/usr/bin/keygate").count(), 1);
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("keygate.service");
    // Only what is installed can be verified as a command.
    std::fs::write(&copy, text.replace("/usr/bin/keygate", "/bin/true")).unwrap();
    let output = systemd_analyze(&["verify", "--man=no"], &copy);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words}");
    assert!(!words.contains("keygate.service"), "{words}");
}

#[test]
fn the_unit_is_exposed_to_less_than_2_5_by_systemds_own_rating() {
    let output = systemd_analyze(&["security", "--offline=yes", "--threshold=25", "--no-pager"], Path::new(UNIT));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
