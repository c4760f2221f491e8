//! The checks of a request with a cached key, each alone and all together: `cargo bench --bench micro`.

mod fixture;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fixture::Fixture;
use keygate::key::Digest;
use std::hint::black_box;

fn checks(criterion: &mut Criterion) {
    let fixture = Fixture::new();
    let caller = &fixture.callers[0];
    let mut group = criterion.benchmark_group("checks");
    group.bench_function("take the credential", |bencher| {
        bencher.iter_batched_ref(|| caller.headers(), |headers| fixture.take(headers), BatchSize::SmallInput);
    });
    group.bench_function("form and checksum", |bencher| bencher.iter(|| fixture.judge(black_box(&caller.credential))));
    group.bench_function("digest", |bencher| bencher.iter(|| Digest::of(black_box(&caller.credential))));
    group.bench_function("look-up", |bencher| bencher.iter(|| fixture.look_up(black_box(&caller.digest))));
    group.bench_function("authenticate", |bencher| {
        bencher.iter(|| fixture.authenticate(black_box(&caller.credential)));
    });
    group.bench_function("authorize", |bencher| bencher.iter(|| fixture.authorize(black_box(&caller.principal))));
    group.bench_function("record", |bencher| bencher.iter(|| fixture.record(black_box(&caller.principal))));
    group.bench_function("admit", |bencher| {
        bencher.iter_batched_ref(|| caller.headers(), |headers| fixture.admit(headers), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, checks);
criterion_main!(benches);
