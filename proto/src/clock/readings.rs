//! What is known of one boot's clock, from its readings.

use std::sync::Arc;

use super::{ALONE_MAX, ASLEEP_ERROR, DRIFT_PPM_MAX, Difference, boot_time};
use crate::time::Timestamp;

/// Readings that are kept of one boot. Few under test, so that they are merged.
const READINGS_MAX: usize = if cfg!(test) { 4 } else { 64 };

/// Readings that follow on each other and agree become one, as long as it is no wider than this.
const FOLDED_WIDTH_MAX_NS: u64 = 50_000_000;

/// From the one to the other instant of the boot clock, both included, the collector's clock less the boot clock was within
/// `difference`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Since when, in nanoseconds since boot.
    pub from_boot_ns: u64,
    /// Until when.
    pub to_boot_ns: u64,
    /// The collector's clock less the boot clock.
    pub difference: Difference,
    /// When it was measured last, by the collector's clock.
    pub measured: Timestamp,
}

impl Reading {
    fn from(&self) -> i64 {
        boot_time(self.from_boot_ns)
    }

    fn to(&self) -> i64 {
        boot_time(self.to_boot_ns)
    }
}

/// The readings of one boot, in order of time, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings(Arc<Vec<Reading>>);

impl From<Vec<Reading>> for Readings {
    fn from(mut readings: Vec<Reading>) -> Self {
        readings.sort_by_key(|reading| reading.from_boot_ns);
        Self(Arc::new(readings))
    }
}

impl Readings {
    /// All of them.
    pub fn all(&self) -> &[Reading] {
        &self.0
    }

    /// Takes in another, which comes after those before.
    pub fn add(&mut self, new: Reading) {
        let readings = Arc::make_mut(&mut self.0);
        let Some(last) = readings.last_mut() else {
            readings.push(new);
            return;
        };
        if new.from() <= last.to() {
            // No honest host's boot clock goes back; whatever it did, it is either.
            last.from_boot_ns = last.from_boot_ns.min(new.from_boot_ns);
            last.to_boot_ns = last.to_boot_ns.max(new.to_boot_ns);
            last.difference = last.difference.or(new.difference);
            last.measured = last.measured.max(new.measured);
            return;
        }
        let alone = new.from().abs_diff(last.to());
        // Between two readings that agree the clock was no further from the later one than it can have drifted.
        let reached = new.difference.widened(drift(alone));
        let folded = last.difference.or(reached);
        if alone <= nanos(ALONE_MAX)
            && folded.width() <= FOLDED_WIDTH_MAX_NS
            && reached.meets(last.difference)
        {
            *last =
                Reading { to_boot_ns: new.to_boot_ns, difference: folded, measured: new.measured, ..*last };
        } else {
            readings.push(new);
        }
        while self.0.len() > READINGS_MAX {
            self.merge();
        }
    }

    /// Makes one of two neighbours: those of which the result is narrowest.
    fn merge(&mut self) {
        let merged = |index: usize| {
            let (one, other) = (self.0[index], self.0[index + 1]);
            let difference = self.over(one.from(), other.to()).unwrap_or(one.difference);
            Reading { from_boot_ns: one.from_boot_ns, difference, ..other }
        };
        let narrowest = (0..self.0.len().saturating_sub(1))
            .map(|index| (index, merged(index)))
            .min_by_key(|(_, merged)| merged.difference.width());
        if let Some((index, merged)) = narrowest {
            let readings = Arc::make_mut(&mut self.0);
            readings[index] = merged;
            readings.remove(index + 1);
        }
    }

    /// The collector's clock less the boot clock, from the one to the other instant by the boot clock; none without a reading.
    pub fn over(&self, from: i64, to: i64) -> Option<Difference> {
        let inside = |instant: i64| from < instant && instant < to;
        // Between these it only grows, or only shrinks.
        let first = self.0.partition_point(|reading| reading.to() < from).saturating_sub(1);
        let near = (first..self.0.len()).map(|index| (index, &self.0[index]));
        let near = near.take_while(|(_, reading)| reading.from().saturating_sub(1) < to);
        let turns = near.flat_map(|(index, reading)| {
            let beyond = self.0.get(index + 1).map_or(reading.to(), |next| next.from());
            let before = reading.from().saturating_sub(1);
            let after = reading.to().saturating_add(1);
            [before, reading.from(), reading.to(), after, reading.to().midpoint(beyond)]
        });
        let instants = turns.filter(|instant| inside(*instant)).chain([from, to]);
        instants.filter_map(|instant| self.at(instant)).reduce(Difference::or)
    }

    /// The collector's clock less the boot clock, by any of them; none if there are none.
    pub fn hull(&self) -> Option<Difference> {
        self.0.iter().map(|reading| reading.difference).reduce(Difference::or)
    }

    /// As [`Readings::over`], from the one to the other instant by the collector's clock; `all` is what [`Readings::hull`] tells.
    pub fn during(&self, all: Difference, from: Timestamp, to: Timestamp) -> Option<Difference> {
        let by_boot = |instant: Timestamp| {
            let rough = Difference::exact(instant.as_nanos_i64()).less(all);
            // What was never read may be further by what it can have gained until then.
            let alone = self.alone(rough.least()).max(self.alone(rough.most()));
            rough.widened(unread(alone).saturating_mul(2))
        };
        self.over(by_boot(from).least(), by_boot(to).most())
    }

    /// How far an instant of the boot clock is from the readings around it, or from those on one side.
    fn alone(&self, instant: i64) -> u64 {
        let after = self.0.partition_point(|reading| reading.from() <= instant);
        let before = after.checked_sub(1).map(|index| &self.0[index]);
        match (before, self.0.get(after)) {
            (Some(before), _) if instant <= before.to() => 0,
            (Some(before), Some(next)) => next.from().abs_diff(before.to()),
            (Some(before), None) => instant.abs_diff(before.to()),
            (None, Some(next)) => next.from().abs_diff(instant),
            (None, None) => 0,
        }
    }

    fn at(&self, instant: i64) -> Option<Difference> {
        let after = self.0.partition_point(|reading| reading.from() <= instant);
        let before = after.checked_sub(1).map(|index| &self.0[index]);
        Some(match (before, self.0.get(after)) {
            (Some(before), _) if instant <= before.to() => before.difference,
            (Some(before), None) => before.difference.widened(unread(instant.abs_diff(before.to()))),
            (None, Some(next)) => next.difference.widened(unread(next.from().abs_diff(instant))),
            (Some(before), Some(next)) => {
                let alone = next.from().abs_diff(before.to());
                let (since, until) = (instant.abs_diff(before.to()), next.from().abs_diff(instant));
                // Two that disagree were changed somewhere between them: from there on the one tells nothing.
                let agree = before.difference.widened(drift(alone)).meets(next.difference);
                let drifted = drift(if agree { since.min(until) } else { since.max(until) });
                before.difference.or(next.difference).widened(drifted.saturating_add(asleep(alone)))
            }
            (None, None) => return None,
        })
    }
}

/// What a boot clock may be wrong by, so long after a reading or before it.
fn unread(alone: u64) -> u64 {
    drift(alone).saturating_add(asleep(alone))
}

fn drift(alone: u64) -> u64 {
    const PART_OF: u64 = 1_000_000 / DRIFT_PPM_MAX;
    alone.div_ceil(PART_OF)
}

fn asleep(alone: u64) -> u64 {
    if alone > nanos(ALONE_MAX) { nanos(ASLEEP_ERROR) } else { 0 }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
