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
    agents::host_row,
    codec::{damaged, decode, facet_number, optional_time},
};
use crate::store::StoreError;

const CHANGE: i32 = 0;
const HOLE: i32 = 1;
/// A change that is true of a stretch only: no grade that stands depends on it.
const STRETCH: i32 = 2;
/// All that was told before, as a timeline. Only older versions have written others than this.
const FOLDED: i32 = 3;

pub(super) fn timeline(connection: &Connection, host: HostId, facet: Facet) -> Result<Timeline, StoreError> {
    let mut timeline = match host_row(connection, host)? {
        Some(row) => stored(connection, row, facet)?,
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
    let mut statement = connection.prepare_cached("SELECT until FROM forgotten")?;
    let until = statement.query_row([], |row| row.get(0)).optional()?;
    optional_time("end of what is forgotten", until)
}

fn stored(connection: &Connection, host: i64, facet: Facet) -> Result<Timeline, StoreError> {
    let rows = "SELECT kind, record FROM coverage WHERE host = ? AND facet = ? ORDER BY id";
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
            let facet = facet_number(facet);
            let delete = "DELETE FROM coverage WHERE host = ? AND facet = ?";
            self.connection.prepare_cached(delete)?.execute(params![self.host, facet])?;
            let insert = "INSERT INTO coverage (host, facet, kind, record) VALUES (?, ?, ?, ?)";
            let record = wire::Timeline::from(told.now).encode_to_vec();
            self.connection.prepare_cached(insert)?.execute(params![self.host, facet, FOLDED, record])?;
        }
        Ok(changed)
    }
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
