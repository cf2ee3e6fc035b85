//! Writing: appends, evictions, acknowledgements, and what makes them survive.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use alibi_proto::{
    id::{Epoch, Seq},
    time::Timestamp,
};

use super::{
    Appended, Options, Record, Recovery, RingError, Times,
    checkpoint::{self, Checkpoint, CheckpointFile},
    files,
    frame::{self, Frame},
    io_error,
    recovery::{self, Survey},
    segment::{self, SegmentHeader},
    view::{Index, Segment, View},
};

/// The single writer of a ring.
#[derive(Debug)]
pub struct Ring {
    dir: PathBuf,
    pub(super) options: Options,
    pub(super) view: View,
    /// The newest segment, if records can be added to it.
    pub(super) active: Option<Active>,
    pub(super) checkpoint: CheckpointFile,
    /// Names in the directory have changed since it was last synced.
    names_are_dirty: bool,
    /// Files of an append that failed, which could not be removed yet.
    leftovers: Vec<PathBuf>,
    /// Evicted, and not yet reported by an append.
    pub(super) evicted_unreported: u64,
}

/// The newest segment, open for writing. How much of it counts, the index says.
#[derive(Debug)]
pub(super) struct Active {
    file: File,
    path: PathBuf,
    is_dirty: bool,
    /// More than what counts may be in the file, from an append that failed.
    has_leftover: bool,
}

/// Which frames go where: some to the active segment, then a range of them to each new one.
pub(super) struct Plan {
    into_active: usize,
    pub(super) active_bytes: u64,
    pub(super) new: Vec<Range<usize>>,
}

impl Ring {
    /// Opens the ring in `dir`, which nobody else may have open for writing; makes one, with `new_epoch`, if there is
    /// none. From then on, it counts as not closed cleanly.
    ///
    /// # Errors
    /// When the limits make no sense, the directory cannot be used, was written by a newer version, or has files that are
    /// not a ring's own.
    pub fn open(dir: &Path, options: Options, new_epoch: Epoch) -> Result<(Self, Recovery), RingError> {
        options.check()?;
        let Some(survey) = recovery::survey(dir)? else {
            let ring = Self::create(dir, options, new_epoch)?;
            return Ok((ring, Recovery { is_new: true, ..Recovery::default() }));
        };
        let recovery = Recovery {
            is_new: false,
            was_closed_cleanly: survey.index.closed_cleanly,
            recorded_until: survey.index.recorded_until,
            boot: survey.index.boot,
            cut_bytes: survey.cut_bytes,
            lost_at_end: survey.lost_at_end,
            checkpoint_lost: survey.generation.is_none(),
        };
        Ok((Self::recover(dir, options, survey)?, recovery))
    }

    fn create(dir: &Path, options: Options, epoch: Epoch) -> Result<Self, RingError> {
        alibi_proto::data_directory::create_private(dir).map_err(|source| io_error(dir, source))?;
        let index = Index {
            segments: VecDeque::new(),
            next_seq: Seq::FIRST,
            durable_next_seq: Seq::FIRST,
            acknowledged: Seq(0),
            evicted: None,
            recorded_until: None,
            recorded_max: Timestamp::ZERO,
            closed_cleanly: false,
            boot: None,
        };
        let survey = Survey {
            epoch,
            index,
            generation: None,
            newest_goes_on: false,
            torn: Vec::new(),
            unfinished: Vec::new(),
            cut_bytes: 0,
            lost_at_end: 0,
        };
        Self::recover(dir, options, survey)
    }

    fn recover(dir: &Path, options: Options, survey: Survey) -> Result<Self, RingError> {
        let mut index = survey.index;
        for path in survey.torn.iter().chain(&survey.unfinished) {
            files::remove(path).map_err(|source| io_error(path, source))?;
        }
        let mut active = None;
        if let Some(newest) = index.segments.back() {
            // What a killed program wrote may not be safe yet, and the checkpoint is to say that it is.
            let file = files::open_to_write(&newest.path)
                .and_then(|file| file.set_len(newest.bytes).map(|()| file))
                .and_then(|file| files::sync(&file).map(|()| file))
                .map_err(|source| io_error(&newest.path, source))?;
            active = survey.newest_goes_on.then(|| Active::new(file, newest.path.clone()));
        }
        index.closed_cleanly = false;
        let remembered = Checkpoint::of(survey.epoch, &index);
        let path = dir.join(checkpoint::NAME);
        let checkpoint = match survey.generation {
            Some(generation) => {
                let mut file = CheckpointFile::open(&path, generation)?;
                file.write(&remembered)?;
                file
            }
            None => CheckpointFile::create(&path, &remembered)?,
        };
        files::sync_directory(dir).map_err(|source| io_error(dir, source))?;
        Ok(Self {
            dir: dir.to_owned(),
            options,
            view: View::new(survey.epoch, index),
            active,
            checkpoint,
            names_are_dirty: false,
            leftovers: Vec::new(),
            evicted_unreported: 0,
        })
    }

