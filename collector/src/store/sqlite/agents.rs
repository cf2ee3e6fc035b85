//! The agents that are followed, their hosts, and how far each host's stream is known.

use std::{collections::HashMap, sync::Arc};

use alibi_proto::{
    host::HostDescription,
    id::{Cursor, Epoch, HostId, Seq},
    time::Timestamp,
    wire,
};
use prost::Message;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::codec::{damaged, decode, host_id, optional_time, signed, unsigned};
use crate::store::{AGENTS_MAX, FollowedAgent, Progress, StoreError, checksum::Checksum};

/// The columns that [`progress`] reads, of `host LEFT JOIN ring`.
const PROGRESS: &str =
    "ring.epoch, ring.next_seq, host.known_until, host.heard, host.events, host.uuid, host.checksum";

pub(super) fn list(connection: &Connection) -> Result<Vec<FollowedAgent>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {PROGRESS}, agent.address, host_description.record FROM agent
         LEFT JOIN host ON host.id = agent.host LEFT JOIN ring ON ring.id = host.ring
         LEFT JOIN host_description ON host_description.host = host.id ORDER BY agent.added"
    ))?;
    let mut rows = statement.query([])?;
    let mut agents = Vec::new();
    while let Some(row) = rows.next()? {
        let address: String = row.get(7)?;
        let description = row.get::<_, Option<Vec<u8>>>(8)?;
        let told =
            |error: StoreError| tracing::error!(%error, address, "what is stored of a host is damaged");
        // What is damaged of one host keeps nobody from the others: it is listed, and proves nothing.
        let description = description.and_then(|bytes| decode_description(&bytes).map_err(told).ok());
        let host = match (description, progress(row)) {
            (None, _) => None,
            (Some(description), Ok(progress)) => Some((Arc::new(description), progress)),
            (Some(description), Err(error @ StoreError::Damaged { .. })) => {
                told(error);
                Some((Arc::new(description), Progress::default()))
            }
            (Some(_), Err(error)) => return Err(error),
        };
        agents.push(FollowedAgent { address, host });
    }
    Ok(agents)
}

pub(super) fn add(connection: &Connection, address: &str) -> Result<bool, StoreError> {
    let select = "SELECT EXISTS (SELECT 1 FROM agent WHERE address = ?), (SELECT count(*) FROM agent)";
    let (followed, count): (bool, i64) =
        connection.query_row(select, [address], |row| Ok((row.get(0)?, row.get(1)?)))?;
    if followed {
        return Ok(false);
    }
    if unsigned("number of agents", count)? >= AGENTS_MAX as u64 {
        return Err(StoreError::TooManyAgents);
    }
    connection.execute("INSERT INTO agent (address) VALUES (?)", [address])?;
    Ok(true)
}

pub(super) fn remove(connection: &Connection, address: &str) -> Result<bool, StoreError> {
    Ok(connection.execute("DELETE FROM agent WHERE address = ?", [address])? > 0)
}

pub(super) fn describe(
    connection: &Connection,
    address: &str,
    description: &HostDescription,
    known_until: Option<Timestamp>,
    heard: Timestamp,
) -> Result<Progress, StoreError> {
    let host = description.host;
    let mut statement = connection.prepare_cached("SELECT added FROM agent WHERE address = ?")?;
    let agent: i64 = statement
        .query_row([address], |row| row.get(0))
        .optional()?
        .ok_or_else(|| StoreError::UnknownAgent(address.to_owned()))?;
    let mut statement = connection.prepare_cached(
        "SELECT address FROM agent JOIN host ON host.id = agent.host WHERE uuid = ? AND added != ?",
    )?;
    let other = statement.query_row(params![host.as_bytes(), agent], |row| row.get(0)).optional()?;
    if let Some(address) = other {
        return Err(StoreError::HostTaken { host, address });
    }

    let stored = load(connection, host)?;
    let before = stored.as_ref().map(|stored| stored.progress).unwrap_or_default();
    let progress =
        Progress { known_until: before.known_until.max(known_until), heard: Some(heard), ..before };
    let row = match stored {
        Some(StoredHost { row, .. }) => row,
        None => {
            connection.prepare_cached("INSERT INTO host (uuid) VALUES (?)")?.execute([host.as_bytes()])?;
            connection.last_insert_rowid()
        }
    };
    let record = wire::DescribeResponse::from(description.clone()).encode_to_vec();
    let mut statement = connection.prepare_cached(
        "INSERT INTO host_description (host, record) VALUES (?, ?)
         ON CONFLICT (host) DO UPDATE SET record = excluded.record WHERE record <> excluded.record",
    )?;
    statement.execute(params![row, record])?;
    let mut statement =
        connection.prepare_cached("UPDATE agent SET host = ?1 WHERE added = ?2 AND host IS NOT ?1")?;
    statement.execute([row, agent])?;
    persist(connection, host, &progress)?;
    Ok(progress)
}

