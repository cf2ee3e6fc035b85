//! Takes a batch in: what is new of it, in the order of the stream, or nothing.

use std::time::Duration;

use alibi_proto::{
    clock::Difference,
    coverage::{CoverageChange, Grade, Hole},
    event::{Batch, Event, EventKind},
    flow::RECORD_SPAN_MAX,
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
        let reason = "the agent's ring was made anew".to_owned();
        let from = known_until.unwrap_or(Timestamp::ZERO);
        let (grade, announced) = (Grade::NotRecorded { reason }, Some(CoverageChange::ANOTHER_RING));
        coverage::store_for_all(connection, host.row, &grade, from, None, announced)?;
        // Where the host's clock is behind, what is known of the old ring vouches for nothing in the new one.
        if let (Some(begins), Some(until)) = (begins(batch), known_until)
            && begins < until
        {
            let reason = "the agent's ring was made anew, and its clock set back: this time happened twice";
            let grade = Grade::NotRecorded { reason: reason.to_owned() };
            coverage::store_for_all(connection, host.row, &grade, begins, Some(until), None)?;
        }
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

/// The earliest time at which what is in a ring's first batch can have been recorded.
fn begins(batch: &Batch) -> Option<Timestamp> {
    let events = batch.events.iter().map(|event| match &event.kind {
        EventKind::CoverageChanged(change) => event.recorded.wall.min(change.from),
        _ => event.recorded.wall,
    });
    events.chain(batch.hole.iter().map(|hole| hole.from)).chain(batch.watermark).min()
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
            EventKind::Unrecognised => self.lose(event.recorded.wall)?,
        }
        self.wanted = next;
        self.stored += 1;
        Ok(())
    }

    /// An event that cannot be read may have told of anything that one record can.
    fn lose(&self, recorded: Timestamp) -> Result<(), StoreError> {
        let reason = "an event of a kind this collector does not know: upgrade it".to_owned();
        let from = recorded.saturating_sub(RECORD_SPAN_MAX);
        let to = recorded.saturating_add(Duration::from_nanos(1));
        let grade = Grade::Lost { count: 1, reason };
        coverage::store_for_all(self.connection, self.host, &grade, from, Some(to), None)
    }
}

/// The position after `seq`, which must be one that can be stored.
fn after(seq: Seq) -> Result<u64, StoreError> {
    let next = seq.0.saturating_add(1);
    signed("seq", next).map(|_| next)
}
