//! Reading: every frame once, in order, and a hole in place of each stretch that cannot be had.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    ops::RangeInclusive,
};

use alibi_proto::{
    chain::Head,
    coverage::{CHANGED_ON_DISK, Hole},
    frame::{Columns, Frame},
    id::Seq,
    time::Timestamp,
};

use super::{
    Key, RingError, Times,
    frame::FrameHeader,
    places::Print,
    segment::{self, Found, Frames},
    view::{Place, Segment, View},
};

/// Reads a ring from some position on, with file handles of its own: on any thread, beside the writer and other readers.
///
/// What it returns is without a gap: each item begins where the one before it ended, unless it was told to pass over some.
#[derive(Debug)]
pub struct Reader {
    view: View,
    selection: Option<Selection>,
    /// The keys that are selected, if all of them are rare, and what that leaves of a segment.
    prints: Option<HashSet<Print>>,
    selected: Option<Selected>,
    /// What comes after a hole.
    next: Option<Next>,
    /// The position after what was returned, and `next`.
    expected: Seq,
    /// Nothing is returned that begins there or later.
    until: Option<Seq>,
    open: Option<Open>,
    /// When the record before `expected` was recorded, if it was read, and the head of the chain there.
    last_recorded: Option<Timestamp>,
    head: Option<Head>,
}

/// Which records somebody looks for. Of others, some may be returned and some passed over.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Records of any of these kinds.
    pub kinds: u32,
    /// Of them, those with any of these keys; none: whatever their keys.
    pub keys: Option<Vec<Key>>,
    /// Of them, those that were recorded since the first of these, and are labelled with no later time than the second.
    pub times: RangeInclusive<Timestamp>,
}

impl Selection {
    /// Whether it may be among records of these kinds, that are labelled with no earlier time than `from`, and were recorded
    /// until `recorded_to`.
    fn admits(&self, kinds: u32, from: Timestamp, recorded_to: Timestamp) -> bool {
        self.kinds & kinds != 0 && *self.times.start() <= recorded_to && from <= *self.times.end()
    }
}

/// What a reader finds next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Records whose seqs follow on each other. The first may be before the position asked for.
    Frame(ChainedFrame),
    /// Records that were there and cannot be had any more.
    Hole(Hole),
    /// Nothing yet, or nothing more up to where it was to read.
    CaughtUp,
}

/// The same, with what is known of a frame's times.
enum Step {
    Frame(Next),
    Hole(Hole),
    CaughtUp,
}

/// The same, as columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// Records whose seqs follow on each other, and the seq of the first.
    Records(Seq, Columns),
    /// Records that were there and cannot be had any more.
    Hole(Hole),
    /// Nothing yet.
    CaughtUp,
}

/// A frame, and what stands for it and all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainedFrame {
    /// The records.
    pub frame: Frame,
    /// The head of the chain before them; none after a hole, where it is not known.
    pub previous: Option<Head>,
    /// The head of the chain after them.
    pub head: Head,
}

/// The frames of the segment that begins with `segment` which may have what is selected.
#[derive(Debug)]
struct Selected {
    segment: Seq,
    frames: BTreeSet<Seq>,
}

/// A frame that was found, and when the record before it was recorded, if that is known.
#[derive(Debug)]
struct Next {
    before: Option<Timestamp>,
    times: Times,
    chained: ChainedFrame,
}

#[derive(Debug)]
struct Open {
    first_seq: Seq,
    frames: Frames,
    /// Whether something unreadable was met since the last good frame.
    damaged: bool,
    /// Of it, a frame that does not continue the chain.
    changed: bool,
    /// The earliest instant that the records spoke of that are missing since then, as the headers of their frames tell.
    speaks_from: Timestamp,
    /// There are some of which nothing tells.
    is_untold: bool,
}

impl Open {
    fn damaged(&mut self, header: Option<&FrameHeader>) {
        self.damaged = true;
        match header {
            Some(header) => self.speaks_from = self.speaks_from.min(header.times.speaks_from),
            None => self.is_untold = true,
        }
    }

    /// The last frame was good.
    fn is_whole(&mut self) {
        (self.damaged, self.changed) = (false, false);
        (self.speaks_from, self.is_untold) = (Timestamp::MAX, false);
    }
}

impl Reader {
    /// A reader whose first item has the record at `from`, or a hole in its place.
    pub fn new(view: View, from: Seq) -> Self {
        let expected = from.max(Seq::FIRST);
        Self {
            view,
            selection: None,
            prints: None,
            selected: None,
            next: None,
            expected,
            until: None,
            open: None,
            last_recorded: None,
            head: None,
        }
    }

