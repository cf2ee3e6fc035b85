//! Verdicts, at their edges.

use super::*;
use crate::{
    coverage::CoverageChange,
    flow::{Attribution, Direction, FlowEndReason, Protocol},
    id::ConnectionUid,
};

const MINUTE: u64 = 60_000_000_000;

fn minute(minutes: u64) -> Timestamp {
    Timestamp::from_nanos(minutes * MINUTE)
}

/// A record from minute to minute; open ended if `open`.
fn record(first: u64, last: u64, open: bool, bytes: Option<u64>) -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([1; 16]),
        process: Some(ProcessUid::from_bytes([2; 16])),
        attribution: Attribution::SocketTable,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: "198.51.100.7:443".parse().unwrap(),
        opened: minute(first),
        already_open: false,
        first: minute(first),
        last: minute(last),
        traffic: bytes.map(|bytes| Traffic { bytes_sent: bytes, ..Traffic::default() }),
        state: if open { FlowState::Established } else { FlowState::Closed },
        end_reason: if open { FlowEndReason::ActiveTimeout } else { FlowEndReason::EndOfFlow },
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: None,
    }
}

fn complete() -> Timeline {
    let mut timeline = Timeline::default();
    timeline.apply(&CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Complete,
        from: Timestamp::ZERO,
        to: None,
        scope: None,
        announced_from: None,
    });
    timeline
}

fn ask(timeline: &Timeline, flows: Vec<FlowRecord>, known_until: u64) -> HostAnswer {
    let question = Question {
        target: Target::parse("198.51.100.7", None, None).unwrap(),
        window: Window::new(minute(100), minute(110)).unwrap(),
    };
    let evidence = Evidence {
        host: None,
        name: "h".into(),
        clock: &HostClock::own(),
        connections: timeline,
        known_until: Some(minute(known_until)),
        names: None,
        flows,
        flows_left_out: 0,
    };
    judge(&question, evidence, |_| None)
}

#[track_caller]
fn check(flows: Vec<FlowRecord>, verdict: Verdict, in_window: Option<InWindow>) {
    let answer = ask(&complete(), flows, 200);
    let found = answer.processes.first().map(|process| process.connections[0].in_window);
    assert_eq!((answer.verdict, found), (verdict, in_window));
}

#[test]
fn a_life_that_touches_the_window_matches() {
    use InWindow::{Attempt, Bytes, Idle};
    use Verdict::{Clear, Talked};
    check(vec![], Clear, None);
    check(vec![record(95, 100, false, None)], Talked, Some(Idle)); // ends exactly at from
    check(vec![record(90, 99, false, None)], Clear, None);
    check(vec![record(110, 112, false, None)], Clear, None); // starts exactly at to
    check(vec![record(109, 112, false, None)], Talked, Some(Attempt));
    check(vec![record(99, 111, false, None)], Talked, Some(Idle)); // spans the whole window
    check(vec![record(99, 111, false, Some(5))], Talked, Some(Bytes));
    check(vec![record(99, 111, false, Some(0))], Talked, Some(Idle));
    check(vec![record(98, 99, true, Some(7))], Talked, Some(Idle)); // left open before the window
    check(vec![record(70, 84, true, None)], Clear, None); // no record after it for more than 15 minutes
    check(vec![record(98, 99, true, None), record(99, 99, false, None)], Clear, None); // closed before it
}

#[test]
fn records_of_one_instant_stand_in_their_order_whatever_order_they_come_in() {
    let opened = record(98, 98, true, None);
    let closed = FlowRecord { record: 1, ..record(98, 98, false, None) };
    check(vec![opened.clone(), closed.clone()], Verdict::Clear, None);
    check(vec![closed, opened], Verdict::Clear, None);
}

#[test]
fn a_failure_inside_the_window_is_an_attempt() {
    let mut failed = record(99, 105, false, None);
    failed.state = FlowState::Failed(113);
    check(vec![failed], Verdict::Talked, Some(InWindow::Attempt));
}

#[test]
fn an_open_life_is_not_believed_past_an_interruption() {
    let mut timeline = complete();
    timeline.apply(&CoverageChange {
        facet: Facet::Connections,
        grade: Grade::NotRecorded { reason: "stopped".into() },
        from: minute(99),
        to: None,
        scope: None,
        announced_from: None,
    });
    let answer = ask(&timeline, vec![record(97, 98, true, None)], 200);
    assert_eq!(answer.verdict, Verdict::Unknown);
    let answer = ask(&complete(), vec![record(97, 98, true, None)], 99);
    assert_eq!(answer.verdict, Verdict::Unknown, "the stream is known up to minute 99 only");
}

