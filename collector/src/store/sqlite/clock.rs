//! The hosts' clocks: one record of each, read and written whole.

use alibi_proto::{
    clock::{ClockHistory, ClockReading, Difference},
    event::Batch,
    id::{Epoch, HostId},
    time::Moment,
    wire,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, params};

use super::{agents::host_row, codec::decode};
use crate::store::{StoreError, checksum::Checksum};

pub(super) fn history(connection: &Connection, host: HostId) -> Result<ClockHistory, StoreError> {
    match host_row(connection, host)? {
        Some(row) => of_row(connection, row),
        None => Ok(ClockHistory::default()),
    }
}

pub(super) fn of_row(connection: &Connection, host: i64) -> Result<ClockHistory, StoreError> {
    let mut statement = connection.prepare_cached("SELECT record, checksum FROM clock WHERE host = ?")?;
    let stored =
        statement.query_row([host], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?))).optional()?;
    let Some((record, sum)) = stored else { return Ok(ClockHistory::default()) };
    checksum(host, &record).check("clock history", sum)?;
    decode::<wire::ClockHistory, _>("clock history", &record)
}

fn checksum(host: i64, record: &[u8]) -> Checksum {
    Checksum::default().number(host).bytes(record)
}

fn store(connection: &Connection, host: i64, history: &ClockHistory) -> Result<(), StoreError> {
    let record = wire::ClockHistory::from(history.clone()).encode_to_vec();
    let mut statement = connection.prepare_cached(
        "INSERT INTO clock (host, record, checksum) VALUES (?, ?, ?)
         ON CONFLICT (host) DO UPDATE SET record = excluded.record, checksum = excluded.checksum",
    )?;
    statement.execute(params![host, record, checksum(host, &record).stored()])?;
    Ok(())
}

/// What is known of a host's clocks after something was taken in.
pub(super) struct Seen {
    /// How the wall clock stands to the boot clock, if that is known.
    pub(super) steady: Option<Difference>,
    /// All of it, if it is another than before.
    pub(super) changed: Option<ClockHistory>,
}

impl Seen {
    fn store(
        connection: &Connection,
        host: i64,
        history: ClockHistory,
        is_changed: bool,
    ) -> Result<Self, StoreError> {
        if is_changed {
            store(connection, host, &history)?;
        }
        Ok(Self { steady: history.steady(), changed: is_changed.then_some(history) })
    }
}

/// Takes in what was read, if anything was, after what the last watermark told.
pub(super) fn measured(
    connection: &Connection,
    host: HostId,
    told: Option<(Epoch, Moment)>,
    reading: Option<&ClockReading>,
) -> Result<Seen, StoreError> {
    let Some(row) = host_row(connection, host)? else { return Err(StoreError::UnknownHost(host)) };
    let mut history = of_row(connection, row)?;
    let mut changed = told.is_some_and(|(epoch, moment)| history.saw(epoch, None, moment));
    if let Some(reading) = reading {
        history.measured(reading);
        changed = true;
    }
    Seen::store(connection, row, history, changed)
}

/// Takes in the moments of what is new in a batch: its events from `wanted` on, and the one that it was sent at; after what
/// the last watermark told.
pub(super) fn saw(
    connection: &Connection,
    host: i64,
    told: Option<(Epoch, Moment)>,
    batch: &Batch,
    wanted: u64,
) -> Result<Seen, StoreError> {
    let mut history = of_row(connection, host)?;
    let mut changed = told.is_some_and(|(epoch, moment)| history.saw(epoch, None, moment));
    for event in batch.events.iter().filter(|event| event.seq.0 >= wanted) {
        changed |= history.saw(batch.epoch, Some(event.seq), event.recorded);
    }
    if let Some(moment) = batch.clock {
        changed |= history.saw(batch.epoch, None, moment);
    }
    Seen::store(connection, host, history, changed)
}
