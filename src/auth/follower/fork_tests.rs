//! A store that forgets, with followers that do not: against what any of them had confirmed.

use super::tests::{ACME, CREATED_AT, digest, follow_with, key, look};
use super::watched::{Gate, Watched};
use super::*;
use crate::auth::cache::Lookup;
use crate::key::{EntityId, EntityRecord, KeyId, KeyRecord};
use crate::store::memory::MemoryStore;
use crate::store::{Action, FleetId, Held, Mutation, OperationId, Record, Write};
use crate::ulid::Ulid;
use proptest::prelude::*;
use std::collections::BTreeSet;

pub(super) fn apply(store: &dyn KeyStore, action: Action, expected: Option<u64>, record: Record) -> bool {
    let writes = vec![Write { action, expected, record }];
    let operation = OperationId(fastrand::u128(..));
    store.apply(&Mutation { operation, actor: "test".into(), at: CREATED_AT, writes }).is_ok()
}

pub(super) fn entity(number: u128) -> Record {
    let id = EntityId::from_bits(number);
    let (code, name) = (format!("e{number}"), "entity".into());
    Record::Entity(EntityRecord { id, version: 0, code, name, created_at: CREATED_AT, deleted_at: None })
}

pub(super) fn create(store: &dyn KeyStore, number: u128) -> bool {
    apply(store, Action::KeyCreated, None, key(number))
}

fn change(store: &dyn KeyStore, number: u128, change: impl FnOnce(KeyRecord) -> KeyRecord) -> bool {
    let known = store.key(KeyId::new(Ulid::from_bits(number))).unwrap();
    known.is_some_and(|known| {
        let version = known.version;
        apply(store, Action::KeyUpdated, Some(version), Record::Key(change(known)))
    })
}

pub(super) fn revoke(store: &dyn KeyStore, number: u128) -> bool {
    change(store, number, |key| KeyRecord { revoked_at: Some(CREATED_AT), ..key })
}

pub(super) fn rename(store: &dyn KeyStore, number: u128, name: &str) -> bool {
    change(store, number, |key| KeyRecord { name: name.to_owned(), ..key })
}

fn is_revoked(store: &dyn KeyStore, number: u128) -> Option<bool> {
    store.key(KeyId::new(Ulid::from_bits(number))).unwrap().map(|key| key.revoked_at.is_some())
}

pub(super) fn begin(store: &MemoryStore) {
    assert!(apply(store, Action::EntityCreated, None, entity(1)));
    assert_eq!(ACME, EntityId::from_bits(1));
}

/// A gateway with a snapshot in this directory.
pub(super) fn gateway(store: &Arc<MemoryStore>, dir: &tempfile::TempDir) -> (Arc<KeyCache>, Follower) {
    let snapshot = Snapshot::at(dir.path().join("keys.snapshot"));
    follow_with(Arc::clone(store) as _, 1000, Clock::system(), Some(snapshot))
}

pub(super) fn catch_up(follower: &mut Follower) {
    for _ in 0..1000 {
        match follower.turn() {
            Ok(Turn::CaughtUp) => return,
            Ok(Turn::Behind) => {}
            Ok(Turn::Held) => panic!("held"),
            // A load of a history that is lost begins anew.
            Err(error) => assert!(error.to_string().contains("they are read again"), "{error}"),
        }
    }
    panic!("never caught up");
}

