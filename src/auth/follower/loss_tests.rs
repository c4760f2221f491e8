//! What a store loses or does not take while it is told what it has lost, and what is said meanwhile.

use super::fork_tests::{apply, begin, catch_up, create, entity, gateway, next_page, reload, rename, revoke};
use super::tests::{CREATED_AT, digest, follow_with, key, look};
use super::watched::Watched;
use super::*;
use crate::auth::cache::Lookup;
use crate::key::{EntityId, EntityRecord, KeyId, KeyRecord};
use crate::store::memory::MemoryStore;
use crate::store::{Action, FleetId, Record};
use crate::ulid::Ulid;
use std::sync::mpsc;

fn key_of(number: u128, entity_id: EntityId, digest_of: u128) -> Record {
    let (Record::Key(key), Record::Key(other)) = (key(number), key(digest_of)) else { unreachable!() };
    Record::Key(KeyRecord { entity_id, digest: other.digest, ..key })
}

#[test]
fn settle_no_key_is_called_unknown_while_whoever_has_it_may_still_give_it_back() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    let copy = store.copy();
    assert!(create(store.as_ref(), 2));
    catch_up(&mut follower);
    assert!(matches!(look(&cache, 2), Lookup::Known(_)) && cache.trust() != 0);
    // It keeps nothing: another gateway has the second key, and has yet to come.
    store.put_back(&copy);
    follower.changes = Box::new(Watched { settles_in: Duration::from_secs(1), ..*Watched::of(&store) });
    catch_up(&mut follower);
    assert!(matches!(look(&cache, 1), Lookup::Known(_)) && matches!(look(&cache, 2), Lookup::Unknown));
    assert_eq!(cache.trust(), 0, "nor is the store's word on it believed");
    follower.changes = Watched::of(&store);
    catch_up(&mut follower);
    assert!(matches!(look(&cache, 2), Lookup::Absent) && cache.trust() != 0);
}

#[test]
fn settle_who_knew_nothing_serves_nothing_before_the_store_has_settled() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (clock, hand) = Clock::manual(Timestamp::from_micros(1_000_000));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, clock.clone(), None);
    // As if it had just been started.
    hand.pass(Duration::from_secs(3600));
    follower.settled = false;
    follower.changes = Box::new(Watched { settles_in: Duration::from_secs(1), ..*Watched::of(&store) });
    catch_up(&mut follower);
    assert!(cache.is_stale(clock.moment()));
    follower.changes = Watched::of(&store);
    catch_up(&mut follower);
    assert!(!cache.is_stale(clock.moment()));
}

#[test]
fn i2_whoever_joins_is_waited_for_before_it_reads_how_far_the_log_goes() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    let (_cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    assert!(store.forget("").unwrap());
    follower.joined = false;
    follower.changes = Box::new(Watched { is_for_members: true, ..*Watched::of(&store) });
    catch_up(&mut follower);
}

#[test]
fn i4_what_is_lost_again_while_it_is_given_back_is_given_back_again() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (_cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    assert!(create(store.as_ref(), 2) && revoke(store.as_ref(), 1));
    catch_up(&mut follower);
    store.put_back(&copy);
    // The first poll finds the fork, the second one reads back what was offered.
    follower.changes = Box::new(Watched { lost: Some((2, copy)), ..*Watched::of(&store) });
    catch_up(&mut follower);
    let there = |number: u128| store.key(KeyId::new(Ulid::from_bits(number))).unwrap();
    assert!(there(2).is_some() && there(1).unwrap().revoked_at.is_some());
}

#[test]
fn i4_a_key_whose_entity_the_store_does_not_take_has_never_been() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    let (cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    assert!(apply(store.as_ref(), Action::EntityCreated, None, entity(2)));
    assert!(apply(store.as_ref(), Action::KeyCreated, None, key_of(7, EntityId::from_bits(2), 7)));
    catch_up(&mut follower);
    assert!(matches!(look(&cache, 7), Lookup::Known(_)));
    store.put_back(&copy);
    // In the other history its code is another one's.
    let Record::Entity(third) = entity(3) else { unreachable!() };
    let taken = Record::Entity(EntityRecord { code: "e2".into(), ..third });
    assert!(apply(store.as_ref(), Action::EntityCreated, None, taken));
    catch_up(&mut follower);
    assert!(matches!(look(&cache, 7), Lookup::Ended(_)));
    drop(follower);
    let (cache, _follower) = gateway(&store, &dir);
    assert!(matches!(look(&cache, 7), Lookup::Absent));
}

