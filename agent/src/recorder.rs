//! The owner of pipeline and ring: one thread, fed by a bounded queue of reports.
//!
//! Whatever the disk says, recording goes on: events that cannot be written wait in memory within a bound, and what
//! goes beyond it is counted and said.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use alibi_proto::{
    clock::STEP_MIN,
    coverage::{CoverageChange, Facet, Summary},
    event::{Event, EventKind},
    host::UserPresence,
    id::Seq,
    time::{Moment, Timestamp},
    wire,
};
use prost::Message as _;
use tokio::sync::watch;

use crate::{
    capture::Report,
    enrich::redaction::Redactions,
    labels,
    ledger::Ledger,
    pipeline::Pipeline,
    ring::{Labels, Read, Reader, Record, Ring, RingError, Selection},
};

/// Reports that may wait for the recorder; a source that is faster waits itself.
pub const REPORTS_QUEUED_MAX: usize = 64;
/// Events that wait for others to be written with them: about as many as a frame has.
const GATHERED_EVENTS_MAX: usize = 1_024;
/// Events that may wait for a disk that takes none. Few under test, so that the bound is met.
const PENDING_EVENTS_MAX: usize = if cfg!(test) { 16 } else { 100_000 };
/// What a power cut may cost, unless something else is asked for: events are safe on disk at the latest after this. A kill
/// costs none. (That nothing happened is known a little less well, see [`Ring::sync`].)
pub const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// While something happens all the time, events wait for a part of that time for others to be made safe with them. One that
/// comes alone does not.
const SYNC_GATHER_PART: u32 = 10;
/// How long the recorder waits for a report before it says that there was none.
const TURN: Duration = Duration::from_secs(1);
/// Between two warnings of the same thing.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);
/// Between two tries to set room aside on a disk that has none.
const PREPARE_INTERVAL: Duration = Duration::from_secs(1);
const INSTANT: Duration = Duration::from_nanos(1);
/// Users that a description lists.
const USERS_MAX: usize = 256;

/// How far the recording is safe on disk; published after each sync. Nothing beyond it may leave the host: after a power
/// cut, the numbers of what was not safe are given again.
///
/// The watermark of a time in which nothing was recorded is published before it is safe itself, since nothing that it says
/// can turn out false. Every event that it vouches for is safe, so no number is given again, and that there were no others
/// stays true whatever is lost. What a power cut changes is that the next run knows an older time, and says that nothing
/// is recorded from then on: that takes back a proof and asserts none (a [`Timeline`](alibi_proto::coverage::Timeline)
/// only ever gets worse). A suspend or a clock that was set is an event, so it is waited for. A clock that is behind after
/// the power cut makes that time happen twice: the next run says so of all that may have been told
/// ([`PreviousRun::Ended`](crate::ledger::PreviousRun::Ended)).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Progress {
    /// All events before this one are in the ring.
    pub next_seq: Seq,
    /// Everything before this is in the ring.
    pub watermark: Option<Timestamp>,
    /// When the source last looked at the clock.
    pub looked: Moment,
    /// The same, whether the disk has taken what it told or not: for whoever watches that the recording goes on.
    pub heard: Moment,
    /// Users with processes.
    pub users: Arc<[UserPresence]>,
    /// How well each facet is recorded now, as the source said last.
    pub grades: Arc<[CoverageChange]>,
    /// How many secrets were redacted since the agent was started.
    pub redactions: Redactions,
    /// Why the disk takes nothing, if it does not.
    pub trouble: Option<Arc<str>>,
}

impl Progress {
    /// Up to when everything is in the ring, of all that the clock has shown until `now`. It may have been set back since the
    /// source last looked, and shown times again of which nothing is recorded yet.
    pub fn known_until(&self, now: Moment) -> Option<Timestamp> {
        let passed = Duration::from_nanos(now.boot_ns.saturating_sub(self.looked.boot_ns));
        let expected = self.looked.wall.saturating_add(passed);
        let was_set_back = expected.since(now.wall) >= STEP_MIN;
        self.watermark
            .map(|until| if was_set_back { until.min(now.wall.saturating_sub(passed)) } else { until })
    }
}

