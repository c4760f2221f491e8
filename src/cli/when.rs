//! Points in time, as the command line takes them.

use super::Failure;
use crate::clock::{Clock, Timestamp};
use crate::config::values;

/// Reads a time back from now (`1h`), or RFC 3339.
pub fn parse(text: &str) -> Result<Timestamp, Failure> {
    if let Some(time) = Timestamp::parse(text) {
        return Ok(time);
    }
    let back = i64::try_from(
        values::duration(text).map_err(|error| format!("{error}, or 2026-11-24T10:42:10Z"))?.as_micros(),
    )?;
    Ok(Timestamp::from_micros(Clock::system().now().as_micros() - back))
}
