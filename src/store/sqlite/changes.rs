//! The follower's side: polls that cost next to nothing while nothing changes.

use super::super::{Action, Change, Changes, Feed, FleetId, Page, Position, Record, codec};
use super::settle::{FileId, SETTLE, Settling};
use super::{Member, StoreError, fleet, one_row, open, roster, rows, unavailable};
use crate::clock::Timestamp;
use rusqlite::{Connection, Row, params};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the file is looked at: well within the time in which a change must be in force, at no cost worth the name.
const POLL: Duration = Duration::from_millis(15);

/// A gateway whose row was gone may have missed to be waited for: this turn proves nothing, the next one does.
const REJOINED: &str = "the row had been removed; joined again";

/// A reader with a connection of its own. It never writes: its own commits would not move `data_version`.
pub struct SqliteChanges {
    path: PathBuf,
    connection: Connection,
    file: FileId,
    /// What `data_version` was when the log's head was last read, that head, and whose store it had to be.
    seen: Option<(i64, Position, Option<FleetId>)>,
    row: Option<roster::Row>,
    settling: Settling,
    /// How long that takes, as of the last look.
    settles_in: Duration,
    /// What `data_version` was when the file was last found to lack nothing.
    whole: Option<i64>,
}

// === impl SqliteChanges ===

impl SqliteChanges {
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = FileId::of(path)?;
        Ok(Self {
            path: path.to_owned(),
            connection: open::open_reader(path)?,
            file,
            seen: None,
            row: None,
            settling: Settling::default(),
            settles_in: SETTLE,
            whole: None,
        })
    }

    /// Follows the path to another file, if it leads to one now.
    fn follow_path(&mut self) -> Result<(), StoreError> {
        if FileId::of(&self.path)? != self.file {
            // Opened first: one that cannot be opened must not cost the row, by which others know that we live.
            let opened = Self::open(&self.path)?;
            *self = Self { row: self.row.take(), ..opened };
        }
        Ok(())
    }

    fn data_version(&self) -> Result<i64, StoreError> {
        // By `one_row`, which keeps the statement: an unchanged poll need not parse it anew.
        one_row(&self.connection, "PRAGMA data_version", [], |row| rows::column(row, 0)).map(Option::unwrap_or_default)
    }

    fn read_head(&self) -> Result<Position, StoreError> {
        let sql = "SELECT seq, token FROM changes ORDER BY seq DESC LIMIT 1";
        one_row(&self.connection, sql, [], read_position).map(Option::unwrap_or_default)
    }

    /// The log after `from`, and its head, as of one moment, if the store is the given fleet's.
    fn read(&self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        let snapshot = self.connection.unchecked_transaction().map_err(unavailable)?;
        if fleet.is_some() {
            let stored = fleet::id(&self.connection)?;
            if stored != fleet {
                return Ok(Feed::Foreign { fleet: stored });
            }
        }
        let head = self.read_head()?;
        if !holds(&self.connection, from)? {
            return Ok(Feed::Diverged { head });
        }
        let sql =
            "SELECT seq, token, at, actor, action, before, after FROM changes WHERE seq > ?1 ORDER BY seq LIMIT ?2";
        let mut statement = snapshot.prepare_cached(sql).map_err(unavailable)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut found = statement.query(params![from.seq, limit]).map_err(unavailable)?;
        let mut entries = Vec::new();
        while let Some(row) = found.next().map_err(unavailable)? {
            entries.push(read_change(row)?);
        }
        Ok(Feed::Entries { head, entries })
    }

    /// Looks whether the file is known to lack nothing, unless nothing was written since it last was.
    fn look_whether_settled(&mut self) -> Result<(), StoreError> {
        let version = self.data_version()?;
        if self.whole != Some(version) {
            let (path, file) = (&self.path, self.file.to_string());
            let record = |seen: &str| fleet::record_whole(&open::open(path)?, &file, seen);
            self.settles_in = self.settling.left(&self.connection, &self.file, record)?;
            self.whole = self.settles_in.is_zero().then_some(version);
        }
        Ok(())
    }

    fn keys_page(&self, after: u64, limit: i64) -> Result<Vec<Record>, StoreError> {
        let sql = format!("SELECT {} FROM keys WHERE version > ?1 ORDER BY version LIMIT ?2", rows::KEY_COLUMNS);
        self.records(&sql, after, limit, |row| rows::read_key(row).map(Record::Key))
    }

    fn entities_page(&self, after: u64, limit: i64) -> Result<Vec<Record>, StoreError> {
        let sql = format!("SELECT {} FROM entities WHERE version > ?1 ORDER BY version LIMIT ?2", rows::ENTITY_COLUMNS);
        self.records(&sql, after, limit, |row| rows::read_entity(row).map(Record::Entity))
    }

    fn records(
        &self,
        sql: &str,
        after: u64,
        limit: i64,
        read: impl Fn(&Row<'_>) -> Result<Record, StoreError>,
    ) -> Result<Vec<Record>, StoreError> {
        let mut statement = self.connection.prepare_cached(sql).map_err(unavailable)?;
        let mut found = statement.query(params![after, limit]).map_err(unavailable)?;
        let mut records = Vec::new();
        while let Some(row) = found.next().map_err(unavailable)? {
            records.push(read(row)?);
        }
        Ok(records)
    }
}