/// The highest event that a collector has acknowledged; shared with the server.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged(Arc<AtomicU64>);

impl Acknowledged {
    /// A collector has stored everything up to `seq`.
    pub fn up_to(&self, seq: Seq) {
        self.0.fetch_max(seq.0, Ordering::Relaxed);
    }

    /// The highest so far; 0 if there is none.
    pub fn seq(&self) -> Seq {
        Seq(self.0.load(Ordering::Relaxed))
    }
}

/// The recorder. [`Recorder::run`] drives it by the clock; what it does at each step is for anyone to call.
#[derive(Debug)]
pub struct Recorder {
    pipeline: Pipeline,
    ring: Ring,
    /// Events that are not in the ring yet.
    pending: Vec<Record>,
    /// Events that were let go, and whose loss is not in the ring yet: what says so is first among those that wait.
    let_go: u64,
    acknowledged: Acknowledged,
    progress: watch::Sender<Progress>,
    trouble: Option<String>,
    /// No room could be set aside for what comes next, when that was last tried.
    unprepared: Option<Instant>,
    /// Something was seen since the users were last counted; an idle agent counts none.
    users_changed: bool,
    /// Up to here everything is recorded, as the next run must know if this one ends without a word.
    recorded_until: Timestamp,
    /// When something was last done; no source has looked before that.
    now: Moment,
    /// Events are safe on disk at the latest after this.
    sync_interval: Duration,
    /// No record so far speaks of this instant or a later one.
    recorded: Timestamp,
    /// A reader can begin at a new segment, and must find everything there that it needs.
    segment_started: bool,
    /// What was said of coverage is to be summed up on disk.
    summary_is_due: bool,
    /// How many events it took to say that last time, and how many came since. As many again must come before it is said
    /// again, so that saying it, which may itself begin segments, never makes up more than half of what is written.
    restated: usize,
    since_restated: usize,
    /// A later report than this must come, too.
    restated_after: Timestamp,
    /// Events overwritten that nobody has been warned of, and the last warning.
    overwritten: u64,
    warned: Option<Instant>,
}

impl Recorder {
    /// A recorder that writes what comes out of `pipeline` into `ring`. `recorded_until` is what the ring says of the
    /// run before.
    pub fn new(
        pipeline: Pipeline,
        ring: Ring,
        recorded_until: Option<Timestamp>,
        acknowledged: Acknowledged,
        progress: watch::Sender<Progress>,
    ) -> Self {
        let recorded = ring.view().latest();
        Self {
            pipeline,
            ring,
            recorded,
            pending: Vec::new(),
            let_go: 0,
            acknowledged,
            progress,
            trouble: None,
            unprepared: None,
            users_changed: true,
            recorded_until: recorded_until.unwrap_or_default(),
            now: Moment::default(),
            sync_interval: SYNC_INTERVAL,
            segment_started: false,
            summary_is_due: true,
            restated: 0,
            since_restated: 0,
            restated_after: Timestamp::ZERO,
            overwritten: 0,
            warned: None,
        }
    }

    /// The same, but a power cut may cost what was recorded in this time; zero makes each report safe before the next one
    /// is taken. What is not safe is told to nobody, so that what is told comes as much later.
    #[must_use]
    pub fn with_sync_interval(self, sync_interval: Duration) -> Self {
        Self { sync_interval, ..self }
    }

