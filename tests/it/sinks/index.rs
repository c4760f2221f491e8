//! The index as a sink: the default beside a store in SQLite.

use super::{World, journal};
use keygate::audit::fields::Fields;
use keygate::audit::index::IndexReader;
use keygate::audit::usage::Usage;
use keygate::clock::Timestamp;
use std::path::PathBuf;

fn dir(world: &World) -> PathBuf {
    world.gateway.dir.path().join("data/audit")
}

/// What the index alone says of the world's key, without what it would read from the journal: that is moved away.
fn indexed(world: &World) -> Usage {
    let (dir, away) = (dir(world), world.gateway.dir.path().join("away"));
    std::fs::rename(dir.join("0"), &away).unwrap();
    let reader = IndexReader::open(&dir).unwrap().unwrap();
    let usage = reader.usage(&world.key.id, Timestamp::from_micros(0), Timestamp::from_micros(i64::MAX / 2)).unwrap();
    std::fs::rename(&away, dir.join("0")).unwrap();
    usage
}

/// The same by reading every record.
fn counted(world: &World) -> Usage {
    let mut usage = Usage::default();
    for line in journal(&dir(world)) {
        let fields = Fields::read(&line).unwrap();
        if fields.key_id.is_some_and(|id| id.is(&world.key.id)) {
            usage.add(&fields);
        }
    }
    usage
}

#[test]
fn without_a_setting_the_index_knows_what_every_key_did_through_kills_stops_and_garbage() {
    let mut world = World::with("");
    for round in 0..3 {
        world.serve(20);
        let stranger = world.gateway.client().request("GET", &world.gateway.path("products"), &[&world.key.bearer()]);
        assert_eq!(stranger.status, 403);
        if round == 1 {
            world.stop();
        }
        world.gateway.restart();
    }
    world.stop();
    let expected = counted(&world);
    assert_eq!(indexed(&world), expected);
    assert!(!world.gateway.log_text().contains("sent again"), "{}", world.gateway.log_text());

    std::fs::write(dir(&world).join("index.db"), "no database".repeat(1000)).unwrap();
    world.gateway.restart();
    world.stop();
    assert_eq!(indexed(&world), counted(&world), "it was made again");
}
