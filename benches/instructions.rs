//! Runs the checks of a request with a cached key, each and together, once inside [`counted`] for every request of every
//! caller. `benches/instructions` runs it under callgrind, which counts nothing outside. Prints the steps in their order:
//! name, tab, how many requests.

mod fixture;

use fixture::{Caller, Fixture};
use http::HeaderMap;
use keygate::key::Digest;
use std::hint::black_box;

/// The program's allocator: what a check allocates is part of its cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests from each caller. What depends on a key's hash evens out over the callers, the cache's housekeeping, which is
/// done once in 64 look-ups, over all of them.
const ROUNDS: usize = 8;

struct Request<'a> {
    caller: &'a Caller,
    headers: HeaderMap,
}

type Step = fn(&Fixture, &mut Request<'_>);

const STEPS: [(&str, Step); 8] = [
    ("take the credential", |fixture, request| drop(black_box(fixture.take(&mut request.headers)))),
    ("form and checksum", |fixture, request| _ = black_box(fixture.judge(&request.caller.credential))),
    ("digest", |_, request| _ = black_box(Digest::of(&request.caller.credential))),
    ("look-up", |fixture, request| drop(black_box(fixture.look_up(&request.caller.digest)))),
    ("authenticate", |fixture, request| drop(black_box(fixture.authenticate(&request.caller.credential)))),
    ("authorize", |fixture, request| drop(black_box(fixture.authorize(&request.caller.principal)))),
    ("record", |fixture, request| fixture.record(&request.caller.principal)),
    ("admit", |fixture, request| drop(black_box(fixture.admit(&mut request.headers)))),
];

fn main() {
    let fixture = Fixture::new();
    for (name, step) in STEPS {
        // The first pass settles what is done once: detection of the processor's features, the allocator's first pages.
        requests(&fixture, 1).iter_mut().for_each(|request| step(&fixture, request));
        let mut requests = requests(&fixture, ROUNDS);
        counted(step, &fixture, &mut requests);
        println!("{name}\t{}", requests.len());
    }
}

fn requests(fixture: &Fixture, rounds: usize) -> Vec<Request<'_>> {
    let round = || fixture.callers.iter().map(|caller| Request { caller, headers: caller.headers() });
    (0..rounds).flat_map(|_| round()).collect()
}

/// Known to callgrind by this name, hence a call of its own.
#[inline(never)]
fn counted(step: Step, fixture: &Fixture, requests: &mut [Request<'_>]) {
    for request in requests {
        step(fixture, request);
    }
}