    /// Records until the source's end of `reports` is dropped; `why` tells why that was.
    ///
    /// # Errors
    /// When the last events could not be written.
    pub fn run(
        mut self,
        reports: &Receiver<Report>,
        now: fn() -> Moment,
        why: impl FnOnce() -> String,
    ) -> Result<(), RingError> {
        // What the run before this one left to say is said even if the source never reports.
        self.write(now());
        self.sync();
        let mut synced = Instant::now();
        loop {
            match reports.recv_timeout(TURN) {
                Ok(report) => self.gather(report, now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // Reports that come soon share one frame, which costs little more for many events than for few, and one sync,
            // which costs more than what it makes safe.
            let soon = synced + self.sync_interval / SYNC_GATHER_PART;
            let at_last = Instant::now() + self.sync_interval;
            while Instant::now() < at_last
                && let Ok(report) = reports.recv_timeout(soon.saturating_duration_since(Instant::now()))
            {
                self.gather(report, now());
            }
            self.write(now());
            self.sync();
            synced = Instant::now();
        }
        self.close(&why(), now())
    }

    /// Records what a source saw.
    pub fn take(&mut self, report: Report, now: Moment) {
        self.gather(report, now);
        self.write(now);
    }

    /// Takes what a source saw, to write it together with what comes soon.
    fn gather(&mut self, report: Report, now: Moment) {
        self.users_changed |= !report.observations.is_empty();
        self.pipeline.take(report, now);
        self.collect();
        if self.pending.len() >= GATHERED_EVENTS_MAX {
            self.write(now);
        }
    }

    /// What all that was said of coverage comes to, as far as it is safe.
    pub fn summary(&mut self) -> Summary {
        self.pipeline.ledger().summary()
    }

    /// Makes sure that a power cut costs nothing of what was recorded so far, and lets it be read.
    pub fn sync(&mut self) {
        // As long as events wait, not everything up to the watermark is in the ring.
        if self.pending.is_empty()
            && let Some(watermark) = self.pipeline.watermark()
        {
            self.recorded_until = self.recorded_until.max(watermark);
        }
        self.warn_of_overwriting();
        match self.ring.sync(self.recorded_until, self.looked()) {
            Ok(()) => {
                self.pipeline.ledger().written(self.ring.next_seq());
                if self.pending.is_empty() {
                    self.recovered();
                }
                self.publish();
                self.prepare();
                self.keep_summary();
            }
            Err(error) => self.failed(&error),
        }
    }

    /// Keeps what all that was said of coverage comes to, whenever a segment was begun, as one may have been evicted for it.
    fn keep_summary(&mut self) {
        if !std::mem::take(&mut self.summary_is_due) {
            return;
        }
        let summary = self.summary();
        let (next, bytes) = (summary.next, wire::CoverageSummary::from(summary).encode_to_vec());
        if let Err(error) = self.ring.keep_summary(next, &bytes) {
            // Nothing that is told depends on it; what was kept before stays, and it is tried again.
            self.summary_is_due = true;
            tracing::debug!(%error, "what was said of coverage could not be summed up on disk");
        }
    }

    /// Sets room aside for what comes, so that a full disk is known before it costs anything.
    fn prepare(&mut self) {
        if self.unprepared.is_some_and(|tried| tried.elapsed() < PREPARE_INTERVAL) {
            return;
        }
        match self.ring.prepare() {
            Ok(()) if self.unprepared.take().is_some() => {
                tracing::info!("there is room on the disk for what comes next again");
            }
            Ok(()) => {}
            Err(error) => {
                if self.unprepared.replace(Instant::now()).is_none() {
                    tracing::warn!(%error, "no room can be set aside on the disk for what comes next");
                }
            }
        }
    }

    /// Ends the recording, and says so in the ring.
    ///
    /// # Errors
    /// When the last events could not be written; the next run will find that this one ended without a word.
    pub fn close(mut self, why: &str, now: Moment) -> Result<(), RingError> {
        self.now = now;
        self.pipeline.stop(why, now);
        self.collect();
        self.append()?;
        self.recorded_until = self.recorded_until.max(self.pipeline.watermark().unwrap_or_default());
        self.pipeline.ledger().written(self.ring.next_seq());
        self.summary_is_due = true;
        self.keep_summary();
        self.ring.mark_closed(self.recorded_until, self.looked())?;
        self.publish();
        Ok(())
    }

    /// When the source last looked.
    fn looked(&self) -> Moment {
        self.pipeline.seen_until().unwrap_or(self.now)
    }

    fn write(&mut self, now: Moment) {
        self.now = now;
        self.collect();
        let mut appended = self.append();
        // Only now is it known whether a segment begins with what came just now.
        if appended.is_ok() && self.is_to_be_restated() {
            self.segment_started = false;
            self.pipeline.restate_since(self.readers_begin(), now);
            self.restated = self.collect();
            self.since_restated = 0;
            appended = self.append();
        }
        if let Err(error) = appended {
            self.failed(&error);
            self.keep_within_bound(&error, now);
        }
    }

    /// Whether everything is said anew now. A reader believes no life that is told of a time which may be missing, so it must
    /// be told of a later one than all that may be missing: all until a segment began. And again, where the clock was behind.
    fn is_to_be_restated(&mut self) -> bool {
        let Some(Moment { wall: seen_until, .. }) = self.pipeline.seen_until() else { return false };
        if seen_until.saturating_add(INSTANT) < self.recorded {
            self.segment_started = true;
            self.restated_after = self.recorded;
        }
        self.segment_started && self.since_restated >= self.restated && seen_until >= self.restated_after
    }

    /// Where a reader begins at the latest that believes what is said anew now. One that begins just with it misses what came
    /// last, and if that was at the same instant, what is said of that instant is in doubt.
    fn readers_begin(&self) -> Seq {
        let next = self.ring.next_seq();
        let is_later = self.pipeline.seen_until().is_some_and(|seen_until| seen_until.wall >= self.recorded);
        if is_later { next } else { Seq(next.0 - 1) }
    }

    /// Takes over what the pipeline has made; how many events.
    fn collect(&mut self) -> usize {
        let events = self.pipeline.events();
        let count = events.len();
        self.since_restated += count;
        let seen_until = self.pipeline.seen_until().unwrap_or_default().wall;
        for event in events {
            // Whoever misses records is told of the time before what comes after them was recorded. Nothing that they spoke
            // of may be at or after that, even where the clock was set back.
            self.recorded = self.recorded.max(seen_until).max(told_before(&event));
            self.pending.push(encode(event, self.recorded));
        }
        count
    }

    /// Appends what waits, piece by piece, as far as the ring takes it.
    fn append(&mut self) -> Result<(), RingError> {
        let mut written = 0;
        let appended = self.append_counting(&mut written);
        self.pending.drain(..written);
        if written > 0 {
            self.let_go = 0;
        }
        appended
    }

    fn append_counting(&mut self, written: &mut usize) -> Result<(), RingError> {
        let piece_bytes_max = self.ring.append_bytes_max();
        while *written < self.pending.len() {
            let waiting = &self.pending[*written..];
            let mut bytes = 0;
            let fits = |record: &&Record| {
                let first = bytes == 0;
                bytes += record.bytes.len();
                first || bytes <= piece_bytes_max
            };
            let piece = &waiting[..waiting.iter().take_while(fits).count()];
            // What is acknowledged may be overwritten without loss, so the ring must know before it makes room.
            let recorded = Seq(self.ring.next_seq().0 - 1);
            self.ring.acknowledge(self.acknowledged.seq().min(recorded))?;
            let appended = self.ring.append(piece)?;
            *written += piece.len();
            if appended.started_segment {
                self.segment_started = true;
                self.summary_is_due = true;
                self.restated_after = self.recorded;
            }
            self.overwritten = self.overwritten.saturating_add(appended.evicted_unacknowledged);
        }
        Ok(())
    }

    /// Says now and then how much was overwritten; readers are told exactly, by a hole.
    fn warn_of_overwriting(&mut self) {
        if self.overwritten > 0 && self.warned.is_none_or(|warned| warned.elapsed() >= WARNING_INTERVAL) {
            let events = std::mem::take(&mut self.overwritten);
            self.warned = Some(Instant::now());
            tracing::warn!(events, "the ring was full: events were overwritten before a collector had them");
        }
    }

    fn failed(&mut self, error: &RingError) {
        let heard = self.looked();
        self.progress.send_modify(|progress| {
            progress.heard = heard;
            progress.trouble = Some(error.to_string().into());
        });
        if self.trouble.is_none() {
            tracing::error!(%error, "the ring cannot be written; events wait in memory");
        }
        self.trouble = Some(error.to_string());
    }

    fn recovered(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("the ring takes events again");
        }
    }

    /// Lets go of what waits if it is too much, and says so.
    fn keep_within_bound(&mut self, error: &RingError, now: Moment) {
        if self.pending.len() > PENDING_EVENTS_MAX {
            let lost = std::mem::take(&mut self.pending);
            let from = lost.iter().map(|record| record.speaks_from).min().unwrap_or(now.wall);
            // Later than now, where the clock was set back since.
            let to = lost.iter().map(|record| record.recorded).max().unwrap_or_default().max(now.wall);
            let reason = format!("the ring could not be written: {error}");
            // What said that others were lost before is said anew, of all of them.
            let said_before = if self.let_go > 0 { Facet::ALL.len() } else { 0 };
            let events = (lost.len() - said_before) as u64;
            self.let_go += events;
            self.pipeline.lose(self.let_go, (from, to), self.ring.next_seq(), &reason, now);
            // Until their loss is in the ring, nothing that comes after them may be vouched for.
            self.collect();
            tracing::error!(events, "events were lost");
        }
    }

    fn publish(&mut self) {
        let watermark = if self.pending.is_empty() { Some(self.pipeline.watermark()) } else { None };
        let users = std::mem::take(&mut self.users_changed).then(|| self.pipeline.users(USERS_MAX));
        let (next_seq, looked) = (self.ring.next_seq(), self.looked());
        let (pipeline, is_well) = (&self.pipeline, self.trouble.is_none());
        self.progress.send_modify(|progress| {
            progress.next_seq = next_seq;
            progress.watermark = watermark.unwrap_or(progress.watermark);
            progress.looked = looked;
            progress.heard = looked;
            if let Some(users) = users {
                progress.users = users.into();
            }
            if !progress.grades.iter().eq(pipeline.grades()) {
                progress.grades = pipeline.grades().cloned().collect();
            }
            progress.redactions = pipeline.redactions();
            if is_well {
                progress.trouble = None;
            }
        });
    }
}

/// Lets a ledger know what was said before this run: what was summed up of it, and what is in the ring since.
///
/// # Errors
/// When the ring cannot be read.
pub fn remember(ledger: &mut Ledger, ring: &Ring) -> Result<(), RingError> {
    let summary = ring.summary()?.and_then(|(next, bytes)| {
        let summary = wire::CoverageSummary::decode(bytes.as_slice()).ok()?.try_into().ok();
        summary.filter(|summary: &Summary| summary.next == next)
    });
    let summary = summary.unwrap_or_default();
    let from = summary.next;
    ledger.restore(summary);
    let kinds = labels::COVERAGE | labels::UNKNOWN;
    let selection = Selection { kinds, keys: None, times: Timestamp::ZERO..=Timestamp::MAX };
    let mut reader = Reader::selecting(ring.view(), from, selection);
    loop {
        match reader.next_records()? {
            Read::Records(_, columns) => {
                let records = columns.records();
                let events = records.iter().filter_map(|record| wire::Event::decode(record).ok());
                events
                    .filter_map(|event| Event::try_from(event).ok())
                    .for_each(|event| ledger.replay(&event));
            }
            Read::Hole(hole) => ledger.replay_hole(&hole),
            Read::CaughtUp => break,
        }
    }
    ledger.written(ring.next_seq());
    Ok(())
}

/// What a recorded event can be found by, from its bytes.
pub fn labels_of(record: &[u8]) -> Option<Labels> {
    let event = Event::try_from(wire::Event::decode(record).ok()?).ok()?;
    (event.kind != EventKind::Unrecognised).then(|| labels::of(&event))
}

/// The first instant that the event says nothing of. What is left open at the end of a stretch is told of again from that
/// instant on.
fn told_before(event: &Event) -> Timestamp {
    let after = |instant: Timestamp| instant.saturating_add(INSTANT);
    match &event.kind {
        EventKind::Flow(flow) if flow.leaves_open() => flow.last.max(after(flow.first)),
        EventKind::CoverageChanged(CoverageChange { from, to, .. }) => to.unwrap_or(*from).max(after(*from)),
        _ => after(event.speaks_until()),
    }
}

/// `event` as the ring keeps it.
fn encode(event: Event, recorded: Timestamp) -> Record {
    Record {
        seq: event.seq,
        speaks_from: event.speaks_from(),
        recorded,
        labels: labels::of(&event),
        bytes: wire::Event::from(event).encode_to_vec(),
    }
}

#[cfg(test)]
mod tests;
