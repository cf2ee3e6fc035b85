use alibi_proto::{
    clock::HostClock,
    coverage::{Scope, Timeline},
    flow::Protocol,
    host::FacetCoverage,
    id::HostId,
    process::ProcessImage,
    question::{Evidence, Question, Verdict, judge},
    target::Target,
    window::Window,
};

use super::*;
use crate::ledger::PreviousRun;

const SECOND: u64 = 1_000_000_000;

pub(super) fn at(seconds: u64) -> Moment {
    Moment { wall: Timestamp::from_nanos(seconds * SECOND), boot_ns: seconds * SECOND }
}

fn source() -> SourceDescription {
    let scope = Scope { source: "test".into(), covers: "all".into(), cannot_see: "nothing".into() };
    let facets = [Facet::Processes, Facet::Connections]
        .map(|facet| FacetCoverage { facet, grade: Grade::Complete, scope: scope.clone() })
        .to_vec();
    SourceDescription { name: "test".into(), facets, caveat: None }
}

pub(super) fn pipeline(limits: Limits) -> Pipeline {
    let boot = HostBoot::new(HostId::from_bytes([1; 16]), "boot");
    Pipeline::new(boot, limits, source(), Seq::FIRST, PreviousRun::None, at(0))
}

fn socket(port: u16) -> SocketKey {
    SocketKey { protocol: Protocol::Tcp, remote: ([198, 51, 100, 7], 443).into(), socket: port.into() }
}

pub(super) fn opened(port: u16) -> Fact {
    Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: socket(port),
        local: ([192, 0, 2, 1], port).into(),
        owner: Some(ProcessKey { pid: 7, start: 1 }),
        attribution: Attribution::SocketTable,
        direction: Direction::Outbound,
        state: FlowState::Established,
        already_open: false,
        traffic: Some(Traffic::default()),
        interface: None,
        network_namespace: None,
    }))
}

fn moved(port: u16, bytes_sent: u64) -> Fact {
    let traffic = Some(Traffic { bytes_sent, ..Traffic::default() });
    let change = ConnectionChange { traffic, ..ConnectionChange::default() };
    Fact::ConnectionChanged { socket: socket(port), change }
}

fn closed(port: u16) -> Fact {
    Fact::ConnectionClosed {
        socket: socket(port),
        state: FlowState::Closed,
        change: ConnectionChange::default(),
    }
}

/// Feeds `(second, fact)` one report each, up to `until`, a report each second.
fn feed(pipeline: &mut Pipeline, facts: Vec<(u64, Fact)>, until: u64) -> Vec<Event> {
    let mut facts = facts.into_iter().peekable();
    for second in 0..=until {
        let mut observations = Vec::new();
        while let Some((_, fact)) = facts.next_if(|(when, _)| *when <= second) {
            observations.push(Observation { at: at(second), fact });
        }
        pipeline.take(Report { observations, seen_until: at(second) }, at(second));
    }
    pipeline.events()
}

fn speaks_from(events: &[Event]) -> Timestamp {
    events.iter().map(Event::speaks_from).min().unwrap_or(at(9).wall)
}

/// The flow records as `first..last state reason bytes`.
pub(super) fn records(events: &[Event]) -> Vec<String> {
    let seconds = |time: Timestamp| time.as_nanos() / SECOND;
    events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Flow(flow) => Some(format!(
                "{}..{} {} {} {}",
                seconds(flow.first),
                seconds(flow.last),
                flow.state.word(),
                flow.end_reason,
                flow.traffic.unwrap_or_default().bytes_sent
            )),
            _ => None,
        })
        .collect()
}

#[test]
fn a_short_connection_is_one_record() {
    let mut pipeline = pipeline(Limits::default());
    let events = feed(&mut pipeline, vec![(5, opened(1)), (5, moved(1, 9)), (5, closed(1))], 10);
    assert_eq!(records(&events), ["5..5 closed end_of_flow 9"]);
}