#[test]
fn i4_what_was_confirmed_and_lost_is_given_back_to_the_store() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    (1..=4).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    assert!(revoke(store.as_ref(), 1) && create(store.as_ref(), 5));
    assert!(rename(store.as_ref(), 2, "lost") && rename(store.as_ref(), 3, "lost too"));
    catch_up(&mut follower);
    store.put_back(&copy);
    // The other history goes on, and has its own word on one of them.
    assert!(rename(store.as_ref(), 3, "other") && create(store.as_ref(), 6));
    catch_up(&mut follower);
    let name = |number: u128| store.key(KeyId::new(Ulid::from_bits(number))).unwrap().unwrap().name;
    assert_eq!((is_revoked(store.as_ref(), 1), is_revoked(store.as_ref(), 5)), (Some(true), Some(false)));
    assert_eq!((name(2).as_str(), name(3).as_str()), ("lost", "other"));
    assert!(matches!(look(&cache, 1), Lookup::Ended(_)));
    assert!([2, 3, 4, 5, 6].iter().all(|number| matches!(look(&cache, *number), Lookup::Known(_))));
    assert!(matches!(look(&cache, 99), Lookup::Absent));
    // The snapshot is of the new history: a restart finds its place.
    drop(follower);
    let (_, mut follower) = gateway(&store, &dir);
    assert_eq!(follower.turn().unwrap(), Turn::CaughtUp);
}

#[test]
fn i4_another_store_and_an_empty_one_are_not_followed_until_a_person_gives_leave() {
    for is_empty in [false, true] {
        let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
        begin(&store);
        assert!(create(store.as_ref(), 1) && create(store.as_ref(), 2));
        let (cache, mut follower) = gateway(&store, &dir);
        assert!(revoke(store.as_ref(), 2));
        catch_up(&mut follower);
        let other = MemoryStore::default();
        if !is_empty {
            begin(&other);
            assert!(create(&other, 2) && create(&other, 3));
        }
        store.put_back(&other);
        assert_eq!(follower.turn().unwrap(), Turn::Held);
        assert!(matches!(look(&cache, 1), Lookup::Known(_)) && matches!(look(&cache, 3), Lookup::Unknown));
        assert_eq!(cache.trust(), 0, "its word on a key counts no more");
        // It begins no fleet there, and changes nothing.
        assert_eq!(store.fleet_id().unwrap(), other.fleet_id().unwrap());
        assert!(!create(store.as_ref(), 4), "this process knows better");
        let held = store.fleet().unwrap().members[0].held.unwrap();
        store.adopt(&[Held { fleet: FleetId::from_bits(1), ..held }]).unwrap();
        assert_eq!(follower.turn().unwrap(), Turn::Held, "leave given to somebody else");
        store.adopt(&[held]).unwrap();
        if is_empty {
            assert_eq!(follower.turn().unwrap(), Turn::Held, "there is nothing to take");
            continue;
        }
        catch_up(&mut follower);
        assert!(matches!(look(&cache, 1), Lookup::Absent) && matches!(look(&cache, 3), Lookup::Known(_)));
        assert!(matches!(look(&cache, 2), Lookup::Absent | Lookup::Ended(_)), "what was revoked stays so");
        assert_eq!(store.fleet().unwrap().members[0].held, None);
    }
}

#[test]
fn i4_what_a_store_cannot_take_again_is_left_to_it() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (cache, mut follower) = gateway(&store, &dir);
    let copy = store.copy();
    assert!(rename(store.as_ref(), 1, "lost") && create(store.as_ref(), 2));
    catch_up(&mut follower);
    store.put_back(&copy);
    // In the other history their entity has ended.
    let Record::Entity(acme) = entity(1) else { unreachable!() };
    let deleted = Record::Entity(EntityRecord { deleted_at: Some(CREATED_AT), ..acme });
    assert!(apply(store.as_ref(), Action::EntityDeleted, Some(1), deleted));
    catch_up(&mut follower);
    assert!(matches!(look(&cache, 1), Lookup::Ended(_)) && matches!(look(&cache, 2), Lookup::Ended(_)));
    assert_eq!((is_revoked(store.as_ref(), 1), is_revoked(store.as_ref(), 2)), (Some(false), None));
}

