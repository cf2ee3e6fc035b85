//! Writing: appends, evictions, acknowledgements, and what makes them survive.

use std::{
    collections::VecDeque,
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use alibi_proto::{
    chain::Head,
    frame::Packer,
    id::{Epoch, HostId, Seq},
    time::{Moment, Timestamp},
};

use super::{
    Appended, Labeller, Options, Record, Recovery, RingError,
    checkpoint::{self, Checkpoint, CheckpointFile},
    files::{self, SetAside},
    frame::{self, Written},
    io_error,
    recovery::{self, Survey},
    seal::Seal,
    segment::{self, SegmentHeader},
    summary,
    view::{Index, Segment, View},
};

/// The name of the file that is to become the next segment.
const SPARE: &str = "next.segment";

/// The single writer of a ring.
#[derive(Debug)]
pub struct Ring {
    dir: PathBuf,
    host: HostId,
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
    /// What the next segment becomes.
    pub(super) spare: Option<SetAside>,
    packer: Packer,
}

/// The newest segment, open for writing. How much of it counts, the index says.
#[derive(Debug)]
pub(super) struct Active {
    file: File,
    path: PathBuf,
    /// What its seal will say, of what counts.
    seal: Seal,
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

/// A segment that was begun, and what its seal will say.
struct Started {
    segment: Segment,
    file: File,
    seal: Seal,
}

impl Ring {
    /// Opens the ring of `host` in `dir`, which nobody else may have open for writing; makes one, with `new_epoch`, if
    /// there is none. From then on, it counts as not closed cleanly. What the records can be found by that it does not
    /// know any more, `labeller` tells.
    ///
    /// # Errors
    /// When the limits make no sense, the directory cannot be used, was written by a newer version, has files that are not
    /// a ring's own, or holds the ring of another host.
    pub fn open(
        dir: &Path,
        options: Options,
        host: HostId,
        new_epoch: Epoch,
        labeller: Labeller,
    ) -> Result<(Self, Recovery), RingError> {
        options.check()?;
        let Some(survey) = recovery::survey(dir, Some((&options, labeller)))? else {
            let ring = Self::create(dir, options, host, new_epoch)?;
            return Ok((ring, Recovery { is_new: true, ..Recovery::default() }));
        };
        if survey.host.is_some_and(|other| other != host) {
            return Err(RingError::OtherHost { dir: dir.to_owned() });
        }
        let recovery = Recovery {
            cut_bytes: survey.cut_bytes,
            lost_at_end: survey.lost_at_end,
            checkpoint_lost: survey.generation.is_none(),
            ..survey.index.recovery()
        };
        Ok((Self::recover(dir, options, host, survey)?, recovery))
    }

    fn create(dir: &Path, options: Options, host: HostId, epoch: Epoch) -> Result<Self, RingError> {
        alibi_proto::data_directory::create_private(dir).map_err(|source| io_error(dir, source))?;
        let head = Head::of_nothing(host, epoch);
        let index = Index {
            segments: VecDeque::new(),
            next_seq: Seq::FIRST,
            head,
            durable_next_seq: Seq::FIRST,
            durable_head: head,
            acknowledged: Seq(0),
            evicted: None,
            recorded_until: None,
            recorded_at: None,
            recorded_max: Timestamp::ZERO,
            closed_cleanly: false,
            boot: None,
        };
        let survey = Survey {
            epoch,
            host: Some(host),
            index,
            generation: None,
            newest_goes_on: false,
            newest_seal: None,
            torn: Vec::new(),
            unfinished: Vec::new(),
            cut_bytes: 0,
            lost_at_end: 0,
        };
        Self::recover(dir, options, host, survey)
    }

    fn recover(dir: &Path, options: Options, host: HostId, survey: Survey) -> Result<Self, RingError> {
        let mut index = survey.index;
        for path in survey.torn.iter().chain(&survey.unfinished) {
            files::remove(path).map_err(|source| io_error(path, source))?;
        }
        let mut active = None;
        if let Some(newest) = index.segments.back() {
            // What a killed program wrote may not be safe yet, and the checkpoint is to say that it is.
            let file = files::open_to_write(&newest.path)
                .and_then(|file| file.set_len(newest.file_bytes).map(|()| file))
                .and_then(|file| files::sync(&file).map(|()| file))
                .map_err(|source| io_error(&newest.path, source))?;
            let seal = survey.newest_seal.filter(|_| survey.newest_goes_on);
            active = seal.map(|seal| Active::new(file, newest.path.clone(), seal));
        }
        if let Some(active) = &active {
            // Where it cannot be had, the appends that need it will tell.
            let _ = files::reserve(&active.file, options.segment_bytes);
        }
        index.closed_cleanly = false;
        // The name of the newest segment must be safe before the checkpoint says that its records are.
        files::sync_directory(dir).map_err(|source| io_error(dir, source))?;
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
            host,
            options,
            view: View::new(survey.epoch, index),
            active,
            checkpoint,
            names_are_dirty: false,
            leftovers: Vec::new(),
            evicted_unreported: 0,
            spare: None,
            packer: Packer::default(),
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
        let payload_bytes_max = self.options.payload_bytes_max();
        let head = self.view.index().head;
        let frames = frame::encode(self.epoch(), head, records, payload_bytes_max, &mut self.packer);
        let plan = self.plan(&frames)?;
        self.clean_up()?;
        self.note_open()?;
        self.make_room(&plan)?;
        let started = loop {
            let error = match self.write(records, &frames, &plan) {
                Ok(started) => break started,
                Err(error) => error,
            };
            self.leave_behind(&frames, &plan);
            // What could not be cleaned up now is before the next append.
            let is_clean = self.clean_up().is_ok();
            // A full disk is no reason to lose events as long as there are others that nobody needs any more, or room that
            // was set aside for what comes later.
            if !(is_clean && error.is_full() && (self.evict_acknowledged()? || self.give_spare_back())) {
                return Err(error);
            }
        };
        self.commit(records, &frames, &plan, started);
        Ok(Appended {
            started_segment: !plan.new.is_empty(),
            evicted_unacknowledged: std::mem::take(&mut self.evicted_unreported),
        })
    }

    /// Sets room aside on the disk for the segment that comes after the newest, unless that is done already: so a full
    /// disk is noticed a whole segment before it is needed. A ring that has used up its budget has no need of it: the oldest
    /// segment makes the room.
    ///
    /// # Errors
    /// When there is no room, or the system cannot. Appends go on as long as there is room for them.
    pub fn prepare(&mut self) -> Result<(), RingError> {
        if self.spare.is_some() || !self.make_room_for_spare()? {
            return Ok(());
        }
        let path = self.dir.join(SPARE);
        let spare = loop {
            match files::set_aside(&path, self.options.segment_bytes) {
                Ok(spare) => break spare,
                Err(source) => {
                    let error = io_error(&path, source);
                    if !(error.is_full() && self.evict_acknowledged()?) {
                        return Err(error);
                    }
                }
            }
        };
        self.spare = Some(spare);
        Ok(())
    }

    /// Names the boot of the host in which it is written from here on, so that the next run knows whether it was a power
    /// cut that ended this one. It is on disk with the next [`Ring::sync`].
    pub fn begin_boot(&mut self, boot: u64) {
        self.view.index().boot = Some(boot);
    }

    /// Makes everything appended so far safe from a power cut, and notes that everything is recorded until then. `at` is an
    /// instant up to which it is, by both clocks.
    ///
    /// Where that is all there is to note, and less than [`Recovery::UNSAFE_MAX`] of it, the note is written and not waited
    /// for, since waiting is what an idle agent would spend most on: a kill does not undo it, and a power cut may. Then an
    /// earlier one counts, and no record is missing, as there was none.
    ///
    /// # Errors
    /// When the system cannot; what was safe before still is.
    pub fn sync(&mut self, recorded_until: Timestamp, at: Moment) -> Result<(), RingError> {
        self.sync_as(recorded_until, at, false)
    }

    /// [`Ring::sync`], and notes that recording ended in order. An append or sync after it takes that back.
    ///
    /// # Errors
    /// As [`Ring::sync`].
    pub fn mark_closed(&mut self, recorded_until: Timestamp, at: Moment) -> Result<(), RingError> {
        self.give_spare_back();
        self.sync_as(recorded_until, at, true)
    }

    /// Keeps what the writer sums up of all records before `next`, in place of what it kept before. Eviction leaves it alone.
    ///
    /// # Errors
    /// When it is too large, or cannot be written: then what was kept before stays.
    pub fn keep_summary(&mut self, next: Seq, sum: &[u8]) -> Result<(), RingError> {
        let (size_bytes, limit_bytes) = (sum.len(), summary::BYTES_MAX);
        if size_bytes > limit_bytes {
            return Err(RingError::SummaryTooLarge { size_bytes, limit_bytes });
        }
        self.names_are_dirty = true;
        summary::write(&self.dir, self.epoch(), next, sum)
    }

    /// What was kept last, and the first record that is not summed up in it; none if that cannot be had.
    ///
    /// # Errors
    /// When the file is not a summary, was written by a newer version, or cannot be read.
    pub fn summary(&self) -> Result<Option<(Seq, Vec<u8>)>, RingError> {
        summary::read(&self.dir, self.epoch(), self.next_seq())
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

    fn plan(&self, frames: &[Written]) -> Result<Plan, RingError> {
        let active_bytes = self.active_bytes();
        let mut plan = Plan { into_active: 0, active_bytes: 0, new: Vec::new() };
        // The seal has its room whatever comes.
        let frames_end = segment::HEADER_BYTES as u64 + self.options.frames_bytes_max();
        let mut room_bytes = active_bytes.map_or(0, |bytes| frames_end.saturating_sub(bytes));
        for (at, frame) in frames.iter().enumerate() {
            let frame_bytes = frame.bytes.len() as u64;
            if frame_bytes > room_bytes {
                room_bytes = self.options.frames_bytes_max();
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

    fn leave_behind(&mut self, frames: &[Written], plan: &Plan) {
        if let Some(active) = &mut self.active {
            active.has_leftover = true;
        }
        let first_seqs = plan.new.iter().map(|range| frames[range.start].header.first_seq);
        self.leftovers.extend(first_seqs.map(|first_seq| segment::path(&self.dir, first_seq)));
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
    fn write(
        &mut self,
        records: &[Record],
        frames: &[Written],
        plan: &Plan,
    ) -> Result<Vec<Started>, RingError> {
        let epoch = self.epoch();
        let committed = self.active_bytes();
        if let (Some(active), Some(committed)) = (&mut self.active, committed) {
            let mut bytes: Vec<u8> = Vec::new();
            frames[..plan.into_active].iter().for_each(|frame| bytes.extend_from_slice(&frame.bytes));
            if !plan.new.is_empty() {
                let mut seal = active.seal.clone();
                add(&mut seal, records, &frames[..plan.into_active]);
                bytes.extend(seal.encode(epoch));
            }
            active.is_dirty |= !bytes.is_empty();
            let mut written = files::write_at(&mut active.file, committed, &bytes);
            if !plan.new.is_empty() {
                // It ends here, and gives back the room that was set aside for more.
                written = written.and_then(|()| active.file.set_len(committed + bytes.len() as u64));
            }
            written.map_err(|source| io_error(&active.path, source))?;
        }
        if !plan.new.is_empty() {
            self.sync_active()?;
        }
        let mut started: Vec<Started> = Vec::new();
        let into_active = &frames[..plan.into_active];
        let (mut previous, mut before) = {
            let index = self.view.index();
            let head = into_active.last().map_or(index.head, |frame| frame.header.head);
            let recorded = into_active.iter().map(|frame| frame.header.times.recorded_to);
            (head, recorded.fold(index.recorded_max, Timestamp::max))
        };
        for (nth, range) in plan.new.iter().enumerate() {
            let frames = &frames[range.clone()];
            let first = &frames[0].header;
            let first_seq = first.first_seq;
            // What is missing before it was recorded by then.
            let created = if before == Timestamp::ZERO { first.times.recorded_from } else { before };
            before = frames.iter().map(|frame| frame.header.times.recorded_to).fold(before, Timestamp::max);
            let header = SegmentHeader { host: self.host, epoch, first_seq, created, previous };
            let mut bytes = header.encode().to_vec();
            frames.iter().for_each(|frame| bytes.extend_from_slice(&frame.bytes));
            let mut seal = Seal::begin(self.options.segment_bytes);
            add(&mut seal, records, frames);
            previous = seal.head;
            let (frames_end, times) = (bytes.len() as u64, Some(seal.times));
            if nth + 1 < plan.new.len() {
                bytes.extend(seal.encode(epoch));
            }
            if let Some(Started { segment, file, .. }) = started.last() {
                let whole = file.set_len(segment.file_bytes).and_then(|()| files::sync(file));
                whole.map_err(|source| io_error(&segment.path, source))?;
            }
            let path = segment::path(&self.dir, first_seq);
            let file = self.create_segment(&path, &bytes).map_err(|source| io_error(&path, source))?;
            self.names_are_dirty = true;
            let (created, file_bytes) = (Some(created), bytes.len() as u64);
            let segment = Segment { first_seq, path, bytes: frames_end, file_bytes, created, times };
            started.push(Started { segment, file, seal });
        }
        Ok(started)
    }

    /// From what was set aside, if something was; or else with what room there is.
    fn create_segment(&mut self, path: &Path, bytes: &[u8]) -> std::io::Result<File> {
        let aside = match self.spare.take() {
            Some(spare) => spare,
            None => {
                files::set_aside(path, self.options.segment_bytes).or_else(|_| files::set_aside(path, 0))?
            }
        };
        aside.become_whole(path, bytes)
    }

    /// Lets what comes now have the room of what comes next; whether there was any.
    fn give_spare_back(&mut self) -> bool {
        self.spare.take().inspect(SetAside::remove).is_some()
    }

    /// What was written counts from here on.
    fn commit(&mut self, records: &[Record], frames: &[Written], plan: &Plan, started: Vec<Started>) {
        let mut index = self.view.index();
        let is_sealed = !started.is_empty();
        if let (Some(newest), Some(active)) = (index.segments.back_mut(), &mut self.active) {
            add(&mut active.seal, records, &frames[..plan.into_active]);
            newest.bytes += plan.active_bytes;
            let seal_bytes = if is_sealed { active.seal.encode(self.view.epoch()).len() as u64 } else { 0 };
            newest.file_bytes = newest.bytes + seal_bytes;
            if active.seal.frames > 0 {
                newest.times = Some(active.seal.times);
            }
        }
        let recorded_max = records.iter().map(|record| record.recorded).max().unwrap_or_default();
        index.recorded_max = index.recorded_max.max(recorded_max);
        index.next_seq = Seq(index.next_seq.0 + records.len() as u64);
        if let Some(first) = started.first() {
            // The segment before it was synced, and its name.
            index.durable_next_seq = first.segment.first_seq;
            let before = frames[..plan.into_active].last();
            index.durable_head = before.map_or(index.head, |frame| frame.header.head);
        }
        index.head = frames.last().map_or(index.head, |frame| frame.header.head);
        for Started { segment, file, seal } in started {
            self.active = Some(Active { is_dirty: true, ..Active::new(file, segment.path.clone(), seal) });
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

    fn sync_as(
        &mut self,
        recorded_until: Timestamp,
        at: Moment,
        closed_cleanly: bool,
    ) -> Result<(), RingError> {
        self.clean_up()?;
        self.sync_active()?;
        {
            let mut index = self.view.index();
            index.durable_next_seq = index.next_seq;
            index.durable_head = index.head;
        }
        let (recorded_until, recorded_at) = (Some(recorded_until), Some(at));
        // A write that fails may still have been done: whatever is appended next then takes it back.
        self.view.index().closed_cleanly |= closed_cleanly;
        self.checkpoint.note(&Checkpoint {
            recorded_until,
            recorded_at,
            closed_cleanly,
            ..self.remembered()
        })?;
        let mut index = self.view.index();
        index.recorded_until = recorded_until;
        index.recorded_at = recorded_at;
        index.closed_cleanly = closed_cleanly;
        Ok(())
    }
}

/// What the seal of a segment says once these frames are in it.
fn add(seal: &mut Seal, records: &[Record], frames: &[Written]) {
    let Some(first_seq) = records.first().map(|record| record.seq) else { return };
    for Written { header, .. } in frames {
        let from = (header.first_seq.0 - first_seq.0) as usize;
        let records = &records[from..from + header.count as usize];
        seal.add(header, records.iter().map(|record| &record.labels));
    }
}

impl Active {
    fn new(file: File, path: PathBuf, seal: Seal) -> Self {
        Self { file, path, seal, is_dirty: false, has_leftover: false }
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
            recorded_at: index.recorded_at,
            closed_cleanly: index.closed_cleanly,
            evicted: index.evicted,
            boot: index.boot,
            head: index.durable_head,
        }
    }
}
