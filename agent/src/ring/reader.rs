//! Reading: every record once, in order, and a hole in place of each stretch that cannot be had.

use std::{collections::VecDeque, io};

use alibi_proto::{coverage::Hole, flow::RECORD_SPAN_MAX, id::Seq, time::Timestamp};

use super::{
    Record, RingError, Times,
    segment::{Found, Frames},
    view::{Place, Segment, View},
};

/// Reads a ring from some position on, with file handles of its own: on any thread, beside the writer and other readers.
///
/// What it returns is without a gap: each item begins where the one before it ended.
#[derive(Debug)]
pub struct Reader {
    view: View,
    /// What comes first: the hole, then the records.
    hole: Option<Hole>,
    records: VecDeque<Record>,
    /// The position after all of those.
    expected: Seq,
    open: Option<Open>,
    /// When the record before `expected` was recorded, if it was read.
    last_recorded: Option<Timestamp>,
}

/// What a reader finds next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Records whose seqs follow on each other. At least one.
    Records(Vec<Record>),
    /// Records that were there and cannot be had any more.
    Hole(Hole),
    /// Nothing yet.
    CaughtUp,
}

#[derive(Debug)]
struct Open {
    first_seq: Seq,
    frames: Frames,
    /// Whether something unreadable was met since the last good frame.
    damaged: bool,
}

impl Reader {
    /// A reader whose first item begins with `from`.
    pub fn new(view: View, from: Seq) -> Self {
        let expected = from.max(Seq::FIRST);
        Self { view, hole: None, records: VecDeque::new(), expected, open: None, last_recorded: None }
    }

    /// The position that the next item begins with.
    pub fn position(&self) -> Seq {
        let hole = self.hole.as_ref().map(|hole| hole.first);
        hole.or_else(|| self.records.front().map(|record| record.seq)).unwrap_or(self.expected)
    }

    /// The next records, at most `records_max` of them with at most `bytes_max` bytes; but always one, if there is one.
    ///
    /// # Errors
    /// When the position lies beyond the end of the ring, or the system cannot read a file that is there. The position
    /// stays, so that it can be tried again.
    pub fn next_batch(&mut self, bytes_max: usize, records_max: usize) -> Result<Item, RingError> {
        let mut batch = Vec::new();
        let mut bytes = 0_usize;
        loop {
            if self.hole.is_some() && !batch.is_empty() {
                return Ok(Item::Records(batch));
            }
            if let Some(hole) = self.hole.take() {
                return Ok(Item::Hole(hole));
            }
            while let Some(record) = self.records.pop_front() {
                if !batch.is_empty() && (batch.len() >= records_max || bytes + record.bytes.len() > bytes_max)
                {
                    self.records.push_front(record);
                    return Ok(Item::Records(batch));
                }
                bytes += record.bytes.len();
                batch.push(record);
            }
            match self.advance() {
                Ok(true) => {}
                // An error stays until the next call.
                Ok(false) | Err(_) if !batch.is_empty() => return Ok(Item::Records(batch)),
                Ok(false) => return Ok(Item::CaughtUp),
                Err(error) => return Err(error),
            }
        }
    }

    /// Goes on to the next hole or records, or both; false if there is nothing.
    fn advance(&mut self) -> Result<bool, RingError> {
        loop {
            let place = self.view.index().locate(self.expected)?;
            match place {
                Place::CaughtUp => return Ok(false),
                Place::Overwritten(hole) => {
                    self.expected = hole.last.next();
                    self.hole = Some(hole);
                    self.open = None;
                    self.last_recorded = None;
                    return Ok(true);
                }
                Place::In { segment, end, times } => {
                    if self.advance_in(&segment, end, times)? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// The same within a segment; false if it was evicted meanwhile.
    fn advance_in(&mut self, segment: &Segment, end: Seq, times: Times) -> Result<bool, RingError> {
        let error = |source| RingError::Io { path: segment.path.clone(), source };
        let mut open = match self.open.take().filter(|open| open.first_seq == segment.first_seq) {
            Some(open) => open,
            None => match Frames::open(&segment.path, self.view.epoch()) {
                Ok(frames) => Open { first_seq: segment.first_seq, frames, damaged: false },
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    if self.view.first_seq() > segment.first_seq {
                        return Ok(false);
                    }
                    let reason = format!("{} is gone from the ring", name(segment));
                    self.skip_to(end, times, reason);
                    return Ok(true);
                }
                Err(source) => return Err(error(source)),
            },
        };
        let found = loop {
            match open.frames.next(segment.bytes, self.expected).map_err(error)? {
                Found::Frame(header, records) => break Some((header, records)),
                Found::End => break None,
                Found::Damage => open.damaged = true,
                Found::Passed => {}
            }
        };
        let next = found.as_ref().map_or(end, |(header, _)| header.first_seq);
        if next > self.expected {
            let recorded =
                found.as_ref().and_then(|(_, records)| records.first()).map(|record| record.recorded);
            let reason = match open.damaged {
                true => format!("damaged on disk, in {}", name(segment)),
                false => format!("lost before they were safe on disk, after {}", name(segment)),
            };
            self.skip_to(next, Times { to: recorded.unwrap_or(times.to), ..times }, reason);
        }
        if let Some((header, records)) = found {
            self.last_recorded = records.last().map(|record| record.recorded);
            self.records.extend(records.into_iter().filter(|record| record.seq >= self.expected));
            self.expected = self.expected.max(header.end_seq());
            open.damaged = false;
        }
        self.open = Some(open);
        Ok(true)
    }

    /// Leaves a hole up to `next`. What is in it was recorded between what was read before it and `times.to`, and may
    /// speak of what was up to [`RECORD_SPAN_MAX`] before that. A clock that was set back makes the hole wider.
    fn skip_to(&mut self, next: Seq, times: Times, reason: String) {
        let recorded = self.last_recorded.take().unwrap_or(times.from);
        self.hole = Some(Hole {
            first: self.expected,
            last: Seq(next.0 - 1),
            from: recorded.min(times.to).saturating_sub(RECORD_SPAN_MAX),
            to: recorded.max(times.to),
            reason,
        });
        self.expected = next;
    }
}

fn name(segment: &Segment) -> std::borrow::Cow<'_, str> {
    segment.path.file_name().unwrap_or_default().to_string_lossy()
}
