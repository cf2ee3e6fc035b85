//! Clocks: how a host's stands to the collector's. Pure.
//!
//! A host has two clocks. The *wall* clock stamps all that it records, and anybody can set it. The *boot* clock counts
//! since boot, suspend included, and nobody can set it. The collector measures the boot clock against its own (a
//! [`ClockReading`], with a bound that holds however asymmetric the way is), so one measurement holds for a boot, but for
//! drift. How far the wall clock is from the boot clock is told by every event ([`Moment`]), so a wall clock that was wrong
//! while nobody was connected, and was set right before somebody was, is still known for what it was.
//!
//! [`ClockHistory`] keeps both; [`HostClock`] is what follows from it. What was never measured has no offset: neither a
//! match nor its absence proves anything then. Where several offsets can be meant, all of them are.
//!
//! What is taken for granted: a boot clock gains or loses no more than [`DRIFT_PPM_MAX`] between two readings (one that is
//! slewed faster, as chrony may for seconds, is caught by the readings before and after it), and is wrong by no more than
//! [`ASLEEP_ERROR`] after the host slept. And the collector's own clock is the time that is asked in.

use std::{sync::Arc, time::Duration};

use crate::{
    flow::RECORD_SPAN_MAX,
    id::{Epoch, Seq},
    time::{Moment, Timestamp},
    window::Window,
};

mod history;
mod readings;

pub use history::{BootReadings, ClockHistory, Piece};
pub use readings::{Reading, Readings};

/// What a boot clock may gain or lose against the collector's, in parts of a million: as much as kernels steer a clock by
/// (Linux: MAXFREQ), which is more than crystals are wrong by.
pub const DRIFT_PPM_MAX: u64 = 500;

/// A host that was not measured for longer may have slept meanwhile.
pub const ALONE_MAX: Duration = Duration::from_secs(60);

/// After a sleep, kernels set the boot clock by the hardware's, which counts seconds; they keep the error of many sleeps
/// from adding up.
pub const ASLEEP_ERROR: Duration = Duration::from_secs(2);

/// What happens before a clock is set may be stamped after it, and the other way round: a source tells what it saw within so
/// long.
pub const TOLD_WITHIN: Duration = Duration::from_secs(5);

/// A wall clock that moved so much more or less than the boot clock was set; less is its being steered.
pub const STEP_MIN: Duration = Duration::from_secs(1);

/// The difference between two clocks lies between `least` and `most`, both included, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    least: i64,
    most: i64,
}

impl Difference {
    /// None at all: one clock.
    pub const ZERO: Self = Self::exact(0);

    /// Known exactly.
    pub const fn exact(nanos: i64) -> Self {
        Self { least: nanos, most: nanos }
    }

    /// Between the two, in whichever order.
    pub fn between(one: i64, other: i64) -> Self {
        Self { least: one.min(other), most: one.max(other) }
    }

    /// The wall clock less the boot clock, as a moment has them.
    pub fn of(moment: Moment) -> Self {
        Self::exact(moment.wall.as_nanos_i64().saturating_sub(boot_time(moment.boot_ns)))
    }

    /// No less than this.
    pub const fn least(self) -> i64 {
        self.least
    }

    /// No more than this.
    pub const fn most(self) -> i64 {
        self.most
    }

    /// From the one to the other.
    pub const fn width(self) -> u64 {
        self.most.abs_diff(self.least)
    }

    /// The middle; 0 where it cannot be told from 0, so that two who have one clock speak of the same instants.
    pub fn offset(self) -> i64 {
        match self.contains(0) {
            true => 0,
            false => self.least.midpoint(self.most),
        }
    }

    /// How far the truth can be from [`Difference::offset`].
    pub fn bound(self) -> u64 {
        let offset = self.offset();
        offset.abs_diff(self.least).max(offset.abs_diff(self.most))
    }

    /// All that is no further than the bound from the offset.
    pub fn balanced(self) -> Self {
        Self::exact(self.offset()).widened(self.bound())
    }

    /// Whether it may be this.
    pub const fn contains(self, nanos: i64) -> bool {
        self.least <= nanos && nanos <= self.most
    }

    /// Whether both may be the same.
    pub fn meets(self, other: Self) -> bool {
        self.least <= other.most && other.least <= self.most
    }

