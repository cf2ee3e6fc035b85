//! What is kept of a host's clocks: bounded, and every merging widens.

use super::{
    BootBegin, ClockReading, Difference, HostClock, Kind, Reading, Readings, Stretch, TOLD_WITHIN, boot_time,
    shifted,
};
use crate::{
    id::{Epoch, Seq},
    time::{Moment, Timestamp},
};

/// Pieces and boots that are kept of one host. Few under test, so that they are merged.
const PIECES_MAX: usize = if cfg!(test) { 6 } else { 64 };
const BOOTS_MAX: usize = if cfg!(test) { 4 } else { 32 };
/// So many settings are remembered of a clock that a host shares with its collector.
const SHARED_MAX: usize = 64;

/// A wall clock that moves no more than this against the boot clock is being steered, and its piece is widened. One that
/// moves further begins another.
const STEADY_WIDTH_MAX_NS: u64 = 50_000_000;

/// A clock that moves on and on is written now and then, and not each time: by so much before it does.
const ROOM_NS: u64 = 2_000_000;

/// That a piece lasts is worth writing so often: what is older is only less certain.
const LASTS_NS: u64 = 10_000_000_000;

/// A host's clocks, as its stream and the readings tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClockHistory {
    /// The ring that `begins` is of.
    pub epoch: Epoch,
    /// Where in it each boot begins, as the host last told.
    pub begins: Vec<BootBegin>,
    /// The boots that were measured, the oldest first.
    pub boots: Vec<BootReadings>,
    /// In the order of the stream.
    pub pieces: Vec<Piece>,
}

/// What was read in a boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootReadings {
    /// The boot.
    pub boot_id: String,
    /// The boot is the collector's own, and where the wall clock less the boot clock was about this, both had one clock. One
    /// that was set may have been set for both, or not.
    pub shared: Vec<i64>,
    /// Of its boot clock.
    pub readings: Readings,
}

/// A stretch of the stream in which the wall clock was not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// In which boot; none if that is not known.
    pub boot_id: Option<String>,
    /// The first that is known of it. Of no known boot, the earliest and the latest wall time.
    pub first: Moment,
    /// The last.
    pub last: Moment,
    /// The wall clock less the boot clock.
    pub wall: Difference,
}

impl BootReadings {
    /// Whether both had one clock, when the wall clock less the boot clock was this.
    fn shares(&self, wall: Difference) -> bool {
        self.shared.iter().any(|shared| wall.widened(STEADY_WIDTH_MAX_NS).contains(*shared))
    }
}

impl Difference {
    /// A little wider, on the sides on which it is wider than the other.
    fn with_room_beyond(self, other: Self) -> Self {
        let roomy = self.widened(ROOM_NS);
        let least = if self.least() < other.least() { roomy.least() } else { self.least() };
        let most = if self.most() > other.most() { roomy.most() } else { self.most() };
        Self::between(least, most)
    }
}

/// What the wall clock showed at a moment, if it was so much later than the boot clock.
fn shown(moment: Moment, wall: i64) -> Timestamp {
    shifted(Timestamp::from_nanos(moment.boot_ns), wall)
}

impl Piece {
    /// The earliest and the latest that the wall clock may have shown in it, between these pieces.
    fn walls(&self, before: Option<&Self>, after: Option<&Self>) -> (Timestamp, Timestamp) {
        let (first, last) = (self.first, self.last);
        if self.boot_id.is_none() {
            return (first.wall, last.wall);
        }
        // What was stamped between two pieces may have been so by either.
        let of_this_boot = |piece: &&Self| piece.boot_id == self.boot_id;
        let since = before.filter(of_this_boot).map_or(first, |before| before.last);
        let until = after.filter(of_this_boot).map_or(last, |after| after.first);
        (shown(since, self.wall.least()).min(first.wall), shown(until, self.wall.most()).max(last.wall))
    }
}