#[test]
fn i4_a_gateway_that_keeps_nothing_takes_from_the_store_what_it_cannot_give_back() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    (1..=3).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    let copy = store.copy();
    assert!(rename(store.as_ref(), 1, "lost") && revoke(store.as_ref(), 2) && create(store.as_ref(), 4));
    catch_up(&mut follower);
    store.put_back(&copy);
    catch_up(&mut follower);
    let Lookup::Known(first) = look(&cache, 1) else { panic!("the store has it") };
    assert_ne!(&*first.name, "lost");
    assert!(matches!(look(&cache, 2), Lookup::Ended(_)), "what was revoked stays so");
    assert!(matches!(look(&cache, 3), Lookup::Known(_)) && matches!(look(&cache, 4), Lookup::Absent));
}

#[test]
fn i4_a_load_of_a_history_that_is_lost_meanwhile_begins_anew() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let copy = store.copy();
    assert!(create(store.as_ref(), 2));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    // As if it had not come to its end.
    let since = follower.position.unwrap();
    follower.loading = Some(Load::begin(store.changes().unwrap(), None, since, Reload::Start).unwrap());
    follower.loaded = false;
    store.put_back(&copy);
    assert!(create(store.as_ref(), 3));
    catch_up(&mut follower);
    assert!(follower.loaded);
    assert!(matches!(look(&cache, 1), Lookup::Known(_)) && matches!(look(&cache, 3), Lookup::Known(_)));
    assert!(matches!(look(&cache, 2), Lookup::Absent));
}

#[test]
fn i4_known_keys_are_served_until_an_adopted_store_is_loaded_and_what_was_revoked_never_comes_back() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    (1..=3).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = gateway(&store, &dir);
    assert!(revoke(store.as_ref(), 2));
    catch_up(&mut follower);
    let other = MemoryStore::default();
    begin(&other);
    // The second one is in force there.
    assert!((1..=2).all(|number| create(&other, number)) && create(&other, 4));
    store.put_back(&other);
    assert_eq!(follower.turn().unwrap(), Turn::Held);
    store.adopt(&[store.fleet().unwrap().members[0].held.unwrap()]).unwrap();
    let mut loads = 0;
    loop {
        assert!(matches!(look(&cache, 2), Lookup::Ended(_)));
        if follower.loaded {
            break;
        }
        assert!([1, 3].iter().all(|number| matches!(look(&cache, *number), Lookup::Known(_))), "{loads}");
        if follower.loading.is_some() && loads < 3 {
            // As if the store had failed in the middle.
            let loading = follower.loading.take().unwrap();
            follower.repeat(loading.reason);
            loads += 1;
        } else {
            assert_eq!(follower.turn().unwrap(), Turn::Behind);
        }
    }
    catch_up(&mut follower);
    assert!([1, 4].iter().all(|number| matches!(look(&cache, *number), Lookup::Known(_))));
    assert!(matches!(look(&cache, 3), Lookup::Absent) && matches!(look(&cache, 2), Lookup::Absent | Lookup::Ended(_)));
    assert_eq!(cache.records(), 2);
}

#[test]
fn i5_an_entity_that_was_deleted_stays_so_where_a_store_is_adopted_that_has_it() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Arc::new(MemoryStore::default()));
    begin(&store);
    assert!(create(store.as_ref(), 1));
    let (cache, mut follower) = gateway(&store, &dir);
    let Record::Entity(acme) = entity(1) else { unreachable!() };
    let deleted = Record::Entity(EntityRecord { deleted_at: Some(CREATED_AT), ..acme });
    assert!(apply(store.as_ref(), Action::EntityDeleted, Some(1), deleted));
    catch_up(&mut follower);
    let other = MemoryStore::default();
    begin(&other);
    assert!(create(&other, 1) && create(&other, 2));
    store.put_back(&other);
    assert_eq!(follower.turn().unwrap(), Turn::Held);
    store.adopt(&[store.fleet().unwrap().members[0].held.unwrap()]).unwrap();
    catch_up(&mut follower);
    // Whichever of its keys it is, and whoever made it.
    assert!([1, 2].iter().all(|number| matches!(look(&cache, *number), Lookup::Ended(_))));
}

