//! Merges logs into their snapshot, beside a running gateway.

use super::log::Recorded;
use super::{Draft, damaged, logs, read_snapshot, sibling};
use crate::auth::lineage::Lineage;
use crate::key::{EntityId, KeyId};
use crate::store::{Position, Record};
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::Path;

/// A record's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    Key(KeyId),
    Entity(EntityId),
}

/// Writes a snapshot of everything up to `position` in place of the one at `path`, then removes the logs it made needless:
/// all that begin before. Records keep the order of their versions.
///
/// # Errors
/// As of reading and writing. Snapshot and logs are as they were then.
pub fn merge(path: &Path, position: Position, lineage: &Lineage) -> io::Result<()> {
    let (mut before, mut latest, mut reached) = (Vec::new(), HashMap::new(), 0);
    for log in logs(path)? {
        let mut recorded = Recorded::open(&log)?;
        if recorded.base.seq >= position.seq {
            continue;
        }
        while let Some(change) = recorded.entries.read()? {
            reached = change.seq;
            latest.insert(Name::of(&change.after), change.after);
        }
        before.push(log);
    }
    if reached != position.seq {
        return Err(damaged(path, &format!("its logs end at {reached}, not at {}", position.seq)));
    }
    let mut draft = Draft::create(sibling(path, ".merged"), lineage.fleet)?;
    let mut failed = None;
    read_snapshot(path, &mut |record| {
        if failed.is_none() && !latest.contains_key(&Name::of(&record)) {
            failed = draft.add(&record).err();
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut changed: Vec<Record> = latest.into_values().collect();
    changed.sort_by_key(Record::version);
    changed.iter().try_for_each(|record| draft.add(record))?;
    draft.finish(position, lineage, path)?;
    before.iter().try_for_each(fs::remove_file)?;
    super::sync_dir(path)
}

// === impl Name ===

impl Name {
    pub const fn of(record: &Record) -> Self {
        match record {
            Record::Key(key) => Self::Key(key.id),
            Record::Entity(entity) => Self::Entity(entity.id),
        }
    }
}
