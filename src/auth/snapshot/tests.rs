use super::*;
use crate::clock::{Clock, Timestamp};
use crate::key::{EntityId, EntityRecord};
use crate::store::{Action, FleetId};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

/// What a snapshot should hold: by record, its latest version.
type Model = BTreeMap<u128, u64>;

fn change(seq: u64, number: u128) -> Change {
    let (id, created_at) = (EntityId::from_bits(number), Timestamp::from_micros(1));
    let entity =
        EntityRecord { id, version: seq, code: "acme".into(), name: "Acme".into(), created_at, deleted_at: None };
    let (actor, action, after) = ("test".to_owned(), Action::EntityCreated, Record::Entity(entity));
    Change { seq, token: seq * 7, at: created_at, actor, action, before: None, after }
}

fn at(seq: u64) -> Position {
    Position { seq, token: seq * 7 }
}

/// What leads to a position, of a fleet.
fn lineage(seq: u64) -> Lineage {
    let mut lineage = Lineage::default();
    lineage.fleet = Some(FleetId::from_bits(7));
    lineage.extend((1..=seq).map(at));
    lineage
}

/// A snapshot of nothing at position 0.
fn begin(dir: &Path) -> Snapshot {
    let mut snapshot = Snapshot::at(dir.join("keys.snapshot"));
    let draft = snapshot.draft(at(0), lineage(0).fleet).unwrap();
    snapshot.replace(draft, at(0), &Lineage::default()).unwrap();
    snapshot
}

fn recall(dir: &Path) -> io::Result<Option<(Recalled, Model)>> {
    let (mut model, mut snapshot) = (Model::new(), Snapshot::at(dir.join("keys.snapshot")));
    let recalled = snapshot.recall(Clock::system().moment(), |record| {
        let Record::Entity(entity) = record else { panic!("a key") };
        let version = model.entry(entity.id.to_bits()).or_insert(0);
        assert!(*version < entity.version, "an older state after a newer one");
        *version = entity.version;
    })?;
    Ok(recalled.map(|recalled| (recalled, model)))
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u8>),
    Stamp,
    Merge,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop::collection::vec(0..20_u8, 1..5).prop_map(Step::Append),
        2 => Just(Step::Stamp),
        1 => Just(Step::Merge),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..30)
}

/// Runs the steps; what should be there, and the last position that was stamped.
fn run(dir: &Path, steps: &[Step]) -> (Position, Model, u64) {
    let (mut snapshot, mut seq, mut model, mut stamped) = (begin(dir), 0, Model::new(), 0);
    for step in steps {
        match step {
            Step::Append(records) => {
                let changes: Vec<_> = (seq + 1..).zip(records).map(|(seq, n)| change(seq, u128::from(*n))).collect();
                changes.iter().zip(records).for_each(|(change, n)| _ = model.insert(u128::from(*n), change.seq));
                seq += records.len() as u64;
                snapshot.append(&changes, &lineage(seq)).unwrap();
            }
            Step::Stamp => {
                snapshot.contact = None;
                snapshot.stamp(Clock::system().moment(), at(seq)).unwrap();
                stamped = seq;
            }
            Step::Merge if snapshot.log.as_ref().is_some_and(|log| log.path != log_path(&snapshot.path, at(seq))) => {
                snapshot.merge(at(seq), &lineage(seq)).unwrap();
            }
            Step::Merge => {}
            Step::Reopen => {
                snapshot.wait_for_merge();
                snapshot = Snapshot::at(dir.join("keys.snapshot"));
                snapshot.recall(Clock::system().moment(), |_| {}).unwrap().unwrap();
            }
        }
    }
    snapshot.wait_for_merge();
    (at(seq), model, stamped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn i3_what_was_appended_is_read_back_whatever_was_merged_and_reopened(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let (position, model, stamped) = run(dir.path(), &steps);
        let (recalled, found) = recall(dir.path()).unwrap().unwrap();
        prop_assert_eq!((recalled.position, &found), (position, &model));
            // Before the first merge nobody has told the fleet.
            prop_assert!(recalled.lineage.up_to(u64::MAX).eq(lineage(position.seq).up_to(u64::MAX)));
        prop_assert_eq!(recalled.contact.is_some(), stamped > 0);
        let files = std::fs::read_dir(dir.path()).unwrap().count();
        prop_assert_eq!(files, 2, "a snapshot and one log");
    }

    #[test]
    fn a_changed_byte_a_cut_end_or_zeros_give_no_right_to_serve_what_is_not_whole(
        steps in steps(), file in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), flip in 0..10_u32
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (_, model, stamped) = run(dir.path(), &steps);
        let mut files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let path = &files[file.index(files.len())];
        let mut bytes = std::fs::read(path).unwrap();
        let place = at.index(bytes.len());
        match flip {
            8 => bytes.truncate(place),
            9 => bytes[place..].fill(0),
            bit => bytes[place] ^= 1 << bit,
        }
        std::fs::write(path, bytes).unwrap();
        if let Ok(Some((recalled, found))) = recall(dir.path()) {
            prop_assert!(recalled.contact.is_none() || recalled.position.seq >= stamped);
            let lost = model.iter().filter(|(id, version)| found.get(id) != Some(version));
            prop_assert!(lost.into_iter().all(|(_, version)| *version > recalled.position.seq));
        }
    }
}

#[test]
fn i2_a_contact_is_as_old_as_it_is_on_both_clocks_and_after_another_start_on_the_wall_clock() {
    let (clock, hand) = Clock::manual(Timestamp::from_micros(1_000_000_000));
    let contact = Contact { boot: 5, at: clock.moment(), position: at(1) };
    let minute = Duration::from_secs(60);
    hand.pass(minute);
    let now = clock.moment();
    assert_eq!(as_of(&contact, 5, now), Some(contact.at));
    let other = as_of(&contact, 6, now).unwrap();
    assert_eq!((now.wall.since(other.wall), now.mono.saturating_duration_since(other.mono)), (minute, minute));
    hand.set_wall(Timestamp::from_micros(999_999_999));
    assert_eq!((as_of(&contact, 5, clock.moment()), as_of(&contact, 6, clock.moment())), (None, None));
}

#[test]
fn i3_what_cannot_be_kept_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut snapshot = begin(dir.path());
    snapshot.append(&[change(1, 1)], &lineage(1)).unwrap();
    snapshot.close_for_writing();
    assert!(snapshot.append(&[change(2, 2)], &lineage(2)).is_err());
    snapshot.abandon().unwrap();
    assert!(!snapshot.exists() && !snapshot.is_kept());
    assert!(recall(dir.path()).unwrap().is_none());
}

#[test]
fn i5_a_snapshot_that_is_put_onto_another_history_keeps_what_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut snapshot = begin(dir.path());
    let mut deletion = change(2, 1);
    if let Record::Entity(entity) = &mut deletion.after {
        entity.deleted_at = Some(deletion.at);
    }
    snapshot.append(&[change(1, 1), deletion], &lineage(2)).unwrap();
    // There it is in force, whatever the gateway has told.
    let there = Change { token: 99, ..change(2, 1) };
    let (mut lineage, refused) = (lineage(1), HashSet::new());
    lineage.extend([Position { seq: 2, token: 99 }]);
    snapshot.rebase(Onto { common: at(1), entries: &[there], refused: &refused, lineage: &lineage }).unwrap();
    let kept = snapshot.read().unwrap().unwrap();
    assert_eq!((kept.position, kept.records.len()), (Position { seq: 2, token: 99 }, 1));
    assert!(kept.records.iter().all(Record::is_ended));
}