impl ClockHistory {
    /// Takes in a reading.
    pub fn measured(&mut self, reading: &ClockReading) {
        self.epoch = reading.epoch;
        if let Some(begins) = &reading.begins {
            self.begins = begins.clone();
        }
        let known = self.boots.iter().position(|boot| boot.boot_id == reading.boot_id);
        let index = known.unwrap_or_else(|| {
            let boot_id = reading.boot_id.clone();
            self.boots.push(BootReadings { boot_id, shared: Vec::new(), readings: Readings::default() });
            self.boots.len() - 1
        });
        let boot = &mut self.boots[index];
        boot.shared.extend(reading.shared.filter(|wall| !boot.shares(Difference::exact(*wall))));
        boot.shared.drain(..boot.shared.len().saturating_sub(SHARED_MAX));
        boot.readings.add(Reading {
            from_boot_ns: reading.boot_ns,
            to_boot_ns: reading.boot_ns,
            difference: reading.difference,
            measured: reading.measured,
        });
        if self.boots.len() > BOOTS_MAX {
            // What was recorded in it is of no known boot from now on.
            self.boots.remove(0);
        }
    }

    /// Takes in the clocks as an event was recorded, or, without a seq, as the host told that there are no more. In the
    /// order of the stream. Whether there is something to keep.
    pub fn saw(&mut self, epoch: Epoch, seq: Option<Seq>, moment: Moment) -> bool {
        let boot_id = self.boot_of(epoch, seq);
        let wall = Difference::of(moment);
        if let Some(last) = self.pieces.last_mut().filter(|last| last.boot_id == boot_id) {
            let merged = last.wall.or(wall);
            if boot_id.is_none() {
                let before = last.clone();
                // What was stamped between the two may have been so by either.
                let earliest = shown(last.last, merged.least()).min(moment.wall);
                let latest = shown(moment, merged.most()).max(moment.wall);
                last.first.wall = last.first.wall.min(earliest);
                last.last = Moment { wall: last.last.wall.max(latest), ..moment };
                last.wall = merged;
                return *last != before;
            }
            if merged.width() <= STEADY_WIDTH_MAX_NS {
                let merged = if merged == last.wall { merged } else { merged.with_room_beyond(last.wall) };
                let lasts = moment.boot_ns.saturating_sub(last.last.boot_ns);
                let changed = merged != last.wall || lasts >= LASTS_NS;
                if lasts > 0 {
                    last.last = moment;
                }
                last.wall = merged;
                return changed;
            }
        }
        self.pieces.push(Piece { boot_id, first: moment, last: moment, wall });
        while self.pieces.len() > PIECES_MAX {
            self.merge();
        }
        true
    }

    /// The wall clock less the boot clock, in the boot that the host is in; none if it has told nothing in it yet.
    pub fn steady(&self) -> Option<Difference> {
        let boot_id = self.boot_of(self.epoch, None)?;
        self.pieces.last().filter(|last| last.boot_id.as_ref() == Some(&boot_id)).map(|last| last.wall)
    }

    /// The boot in which an event was recorded.
    fn boot_of(&self, epoch: Epoch, seq: Option<Seq>) -> Option<String> {
        let begun = |begin: &&BootBegin| seq.is_none_or(|seq| begin.first <= seq);
        let begin = self.begins.iter().rev().find(begun).filter(|_| epoch == self.epoch)?;
        Some(begin.boot_id.clone()).filter(|id| !id.is_empty())
    }

    /// Makes one of two neighbours: of one boot, those of which the result is narrowest; or else the two oldest, of which
    /// nothing is known then.
    fn merge(&mut self) {
        let pairs = self.pieces.iter().zip(&self.pieces[1..]).enumerate();
        let of_one_boot = pairs.filter(|(_, (one, other))| one.boot_id == other.boot_id);
        let narrowest = of_one_boot.min_by_key(|(_, (one, other))| one.wall.or(other.wall).width());
        let (index, known) = narrowest.map_or((0, false), |(index, _)| (index, true));
        let other = self.pieces.remove(index + 1);
        let before = index.checked_sub(1).map(|before| self.pieces[before].clone());
        let after = self.pieces.get(index + 1).cloned();
        let one = &mut self.pieces[index];
        if known && one.boot_id.is_some() {
            one.last = other.last;
        } else {
            let walls = one.walls(before.as_ref(), Some(&other));
            let others = other.walls(Some(one), after.as_ref());
            one.boot_id = None;
            one.first.wall = walls.0.min(others.0);
            one.last = Moment { wall: walls.1.max(others.1), ..other.last };
        }
        one.wall = one.wall.or(other.wall);
    }