    /// Whatever may be either.
    pub fn or(self, other: Self) -> Self {
        Self { least: self.least.min(other.least), most: self.most.max(other.most) }
    }

    /// Further on both sides.
    pub fn widened(self, by: u64) -> Self {
        Self { least: self.least.saturating_sub_unsigned(by), most: self.most.saturating_add_unsigned(by) }
    }

    /// This difference less the other: with clocks a, b and c, `a - b` less `c - b` is `a - c`.
    pub fn less(self, other: Self) -> Self {
        Self { least: self.least.saturating_sub(other.most), most: self.most.saturating_sub(other.least) }
    }
}

/// An instant so many nanoseconds later; earlier if they are negative.
pub fn shifted(instant: Timestamp, by: i64) -> Timestamp {
    Timestamp::from_nanos(instant.as_nanos().saturating_add_signed(by))
}

/// Nanoseconds since boot, as they are reckoned with.
fn boot_time(boot_ns: u64) -> i64 {
    i64::try_from(boot_ns).unwrap_or(i64::MAX)
}

/// Where in a ring a boot begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootBegin {
    /// The boot.
    pub boot_id: String,
    /// Events were recorded in it from here on, until the next boot begins.
    pub first: Seq,
}

/// One measurement of a host's boot clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockReading {
    /// The boot that the host is in.
    pub boot_id: String,
    /// When, by the host's boot clock.
    pub boot_ns: u64,
    /// The collector's clock less the host's boot clock.
    pub difference: Difference,
    /// When, by the collector's clock.
    pub measured: Timestamp,
    /// The host is the collector's own machine, and both have one clock: its wall clock less its boot clock, in nanoseconds.
    pub shared: Option<i64>,
    /// The ring.
    pub epoch: Epoch,
    /// Where in the ring the boots begin; none if that was not asked.
    pub begins: Option<Vec<BootBegin>>,
}

/// How a host's wall clock stands to the collector's, at every time.
#[derive(Clone, Debug, Default)]
pub struct HostClock {
    /// In the order of the stream. They overlap where it is not known when the one went over into the other.
    stretches: Arc<[Stretch]>,
    measured: Option<Timestamp>,
    is_own: bool,
    now: Timestamp,
}

/// A stretch of time, by the collector's clock.
#[derive(Clone, Debug)]
struct Stretch {
    since: Timestamp,
    until: Timestamp,
    /// It lasts, as far as is known: until now, if that is later.
    is_open: bool,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// One clock.
    Shared,
    /// The wall clock less the boot clock, the boot clock's readings, and what all of these come to.
    Measured { wall: Difference, readings: Readings, hull: Difference },
    /// From when until when the host recorded, by its own clock.
    Unmeasured { from: Timestamp, to: Timestamp },
}

/// How a host's clock stood during a window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockOver {
    /// The host's clock less the collector's, at every instant of the window that was measured; none if none was.
    pub difference: Option<Difference>,
    /// Stretches of the window, by the collector's clock, in which the host may have recorded by a clock that was not
    /// measured.
    pub unmeasured: Vec<Window>,
}

impl HostClock {
    /// Of a host that is asked itself: its own time is what is asked in.
    pub fn own() -> Self {
        let (since, until) = (Timestamp::ZERO, Timestamp::MAX);
        let always = Stretch { since, until, is_open: false, kind: Kind::Shared };
        Self { stretches: Arc::new([always]), measured: None, is_own: true, now: until }
    }

    /// The same at another time: what was known of it last, it may still be.
    pub fn as_of(&self, now: Timestamp) -> Self {
        Self { stretches: Arc::clone(&self.stretches), now, ..*self }
    }

    fn until(&self, stretch: &Stretch) -> Timestamp {
        let until = if stretch.is_open { stretch.until.max(self.now) } else { stretch.until };
        until.saturating_add(TOLD_WITHIN).max(stretch.since)
    }

    /// Whether it is that of a host that is asked itself.
    pub const fn is_own(&self) -> bool {
        self.is_own
    }

    /// When it was measured last, by the collector's clock.
    pub const fn measured(&self) -> Option<Timestamp> {
        self.measured
    }

