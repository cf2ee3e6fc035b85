//! Coverage: which stretches of time were recorded, and how well. Merging rounds towards `unknown`.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{flow::words, id::Seq, time::Timestamp, window::Window};

mod compaction;
mod summary;

pub use compaction::{INTERVALS_MAX, WORDS_BYTES_MAX};
pub use summary::{Summary, another_past, another_ring, unrecognised};

words! {
    /// What is recorded, well or badly, on its own.
    Facet {
        /// Process starts and ends.
        Processes = "processes",
        /// Connections and their owners.
        Connections = "connections",
        /// Which name an address was reached by.
        Names = "names",
    }
}

impl Facet {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Processes, Self::Connections, Self::Names];
}

/// How well a facet is recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// Event driven, and nothing lost.
    Complete,
    /// Polled: what is shorter than the period can be missed.
    Sampled {
        /// Time between two looks.
        period: Duration,
    },
    /// Perhaps not all of it was recorded. What was recorded stays as it is, and what was open stays open.
    Doubtful {
        /// Why.
        reason: String,
    },
    /// Recorded, and then not all of it kept.
    Lost {
        /// Exactly how many; 0 where only the fact is known.
        count: u64,
        /// What became of them.
        reason: String,
    },
    /// Not recorded at all.
    NotRecorded {
        /// Why.
        reason: String,
    },
}

impl Grade {
    /// The word for it, as in JSON and tables.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Sampled { .. } => "sampled",
            Self::Doubtful { .. } => "doubtful",
            Self::Lost { .. } => "lost",
            Self::NotRecorded { .. } => "none",
        }
    }

    /// Why it is not complete, in words; empty if it is.
    pub fn reason(&self) -> String {
        match self {
            Self::Complete => String::new(),
            Self::Sampled { period } => {
                format!("sampled each {}: what is shorter can be missed", in_words(*period))
            }
            Self::Doubtful { reason } | Self::Lost { reason, .. } | Self::NotRecorded { reason } => {
                reason.clone()
            }
        }
    }

    /// How many are known to be missing.
    pub const fn count(&self) -> u64 {
        if let Self::Lost { count, .. } = self { *count } else { 0 }
    }

    /// Whether nothing more was recorded for sure under this grade.
    const fn interrupts(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::NotRecorded { .. })
    }

    fn worse<'a>(&'a self, other: &'a Self) -> &'a Self {
        let badness = |grade: &Self| match grade {
            Self::Complete => (0, Duration::ZERO),
            Self::Sampled { period } => (1, *period),
            Self::Doubtful { .. } => (2, Duration::ZERO),
            Self::Lost { .. } => (3, Duration::ZERO),
            Self::NotRecorded { .. } => (4, Duration::ZERO),
        };
        if badness(other) > badness(self) { other } else { self }
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sampled { period } => write!(f, "sampled({})", in_words(*period)),
            Self::Doubtful { reason } => write!(f, "doubtful({reason})"),
            Self::Lost { count, reason } => write!(f, "lost({count}, {reason})"),
            Self::NotRecorded { reason } => write!(f, "none({reason})"),
            Self::Complete => f.write_str("complete"),
        }
    }
}

fn in_words(period: Duration) -> String {
    if period.subsec_nanos() == 0 {
        format!("{} s", period.as_secs())
    } else {
        format!("{} ms", period.as_millis())
    }
}

/// What a recording covers and what it cannot see, in words for the answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Scope {
    /// ebpf, netlink, etw, poll or replay.
    pub source: String,
    /// What a proven negative of this recording speaks of.
    pub covers: String,
    /// What it never sees.
    pub cannot_see: String,
}

/// A facet got better or worse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoverageChange {
    /// The facet.
    pub facet: Facet,
    /// How well it is recorded.
    pub grade: Grade,
    /// Since when.
    pub from: Timestamp,
    /// Some: true of `[from, to)` only. None: from then on, until the next change.
    ///
    /// Complete of a stretch only: nothing can have happened in it, since the host was suspended. Such a change leaves
    /// every gap as it is, and a connection whose record ends before the stretch is not believed to live on into it.
    pub to: Option<Timestamp>,
    /// What the recording covers, where there is one.
    pub scope: Option<Scope>,
    /// Everything that is open has been recorded anew since this event. Only such a grade is believed after a hole, and
    /// only if the hole ends before it.
    #[serde(skip)]
    pub announced_from: Option<Seq>,
}

