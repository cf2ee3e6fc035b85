//! A question as it is put to one host, whose clock is not the collector's; and its answer, in the collector's time.
//!
//! The window is shifted by the host's offset and widened by its bound, so that nothing that may have been in it is missed:
//! a host is clear only if it recorded all of that. What is found is told as having been in the window only if it was so
//! whatever the offset truly is; if it may have been beside it, that alone is neither a match nor none.

use std::time::Duration;

use super::{HostAnswer, Question};
use crate::{
    clock::{Difference, HostClock, shifted},
    coverage::{Facet, Gap, Grade},
    report,
    time::Timestamp,
    window::Window,
};

/// How the host's clock stood to the collector's when it was asked about a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerClock {
    /// The host's clock less the collector's, in nanoseconds; 0 where it cannot be told from 0.
    pub offset_ns: i64,
    /// The truth is no further from the offset.
    pub bound_ns: u64,
    /// The window as the host was asked, by its own clock.
    pub window: Window,
}

/// A question by a host's clock.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What may be meant, by the host's clock.
    pub question: Question,
    /// In the collector's time.
    window: Window,
    difference: Option<Difference>,
    unmeasured: Vec<Window>,
}

impl Question {
    /// The question as a host is asked whose clock is this.
    pub fn asked_of(&self, clock: &HostClock) -> Asked {
        let over = clock.over(self.window);
        let difference = over.difference.map(Difference::balanced);
        let possible = difference.unwrap_or_default();
        let from = shifted(self.window.from(), possible.least());
        let window = Window::new(from, shifted(self.window.to(), possible.most())).unwrap_or(self.window);
        Asked {
            question: Self { target: self.target.clone(), window },
            window: self.window,
            difference,
            unmeasured: over.unmeasured,
        }
    }
}

impl Asked {
    /// Whether the host's clock was measured in all of the window.
    pub fn is_measured(&self) -> bool {
        self.unmeasured.is_empty()
    }

    /// By the host's clock: from when on, and until when, an instant was in the window for certain.
    pub(super) fn certain(&self) -> (Timestamp, Timestamp) {
        let difference = self.difference.unwrap_or_default();
        (shifted(self.window.from(), difference.most()), shifted(self.window.to(), difference.least()))
    }

    /// Whether what lived so long by the host's clock was alive in the window for certain.
    pub(super) fn certainly_overlaps(&self, clock: &HostClock, first: Timestamp, last: Timestamp) -> bool {
        clock.certainly_overlaps(self.window, first, last)
    }

    /// The gap of a match that may have been beside the window.
    pub(super) fn in_margin(&self) -> Gap {
        let bound = Duration::from_nanos(self.difference.map_or(0, Difference::bound));
        let reason = format!(
            "by all that is known of the host's clock (to {}), what matched may have been outside of the window",
            report::short(bound)
        );
        let window = self.question.window;
        let grade = Grade::Lost { count: 0, reason };
        Gap { facet: Facet::Connections, grade, from: window.from(), to: window.to() }
    }

    /// In the collector's time.
    pub(super) fn unmeasured(&self) -> impl Iterator<Item = Gap> {
        let reason = "the host's clock was not measured in this boot of it: what it recorded may have been at any time";
        let grade = Grade::NotRecorded { reason: reason.to_owned() };
        let gap = move |window: &Window| Gap {
            facet: Facet::Connections,
            grade: grade.clone(),
            from: window.from(),
            to: window.to(),
        };
        self.unmeasured.iter().map(gap)
    }

    /// Puts an answer in the host's time into the collector's.
    pub(super) fn translate(&self, answer: &mut HostAnswer, clock: &HostClock) {
        let Some(difference) = self.difference.filter(|_| !clock.is_own()) else { return };
        let (offset_ns, bound_ns) = (difference.offset(), difference.bound());
        answer.clock = Some(AnswerClock { offset_ns, bound_ns, window: self.question.window });
        if offset_ns != 0 {
            answer.shift(offset_ns.saturating_neg());
        }
    }
}

impl HostAnswer {
    /// Moves every time in it.
    fn shift(&mut self, by: i64) {
        let move_on = |time: &mut Timestamp| *time = shifted(*time, by);
        for gap in &mut self.gaps {
            move_on(&mut gap.from);
            move_on(&mut gap.to);
        }
        self.known_until.iter_mut().for_each(move_on);
        for process in &mut self.processes {
            for flow in process.connections.iter_mut().map(|connection| &mut connection.flow) {
                [&mut flow.opened, &mut flow.first, &mut flow.last].into_iter().for_each(move_on);
            }
            let Some(life) = &mut process.life else { continue };
            move_on(&mut life.record.started);
            life.exit.iter_mut().for_each(|exit| move_on(&mut exit.exited));
            life.executions.iter_mut().for_each(|execution| move_on(&mut execution.executed));
            life.executable.iter_mut().for_each(|seen| move_on(&mut seen.at));
        }
    }
}

#[cfg(test)]
mod tests;