    /// A reader of the ring from `from` on that passes over what need not be read to find what is selected. A hole is passed over
    /// where the seal of its segment says that nothing selected was in it.
    pub fn selecting(view: View, from: Seq, selection: Selection) -> Self {
        let prints = selection.keys.as_ref().and_then(|keys| keys.iter().map(Print::of).collect());
        Self { selection: Some(selection), prints, ..Self::new(view, from) }
    }

    /// Goes on at `from`, up to `until`, if that is where a segment begins; and knows nothing any more of what it has read.
    pub fn go_to(&mut self, from: Seq, until: Option<Seq>) {
        (self.expected, self.until) = (from.max(Seq::FIRST), until);
        (self.next, self.open, self.last_recorded, self.head) = (None, None, None, None);
    }

    /// The position that the next item begins with, or has, if that is the first.
    pub fn position(&self) -> Seq {
        self.next.as_ref().map_or(self.expected, |next| next.chained.frame.first_seq)
    }

    /// What comes next.
    ///
    /// # Errors
    /// When the position lies beyond the end of the ring, or the system cannot read a file that is there. The position
    /// stays, so that it can be tried again.
    pub fn next_item(&mut self) -> Result<Item, RingError> {
        Ok(match self.find()? {
            Step::Frame(next) => Item::Frame(next.chained),
            Step::Hole(hole) => Item::Hole(hole),
            Step::CaughtUp => Item::CaughtUp,
        })
    }

    fn find(&mut self) -> Result<Step, RingError> {
        loop {
            if let Some(next) = self.next.take() {
                self.last_recorded = Some(next.times.recorded_to);
                return Ok(Step::Frame(next));
            }
            if self.until.is_some_and(|until| self.expected >= until) {
                return Ok(Step::CaughtUp);
            }
            let place = self.view.index().locate(self.expected)?;
            match place {
                Place::CaughtUp => return Ok(Step::CaughtUp),
                Place::Overwritten(mut hole) => {
                    // What comes after it is told to whoever reads there.
                    hole.last = self.until.map_or(hole.last, |until| hole.last.min(Seq(until.0 - 1)));
                    self.expected = hole.last.next();
                    self.open = None;
                    (self.last_recorded, self.head) = (None, None);
                    return Ok(Step::Hole(hole));
                }
                Place::In { segment, end, times, last } => {
                    if !last && self.can_pass(&segment, end)? {
                        (self.expected, self.open, self.head) = (end, None, None);
                        self.last_recorded = segment.times.map(|times| times.recorded_to);
                    } else if let Some(hole) = self.advance_in(&segment, end, times)? {
                        return Ok(Step::Hole(hole));
                    }
                }
            }
        }
    }

    /// What comes next, as columns. What cannot be unpacked is a hole, too.
    ///
    /// # Errors
    /// As [`Reader::next_item`].
    pub fn next_records(&mut self) -> Result<Read, RingError> {
        Ok(match self.find()? {
            Step::Frame(Next { before, times, chained: ChainedFrame { frame, .. } }) => match frame.columns()
            {
                Ok(columns) => Read::Records(frame.first_seq, columns),
                Err(error) => {
                    let (first, last) = (frame.first_seq, Seq(frame.end_seq().0 - 1));
                    Read::Hole(hole(first, last, before, times, error.to_string()))
                }
            },
            Step::Hole(hole) => Read::Hole(hole),
            Step::CaughtUp => Read::CaughtUp,
        })
    }

    /// Whether nothing that is selected is in this segment, into which nothing more comes: by its seal. What the seal does
    /// not know of, it does not vouch for.
    fn can_pass(&mut self, segment: &Segment, end: Seq) -> Result<bool, RingError> {
        let Some(selection) = self.selection.as_ref().filter(|_| self.expected == segment.first_seq) else {
            return Ok(false);
        };
        let seal = match segment::read_seal(&segment.path, self.view.epoch()) {
            Err(source) if source.kind() == io::ErrorKind::NotFound => None,
            read => read.map_err(|source| RingError::Io { path: segment.path.clone(), source })?,
        };
        let Some((seal, _)) = seal.filter(|(seal, _)| seal.last_seq.next() == end) else { return Ok(false) };
        if !selection.admits(seal.kinds, seal.labelled_from, seal.times.recorded_to) {
            return Ok(true);
        }
        if let (Some(prints), Some(places)) = (&self.prints, &seal.places) {
            let frames = places.find(|print| prints.contains(&print));
            let can_pass = frames.is_empty();
            self.selected = Some(Selected { segment: segment.first_seq, frames });
            return Ok(can_pass);
        }
        let may_have =
            |key: &Key| key.is_rare || seal.filter.as_ref().is_none_or(|filter| filter.may_have(*key));
        Ok(!selection.keys.as_ref().is_none_or(|keys| keys.iter().any(may_have)))
    }

