//! The chain of hashes over each host's events, as far as it was followed.
//!
//! An anchor is written in the transaction that stores the events up to it. Of the older ones only some are kept: with
//! them it is found how far back a ring that became another one is still the same.

use alibi_proto::{
    chain::{Anchor, Anchored, ChainBreak, ChainStatus, Head},
    coverage::{Hole, another_past},
    event::Batch,
    id::{Cursor, Epoch, HostId, Seq},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    agents::{self, host_row},
    codec::{optional_time, signed, unsigned},
    coverage::Coverage,
    ingest::Ring,
};
use crate::store::{ANCHORS_MAX, BREAKS_MAX, Progress, ResumePoint, StoreError};

/// The newest anchors are all kept, then one of each minute for an hour, and one of each hour.
const NEWEST_KEPT: i64 = 16;
const MINUTE_NS: i64 = 60_000_000_000;
const HOUR_NS: i64 = 60 * MINUTE_NS;

/// Whether a batch goes on where the ring's chain ended, before anything of it is stored; `wanted` is the next seq that
/// is wanted after its hole, if it has one that is new.
pub(super) fn check(
    connection: &Connection,
    host: HostId,
    ring: i64,
    batch: &Batch,
    wanted: u64,
    after_hole: bool,
) -> Result<(), StoreError> {
    let Some(link) = &batch.link else { return Ok(()) };
    let (Some(first), Some(last)) = (batch.events.first(), batch.events.last()) else { return Ok(()) };
    // Within a hole nobody knows the head; and of what was stored already, nothing is taken in.
    if after_hole || last.seq.0 < wanted {
        return Ok(());
    }
    // It ends elsewhere than it did, so that it is not what it was.
    if first.seq.0 < wanted {
        return Err(StoreError::Broken { seq: wanted });
    }
    let known = match head(connection, ring)? {
        Some(head) => Some(head),
        None if wanted == Seq::FIRST.0 => Some(Head::of_nothing(host, batch.epoch)),
        None => None,
    };
    match (known, link.previous) {
        (Some(known), Some(previous)) if known != previous => Err(StoreError::Broken { seq: wanted }),
        _ => Ok(()),
    }
}

/// Notes how far the chain is known after a batch, of which something was stored up to before `wanted`.
pub(super) fn note(
    connection: &Connection,
    ring: i64,
    batch: &Batch,
    wanted: u64,
    known_until: Option<Timestamp>,
    heard: Timestamp,
) -> Result<(), StoreError> {
    let head = batch.link.filter(|_| batch.events.last().is_some_and(|last| last.seq.0 + 1 == wanted));
    let head = head.map(|link| link.head);
    let bytes = head.map(|head| head.as_bytes().to_vec());
    connection.prepare_cached("UPDATE ring SET head = ? WHERE id = ?")?.execute(params![bytes, ring])?;
    let Some(head) = head else { return Ok(()) };
    let last = "SELECT at FROM anchor WHERE ring = ? ORDER BY seq DESC LIMIT 1";
    let last: Option<i64> =
        connection.prepare_cached(last)?.query_row([ring], |row| row.get(0)).optional()?;
    let at = heard.as_nanos_i64();
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO anchor (ring, seq, head, at, known_until) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![
            ring,
            signed("seq", wanted - 1)?,
            head.as_bytes(),
            at,
            known_until.map(Timestamp::as_nanos_i64)
        ])?;
    if last.is_some_and(|last| last / MINUTE_NS != at / MINUTE_NS) {
        thin_out(connection, ring, at)?;
    }
    Ok(())
}

