//! Coverage: all that was told of each facet of a host, as a [`Timeline`], which alone knows what it means.

use std::collections::{BTreeMap, btree_map::Entry};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Hole, Timeline},
    id::HostId,
    time::Timestamp,
    wire,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    agents::{self, StoredHost},
    codec::{damaged, decode, facet_number, optional_time},
};
use crate::store::{StoreError, checksum::Checksum};

const CHANGE: i32 = 0;
const HOLE: i32 = 1;
/// A change that is true of a stretch only: no grade that stands depends on it.
const STRETCH: i32 = 2;
/// All that was told before, as a timeline. Only older versions have written others than this.
const FOLDED: i32 = 3;

pub(super) fn timeline(connection: &Connection, host: HostId, facet: Facet) -> Result<Timeline, StoreError> {
    // Where it is damaged how far a host is known, nothing is.
    let mut timeline = match agents::load(connection, host)? {
        Some(StoredHost { row, .. }) => stored(connection, row, facet)?,
        None => return Ok(Timeline::default()),
    };
    if let Some(until) = forgotten(connection)? {
        timeline.apply(&CoverageChange {
            facet,
            grade: Grade::NotRecorded { reason: "older than this collector keeps".to_owned() },
            from: Timestamp::ZERO,
            to: Some(until),
            scope: None,
            announced_from: None,
        });
    }
    Ok(timeline)
}

/// What ended before that is not kept.
pub(super) fn forgotten(connection: &Connection) -> Result<Option<Timestamp>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT until, checksum FROM forgotten")?;
    let stored = statement.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((until, checksum)) = stored else { return Ok(None) };
    Checksum::default().number(until).check("end of what is forgotten", checksum)?;
    optional_time("end of what is forgotten", Some(until))
}

pub(super) fn stored(connection: &Connection, host: i64, facet: Facet) -> Result<Timeline, StoreError> {
    let rows = "SELECT kind, record, checksum FROM coverage WHERE host = ? AND facet = ? ORDER BY id";
    let mut statement = connection.prepare_cached(rows)?;
    let mut rows = statement.query(params![host, facet_number(facet)])?;
    let mut timeline = Timeline::default();
    while let Some(row) = rows.next()? {
        let (kind, record): (i32, Vec<u8>) = (row.get(0)?, row.get(1)?);
        checksum(host, facet, kind, &record).check("coverage record", row.get(2)?)?;
        match kind {
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

fn checksum(host: i64, facet: Facet, kind: i32, record: &[u8]) -> Checksum {
    Checksum::default().number(host).number(facet_number(facet).into()).number(kind.into()).bytes(record)
}

/// The coverage of a host while something is taken in: read once it is needed, and written once, however much is told.
pub(super) struct Coverage<'a> {
    connection: &'a Connection,
    host: i64,
    facets: BTreeMap<Facet, Told>,
}

struct Told {
    before: Timeline,
    now: Timeline,
}

impl<'a> Coverage<'a> {
    pub(super) const fn new(connection: &'a Connection, host: i64) -> Self {
        Self { connection, host, facets: BTreeMap::new() }
    }

    pub(super) fn apply(&mut self, change: &CoverageChange) -> Result<(), StoreError> {
        self.timeline(change.facet)?.apply(change);
        Ok(())
    }

    pub(super) fn apply_hole(&mut self, hole: &Hole) -> Result<(), StoreError> {
        Facet::ALL.into_iter().try_for_each(|facet| {
            self.timeline(facet)?.apply_hole(hole);
            Ok(())
        })
    }

    fn timeline(&mut self, facet: Facet) -> Result<&mut Timeline, StoreError> {
        let told = match self.facets.entry(facet) {
            Entry::Occupied(told) => told.into_mut(),
            Entry::Vacant(place) => {
                let before = stored(self.connection, self.host, facet)?;
                place.insert(Told { now: before.clone(), before })
            }
        };
        Ok(&mut told.now)
    }

    /// Writes what has changed, and tells of which facets that is. Agents state a grade again wherever a reader can begin, which
    /// mostly changes nothing.
    pub(super) fn write(self) -> Result<Vec<Facet>, StoreError> {
        let mut changed = Vec::new();
        for (facet, told) in self.facets.into_iter().filter(|(_, told)| told.now != told.before) {
            changed.push(facet);
            replace(self.connection, self.host, facet, told.now)?;
        }
        Ok(changed)
    }
}

/// Writes all that is known of a facet of a host.
pub(super) fn replace(
    connection: &Connection,
    host: i64,
    facet: Facet,
    timeline: Timeline,
) -> Result<(), StoreError> {
    let record = wire::Timeline::from(timeline).encode_to_vec();
    let checksum = checksum(host, facet, FOLDED, &record).stored();
    let facet = facet_number(facet);
    let delete = "DELETE FROM coverage WHERE host = ? AND facet = ?";
    connection.prepare_cached(delete)?.execute(params![host, facet])?;
    let insert = "INSERT INTO coverage (host, facet, kind, record, checksum) VALUES (?, ?, ?, ?, ?)";
    connection.prepare_cached(insert)?.execute(params![host, facet, FOLDED, record, checksum])?;
    Ok(())
}

/// From now on nothing before `before` is believed, of any host. Never goes back.
pub(super) fn forget(connection: &Connection, before: Timestamp) -> Result<(), StoreError> {
    let until = before.as_nanos_i64().max(forgotten(connection)?.map_or(0, Timestamp::as_nanos_i64));
    let checksum = Checksum::default().number(until).stored();
    connection.execute(
        "INSERT OR REPLACE INTO forgotten (one, until, checksum) VALUES (1, ?, ?)",
        [until, checksum],
    )?;
    Ok(())
}
