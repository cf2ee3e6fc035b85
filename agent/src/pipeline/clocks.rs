//! What a clock that was set means for what is recorded, and for what was before.

use std::time::Duration;

use alibi_proto::{clock::STEP_MIN, coverage::Grade, time::Moment};

use super::Pipeline;
use crate::ledger::Past;

impl Pipeline {
    /// Says what became of the time before the first report.
    pub(super) fn begin(&mut self, past: Past, now: Moment) {
        for mut change in self.ledger.begin(past, now) {
            match change.to {
                // All of it is told, as a gap; and one that starts in it must know how far it reaches.
                Some(to) => self.watermark = self.watermark.max(Some(to)),
                // Nothing that was open before can be now.
                None if change.grade == Grade::Complete => change.announced_from = Some(self.next_seq),
                None => {}
            }
            self.push_all(now, vec![change]);
        }
    }

    /// A wall clock that was set leaves a gap: a time that was skipped, or one that happens twice.
    pub(super) fn compare_clocks(&mut self, before: Moment, after: Moment, now: Moment) {
        let passed = Duration::from_nanos(after.boot_ns.saturating_sub(before.boot_ns));
        let expected = before.wall.saturating_add(passed);
        let step = after.wall.since(expected).max(expected.since(after.wall));
        if step < STEP_MIN && after.wall >= before.wall {
            return;
        }
        // When it was set in the time that passed is not known: the gap is as wide as it can have been.
        let set_to = after.wall.saturating_sub(passed);
        let (reason, from, to) = if after.wall > expected {
            self.leap = Some((before.wall, set_to));
            ("the clock was set forward: there was no such time", before.wall, after.wall)
        } else {
            // All of it is told, as a gap; and one that starts in it must know how far it reaches.
            self.watermark = self.watermark.max(Some(expected));
            ("the clock was set back: this time happens twice", set_to, expected)
        };
        let mut changes = self.ledger.unrecorded(reason, from, to);
        changes.extend(self.ledger.boot_may_be_earlier(before, after));
        self.push_all(now, changes);
        self.clock_was_set = true;
    }
}