    /// What follows from it at `now`, by the collector's clock.
    ///
    /// Where one piece goes over into the next is not known: somewhere between the last that is known of the one and the
    /// first of the other. So both reach over all of that, and so does the time in which nobody recorded. Then a window in it
    /// is asked by both clocks, and by all that lies between, where the host says that it did not record.
    pub fn clock(&self, now: Timestamp) -> HostClock {
        let kinds: Vec<Kind> = (0..self.pieces.len()).map(|index| self.kind(index)).collect();
        let when = |index: usize, moment: Moment| collector_time(&kinds[index], moment);
        let stretch = |(index, piece): (usize, &Piece)| {
            let count = kinds.len();
            let earliest = |index: usize| when(index, self.pieces[index].last).map(|(earliest, _)| earliest);
            let latest = |index: usize| when(index, self.pieces[index].first).map(|(_, latest)| latest);
            let (since, until, is_open) = match when(index, piece.first).zip(when(index, piece.last)) {
                Some((first, last)) => {
                    // Before the stream began nothing was recorded, by whichever clock.
                    let since = match index.checked_sub(1) {
                        Some(before) => earliest(before).unwrap_or(first.0).min(first.0),
                        None => Timestamp::ZERO,
                    };
                    match index + 1 < count {
                        true => (since, latest(index + 1).unwrap_or(last.1).max(last.1), false),
                        // Nothing was recorded yet of what is to come.
                        false => (since, last.1, true),
                    }
                }
                None => {
                    let since = (0..index).rev().find_map(earliest).unwrap_or(Timestamp::ZERO);
                    let until = (index + 1..count).find_map(latest);
                    (since, until.unwrap_or(Timestamp::ZERO), until.is_none())
                }
            };
            let since = since.saturating_sub(TOLD_WITHIN);
            Stretch { since, until, is_open, kind: kinds[index].clone() }
        };
        let measured = self.boots.iter().flat_map(|boot| boot.readings.all()).map(|reading| reading.measured);
        HostClock {
            stretches: self.pieces.iter().enumerate().map(stretch).collect(),
            measured: measured.max(),
            is_own: false,
            now,
        }
    }

    fn kind(&self, index: usize) -> Kind {
        let piece = &self.pieces[index];
        let measured = piece.boot_id.as_ref().and_then(|id| {
            let boot = self.boots.iter().find(|boot| boot.boot_id == *id)?;
            Some((boot, boot.readings.hull()?))
        });
        match measured {
            Some((boot, _)) if boot.shares(piece.wall) => Kind::Shared,
            Some((boot, hull)) => Kind::Measured { wall: piece.wall, readings: boot.readings.clone(), hull },
            None => {
                let before = index.checked_sub(1).map(|before| &self.pieces[before]);
                let (from, to) = piece.walls(before, self.pieces.get(index + 1));
                Kind::Unmeasured { from, to }
            }
        }
    }
}

/// Between which instants by the collector's clock a moment was; none if its boot was not measured.
fn collector_time(kind: &Kind, moment: Moment) -> Option<(Timestamp, Timestamp)> {
    match kind {
        Kind::Shared => Some((moment.wall, moment.wall)),
        Kind::Measured { readings, .. } => {
            let since_boot = boot_time(moment.boot_ns);
            let difference = readings.over(since_boot, since_boot)?;
            let booted = Timestamp::from_nanos(moment.boot_ns);
            Some((shifted(booted, difference.least()), shifted(booted, difference.most())))
        }
        Kind::Unmeasured { .. } => None,
    }
}
