//! Output: tables for people, JSON for scripts.

use super::Failure;
use crate::clock::Timestamp;
use crate::config::values;
use crate::key::{EntityRecord, KeyRecord};
use comfy_table::{Table, presets};
use serde_json::{Value, json};
use std::io::{self, Write};

/// How data is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// One JSON value.
    Json,
    /// One JSON object a line.
    Ndjson,
}

/// Whether a failure is that the reader of our output went away, which is no failure.
pub fn is_closed_pipe(failure: &(dyn std::error::Error + 'static)) -> bool {
    failure.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes one line to stdout.
pub fn line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a list: a table with these headings, or JSON.
pub fn list(output: Output, headings: &[&str], rows: Vec<Vec<String>>, values: &[Value]) -> Result<(), Failure> {
    match output {
        Output::Table => table(headings, rows),
        Output::Json => line(Value::from(values)),
        Output::Ndjson => values.iter().try_for_each(line),
    }
}

/// Writes a table without borders, as people know it from other tools.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)).collect::<Vec<_>>());
    }
    table.to_string().lines().try_for_each(|row| line(row.trim_end().strip_prefix(' ').unwrap_or(row.trim_end())))
}

/// Control characters from a store or a journal must not reach a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The JSON object of a key (contract, section 7), without the key itself. `until_quiet` is there only for one that ends so.
pub fn key_value(key: &KeyRecord, entity_code: &str, now: Timestamp) -> Value {
    let mut value = json!({
        "id": key.id.to_string(),
        "name": key.name,
        "entity_id": key.entity_id.to_string(),
        "entity": entity_code,
        "mode": key.mode.as_str(),
        "scopes": key.scopes.iter().collect::<Vec<_>>(),
        "allowlist": key.allowlist.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "tier": key.tier,
        "expires_at": key.expires_at.map(|time| time.to_string()),
        "last4": key.last4,
        "state": key.state(now).as_str(),
        "version": key.api_version,
        "created_at": key.created_at.to_string(),
    });
    if let (Some(quiet), Some(object)) = (key.until_quiet, value.as_object_mut()) {
        object.insert("until_quiet".to_owned(), Value::from(values::show_duration(quiet)));
    }
    value
}

/// The JSON object of an entity.
pub fn entity_value(entity: &EntityRecord) -> Value {
    json!({ "id": entity.id.to_string(), "code": entity.code, "name": entity.name })
}

/// A time as a table shows it: to the second.
pub fn show_time(time: Option<Timestamp>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| time.to_string().get(..19).map(|text| text.replace('T', " ")).unwrap_or_default(),
    )
}