#[test]
fn a_cut_listing_is_never_clear() {
    let question = Question {
        target: Target::parse("198.51.100.7", None, None).unwrap(),
        window: Window::new(minute(100), minute(110)).unwrap(),
    };
    let timeline = complete();
    let evidence = Evidence {
        host: None,
        name: "h".into(),
        clock: &HostClock::own(),
        connections: &timeline,
        known_until: Some(minute(200)),
        names: None,
        flows: vec![],
        flows_left_out: 3,
    };
    assert_eq!(judge(&question, evidence, |_| None).verdict, Verdict::Unknown);
}

#[test]
fn records_of_a_connection_are_put_together() {
    let mut second = record(101, 105, false, Some(20));
    second.opened = minute(50);
    let mut first = record(96, 101, true, Some(10));
    first.opened = minute(50);
    let answer = ask(&complete(), vec![second, first], 200);
    let connection = &answer.processes[0].connections[0];
    assert_eq!(connection.flow.traffic.unwrap().bytes_sent, 30);
    assert_eq!((connection.flow.first, connection.flow.last), (minute(50), minute(105)));
    assert_eq!(connection.in_window, InWindow::Bytes);
}

/// The verdict on `cloud.example.com`, names being recorded from minute `names_from` of a host that is recorded from
/// the beginning; the window begins a day and 100 minutes after that.
fn ask_name(
    names_from: u64,
    address: Option<&str>,
    remotes: NamedRemotes,
    unnamed_since: Option<Timestamp>,
    flows: Vec<FlowRecord>,
) -> HostAnswer {
    let given: Vec<&str> = address.into_iter().collect();
    let target = Target::parse("cloud.example.com", None, None).unwrap().with_addresses(&given).unwrap();
    let window = Window::new(minute(DAY + 100), minute(DAY + 110)).unwrap();
    let mut names = Timeline::default();
    names.apply(&CoverageChange {
        facet: Facet::Names,
        grade: Grade::Complete,
        from: minute(names_from),
        to: None,
        scope: None,
        announced_from: None,
    });
    let evidence = Evidence {
        host: None,
        name: "h".into(),
        clock: &HostClock::own(),
        connections: &complete(),
        known_until: Some(minute(DAY + 200)),
        names: Some(NameEvidence { coverage: &names, remotes: &remotes, unnamed_since }),
        flows,
        flows_left_out: 0,
    };
    judge(&Question { target, window }, evidence, |_| None)
}

const DAY: u64 = 24 * 60;

fn hello(connection: Option<u8>, at: u64) -> NamedRemotes {
    let hello = ServerNameRecord {
        at: minute(DAY + at),
        connection: connection.map(|byte| ConnectionUid::from_bytes([byte; 16])),
        name: Some("cloud.example.com".into()),
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: "198.51.100.7:443".parse().unwrap(),
        network_namespace: None,
    };
    NamedRemotes { hellos: vec![hello], ..NamedRemotes::default() }
}

#[test]
fn a_name_is_cleared_by_a_day_of_names_or_by_addresses() {
    let nothing = NamedRemotes::default;
    let verdict = |from, address, since: Option<u64>| {
        ask_name(from, address, nothing(), since.map(minute), vec![]).verdict
    };
    assert_eq!(verdict(100, None, None), Verdict::Clear);
    assert_eq!(verdict(101, None, None), Verdict::Unknown, "a minute less than a day");
    assert_eq!(verdict(101, Some("198.51.100.7"), None), Verdict::Clear);
    assert_eq!(verdict(0, None, Some(DAY)), Verdict::Clear, "a long connection, its name recorded all along");
    assert_eq!(verdict(1, None, Some(DAY)), Verdict::Unknown, "it may have kept an address from before");
    assert_eq!(verdict(0, None, Some(0)), Verdict::Unknown, "open before recording began");
    assert_eq!(verdict(0, Some("198.51.100.7"), Some(0)), Verdict::Clear);

    let answer = ask_name(DAY, None, nothing(), None, vec![]);
    let reasons: Vec<_> = answer.gaps.iter().map(|gap| (gap.facet, gap.grade.reason())).collect();
    assert_eq!(
        reasons,
        [(
            Facet::Names,
            "names before 1970-01-02T00:00:00Z were not recorded: a program may have kept an address from \
             before; give the addresses with --address"
                .to_owned()
        )]
    );
    let many = NamedRemotes { left_out: true, ..nothing() };
    assert_eq!(ask_name(0, None, many.clone(), None, vec![]).verdict, Verdict::Unknown);
    assert_eq!(ask_name(0, Some("192.0.2.9"), many, None, vec![]).verdict, Verdict::Unknown);
}

