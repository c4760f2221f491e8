//! Records and log entries as bytes, in the form in which they are kept on disk: compact, because a start reads a million.

use crate::clock::Timestamp;
use crate::key::{Digest, EntityId, EntityRecord, KeyId, KeyRecord, Mode, ScopeList};
use crate::net::Networks;
use crate::store::{Action, Change, FleetId, Position, Record};
use crate::ulid::Ulid;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A frame of a snapshot.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all are keys")]
pub enum Frame {
    Record(Record),
    /// Whose keys they are.
    Fleet(FleetId),
    /// Positions that were passed on the way, in order.
    Past(Vec<Position>),
    /// The last one: what came before is everything there was at this position.
    End(Position),
}

#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "nearly all are keys")]
enum FrameWire<'a> {
    #[serde(borrow)]
    Record(RecordWire<'a>),
    Fleet(u128),
    Past(Vec<(u64, u64)>),
    End {
        seq: u64,
        token: u64,
    },
}

#[derive(Serialize, Deserialize)]
#[allow(clippy::large_enum_variant, reason = "nearly all are keys")]
enum RecordWire<'a> {
    #[serde(borrow)]
    Key(KeyWire<'a>),
    #[serde(borrow)]
    Entity(EntityWire<'a>),
}

#[derive(Serialize, Deserialize)]
struct KeyWire<'a> {
    id: u128,
    version: u64,
    digest: [u8; 32],
    entity_id: u128,
    name: &'a str,
    live: bool,
    scopes: &'a str,
    allowlist: String,
    tier: &'a str,
    api_version: Option<&'a str>,
    last4: &'a str,
    imported: bool,
    created_at: i64,
    expires_at: Option<i64>,
    revoked_at: Option<i64>,
    rotated_to: Option<u128>,
    rotated_from: Option<u128>,
    until_quiet_s: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct EntityWire<'a> {
    id: u128,
    version: u64,
    code: &'a str,
    name: &'a str,
    created_at: i64,
    deleted_at: Option<i64>,
}

/// Without what was before, which only the journal wants.
#[derive(Serialize, Deserialize)]
struct ChangeWire<'a> {
    seq: u64,
    token: u64,
    at: i64,
    actor: &'a str,
    action: &'a str,
    #[serde(borrow)]
    after: RecordWire<'a>,
}

/// What does not read as it should; the text says what.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Garbled(String);

/// The bytes of a record's frame.
///
/// # Errors
/// [`Garbled`], if it cannot be written.
pub fn encode_record(record: &Record) -> Result<Vec<u8>, Garbled> {
    encode(&FrameWire::Record(RecordWire::of(record)))
}

/// The bytes of the frame that says whose keys they are.
///
/// # Errors
/// As of [`encode_record`].
pub fn encode_fleet(fleet: FleetId) -> Result<Vec<u8>, Garbled> {
    encode(&FrameWire::Fleet(fleet.bits()))
}

/// The bytes of a frame of positions.
///
/// # Errors
/// As of [`encode_record`].
pub fn encode_past(past: &[Position]) -> Result<Vec<u8>, Garbled> {
    encode(&FrameWire::Past(past.iter().map(|position| (position.seq, position.token)).collect()))
}

/// The bytes of a snapshot's last frame.
///
/// # Errors
/// As of [`encode_record`].
pub fn encode_end(position: Position) -> Result<Vec<u8>, Garbled> {
    encode(&FrameWire::End { seq: position.seq, token: position.token })
}

/// The bytes of a log entry's frame.
///
/// # Errors
/// As of [`encode_record`].
pub fn encode_change(change: &Change) -> Result<Vec<u8>, Garbled> {
    encode(&ChangeWire {
        seq: change.seq,
        token: change.token,
        at: change.at.as_micros(),
        actor: &change.actor,
        action: change.action.as_str(),
        after: RecordWire::of(&change.after),
    })
}

/// Reads a snapshot's frame.
///
/// # Errors
/// [`Garbled`]: a frame that cannot be read is never passed over.
pub fn decode_frame(bytes: &[u8]) -> Result<Frame, Garbled> {
    match decode(bytes)? {
        FrameWire::Record(record) => record.read().map(Frame::Record),
        FrameWire::Fleet(bits) => Ok(Frame::Fleet(FleetId::from_bits(bits))),
        FrameWire::Past(past) => {
            Ok(Frame::Past(past.into_iter().map(|(seq, token)| Position { seq, token }).collect()))
        }
        FrameWire::End { seq, token } => Ok(Frame::End(Position { seq, token })),
    }
}

