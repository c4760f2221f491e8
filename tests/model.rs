//! Every order in which the threads of a gateway can meet over a key: none brings a revoked one back (protocols I5 to I10).

#[path = "model/explore.rs"]
mod explore;
#[path = "model/world.rs"]
mod world;

use explore::{draw, explore};
use http::Method;
use keygate::auth::Follower;
use keygate::auth::cache::Lookup;
use keygate::auth::follower::Turn;
use keygate::key::ScopeList;
use keygate::reason::Reason;
use std::sync::Arc;
use std::time::Duration;
use world::{Answer, Follow, NOW, Watched, Work, Worker, World};

/// More orders than this are taken for a scenario that is too large.
const ORDERS_MAX: usize = 1_000_000;

/// The key that is changed. A gateway that has room for one key holds [`OTHER`], and asks for this one.
const KEY: u8 = 2;
const OTHER: u8 = 1;
const SUCCESSOR: u8 = 3;

const REVOKED: Answer = Answer::Refused(Reason::KeyRevoked);
const EXPIRED: Answer = Answer::Refused(Reason::KeyExpired);
const NO_SUCH_KEY: Answer = Answer::Refused(Reason::KeyUnknown);

/// The store changes, and the follower takes the change up.
fn follow(change: impl FnOnce(&Watched) + Send + 'static) -> Follow {
    Box::new(|store, follower| {
        change(store);
        take_up(follower);
    })
}

fn take_up(follower: &mut Follower) {
    assert_eq!(follower.turn().unwrap(), Turn::CaughtUp);
}

/// Asks for the key and makes a request with it; then obeys. What was admitted is cut for this reason in the end, and once
/// the change was confirmed, the answer is this one.
fn one_request(method: Method, then: Answer, cut: Reason) -> Work {
    Box::new(move |mut worker| {
        fill_and_request(&mut worker, &method, then);
        worker.obey_to_the_end();
        assert!(worker.cuts().into_iter().all(|reason| reason == Some(cut)), "{:?}", worker.cuts());
    })
}

fn fill_and_request(worker: &mut Worker, method: &Method, then: Answer) {
    let confirmed = worker.is_confirmed();
    worker.fill(KEY);
    let answer = worker.request(KEY, method);
    assert!(!confirmed || answer == then, "{answer:?} after the change was confirmed");
}

/// Makes two requests, and between them obeys if there is an order: whoever has cut admits no more.
fn two_requests() -> Work {
    Box::new(|mut worker| {
        worker.request(KEY, &Method::GET);
        let has_cut = worker.obey();
        let answer = worker.request(KEY, &Method::GET);
        assert!(!has_cut || answer == REVOKED, "{answer:?} after the cut");
        worker.obey_to_the_end();
        assert!(worker.cuts().into_iter().all(|reason| reason == Some(Reason::CutByRevocation)), "{:?}", worker.cuts());
    })
}

fn is_over(world: &World) -> bool {
    matches!(world.look_up(KEY), Lookup::Ended(_))
}

#[test]
fn no_order_that_is_drawn_at_random_was_left_out() {
    let tried = explore("a fill and a revocation", ORDERS_MAX, fill_and_revocation);
    let drawn = draw(1, 2000, fill_and_revocation);
    let missing = drawn.seen.difference(&tried.seen).count();
    println!("drawn: {} of {}; {missing} missing", drawn.seen.len(), tried.seen.len());
    assert_eq!(missing, 0);
    assert_eq!(tried.seen.len(), tried.orders);
}

fn fill_and_revocation() {
    let world = World::new(1, &[OTHER, KEY]);
    let work = one_request(Method::GET, REVOKED, Reason::CutByRevocation);
    let world = world.race(follow(|store| store.revoke(KEY)), vec![work]);
    assert!(is_over(&world));
    world.lose(KEY);
    assert!(is_over(&world));
}

#[test]
fn i5_a_fill_never_brings_a_revoked_key_back() {
    explore("a fill and a revocation", ORDERS_MAX, fill_and_revocation);
}

#[test]
fn a_fill_never_brings_taken_scopes_back() {
    explore("a fill and a narrowing", ORDERS_MAX, || {
        let world = World::new(1, &[OTHER, KEY]);
        let narrow = then_lose(&world, narrow);
        let world = world.race(narrow, vec![one_narrowed_request()]);
        assert!(!is_over(&world) && !may_write(&world));
    });
}

