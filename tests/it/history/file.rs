//! A copy that is put over a SQLite file while gateways use it, beside the write-ahead log of what was there.

use super::{run, said, status};
use crate::harness::{Gateway, Key, Upstream, eventually};
use rusqlite::Connection;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// So many that the database has more pages than its copy.
const LATER: usize = 30;

/// A gateway on a file of which a copy was made before one of its keys was revoked.
struct Embedded {
    gateway: Gateway,
    good: Key,
    revoked: Key,
    later: Key,
    copy: PathBuf,
    _upstream: Upstream,
    _copies: tempfile::TempDir,
}

// === impl Embedded ===

impl Embedded {
    /// With everything since the copy in the write-ahead log, or only the last of it.
    fn start(is_all_in_log: bool) -> Self {
        let (upstream, copies) = (Upstream::named("erp"), tempfile::tempdir().unwrap());
        let gateway = Gateway::builder().live(&upstream).workers(1).start();
        let (good, revoked) = (gateway.key(&["orders:read"]), gateway.key(&["orders:read"]));
        let copy = copies.path().join("copy.db");
        checkpoint(&path(&gateway));
        run("cp", &[&path(&gateway), &copy]);
        for number in 0..LATER {
            let name = format!("later-{number}");
            let args = ["--entity", "acme", "--name", &name, "--mode", "live", "--scope", "orders:read"];
            said(&gateway, &[&["keys", "create"], &args[..]].concat());
        }
        let (code, words) = said(&gateway, &["keys", "revoke", &revoked.id, "--yes"]);
        assert_eq!(code, Some(0), "{words}");
        if !is_all_in_log {
            checkpoint(&path(&gateway));
        }
        let later = gateway.key(&["orders:read"]);
        Self { gateway, good, revoked, later, copy, _upstream: upstream, _copies: copies }
    }

    fn answers(&self) -> [u16; 3] {
        [&self.good, &self.revoked, &self.later].map(|key| status(&self.gateway, key))
    }
}

fn path(gateway: &Gateway) -> PathBuf {
    gateway.dir.path().join("data/keygate.db")
}

/// Moves everything from the write-ahead log into the database.
fn checkpoint(path: &Path) {
    let connection = Connection::open(path).unwrap();
    connection.busy_timeout(Duration::from_secs(5)).unwrap();
    let is_busy = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0));
    assert_eq!(is_busy, Ok(0));
}

#[test]
fn a_copy_over_a_file_in_use_changes_nothing_while_its_log_holds_what_it_lacks() {
    let mut fleet = Embedded::start(true);
    run("cp", &[&fleet.copy, &path(&fleet.gateway)]);
    for _ in 0..2 {
        let more = fleet.gateway.key(&["orders:read"]);
        assert_eq!((fleet.answers(), status(&fleet.gateway, &more)), ([200, 401, 200], 200));
        fleet.gateway.signal("TERM");
        fleet.gateway.wait();
        fleet.gateway.restart();
        eventually("it answers as before", || (fleet.answers() == [200, 401, 200]).then_some(()));
    }
}

#[test]
fn a_copy_over_a_file_in_use_whose_log_lacks_something_is_noticed_and_not_written_to() {
    let mut fleet = Embedded::start(false);
    run("cp", &[&fleet.copy, &path(&fleet.gateway)]);
    // Somebody comes who looks at the log.
    said(&fleet.gateway, &["keys", "update", &fleet.good.id, "--name", "y"]);
    eventually("it is told", || fleet.gateway.log_text().contains("the database is damaged").then_some(()));
    assert_eq!(fleet.answers(), [200, 401, 200]);
    assert!(fleet.gateway.metric("keygate_store_forks_total") < 1.0);
    // As the message says.
    fleet.gateway.signal("TERM");
    fleet.gateway.wait();
    let file = path(&fleet.gateway);
    let beside = ["-wal", "-shm"].map(|end| PathBuf::from(format!("{}{end}", file.display())));
    run("rm", &["-f".as_ref(), &beside[0], &beside[1]]);
    run("cp", &[&fleet.copy, &file]);
    fleet.gateway.restart();
    eventually("it answers as before", || (fleet.answers() == [200, 401, 200]).then_some(()));
    let shown = fleet.gateway.json(&["keys", "show", &fleet.revoked.id, "--output", "json"]);
    assert_eq!(shown["state"], "revoked");
}
