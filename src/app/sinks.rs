//! The sinks of gateway.toml, built: what is sent where the journal's records go besides.

use super::StartError;
use crate::audit::sinks::{
    Http, Line, Outlet, Positions, Room, Sink, SinkError, Sqlite, Standing, State, Stdout, directory_id,
};
use crate::audit::{Journal, reader};
use crate::clock::{self, Clock};
use crate::config::{Config, Destination, SinkSettings};
use crate::manage::reporter::{Reporter, ReporterParts};
use crate::store::redis::{Appended, RecordStream};
use crate::store::{KeyStore, StoreError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A stream in Redis as a sink: the store knows the stream, the journal knows sinks.
struct RedisSink {
    name: String,
    audit_dir: PathBuf,
    /// The directory's id, once it was asked for.
    directory: String,
    stream: RecordStream,
}

/// Builds the sinks. None of them connects yet.
pub fn build(settings: &[SinkSettings], audit_dir: &Path) -> Result<Vec<Outlet>, StartError> {
    settings.iter().map(|sink| Ok(Outlet { sink: build_one(sink, audit_dir)?, room: sink.room })).collect()
}

fn build_one(settings: &SinkSettings, audit_dir: &Path) -> Result<Box<dyn Sink>, StartError> {
    let name = settings.name.clone();
    Ok(match &settings.destination {
        Destination::Sqlite => Box::new(Sqlite::new(name, audit_dir.to_owned())),
        Destination::Redis(stream) => Box::new(RedisSink {
            name,
            audit_dir: audit_dir.to_owned(),
            directory: String::new(),
            stream: RecordStream::new(stream),
        }),
        Destination::Http(server) => Box::new(Http::new(name, server.clone())),
        Destination::Stdout => {
            let failed = |error| StartError::Other(format!("cannot use standard output for audit records: {error}"));
            Box::new(Stdout::open(name).map_err(failed)?)
        }
    })
}

/// How much the reporter takes at once.
const ACCOUNTS_ROOM: Room = Room { records: 500, bytes: 256 * 1024 };

/// A journal whose writer is behind by more does not take records in time: what happens meanwhile is reported later.
const SYNCED_WITHIN: Duration = Duration::from_secs(2);

/// What tells the store how far the journals are and what each key was last used for.
pub fn accounts(config: &Config, store: Arc<dyn KeyStore>, clock: Clock, gateway: &str, journal: &Journal) -> Outlet {
    let (health, under_way) = (journal.health(), journal.under_way());
    let dir = config.audit.dir.clone();
    let ended = ended(&dir, gateway);
    // A slot's journal takes records while a process holds it. That this process's own does is not asked of its slot alone.
    let is_written = move |journal: &str| {
        let slot = journal.rsplit('/').next().unwrap_or_default();
        let lag = clock::monotonic().saturating_duration_since(health.synced_until());
        lag < SYNCED_WITHIN && reader::is_held(&dir.join(slot)).unwrap_or(false)
    };
    let parts = ReporterParts {
        store,
        clock,
        gateway: gateway.to_owned(),
        is_written: Box::new(is_written),
        under_way: Box::new(move || under_way.lines()),
        ended,
    };
    Outlet { sink: Box::new(Reporter::new(parts)), room: ACCOUNTS_ROOM }
}

/// The journals that nobody writes, with their last records: this process has recovered them.
fn ended(dir: &Path, gateway: &str) -> Vec<(String, u64)> {
    let slots = reader::journals(dir).unwrap_or_default();
    let left = slots.into_iter().filter(|slot| !reader::is_held(slot).unwrap_or(true));
    let named = left.filter_map(|slot| {
        let number = slot.file_name()?.to_str()?.to_owned();
        Some((format!("{gateway}/{number}"), reader::synced(&slot).ok()??))
    });
    named.collect()
}

/// How a sink stands, in one line.
pub fn line(standing: &Standing) -> String {
    let Standing { name, state, lag_records, lag } = standing;
    let behind = format!("{lag_records} records and {} s behind", lag.as_secs());
    match state {
        State::Elsewhere => {
            format!("[sink {name}] not shipping: another process of this directory does, or is about to\n")
        }
        State::Delivering => format!("[sink {name}] delivering, {behind}\n"),
        State::Failing(why) => format!("[sink {name}] failing, {behind}: {}\n", why.replace('\n', " ")),
    }
}

// === impl RedisSink ===

impl Sink for RedisSink {
    fn name(&self) -> &str {
        &self.name
    }

    fn position(&mut self) -> Result<Option<Positions>, SinkError> {
        self.directory = directory_id(&self.audit_dir).map_err(|error| SinkError::later(error.to_string()))?;
        self.stream.positions(&self.directory).map(Some).map_err(again)
    }

    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        let records = batch.iter().map(|line| (&*line.journal, line.seq, &*line.text));
        match self.stream.append(&self.directory, records).map_err(again)? {
            Appended::All => Ok(()),
            Appended::Behind { journal, seq } => Err(SinkError::Behind {
                why: format!(
                    "the stream has lost records of {journal}: it ends with {seq}, and is sent what follows again"
                ),
            }),
        }
    }
}

/// A full, a read-only or a loading server takes records later.
fn again(error: StoreError) -> SinkError {
    SinkError::later(match error {
        StoreError::Unavailable(why) | StoreError::Refused(why) => why,
        StoreError::Conflict(conflict) => conflict.to_string(),
    })
}
