//! Puts a snapshot onto another history, which its store follows since it has lost changes (protocols I4).

use super::log::{Log, Recorded};
use super::merge::Name;
use super::{Draft, follow, log_path, logs, read_snapshot, sibling};
use crate::auth::lineage::Lineage;
use crate::key::Digest;
use crate::store::{Change, Position, Record};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

/// What the new history is.
#[derive(Clone, Copy, Debug)]
pub struct Onto<'a> {
    /// The last position that both have.
    pub common: Position,
    /// What the new one has after that, in order.
    pub entries: &'a [Change],
    /// Keys that it neither has nor takes.
    pub refused: &'a HashSet<Digest>,
    /// Up to the last of the entries.
    pub lineage: &'a Lineage,
}

/// Writes the snapshot at `path` anew, and begins a log where the entries end; gives that. Needs about as much memory as the
/// changes since the snapshot was written, and as much disk as the snapshot.
///
/// # Errors
/// As of reading and writing: what is there then may be neither history, and is to be removed.
pub fn rebase(path: &Path, onto: Onto<'_>) -> io::Result<Log> {
    let Onto { common, entries, refused, lineage } = onto;
    let mut changed = changed(path)?;
    changed.values_mut().for_each(|record| lower(record, common));
    for change in entries {
        let name = Name::of(&change.after);
        // Revoked is final, whatever the new history says (I5): it is being told.
        if !changed.get(&name).is_some_and(Record::is_ended) || change.after.is_ended() {
            changed.insert(name, change.after.clone());
        }
    }
    let is_kept = |record: &Record| !matches!(record, Record::Key(key) if refused.contains(&key.digest));
    let mut draft = Draft::create(sibling(path, ".rebased"), lineage.fleet)?;
    let mut failed = None;
    read_snapshot(path, &mut |mut record| {
        if failed.is_none() && !changed.contains_key(&Name::of(&record)) && is_kept(&record) {
            lower(&mut record, common);
            failed = draft.add(&record).err();
        }
    })?;
    failed.map_or(Ok(()), Err)?;
    changed.values().filter(|record| is_kept(record)).try_for_each(|record| draft.add(record))?;
    // Before the snapshot: none of these goes on from where that will end.
    logs(path)?.iter().try_for_each(fs::remove_file)?;
    let reached = entries.last().map_or(common, |last| Position { seq: last.seq, token: last.token });
    draft.finish(reached, lineage, path)?;
    Log::create(log_path(path, reached), reached)
}

/// What the logs hold, each record as it was last.
fn changed(path: &Path) -> io::Result<HashMap<Name, Record>> {
    let mut changed = HashMap::new();
    let Some((mut position, mut lineage)) = read_snapshot(path, &mut |_| {})? else { return Ok(changed) };
    for log in logs(path)? {
        let mut each = |record: Record| _ = changed.insert(Name::of(&record), record);
        position = follow(&mut Recorded::open(&log)?, position, &mut lineage, &mut each)?;
    }
    Ok(changed)
}

/// A version that the old history gave is not above the last one that both have any more: whatever the new one has is newer.
fn lower(record: &mut Record, common: Position) {
    let version = match record {
        Record::Key(key) => &mut key.version,
        Record::Entity(entity) => &mut entity.version,
    };
    *version = (*version).min(common.seq);
}