/// Reads a log entry's frame.
///
/// # Errors
/// As of [`decode_frame`].
pub fn decode_change(bytes: &[u8]) -> Result<Change, Garbled> {
    let wire: ChangeWire<'_> = decode(bytes)?;
    let action = Action::parse(wire.action).ok_or_else(|| Garbled(format!("'{}' is no action", wire.action)))?;
    Ok(Change {
        seq: wire.seq,
        token: wire.token,
        at: Timestamp::from_micros(wire.at),
        actor: wire.actor.to_owned(),
        action,
        before: None,
        after: wire.after.read()?,
    })
}

fn encode<T: Serialize>(wire: &T) -> Result<Vec<u8>, Garbled> {
    postcard::to_stdvec(wire).map_err(|error| Garbled(error.to_string()))
}

/// Bytes left over are bytes not understood.
fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Garbled> {
    match postcard::take_from_bytes(bytes) {
        Ok((wire, [])) => Ok(wire),
        Ok((_, rest)) => Err(Garbled(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(Garbled(error.to_string())),
    }
}

// === impl RecordWire ===

impl<'a> RecordWire<'a> {
    fn of(record: &'a Record) -> Self {
        match record {
            Record::Key(key) => Self::Key(KeyWire::of(key)),
            Record::Entity(entity) => Self::Entity(EntityWire::of(entity)),
        }
    }

    fn read(self) -> Result<Record, Garbled> {
        match self {
            Self::Key(key) => key.read().map(Record::Key),
            Self::Entity(entity) => Ok(Record::Entity(entity.read())),
        }
    }
}

// === impl KeyWire ===

impl<'a> KeyWire<'a> {
    fn of(key: &'a KeyRecord) -> Self {
        Self {
            id: key.id.ulid().to_bits(),
            version: key.version,
            digest: *key.digest.as_bytes(),
            entity_id: key.entity_id.to_bits(),
            name: &key.name,
            live: key.mode == Mode::Live,
            scopes: key.scopes.as_str(),
            allowlist: key.allowlist.to_string(),
            tier: &key.tier,
            api_version: key.api_version.as_deref(),
            last4: &key.last4,
            imported: key.imported,
            created_at: key.created_at.as_micros(),
            expires_at: key.expires_at.map(Timestamp::as_micros),
            revoked_at: key.revoked_at.map(Timestamp::as_micros),
            rotated_to: key.rotated_to.map(|id| id.ulid().to_bits()),
            rotated_from: key.rotated_from.map(|id| id.ulid().to_bits()),
            until_quiet_s: key.until_quiet.map(|time| time.as_secs()),
        }
    }

    fn read(self) -> Result<KeyRecord, Garbled> {
        let key_id = |bits| KeyId::new(Ulid::from_bits(bits));
        Ok(KeyRecord {
            id: key_id(self.id),
            version: self.version,
            digest: Digest::from_bytes(self.digest),
            entity_id: EntityId::from_bits(self.entity_id),
            name: self.name.to_owned(),
            mode: if self.live { Mode::Live } else { Mode::Test },
            scopes: ScopeList::parse(self.scopes),
            allowlist: Networks::parse(&self.allowlist).map_err(Garbled)?,
            tier: self.tier.to_owned(),
            api_version: self.api_version.map(str::to_owned),
            last4: self.last4.to_owned(),
            imported: self.imported,
            created_at: Timestamp::from_micros(self.created_at),
            expires_at: self.expires_at.map(Timestamp::from_micros),
            revoked_at: self.revoked_at.map(Timestamp::from_micros),
            rotated_to: self.rotated_to.map(key_id),
            rotated_from: self.rotated_from.map(key_id),
            until_quiet: self.until_quiet_s.map(Duration::from_secs),
        })
    }
}

// === impl EntityWire ===

impl<'a> EntityWire<'a> {
    fn of(entity: &'a EntityRecord) -> Self {
        Self {
            id: entity.id.to_bits(),
            version: entity.version,
            code: &entity.code,
            name: &entity.name,
            created_at: entity.created_at.as_micros(),
            deleted_at: entity.deleted_at.map(Timestamp::as_micros),
        }
    }

    fn read(self) -> EntityRecord {
        EntityRecord {
            id: EntityId::from_bits(self.id),
            version: self.version,
            code: self.code.to_owned(),
            name: self.name.to_owned(),
            created_at: Timestamp::from_micros(self.created_at),
            deleted_at: self.deleted_at.map(Timestamp::from_micros),
        }
    }
}
