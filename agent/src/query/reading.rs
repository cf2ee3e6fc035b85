//! Reads of the ring what a question needs: segment by segment on several threads, and tells it in order.

use std::{
    num::NonZero,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use alibi_proto::{coverage::Hole, event::Event, frame::Columns, id::Seq, wire};
use prost::Message as _;

use super::{QueryError, glimpse::Glimpse};
use crate::ring::{self, Reader, Selection, View};

/// More threads do not help a disk, and leave less to everybody else.
const THREADS_MAX: usize = 4;
/// So much is told at once, or what a frame has more,
const READS_TOLD: usize = 1_024;
/// and so many times that may wait of what each thread has read.
const PIECES_QUEUED_MAX: usize = 16;

/// What is read.
pub(super) enum Read {
    Event(Event),
    Hole(Hole),
}

/// What a thread tells of a segment.
enum Piece {
    Reads(Vec<Read>),
    /// The rest of it.
    End(Vec<Read>),
    Failed(QueryError),
}

/// Reads in order at least what is selected, but for events that are not meant by what is seen of them at a glance.
pub(super) fn read(
    view: &View,
    selection: &Selection,
    is_meant: impl Fn(&Glimpse<'_>) -> bool + Sync,
    mut take: impl FnMut(Read),
) -> Result<(), QueryError> {
    let stretches = view.stretches();
    let threads = thread::available_parallelism().map_or(1, NonZero::get).clamp(1, THREADS_MAX);
    let threads = threads.min(stretches.len());
    thread::scope(|scope| {
        let pieces: Result<Vec<Receiver<Piece>>, QueryError> = (0..threads)
            .map(|nth| {
                let (sender, receiver) = sync_channel(PIECES_QUEUED_MAX);
                let (stretches, is_meant) = (&stretches, &is_meant);
                let read = move || {
                    let segments = Segments { view, selection, is_meant, pieces: sender };
                    // Whoever took no more has an error to tell.
                    let _ = segments.tell(stretches.iter().skip(nth).step_by(threads));
                };
                // A system that has no thread left costs an answer, and not the recording.
                thread::Builder::new().spawn_scoped(scope, read).map_err(QueryError::Thread)?;
                Ok(receiver)
            })
            .collect();
        let pieces = pieces?;
        for at in 0..stretches.len() {
            loop {
                match pieces[at % threads].recv() {
                    Ok(Piece::Reads(reads)) => reads.into_iter().for_each(&mut take),
                    Ok(Piece::End(reads)) => {
                        reads.into_iter().for_each(&mut take);
                        break;
                    }
                    Ok(Piece::Failed(error)) => return Err(error),
                    // Its panic comes out as the scope ends.
                    Err(_) => return Ok(()),
                }
            }
        }
        Ok(())
    })
}

/// What one thread reads.
struct Segments<'a, F> {
    view: &'a View,
    selection: &'a Selection,
    is_meant: &'a F,
    pieces: SyncSender<Piece>,
}

/// Nobody takes what is read.
struct Unwanted;

impl<F: Fn(&Glimpse<'_>) -> bool> Segments<'_, F> {
    fn tell<'a>(&self, stretches: impl Iterator<Item = &'a (Seq, Option<Seq>)>) -> Result<(), Unwanted> {
        let mut reader = Reader::selecting(self.view.clone(), Seq::FIRST, self.selection.clone());
        for &(from, until) in stretches {
            reader.go_to(from, until);
            let last = match self.tell_one(&mut reader)? {
                Ok(reads) => Piece::End(reads),
                Err(error) => Piece::Failed(error),
            };
            self.send(last)?;
        }
        Ok(())
    }

    /// Returns the rest of it.
    fn tell_one(&self, reader: &mut Reader) -> Result<Result<Vec<Read>, QueryError>, Unwanted> {
        let mut reads = Vec::new();
        loop {
            match reader.next_records() {
                Ok(ring::Read::Records(_, columns)) => {
                    if let Err(error) = self.take_meant(&columns, &mut reads) {
                        return Ok(Err(error));
                    }
                }
                Ok(ring::Read::Hole(hole)) => reads.push(Read::Hole(hole)),
                Ok(ring::Read::CaughtUp) => return Ok(Ok(reads)),
                Err(error) => return Ok(Err(error.into())),
            }
            if reads.len() >= READS_TOLD {
                self.send(Piece::Reads(std::mem::take(&mut reads)))?;
            }
        }
    }

    fn take_meant(&self, columns: &Columns, reads: &mut Vec<Read>) -> Result<(), QueryError> {
        let kinds = self.selection.kinds;
        let mut record = Vec::new();
        for row in columns.rows() {
            if Glimpse::of(row).is_some_and(|seen| seen.kinds() & kinds == 0 || !(self.is_meant)(&seen)) {
                continue;
            }
            record.clear();
            row.append_to(&mut record);
            reads.push(Read::Event(Event::try_from(wire::Event::decode(record.as_slice())?)?));
        }
        Ok(())
    }

    fn send(&self, piece: Piece) -> Result<(), Unwanted> {
        self.pieces.send(piece).map_err(|_| Unwanted)
    }
}
