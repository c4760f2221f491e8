//! Changes keys one by one: `change_keys REDIS_URL COUNT RATE SECONDS` gives COUNT of the keys another name in turn, RATE of them
//! a second, each change a mutation of its own. Prints how many were made, in how many seconds, and the `seq` of the last.

use keygate::clock::Clock;
use keygate::key::KeyRecord;
use keygate::store::{self, Action, KeyFilter, KeyStore, Mutation, OperationId, Record, Settings, Write, redis};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections that changes are made through. Each waits for its answer, which Redis gives after it has written to disk: one
/// could not make a thousand a second.
const WRITERS: usize = 8;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a writer made.
#[derive(Clone, Copy, Default)]
struct Made {
    changes: u64,
    last_seq: u64,
}

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [url, count, rate, seconds] = args.as_slice() else {
        return Err("usage: change_keys REDIS_URL COUNT RATE SECONDS".into());
    };
    let settings = Settings::Redis { url: redis::Url::parse(url)? };
    let keys = store::open(&settings)?.keys(&KeyFilter::default(), None, count.parse()?)?;
    let (rate, seconds): (f64, f64) = (rate.parse()?, seconds.parse()?);
    let step = Duration::from_secs_f64(WRITERS as f64 / rate);
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(seconds);
    let writers = (0..WRITERS).map(|number| {
        let keys = keys.iter().skip(number).step_by(WRITERS).cloned().collect();
        start_writer(&settings, keys, step, begun + step.mul_f64(number as f64 / WRITERS as f64), end)
    });
    let made = join(writers.collect::<Result<Vec<_>, _>>()?)?;
    let seconds = begun.elapsed().as_secs_f64();
    println!("{{\"changes\":{},\"seconds\":{seconds:.3},\"last_seq\":{}}}", made.changes, made.last_seq);
    Ok(())
}

fn start_writer(
    settings: &Settings,
    keys: Vec<KeyRecord>,
    step: Duration,
    due: Instant,
    end: Instant,
) -> Result<JoinHandle<Result<Made, Failure>>, Failure> {
    if keys.is_empty() {
        return Err(format!("the store holds fewer than {WRITERS} keys").into());
    }
    let store = store::open(settings)?;
    Ok(std::thread::spawn(move || change_all(&store, keys, step, due, end)))
}

/// Changes the keys in turn, one every `step` from `due` on. One that is late makes the next no later.
fn change_all(
    store: &Arc<dyn KeyStore>,
    mut keys: Vec<KeyRecord>,
    step: Duration,
    mut due: Instant,
    end: Instant,
) -> Result<Made, Failure> {
    let mut made = Made::default();
    while due < end && Instant::now() < end {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let index = usize::try_from(made.changes)? % keys.len();
        made.last_seq = change(store.as_ref(), &mut keys[index], made.changes)?;
        made.changes += 1;
        due += step;
    }
    Ok(made)
}

fn change(store: &dyn KeyStore, key: &mut KeyRecord, number: u64) -> Result<u64, Failure> {
    let expected = Some(key.version);
    key.name = format!("bench key {number}");
    let write = Write { action: Action::KeyUpdated, expected, record: Record::Key(key.clone()) };
    let operation = OperationId(fastrand::u128(..));
    let seqs =
        store.apply(&Mutation { operation, actor: "bench".into(), at: Clock::system().now(), writes: vec![write] })?;
    key.version = *seqs.last().ok_or("a mutation without a version")?;
    Ok(key.version)
}

fn join(writers: Vec<JoinHandle<Result<Made, Failure>>>) -> Result<Made, Failure> {
    writers.into_iter().try_fold(Made::default(), |all, writer| {
        let made = writer.join().map_err(|_| "a writer panicked")??;
        Ok(Made { changes: all.changes + made.changes, last_seq: all.last_seq.max(made.last_seq) })
    })
}
