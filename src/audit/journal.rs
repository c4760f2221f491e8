//! The journal: one directory, one writer thread, a gapless sequence.

use super::draft::Draft;
use super::events::{Anonymous, Changes, ConnectionEvents, Health};
use super::line::RequestLines;
use super::reader;
use super::recent::Recent;
use super::recorder::{Recorder, Terms};
use super::ring::Ring;
use super::slot::{self, Slot};
use super::writer::{Parts, Writer};
use super::{Durability, Settings};
use crate::clock::Clock;
use rustix::fs::statfs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use tokio::sync::Notify;

/// Changes that wait for the writer.
const CHANGES_MAX: usize = 1024;

/// Why the journal does not open.
#[derive(Debug, thiserror::Error)]
#[error("the audit journal in {path} cannot be used: {error}")]
pub struct AuditError {
    path: PathBuf,
    error: io::Error,
}

/// What a worker tells the journal with.
pub struct Tellers {
    pub recorder: Recorder,
    pub events: ConnectionEvents,
}

/// The requests that are under way in this process. None is known with `durability = "async"`.
#[derive(Clone)]
pub struct UnderWay {
    journal: String,
    rings: Vec<Arc<Ring>>,
}

/// The running journal.
pub struct Journal {
    /// Its name, `gateway/slot`.
    name: String,
    dir: PathBuf,
    health: Arc<Health>,
    rings: Vec<Arc<Ring>>,
    recent: Arc<Recent>,
    changes: Changes,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<()>,
}

// === impl Journal ===

impl Journal {
    /// Takes the lowest free slot of the directory, recovers every one that no process holds, and starts the writer. Gives each of so
    /// many workers what it tells the journal with, for at most `requests_max` requests at a time.
    ///
    /// # Errors
    /// [`AuditError`] when the directory cannot be made, locked, read or written.
    pub fn open(
        settings: &Settings,
        gateway: &str,
        config: &str,
        clock: Clock,
        workers: usize,
        requests_max: usize,
    ) -> Result<(Self, Vec<Tellers>), AuditError> {
        let failed = |error| AuditError { path: settings.dir.clone(), error };
        let (slot, others) = slot::take(&settings.dir).map_err(failed)?;
        let (name, dir) = (format!("{gateway}/{}", slot.number), slot.dir.clone());
        let stop = Arc::new(AtomicBool::new(false));
        let health = Arc::new(Health::new());
        let (sender, changes) = sync_channel(CHANGES_MAX);
        let kind = file_system(&settings.dir).map_err(failed)?;
        let durability = durability_on(kind, settings.durability);
        if durability != settings.durability {
            tracing::warn!(
                dir = %settings.dir.display(),
                "audit.durability is \"synced\" here, since this file system is none of ext4, xfs and tmpfs: a response waits for its record to be synced"
            );
        }
        let parts = |slot: Slot, changes| Parts {
            slot,
            gateway: gateway.to_owned(),
            config: config.to_owned(),
            clock: clock.clone(),
            changes,
            health: Arc::clone(&health),
            stop: Arc::clone(&stop),
            rotation: settings.rotation,
            durability,
        };
        for slot in others {
            Writer::recover(parts(slot, sync_channel(0).1), false).map_err(failed)?;
        }
        let mut writer = Writer::recover(parts(slot, changes), true).map_err(failed)?;
        let rings = (0..workers).map(|worker| {
            let path = writer.dir().join(slot::ring_name(worker));
            // Where a mapped file costs no more than memory, it also keeps what nobody has asked to be kept.
            let is_mapped = durability != Durability::Async || MAPPABLE.contains(&kind);
            let file = is_mapped.then_some(path.as_path());
            Ok(Arc::new(Ring::create(file, requests_max, config)?))
        });
        let rings = rings.collect::<io::Result<Vec<_>>>().map_err(failed)?;
        let synced = Arc::new(Notify::new());
        writer.attach(rings.clone(), Arc::clone(&synced));
        let terms = Terms {
            health: Arc::clone(&health),
            anonymous: Arc::new(Anonymous::new(settings.anonymous_per_second)),
            durability,
            overload: settings.overload,
            query_names: settings.query_names.clone().into(),
        };
        let tellers = rings.iter().map(|ring| Tellers {
            recorder: Recorder::new(Arc::clone(ring), Arc::clone(&synced), terms.clone()),
            events: ConnectionEvents(Arc::clone(ring)),
        });
        let (tellers, recent) = (tellers.collect(), writer.recent());
        let writer = std::thread::Builder::new().name("journal".into()).spawn(move || writer.run()).map_err(failed)?;
        let changes = Changes { sender, health: Arc::clone(&health) };
        Ok((Self { name, dir, health, rings, recent, changes, stop, writer }, tellers))
    }