#[test]
fn a_page_that_was_read_before_a_narrowing_does_not_undo_it() {
    explore("a load and a narrowing", ORDERS_MAX, || {
        let world = World::new(10, &[OTHER, KEY]);
        world.lose(OTHER);
        let reload: Follow = Box::new(|store, follower| {
            follower.turn().unwrap();
            narrow(store);
            follower.turn().unwrap();
        });
        let mut world = world.race(reload, vec![one_narrowed_request()]);
        world.catch_up();
        assert!(matches!(world.look_up(KEY), Lookup::Known(_)) && !may_write(&world));
    });
}

fn narrow(store: &Watched) {
    store.change(KEY, |key| key.scopes = ScopeList::parse("read"));
}

/// The store changes, the follower takes the change up, and the cache loses what it knows: an older answer finds nothing that
/// is newer.
fn then_lose(world: &World, change: impl FnOnce(&Watched) + Send + 'static) -> Follow {
    let cache = Arc::clone(&world.cache);
    Box::new(move |store, follower| {
        change(store);
        take_up(follower);
        cache.lose(&world::token(KEY).digest);
    })
}

fn may_write(world: &World) -> bool {
    matches!(world.look_up(KEY), Lookup::Known(principal) if principal.grant.header != "read")
}

/// A request that the key may not make any more once it is narrowed. It is never told to have ended.
fn one_narrowed_request() -> Work {
    Box::new(|mut worker| {
        let confirmed = worker.is_confirmed();
        worker.fill(KEY);
        let answer = worker.request(KEY, &Method::POST);
        assert!(answer != REVOKED && !(confirmed && answer == Answer::Admitted), "{answer:?}, confirmed: {confirmed}");
        worker.obey_to_the_end();
        assert!(worker.cuts().into_iter().all(|reason| reason == Some(Reason::ScopeMissing)), "{:?}", worker.cuts());
    })
}

#[test]
fn a_key_that_was_made_is_never_told_absent() {
    explore("a fill and a creation", ORDERS_MAX, || {
        let world = World::new(1, &[OTHER, SUCCESSOR]);
        let create = then_lose(&world, |store| store.create(KEY));
        let work: Work = Box::new(|mut worker| {
            let confirmed = worker.is_confirmed();
            worker.fill(KEY);
            let answer = worker.request(KEY, &Method::GET);
            assert!(!confirmed || answer != NO_SUCH_KEY, "told absent");
            worker.obey_to_the_end();
        });
        let world = world.race(create, vec![work]);
        assert!(!matches!(world.look_up(KEY), Lookup::Absent));
    });
}

#[test]
fn i8_a_request_that_meets_a_revocation_is_refused_or_cut() {
    explore("two workers and a revocation", ORDERS_MAX, || {
        let world = World::new(10, &[OTHER, KEY]);
        let world = world.race(follow(|store| store.revoke(KEY)), vec![two_requests(), two_requests()]);
        assert!(is_over(&world));
    });
}

#[test]
fn a_rotated_key_ends_at_once_where_there_is_no_overlap() {
    explore("a fill and a rotation", ORDERS_MAX, || {
        let work = one_request(Method::GET, EXPIRED, Reason::CutByRevocation);
        let rotate = |store: &Watched| store.rotate(KEY, SUCCESSOR, Duration::ZERO);
        let world = World::new(1, &[OTHER, KEY]).race(follow(rotate), vec![work]);
        assert!(matches!(world.look_up(KEY), Lookup::Expired(_)));
        assert!(matches!(world.look_up(SUCCESSOR), Lookup::Known(_)));
    });
}

#[test]
fn an_expiry_that_was_brought_forward_holds() {
    explore("two workers and an earlier expiry", ORDERS_MAX, || {
        let work = || one_request(Method::GET, EXPIRED, Reason::CutByRevocation);
        let expire = |store: &Watched| store.change(KEY, |key| key.expires_at = Some(NOW));
        let world = World::new(10, &[OTHER, KEY]).race(follow(expire), vec![work(), work()]);
        assert!(matches!(world.look_up(KEY), Lookup::Expired(_)));
    });
}