fn thin_out(connection: &Connection, ring: i64, now: i64) -> Result<(), StoreError> {
    let mut statement = connection.prepare_cached(
        "DELETE FROM anchor WHERE ring = :ring
             AND seq < (SELECT seq FROM anchor WHERE ring = :ring ORDER BY seq DESC LIMIT 1 OFFSET :newest)
             AND (SELECT newer.at FROM anchor AS newer WHERE newer.ring = :ring AND newer.seq > anchor.seq
                  ORDER BY newer.seq LIMIT 1) / iif(at < :hour_ago, :hour, :minute)
                 = at / iif(at < :hour_ago, :hour, :minute)",
    )?;
    statement.execute(rusqlite::named_params! {
        ":ring": ring,
        ":newest": NEWEST_KEPT - 1,
        ":hour_ago": now - HOUR_NS,
        ":hour": HOUR_NS,
        ":minute": MINUTE_NS,
    })?;
    let oldest = "DELETE FROM anchor WHERE ring = ?1 AND seq <= (SELECT seq FROM anchor WHERE ring = ?1
                  ORDER BY seq DESC LIMIT 1 OFFSET ?2)";
    connection.prepare_cached(oldest)?.execute(params![ring, ANCHORS_MAX as i64])?;
    Ok(())
}

/// A hole in place of what was changed on the host is a break of the chain.
pub(super) fn note_hole(
    connection: &Connection,
    host: i64,
    epoch: Epoch,
    hole: &Hole,
    heard: Timestamp,
) -> Result<(), StoreError> {
    if hole.reason.starts_with(alibi_proto::coverage::CHANGED_ON_DISK) {
        store_break(connection, host, epoch, hole.first.0, &hole.reason, heard)?;
    }
    Ok(())
}

/// Where a ring of a host is gone on with.
pub(super) fn resume_point(
    connection: &Connection,
    host: HostId,
    epoch: Epoch,
) -> Result<ResumePoint, StoreError> {
    let from_its_first = ResumePoint { next: Cursor { epoch, seq: Seq::FIRST }, anchors: Vec::new() };
    let Some(row) = host_row(connection, host)? else { return Ok(from_its_first) };
    let Some(ring) = Ring::find(connection, row, epoch)? else { return Ok(from_its_first) };
    let select = "SELECT seq, head FROM anchor WHERE ring = ? ORDER BY seq DESC LIMIT ?";
    let mut statement = connection.prepare_cached(select)?;
    let mut rows = statement.query(params![ring.row, ANCHORS_MAX as i64])?;
    let mut anchors = Vec::new();
    while let Some(row) = rows.next()? {
        anchors.push(Anchor {
            seq: Seq(unsigned("seq", row.get(0)?)?),
            head: read_head(&row.get::<_, Vec<u8>>(1)?)?,
        });
    }
    Ok(ResumePoint { next: Cursor { epoch, seq: Seq(ring.wanted) }, anchors })
}

/// What is known of a host's chain.
pub(super) fn status(connection: &Connection, host: HostId) -> Result<ChainStatus, StoreError> {
    let Some(row) = host_row(connection, host)? else { return Ok(ChainStatus::default()) };
    let newest =
        "SELECT ring.epoch, anchor.seq, anchor.head, anchor.at FROM anchor JOIN ring ON ring.id = anchor.ring
                  JOIN host ON host.ring = ring.id WHERE host.id = ? ORDER BY anchor.seq DESC LIMIT 1";
    let newest = connection
        .query_row(newest, [row], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, Vec<u8>>(2)?, row.get(3)?))
        })
        .optional()?;
    let mut status = ChainStatus::default();
    if let Some((epoch, seq, head, at)) = newest {
        let anchor = Anchor { seq: Seq(unsigned("seq", seq)?), head: read_head(&head)? };
        let at = optional_time("time of an anchor", Some(at))?.unwrap_or_default();
        status.anchored = Some(Anchored { epoch: Epoch(unsigned("epoch", epoch)?), anchor, at });
    }
    let breaks = "SELECT at, epoch, seq, reason FROM chain_break WHERE host = ? ORDER BY id DESC";
    let mut statement = connection.prepare_cached(breaks)?;
    let mut rows = statement.query([row])?;
    while let Some(row) = rows.next()? {
        status.breaks.push(ChainBreak {
            at: optional_time("time of a break", row.get(0)?)?.unwrap_or_default(),
            epoch: Epoch(unsigned("epoch", row.get(1)?)?),
            seq: Seq(unsigned("seq", row.get(2)?)?),
            reason: row.get(3)?,
        });
    }
    Ok(status)
}