#[test]
fn records_tile_a_long_life_by_the_timeouts() {
    let facts = vec![(5, opened(1)), (30, moved(1, 10)), (2000, moved(1, 30)), (2010, closed(1))];
    let events = feed(&mut pipeline(Limits::default()), facts, 2020);
    assert_eq!(
        records(&events),
        [
            "5..6 established active_timeout 0",
            "6..66 established active_timeout 10",
            "66..966 established idle_timeout 0",
            "966..1866 established idle_timeout 0",
            "1866..2000 established active_timeout 20",
            "2000..2010 closed end_of_flow 0",
        ]
    );
}

#[test]
fn no_record_is_too_long_even_if_reports_stall() {
    let mut pipeline = pipeline(Limits::default());
    pipeline.take(Report { observations: vec![], seen_until: at(0) }, at(0));
    let open = Observation { at: at(10), fact: opened(1) };
    pipeline.take(Report { observations: vec![open], seen_until: at(10) }, at(10));
    let close = Observation { at: at(2000), fact: closed(1) };
    pipeline.take(Report { observations: vec![close], seen_until: at(2000) }, at(2000));
    assert_eq!(
        records(&pipeline.events()),
        [
            "10..910 established idle_timeout 0",
            "910..1810 established idle_timeout 0",
            "1810..2000 closed end_of_flow 0",
        ]
    );
}

#[test]
fn the_watermark_waits_for_what_is_held_back() {
    let mut pipeline = pipeline(Limits::default());
    assert_eq!(pipeline.watermark(), None);
    let report = |observations, nanos| {
        let seen_until = Moment { wall: Timestamp::from_nanos(nanos), boot_ns: nanos };
        (Report { observations, seen_until }, seen_until)
    };
    let (first, now) = report(vec![Observation { at: at(1), fact: opened(1) }], SECOND + 10);
    pipeline.take(first, now);
    assert_eq!(pipeline.watermark(), Some(at(1).wall), "its first record comes after a second");
    let (second, now) = report(vec![], 2 * SECOND + 20);
    pipeline.take(second, now);
    assert_eq!(pipeline.watermark(), Some(Timestamp::from_nanos(2 * SECOND + 20)));
    assert_eq!(records(&pipeline.events()).len(), 1);
}

#[test]
fn events_are_numbered_without_holes_and_begin_with_the_grades() {
    let mut pipeline = pipeline(Limits::default());
    let process = ObservedProcess {
        process: ProcessKey { pid: 7, start: 1 },
        parent: Some(ProcessKey { pid: 1, start: 0 }),
        parent_pid: Some(1),
        started: at(0).wall,
        already_running: true,
        image: ProcessImage {
            name: "mysql".into(),
            arguments: vec!["mysql".into(), "--password=hunter2".into()],
            user: Some(User { id: "1000".into(), name: Some("jdoe".into()) }),
            ..ProcessImage::default()
        },
    };
    let exit = Fact::ProcessExited { process: process.process, exit_code: None };
    let started = Fact::ProcessStarted(Box::new(process));
    let events = feed(&mut pipeline, vec![(0, started.clone()), (3, opened(1))], 5);
    let seqs: Vec<u64> = events.iter().map(|event| event.seq.0).collect();
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    assert!(matches!(events[0].kind, EventKind::CoverageChanged(_)));
    let EventKind::ProcessStarted(record) = &events[2].kind else { panic!("{:?}", events[2]) };
    assert!(!record.image.arguments.concat().contains("hunter2"), "{:?}", record.image.arguments);
    let EventKind::Flow(flow) = &events[3].kind else { panic!("{:?}", events[3]) };
    assert_eq!(flow.process, Some(record.uid));
    assert_eq!(pipeline.users(10)[0].user.label(), "jdoe");
    feed(&mut pipeline, vec![(0, exit)], 1);
    assert!(pipeline.users(10).is_empty());
}