    /// How it stood during the window, which is in the collector's time.
    pub fn over(&self, window: Window) -> ClockOver {
        let mut over = ClockOver { difference: None, unmeasured: Vec::new() };
        for stretch in self.stretches.iter() {
            let until = self.until(stretch);
            if stretch.since >= window.to() || until < window.from() {
                continue;
            }
            let (from, to) = (stretch.since.max(window.from()), until.min(window.to()));
            match stretch.offset(from, to) {
                Some(offset) => over.difference = Some(over.difference.map_or(offset, |one| one.or(offset))),
                // It touches the window, if only at an instant.
                None => over.unmeasured.extend(Window::new(
                    from,
                    to.max(from.saturating_add(Duration::from_nanos(1))).min(window.to()),
                )),
            }
        }
        if over.difference.is_none() && over.unmeasured.is_empty() {
            over.unmeasured.push(window);
        }
        over
    }

    /// Whether what the host's clock has in `[first, last]` was certainly alive in the window, which is in the collector's
    /// time.
    pub fn certainly_overlaps(&self, window: Window, first: Timestamp, last: Timestamp) -> bool {
        let began = self.when(first).map(|(_, latest)| latest);
        let ended = self.when(last).map(|(earliest, _)| earliest);
        began.is_some_and(|began| began < window.to()) && ended.is_some_and(|ended| ended >= window.from())
    }

    /// The latest that the host's clock may have shown until the collector's showed `instant`.
    pub fn latest(&self, instant: Timestamp) -> Timestamp {
        let reached = self.stretches.iter().filter(|stretch| stretch.since <= instant);
        let latest = reached.map(|stretch| match &stretch.kind {
            Kind::Unmeasured { to, .. } => to.saturating_add(TOLD_WITHIN),
            _ => {
                let at = self.until(stretch).min(instant);
                stretch.offset(at, at).map_or(Timestamp::MAX, |offset| shifted(at, offset.most()))
            }
        });
        latest.max().unwrap_or(Timestamp::MAX)
    }

    /// How it stands at `now`; none if it was not measured.
    pub fn at(&self, now: Timestamp) -> Option<Difference> {
        let newest = self.stretches.last()?;
        newest.offset(now, now)
    }

    /// The latest instant by the collector's clock up to which everything is known, if that is so up to `known_until` by the
    /// host's.
    pub fn known_until(&self, known_until: Timestamp) -> Timestamp {
        match self.stretches.last().and_then(|newest| self.when_in(newest, known_until)) {
            Some((earliest, _)) => earliest,
            None => known_until,
        }
    }

    /// Between which instants by the collector's clock the host's showed `instant`; none if it never did.
    pub fn when(&self, instant: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let meant = self.stretches.iter().filter_map(|stretch| {
            self.when_in(stretch, instant)
                .filter(|(earliest, latest)| *latest >= stretch.since && *earliest <= self.until(stretch))
        });
        meant.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)))
    }

    /// Between which instants by the collector's clock the host's showed `instant`, if it did so in this stretch.
    fn when_in(&self, stretch: &Stretch, instant: Timestamp) -> Option<(Timestamp, Timestamp)> {
        match &stretch.kind {
            Kind::Shared => Some((instant, instant)),
            Kind::Measured { wall, readings, .. } => {
                let since_boot = Difference::exact(instant.as_nanos_i64()).less(*wall);
                let offset = wall.less(readings.over(since_boot.least(), since_boot.most())?);
                let back = Difference::ZERO.less(offset);
                Some((shifted(instant, back.least()), shifted(instant, back.most())))
            }
            Kind::Unmeasured { from, to } => {
                let from = from.saturating_sub(RECORD_SPAN_MAX + TOLD_WITHIN);
                let to = to.saturating_add(TOLD_WITHIN);
                (from <= instant && instant <= to).then_some((stretch.since, self.until(stretch)))
            }
        }
    }
}

impl Stretch {
    /// The host's clock less the collector's, from the one to the other instant by the collector's; none if it was not
    /// measured.
    fn offset(&self, from: Timestamp, to: Timestamp) -> Option<Difference> {
        match &self.kind {
            Kind::Shared => Some(Difference::ZERO),
            Kind::Measured { wall, readings, hull } => Some(wall.less(readings.during(*hull, from, to)?)),
            Kind::Unmeasured { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
