//! What readers and the writer share: which records there are and where. A reader sees nothing that is not here.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use alibi_proto::{
    chain::{Anchor, Head},
    coverage::{Hole, OVERWRITTEN},
    id::{Epoch, Seq},
    time::{Moment, Timestamp},
};

use super::{
    Recovery, RingError, Span, Times, recovery,
    segment::{self, Found, Frames},
};

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
    /// The head of the chain before `next_seq`.
    pub(super) head: Head,
    /// Everything before is safe on disk, up to this head.
    pub(super) durable_next_seq: Seq,
    pub(super) durable_head: Head,
    pub(super) acknowledged: Seq,
    /// Evicted without acknowledgement; if there is one, it ends where the first segment begins.
    pub(super) evicted: Option<Span>,
    pub(super) recorded_until: Option<Timestamp>,
    /// Both clocks at one instant up to which was recorded, in the boot in which that was written.
    pub(super) recorded_at: Option<Moment>,
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
    /// Where its last frame ends.
    pub(super) bytes: u64,
    /// What it has on disk, its seal included.
    pub(super) file_bytes: u64,
    /// All before it was recorded by then, and nothing in it earlier; none if its header is damaged.
    pub(super) created: Option<Timestamp>,
    /// The times of its records; none if they are not known without reading it.
    pub(super) times: Option<Times>,
}

/// How what somebody knows of the past agrees with what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the same past.
    Same,
    /// It is another past: the ring was written anew since, or was never the one that is meant.
    Other,
    /// It speaks of what is not recorded here yet: the ring is an older copy of itself, or another one.
    Ahead,
    /// What it speaks of is not here any more.
    Gone,
}

/// Where the record at some seq is, if anywhere.
pub(super) enum Place {
    /// It is yet to be written.
    CaughtUp,
    /// It was, but no more.
    Overwritten(Hole),
    /// In this segment, which ends before `end`; its records were recorded in about these `times`. `last` tells whether more
    /// can come into it.
    In { segment: Segment, end: Seq, times: Times, last: bool },
}