impl CoverageChange {
    /// Said where a ring begins anew: nothing that was missed of the ring before it matters any more.
    pub const ANOTHER_RING: Seq = Seq(u64::MAX);
}

/// A stretch of a window in which a facet was not completely recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The facet.
    pub facet: Facet,
    /// How well it was recorded, never complete.
    pub grade: Grade,
    /// Its beginning.
    pub from: Timestamp,
    /// The first instant after it.
    pub to: Timestamp,
}

/// Events that were overwritten before this reader had them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// The first that is missing.
    pub first: Seq,
    /// The last that is missing; not before `first`.
    pub last: Seq,
    /// The earliest instant they spoke of.
    pub from: Timestamp,
    /// The first instant after the latest.
    pub to: Timestamp,
    /// What became of them.
    pub reason: String,
}

impl Hole {
    /// How many events are missing.
    pub const fn count(&self) -> u64 {
        self.last.0.saturating_sub(self.first.0).saturating_add(1)
    }
}

/// At most this many gaps are listed one by one; the rest of the window becomes one more.
pub const GAPS_MAX: usize = 256;

/// One facet of one host over time. Fed in the order of the host's stream, by agent and collector alike. It never has more
/// than [`INTERVALS_MAX`] intervals, and is the same for all who were told the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// In order of time; each holds until the next.
    pub(crate) steps: Vec<Step>,
    /// Bounded stretches that are worse than the steps below them, or in which the host was suspended.
    pub(crate) losses: Vec<Loss>,
    /// Events up to this one were missed, and no grade was heard since that can be believed in spite of it.
    pub(crate) missed_up_to: Option<Seq>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) from: Timestamp,
    pub(crate) grade: Grade,
    pub(crate) scope: Option<Arc<Scope>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loss {
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    pub(crate) grade: Grade,
}

impl Timeline {
    /// Takes in a change of this timeline's facet.
    pub fn apply(&mut self, change: &CoverageChange) {
        if let Some(to) = change.to {
            self.lose(change.from, to, &change.grade);
            return;
        }
        if let Some(missed) = self.missed_up_to {
            if change.announced_from.is_some_and(|announced| announced > missed) {
                self.missed_up_to = None;
            } else if !change.grade.interrupts() {
                return; // what is open may have been said in what was missed
            }
        }
        self.stand(change.from, &change.grade, change.scope.as_ref());
    }

    /// Takes in a hole in the stream. Whatever was missed may have made things worse, or may have told of a connection that
    /// is open since, so nothing is believed after it until the agent has recorded anew what is open, and states the
    /// grade; which it does wherever a reader can begin.
    pub fn apply_hole(&mut self, hole: &Hole) {
        let grade = Grade::Lost { count: hole.count(), reason: hole.reason.clone() };
        self.lose(hole.from, hole.to, &grade);
        let until_stated = "events were lost, and the grade was not stated again since".to_owned();
        self.stand(hole.to, &Grade::Lost { count: 0, reason: until_stated }, None);
        self.missed_up_to = self.missed_up_to.max(Some(hole.last));
    }

    /// A bounded stretch of something worse, or of a host that was suspended. A loss at an instant still takes that instant.
    fn lose(&mut self, from: Timestamp, to: Timestamp, grade: &Grade) {
        let to = to.max(from.saturating_add(Duration::from_nanos(1)));
        self.losses.push(Loss { from, to, grade: grade.bounded() });
        self.compact(INTERVALS_MAX);
    }