    /// The ring's identity.
    pub fn epoch(&self) -> Epoch {
        self.view.epoch()
    }

    /// The oldest position that is kept; [`Ring::next_seq`] if none is.
    pub fn first_seq(&self) -> Seq {
        self.view.first_seq()
    }

    /// The position of the next record.
    pub fn next_seq(&self) -> Seq {
        self.view.next_seq()
    }

    /// The last position that was acknowledged; 0 if none was.
    pub fn acknowledged(&self) -> Seq {
        self.view.acknowledged()
    }

    /// Bytes of records that fit into any ring in one append, if no single one of them is larger.
    pub fn append_bytes_max(&self) -> usize {
        self.options.payload_bytes_max() / 2
    }

    /// What readers need. It follows the ring.
    pub fn view(&self) -> View {
        self.view.clone()
    }

    /// Appends records, of which the first has [`Ring::next_seq`]: all of them, or none. Readers see them at once; a power
    /// cut spares them after the next [`Ring::sync`].
    ///
    /// # Errors
    /// When they are out of order or too large, or cannot be written. The ring is then as before, but for what was evicted,
    /// so the same append can be tried again.
    pub fn append(&mut self, records: &[Record]) -> Result<Appended, RingError> {
        self.check(records)?;
        let frames = frame::encode(self.epoch(), records, self.options.payload_bytes_max());
        let plan = self.plan(&frames)?;
        self.clean_up()?;
        self.note_open()?;
        self.make_room(&plan)?;
        match self.write(&frames, &plan) {
            Ok(started) => self.commit(records, &frames, &plan, started),
            Err(error) => {
                self.leave_behind(&frames, &plan);
                // What could not be cleaned up now is before the next append.
                let _ = self.clean_up();
                return Err(error);
            }
        }
        Ok(Appended {
            started_segment: !plan.new.is_empty(),
            evicted_unacknowledged: std::mem::take(&mut self.evicted_unreported),
        })
    }

    /// Names the boot of the host in which it is written from here on, so that the next run knows whether it was a power
    /// cut that ended this one. It is on disk with the next [`Ring::sync`].
    pub fn begin_boot(&mut self, boot: u64) {
        self.view.index().boot = Some(boot);
    }

    /// Makes everything appended so far safe from a power cut, and notes that everything is recorded until then.
    ///
    /// Where that is all there is to note, and less than [`Recovery::UNSAFE_MAX`] of it, the note is written and not waited
    /// for, since waiting is what an idle agent would spend most on: a kill does not undo it, and a power cut may. Then an
    /// earlier one counts, and no record is missing, as there was none.
    ///
    /// # Errors
    /// When the system cannot; what was safe before still is.
    pub fn sync(&mut self, recorded_until: Timestamp) -> Result<(), RingError> {
        self.sync_as(recorded_until, false)
    }

    /// [`Ring::sync`], and notes that recording ended in order. An append or sync after it takes that back.
    ///
    /// # Errors
    /// As [`Ring::sync`].
    pub fn mark_closed(&mut self, recorded_until: Timestamp) -> Result<(), RingError> {
        self.sync_as(recorded_until, true)
    }

    /// Notes that everything up to `seq` was delivered and is safe elsewhere. Never goes back. It is on disk with the next
    /// [`Ring::sync`].
    ///
    /// # Errors
    /// When no such record was ever appended.
    pub fn acknowledge(&mut self, seq: Seq) -> Result<(), RingError> {
        let mut index = self.view.index();
        if seq >= index.next_seq {
            return Err(RingError::NotWritten { seq, next_seq: index.next_seq });
        }
        index.acknowledged = index.acknowledged.max(seq);
        let acknowledged = index.acknowledged;
        index.evicted = index.evicted.filter(|span| span.last > acknowledged);
        Ok(())
    }