#[test]
fn i4_a_key_that_was_imported_again_before_it_was_given_back_works() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    let (cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    assert!(create(store.as_ref(), 7));
    catch_up(&mut follower);
    store.put_back(&copy);
    // Under another name, which the credential does not tell.
    assert!(apply(store.as_ref(), Action::KeyImported, None, key_of(8, EntityId::from_bits(1), 7)));
    catch_up(&mut follower);
    let is_the_other = |found: Lookup| matches!(found, Lookup::Known(key) if key.id.ulid() == Ulid::from_bits(8));
    assert!(is_the_other(look(&cache, 7)));
    drop(follower);
    let (cache, _follower) = gateway(&store, &dir);
    assert!(is_the_other(look(&cache, 7)));
}

#[test]
fn i4_who_had_a_position_takes_no_empty_store_for_its_own_though_its_snapshot_cannot_be_read() {
    for has_fleet in [false, true] {
        let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
        std::fs::write(dir.path().join("keys.snapshot"), "garbage").unwrap();
        if has_fleet {
            store.begin_fleet(FleetId::from_bits(5)).unwrap();
        }
        let (_cache, mut follower) = gateway(&store, &dir);
        assert_eq!(follower.turn().unwrap(), Turn::Held);
        assert_eq!(store.fleet_id().unwrap().is_some(), has_fleet);
    }
}

#[test]
fn i4_a_load_that_has_read_what_is_lost_begins_anew_though_nothing_follows() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    (1..=6).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    let (copy, gate) = (store.copy(), reload(&store, &cache, &mut follower).unwrap());
    assert!(create(store.as_ref(), 8));
    (0..3).for_each(|_| next_page(&gate));
    store.put_back(&copy);
    drop(gate);
    catch_up(&mut follower);
    assert!((1..=6).all(|number| matches!(look(&cache, number), Lookup::Known(_))));
    assert!(matches!(look(&cache, 8), Lookup::Absent));
}

#[test]
fn i4_a_load_that_has_read_ahead_of_the_log_waits_for_it() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    (1..=6).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    follower.changes = Box::new(Watched { limit: 1, ..*Watched::of(&store) });
    let gate = reload(&store, &cache, &mut follower).unwrap();
    (8..12).for_each(|number| assert!(create(store.as_ref(), number)));
    drop(gate);
    // It never has to begin anew.
    while follower.turn().unwrap() == Turn::Behind {}
    assert!((1..=6).chain(8..12).all(|number| matches!(look(&cache, number), Lookup::Known(_))));
}

#[test]
fn i5_a_revocation_applies_whatever_its_version() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    assert!(create(store.as_ref(), 1) && rename(store.as_ref(), 1, "later"));
    let (cache, follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    let Record::Key(known) = key(1) else { unreachable!() };
    let revoked = KeyRecord { version: 1, revoked_at: Some(CREATED_AT), ..known.clone() };
    follower.applier().apply(&Record::Key(revoked), Origin::Page);
    assert!(matches!(look(&cache, 1), Lookup::Ended(_)));
    follower.applier().apply(&Record::Key(KeyRecord { version: 99, ..known }), Origin::Log);
    assert!(matches!(look(&cache, 1), Lookup::Ended(_)));
}

#[test]
fn j9_what_a_store_has_in_the_place_of_what_it_has_lost_is_heard() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (_cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    assert!(create(store.as_ref(), 2) && create(store.as_ref(), 3));
    catch_up(&mut follower);
    store.put_back(&copy);
    assert!(rename(store.as_ref(), 1, "other"));
    let (sender, heard) = mpsc::channel();
    follower.heard = Box::new(move |change| sender.send(change.seq).unwrap());
    catch_up(&mut follower);
    // The other history's own, and what was given back to it, though they have numbers that were heard before.
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [3, 4, 5]);
}