#[test]
fn beyond_the_bound_connections_are_recorded_and_coverage_says_so() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let facts = vec![(2, opened(1)), (3, opened(2)), (4, opened(3)), (6, closed(2)), (7, closed(3))];
    let events = feed(&mut pipeline(limits), facts, 8);
    assert_eq!(
        records(&events),
        [
            "3..3 established lack_of_resources 0",
            "2..3 established active_timeout 0",
            "4..4 established lack_of_resources 0",
            "3..7 established active_timeout 0"
        ]
    );
    let grades: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::CoverageChanged(change) if change.facet == Facet::Connections => {
                Some((change.grade.word(), change.from.as_nanos() / SECOND))
            }
            _ => None,
        })
        .collect();
    assert_eq!(grades, [("complete", 0), ("lost", 3), ("complete", 7)]);
}

#[test]
fn a_reader_that_begins_anywhere_hears_of_every_open_connection_before_the_grades() {
    let mut pipeline = pipeline(Limits::default());
    feed(&mut pipeline, vec![(2, opened(1)), (3, opened(2))], 10);
    pipeline.restate(at(10));
    let events = pipeline.events();
    assert_eq!(
        records(&events),
        ["3..10 established active_timeout 0", "4..10 established active_timeout 0"]
    );
    assert!(matches!(&events[2].kind, EventKind::CoverageChanged(change) if change.from == at(0).wall));
}

#[test]
fn what_could_not_be_kept_is_numbered_anew_and_said() {
    let mut pipeline = pipeline(Limits::default());
    let kept = feed(&mut pipeline, vec![(2, opened(1))], 3);
    let next = kept.last().unwrap().seq.next();
    let close = Report { observations: vec![Observation { at: at(4), fact: closed(1) }], seen_until: at(4) };
    pipeline.take(close, at(4));
    let lost = pipeline.events();
    pipeline.lose(lost.len() as u64, (speaks_from(&lost), at(9).wall), next, "the disk is full", at(9));
    let events = pipeline.events();
    assert_eq!(events[0].seq, next);
    let EventKind::CoverageChanged(change) = &events[0].kind else { panic!() };
    assert_eq!(change.grade, Grade::Lost { count: 1, reason: "the disk is full".into() });
    assert_eq!((change.from, change.to), (at(3).wall, Some(at(9).wall)));
}

#[test]
fn time_that_happens_twice_is_a_loss() {
    let mut pipeline = pipeline(Limits::default());
    feed(&mut pipeline, vec![(2, opened(1))], 10);
    assert_eq!(pipeline.watermark(), Some(at(10).wall));
    for second in [4, 5, 6] {
        pipeline.take(Report { observations: vec![], seen_until: at(second) }, at(second));
    }
    assert_eq!(pipeline.watermark(), Some(at(10).wall), "it never goes back");
    let events = pipeline.events();
    let lost: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::CoverageChanged(change) if change.facet == Facet::Connections => Some(change),
            _ => None,
        })
        .collect();
    assert_eq!(lost.len(), 1, "{lost:#?}");
    assert_eq!((lost[0].from, lost[0].to), (at(4).wall, Some(at(10).wall)));
    assert_eq!(records(&events), ["3..4 established active_timeout 0"]);
    pipeline.take(Report { observations: vec![], seen_until: at(10) }, at(10));
    assert_eq!(
        records(&pipeline.events()),
        ["4..10 established active_timeout 0"],
        "what is open is said anew"
    );
}

#[test]
fn a_stop_ends_every_record_and_every_grade() {
    let mut pipeline = pipeline(Limits::default());
    feed(&mut pipeline, vec![(2, opened(1))], 10);
    pipeline.stop("the agent was stopped", at(11));
    let events = pipeline.events();
    assert_eq!(records(&events), ["3..10 established forced_end 0"]);
    let from: Vec<_> = events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::CoverageChanged(change) => Some(change.from),
            _ => None,
        })
        .collect();
    assert_eq!(from, vec![at(10).wall; 3], "nothing was seen after the last report");
}