    fn check(&self, records: &[Record]) -> Result<(), RingError> {
        let limit_bytes = self.options.record_bytes_limit();
        let mut expected = self.next_seq();
        for record in records {
            let size_bytes = record.bytes.len();
            if record.seq != expected {
                return Err(RingError::OutOfOrder { seq: record.seq, expected });
            }
            if size_bytes > limit_bytes {
                return Err(RingError::RecordTooLarge { seq: record.seq, size_bytes, limit_bytes });
            }
            expected = expected.next();
        }
        Ok(())
    }

    fn plan(&self, frames: &[Frame]) -> Result<Plan, RingError> {
        let active_bytes = self.active_bytes();
        let mut plan = Plan { into_active: 0, active_bytes: 0, new: Vec::new() };
        let mut room_bytes = active_bytes.map_or(0, |bytes| self.options.segment_bytes.saturating_sub(bytes));
        for (at, frame) in frames.iter().enumerate() {
            let frame_bytes = frame.bytes.len() as u64;
            if frame_bytes > room_bytes {
                room_bytes = self.options.segment_bytes - segment::HEADER_BYTES as u64;
                plan.new.push(at..at);
            }
            room_bytes -= frame_bytes;
            match plan.new.last_mut() {
                Some(range) => range.end = at + 1,
                None => {
                    plan.into_active = at + 1;
                    plan.active_bytes += frame_bytes;
                }
            }
        }
        // The active segment stays, so that a failed append can be undone.
        let segments = plan.new.len() as u64;
        let segments_max = self.options.bytes_max / self.options.segment_bytes - 1;
        if segments > segments_max {
            let size_bytes = frames.iter().map(|frame| frame.bytes.len() as u64).sum();
            return Err(RingError::AppendTooLarge { size_bytes, segments, segments_max });
        }
        Ok(plan)
    }

    /// Removes what a failed append left on disk.
    fn clean_up(&mut self) -> Result<(), RingError> {
        while let Some(path) = self.leftovers.last() {
            files::remove(path).map_err(|source| io_error(path, source))?;
            self.leftovers.pop();
        }
        let bytes = self.active_bytes();
        if let (Some(active), Some(bytes)) =
            (self.active.as_mut().filter(|active| active.has_leftover), bytes)
        {
            active.file.set_len(bytes).map_err(|source| io_error(&active.path, source))?;
            active.has_leftover = false;
            active.is_dirty = true;
        }
        Ok(())
    }

    fn leave_behind(&mut self, frames: &[Frame], plan: &Plan) {
        if let Some(active) = self.active.as_mut().filter(|_| plan.into_active > 0) {
            active.has_leftover = true;
        }
        self.leftovers
            .extend(plan.new.iter().map(|range| segment::path(&self.dir, frames[range.start].first_seq)));
    }

    /// How much of the active segment counts.
    pub(super) fn active_bytes(&self) -> Option<u64> {
        let bytes = self.view.index().segments.back().map(|segment| segment.bytes);
        bytes.filter(|_| self.active.is_some())
    }

    /// Takes back that the ring was closed.
    fn note_open(&mut self) -> Result<(), RingError> {
        if !self.view.index().closed_cleanly {
            return Ok(());
        }
        let checkpoint = Checkpoint { closed_cleanly: false, ..self.remembered() };
        self.checkpoint.write(&checkpoint)?;
        self.view.index().closed_cleanly = false;
        Ok(())
    }

    /// What a checkpoint may say now.
    pub(super) fn remembered(&self) -> Checkpoint {
        Checkpoint::of(self.epoch(), &self.view.index())
    }

