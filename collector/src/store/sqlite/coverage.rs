//! Coverage as it was told, in order; played back into a [`Timeline`], which alone knows what it means.

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Hole, Timeline},
    id::HostId,
    time::Timestamp,
    wire,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::codec::{damaged, decode, facet_number, host_row, time};
use crate::store::StoreError;

const CHANGE: i32 = 0;
const HOLE: i32 = 1;
/// A change that is true of a stretch only: no grade that stands depends on it.
const STRETCH: i32 = 2;
/// All that was told before, as a timeline.
const FOLDED: i32 = 3;

/// A host's rows of one facet; more are folded into one. Few under test, so that it is done.
const ROWS_MAX: i64 = if cfg!(test) { 8 } else { 512 };

pub(super) fn timeline(connection: &Connection, host: HostId, facet: Facet) -> Result<Timeline, StoreError> {
    let mut timeline = match host_row(connection, host)? {
        Some(row) => replay(connection, row, facet, ALL)?,
        None => return Ok(Timeline::default()),
    };
    let forgotten = "SELECT until FROM forgotten";
    if let Some(until) = connection.query_row(forgotten, [], |row| row.get(0)).optional()? {
        timeline.apply(&CoverageChange {
            facet,
            grade: Grade::NotRecorded { reason: "older than this collector keeps".to_owned() },
            from: Timestamp::ZERO,
            to: Some(time("end of what is forgotten", until)?),
            scope: None,
            announced_from: None,
        });
    }
    Ok(timeline)
}

const ALL: &str = "SELECT kind, record FROM coverage WHERE host = ? AND facet = ? ORDER BY id";
/// What a grade that stands depends on. Losses do not, of which a host may have any number.
const STANDING: &str =
    "SELECT kind, record FROM coverage WHERE host = ? AND facet = ? AND kind <> 2 ORDER BY id";

fn replay(connection: &Connection, host: i64, facet: Facet, rows: &str) -> Result<Timeline, StoreError> {
    let mut statement = connection.prepare_cached(rows)?;
    let mut rows = statement.query(params![host, facet_number(facet)])?;
    let mut timeline = Timeline::default();
    while let Some(row) = rows.next()? {
        let record: Vec<u8> = row.get(1)?;
        match row.get(0)? {
            CHANGE | STRETCH => {
                timeline.apply(&decode::<wire::CoverageChanged, _>("coverage change", &record)?)
            }
            HOLE => timeline.apply_hole(&decode::<wire::Hole, _>("hole", &record)?),
            FOLDED => timeline = decode::<wire::Timeline, _>("timeline", &record)?,
            kind => return Err(damaged("coverage record", format!("its kind is {kind}"))),
        }
    }
    Ok(timeline)
}

/// Stores a change of one facet, unless it says nothing new: agents state the grade again wherever a reader can begin.
pub(super) fn store(connection: &Connection, host: i64, change: &CoverageChange) -> Result<(), StoreError> {
    let kind = if change.to.is_some() { STRETCH } else { CHANGE };
    if kind == CHANGE {
        let before = replay(connection, host, change.facet, STANDING)?;
        let mut after = before.clone();
        after.apply(change);
        if after == before {
            return Ok(());
        }
    }
    let record = wire::CoverageChanged::from(change.clone()).encode_to_vec();
    insert(connection, host, change.facet, kind, &record)
}

pub(super) fn store_hole(connection: &Connection, host: i64, hole: &Hole) -> Result<(), StoreError> {
    let record = wire::Hole::from(hole.clone()).encode_to_vec();
    Facet::ALL.into_iter().try_for_each(|facet| insert(connection, host, facet, HOLE, &record))
}

fn insert(
    connection: &Connection,
    host: i64,
    facet: Facet,
    kind: i32,
    record: &[u8],
) -> Result<(), StoreError> {
    let mut statement =
        connection.prepare_cached("INSERT INTO coverage (host, facet, kind, record) VALUES (?, ?, ?, ?)")?;
    statement.execute(params![host, facet_number(facet), kind, record])?;
    fold_if_many(connection, host, facet)
}

/// A host can be told of any number of losses. What they come to is bounded, and the same whenever they are folded.
fn fold_if_many(connection: &Connection, host: i64, facet: Facet) -> Result<(), StoreError> {
    let count = "SELECT count(*) FROM coverage WHERE host = ? AND facet = ?";
    let mut count = connection.prepare_cached(count)?;
    let rows: i64 = count.query_row(params![host, facet_number(facet)], |row| row.get(0))?;
    if rows <= ROWS_MAX {
        return Ok(());
    }
    let timeline = replay(connection, host, facet, ALL)?;
    let mut delete = connection.prepare_cached("DELETE FROM coverage WHERE host = ? AND facet = ?")?;
    delete.execute(params![host, facet_number(facet)])?;
    insert(connection, host, facet, FOLDED, &wire::Timeline::from(timeline).encode_to_vec())
}

/// From now on nothing before `before` is believed, of any host. Never goes back.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO forgotten (one, until) VALUES (1, ?)
         ON CONFLICT (one) DO UPDATE SET until = max(until, excluded.until)",
        [before.as_nanos_i64()],
    )?;
    Ok(())
}
