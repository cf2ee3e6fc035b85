//! Takes a batch in: what is new of it, in the order of the stream, or nothing.

use alibi_proto::{
    clock::Difference,
    coverage::{Hole, another_ring, unrecognised},
    event::{Batch, Event, EventKind},
    id::{Cursor, HostId, Seq},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    agents::{self, StoredHost},
    chain, clock,
    codec::{signed, unsigned},
    coverage, executables,
    flows::{self, Place},
    names, processes,
};
use crate::store::{Progress, StoreError};

/// `known_until` is how far the stream is known besides what is written. Also tells how the host's wall clock stands to its
/// boot clock now.
pub(super) fn commit(
    transaction: &Transaction<'_>,
    host: HostId,
    known_until: Option<Timestamp>,
    batch: &Batch,
    heard: Timestamp,
) -> Result<(Progress, Option<Difference>), StoreError> {
    let mut stored = agents::load(transaction, host)?.ok_or(StoreError::UnknownHost(host))?;
    let known_until = stored.progress.known_until.max(known_until);
    stored.progress.known_until = known_until;

    let ring = enter_ring(transaction, &stored, batch)?;
    let steady = clock::saw(transaction, stored.row, batch, ring.wanted)?;
    let mut stream =
        Stream { connection: transaction, host: stored.row, ring: ring.row, wanted: ring.wanted, stored: 0 };
    let before = stream.wanted;
    if let Some(hole) = &batch.hole {
        stream.take_hole(hole)?;
    }
    let after_hole = stream.wanted > before;
    if let Some(hole) = batch.hole.as_ref().filter(|_| after_hole) {
        chain::note_hole(transaction, stored.row, batch.epoch, hole, heard)?;
    }
    chain::check(transaction, host, ring.row, batch, stream.wanted, after_hole)?;
    batch.events.iter().try_for_each(|event| stream.take(event))?;

    let progress = Progress {
        next: Cursor { epoch: batch.epoch, seq: Seq(stream.wanted) },
        known_until: known_until.max(batch.watermark),
        heard: Some(heard),
        events: stored.progress.events.saturating_add(stream.stored),
    };
    if stream.wanted > before {
        chain::note(transaction, ring.row, batch, stream.wanted, progress.known_until, heard)?;
    }
    let wanted = signed("seq", stream.wanted)?;
    if stored.ring != Some(ring.row) {
        let mut statement = transaction.prepare_cached("UPDATE host SET ring = ? WHERE id = ?")?;
        statement.execute([ring.row, stored.row])?;
    }
    transaction.prepare_cached("UPDATE ring SET next_seq = ? WHERE id = ?")?.execute([wanted, ring.row])?;
    agents::persist(transaction, host, &progress)?;
    Ok((progress, steady))
}

struct Ring {
    row: i64,
    wanted: u64,
}

/// The ring that the batch comes from. Another one than before means that whatever the host did between them, it did
/// not record.
fn enter_ring(connection: &Connection, host: &StoredHost, batch: &Batch) -> Result<Ring, StoreError> {
    let epoch = batch.epoch;
    let Progress { next, known_until, .. } = host.progress;
    if let Some(row) = host.ring {
        if next.epoch == epoch {
            return Ok(Ring { row, wanted: next.seq.0 });
        }
        another_ring(known_until, batch.begins())
            .try_for_each(|change| coverage::store(connection, host.row, &change))?;
    }
    let number = signed("epoch", epoch.0)?;
    if number == 0 {
        return Err(StoreError::OutOfRange { what: "epoch", value: 0 });
    }
    // An epoch that was left and comes back (a ring restored from a backup) goes on where it was left: each event once.
    let seen = "SELECT id, next_seq FROM ring WHERE host = ? AND epoch = ?";
    let seen = connection
        .query_row(seen, [host.row, number], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?)))
        .optional()?;
    if let Some((row, next_seq)) = seen {
        return Ok(Ring { row, wanted: unsigned("seq", next_seq)? });
    }
    let row = connection.query_row(
        "INSERT INTO ring (host, epoch, next_seq) VALUES (?, ?, ?) RETURNING id",
        params![host.row, number, signed("seq", Seq::FIRST.0)?],
        |row| row.get(0),
    )?;
    Ok(Ring { row, wanted: Seq::FIRST.0 })
}

struct Stream<'a> {
    connection: &'a Connection,
    host: i64,
    ring: i64,
    wanted: u64,
    stored: u64,
}

impl Stream<'_> {
    fn take_hole(&mut self, hole: &Hole) -> Result<(), StoreError> {
        if hole.last.0 < self.wanted {
            return Ok(());
        }
        if hole.first.0 > self.wanted {
            return Err(StoreError::Discontinuity { got: hole.first.0, wanted: self.wanted });
        }
        let next = after(hole.last)?;
        let missing = Hole { first: Seq(self.wanted), ..hole.clone() };
        coverage::store_hole(self.connection, self.host, &missing)?;
        self.wanted = next;
        Ok(())
    }

    fn take(&mut self, event: &Event) -> Result<(), StoreError> {
        let got = event.seq.0;
        if got < self.wanted {
            return Ok(());
        }
        if got > self.wanted {
            return Err(StoreError::Discontinuity { got, wanted: self.wanted });
        }
        let next = after(event.seq)?;
        let place = Place { host: self.host, ring: self.ring, seq: signed("seq", got)? };
        match &event.kind {
            EventKind::Flow(flow) => flows::store(self.connection, place, flow)?,
            EventKind::ProcessStarted(process) => {
                processes::store_start(self.connection, self.host, process)?
            }
            EventKind::ProcessExited(exit) => processes::store_exit(self.connection, self.host, exit)?,
            EventKind::Listen(listen) => flows::store_listen(self.connection, place, listen)?,
            EventKind::CoverageChanged(change) => coverage::store(self.connection, self.host, change)?,
            EventKind::ProcessExecuted(execution) => {
                executables::store_execution(self.connection, place, execution)?
            }
            EventKind::NameResolved(resolution) => {
                names::store_resolution(self.connection, self.host, resolution)?
            }
            EventKind::ServerName(hello) => names::store_server_name(self.connection, place, hello)?,
            EventKind::ExecutableSeen(seen) => executables::store(self.connection, self.host, seen)?,
            EventKind::LinkChanged(link) => executables::store_link(self.connection, place, link)?,
            EventKind::Unrecognised => unrecognised(event.recorded.wall)
                .try_for_each(|change| coverage::store(self.connection, self.host, &change))?,
        }
        self.wanted = next;
        self.stored += 1;
        Ok(())
    }
}

/// The position after `seq`, which must be one that can be stored.
fn after(seq: Seq) -> Result<u64, StoreError> {
    let next = seq.0.saturating_add(1);
    signed("seq", next).map(|_| next)
}