/// What the host tells in a ring from `from` on is not what it told before: from there on it is another ring, whatever it
/// says. Two pasts were told of the time since the last anchor before it, so that nothing is proven of that time.
pub(super) fn diverge(
    connection: &Connection,
    host: HostId,
    from: Cursor,
    known_until: Option<Timestamp>,
    reason: &str,
    heard: Timestamp,
) -> Result<Progress, StoreError> {
    let stored = agents::load(connection, host)?.ok_or(StoreError::UnknownHost(host))?;
    let known_until = stored.progress.known_until.max(known_until);
    let Some(ring) = Ring::find(connection, stored.row, from.epoch)? else { return Ok(stored.progress) };
    let (seq, epoch) = (signed("seq", from.seq.0)?, signed("epoch", from.epoch.0)?);
    let common =
        "SELECT seq, head, known_until FROM anchor WHERE ring = ? AND seq < ? ORDER BY seq DESC LIMIT 1";
    let common: Option<(i64, Vec<u8>, Option<i64>)> = connection
        .query_row(common, params![ring.row, seq], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let begins = common.as_ref().and_then(|(.., known_until)| *known_until);
    let begins = optional_time("watermark", begins)?.unwrap_or_default();
    let head = common.filter(|(last, ..)| last + 1 == seq).map(|(_, head, _)| head);
    store_break(connection, stored.row, from.epoch, from.seq.0, reason, heard)?;

    let mut other = ring.row;
    if ring.wanted > from.seq.0 {
        // Its rows stay as what was told; the number of its epoch, and what both pasts have in common, go on with what is
        // told from now on.
        connection.execute("UPDATE ring SET epoch = -id WHERE id = ?", [ring.row])?;
        other = connection.query_row(
            "INSERT INTO ring (host, epoch, next_seq, head) VALUES (?, ?, ?, ?) RETURNING id",
            params![stored.row, epoch, seq, head],
            |row| row.get(0),
        )?;
        let common = "UPDATE anchor SET ring = ? WHERE ring = ? AND seq < ?";
        connection.execute(common, params![other, ring.row, seq])?;
        connection.execute("DELETE FROM anchor WHERE ring = ?", [ring.row])?;
    } else {
        // Nothing was told beyond, so that there is no row that it contradicts.
        connection.execute("UPDATE ring SET head = NULL WHERE id = ?", [ring.row])?;
    }
    connection.execute("UPDATE host SET ring = ? WHERE id = ?", [other, stored.row])?;
    let until = known_until.unwrap_or(begins).max(begins);
    let mut coverage = Coverage::new(connection, stored.row);
    another_past(reason, begins, until).try_for_each(|change| coverage.apply(&change))?;
    coverage.write()?;
    let next = Cursor { epoch: from.epoch, seq: from.seq.min(Seq(ring.wanted)) };
    let progress = Progress { next, known_until, ..stored.progress };
    agents::persist(connection, host, &progress)?;
    Ok(progress)
}

fn store_break(
    connection: &Connection,
    host: i64,
    epoch: Epoch,
    seq: u64,
    reason: &str,
    at: Timestamp,
) -> Result<(), StoreError> {
    connection.execute(
        "INSERT INTO chain_break (host, at, epoch, seq, reason) VALUES (?, ?, ?, ?, ?)",
        params![host, at.as_nanos_i64(), signed("epoch", epoch.0)?, signed("seq", seq)?, reason],
    )?;
    connection.execute(
        "DELETE FROM chain_break WHERE host = ?1 AND id <= (SELECT id FROM chain_break WHERE host = ?1
         ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        params![host, BREAKS_MAX as i64],
    )?;
    Ok(())
}

fn head(connection: &Connection, ring: i64) -> Result<Option<Head>, StoreError> {
    let head: Option<Vec<u8>> = connection
        .prepare_cached("SELECT head FROM ring WHERE id = ?")?
        .query_row([ring], |row| row.get(0))?;
    head.map(|bytes| read_head(&bytes)).transpose()
}

fn read_head(bytes: &[u8]) -> Result<Head, StoreError> {
    let damaged = || StoreError::Damaged { what: "head", problem: format!("it has {} bytes", bytes.len()) };
    Ok(Head::from_bytes(bytes.try_into().map_err(|_| damaged())?))
}