    /// From `from` on the grade holds. What was already said of the time after `from` can only become worse by it.
    fn stand(&mut self, from: Timestamp, grade: &Grade, scope: Option<&Scope>) {
        let (grade, scope) = (&grade.bounded(), scope.map(|scope| Arc::new(scope.bounded())));
        let step = |from, grade: &Grade| Step { from, grade: grade.clone(), scope: scope.clone() };
        let Some(newest) = self.steps.last() else {
            self.steps.push(step(from, grade));
            self.compact(INTERVALS_MAX);
            return;
        };
        if newest.grade == *grade && newest.scope == scope && newest.from <= from {
            return; // stated again
        }
        let newest_from = newest.from;
        if from < newest_from {
            let after = self.steps.partition_point(|step| step.from <= from);
            let before = after.checked_sub(1).map(|index| self.steps[index].clone());
            for later in &mut self.steps[after..] {
                later.grade = later.grade.worse(grade).clone();
            }
            let merged = match before {
                Some(before) => Step { from, grade: before.grade.worse(grade).clone(), scope: before.scope },
                None => step(from, &not_begun()),
            };
            self.steps.insert(after, merged);
        }
        self.steps.push(step(from.max(newest_from), grade));
        self.compact(INTERVALS_MAX);
    }

    /// Every stretch of the window that is not proven complete. `known_until` is how far the stream is known; none
    /// means that nothing is.
    pub fn gaps(&self, facet: Facet, window: Window, known_until: Option<Timestamp>) -> Vec<Gap> {
        let gap = |grade: &Grade, from: Timestamp, to: Timestamp| {
            let (from, to) = (from.max(window.from()), to.min(window.to()));
            (from < to && *grade != Grade::Complete).then(|| Gap { facet, grade: grade.clone(), from, to })
        };
        let Some(known_until) = known_until else {
            let reason = "nothing has been received from this host".to_owned();
            return gap(&Grade::NotRecorded { reason }, window.from(), window.to()).into_iter().collect();
        };

        let mut gaps: Vec<Gap> = Vec::new();
        let mut push = |gap: Option<Gap>| {
            let Some(gap) = gap else { return };
            match gaps.last_mut() {
                Some(last) if last.grade == gap.grade && last.to == gap.from => last.to = gap.to,
                _ => gaps.push(gap),
            }
        };
        let begins = self.steps.first().map_or(known_until, |step| step.from.min(known_until));
        push(gap(&not_begun(), Timestamp::ZERO, begins));
        for (index, step) in self.steps.iter().enumerate() {
            let to = self.steps.get(index + 1).map_or(known_until, |next| next.from.min(known_until));
            push(gap(&step.grade, step.from, to));
        }
        let reason = "not received from this host yet".to_owned();
        push(gap(&Grade::NotRecorded { reason }, known_until, window.to()));

        gaps.extend(self.losses.iter().filter_map(|loss| gap(&loss.grade, loss.from, loss.to)));
        gaps.sort_by_key(|gap| (gap.from, gap.to));
        at_most(gaps, GAPS_MAX)
    }

    /// When, at or after `instant`, recording was next interrupted, so that an end may have gone unseen, or the host was
    /// suspended. A stretch that was sampled or is doubtful is none: it takes nothing away.
    pub fn interrupted_after(&self, instant: Timestamp) -> Option<Timestamp> {
        let ends = |index: usize| self.steps.get(index + 1).map_or(Timestamp::MAX, |next| next.from);
        let steps = self.steps.iter().enumerate().filter(|(index, step)| {
            step.grade.interrupts() && ends(*index) > instant && ends(*index) > step.from
        });
        let ends_lives = |grade: &Grade| grade.interrupts() || *grade == Grade::Complete;
        let losses = self.losses.iter().filter(|loss| loss.to > instant && ends_lives(&loss.grade));
        let losses = losses.map(|loss| loss.from);
        steps.map(|(_, step)| step.from).chain(losses).min().map(|from| from.max(instant))
    }

    /// What the recordings in the window covered.
    pub fn scopes(&self, window: Window) -> Vec<Arc<Scope>> {
        let mut scopes: Vec<Arc<Scope>> = Vec::new();
        for (index, step) in self.steps.iter().enumerate() {
            let ends = self.steps.get(index + 1).map_or(Timestamp::MAX, |next| next.from);
            if let Some(scope) = &step.scope
                && step.from < window.to()
                && ends > window.from()
                && !scopes.contains(scope)
            {
                scopes.push(Arc::clone(scope));
            }
        }
        scopes
    }
}

