//! What the agent says of its own coverage. Pure.
//!
//! The ledger knows the grade in force of each facet and decides what goes into the stream: every change once, every
//! loss, every start and stop, and the standing grades again wherever a reader may begin.

use std::collections::BTreeMap;

use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    time::Timestamp,
};

use crate::ring::Recovery;

/// How the run before this one ended, as the ring tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreviousRun {
    /// There was none.
    None,
    /// It said that it stopped.
    Stopped {
        /// Up to here its recording was whole.
        recorded_until: Timestamp,
    },
    /// It said nothing, and the host runs on: crash or kill.
    Killed {
        /// Up to here its recording was whole, and no more was told.
        recorded_until: Timestamp,
    },
    /// It said nothing: crash, kill or power loss.
    Ended {
        /// Up to here its recording was whole.
        recorded_until: Timestamp,
        /// It may have told that it was whole up to here, without this being known any more.
        told_until: Timestamp,
    },
}

impl PreviousRun {
    /// As the recovered ring tells it, in this boot of the host.
    pub fn of(recovery: &Recovery, boot: u64) -> Self {
        match recovery.recorded_until {
            _ if recovery.is_new => Self::None,
            Some(recorded_until) if recovery.was_closed_cleanly => Self::Stopped { recorded_until },
            // The system itself did not end: what was written is there.
            Some(recorded_until) if recovery.boot == Some(boot) => Self::Killed { recorded_until },
            Some(recorded_until) => Self::Ended {
                recorded_until,
                told_until: recorded_until.saturating_add(Recovery::UNSAFE_MAX),
            },
            // The checkpoint is gone: nothing vouches for any of it.
            None => Self::Ended { recorded_until: Timestamp::ZERO, told_until: Timestamp::ZERO },
        }
    }
}

/// The standing grades.
#[derive(Debug, Default)]
pub struct Ledger {
    standing: BTreeMap<Facet, CoverageChange>,
}

impl Ledger {
    /// What a new run has to say of the one before it. Run before anything else is recorded.
    pub fn begin(&mut self, previous: PreviousRun, now: Timestamp) -> Vec<CoverageChange> {
        let mut changes = Vec::new();
        if let PreviousRun::Ended { recorded_until, .. } | PreviousRun::Killed { recorded_until } = previous {
            let reason = "the agent ended without saying so (crash, kill or power loss)";
            changes.extend(self.all(|facet| not_recorded(facet, reason, recorded_until, None)));
        }
        if let PreviousRun::Stopped { recorded_until: until } | PreviousRun::Ended { told_until: until, .. } =
            previous
            && until > now
        {
            let reason = "the clock was set back: this time happened twice, and was not recorded both times";
            changes.extend(self.unrecorded(reason, now, until));
        }
        if let PreviousRun::Killed { recorded_until } = previous {
            changes.extend(self.after_kill(recorded_until, now));
        }
        changes
    }

    /// What happened between the last word and a kill went unrecorded. That lies before `now`, unless the clock was set
    /// back since; then it may come once more, and be recorded the second time only. That the clock was set back by less than
    /// the agent was away is not seen here.
    fn after_kill(&self, recorded_until: Timestamp, now: Timestamp) -> Vec<CoverageChange> {
        if now >= recorded_until {
            return Vec::new();
        }
        let reason = "the clock was set back: this time happened twice, and was not recorded both times";
        self.unrecorded(reason, now, recorded_until.saturating_add(Recovery::UNSAFE_MAX))
    }

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
                cannot_see: "nothing".to_owned(),
            }),
            announced_from: None,
        })
    }

    /// Recording ends for `reason`; nothing that happens after `from` is seen.
    pub fn stop(&mut self, reason: &str, from: Timestamp) -> Vec<CoverageChange> {
        let changes = self.all(|facet| not_recorded(facet, reason, from, None));
        changes.into_iter().filter_map(|change| self.state(change)).collect()
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
mod tests {
    use alibi_proto::{coverage::Timeline, window::Window};

    use super::*;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn complete(from: u64) -> CoverageChange {
        let facet = Facet::Connections;
        CoverageChange {
            facet,
            grade: Grade::Complete,
            from: at(from),
            to: None,
            scope: None,
            announced_from: None,
        }
    }

    /// The gaps of `[0, 100)` in a ring in which one run recorded from 0 until 40, and another begins at `restart`.
    #[track_caller]
    fn check(stopped: bool, unsafe_ns: u64, restart: u64, want: &[(u64, u64)]) {
        let mut said = Vec::new();
        let mut first = Ledger::default();
        said.extend(first.begin(PreviousRun::None, at(0)));
        said.extend(first.state(complete(0)));
        assert_eq!(first.state(complete(10)), None, "in force already");
        if stopped {
            said.extend(first.stop("stopped", at(40)));
        }
        let previous = if stopped {
            PreviousRun::Stopped { recorded_until: at(40) }
        } else {
            PreviousRun::Ended { recorded_until: at(40), told_until: at(40 + unsafe_ns) }
        };
        let mut second = Ledger::default();
        said.extend(second.begin(previous, at(restart)));
        said.extend(second.state(complete(restart)));

        let mut timeline = Timeline::default();
        said.iter()
            .filter(|change| change.facet == Facet::Connections)
            .for_each(|change| timeline.apply(change));
        let window = Window::new(at(0), at(100)).unwrap();
        let gaps = timeline.gaps(Facet::Connections, window, Some(at(100)));
        let gaps: Vec<_> = gaps.iter().map(|gap| (gap.from.as_nanos(), gap.to.as_nanos())).collect();
        assert_eq!(gaps, want);
    }

    #[test]
    fn every_time_between_two_runs_is_a_gap() {
        check(true, 0, 60, &[(40, 60)]);
        check(false, 0, 60, &[(40, 60)]);
        check(false, 10, 60, &[(40, 60)]);
    }

    #[test]
    fn time_that_happened_twice_is_a_gap() {
        check(true, 0, 25, &[(25, 40)]);
        check(false, 0, 25, &[(25, 40)]);
        check(false, 10, 25, &[(25, 50)]);
        // Told until 48, of which a power cut left no word; then the clock says 45.
        check(false, 10, 45, &[(40, 45), (45, 50)]);
    }

    #[test]
    fn the_moment_before_a_kill_is_a_gap_even_if_the_clock_is_set_back_after_it() {
        let gaps = |restart: u64| {
            let second = |seconds: u64| at(seconds * 1_000_000_000);
            let mut timeline = Timeline::default();
            let mut first = Ledger::default();
            let mut said = first.begin(PreviousRun::None, second(0));
            said.extend(first.state(complete(0)));
            let mut killed = Ledger::default();
            said.extend(killed.begin(PreviousRun::Killed { recorded_until: second(40) }, second(restart)));
            said.extend(killed.state(complete(restart * 1_000_000_000)));
            let of_connections = said.iter().filter(|change| change.facet == Facet::Connections);
            of_connections.for_each(|change| timeline.apply(change));
            let window = Window::new(second(0), second(100)).unwrap();
            let gaps = timeline.gaps(Facet::Connections, window, Some(second(100)));
            let seconds = |time: Timestamp| time.as_nanos() / 1_000_000_000;
            gaps.iter().map(|gap| (seconds(gap.from), seconds(gap.to))).collect::<Vec<_>>()
        };
        assert_eq!(gaps(60), [(40, 60)]);
        assert_eq!(gaps(25), [(25, 50)], "killed up to ten seconds after its last word");
        assert_eq!(gaps(40), []);
        assert_eq!(gaps(41), [(40, 41)], "the gap is where it was");
    }
}