/// What a reader of all these events, who knows that they are all up to `known_until`, says of `from..to`.
pub(super) fn verdict(events: &[Event], from: u64, to: u64, known_until: u64) -> Verdict {
    let mut timeline = Timeline::default();
    let mut flows = Vec::new();
    for event in events {
        match &event.kind {
            EventKind::CoverageChanged(change) if change.facet == Facet::Connections => {
                timeline.apply(change);
            }
            EventKind::Flow(flow) => flows.push((**flow).clone()),
            _ => {}
        }
    }
    let window = Window::new(at(from).wall, at(to).wall).unwrap();
    let question = Question { target: Target::parse("198.51.100.7", None, None).unwrap(), window };
    let evidence = Evidence {
        host: None,
        name: "host".into(),
        clock: &HostClock::own(),
        connections: &timeline,
        known_until: Some(at(known_until).wall),
        names: None,
        flows,
        flows_left_out: 0,
    };
    judge(&question, evidence, |_| None).verdict
}

/// A report each second from `from` until `until`, in seconds since boot; the wall clock shows `wall` at the first.
fn go_on(pipeline: &mut Pipeline, from: u64, until: u64, wall: u64) {
    for second in from..=until {
        let seen_until = Moment { wall: at(wall + second - from).wall, boot_ns: second * SECOND };
        pipeline.take(Report { observations: vec![], seen_until }, seen_until);
    }
}

#[test]
fn what_is_open_when_the_clock_was_set_back_between_runs_is_believed_again_after_that_time() {
    let boot = HostBoot::new(HostId::from_bytes([1; 16]), "boot");
    let previous = PreviousRun::Stopped { recorded_until: at(60).wall };
    let mut pipeline = Pipeline::new(boot, Limits::default(), source(), Seq::FIRST, previous, at(0));
    let events = feed(&mut pipeline, vec![(0, opened(1))], 300);
    assert_eq!(verdict(&events, 120, 180, 300), Verdict::Talked, "it has been open all the time");
}

#[test]
fn what_is_open_is_believed_past_a_loss_that_ends_later_than_the_source_has_seen() {
    let mut pipeline = pipeline(Limits::default());
    let mut events = feed(&mut pipeline, vec![(2, opened(1))], 4);
    pipeline.take(Report { observations: vec![], seen_until: at(5) }, at(5));
    let lost = pipeline.events();
    let next = events.last().unwrap().seq.next();
    pipeline.lose(lost.len() as u64, (speaks_from(&lost), at(9).wall), next, "the disk is full", at(9));
    go_on(&mut pipeline, 6, 100, 6);
    events.extend(pipeline.events());
    assert_eq!(verdict(&events, 50, 60, 100), Verdict::Talked);

    let instant = CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Lost { count: 1, reason: "test".into() },
        from: at(101).wall,
        to: Some(at(101).wall),
        scope: None,
        announced_from: None,
    };
    let observations = vec![Observation { at: at(101), fact: Fact::Coverage(instant) }];
    pipeline.take(Report { observations, seen_until: at(101) }, at(101));
    go_on(&mut pipeline, 102, 200, 102);
    events.extend(pipeline.events());
    assert_eq!(verdict(&events, 150, 160, 200), Verdict::Talked, "a loss at an instant takes that instant");
}

#[test]
fn what_was_followed_is_believed_again_once_everything_is_followed_again() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let facts = vec![(2, opened(1)), (3, opened(2)), (7, closed(2))];
    let events = feed(&mut pipeline(limits), facts, 30);
    assert_eq!(verdict(&events, 10, 20, 30), Verdict::Talked, "the first is open still");
}

#[test]
fn a_clock_set_back_makes_the_time_that_happens_twice_a_gap() {
    let mut pipeline = pipeline(Limits::default());
    let mut events = feed(&mut pipeline, vec![(2, opened(1)), (50, closed(1))], 100);
    go_on(&mut pipeline, 101, 110, 20);
    events.extend(pipeline.events());
    assert_eq!(verdict(&events, 60, 70, 100), Verdict::Unknown, "it is yet to happen again");
    assert_eq!(verdict(&events, 15, 40, 100), Verdict::Talked, "what is known stays known");

    let open = Observation { at: at(30), fact: opened(2) };
    let seen_until = Moment { wall: at(30).wall, boot_ns: 111 * SECOND };
    pipeline.take(Report { observations: vec![open], seen_until }, seen_until);
    go_on(&mut pipeline, 112, 282, 31);
    events.extend(pipeline.events());
    assert_eq!(verdict(&events, 150, 160, 200), Verdict::Talked, "open past the time that happened twice");
}

