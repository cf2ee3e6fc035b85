//! What all that was said of a host's coverage comes to.
//!
//! The ledger of an agent and the store of a collector, which are told the same, have the same. So what each makes of an
//! event that tells of coverage without saying so is decided here.

use std::{collections::BTreeMap, time::Duration};

use super::{CoverageChange, Facet, Grade, Hole, Timeline};
use crate::{
    clock::STEP_MIN,
    event::{Event, EventKind},
    flow::RECORD_SPAN_MAX,
    id::Seq,
    time::Timestamp,
};

/// The coverage of a host, up to a place in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The position of the first event that is not in it.
    pub next: Seq,
    /// A facet that is missing was never spoken of.
    pub(crate) timelines: BTreeMap<Facet, Timeline>,
}

impl Default for Summary {
    fn default() -> Self {
        Self { next: Seq::FIRST, timelines: BTreeMap::new() }
    }
}

impl Summary {
    /// One facet.
    pub fn timeline(&self, facet: Facet) -> Timeline {
        self.timelines.get(&facet).cloned().unwrap_or_default()
    }

    /// Every facet that was spoken of.
    pub const fn timelines(&self) -> &BTreeMap<Facet, Timeline> {
        &self.timelines
    }

    /// See [`Timeline::compact`].
    pub fn compact(&mut self, intervals_max: usize) {
        self.timelines.values_mut().for_each(|timeline| timeline.compact(intervals_max));
    }

    /// Takes in the next event. One that it has already changes nothing. The stream was known until `known_until` before it.
    pub fn apply(&mut self, event: &Event, known_until: Option<Timestamp>) {
        if event.seq < self.next {
            return;
        }
        match &event.kind {
            EventKind::CoverageChanged(change) => self.change(change),
            EventKind::Unrecognised => {
                let (hole, doubts) = unrecognised(event, known_until);
                self.apply_hole(&hole);
                doubts.for_each(|doubt| self.change(&doubt));
            }
            _ => {}
        }
        self.next = event.seq.next();
    }

    /// Takes in that events are missing here.
    pub fn apply_hole(&mut self, hole: &Hole) {
        if hole.last < self.next {
            return;
        }
        let missing = Hole { first: hole.first.max(self.next), ..hole.clone() };
        for facet in Facet::ALL {
            self.timelines.entry(facet).or_default().apply_hole(&missing);
        }
        self.next = hole.last.next();
    }

    /// The stream goes on at `next` in another ring, see [`another_ring`].
    pub fn enter_ring(&mut self, next: Seq, known_until: Option<Timestamp>, begins: Option<Timestamp>) {
        another_ring(known_until, begins).for_each(|change| self.change(&change));
        self.next = next;
    }

    /// Takes in a change, wherever in the stream it stands.
    pub fn change(&mut self, change: &CoverageChange) {
        self.timelines.entry(change.facet).or_default().apply(change);
    }
}

/// What an event of a kind that is not known here means, where the stream was known until `known_until` before it: whatever
/// one record can tell is missing. It may be recorded long after what it speaks of, since the host may have slept between, but
/// speaks of nothing that was over by then. And then comes a time of which too little may be told (see [`doubted_after`]), as
/// what comes in the same report is told as of an earlier instant than that at which it was recorded.
pub fn unrecognised(
    event: &Event,
    known_until: Option<Timestamp>,
) -> (Hole, impl Iterator<Item = CoverageChange>) {
    let recorded = event.recorded.wall;
    let hole = Hole {
        first: event.seq,
        last: event.seq,
        from: recorded.min(known_until.unwrap_or_default()).saturating_sub(RECORD_SPAN_MAX),
        to: recorded.saturating_add(Duration::from_nanos(1)),
        reason: "it is of a kind that is not known here: upgrade".to_owned(),
    };
    let doubts = doubted_after(hole.to);
    (hole, doubts)
}

/// What it means that a host has another ring than the one that was known until `known_until`: whatever it did between
/// them, it did not record. `begins` is the earliest time of which the new one can tell. Where that is earlier, the host's
/// clock was set back, nobody knows how far at first: what is known of the old ring vouches for nothing any more.
pub fn another_ring(
    known_until: Option<Timestamp>,
    begins: Option<Timestamp>,
) -> impl Iterator<Item = CoverageChange> {
    let reason = "the agent's ring was made anew";
    let grade = Grade::NotRecorded { reason: reason.to_owned() };
    let from = known_until.unwrap_or(Timestamp::ZERO);
    let anew = of_all(grade, from, None, Some(CoverageChange::ANOTHER_RING));
    let twice = begins.zip(known_until).filter(|(begins, until)| begins < until);
    let reason = "the agent's ring was made anew, and its clock set back: this time happened twice";
    let twice = twice.map(|(begins, until)| {
        let from = if until.since(begins) < STEP_MIN { begins } else { Timestamp::ZERO };
        told_twice(reason, from, until)
    });
    anew.chain(twice.into_iter().flatten())
}

/// What it means that a host tells another past than it did, for this `reason`: two were told of the time from `begins`,
/// up to which they are the same, until `until`, up to which the first was known; and what was said of coverage is no more
/// believed.
pub fn another_past(
    reason: &str,
    begins: Timestamp,
    until: Timestamp,
) -> impl Iterator<Item = CoverageChange> {
    let grade = Grade::NotRecorded { reason: reason.to_owned() };
    told_twice(reason, begins, until).chain(of_all(grade, until, None, Some(CoverageChange::ANOTHER_RING)))
}

/// Two streams have told of a stretch of time, so that neither vouches for it.
fn told_twice(reason: &str, begins: Timestamp, until: Timestamp) -> impl Iterator<Item = CoverageChange> {
    let twice = of_all(Grade::NotRecorded { reason: reason.to_owned() }, begins, Some(until), None);
    twice.chain(doubted_after(until))
}

const NOT_TOLD_AGAIN: &str = "what was open before may not have been told of again yet";

/// No life that was told before `until` is believed past it, and what was open then may not be told again for as long as a
/// record may span: what is only open in that time can be missed.
fn doubted_after(until: Timestamp) -> impl Iterator<Item = CoverageChange> {
    of_all(
        Grade::Doubtful { reason: NOT_TOLD_AGAIN.to_owned() },
        until,
        Some(until.saturating_add(RECORD_SPAN_MAX)),
        None,
    )
}

fn of_all(
    grade: Grade,
    from: Timestamp,
    to: Option<Timestamp>,
    announced_from: Option<Seq>,
) -> impl Iterator<Item = CoverageChange> {
    Facet::ALL.into_iter().map(move |facet| CoverageChange {
        facet,
        grade: grade.clone(),
        from,
        to,
        scope: None,
        announced_from,
    })
}
