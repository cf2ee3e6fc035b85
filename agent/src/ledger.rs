//! What the agent says of its own coverage. Pure.
//!
//! The ledger knows the grade in force of each facet and decides what goes into the stream: every change once, every
//! loss, every start and stop, and the standing grades again wherever a reader may begin. It also knows what all of that
//! comes to, as a reader does who missed none of it.

use std::collections::{BTreeMap, VecDeque};

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Hole, Scope, Summary},
    event::Event,
    id::Seq,
    time::Timestamp,
};

mod past;

pub use past::{Past, PreviousRun, Restart};

/// The standing grades, and all that was said.
#[derive(Debug, Default)]
pub struct Ledger {
    standing: BTreeMap<Facet, CoverageChange>,
    /// A run in this boot of the host may have told since when the host was on.
    boot_was_told: bool,
    /// What all that is in the ring comes to.
    told: Summary,
    /// Said, and not known to be in the ring: as many as wait for the disk.
    waiting: VecDeque<(Seq, CoverageChange)>,
}

impl Ledger {
    /// A source says how well it records, or that it lost something. None if that is in force already.
    pub fn state(&mut self, change: CoverageChange) -> Option<CoverageChange> {
        if change.to.is_none() {
            let standing = self.standing.get(&change.facet);
            if standing.is_some_and(|known| known.grade == change.grade && known.scope == change.scope) {
                return None;
            }
            self.standing.insert(change.facet, change.clone());
        }
        Some(change)
    }

    /// The grades in force, said again.
    pub fn restate(&self) -> Vec<CoverageChange> {
        self.standing.values().cloned().collect()
    }

    /// Something was lost that may concern every facet.
    pub fn lose(&self, count: u64, reason: &str, from: Timestamp, to: Timestamp) -> Vec<CoverageChange> {
        let grade = Grade::Lost { count, reason: reason.to_owned() };
        self.all(|facet| CoverageChange {
            facet,
            grade: grade.clone(),
            from,
            to: Some(to),
            scope: None,
            announced_from: None,
        })
    }

    /// Nothing that is said of the time between `from` and `to` is the whole of it.
    pub fn unrecorded(&self, reason: &str, from: Timestamp, to: Timestamp) -> Vec<CoverageChange> {
        self.all(|facet| not_recorded(facet, reason, from, Some(to)))
    }

    /// Nothing happened between `from` and `to`, and that is proven: it takes away no gap, but ends what was open.
    pub fn suspended(&self, from: Timestamp, to: Timestamp) -> Vec<CoverageChange> {
        let covers = "everything: the host was suspended, as its clocks prove, so that nothing ran";
        self.all(|facet| CoverageChange {
            facet,
            grade: Grade::Complete,
            from,
            to: Some(to),
            scope: Some(Scope {
                source: "clock".to_owned(),
                covers: covers.to_owned(),
                cannot_see: "another system that was started on this machine while this one hibernated"
                    .to_owned(),
            }),
            announced_from: None,
        })
    }

    /// Recording ends for `reason`; nothing that happens after `from` is seen.
    pub fn stop(&mut self, reason: &str, from: Timestamp) -> Vec<CoverageChange> {
        let changes = self.all(|facet| not_recorded(facet, reason, from, None));
        changes.into_iter().filter_map(|change| self.state(change)).collect()
    }

    /// The event at `seq` says so.
    pub fn said(&mut self, seq: Seq, change: &CoverageChange) {
        self.waiting.push_back((seq, change.clone()));
    }

    /// The events before `next` are in the ring.
    pub fn written(&mut self, next: Seq) {
        while let Some((_, change)) = self.waiting.pop_front_if(|(seq, _)| *seq < next) {
            self.told.change(&change);
        }
        self.told.next = self.told.next.max(next);
    }

    /// The events from `next` on will never be in the ring: others get their numbers.
    pub fn forget(&mut self, next: Seq) {
        self.waiting.retain(|(seq, _)| *seq < next);
    }

    /// What all that is in the ring comes to.
    pub fn summary(&self) -> Summary {
        self.told.clone()
    }

    /// Goes on from a summary of what runs before this one have said.
    pub fn restore(&mut self, summary: Summary) {
        self.told = summary;
    }

    /// Takes in an event that the ring has, and the summary has not.
    pub fn replay(&mut self, event: &Event) {
        // Of a kind that is not known, how far the recording was known before it is not, either.
        self.told.apply(event, None);
    }

    /// Takes in that events which the summary has not are not in the ring any more.
    pub fn replay_hole(&mut self, hole: &Hole) {
        self.told.apply_hole(hole);
    }

    fn all(&self, change: impl FnMut(Facet) -> CoverageChange) -> Vec<CoverageChange> {
        Facet::ALL.into_iter().map(change).collect()
    }
}

fn not_recorded(facet: Facet, reason: &str, from: Timestamp, to: Option<Timestamp>) -> CoverageChange {
    CoverageChange {
        facet,
        grade: Grade::NotRecorded { reason: reason.to_owned() },
        from,
        to,
        scope: None,
        announced_from: None,
    }
}

#[cfg(test)]
mod tests;