/// The reason of a hole in place of what was read, and is not what was once written: begins so.
pub const CHANGED_ON_DISK: &str = "changed on disk since they were written";

/// The reason of a hole in place of what a ring had no more room for.
pub const OVERWRITTEN: &str = "overwritten in the ring before they were delivered";

/// The reason of a gap before the first statement about a facet.
pub const NOT_BEGUN: &str = "recording had not begun";

fn not_begun() -> Grade {
    Grade::NotRecorded { reason: NOT_BEGUN.to_owned() }
}

/// At most `max` gaps, and at least one if there is one: the last stands for all that are not listed, from the beginning
/// of the first of them to the end of the last.
pub fn at_most(mut gaps: Vec<Gap>, max: usize) -> Vec<Gap> {
    if gaps.len() > max {
        let rest = gaps.split_off(max.saturating_sub(1));
        let reason = format!("{} further gaps, listed as one", rest.len());
        let count = rest.iter().fold(0_u64, |count, gap| count.saturating_add(gap.grade.count()));
        let from = rest.iter().map(|gap| gap.from).min();
        let to = rest.iter().map(|gap| gap.to).max();
        if let (Some(from), Some(to), Some(first)) = (from, to, rest.first()) {
            gaps.push(Gap { facet: first.facet, grade: Grade::Lost { count, reason }, from, to });
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Seq;

    fn at(nanos: u64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    fn none(reason: &str) -> Grade {
        Grade::NotRecorded { reason: reason.into() }
    }

    fn lost(count: u64) -> Grade {
        Grade::Lost { count, reason: "ring".into() }
    }

    fn change(grade: Grade, from: u64, to: Option<u64>) -> CoverageChange {
        CoverageChange {
            facet: Facet::Connections,
            grade,
            from: at(from),
            to: to.map(at),
            scope: None,
            announced_from: None,
        }
    }

    /// The gaps of `[0, 100)`, as `grade from..to`.
    #[track_caller]
    fn check(timeline: &Timeline, known_until: u64, want: &[&str]) {
        let window = Window::new(at(0), at(100)).unwrap();
        let got: Vec<String> = timeline
            .gaps(Facet::Connections, window, Some(at(known_until)))
            .iter()
            .map(|gap| format!("{} {}..{}", gap.grade, gap.from.as_nanos(), gap.to.as_nanos()))
            .collect();
        assert_eq!(got, want);
    }

    fn timeline(changes: &[CoverageChange]) -> Timeline {
        let mut timeline = Timeline::default();
        changes.iter().for_each(|change| timeline.apply(change));
        timeline
    }

    const NONE_YET: &str = "none(recording had not begun)";
    const NOT_YET: &str = "none(not received from this host yet)";

    #[test]
    fn nothing_is_complete_before_it_is_said_to_be() {
        check(&Timeline::default(), 60, &[&format!("{NONE_YET} 0..60"), &format!("{NOT_YET} 60..100")]);
        check(&timeline(&[change(Grade::Complete, 10, None)]), 200, &[&format!("{NONE_YET} 0..10")]);
    }

    #[test]
    fn a_suspend_takes_no_gap_away_and_ends_what_was_open() {
        let asleep = change(Grade::Complete, 40, Some(60));
        let whole = timeline(&[change(Grade::Complete, 0, None), asleep.clone()]);
        check(&whole, 100, &[]);
        assert_eq!(whole.interrupted_after(at(20)), Some(at(40)));
        assert_eq!(whole.interrupted_after(at(60)), None);
        let blind = timeline(&[change(none("blind"), 0, None), asleep]);
        check(&blind, 100, &["none(blind) 0..100"]);
    }

    #[test]
    fn nothing_is_complete_after_what_was_received() {
        let timeline = timeline(&[change(Grade::Complete, 0, None)]);
        check(&timeline, 60, &[&format!("{NOT_YET} 60..100")]);
        check(&timeline, 100, &[]);
        let window = Window::new(at(0), at(100)).unwrap();
        assert_eq!(timeline.gaps(Facet::Connections, window, None).len(), 1, "nothing received at all");
    }

    #[test]
    fn losses_and_stops_are_gaps_where_they_were() {
        let timeline = timeline(&[
            change(Grade::Complete, 0, None),
            change(lost(3), 20, Some(30)),
            change(lost(1), 40, Some(40)),
            change(none("stopped"), 50, None),
            change(Grade::Complete, 60, None),
        ]);
        check(&timeline, 100, &["lost(3, ring) 20..30", "lost(1, ring) 40..41", "none(stopped) 50..60"]);
    }

    #[test]
    fn a_late_statement_never_improves_the_past() {
        let sampled = Grade::Sampled { period: Duration::from_secs(1) };
        let statements =
            [change(Grade::Complete, 0, None), change(none("off"), 50, None), change(sampled, 30, None)];
        let late = timeline(&statements);
        check(&late, 100, &["sampled(1 s) 30..100"]);

        let better = timeline(&[
            change(none("off"), 0, None),
            change(none("x"), 50, None),
            change(Grade::Complete, 30, None),
        ]);
        check(&better, 100, &["none(off) 0..50"]);
        let before_all = timeline(&[change(Grade::Complete, 50, None), change(Grade::Complete, 10, None)]);
        check(&before_all, 100, &[&format!("{NONE_YET} 0..50")]);
    }

    #[test]
    fn a_hole_is_a_loss_and_ends_all_belief_until_the_grade_is_stated_again() {
        let hole =
            Hole { first: Seq(5), last: Seq(9), from: at(20), to: at(40), reason: "overwritten".into() };
        let mut timeline = timeline(&[change(Grade::Complete, 0, None)]);
        timeline.apply_hole(&hole);
        let until_stated = "lost(0, events were lost, and the grade was not stated again since)";
        check(
            &timeline,
            90,
            &[
                "lost(5, overwritten) 20..40",
                &format!("{until_stated} 40..90"),
                &format!("{NOT_YET} 90..100"),
            ],
        );

        // A grade that was announced in what was missed, or not at all, is not believed.
        for announced_from in [None, Some(Seq(9))] {
            timeline.apply(&CoverageChange { announced_from, ..change(Grade::Complete, 0, None) });
        }
        check(
            &timeline,
            90,
            &[
                "lost(5, overwritten) 20..40",
                &format!("{until_stated} 40..90"),
                &format!("{NOT_YET} 90..100"),
            ],
        );
        let announced =
            |from| CoverageChange { announced_from: Some(Seq(10)), ..change(Grade::Complete, from, None) };
        let mut stated = timeline.clone();
        stated.apply(&announced(0));
        check(&stated, 100, &["lost(5, overwritten) 20..40"]);
        timeline.apply(&announced(70));
        check(&timeline, 100, &["lost(5, overwritten) 20..40", &format!("{until_stated} 40..70")]);
    }

    #[test]
    fn interruptions_are_found() {
        let timeline = timeline(&[
            change(Grade::Complete, 0, None),
            change(lost(3), 20, Some(30)),
            change(none("stopped"), 50, None),
            change(Grade::Complete, 60, None),
        ]);
        for (instant, want) in [(0, Some(20)), (25, Some(25)), (30, Some(50)), (55, Some(55)), (60, None)] {
            assert_eq!(timeline.interrupted_after(at(instant)), want.map(at), "{instant}");
        }
    }

    #[test]
    fn a_thousand_gaps_are_still_a_bounded_list() {
        let mut changes = vec![change(Grade::Complete, 0, None)];
        changes.extend((0..1000).map(|n| change(lost(1), n * 2, Some(n * 2 + 1))));
        let window = Window::new(at(0), at(2000)).unwrap();
        let gaps = timeline(&changes).gaps(Facet::Connections, window, Some(at(2000)));
        assert_eq!(gaps.len(), GAPS_MAX);
        assert_eq!(gaps.iter().map(|gap| gap.grade.count()).sum::<u64>(), 1000);
        assert_eq!(gaps.last().unwrap().to, at(1999));
    }
}
