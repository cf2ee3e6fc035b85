//! When everything open is said anew, and what may be vouched for until then.
//!
//! A reader believes no life past an interruption, so the watermark waits at the end of the first one until everything
//! open has been said anew. That costs as many events as connections are open, and whoever can make the kernel's buffer
//! overflow can make losses as often as he likes. So it is done only once as much has come since the last time, in
//! events or in time; the losses said meanwhile wait too, and become one where they touch.

use std::time::Duration;

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    time::{Moment, Timestamp},
};

use super::Pipeline;

/// Losses that wait at once; those beyond are said one by one.
const LOSSES_HELD_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Interruptions {
    /// The ends of the first and of the last after which what is open is not said anew.
    ends: Option<(Timestamp, Timestamp)>,
    /// Losses that are not said yet.
    held: Vec<CoverageChange>,
    /// When everything open was last said anew, in nanoseconds since boot, and how many other events came since.
    restated_boot_ns: Option<u64>,
    pub(super) events_since: usize,
}

impl Interruptions {
    /// What is open must be said anew once `end` is past.
    pub(super) fn note(&mut self, end: Timestamp) {
        let (first, last) = self.ends.unwrap_or((end, end));
        self.ends = Some((first.min(end), last.max(end)));
    }

    /// Nothing later may be vouched for.
    pub(super) fn holds_at(&self) -> Timestamp {
        let held = self.held.iter().map(|loss| loss.from);
        held.chain(self.ends.map(|(first, _)| first)).min().unwrap_or(Timestamp::MAX)
    }

    /// Everything open was said anew up to `seen_until`.
    fn restated(&mut self, seen_until: Moment) {
        let at = seen_until.wall;
        self.ends = self.ends.filter(|(_, last)| *last > at).map(|(first, last)| (first.max(at), last));
        self.restated_boot_ns = Some(seen_until.boot_ns);
        self.events_since = 0;
    }

    fn is_paid_for(&self, seen_until: Moment, connections: usize, interval: Duration) -> bool {
        self.restated_boot_ns.is_none_or(|restated| {
            let passed = Duration::from_nanos(seen_until.boot_ns.saturating_sub(restated));
            let paid = passed.as_nanos() / interval.as_nanos().max(1);
            paid.saturating_add(self.events_since as u128) >= connections as u128
        })
    }

    /// False if it cannot wait.
    fn hold(&mut self, loss: &CoverageChange) -> bool {
        if let Some(held) = self.held.iter_mut().find(|held| touch(held, loss)) {
            merge(held, loss);
            return true;
        }
        let there_is_room = self.held.len() < LOSSES_HELD_MAX;
        if there_is_room {
            self.held.push(loss.clone());
        }
        there_is_room
    }
}

/// Whether two bounded losses are one: of the same, for the same reason, with no time between them.
fn touch(one: &CoverageChange, other: &CoverageChange) -> bool {
    let same = match (&one.grade, &other.grade) {
        (Grade::Lost { reason: one, .. }, Grade::Lost { reason: other, .. }) => one == other,
        _ => false,
    };
    let (one_to, other_to) = (one.to.unwrap_or(one.from), other.to.unwrap_or(other.from));
    same && one.facet == other.facet && one.from <= other_to && other.from <= one_to
}

fn merge(held: &mut CoverageChange, loss: &CoverageChange) {
    held.from = held.from.min(loss.from);
    held.to = held.to.max(loss.to);
    if let Grade::Lost { count, .. } = &mut held.grade {
        *count = count.saturating_add(loss.grade.count());
    }
}

impl Pipeline {
    /// Coverage has changed, by the source's word.
    pub(super) fn source_tells(&mut self, mut change: CoverageChange, now: Moment) {
        let told = self.watermark.unwrap_or_default();
        let Some(to) = change.to else {
            if change.facet == Facet::Connections {
                if matches!(change.grade, Grade::Complete | Grade::Sampled { .. }) {
                    // What was told already stays as bad as it was told, since nothing was said anew in it.
                    change.from = change.from.max(told);
                }
                self.interruptions.note(change.from);
            }
            self.source_states(change, now);
            return;
        };
        let is_loss = matches!(change.grade, Grade::Lost { .. });
        if change.from < told {
            // It takes away what was told, and what is open past it may be said anew only later.
            if change.facet == Facet::Connections {
                change.to = Some(to.max(told));
            }
            self.state(change, now);
        } else if is_loss && self.interruptions.hold(&change) {
            if change.facet == Facet::Connections {
                self.interruptions.note(ends(&change));
            }
        } else {
            self.state(change, now);
        }
    }

    /// At the end of each report: says what is open anew after an interruption, if that is paid for, or if it `must` be.
    pub(super) fn settle(&mut self, must: bool, seen_until: Moment, now: Moment) {
        let at = seen_until.wall;
        let told = self.watermark.unwrap_or_default();
        let is_due = self.interruptions.ends.is_some_and(|(first, _)| first <= at) && at >= told;
        let is_paid_for =
            self.interruptions.is_paid_for(seen_until, self.flows.len(), self.limits.restating_interval);
        if must || (is_due && is_paid_for) {
            self.report_all_open(seen_until, now);
        } else if !is_due {
            self.state_losses(now);
        }
    }

    /// After an interruption, what is open must be said anew: a reader does not believe its life past that.
    pub(super) fn report_all_open(&mut self, seen_until: Moment, now: Moment) {
        self.state_losses(now);
        let at = seen_until.wall;
        let last = self.witnessed_until(at);
        for socket in self.open() {
            self.report_open(socket, last, at, now);
        }
        self.interruptions.restated(seen_until);
    }

    /// Says the losses that wait.
    pub(super) fn state_losses(&mut self, now: Moment) {
        for loss in std::mem::take(&mut self.interruptions.held) {
            self.state(loss, now);
        }
    }
}

/// Where a bounded change ends. A loss at an instant takes that instant.
pub(super) fn ends(change: &CoverageChange) -> Timestamp {
    let instant = change.from.saturating_add(Duration::from_nanos(1));
    change.to.map_or(instant, |to| to.max(instant))
}

#[cfg(test)]
mod tests;
