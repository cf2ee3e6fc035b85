//! Verdicts on hosts whose clocks are not the collector's.

use crate::{
    clock::{BootBegin, ClockHistory, ClockReading, Difference, HostClock},
    coverage::{CoverageChange, Facet, Grade, Timeline},
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    id::{ConnectionUid, Epoch, ProcessUid, Seq},
    process::{ProcessImage, ProcessLife, ProcessRecord},
    question::{Evidence, HostAnswer, InWindow, Question, Verdict, judge},
    target::Target,
    time::{Moment, Timestamp},
    window::Window,
};

const SECOND: i64 = 1_000_000_000;
/// When everything happens, by the collector's clock, in seconds.
const NOW: u64 = 100_000;

fn second(second: u64) -> Timestamp {
    Timestamp::from_secs(second)
}

/// A host that was booted 1,000 seconds before now, whose clock is ahead by so many seconds, known to `bound` seconds.
fn clock(ahead: i64, bound: i64) -> HostClock {
    let mut history = ClockHistory::default();
    let booted = (i64::try_from(NOW).unwrap() - 1_000) * SECOND;
    let boot_ns = 1_000_000_000_000;
    history.measured(&ClockReading {
        boot_id: "boot".into(),
        boot_ns,
        difference: Difference::between(booted - bound * SECOND, booted + bound * SECOND),
        measured: second(NOW),
        shared: None,
        epoch: Epoch(1),
        begins: Some(vec![BootBegin { boot_id: "boot".into(), first: Seq(1) }]),
    });
    let wall = Timestamp::from_nanos((NOW * 1_000_000_000).saturating_add_signed(ahead * SECOND));
    history.saw(Epoch(1), Some(Seq(1)), Moment { wall, boot_ns });
    history.clock(second(NOW))
}

/// A connection that moved bytes from second to second, by the host's clock.
fn flow(first: u64, last: u64) -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([1; 16]),
        process: Some(ProcessUid::from_bytes([2; 16])),
        attribution: Attribution::InKernel,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: "198.51.100.7:443".parse().unwrap(),
        opened: second(first),
        already_open: false,
        first: second(first),
        last: second(last),
        traffic: Some(Traffic { bytes_sent: 5, ..Traffic::default() }),
        state: FlowState::Closed,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: None,
    }
}

/// The answer about `[NOW - 20, NOW - 10)` of a host that recorded everything from and until these seconds, by its clock.
fn ask(clock: &HostClock, (from, until): (u64, u64), flows: Vec<FlowRecord>) -> HostAnswer {
    let mut connections = Timeline::default();
    connections.apply(&CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Complete,
        from: second(from),
        to: None,
        scope: None,
        announced_from: None,
    });
    let question = Question {
        target: Target::parse("198.51.100.7", None, None).unwrap(),
        window: Window::new(second(NOW - 20), second(NOW - 10)).unwrap(),
    };
    let evidence = Evidence {
        host: None,
        name: "h".into(),
        clock,
        connections: &connections,
        known_until: Some(second(until)),
        names: None,
        flows,
        flows_left_out: 0,
    };
    judge(&question, evidence, |uid| {
        let record = ProcessRecord {
            uid,
            pid: 1,
            parent: None,
            parent_pid: None,
            started: second(7_000),
            already_running: false,
            image: ProcessImage::default(),
        };
        Some(ProcessLife::new(record, None))
    })
}

#[test]
fn the_window_is_shifted_and_the_answer_is_in_the_collectors_time() {
    let ahead = clock(3_600, 0);
    let host = NOW + 3_600;
    let answer = ask(&ahead, (0, host), vec![flow(host - 15, host - 14)]);
    assert_eq!(answer.verdict, Verdict::Talked);
    let connection = &answer.processes[0].connections[0];
    assert_eq!((connection.in_window, connection.in_margin), (InWindow::Bytes, false));
    assert_eq!((connection.flow.opened, connection.flow.last), (second(NOW - 15), second(NOW - 14)));
    assert_eq!(answer.processes[0].life.as_ref().unwrap().record.started, second(3_400));
    assert_eq!(answer.known_until, Some(second(NOW)));
    let told = answer.clock.unwrap();
    assert_eq!(told.offset_ns, 3_600 * SECOND);
    // Drift, for the seconds since the clock was measured.
    assert!((10_000_000..20_000_000).contains(&told.bound_ns), "{told:?}");
    assert!(told.window.from() < second(host - 20) && told.window.to() > second(host - 10), "{told:?}");

    // By the host's clock it is in the window, and in truth an hour before.
    let before = ask(&ahead, (0, host), vec![flow(NOW - 15, NOW - 14)]);
    assert_eq!(before.verdict, Verdict::Clear);
    let behind = clock(-3_600, 0);
    assert_eq!(ask(&behind, (0, NOW - 3_600), vec![flow(NOW - 3_615, NOW - 3_614)]).verdict, Verdict::Talked);
    assert_eq!(ask(&behind, (0, NOW - 3_600), vec![]).verdict, Verdict::Clear);
}