impl Changes for SqliteChanges {
    fn head(&mut self) -> Result<Position, StoreError> {
        self.follow_path()?;
        self.read_head()
    }

    fn poll(&mut self, from: Position, fleet: Option<FleetId>, limit: usize) -> Result<Feed, StoreError> {
        self.follow_path()?;
        let version = self.data_version()?;
        if self.seen == Some((version, from, fleet)) {
            return Ok(Feed::Entries { head: from, entries: Vec::new() });
        }
        let feed = self.read(from, fleet, limit)?;
        // Taken before the read: a commit in between is seen again by the next poll.
        self.seen = match &feed {
            Feed::Entries { head, .. } => Some((version, *head, fleet)),
            Feed::Diverged { .. } | Feed::Foreign { .. } => None,
        };
        Ok(feed)
    }

    fn past(&mut self, limit: usize) -> Result<Vec<Position>, StoreError> {
        self.follow_path()?;
        let sql = "SELECT seq, token FROM changes ORDER BY seq DESC LIMIT ?1";
        let mut statement = self.connection.prepare_cached(sql).map_err(unavailable)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut found = statement.query([limit]).map_err(unavailable)?;
        let mut positions = Vec::new();
        while let Some(row) = found.next().map_err(unavailable)? {
            positions.push(read_position(row)?);
        }
        positions.reverse();
        Ok(positions)
    }

    fn wait(&mut self, _: Position) {
        std::thread::sleep(POLL);
    }

    fn tell(&mut self, member: &Member) -> Result<(), StoreError> {
        // Forgotten, it joins again; the old row goes first, since dropping it removes the name that both have.
        let failed = |error: std::io::Error| StoreError::Unavailable(format!("cannot tell the fleet: {error}"));
        let was_listed = self.row.is_none();
        let (mut row, is_listed) = match self.row.take().filter(roster::Row::is_listed) {
            Some(row) => (row, true),
            None => (roster::Row::join(&self.path, member).map_err(failed)?, was_listed),
        };
        let told = if is_listed { row.tell(member) } else { Err(std::io::Error::other(REJOINED)) };
        // Kept whatever came of it: a gateway that cannot confirm is one to wait for.
        self.row = Some(row);
        told.map_err(failed)?;
        self.look_whether_settled()
    }

    fn settles_in(&self) -> Duration {
        self.settles_in
    }

    fn leave(&mut self, _: &Member) {
        self.row = None;
    }

    /// A row is a lock, which goes with its process.
    fn outlives_process(&self) -> bool {
        false
    }

    fn page(&mut self, after: u64, limit: usize) -> Result<Page, StoreError> {
        // Dropped at the end: all of it is as of one moment.
        let _snapshot = self.connection.unchecked_transaction().map_err(unavailable)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut records = self.keys_page(after, limit)?;
        records.extend(self.entities_page(after, limit)?);
        records.sort_by_key(Record::version);
        records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        Ok(Page { head: self.read_head()?, records })
    }
}

/// Whether the log holds the entry at `position`.
pub fn holds(connection: &Connection, position: Position) -> Result<bool, StoreError> {
    if position == Position::default() {
        return Ok(true);
    }
    let sql = "SELECT seq, token FROM changes WHERE seq = ?1";
    let held = one_row(connection, sql, [position.seq], read_position)?;
    Ok(held == Some(position))
}

fn read_position(row: &Row<'_>) -> Result<Position, StoreError> {
    Ok(Position { seq: rows::column(row, 0)?, token: rows::column(row, 1)? })
}

fn read_change(row: &Row<'_>) -> Result<Change, StoreError> {
    let action: String = rows::column(row, 4)?;
    let before: Option<String> = rows::column(row, 5)?;
    Ok(Change {
        seq: rows::column(row, 0)?,
        token: rows::column(row, 1)?,
        at: Timestamp::from_micros(rows::column(row, 2)?),
        actor: rows::column(row, 3)?,
        action: codec::need("changes.action", &action, Action::parse)?,
        before: before.as_deref().map(codec::decode).transpose()?,
        after: codec::decode(&rows::column::<String>(row, 6)?)?,
    })
}
