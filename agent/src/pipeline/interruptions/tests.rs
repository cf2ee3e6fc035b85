use alibi_proto::question::Verdict;

use super::{
    super::tests::{at, opened, pipeline, records, verdict},
    *,
};
use crate::{
    capture::{Fact, Observation, Report},
    pipeline::Limits,
};

const MILLISECOND: u64 = 1_000_000;
const TURN: u64 = 100;

fn millis(millis: u64) -> Moment {
    Moment { wall: Timestamp::from_nanos(millis * MILLISECOND), boot_ns: millis * MILLISECOND }
}

fn loss(facet: Facet, from: u64, to: u64) -> CoverageChange {
    let grade = Grade::Lost { count: 3, reason: "full".into() };
    let (from, to) = (millis(from).wall, Some(millis(to).wall));
    CoverageChange { facet, grade, from, to, scope: None, announced_from: None }
}

/// A turn that ends at `end`, in milliseconds; with losses that end a little later than the turn, as those of the buffer do.
fn turn(pipeline: &mut Pipeline, end: u64, loses: bool) {
    let mut observations = Vec::new();
    if loses {
        for facet in [Facet::Connections, Facet::Processes] {
            let fact = Fact::Coverage(loss(facet, end - TURN, end + 1));
            observations.push(Observation { at: millis(end), fact });
        }
    }
    pipeline.take(Report { observations, seen_until: millis(end) }, millis(end));
}

fn with_open(connections: u16) -> (Pipeline, Vec<alibi_proto::event::Event>) {
    let mut pipeline = pipeline(Limits::default());
    turn(&mut pipeline, TURN, false);
    let open = (1..=connections).map(|port| Observation { at: millis(150), fact: opened(port) }).collect();
    pipeline.take(Report { observations: open, seen_until: millis(200) }, millis(200));
    (300..=2_000).step_by(100).for_each(|end| turn(&mut pipeline, end, false));
    let events = pipeline.events();
    (pipeline, events)
}

fn lost(events: &[alibi_proto::event::Event], facet: Facet) -> (usize, u64) {
    let losses = events.iter().filter_map(|event| match &event.kind {
        alibi_proto::event::EventKind::CoverageChanged(change) if change.facet == facet => {
            Some(change.grade.count()).filter(|count| *count > 0)
        }
        _ => None,
    });
    losses.fold((0, 0), |(losses, sum), count| (losses + 1, sum + count))
}

#[test]
fn losses_without_end_do_not_write_everything_open_without_end() {
    const OPEN: u16 = 5_000;
    let (mut pipeline, mut events) = with_open(OPEN);
    let before = records(&events).len();
    // Sixty losses in six seconds.
    for end in (2_100..=8_000).step_by(100) {
        turn(&mut pipeline, end, true);
        events.extend(pipeline.events());
        let known = pipeline.watermark().unwrap().as_nanos() / MILLISECOND / 1_000;
        for from in 2..8 {
            let said = verdict(&events, from, from + 1, known);
            assert_ne!(said, Verdict::Clear, "{from} s, known until {known} s, at {end} ms");
        }
    }
    let said_anew = records(&events).len() - before;
    assert!(said_anew <= 2 * usize::from(OPEN), "{said_anew} records");
    for end in (8_100..=20_000).step_by(100) {
        turn(&mut pipeline, end, false);
    }
    events.extend(pipeline.events());
    assert_eq!(pipeline.watermark(), Some(millis(20_000).wall));
    assert_eq!(verdict(&events, 15, 18, 20), Verdict::Talked, "believed again");
    for facet in [Facet::Connections, Facet::Processes] {
        let (losses, count) = lost(&events, facet);
        assert_eq!(count, 180, "counted to the last");
        assert!(losses <= 6, "{losses} losses, that touch each other");
    }
}

#[test]
fn a_small_loss_costs_a_small_gap() {
    let (mut pipeline, mut events) = with_open(20);
    for end in (2_100..=6_000).step_by(100) {
        turn(&mut pipeline, end, end % 1_000 == 0);
        assert!(pipeline.watermark() >= Some(millis(end - TURN).wall), "{end} ms");
    }
    events.extend(pipeline.events());
    assert_eq!(lost(&events, Facet::Connections), (4, 12));
}

#[test]
fn what_waits_is_said_before_the_end() {
    let (mut pipeline, mut events) = with_open(5_000);
    (2_100..=3_000).step_by(100).for_each(|end| turn(&mut pipeline, end, true));
    pipeline.stop("stopped", millis(3_000));
    events.extend(pipeline.events());
    assert_eq!(lost(&events, Facet::Connections).1, 30);
    assert_eq!(pipeline.watermark(), Some(millis(3_000).wall));
}

#[test]
fn a_loss_in_what_was_told_leaves_nothing_open_believed_away() {
    let (mut pipeline, mut events) = with_open(5_000);
    turn(&mut pipeline, 2_100, true);
    turn(&mut pipeline, 2_200, false);
    turn(&mut pipeline, 4_000, false);
    turn(&mut pipeline, 9_000, false);
    assert_eq!(pipeline.watermark(), Some(millis(9_000).wall));
    // One that is known late, and then another: neither is paid for.
    for (from, to) in [(3_000, 3_500), (5_000, 5_100)] {
        let fact = Fact::Coverage(loss(Facet::Connections, from, to));
        let observations = vec![Observation { at: millis(9_100), fact }];
        pipeline.take(Report { observations, seen_until: millis(9_100) }, millis(9_100));
    }
    events.extend(pipeline.events());
    for from in 3..9 {
        assert_ne!(verdict(&events, from, from + 1, 9), Verdict::Clear, "{from} s");
    }
    assert_eq!(at(9).wall, millis(9_000).wall);
}

#[test]
fn losses_that_wait_are_bounded() {
    let mut interruptions = Interruptions::default();
    let far_apart = |n: u64| loss(Facet::Names, n * 10, n * 10 + 1);
    let held = (0..1_000).filter(|n| interruptions.hold(&far_apart(*n))).count();
    assert_eq!(held, LOSSES_HELD_MAX);
    assert!(interruptions.hold(&loss(Facet::Names, 1, 2)), "one that touches another takes no room");
}

#[test]
fn a_loss_that_was_said_at_once_is_not_passed_before_what_is_open_is_said_anew() {
    let (mut pipeline, mut events) = with_open(5_000);
    for (end, loses) in [(2_100, true), (2_200, false), (2_300, true), (2_400, false), (4_000, false)] {
        turn(&mut pipeline, end, loses);
    }
    events.extend(pipeline.events());
    assert_eq!(lost(&events, Facet::Connections), (2, 6));
    assert_eq!(pipeline.watermark(), Some(millis(2_301).wall), "where the second loss ends");
    assert_ne!(verdict(&events, 3, 4, 2), Verdict::Clear);
    turn(&mut pipeline, 9_000, false);
    events.extend(pipeline.events());
    assert_eq!(pipeline.watermark(), Some(millis(9_000).wall));
    assert_eq!(verdict(&events, 3, 4, 9), Verdict::Talked, "the gap is no wider than the loss");
}
