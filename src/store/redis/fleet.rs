//! Whose store this is: the fleet's id, and which gateways may take its history for their own (protocols I4).

use super::link::{self, Link};
use super::{FleetId, Held, StoreError, codec, schema};

const BEGIN: &str = include_str!("begin.lua");

/// The fleet that was begun, if any.
pub fn id(link: &mut Link) -> Result<Option<FleetId>, StoreError> {
    let id: Option<String> = link.call(::redis::cmd("GET").arg(schema::name("fleet_id")))?;
    id.as_deref().map(read_id).transpose()
}

/// Begins a fleet, unless one was begun; gives the one that counts.
pub fn begin(link: &mut Link, id: FleetId) -> Result<FleetId, StoreError> {
    let mut command = link::script(BEGIN, &["schema", "fleet_id"]);
    command.arg(schema::VERSION).arg(id.to_string());
    let (answer, text): (String, String) = link.call(&command)?;
    match answer.as_str() {
        "ok" => read_id(&text),
        "schema" => Err(link::newer(&text)),
        _ => Err(codec::corrupt(&format!("the beginning of a fleet was answered with '{answer}'"))),
    }
}

/// Reads an id as it is stored.
pub fn read_id(text: &str) -> Result<FleetId, StoreError> {
    codec::need("fleet_id", text, FleetId::parse)
}

/// Gives leave to just these.
pub fn adopt(link: &mut Link, held: &[Held]) -> Result<(), StoreError> {
    let lines: Vec<String> = held.iter().map(Held::to_string).collect();
    link.call(::redis::cmd("SET").arg(schema::name("adopted")).arg(lines.join("\n")))
}

/// Whether leave was given to just this one.
pub fn is_adopted(link: &mut Link, held: &Held) -> Result<bool, StoreError> {
    let lines: Option<String> = link.call(::redis::cmd("GET").arg(schema::name("adopted")))?;
    Ok(lines.is_some_and(|lines| lines.lines().any(|line| Held::parse(line) == Some(*held))))
}