    /// Writes the frames, and returns the segments that were begun with their files. Nothing of it counts yet.
    fn write(&mut self, frames: &[Frame], plan: &Plan) -> Result<Vec<(Segment, File)>, RingError> {
        let committed = self.active_bytes();
        if let (Some(active), Some(committed)) = (&mut self.active, committed) {
            let mut offset = committed;
            for frame in &frames[..plan.into_active] {
                active.is_dirty = true;
                files::write_at(&mut active.file, offset, &frame.bytes)
                    .map_err(|source| io_error(&active.path, source))?;
                offset += frame.bytes.len() as u64;
            }
        }
        if !plan.new.is_empty() {
            self.sync_active()?;
        }
        let mut started = Vec::new();
        for range in &plan.new {
            let frames = &frames[range.clone()];
            let first_seq = frames[0].first_seq;
            let times = frames.iter().map(|frame| frame.times).reduce(Times::and);
            let created = frames[0].first_recorded;
            let header = SegmentHeader { epoch: self.epoch(), first_seq, created };
            let mut bytes = header.encode().to_vec();
            frames.iter().for_each(|frame| bytes.extend_from_slice(&frame.bytes));
            let path = segment::path(&self.dir, first_seq);
            if let Some((segment, file)) = started.last() {
                let segment: &Segment = segment;
                files::sync(file).map_err(|source| io_error(&segment.path, source))?;
            }
            let file = files::create_whole(&path, &bytes).map_err(|source| io_error(&path, source))?;
            self.names_are_dirty = true;
            started.push((
                Segment { first_seq, path, bytes: bytes.len() as u64, created: Some(created), times },
                file,
            ));
        }
        Ok(started)
    }

    /// What was written counts from here on.
    fn commit(&mut self, records: &[Record], frames: &[Frame], plan: &Plan, started: Vec<(Segment, File)>) {
        let mut index = self.view.index();
        if let (Some(newest), true) = (index.segments.back_mut(), plan.into_active > 0) {
            let added = frames[..plan.into_active].iter().map(|frame| frame.times).reduce(Times::and);
            let had_records = newest.bytes > segment::HEADER_BYTES as u64;
            newest.bytes += plan.active_bytes;
            newest.times = match (newest.times, added) {
                (Some(times), Some(added)) => Some(times.and(added)),
                (None, added) if !had_records => added,
                (times, _) => times,
            };
        }
        let recorded_max = records.iter().map(|record| record.recorded).max().unwrap_or_default();
        index.recorded_max = index.recorded_max.max(recorded_max);
        index.next_seq = Seq(index.next_seq.0 + records.len() as u64);
        if let Some((first, _)) = started.first() {
            // The segment before it was synced, and its name.
            index.durable_next_seq = first.first_seq;
        }
        for (segment, file) in started {
            self.active = Some(Active { is_dirty: true, ..Active::new(file, segment.path.clone()) });
            index.segments.push_back(segment);
        }
    }

    /// Makes the active segment safe, and the names of all.
    fn sync_active(&mut self) -> Result<(), RingError> {
        if let Some(active) = &mut self.active {
            active.sync()?;
        }
        if self.names_are_dirty {
            files::sync_directory(&self.dir).map_err(|source| io_error(&self.dir, source))?;
            self.names_are_dirty = false;
        }
        Ok(())
    }

    fn sync_as(&mut self, recorded_until: Timestamp, closed_cleanly: bool) -> Result<(), RingError> {
        self.clean_up()?;
        self.sync_active()?;
        {
            let mut index = self.view.index();
            index.durable_next_seq = index.next_seq;
        }
        let recorded_until = Some(recorded_until);
        // A write that fails may still have been done: whatever is appended next then takes it back.
        self.view.index().closed_cleanly |= closed_cleanly;
        self.checkpoint.note(&Checkpoint { recorded_until, closed_cleanly, ..self.remembered() })?;
        let mut index = self.view.index();
        index.recorded_until = recorded_until;
        index.closed_cleanly = closed_cleanly;
        Ok(())
    }
}

impl Active {
    fn new(file: File, path: PathBuf) -> Self {
        Self { file, path, is_dirty: false, has_leftover: false }
    }

    fn sync(&mut self) -> Result<(), RingError> {
        if self.is_dirty {
            files::sync(&self.file).map_err(|source| io_error(&self.path, source))?;
            self.is_dirty = false;
        }
        Ok(())
    }
}

impl Checkpoint {
    /// What `index` says.
    fn of(epoch: Epoch, index: &Index) -> Self {
        Self {
            epoch,
            next_seq: index.durable_next_seq,
            acknowledged: index.acknowledged,
            recorded_until: index.recorded_until,
            closed_cleanly: index.closed_cleanly,
            evicted: index.evicted,
            boot: index.boot,
        }
    }
}