#[test]
fn a_clock_set_forward_leaves_a_gap_and_no_flood_of_records() {
    let mut pipeline = pipeline(Limits::default());
    let mut events = feed(&mut pipeline, vec![(2, opened(1)), (3, opened(2))], 100);
    let twenty_years = 20 * 365 * 86_400;
    let close = Observation { at: at(99), fact: closed(2) };
    let seen_until = Moment { wall: at(twenty_years).wall, boot_ns: 101 * SECOND };
    pipeline.take(Report { observations: vec![close], seen_until }, seen_until);
    go_on(&mut pipeline, 102, 200, twenty_years + 1);
    events.extend(pipeline.events());
    assert!(events.len() < 20, "{} events", events.len());
    let (from, to) = (twenty_years + 10, twenty_years + 20);
    assert_eq!(verdict(&events, from, to, to + 50), Verdict::Talked, "open before and after");
    assert_eq!(verdict(&events, 5_000, 6_000, to), Verdict::Unknown, "there was no such time");
}

#[test]
fn a_source_that_sees_nothing_is_no_witness_of_what_is_open() {
    let blind = CoverageChange {
        facet: Facet::Connections,
        grade: Grade::NotRecorded { reason: "the table cannot be read".into() },
        from: at(20).wall,
        to: None,
        scope: None,
        announced_from: None,
    };
    let seeing = CoverageChange { grade: Grade::Complete, from: at(3001).wall, ..blind.clone() };
    let facts = vec![(2, opened(1)), (20, Fact::Coverage(blind))];
    let mut pipeline = pipeline(Limits::default());
    let mut events = feed(&mut pipeline, facts, 2000);
    assert_eq!(verdict(&events, 500, 600, 2000), Verdict::Unknown, "it may have been closed long ago");
    go_on(&mut pipeline, 2001, 3000, 2001);
    let seeing = Observation { at: at(3001), fact: Fact::Coverage(seeing) };
    pipeline.take(Report { observations: vec![seeing], seen_until: at(3001) }, at(3001));
    events.extend(pipeline.events());
    assert_eq!(verdict(&events, 500, 600, 3001), Verdict::Talked, "it was open all along");
}

/// Blind from 20 on. The clock is set forward by 1,000 s at 1,500, before or after the source sees again.
fn blind_while_the_clock_is_set(sees_before: bool) -> Vec<Event> {
    let change = |grade, from| {
        let facet = Facet::Connections;
        let (to, scope, announced_from) = (None, None, None);
        Fact::Coverage(CoverageChange { facet, grade, from, to, scope, announced_from })
    };
    let blind = change(Grade::NotRecorded { reason: "the table cannot be read".into() }, at(20).wall);
    let mut pipeline = pipeline(Limits::default());
    let mut events = feed(&mut pipeline, vec![(2, opened(1)), (20, blind)], 1_499);
    let mut report = |fact: Option<Fact>, wall: u64, boot: u64| {
        let seen_until = Moment { wall: at(wall).wall, boot_ns: boot * SECOND };
        let observations = fact.map(|fact| Observation { at: seen_until, fact }).into_iter().collect();
        pipeline.take(Report { observations, seen_until }, seen_until);
        events.extend(pipeline.events());
    };
    let sees = |wall| change(Grade::Complete, at(wall).wall);
    report(sees_before.then(|| sees(1_499)), 1_499, 1_499);
    report(None, 2_500, 1_500);
    report((!sees_before).then(|| sees(2_501)), 2_501, 1_501);
    report(Some(closed(1)), 2_502, 1_502);
    events
}

#[test]
fn nobody_talked_in_a_time_that_the_clock_skipped_while_the_source_saw_nothing() {
    let events = blind_while_the_clock_is_set(false);
    assert_eq!(verdict(&events, 1_600, 2_400, 2_502), Verdict::Unknown, "there was no such time");
    assert_eq!(verdict(&events, 2_502, 2_503, 2_503), Verdict::Talked);
}