    pub fn health(&self) -> Arc<Health> {
        Arc::clone(&self.health)
    }

    pub fn under_way(&self) -> UnderWay {
        UnderWay { journal: self.name.clone(), rings: self.rings.clone() }
    }

    /// What its newest records say.
    pub fn recent(&self) -> Arc<Recent> {
        Arc::clone(&self.recent)
    }

    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Empties the rings, syncs, and ends the writer. To be called after the workers have ended. Gives the journal's name and its last
    /// record; `None` when it is not known to be whole.
    pub fn shutdown(self) -> Option<(String, u64)> {
        self.stop.store(true, Ordering::SeqCst);
        if self.writer.join().is_err() {
            tracing::error!("the journal's writer panicked");
            return None;
        }
        let last = reader::synced(&self.dir).ok().flatten().filter(|_| self.health.is_healthy());
        last.map(|last| (self.name, last))
    }
}

// === impl UnderWay ===

impl UnderWay {
    /// A line for each of them, under the number 0: what it would leave if the process died now. That of a request which begins or
    /// ends at this moment may be of no sense.
    pub fn lines(&self) -> Vec<String> {
        let mut requests = RequestLines::new(&self.journal, "");
        let records = self.rings.iter().flat_map(|ring| ring.left_in_slots());
        let lines = records.filter_map(|record| {
            let mut line = Vec::new();
            requests.write(&mut line, 0, &Draft::read(&record)?);
            line.pop();
            String::from_utf8(line).ok()
        });
        lines.collect()
    }
}

/// File systems on which a store into a mapped file costs no more than one into memory, and outlives the process.
const MAPPABLE: [u64; 3] = [EXT4, XFS, TMPFS];
const EXT4: u64 = 0xEF53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;

/// Which kind of file system a directory is on (statfs(2), `f_type`).
fn file_system(dir: &Path) -> io::Result<u64> {
    Ok(u64::try_from(statfs(dir)?.f_type).unwrap_or(0))
}

/// The durability that the operator asked for, or what gives it where rings cannot be mapped, as on this kind of file system.
fn durability_on(kind: u64, asked: Durability) -> Durability {
    if asked == Durability::Written && !MAPPABLE.contains(&kind) { Durability::Synced } else { asked }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn j2_where_a_ring_cannot_outlive_a_kill_what_must_be_written_waits_for_its_sync() {
        const BTRFS: u64 = 0x9123_683E;
        const NFS: u64 = 0x6969;
        let health = Health::new();
        for kind in [EXT4, XFS, TMPFS, BTRFS, NFS, 0] {
            let waits = |asked| durability_on(kind, asked).waits_for_sync(&health);
            assert!(!waits(Durability::Async) && waits(Durability::Synced));
            assert_eq!(waits(Durability::Written), ![EXT4, XFS, TMPFS].contains(&kind), "{kind:x}");
        }
        // The rings' files were removed.
        health.set_rings_lost();
        assert!(Durability::Written.waits_for_sync(&health) && !Durability::Async.waits_for_sync(&health));
    }
}
