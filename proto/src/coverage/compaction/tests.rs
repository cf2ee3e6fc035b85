use proptest::prelude::*;

use super::*;
use crate::{
    coverage::{CoverageChange, Facet, Hole},
    id::Seq,
    window::Window,
};

const END: u64 = 200;

fn at(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

fn grade() -> impl Strategy<Value = Grade> {
    let reason = || prop_oneof![Just("one".to_owned()), Just("two".to_owned())];
    prop_oneof![
        3 => Just(Grade::Complete),
        1 => (1..3_u64).prop_map(|secs| Grade::Sampled { period: Duration::from_secs(secs) }),
        1 => reason().prop_map(|reason| Grade::Doubtful { reason }),
        2 => (0..4_u64, reason()).prop_map(|(count, reason)| Grade::Lost { count, reason }),
        1 => reason().prop_map(|reason| Grade::NotRecorded { reason }),
    ]
}

fn change() -> impl Strategy<Value = CoverageChange> {
    let to = prop_oneof![1 => Just(None), 2 => (0..12_u64).prop_map(Some)];
    let scope = prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
    (0..END, grade(), to, scope).prop_map(|(from, grade, length, source)| CoverageChange {
        facet: Facet::Connections,
        grade,
        from: at(from),
        to: length.map(|length| at(from + length)),
        scope: source.map(|source| Scope {
            source: source.into(),
            covers: String::new(),
            cannot_see: String::new(),
        }),
        announced_from: Some(Seq(u64::MAX)),
    })
}

fn changes() -> impl Strategy<Value = Vec<CoverageChange>> {
    // Mostly forward in time, as an agent tells them, and sometimes back.
    (proptest::collection::vec(change(), 0..60), any::<bool>()).prop_map(|(mut changes, in_order)| {
        if in_order {
            changes.sort_by_key(|change| change.from);
        }
        changes
    })
}

fn told(changes: &[CoverageChange]) -> Timeline {
    let mut timeline = Timeline::default();
    changes.iter().for_each(|change| timeline.apply(change));
    timeline
}

fn badness(timeline: &Timeline, instant: u64) -> u8 {
    let window = Window::new(at(instant), at(instant + 1)).unwrap();
    let gaps = timeline.gaps(Facet::Connections, window, Some(Timestamp::MAX));
    gaps.iter().map(|gap| kind(&gap.grade)).max().unwrap_or(0)
}

fn count(timeline: &Timeline) -> u64 {
    let ends = timeline.steps.iter().skip(1).map(|step| step.from).chain([Timestamp::MAX]);
    let steps = timeline.steps.iter().zip(ends).filter(|(step, ends)| step.from < *ends);
    let steps: u64 = steps.map(|(step, _)| step.grade.count()).sum();
    steps + timeline.losses.iter().map(|loss| loss.grade.count()).sum::<u64>()
}

/// Whoever asks `compacted` rules nothing out that one who asks `whole` does not, and believes no life for longer.
fn assert_rounds_to_unknown(whole: &Timeline, compacted: &Timeline) -> Result<(), TestCaseError> {
    for instant in 0..END + 20 {
        let (is, was) = (badness(compacted, instant), badness(whole, instant));
        prop_assert!(is >= was, "at {}: {:#?}\n{:#?}", instant, whole, compacted);
    }
    for instant in 0..END + 20 {
        let ends = |timeline: &Timeline| timeline.interrupted_after(at(instant)).unwrap_or(Timestamp::MAX);
        prop_assert!(ends(compacted) <= ends(whole));
        // Where a life is believed less long, nothing is ruled out.
        let (from, to) = (ends(compacted).as_nanos(), ends(whole).as_nanos().min(END + 20));
        prop_assert!((from..to).all(|doubted| badness(compacted, doubted) > 0), "{from}..{to}");
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_compacted_timeline_rounds_to_unknown(before in changes(), after in changes(), bound in 8..40_usize) {
        let whole = told(&before);
        let mut compacted = whole.clone();
        compacted.compact(bound);
        prop_assert!(compacted.intervals() <= bound);
        prop_assert_eq!(count(&compacted), count(&whole));
        assert_rounds_to_unknown(&whole, &compacted)?;
        let once = compacted.clone();
        compacted.compact(bound);
        prop_assert_eq!(&compacted, &once);

        // Whatever is said after it.
        let (mut whole, mut compacted) = (whole, compacted);
        for change in &after {
            whole.apply(change);
            compacted.apply(change);
            compacted.compact(bound);
        }
        assert_rounds_to_unknown(&whole, &compacted)?;
    }
}

fn complete(from: u64, to: Option<u64>) -> CoverageChange {
    let facet = Facet::Connections;
    CoverageChange {
        facet,
        grade: Grade::Complete,
        from: at(from),
        to: to.map(at),
        scope: None,
        announced_from: None,
    }
}

fn lost(from: u64, to: u64, reason: &str) -> CoverageChange {
    let grade = Grade::Lost { count: 1, reason: reason.into() };
    CoverageChange { grade, ..complete(from, Some(to)) }
}

fn gaps(timeline: &Timeline, to: u64) -> Vec<String> {
    let window = Window::new(at(0), at(to)).unwrap();
    let gaps = timeline.gaps(Facet::Connections, window, Some(at(to)));
    gaps.iter().map(|gap| format!("{} {}..{}", gap.grade, gap.from.as_nanos(), gap.to.as_nanos())).collect()
}

#[test]
fn old_time_becomes_coarse_first_and_nearest_neighbours_before_others() {
    let mut changes = vec![complete(0, None)];
    let losses = [
        (10, "a"),
        (12, "a"),
        (30, "a"),
        (33, "b"),
        (100, "a"),
        (700, "a"),
        (900, "a"),
        (960, "a"),
        (980, "a"),
    ];
    changes.extend(losses.map(|(from, reason)| lost(from, from + 1, reason)));
    let mut timeline = told(&changes);
    timeline.compact(8);
    assert_eq!(
        gaps(&timeline, 1000),
        [
            "lost(2, a) 10..13".to_owned(),
            format!("lost(2, {SEVERAL}) 30..34"),
            "lost(1, a) 100..101".to_owned(),
            "lost(1, a) 700..701".to_owned(),
            "lost(1, a) 900..901".to_owned(),
            "lost(1, a) 960..961".to_owned(),
            "lost(1, a) 980..981".to_owned(),
        ]
    );
}

#[test]
fn what_lies_between_suspends_that_became_one_is_not_ruled_out() {
    let mut changes = vec![complete(0, None)];
    changes.extend((1..9).map(|n| complete(n * 100, Some(n * 100 + 50))));
    let mut timeline = told(&changes);
    timeline.compact(8);
    assert_eq!(gaps(&timeline, 1000), [format!("lost(0, {BETWEEN_SUSPENDS}) 100..250")]);
    assert_eq!(timeline.interrupted_after(at(300)), Some(at(300)));
}

#[test]
fn an_interruption_ends_only_where_one_did() {
    let mut changes: Vec<_> = (0..6_u64)
        .flat_map(|n| {
            let none = Grade::NotRecorded { reason: "stopped".into() };
            [complete(n * 100, None), CoverageChange { grade: none, ..complete(n * 100 + 90, None) }]
        })
        .collect();
    changes.push(complete(600, None));
    let mut timeline = told(&changes);
    timeline.compact(8);
    assert_eq!(
        gaps(&timeline, 700),
        [
            "none(stopped) 0..300",
            "none(stopped) 390..400",
            "none(stopped) 490..500",
            "none(stopped) 590..600"
        ]
    );
}

#[test]
fn what_was_recorded_in_several_ways_names_them_all() {
    let way = |source: &str, from| {
        let scope = Scope { source: source.into(), covers: "all".into(), cannot_see: source.repeat(100) };
        CoverageChange { scope: Some(scope), ..complete(from, None) }
    };
    let mut timeline =
        told(&(0..20).map(|n| way(["a", "b", "c"][n as usize % 3], n * 10)).collect::<Vec<_>>());
    timeline.compact(8);
    let scopes = timeline.scopes(Window::new(at(0), at(10)).unwrap());
    assert_eq!((scopes[0].source.as_str(), scopes[0].covers.as_str()), ("a; or b; or c", "all"));
    assert_eq!(scopes[0].cannot_see, ["a", "b", "c"].map(|source| source.repeat(100)).join(OR));
    assert_eq!(gaps(&timeline, 200), Vec::<String>::new());

    let mut timeline = told(&(0..2_000).map(|n| way(&n.to_string(), n * 10)).collect::<Vec<_>>());
    timeline.compact(8);
    assert_eq!(timeline.scopes(Window::new(at(0), at(10)).unwrap())[0].source, SEVERAL_WAYS);
}

#[test]
fn whatever_is_told_a_timeline_stays_within_its_bound() {
    let mut timeline = told(&[complete(0, None)]);
    for n in 0..3 * INTERVALS_MAX as u64 {
        timeline.apply(&lost(n * 10, n * 10 + 1, "a"));
        timeline.apply(&CoverageChange {
            grade: if n % 2 == 0 {
                Grade::Complete
            } else {
                Grade::NotRecorded { reason: "x".repeat(5_000) }
            },
            ..complete(n * 10, None)
        });
        if n % 100 == 0 {
            let hole = Hole {
                first: Seq(n + 1),
                last: Seq(n + 1),
                from: at(n),
                to: at(n + 1),
                reason: "é".repeat(1_000),
            };
            timeline.apply_hole(&hole);
        }
        assert!(timeline.intervals() <= INTERVALS_MAX);
    }
    let words = timeline.steps.iter().map(|step| step.grade.reason().len());
    let words = words.chain(timeline.losses.iter().map(|loss| loss.grade.reason().len()));
    assert!(words.max().is_some_and(|longest| longest <= WORDS_BYTES_MAX));
}
