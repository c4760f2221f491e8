//! The journal on real files: what was begun is recorded, in order, over restarts.

use keygate::audit::reader::{Follow, Line};
use keygate::audit::{Journal, Recorder, Settings};
use keygate::clock::Clock;
use std::path::Path;
use std::rc::Rc;

fn open(dir: &Path) -> (Journal, Rc<Recorder>) {
    let settings = Settings { dir: dir.to_owned(), anonymous_per_second: u32::MAX };
    let (journal, recorders) = Journal::open(&settings, "gw", "cfg", Clock::system(), 1).unwrap();
    (journal, Rc::new(recorders.into_iter().next().unwrap()))
}

/// All records of the first slot.
fn lines(dir: &Path) -> Vec<Line> {
    let mut lines = Vec::new();
    Follow::new(dir.join("0")).read(|line| lines.push(line)).unwrap();
    lines
}

fn seqs(dir: &Path) -> Vec<u64> {
    lines(dir).iter().map(|line| line.seq).collect()
}

#[test]
fn a_pending_that_is_dropped_leaves_its_record_and_a_stop_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for run in 1..=2 {
        let (journal, recorder) = open(dir.path());
        for _ in 0..5000 {
            drop(recorder.begin(Clock::system().moment()).unwrap());
        }
        drop(recorder);
        journal.shutdown();
        assert_eq!(seqs(dir.path()), (1..=run * 5001).collect::<Vec<u64>>());
    }
    let line = lines(dir.path()).pop().unwrap();
    assert!(line.text.contains(r#""reason":"internal_error""#), "{}", line.text);
}