#[test]
fn every_key_of_a_deleted_entity_has_ended() {
    explore("a fill and a deletion", ORDERS_MAX, || {
        let world = World::new(1, &[OTHER, KEY]);
        let work = one_request(Method::GET, REVOKED, Reason::CutByRevocation);
        let mut world = world.race(follow(Watched::delete_entity), vec![work]);
        assert!(matches!(world.look_up(KEY), Lookup::Ended(_) | Lookup::Unknown));
        world.catch_up();
        assert!(matches!(world.look_up(OTHER), Lookup::Ended(_)));
    });
}

#[test]
fn i5_a_page_that_was_read_before_a_revocation_does_not_undo_it() {
    explore("a load and a revocation", ORDERS_MAX, || {
        let world = World::new(10, &[OTHER, KEY]);
        world.lose(OTHER);
        let cache = Arc::clone(&world.cache);
        let reload: Follow = Box::new(move |store, follower| {
            follower.turn().unwrap();
            store.revoke(KEY);
            follower.turn().unwrap();
            // The tombstone is what is left.
            cache.lose(&world::token(KEY).digest);
            follower.turn().unwrap();
        });
        let look: Work = Box::new(|mut worker| {
            let confirmed = worker.is_confirmed();
            let answer = worker.request(KEY, &Method::GET);
            assert!(!confirmed || answer == REVOKED, "{answer:?} after the revocation was confirmed");
            worker.obey_to_the_end();
        });
        let mut world = world.race(reload, vec![look]);
        assert!(is_over(&world));
        world.catch_up();
        assert!(is_over(&world));
    });
}

#[test]
fn i7_a_miss_is_told_absent_only_while_the_set_is_whole() {
    explore("a look-up and a divergence", ORDERS_MAX, || {
        let diverge: Follow = Box::new(|store, follower| {
            store.diverge();
            assert_eq!(follower.turn().unwrap(), Turn::Held);
        });
        World::new(10, &[OTHER]).race(diverge, vec![one_look(KEY)]);
    });
    explore("a look-up and an eviction", ORDERS_MAX, || {
        let world = World::new(10, &[OTHER, KEY]);
        let cache = Arc::clone(&world.cache);
        let evict: Follow = Box::new(move |_, follower| {
            cache.lose(&world::token(KEY).digest);
            follower.turn().unwrap();
        });
        // The key is there all the time.
        let look: Work = Box::new(|mut worker| {
            assert!(worker.request(KEY, &Method::GET) != NO_SUCH_KEY, "told absent");
            worker.obey_to_the_end();
        });
        let mut world = world.race(evict, vec![look]);
        world.catch_up();
        assert!(matches!(world.look_up(KEY), Lookup::Known(_)));
    });
    explore("a look-up and more keys than room", ORDERS_MAX, || {
        let create = follow(|store| store.create(KEY));
        let world = World::new(1, &[OTHER]).race(create, vec![one_look(KEY)]);
        assert!(matches!(world.look_up(SUCCESSOR), Lookup::Unknown));
    });
}

/// Looks up: once the set is known not to be whole, or the key is there, it is not absent.
fn one_look(number: u8) -> Work {
    Box::new(move |mut worker| {
        let confirmed = worker.is_confirmed();
        let answer = worker.request(number, &Method::GET);
        assert!(!confirmed || answer != NO_SUCH_KEY, "told absent");
        worker.obey_to_the_end();
    })
}

#[test]
fn an_exchange_is_cut_though_the_cache_has_lost_its_entry_and_asked_again() {
    explore("an eviction, a fill and a revocation", ORDERS_MAX, || {
        let world = World::new(1, &[OTHER, KEY]);
        let cache = Arc::clone(&world.cache);
        let lose_and_revoke = follow(move |store| {
            cache.lose(&world::token(KEY).digest);
            store.revoke(KEY);
        });
        let work: Work = Box::new(|mut worker| {
            fill_and_request(&mut worker, &Method::GET, REVOKED);
            worker.fill(KEY);
            worker.obey_to_the_end();
            assert!(worker.cuts().into_iter().all(|reason| reason == Some(Reason::CutByRevocation)));
        });
        let world = world.race(lose_and_revoke, vec![work]);
        assert!(is_over(&world));
    });
}
