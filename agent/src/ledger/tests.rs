use alibi_proto::{coverage::Timeline, event::EventKind, time::Moment, window::Window};

use super::{past::SHUTDOWN_MAX, *};

fn at(nanos: u64) -> Timestamp {
    Timestamp::from_nanos(nanos)
}

/// A host that was started just now.
fn on(wall: Timestamp) -> Moment {
    Moment { wall, boot_ns: 0 }
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
    said.extend(first.begin(PreviousRun::None, on(at(0))));
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
    said.extend(second.begin(previous, on(at(restart))));
    said.extend(second.state(complete(restart)));

    let mut timeline = Timeline::default();
    said.iter().filter(|change| change.facet == Facet::Connections).for_each(|change| timeline.apply(change));
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
        let mut said = first.begin(PreviousRun::None, on(second(0)));
        said.extend(first.state(complete(0)));
        let mut killed = Ledger::default();
        said.extend(killed.begin(PreviousRun::Killed { recorded_until: second(40) }, on(second(restart))));
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

fn secs(seconds: u64) -> Timestamp {
    Timestamp::from_secs(seconds)
}

/// `seconds` by the wall clock, so long after the host was started.
fn moment(seconds: u64, since_boot: u64) -> Moment {
    Moment { wall: secs(seconds), boot_ns: since_boot * 1_000_000_000 }
}

const STOPPED: PreviousRun = PreviousRun::Stopped { recorded_until: Timestamp::from_secs(1_000) };
const KILLED: PreviousRun = PreviousRun::Killed { recorded_until: Timestamp::from_secs(1_000) };
const ENDED: PreviousRun = PreviousRun::Ended {
    recorded_until: Timestamp::from_secs(1_000),
    told_until: Timestamp::from_secs(1_010),
};

/// The gaps of seconds `[0, 20,000)` where one run recorded from 0 until 1,000, and another begins `now`. What the second
/// says is heard after a hole that ends where the first did, too.
#[track_caller]
fn check_past(past: Past, now: Moment, want: &[(u64, u64)]) {
    let mut first = Ledger::default();
    let mut said = vec![complete(0)];
    if let PreviousRun::Stopped { recorded_until } = past.previous {
        said.extend(first.stop("stopped", recorded_until));
    }
    let mut second = Ledger::default();
    said.extend(second.begin(past, now));
    said.push(complete(now.wall.as_nanos()));
    said.retain(|change| change.facet == Facet::Connections);
    let mut timeline = Timeline::default();
    said.iter().for_each(|change| timeline.apply(change));
    let window = Window::new(secs(0), secs(20_000)).unwrap();
    let gaps = timeline.gaps(Facet::Connections, window, Some(secs(20_000)));
    let mut gaps: Vec<_> = gaps
        .iter()
        .map(|gap| (gap.from.as_nanos() / 1_000_000_000, gap.to.as_nanos() / 1_000_000_000))
        .collect();
    gaps.dedup_by(|next, gap| {
        let touch = next.0 <= gap.1;
        if touch {
            gap.1 = gap.1.max(next.1);
        }
        touch
    });
    assert_eq!(gaps, want);
}

/// Shut down then, and started at 9,000.
fn restart(shutdown: u64) -> Option<Restart> {
    Some(Restart { shutdown: secs(shutdown), started: secs(9_000) })
}

#[test]
fn a_host_that_was_off_is_covered_from_its_shutdown_to_its_boot() {
    let stopped = Past { is_this_boot: Some(false), restart: restart(1_010), ..STOPPED.into() };
    let now = moment(9_100, 100);
    let margin = SHUTDOWN_MAX.as_secs();
    assert_eq!(margin, 1_980);
    check_past(stopped, now, &[(1_000, 1_010 + margin), (9_000, 9_100)]);
    check_past(Past { previous: ENDED, ..stopped }, now, &[(1_000, 1_010 + margin), (9_000, 9_100)]);
    let told = Past { recorded_at: Some(moment(1_001, 50)), ..stopped };
    check_past(told, now, &[(1_000, 1_010 + margin), (9_000, 9_100)]);
    // By a clock that was set forward since the host was started, and one that was set back.
    check_past(stopped, moment(9_150, 100), &[(1_000, 1_010 + margin), (9_000, 9_150)]);
    check_past(stopped, moment(9_050, 100), &[(1_000, 1_010 + margin), (8_950, 9_050)]);
    // As soon as the margin has passed.
    check_past(stopped, moment(3_091, 100), &[(1_000, 2_990), (2_991, 3_091)]);
    check_past(stopped, moment(3_090, 100), &[(1_000, 3_090)]);
}

#[test]
fn what_does_not_prove_that_the_host_was_off_covers_nothing() {
    let off = Past { is_this_boot: Some(false), restart: restart(1_010), ..STOPPED.into() };
    let now = moment(9_100, 100);
    for past in [
        Past { restart: None, ..off },
        Past { is_this_boot: None, ..off },
        Past { is_this_boot: Some(true), ..off },
        // By a clock that was set back after what it recorded.
        Past { restart: restart(999), ..off },
        Past { recorded_at: Some(moment(1_011, 50)), ..off },
        // Too long after the end of the recording.
        Past { restart: restart(1_000 + 1_981), ..off },
        // After this boot, by its clock.
        Past { restart: restart(9_001), ..off },
    ] {
        check_past(past, now, &[(1_000, 9_100)]);
    }
    let without_end = Past { previous: PreviousRun::None, ..off };
    assert_eq!(Ledger::default().begin(without_end, now), []);
}

#[test]
fn a_boot_that_was_earlier_than_said_takes_back_that_the_host_was_off() {
    let off = Past { is_this_boot: Some(false), restart: restart(1_010), ..STOPPED.into() };
    let mut ledger = Ledger::default();
    ledger.begin(off, moment(9_100, 100));
    let spans = |changes: Vec<CoverageChange>| {
        let of_connections = changes.into_iter().filter(|change| change.facet == Facet::Connections);
        of_connections.map(|change| (change.from, change.to.unwrap())).collect::<Vec<_>>()
    };
    // Two hours ahead, until it is corrected.
    let (before, after) = (moment(9_200, 200), moment(2_001, 201));
    assert_eq!(spans(ledger.boot_may_be_earlier(before, after)), [(secs(1_800), secs(9_000))]);
    assert_eq!(ledger.boot_may_be_earlier(after, before), [], "it was off for longer than was said");
    assert_eq!(Ledger::default().boot_may_be_earlier(before, after), [], "nobody said that it was off");

    // Or while the agent was away.
    let away = Past { recorded_at: Some(before), is_this_boot: Some(true), ..STOPPED.into() };
    let said = spans(Ledger::default().begin(away, after));
    assert!(said.contains(&(secs(1_800), secs(9_000))), "{said:?}");
}

#[test]
fn a_clock_set_back_while_the_agent_was_away_makes_a_time_happen_twice() {
    let away = |previous: PreviousRun| Past {
        recorded_at: Some(moment(1_000, 700)),
        is_this_boot: Some(true),
        ..previous.into()
    };
    for previous in [STOPPED, KILLED] {
        // Away for 500 s, and the clock set back by 200 of them: at once, or just now. So the boot was earlier, too.
        check_past(away(previous), moment(1_300, 1_200), &[(100, 300), (800, 1_500)]);
        // By more than it was away.
        check_past(away(previous), moment(900, 1_200), &[(0, 300), (400, 1_500)]);
        // Not at all, steered, and set forward.
        check_past(away(previous), moment(1_500, 1_200), &[(1_000, 1_500)]);
        check_past(away(previous), moment(1_499, 1_199), &[(1_000, 1_499)]);
        check_past(away(previous), moment(9_000, 1_200), &[(1_000, 9_000)]);
    }
    // The run before said itself how far a time reaches that it recorded twice.
    let until = Past { recorded_at: Some(moment(700, 50)), ..away(STOPPED) };
    check_past(until, moment(800, 150), &[(800, 1_000)]);
}

#[test]
fn a_clock_that_is_behind_after_another_boot_leaves_in_doubt_what_it_showed_since() {
    // Since when it is behind is not known, but that this boot began then.
    check_past(STOPPED.into(), moment(900, 100), &[(800, 1_000)]);
    check_past(ENDED.into(), moment(900, 100), &[(800, 1_010)]);
    let told = |at: Moment| Past { recorded_at: Some(at), is_this_boot: Some(false), ..STOPPED.into() };
    // Behind what it showed at the end of the recording: nothing bounds how far it went back meanwhile.
    check_past(told(moment(1_000, 5_000)), moment(900, 100), &[(0, 1_000)]);
    // It goes on in a time that the run before had begun to record again.
    check_past(told(moment(790, 5_000)), moment(900, 100), &[(800, 1_000)]);
    // Set back while the host was off, and on again since for longer than that.
    check_past(told(moment(1_000, 5_000)), moment(1_300, 400), &[(900, 1_300)]);
}

#[test]
fn a_summary_is_what_a_reader_of_the_ring_makes_of_it() {
    let of = |facet, from: u64, to: Option<u64>, grade: Grade| CoverageChange {
        facet,
        grade,
        from: at(from),
        to: to.map(at),
        scope: None,
        announced_from: None,
    };
    let lost = |from| of(Facet::Names, from, Some(from + 1), Grade::Lost { count: 1, reason: "full".into() });
    let changes = [complete(0), lost(5), complete(7), lost(9)];
    let mut ledger = Ledger::default();
    let mut reader = Summary::default();
    for (seq, change) in (1..).map(Seq).zip(&changes) {
        ledger.said(seq, change);
    }
    assert_eq!(ledger.summary(), reader, "nothing is in the ring yet");
    ledger.written(Seq(3));
    changes[..2].iter().for_each(|change| reader.change(change));
    reader.next = Seq(3);
    assert_eq!(ledger.summary(), reader);

    // The disk was full: the third was never written, and another has its number.
    ledger.forget(Seq(3));
    ledger.said(Seq(3), &lost(20));
    ledger.written(Seq(9));
    reader.change(&lost(20));
    reader.next = Seq(9);
    assert_eq!(ledger.summary(), reader);

    let mut next = Ledger::default();
    next.restore(ledger.summary());
    let recorded = on(at(30));
    let event = Event { seq: Seq(9), recorded, kind: EventKind::CoverageChanged(lost(21)) };
    let hole = Hole { first: Seq(10), last: Seq(12), from: at(22), to: at(25), reason: "damaged".into() };
    next.replay(&event);
    next.replay(&event);
    next.replay_hole(&hole);
    reader.apply(&event, None);
    reader.apply_hole(&hole);
    assert_eq!(next.summary(), reader);
    assert_eq!(next.summary().next, Seq(13));
}
