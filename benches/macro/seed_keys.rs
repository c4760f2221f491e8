//! Fills a store with keys: `seed_keys STORE COUNT KEYS_FILE`. STORE is the path of an SQLite file, or a Redis URL. Makes the
//! entity `bench` and COUNT live keys with the scope orders:read, allowed from 127.0.0.0/8, and writes their texts to KEYS_FILE,
//! one a line. Prints the entity's id.

use keygate::clock::Clock;
use keygate::key::{EntityId, EntityRecord, KeyId, KeyRecord, Mode, Prefix, ScopeList, Token};
use keygate::net::Networks;
use keygate::store::{self, Action, KeyStore, Mutation, OperationId, Record, Settings, Write, redis};
use keygate::ulid::Ulid;
use std::io::{BufWriter, Write as _};
use std::path::Path;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [store, count, keys] = args.as_slice() else { return Err("usage: seed_keys STORE COUNT KEYS_FILE".into()) };
    println!("{}", seed(&settings(store)?, count.parse()?, keys.as_ref())?);
    Ok(())
}

fn settings(store: &str) -> Result<Settings, Failure> {
    Ok(match store.contains("://") {
        true => Settings::Redis { url: redis::Url::parse(store)? },
        false => Settings::Sqlite { path: store.into() },
    })
}

/// Keys written in one step. Redis answers nobody else meanwhile, and has 2 s for it.
const fn batch(settings: &Settings) -> usize {
    match settings {
        Settings::Redis { .. } => 500,
        Settings::Sqlite { .. } | Settings::Memory => 5000,
    }
}

/// Makes the entity and `count` keys in a store, and writes the keys' texts to `keys`.
pub fn seed(settings: &Settings, count: usize, keys: &Path) -> Result<EntityId, Failure> {
    let store = store::open(settings)?;
    let entity = make_entity(store.as_ref())?;
    let mut out = BufWriter::new(std::fs::File::create(keys)?);
    let mut left = count;
    while left > 0 {
        let batch = left.min(batch(settings));
        let writes = (0..batch).map(|_| make_key(entity, &mut out)).collect::<Result<Vec<_>, _>>()?;
        apply(store.as_ref(), writes)?;
        left -= batch;
    }
    out.flush()?;
    Ok(entity)
}

fn make_entity(store: &dyn KeyStore) -> Result<EntityId, Failure> {
    let (id, now) = (EntityId::random(), Clock::system().now());
    let record =
        EntityRecord { id, version: 0, code: "bench".into(), name: "bench".into(), created_at: now, deleted_at: None };
    apply(store, vec![Write { action: Action::EntityCreated, expected: None, record: Record::Entity(record) }])?;
    Ok(id)
}

fn make_key(entity_id: EntityId, out: &mut impl std::io::Write) -> Result<Write, Failure> {
    let (now, token) = (Clock::system().now(), Token::generate(&Prefix::new("ark")?, Mode::Live, "bench")?);
    writeln!(out, "{}", token.text.expose())?;
    let record = KeyRecord {
        id: KeyId::new(Ulid::new(now, fastrand::u128(..))),
        version: 0,
        digest: token.digest,
        entity_id,
        name: "bench key".into(),
        mode: Mode::Live,
        scopes: ScopeList::parse("orders:read"),
        allowlist: Networks::parse("127.0.0.0/8")?,
        tier: "standard".into(),
        api_version: None,
        last4: token.last4,
        imported: false,
        created_at: now,
        expires_at: None,
        revoked_at: None,
        rotated_to: None,
        rotated_from: None,
        until_quiet: None,
    };
    Ok(Write { action: Action::KeyCreated, expected: None, record: Record::Key(record) })
}

fn apply(store: &dyn KeyStore, writes: Vec<Write>) -> Result<(), Failure> {
    let operation = OperationId(fastrand::u128(..));
    store.apply(&Mutation { operation, actor: "bench".into(), at: Clock::system().now(), writes })?;
    Ok(())
}