    /// Goes on within a segment, to the next frame, and returns the hole before it; or nothing, if it was evicted meanwhile.
    fn advance_in(&mut self, segment: &Segment, end: Seq, times: Times) -> Result<Option<Hole>, RingError> {
        let error = |source| RingError::Io { path: segment.path.clone(), source };
        let mut open = match self.open.take().filter(|open| open.first_seq == segment.first_seq) {
            Some(open) => open,
            None => match Frames::open(&segment.path, self.view.epoch(), segment.first_seq) {
                Ok(frames) => Open {
                    first_seq: segment.first_seq,
                    frames,
                    damaged: false,
                    changed: false,
                    speaks_from: Timestamp::MAX,
                    is_untold: false,
                },
                Err(source) if source.kind() == io::ErrorKind::NotFound => {
                    if self.view.first_seq() > segment.first_seq {
                        return Ok(None);
                    }
                    let reason = format!("{} is gone from the ring", name(segment));
                    return Ok(Some(self.skip_to(end, times, reason)));
                }
                Err(source) => return Err(error(source)),
            },
        };
        if open.frames.offset() == segment::HEADER_BYTES as u64 {
            self.head = segment::previous_head(&segment.path)?;
        }
        let expected = self.expected;
        let selection = self.selection.as_ref();
        let selected = self.selected.as_ref().filter(|selected| selected.segment == segment.first_seq);
        // No label is of an earlier time than what its record speaks of.
        let is_wanted = |header: &FrameHeader| {
            let Times { speaks_from, recorded_to, .. } = header.times;
            header.end_seq() > expected
                && selection.is_none_or(|selection| selection.admits(header.kinds, speaks_from, recorded_to))
                && selected.is_none_or(|selected| selected.frames.contains(&header.first_seq))
        };
        let found = loop {
            match open.frames.next(segment.bytes, end, is_wanted).map_err(error)? {
                // Its checksum holds, so that it was no accident.
                Found::Frame(header, frame)
                    if header.first_seq == expected
                        && self.head.is_some_and(|head| head.then(&frame) != header.head) =>
                {
                    open.damaged(Some(&header));
                    (open.changed, self.head) = (true, None);
                }
                Found::Frame(header, frame) => break Some((header, Some(frame))),
                Found::End => break None,
                Found::Damage(header) => open.damaged(header.as_ref()),
                Found::Passed(header) if header.end_seq() > expected => break Some((header, None)),
                Found::Passed(header) => self.head = Some(header.head),
            }
        };
        let next = found.as_ref().map_or(end, |(header, _)| header.first_seq);
        let mut hole = None;
        if next > self.expected {
            let recorded = found.as_ref().map(|(header, _)| header.times.recorded_from);
            let reason = match open.damaged {
                true if open.changed => format!("{CHANGED_ON_DISK}, in {}", name(segment)),
                true => format!("damaged on disk, in {}", name(segment)),
                false => format!("lost before they were safe on disk, after {}", name(segment)),
            };
            // Of what left no trace, the segment's times are all that is known.
            let speaks_from = match open.damaged && !open.is_untold {
                true => open.speaks_from,
                false => open.speaks_from.min(times.speaks_from),
            };
            let recorded_to = recorded.unwrap_or(times.recorded_to);
            hole = Some(self.skip_to(next, Times { speaks_from, recorded_to, ..times }, reason));
        }
        if let Some((header, frame)) = found {
            self.expected = self.expected.max(header.end_seq());
            let before = self.last_recorded.replace(header.times.recorded_to);
            let previous = self.head.replace(header.head);
            self.next = frame.map(|frame| Next {
                before,
                times: header.times,
                chained: ChainedFrame { frame, previous, head: header.head },
            });
            open.is_whole();
        }
        self.open = Some(open);
        Ok(hole)
    }

    /// Leaves a hole up to `next`.
    fn skip_to(&mut self, next: Seq, times: Times, reason: String) -> Hole {
        let hole = hole(self.expected, Seq(next.0 - 1), self.last_recorded.take(), times, reason);
        (self.expected, self.head) = (next, None);
        hole
    }
}

/// What is in a hole was recorded between what was read `before` it and the end of `times`, and may speak of what was up to
/// the longest span of a record before that, or of what its frames say, if that is earlier: after a clock that was set back,
/// or where something was found to be missing since long before. A clock that was set back makes the hole wider.
fn hole(first: Seq, last: Seq, before: Option<Timestamp>, times: Times, reason: String) -> Hole {
    let recorded = before.unwrap_or(times.recorded_from);
    let from = recorded.min(times.recorded_to).saturating_sub(alibi_proto::flow::RECORD_SPAN_MAX);
    let from = from.min(times.speaks_from);
    Hole { first, last, from, to: recorded.max(times.recorded_to), reason }
}

fn name(segment: &Segment) -> std::borrow::Cow<'_, str> {
    segment.path.file_name().unwrap_or_default().to_string_lossy()
}
