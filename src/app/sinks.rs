//! The sinks of gateway.toml, built: what is sent where the journal's records go besides.

use super::StartError;
use crate::audit::sinks::{Http, Line, Outlet, Positions, Sink, SinkError, Sqlite, Standing, State, Stdout};
use crate::config::{Destination, SinkSettings};
use crate::store::StoreError;
use crate::store::redis::{Appended, RecordStream};
use std::path::Path;

/// A stream in Redis as a sink: the store knows the stream, the journal knows sinks.
struct RedisSink {
    name: String,
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
        Destination::Redis(stream) => Box::new(RedisSink { name, stream: RecordStream::new(stream) }),
        Destination::Http(server) => Box::new(Http::new(name, server.clone())),
        Destination::Stdout => {
            let failed = |error| StartError::Other(format!("cannot use standard output for audit records: {error}"));
            Box::new(Stdout::open(name).map_err(failed)?)
        }
    })
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
        self.stream.positions().map(Some).map_err(again)
    }

    fn deliver(&mut self, batch: &[Line]) -> Result<(), SinkError> {
        let records = batch.iter().map(|line| (&*line.journal, line.seq, &*line.text));
        match self.stream.append(records).map_err(again)? {
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