#[test]
fn i4_what_an_adopted_store_has_finds_room_where_what_it_has_not_goes() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    (1..=4).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 4, Clock::system(), None);
    let other = MemoryStore::default();
    begin(&other);
    assert!((5..=8).all(|number| create(&other, number)));
    store.put_back(&other);
    assert_eq!(follower.turn().unwrap(), Turn::Held);
    store.adopt(&[store.fleet().unwrap().members[0].held.unwrap()]).unwrap();
    catch_up(&mut follower);
    assert!((5..=8).all(|number| matches!(look(&cache, number), Lookup::Known(_))));
    assert!((1..=4).all(|number| matches!(look(&cache, number), Lookup::Absent)));
}

/// Loses every other key from the cache, and begins to read all of them again.
pub(super) fn reload(store: &Arc<MemoryStore>, cache: &KeyCache, follower: &mut Follower) -> Option<Gate> {
    let since = follower.position.filter(|_| follower.loaded && follower.loading.is_none())?;
    let known = (0..20_u128).step_by(2).map(digest).filter(|digest| cache.peek(digest).is_some());
    known.for_each(|digest| cache.lose(&digest));
    let (reader, gate) = Watched::gated(store);
    follower.loading = Some(Load::begin(reader, follower.kept.draft(since), since, Reload::Eviction).unwrap());
    cache.set_incomplete();
    cache.forget_eviction();
    Some(gate)
}

pub(super) fn next_page((go, read): &Gate) {
    // Nobody reads any more, or it waits until what it has read is taken.
    if go.send(()).is_ok() {
        _ = read.recv_timeout(Duration::from_millis(50));
    }
}

#[test]
fn i4_what_a_load_has_read_of_a_lost_history_does_not_count() {
    let store = Arc::new(MemoryStore::default());
    begin(&store);
    (1..=6).for_each(|number| assert!(create(store.as_ref(), number)));
    let (cache, mut follower) = follow_with(Arc::clone(&store) as _, 1000, Clock::system(), None);
    let gate = reload(&store, &cache, &mut follower).unwrap();
    let copy = store.copy();
    // The second key moves to the end of the set and another one is made: and both never were.
    assert!(rename(store.as_ref(), 2, "lost") && create(store.as_ref(), 8));
    (0..3).for_each(|_| next_page(&gate));
    store.put_back(&copy);
    assert!(create(store.as_ref(), 10) && create(store.as_ref(), 12) && create(store.as_ref(), 14));
    drop(gate);
    catch_up(&mut follower);
    let Lookup::Known(second) = look(&cache, 2) else { panic!("the store has it: {:?}", look(&cache, 2)) };
    assert_ne!(&*second.name, "lost");
    assert!(matches!(look(&cache, 8), Lookup::Absent));
    assert!([10, 12, 14].iter().all(|number| matches!(look(&cache, *number), Lookup::Known(_))));
}

#[derive(Clone, Debug)]
enum Step {
    Create(u8),
    Rename(u8),
    Revoke(u8),
    /// One of the gateways takes so many turns.
    Turns(u8, u8),
    /// A replica stops here.
    Copy,
    /// It is promoted.
    PutBack,
    Restart(u8),
    /// One of them begins to read the whole set again.
    Load(u8),
    /// It reads so many more pages.
    Pages(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..20_u8).prop_map(Step::Create),
        3 => (0..20_u8).prop_map(Step::Rename),
        3 => (0..20_u8).prop_map(Step::Revoke),
        6 => (0..3_u8, 1..4_u8).prop_map(|(gateway, turns)| Step::Turns(gateway, turns)),
        1 => Just(Step::Copy),
        1 => Just(Step::PutBack),
        1 => (0..3_u8).prop_map(Step::Restart),
        1 => (0..3_u8).prop_map(Step::Load),
        3 => (0..3_u8, 1..4_u8).prop_map(|(gateway, pages)| Step::Pages(gateway, pages)),
    ];
    prop::collection::vec(step, 1..60)
}

