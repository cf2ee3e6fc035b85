//! What readers and the writer share: which records there are and where. A reader sees nothing that is not here.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alibi_proto::{
    coverage::Hole,
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{RingError, Span, Times, recovery};

/// A ring as its readers see it: of a writer in this process, which it follows, or of a directory without a writer.
/// Clones are the same view.
#[derive(Clone, Debug)]
pub struct View {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    epoch: Epoch,
    index: Mutex<Index>,
}

/// The state of the ring. Whoever has the lock does no more than look and note, and removes evicted files.
#[derive(Debug)]
pub(super) struct Index {
    /// In order; each ends where the next begins, the last at `next_seq`.
    pub(super) segments: VecDeque<Segment>,
    pub(super) next_seq: Seq,
    /// Everything before is safe on disk.
    pub(super) durable_next_seq: Seq,
    pub(super) acknowledged: Seq,
    /// Evicted without acknowledgement; if there is one, it ends where the first segment begins.
    pub(super) evicted: Option<Span>,
    pub(super) recorded_until: Option<Timestamp>,
    /// The latest that any record known here was recorded.
    pub(super) recorded_max: Timestamp,
    pub(super) closed_cleanly: bool,
    /// The boot in which it was written last.
    pub(super) boot: Option<u64>,
}

/// A segment, of which the first `bytes` bytes are written and do not change any more.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) first_seq: Seq,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// When its first record was recorded; none if its header is damaged.
    pub(super) created: Option<Timestamp>,
    /// What its records speak of; none if that is not known without reading it.
    pub(super) times: Option<Times>,
}

/// Where the record at some seq is, if anywhere.
pub(super) enum Place {
    /// It is yet to be written.
    CaughtUp,
    /// It was, but no more.
    Overwritten(Hole),
    /// In this segment, which ends before `end`; its records were recorded in about these `times`.
    In { segment: Segment, end: Seq, times: Times },
}

impl View {
    /// The ring in `dir` as it is, which no writer may have open. Nothing is changed on disk: a torn tail is not seen.
    ///
    /// # Errors
    /// When there is no ring, it cannot be read, was written by a newer version, or has files that are not its own.
    pub fn open_read_only(dir: &Path) -> Result<Self, RingError> {
        let survey = recovery::survey(dir)?.ok_or_else(|| RingError::Absent { dir: dir.to_owned() })?;
        Ok(Self::new(survey.epoch, survey.index))
    }

    pub(super) fn new(epoch: Epoch, index: Index) -> Self {
        Self { shared: Arc::new(Shared { epoch, index: Mutex::new(index) }) }
    }

    /// The ring's identity.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch
    }

    /// The oldest position that is kept; that of the next record if none is.
    pub fn first_seq(&self) -> Seq {
        self.index().first_seq()
    }

    /// The position of the next record.
    pub fn next_seq(&self) -> Seq {
        self.index().next_seq
    }

    /// The position after the last record that survives a power cut. What a reader got beyond it may be lost in one, and
    /// its seqs given to others.
    pub fn durable_next_seq(&self) -> Seq {
        self.index().durable_next_seq
    }

    /// The last position that was acknowledged, as far as is known here; 0 if none was.
    pub fn acknowledged(&self) -> Seq {
        self.index().acknowledged
    }

    /// Up to when the last checkpoint says that everything is recorded; none if there was none.
    pub fn recorded_until(&self) -> Option<Timestamp> {
        self.index().recorded_until
    }

    /// Whether recording was ended in order, so that nothing was recorded after [`View::recorded_until`].
    pub fn is_closed_cleanly(&self) -> bool {
        self.index().closed_cleanly
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        // Every change to the index is a few assignments: there is no half of one to be found.
        self.shared.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    pub(super) fn first_seq(&self) -> Seq {
        self.segments.front().map_or(self.next_seq, |segment| segment.first_seq)
    }

    /// Where segment `at` ends.
    pub(super) fn end_of(&self, at: usize) -> Seq {
        self.segments.get(at + 1).map_or(self.next_seq, |next| next.first_seq)
    }

    /// Between which times the records of segment `at` were recorded, as its neighbours tell. Widened, never narrowed,
    /// by what is not known.
    pub(super) fn bounds_of(&self, at: usize) -> Times {
        let known = |segment: &Segment| segment.created;
        let from = self.segments.iter().take(at + 1).rev().find_map(known).unwrap_or_default();
        let to = self.segments.iter().skip(at + 1).find_map(known).unwrap_or_else(|| self.latest());
        Times { from, to }
    }

    /// No record is known to be recorded later.
    pub(super) fn latest(&self) -> Timestamp {
        self.recorded_max.max(self.recorded_until.unwrap_or_default())
    }

    /// # Errors
    /// When `seq` lies beyond the next.
    pub(super) fn locate(&self, seq: Seq) -> Result<Place, RingError> {
        if seq > self.next_seq {
            return Err(RingError::Ahead { from: seq, next_seq: self.next_seq });
        }
        let first_seq = self.first_seq();
        if seq < first_seq {
            return Ok(Place::Overwritten(self.overwritten(seq, first_seq)));
        }
        if seq == self.next_seq {
            return Ok(Place::CaughtUp);
        }
        let at = self.segments.partition_point(|segment| segment.first_seq <= seq) - 1;
        let (segment, end, times) = (self.segments[at].clone(), self.end_of(at), self.bounds_of(at));
        Ok(Place::In { segment, end, times })
    }

    fn overwritten(&self, first: Seq, first_seq: Seq) -> Hole {
        let known = self.evicted.filter(|span| first >= span.first);
        let oldest =
            self.segments.iter().find_map(|segment| segment.created).unwrap_or_else(|| self.latest());
        Hole {
            first,
            last: Seq(first_seq.0 - 1),
            from: known.map_or(Timestamp::ZERO, |span| span.times.from),
            to: self.evicted.map_or(oldest, |span| span.times.to.max(oldest)),
            reason: "overwritten in the ring before they were delivered".into(),
        }
    }
}