#[test]
fn a_name_matches_by_address_by_tls_and_by_its_records() {
    let flow = || record(DAY + 101, DAY + 102, false, Some(1));
    let named = |name: &str, source| FlowRecord {
        remote_name: Some(crate::name::RemoteName { name: name.into(), source }),
        ..flow()
    };
    let resolved = |address: &str| NamedRemotes {
        addresses: [address.parse().unwrap()].into(),
        ..NamedRemotes::default()
    };
    let nothing = NamedRemotes::default;
    let check = |address, remotes, flow, want| {
        assert_eq!(ask_name(0, address, remotes, None, vec![flow]).verdict, want);
    };
    check(None, nothing(), flow(), Verdict::Clear);
    check(Some("198.51.100.0/24"), nothing(), flow(), Verdict::Talked);
    check(Some("192.0.2.0/24"), nothing(), flow(), Verdict::Clear);
    check(None, resolved("198.51.100.7"), flow(), Verdict::Talked);
    check(None, resolved("198.51.100.8"), flow(), Verdict::Clear);
    check(None, resolved("198.51.100.7"), named("other.example.com", NameSource::Sni), Verdict::Talked);
    check(None, nothing(), named("cloud.example.com", NameSource::Dns), Verdict::Talked);
    check(None, nothing(), named("a.cloud.example.com", NameSource::Sni), Verdict::Clear);
    check(None, hello(Some(1), 101), flow(), Verdict::Talked);
    check(None, hello(Some(2), 101), flow(), Verdict::Clear);
    check(None, hello(None, 101), flow(), Verdict::Talked);
    check(None, hello(None, 100), flow(), Verdict::Clear); // of one with the same ends before
    check(None, hello(None, 103), flow(), Verdict::Clear); // of one with the same ends after
}

#[test]
fn a_name_told_in_one_record_is_that_of_the_whole_connection() {
    let before = record(DAY + 101, DAY + 102, true, Some(1));
    let after = FlowRecord {
        opened: before.opened,
        remote_name: Some(crate::name::RemoteName {
            name: "cloud.example.com".into(),
            source: NameSource::Sni,
        }),
        record: 1,
        ..record(DAY + 102, DAY + 103, false, Some(2))
    };
    let answer = ask_name(0, None, NamedRemotes::default(), None, vec![before, after]);
    assert_eq!(answer.processes[0].connections[0].flow.traffic.unwrap().bytes_sent, 3);
}

#[test]
fn an_address_is_as_old_as_its_owner_may_know_it() {
    let flow = |source| FlowRecord {
        remote_name: Some(crate::name::RemoteName { name: "other.example.com".into(), source }),
        ..record(DAY, DAY + 1, false, Some(1))
    };
    let check = |flow: &FlowRecord, started: Option<u64>, want: Option<u64>| {
        assert_eq!(unnamed_since(flow, started.map(minute)), want.map(minute), "{flow:?} {started:?}");
    };
    let shared = flow(NameSource::Dns);
    check(&shared, Some(DAY), Some(DAY));
    check(&shared, Some(7), Some(7)); // it may have resolved the name at its start
    check(&shared, None, Some(0));
    check(&shared, Some(DAY + 1), Some(0)); // another process had opened it
    check(&FlowRecord { already_open: true, ..shared.clone() }, Some(7), Some(0));
    check(&FlowRecord { remote_name: None, ..shared.clone() }, Some(7), Some(0));
    check(&flow(NameSource::Sni), None, None);
    check(&FlowRecord { direction: Direction::Inbound, ..shared.clone() }, None, None);
    for no_host in ["127.0.0.1:443", "[::1]:443", "224.0.0.251:5353", "[ff02::fb]:5353", "255.255.255.255:67"]
    {
        let remote = no_host.parse().unwrap();
        check(&FlowRecord { remote, remote_name: None, ..shared.clone() }, None, None);
    }
    let resolver = FlowRecord { remote: "192.0.2.53:53".parse().unwrap(), remote_name: None, ..shared };
    check(&resolver, Some(7), Some(DAY));
}