/// The row of a host; none if it never described itself.
pub(super) fn host_row(connection: &Connection, host: HostId) -> Result<Option<i64>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT id FROM host WHERE uuid = ?")?;
    Ok(statement.query_row([host.as_bytes()], |row| row.get(0)).optional()?)
}

/// A host's row and how far its stream is known, as far as it is written.
pub(super) struct StoredHost {
    pub(super) row: i64,
    /// The row of its ring; none before its first batch.
    pub(super) ring: Option<i64>,
    pub(super) progress: Progress,
}

pub(super) fn load(connection: &Connection, host: HostId) -> Result<Option<StoredHost>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {PROGRESS}, host.id, host.ring FROM host LEFT JOIN ring ON ring.id = host.ring WHERE uuid = ?"
    ))?;
    let mut rows = statement.query([host.as_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(StoredHost { row: row.get(7)?, ring: row.get(8)?, progress: progress(row)? }))
}

/// What tells damage in how far a host's stream is known from what was written: of its id, its ring, what is wanted of that, and
/// until when all is known.
fn checksum(host: &[u8], next: Cursor, known_until: Option<i64>) -> Checksum {
    let all = Checksum::default().bytes(host).number(next.epoch.0.cast_signed());
    all.number(next.seq.0.cast_signed()).optional(known_until)
}

/// Writes how far the stream is known in time; where it goes on is written with the events only, before this.
pub(super) fn persist(connection: &Connection, host: HostId, progress: &Progress) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "UPDATE host SET known_until = ?, heard = ?, events = ?, checksum = ? WHERE uuid = ?",
    )?;
    let known_until = progress.known_until.map(Timestamp::as_nanos_i64);
    statement.execute(params![
        known_until,
        progress.heard.map(Timestamp::as_nanos_i64),
        signed("number of events", progress.events)?,
        checksum(host.as_bytes(), progress.next, known_until).stored(),
        host.as_bytes(),
    ])?;
    Ok(())
}

fn progress(row: &Row<'_>) -> Result<Progress, StoreError> {
    let epoch = row.get::<_, Option<i64>>(0)?.unwrap_or(0);
    let seq = row.get::<_, Option<i64>>(1)?.unwrap_or(0);
    let next = Cursor { epoch: Epoch(unsigned("epoch", epoch)?), seq: Seq(unsigned("seq", seq)?) };
    let host = row.get_ref(5)?.as_blob().map_err(|error| damaged("host id", error))?;
    checksum(host, next, row.get(2)?).check("progress of a host", row.get(6)?)?;
    Ok(Progress {
        next,
        known_until: optional_time("watermark", row.get(2)?)?,
        heard: optional_time("time of hearing", row.get(3)?)?,
        events: unsigned("number of events", row.get(4)?)?,
    })
}

fn decode_description(bytes: &[u8]) -> Result<HostDescription, StoreError> {
    decode::<wire::DescribeResponse, _>("host description", bytes)
}

/// The number of each host.
pub(super) fn numbers(connection: &Connection) -> Result<HashMap<HostId, u32>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT uuid, id FROM host")?;
    let mut rows = statement.query([])?;
    let mut numbers = HashMap::new();
    while let Some(row) = rows.next()? {
        let host = host_id(row.get_ref(0)?.as_blob().map_err(|error| damaged("host id", error))?)?;
        numbers.insert(host, row.get(1)?);
    }
    Ok(numbers)
}

/// The epoch of each ring; a negative one of a ring whose past became another one has its bits.
pub(super) fn epochs(connection: &Connection) -> Result<HashMap<u32, Epoch>, StoreError> {
    let mut statement = connection.prepare_cached("SELECT id, epoch FROM ring")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))?;
    let epoch = |(ring, epoch): (u32, i64)| (ring, Epoch(epoch.cast_unsigned()));
    Ok(rows.map(|row| row.map(epoch)).collect::<Result<_, _>>()?)
}