impl View {
    /// The ring in `dir` as it is, which no writer may have open. Nothing is changed on disk: a torn tail is not seen.
    ///
    /// # Errors
    /// When there is no ring, it cannot be read, was written by a newer version, or has files that are not its own.
    pub fn open_read_only(dir: &Path) -> Result<Self, RingError> {
        let survey = recovery::survey(dir, None)?.ok_or_else(|| RingError::Absent { dir: dir.to_owned() })?;
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

    /// Where the ring is cut into pieces that can be read each by itself, in order: each from a position up to another, the last
    /// up to the end, wherever that is by then. What is not kept any more belongs to the first.
    pub fn stretches(&self) -> Vec<(Seq, Option<Seq>)> {
        let index = self.index();
        let cuts: Vec<Seq> = index.segments.iter().skip(1).map(|segment| segment.first_seq).collect();
        let begins = std::iter::once(Seq::FIRST).chain(cuts.iter().copied());
        begins.zip(cuts.iter().copied().map(Some).chain([None])).collect()
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

    /// No record is known to have been recorded later.
    pub fn latest(&self) -> Timestamp {
        self.index().latest()
    }

    /// How many bytes its segments take on disk, and when the oldest of them was begun.
    pub fn room(&self) -> (u64, Option<Timestamp>) {
        let index = self.index();
        let bytes = index.segments.iter().map(|segment| segment.file_bytes.max(segment.bytes)).sum();
        (bytes, index.segments.iter().find_map(|segment| segment.created))
    }

    /// Whether recording was ended in order, so that nothing was recorded after [`View::recorded_until`].
    pub fn is_closed_cleanly(&self) -> bool {
        self.index().closed_cleanly
    }

    /// What a writer would find that opened it now, as far as its checkpoint tells.
    pub fn recovery(&self) -> Recovery {
        self.index().recovery()
    }

    /// The head of the chain after everything that survives a power cut.
    pub fn anchor(&self) -> Anchor {
        let index = self.index();
        Anchor { seq: Seq(index.durable_next_seq.0 - 1), head: index.durable_head }
    }

    /// Whether what somebody remembers of the past is what is here.
    ///
    /// # Errors
    /// When the system cannot read a file that is there.
    pub fn compare(&self, anchor: &Anchor) -> Result<Standing, RingError> {
        // Whoever asks may say anything.
        let after = Seq(anchor.seq.0.saturating_add(1));
        let standing = |same: bool| if same { Standing::Same } else { Standing::Other };
        let (segment, end) = {
            let index = self.index();
            if after > index.next_seq {
                return Ok(Standing::Ahead);
            }
            if after == index.next_seq {
                return Ok(standing(anchor.head == index.head));
            }
            let Some(at) =
                index.segments.partition_point(|segment| segment.first_seq <= after).checked_sub(1)
            else {
                return Ok(Standing::Gone);
            };
            (index.segments[at].clone(), index.end_of(at))
        };
        let error = |source| RingError::Io { path: segment.path.clone(), source };
        if after == segment.first_seq {
            let previous = segment::previous_head(&segment.path)?;
            return Ok(previous.map_or(Standing::Gone, |previous| standing(previous == anchor.head)));
        }
        let mut frames = match Frames::open(&segment.path, self.epoch(), segment.first_seq) {
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Standing::Gone),
            frames => frames.map_err(error)?,
        };
        loop {
            // Whole frames, since what the header of a damaged one claims is no past.
            match frames.next(segment.bytes, end, |_| true).map_err(error)? {
                Found::Frame(header, _) if header.end_seq() == after => {
                    return Ok(standing(header.head == anchor.head));
                }
                // What ended there once has become a part of something else.
                Found::Frame(header, _) if header.first_seq < after && after < header.end_seq() => {
                    return Ok(Standing::Other);
                }
                Found::Frame(header, _) if header.first_seq >= after => return Ok(Standing::Gone),
                Found::End => return Ok(Standing::Gone),
                Found::Passed(_) | Found::Frame(..) | Found::Damage(_) => {}
            }
        }
    }

    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        // Every change to the index is a few assignments: there is no half of one to be found.
        self.shared.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    pub(super) fn recovery(&self) -> Recovery {
        Recovery {
            was_closed_cleanly: self.closed_cleanly,
            recorded_until: self.recorded_until,
            recorded_at: self.recorded_at,
            boot: self.boot,
            ..Recovery::default()
        }
    }

    pub(super) fn first_seq(&self) -> Seq {
        self.segments.front().map_or(self.next_seq, |segment| segment.first_seq)
    }

    /// Where segment `at` ends.
    pub(super) fn end_of(&self, at: usize) -> Seq {
        self.segments.get(at + 1).map_or(self.next_seq, |next| next.first_seq)
    }

    /// Between which times the records of segment `at` were recorded, as its neighbours tell, and what they speak of, as its
    /// seal or its writer does. Widened, never narrowed, by what is not known.
    pub(super) fn bounds_of(&self, at: usize) -> Times {
        let known = |segment: &Segment| segment.created;
        let from = self.segments.iter().take(at + 1).rev().find_map(known).unwrap_or_default();
        let to = self.segments.iter().skip(at + 1).find_map(known).unwrap_or_else(|| self.latest());
        let speaks_from = self.segments[at].times.map_or(Timestamp::ZERO, |times| times.speaks_from);
        Times { speaks_from, recorded_from: from, recorded_to: to }
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
        Ok(Place::In { segment, end, times, last: at + 1 == self.segments.len() })
    }

    fn overwritten(&self, first: Seq, first_seq: Seq) -> Hole {
        let known = self.evicted.filter(|span| first >= span.first);
        let oldest =
            self.segments.iter().find_map(|segment| segment.created).unwrap_or_else(|| self.latest());
        Hole {
            first,
            last: Seq(first_seq.0 - 1),
            from: known.map_or(Timestamp::ZERO, |span| span.from),
            to: self.evicted.map_or(oldest, |span| span.to.max(oldest)),
            reason: OVERWRITTEN.into(),
        }
    }
}
