//! Coverage as a whole.

use std::sync::Arc;

use super::{ConvertError, Result, bad, required};
use crate::{
    coverage::{Facet, Grade, INTERVALS_MAX, Loss, Scope, Step, Summary, Timeline, WORDS_BYTES_MAX},
    id::Seq,
    time::Timestamp,
    wire,
};

impl From<Summary> for wire::CoverageSummary {
    fn from(summary: Summary) -> Self {
        let facets = summary.timelines.into_iter().map(|(facet, timeline)| wire::FacetTimeline {
            facet: facet.to_wire(),
            timeline: Some(timeline.into()),
        });
        Self { next_seq: summary.next.0, facets: facets.collect() }
    }
}

impl TryFrom<wire::CoverageSummary> for Summary {
    type Error = ConvertError;

    fn try_from(message: wire::CoverageSummary) -> Result<Self> {
        if message.next_seq == 0 {
            return bad("summary.next_seq", "is 0: positions begin at 1");
        }
        let mut summary = Self { next: Seq(message.next_seq), ..Self::default() };
        for wire::FacetTimeline { facet, timeline } in message.facets {
            let timeline = required("summary.timeline", timeline)?.try_into()?;
            if summary.timelines.insert(Facet::from_wire(facet)?, timeline).is_some() {
                return bad("summary.facets", "has a facet twice");
            }
        }
        Ok(summary)
    }
}

impl From<Timeline> for wire::Timeline {
    fn from(timeline: Timeline) -> Self {
        let step = |step: Step| wire::TimelineStep {
            from_ns: step.from.as_nanos(),
            grade: Some(step.grade.into()),
            scope: step.scope.map(|scope| Arc::unwrap_or_clone(scope).into()),
        };
        let loss = |loss: Loss| wire::TimelineLoss {
            from_ns: loss.from.as_nanos(),
            to_ns: loss.to.as_nanos(),
            grade: Some(loss.grade.into()),
        };
        Self {
            steps: timeline.steps.into_iter().map(step).collect(),
            losses: timeline.losses.into_iter().map(loss).collect(),
            missed_up_to_seq: timeline.missed_up_to.map(|seq| seq.0),
        }
    }
}

impl TryFrom<wire::Timeline> for Timeline {
    type Error = ConvertError;

    fn try_from(timeline: wire::Timeline) -> Result<Self> {
        let intervals = timeline.steps.len() + timeline.losses.len();
        if intervals > INTERVALS_MAX {
            return bad("timeline", format!("has {intervals} intervals: there are at most {INTERVALS_MAX}"));
        }
        let step = |step: wire::TimelineStep| {
            Ok(Step {
                from: Timestamp::from_nanos(step.from_ns),
                grade: grade(step.grade)?,
                scope: step.scope.map(scope).transpose()?.map(Arc::new),
            })
        };
        let steps = timeline.steps.into_iter().map(step).collect::<Result<Vec<Step>>>()?;
        if !steps.is_sorted_by_key(|step| step.from) {
            return bad("timeline.steps", "are not in order of time");
        }
        let loss = |loss: wire::TimelineLoss| {
            let (from, to) = (Timestamp::from_nanos(loss.from_ns), Timestamp::from_nanos(loss.to_ns));
            if to < from {
                return bad("timeline.losses", "has one that ends before it begins");
            }
            Ok(Loss { from, to, grade: grade(loss.grade)? })
        };
        Ok(Self {
            steps,
            losses: timeline.losses.into_iter().map(loss).collect::<Result<_>>()?,
            missed_up_to: timeline.missed_up_to_seq.map(Seq),
        })
    }
}

fn grade(grade: Option<wire::Grade>) -> Result<Grade> {
    let grade = Grade::try_from(grade)?;
    if let Grade::Doubtful { reason } | Grade::Lost { reason, .. } | Grade::NotRecorded { reason } = &grade {
        words(reason)?;
    }
    Ok(grade)
}

fn scope(scope: wire::Scope) -> Result<Scope> {
    let scope = Scope::from(scope);
    [&scope.source, &scope.covers, &scope.cannot_see].into_iter().try_for_each(|text| words(text))?;
    Ok(scope)
}

fn words(words: &str) -> Result<()> {
    let bytes = words.len();
    if bytes > WORDS_BYTES_MAX {
        return bad("timeline", format!("has words of {bytes} bytes: there are at most {WORDS_BYTES_MAX}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coverage::{CoverageChange, Hole};

    fn summary() -> Summary {
        let mut summary = Summary::default();
        let at = Timestamp::from_nanos;
        let complete = CoverageChange {
            facet: Facet::Names,
            grade: Grade::Complete,
            from: at(5),
            to: None,
            scope: Some(Scope { source: "a".into(), covers: "b".into(), cannot_see: "c".into() }),
            announced_from: None,
        };
        summary.change(&complete);
        summary.change(&CoverageChange { to: Some(at(9)), scope: None, ..complete });
        let hole = Hole { first: Seq(1), last: Seq(7), from: at(20), to: at(30), reason: "evicted".into() };
        summary.apply_hole(&hole);
        summary
    }

    #[test]
    fn a_summary_comes_back_as_it_was() {
        assert_eq!(Summary::try_from(wire::CoverageSummary::from(summary())).unwrap(), summary());
        assert_eq!(summary().next, Seq(8));
    }

    #[test]
    fn what_no_ledger_says_is_refused() {
        type Break = fn(&mut wire::CoverageSummary);
        let breaks: [(Break, &str); 8] = [
            (|summary| summary.next_seq = 0, "field `summary.next_seq` is 0: positions begin at 1"),
            (|summary| summary.facets[1].facet = 1, "field `summary.facets` has a facet twice"),
            (|summary| summary.facets[0].facet = 9, "field `facet` has no meaning for the value 9"),
            (|summary| summary.facets[0].timeline = None, "field `summary.timeline` is missing"),
            (|summary| steps(summary)[1].from_ns = 1, "field `timeline.steps` are not in order of time"),
            (|summary| steps(summary)[0].grade = None, "field `grade` is missing"),
            (
                |summary| steps(summary)[0].scope.as_mut().unwrap().covers = "x".repeat(1025),
                "field `timeline` has words of 1025 bytes: there are at most 1024",
            ),
            (
                |summary| {
                    let step = steps(summary)[1].clone();
                    steps(summary).extend(std::iter::repeat_n(step, INTERVALS_MAX));
                },
                "field `timeline` has 2052 intervals: there are at most 2048",
            ),
        ];
        for (spoil, want) in breaks {
            let mut message = wire::CoverageSummary::from(summary());
            spoil(&mut message);
            assert_eq!(Summary::try_from(message).unwrap_err().to_string(), want);
        }
    }

    /// Of names, which stand last.
    fn steps(summary: &mut wire::CoverageSummary) -> &mut Vec<wire::TimelineStep> {
        let index = summary.facets.iter().position(|facet| facet.facet == Facet::Names.to_wire()).unwrap();
        &mut summary.facets[index].timeline.as_mut().unwrap().steps
    }
}