#[test]
fn no_record_spans_more_than_a_reader_takes_however_long_the_source_saw_nothing() {
    for sees_before in [false, true] {
        for event in blind_while_the_clock_is_set(sees_before) {
            if let EventKind::Flow(flow) = event.kind {
                assert!(flow.last.since(flow.first) <= RECORD_SPAN_MAX, "{flow:?}");
            }
        }
    }
}

#[test]
fn a_suspended_host_is_clear_while_it_sleeps_and_its_connections_live_on_after() {
    let mut pipeline = pipeline(Limits::default());
    let mut events = feed(&mut pipeline, vec![(2, opened(1))], 10);
    // Asleep from 11 until 3611, noticed half a second later; one connection is used at once, another is new.
    let observation = |second, fact| Observation { at: at(second), fact };
    let resumed = Moment { wall: at(3611).wall, boot_ns: 3611 * SECOND };
    let observations = vec![
        observation(10, closed(9)),
        observation(3611, Fact::Suspended { from: at(11), to: resumed }),
        observation(3611, moved(1, 50)),
        observation(3611, opened(2)),
    ];
    pipeline.take(Report { observations, seen_until: at(3612) }, at(3612));
    for second in 3613..=3620 {
        pipeline.take(Report { observations: vec![], seen_until: at(second) }, at(second));
    }
    events.extend(pipeline.events());
    assert_eq!(
        records(&events),
        [
            "2..3 established active_timeout 0",
            "3..11 established active_timeout 0",
            "3611..3612 established active_timeout 50",
            "3611..3612 established active_timeout 0",
        ]
    );
    let uids: BTreeSet<_> = events
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::Flow(flow) if flow.local.port() == 1 => Some(flow.connection),
            _ => None,
        })
        .collect();
    assert_eq!(uids.len(), 1, "it is the same connection");
    // A record holds its last instant too.
    for (from, to, expected) in [
        (4, 8, Verdict::Talked),
        (10, 11, Verdict::Talked),
        (12, 3600, Verdict::Clear),
        (3610, 3612, Verdict::Talked),
        (3612, 3620, Verdict::Talked),
    ] {
        assert_eq!(verdict(&events, from, to, 3620), expected, "{from}..{to}");
    }
    // What is said of it has to travel.
    assert!(events.iter().any(|event| matches!(
        &event.kind,
        EventKind::CoverageChanged(change) if change.grade == Grade::Complete && change.to == Some(at(3611).wall)
    )));
}

#[test]
fn a_suspend_takes_no_gap_away() {
    let mut pipeline = pipeline(Limits::default());
    let blind = CoverageChange {
        facet: Facet::Connections,
        grade: Grade::NotRecorded { reason: "blind".into() },
        from: at(5).wall,
        to: None,
        scope: None,
        announced_from: None,
    };
    let asleep = Fact::Suspended { from: at(12), to: at(100) };
    let mut events = feed(&mut pipeline, vec![(2, opened(1)), (5, Fact::Coverage(blind))], 10);
    let observations = vec![Observation { at: at(100), fact: asleep }];
    pipeline.take(Report { observations, seen_until: at(101) }, at(101));
    events.extend(pipeline.events());
    assert_eq!(verdict(&events, 20, 90, 101), Verdict::Unknown);
}

#[test]
fn a_connection_that_is_found_over_ends_though_it_was_known_as_open() {
    for state in [FlowState::Closed, FlowState::Failed(111)] {
        let Fact::ConnectionOpened(mut over) = opened(1) else { unreachable!() };
        over.state = state;
        let facts = vec![(2, opened(1)), (10, Fact::ConnectionOpened(over))];
        let mut pipeline = pipeline(Limits::default());
        let events = feed(&mut pipeline, facts, 2_000);
        assert_eq!(
            records(&events),
            ["2..3 established active_timeout 0".to_owned(), format!("3..10 {} end_of_flow 0", state.word())]
        );
        assert!(pipeline.flows.is_empty() && pipeline.due.is_empty());
    }
}
