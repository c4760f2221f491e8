//! The checks of a request with a cached key, each alone and all together: `cargo bench --bench micro`.

mod fixture;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use fixture::Fixture;
use std::hint::black_box;

fn checks(criterion: &mut Criterion) {
    let fixture = Fixture::new();
    let digest = fixture.digest();
    let mut group = criterion.benchmark_group("checks");
    group.bench_function("take the credential", |bencher| {
        bencher.iter_batched_ref(|| fixture.headers(), |headers| fixture.take(headers), BatchSize::SmallInput);
    });
    group.bench_function("form and checksum", |bencher| bencher.iter(|| black_box(&fixture).judge()));
    group.bench_function("digest", |bencher| bencher.iter(|| black_box(&fixture).digest()));
    group.bench_function("look-up", |bencher| bencher.iter(|| fixture.look_up(black_box(&digest))));
    group.bench_function("authenticate", |bencher| {
        bencher.iter(|| fixture.authenticate(black_box(&fixture.credential)));
    });
    group.bench_function("authorize", |bencher| bencher.iter(|| fixture.authorize(black_box(&fixture.principal))));
    group.bench_function("admit", |bencher| {
        bencher.iter_batched_ref(|| fixture.headers(), |headers| fixture.admit(headers), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, checks);
criterion_main!(benches);