#[test]
fn clear_takes_the_whole_widened_window() {
    let check = |recorded, want| {
        let answer = ask(&clock(0, 3), recorded, vec![]);
        assert_eq!(answer.verdict, want, "{recorded:?}: {answer:#?}");
    };
    check((0, NOW), Verdict::Clear);
    check((NOW - 24, NOW - 6), Verdict::Clear);
    check((NOW - 22, NOW - 6), Verdict::Unknown);
    check((NOW - 24, NOW - 8), Verdict::Unknown);
    let exact = ask(&clock(0, 3), (NOW - 24, NOW - 6), vec![]).clock.unwrap();
    assert_eq!(exact.offset_ns, 0);
}

#[test]
fn what_may_have_been_beside_the_window_is_neither_a_match_nor_none() {
    let check = |flows: Vec<FlowRecord>, want, margins: &[bool]| {
        let answer = ask(&clock(0, 3), (0, NOW), flows);
        let found = answer.processes.iter().flat_map(|process| &process.connections);
        let found: Vec<_> = found.map(|connection| connection.in_margin).collect();
        assert_eq!((answer.verdict, found), (want, margins.to_vec()), "{answer:#?}");
        if want == Verdict::Unknown {
            let reasons: Vec<_> = answer.gaps.iter().map(|gap| gap.grade.reason()).collect();
            assert!(matches!(&reasons[..], [one] if one.contains("may have been outside")), "{reasons:?}");
        }
    };
    let other = |flow| FlowRecord { connection: ConnectionUid::from_bytes([9; 16]), ..flow };
    check(vec![flow(NOW - 22, NOW - 21)], Verdict::Unknown, &[true]);
    check(vec![flow(NOW - 18, NOW - 18)], Verdict::Unknown, &[true]);
    check(vec![flow(NOW - 12, NOW - 5)], Verdict::Unknown, &[true]);
    check(vec![flow(NOW - 9, NOW - 5)], Verdict::Unknown, &[true]);
    check(vec![flow(NOW - 16, NOW - 15)], Verdict::Talked, &[false]);
    check(vec![flow(NOW - 30, NOW - 1)], Verdict::Talked, &[false]);
    check(vec![flow(NOW - 30, NOW - 24)], Verdict::Clear, &[]);
    check(vec![flow(NOW - 6, NOW - 5)], Verdict::Clear, &[]);
    check(vec![flow(NOW - 22, NOW - 21), other(flow(NOW - 16, NOW - 15))], Verdict::Talked, &[true, false]);
    // Two records, neither in the window for certain, and the connection that they tile is.
    let open = FlowRecord {
        state: FlowState::Established,
        end_reason: FlowEndReason::ActiveTimeout,
        ..flow(NOW - 40, NOW - 18)
    };
    check(vec![open, FlowRecord { record: 1, ..flow(NOW - 18, NOW - 1) }], Verdict::Talked, &[false]);
}

#[test]
fn bytes_are_told_of_the_window_only_if_they_moved_in_it_for_certain() {
    let told = |flow| ask(&clock(0, 3), (0, NOW), vec![flow]).processes[0].connections[0].in_window;
    let idle_since = |second: u64| FlowRecord {
        state: FlowState::Established,
        end_reason: FlowEndReason::ActiveTimeout,
        ..flow(NOW - 60, second)
    };
    assert_eq!(told(idle_since(NOW - 19)), InWindow::Idle);
    assert_eq!(told(idle_since(NOW - 16)), InWindow::Bytes);
}

#[test]
fn a_host_whose_clock_was_not_measured_is_unknown() {
    let never = HostClock::default();
    let answer = ask(&never, (0, NOW), vec![]);
    assert_eq!((answer.verdict, answer.clock), (Verdict::Unknown, None));
    assert_eq!((answer.gaps[0].from, answer.gaps[0].to), (second(NOW - 20), second(NOW - 10)));
    assert!(answer.gaps[0].grade.reason().contains("was not measured"), "{answer:#?}");
    let answer = ask(&never, (0, NOW), vec![flow(NOW - 15, NOW - 14)]);
    assert_eq!(answer.verdict, Verdict::Unknown);
    assert!(answer.processes[0].connections[0].in_margin, "listed all the same");
    assert_eq!(ask(&HostClock::own(), (0, NOW), vec![]).verdict, Verdict::Clear);
    assert_eq!(ask(&HostClock::own(), (0, NOW), vec![]).clock, None);
}