/// The names of what a gateway has confirmed: keys, and those among them that are revoked.
type Confirmed = (BTreeSet<u8>, BTreeSet<u8>);

fn confirm(store: &dyn KeyStore, follower: &Follower, (keys, revoked): &mut Confirmed) {
    let position = follower.position.unwrap_or_default();
    // What it has read of this very history counts as confirmed by it.
    if !store.holds(position).unwrap() {
        return;
    }
    for number in 0..20_u8 {
        let known = store.key(KeyId::new(Ulid::from_bits(u128::from(number)))).unwrap();
        if let Some(known) = known.filter(|known| known.version <= position.seq) {
            keys.insert(number);
            known.revoked_at.iter().for_each(|_| _ = revoked.insert(number));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(feature = "heavy") { 2000 } else { 200 }))]

    #[test]
    fn i4_i5_nothing_that_a_gateway_confirmed_is_lost_whatever_the_store_forgets(steps in steps()) {
        let store = Arc::new(MemoryStore::default());
        begin(&store);
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let mut gateways = dirs.each_ref().map(|dir| gateway(&store, dir));
        let mut gates = [const { None }; 3];
        let (mut copy, mut confirmed) = (store.copy(), Confirmed::default());
        for step in &steps {
            match step {
                Step::Create(number) => _ = create(store.as_ref(), u128::from(*number)),
                Step::Rename(number) => _ = rename(store.as_ref(), u128::from(*number), &fastrand::u32(..).to_string()),
                Step::Revoke(number) => _ = revoke(store.as_ref(), u128::from(*number)),
                Step::Turns(at, turns) => {
                    let (_, follower) = &mut gateways[usize::from(*at)];
                    for _ in 0..*turns {
                        // A load whose history is lost fails.
                        prop_assert!(follower.turn().is_ok_and(|turn| turn != Turn::Held) || gates[usize::from(*at)].is_some());
                        confirm(store.as_ref(), follower, &mut confirmed);
                    }
                }
                Step::Copy => copy = store.copy(),
                Step::PutBack => store.put_back(&copy),
                Step::Restart(at) => {
                    let at = usize::from(*at);
                    // As after a kill: nothing is told to anybody.
                    gateways[at] = gateway(&store, &dirs[at]);
                }
                Step::Load(at) => {
                    let (cache, follower) = &mut gateways[usize::from(*at)];
                    if let Some(gate) = reload(&store, cache, follower) {
                        gates[usize::from(*at)] = Some(gate);
                    }
                }
                Step::Pages(at, pages) => {
                    let gate = gates[usize::from(*at)].iter();
                    gate.for_each(|gate| (0..*pages).for_each(|_| next_page(gate)));
                }
            }
        }
        drop(gates);
        // Twice: what the last one gives back, the first one has yet to hear of.
        for _ in 0..2 {
            gateways.iter_mut().for_each(|(_, follower)| catch_up(follower));
        }
        let (keys, revoked) = confirmed;
        for number in keys {
            let there = is_revoked(store.as_ref(), u128::from(number));
            prop_assert!(there.is_some(), "key {number} was confirmed and is lost");
            prop_assert!(!revoked.contains(&number) || there == Some(true), "key {number} was revoked and is not");
        }
        for number in 0..20_u8 {
            let number = u128::from(number);
            for (cache, _) in &gateways {
                let found = cache.lookup(&digest(number), Clock::system().moment());
                let is_as_stored = match is_revoked(store.as_ref(), number) {
                    Some(true) => matches!(found, Lookup::Ended(_)),
                    Some(false) => matches!(found, Lookup::Known(_)),
                    None => matches!(found, Lookup::Absent),
                };
                prop_assert!(is_as_stored, "key {number}: {found:?}");
            }
        }
    }
}