#[test]
fn j9_a_change_is_heard_that_has_the_number_of_one_that_was_lost_before_all_was_loaded() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (_cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    // As if it had not come to its end.
    let since = follower.position.unwrap();
    follower.loading = Some(Load::begin(store.changes().unwrap(), None, since, Reload::Start).unwrap());
    follower.loaded = false;
    let (sender, heard) = mpsc::channel();
    follower.heard = Box::new(move |change| sender.send((change.seq, change.action)).unwrap());
    let copy = store.copy();
    assert!(create(store.as_ref(), 2));
    assert_eq!(follower.read().unwrap(), Turn::CaughtUp);
    store.put_back(&copy);
    // It is gone before anything was confirmed, and the load begins anew at what is there.
    assert_eq!((follower.turn().unwrap(), follower.position), (Turn::Behind, Some(since)));
    assert!(rename(store.as_ref(), 1, "other"));
    catch_up(&mut follower);
    assert_eq!(heard.try_iter().collect::<Vec<_>>(), [(3, Action::KeyCreated), (3, Action::KeyUpdated)]);
}

#[test]
fn i4_a_deletion_that_was_lost_is_given_back_though_the_entity_was_made_again() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    let (_cache, mut follower) = gateway(&store, &dir);
    let (copy, id) = (store.copy(), EntityId::from_bits(2));
    assert!(apply(store.as_ref(), Action::EntityCreated, None, entity(2)));
    let Record::Entity(second) = entity(2) else { unreachable!() };
    let deleted = Record::Entity(EntityRecord { deleted_at: Some(CREATED_AT), ..second });
    assert!(apply(store.as_ref(), Action::EntityDeleted, Some(2), deleted));
    catch_up(&mut follower);
    store.put_back(&copy);
    assert!(apply(store.as_ref(), Action::EntityCreated, None, entity(2)));
    catch_up(&mut follower);
    assert!(store.entity(id).unwrap().unwrap().deleted_at.is_some());
}

#[test]
fn i4_what_the_other_history_says_later_counts_whatever_number_it_has_also_after_a_restart() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    // In the end it says what it said before, and there is nothing to give back.
    assert!(rename(store.as_ref(), 1, "else") && rename(store.as_ref(), 1, "key"));
    catch_up(&mut follower);
    store.put_back(&copy);
    catch_up(&mut follower);
    assert!(rename(store.as_ref(), 1, "other"));
    catch_up(&mut follower);
    let is_other = |cache: &KeyCache| matches!(look(cache, 1), Lookup::Known(key) if &*key.name == "other");
    assert!(is_other(&cache));
    drop(follower);
    let (cache, _follower) = gateway(&store, &dir);
    assert!(is_other(&cache));
}

#[test]
fn i7_a_store_that_cannot_be_asked_is_not_believed() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    assert_ne!(cache.trust(), 0);
    follower.changes = Box::new(Watched { fails: true, ..*Watched::of(&store) });
    assert!(follower.turn().is_err());
    assert_eq!(cache.trust(), 0);
}

#[test]
fn i7_that_there_is_no_such_key_counts_while_the_store_is_heard_and_until_it_is_made() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    let (clock, hand) = Clock::manual(Timestamp::from_micros(1_000_000));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, clock.clone(), None);
    let found = |number: u128| cache.lookup(&digest(number), clock.moment());
    cache.set_incomplete();
    [1, 2].iter().for_each(|number| cache.note_absent(&digest(*number)));
    assert!(matches!(found(1), Lookup::Absent) && matches!(found(3), Lookup::Unknown));
    assert!(create(store.as_ref(), 1));
    catch_up(&mut follower);
    // As if it had found no room.
    cache.lose(&digest(1));
    assert!(matches!(found(1), Lookup::Unknown) && matches!(found(2), Lookup::Absent));
    hand.pass(Duration::from_secs(3));
    assert!(matches!(found(2), Lookup::Unknown));
}

#[test]
fn i7_a_set_that_has_outgrown_its_room_is_whole_no_more() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    (1..=2).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 2, Clock::system(), None);
    assert!(cache.is_complete());
    assert!(create(store.as_ref(), 3));
    catch_up(&mut follower);
    assert!(!cache.is_complete() && matches!(look(&cache, 9), Lookup::Unknown));
}

#[test]
fn i9_what_is_replaced_has_ended() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    let before = cache.peek(&digest(1)).unwrap();
    assert!(rename(store.as_ref(), 1, "other"));
    catch_up(&mut follower);
    assert!(!before.is_live() && matches!(look(&cache, 1), Lookup::Known(_)));
}
