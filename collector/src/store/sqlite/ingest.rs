//! Takes a batch in: what is new of it, in the order of the stream, or nothing.

use alibi_proto::{
    clock::Difference,
    coverage::{Hole, another_ring, unrecognised},
    event::{Batch, Event, EventKind},
    id::{Cursor, Epoch, HostId, Seq},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::{
    Held,
    agents::{self, StoredHost},
    chain,
    clock::{self, Seen},
    codec::{signed, unsigned},
    coverage::Coverage,
    executables,
    flows::{self, Place},
    memory::Changed,
    names,
    prevalence::{Noted, Notes, Written},
    processes,
};
use crate::store::{Progress, StoreError, flows::Row as FlowRow};

/// What came of a batch.
pub(super) struct Committed {
    pub(super) progress: Progress,
    /// How the host's wall clock stands to its boot clock now.
    pub(super) steady: Option<Difference>,
    /// What of the host is another now.
    pub(super) changed: Changed,
    /// What was noted of executables.
    pub(super) noted: Written,
}

/// `held` is known besides what is written, and `noted` need not be written again. The flow records are left in `flows`, to be
/// staged before the transaction ends.
pub(super) fn commit(
    transaction: &Transaction<'_>,
    host: HostId,
    held: Held,
    noted: &Noted,
    batch: &Batch,
    heard: Timestamp,
    flows: &mut Vec<FlowRow>,
) -> Result<Committed, StoreError> {
    let mut stored = agents::load(transaction, host)?.ok_or(StoreError::UnknownHost(host))?;
    let known_until = stored.progress.known_until.max(held.known_until);
    stored.progress.known_until = known_until;

    // What a ring means that is entered, the first thing that it tells of decides.
    let is_another = stored.ring.is_some() && stored.progress.next.epoch != batch.epoch;
    if is_another && batch.events.is_empty() && batch.hole.is_none() {
        let progress = Progress { heard: Some(heard), ..stored.progress };
        agents::persist(transaction, host, &progress)?;
        let (changed, noted) = (Changed::default(), Written::default());
        return Ok(Committed { progress, steady: None, changed, noted });
    }
    let mut coverage = Coverage::new(transaction, stored.row);
    let ring = enter_ring(transaction, &stored, batch, &mut coverage)?;
    let Seen { steady, changed: clock } =
        clock::saw(transaction, stored.row, held.moment, batch, ring.wanted)?;
    let mut stream = Stream {
        connection: transaction,
        host: stored.row,
        ring: ring.row,
        wanted: ring.wanted,
        stored: 0,
        known_until,
        coverage,
        flows,
        starts: flows::Starts::default(),
        notes: Notes::new(noted),
    };
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
    let coverage = stream.coverage.write()?;
    let noted = stream.notes.write(transaction)?;

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
    Ok(Committed { progress, steady, changed: Changed { clock, coverage }, noted })
}

/// A ring of a host, and the seq that is wanted next of it.
pub(super) struct Ring {
    pub(super) row: i64,
    pub(super) wanted: u64,
}

impl Ring {
    pub(super) fn find(connection: &Connection, host: i64, epoch: Epoch) -> Result<Option<Self>, StoreError> {
        let find = "SELECT id, next_seq FROM ring WHERE host = ? AND epoch = ?";
        let mut statement = connection.prepare_cached(find)?;
        let columns = |row: &Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?));
        let found = statement.query_row([host, signed("epoch", epoch.0)?], columns).optional()?;
        found.map(|(row, next)| Ok(Self { row, wanted: unsigned("seq", next)? })).transpose()
    }
}

/// The ring that the batch comes from. Another one than before means that whatever the host did between them, it did
/// not record.
fn enter_ring(
    connection: &Connection,
    host: &StoredHost,
    batch: &Batch,
    coverage: &mut Coverage<'_>,
) -> Result<Ring, StoreError> {
    let epoch = batch.epoch;
    let Progress { next, known_until, .. } = host.progress;
    if let Some(row) = host.ring {
        if next.epoch == epoch {
            return Ok(Ring { row, wanted: next.seq.0 });
        }
        another_ring(known_until, batch.begins()).try_for_each(|change| coverage.apply(&change))?;
    }
    let number = signed("epoch", epoch.0)?;
    if number == 0 {
        return Err(StoreError::OutOfRange { what: "epoch", value: 0 });
    }
    // An epoch that was left and comes back (a ring restored from a backup) goes on where it was left: each event once.
    if let Some(ring) = Ring::find(connection, host.row, epoch)? {
        return Ok(ring);
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
    /// Before the batch.
    known_until: Option<Timestamp>,
    coverage: Coverage<'a>,
    flows: &'a mut Vec<FlowRow>,
    starts: flows::Starts,
    notes: Notes<'a>,
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
        self.coverage.apply_hole(&missing)?;
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
            EventKind::Flow(flow) => {
                self.flows.push(flows::row(self.connection, place, flow, &mut self.starts)?)
            }
            EventKind::ProcessStarted(process) => {
                processes::store_start(self.connection, self.host, process)?;
                self.notes.run(self.host, &process.image, process.started);
                self.starts.remove(&process.uid);
            }
            EventKind::ProcessExited(exit) => processes::store_exit(self.connection, self.host, exit)?,
            EventKind::Listen(listen) => flows::store_listen(self.connection, place, listen)?,
            EventKind::CoverageChanged(change) => self.coverage.apply(change)?,
            EventKind::ProcessExecuted(execution) => {
                executables::store_execution(self.connection, place, execution)?;
                self.notes.run(self.host, &execution.image, execution.executed);
            }
            EventKind::NameResolved(resolution) => {
                names::store_resolution(self.connection, self.host, resolution, &mut self.coverage)?
            }
            EventKind::ServerName(hello) => {
                names::store_server_name(self.connection, place, hello, &mut self.coverage)?
            }
            EventKind::ExecutableSeen(seen) => {
                executables::store(self.connection, self.host, seen)?;
                self.notes.seen(self.host, seen);
            }
            EventKind::LinkChanged(link) => executables::store_link(self.connection, place, link)?,
            EventKind::Unrecognised => {
                let (hole, mut doubts) = unrecognised(event, self.known_until);
                self.coverage.apply_hole(&hole)?;
                doubts.try_for_each(|doubt| self.coverage.apply(&doubt))?;
            }
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
