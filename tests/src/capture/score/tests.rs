use alibi_proto::{
    coverage::CoverageChange,
    flow::{Attribution, FlowEndReason},
    id::{HostId, Seq},
    process::{ProcessExit, ProcessImage, ProcessRecord},
    time::{Moment, Timestamp},
};

use super::*;
use crate::workload::truth::Who;

const OWNER: Who = Who { pid: 7, start_ticks: 70 };
const CHILD: Who = Who { pid: 8, start_ticks: 80 };

fn host() -> HostBoot {
    HostBoot::new(HostId::from_bytes([1; 16]), "boot")
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A connection of `many`, and the record that is right for it.
fn connection() -> Connection {
    Connection {
        workload: "many".into(),
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: Some(address("127.0.0.1:40000")),
        remote: Some(address("127.3.0.1:7300")),
        owner: OWNER,
        outcome: Outcome::Closed,
        bytes_sent: Some(100),
        bytes_received: Some(50),
    }
}

fn flow() -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([9; 16]),
        process: Some(host().process(OWNER.pid, OWNER.start_ticks)),
        attribution: Attribution::InKernel,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: address("127.0.0.1:40000"),
        remote: address("127.3.0.1:7300"),
        opened: Timestamp::from_secs(1),
        already_open: false,
        first: Timestamp::from_secs(1),
        last: Timestamp::from_secs(2),
        traffic: Some(Traffic { bytes_sent: 100, bytes_received: 50, ..Traffic::default() }),
        state: FlowState::Closed,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: None,
    }
}

fn process() -> Process {
    Process {
        workload: "exec".into(),
        who: CHILD,
        parent: OWNER,
        token: Some("exec-1".into()),
        exit_code: Some(3),
    }
}

fn started() -> ProcessRecord {
    ProcessRecord {
        uid: host().process(CHILD.pid, CHILD.start_ticks),
        pid: CHILD.pid,
        parent: Some(host().process(OWNER.pid, OWNER.start_ticks)),
        parent_pid: Some(OWNER.pid),
        started: Timestamp::from_secs(1),
        already_running: false,
        image: ProcessImage {
            arguments: vec!["/bin/true".into(), "exec-1".into()],
            ..ProcessImage::default()
        },
    }
}

fn exited(exit_code: Option<i32>) -> EventKind {
    EventKind::ProcessExited(ProcessExit { uid: started().uid, exited: Timestamp::from_secs(2), exit_code })
}

fn events(kinds: Vec<EventKind>) -> Vec<Event> {
    let recorded = Moment { wall: Timestamp::from_secs(3), boot_ns: 3 };
    (1..).zip(kinds).map(|(seq, kind)| Event { seq: Seq(seq), recorded, kind }).collect()
}

/// The one score of what was recorded of one truth.
fn one(truth: Truth, kinds: Vec<EventKind>) -> Score {
    let mut scores = score(&[truth], &host(), &events(kinds));
    assert_eq!(scores.len(), 1);
    scores.remove(0)
}

fn of_flows(flows: Vec<FlowRecord>) -> Score {
    let kinds = flows.into_iter().map(|flow| EventKind::Flow(Box::new(flow))).collect();
    one(Truth::Connection(connection()), kinds)
}

/// What is right, column by column: seen, owner, ends, outcome, bytes, duplicates, unexpected.
fn columns(score: &Score) -> [u64; 7] {
    let Score { seen, owner, ends, outcome, bytes, duplicates, unexpected, .. } = score;
    [*seen, *owner, *ends, *outcome, *bytes, *duplicates, *unexpected]
}

#[test]
fn a_right_record_is_perfect() {
    let score = of_flows(vec![flow()]);
    assert!(score.is_perfect(), "{score:?}");
    assert_eq!((score.expected, score.faults.len()), (1, 0));
}

#[test]
fn each_column_finds_its_own_fault() {
    type Spoil = fn(&mut FlowRecord);
    let wrong: [(&str, Spoil, [u64; 7]); 10] = [
        ("owner:", |flow| flow.process = None, [1, 0, 1, 1, 1, 0, 0]),
        ("owner:", |flow| flow.process = Some(host().process(7, 71)), [1, 0, 1, 1, 1, 0, 0]),
        ("ends:", |flow| flow.local.set_port(1), [1, 1, 0, 1, 1, 0, 0]),
        ("ends:", |flow| flow.direction = Direction::Inbound, [1, 1, 0, 1, 1, 0, 0]),
        ("outcome:", |flow| flow.state = FlowState::Failed(104), [1, 1, 1, 0, 1, 0, 0]),
        ("outcome:", |flow| flow.state = FlowState::Established, [1, 1, 1, 0, 1, 0, 0]),
        ("bytes:", |flow| flow.traffic = None, [1, 1, 1, 1, 0, 0, 0]),
        ("bytes:", |flow| flow.traffic = Some(Traffic::default()), [1, 1, 1, 1, 0, 0, 0]),
        ("never was:", |flow| flow.remote = address("127.3.0.2:7300"), [0, 0, 0, 0, 0, 0, 1]),
        ("never was:", |flow| flow.protocol = Protocol::Udp, [0, 0, 0, 0, 0, 0, 1]),
    ];
    for (what, spoil, want) in wrong {
        let mut flow = flow();
        spoil(&mut flow);
        let score = of_flows(vec![flow.clone()]);
        assert_eq!(columns(&score), want, "{flow:?}");
        assert!(!score.is_perfect());
        assert!(score.faults[0].starts_with(what), "{score:?}");
    }
}

#[test]
fn what_is_not_recorded_is_said() {
    let score = of_flows(vec![]);
    assert_eq!((columns(&score), score.expected), ([0; 7], 1));
    assert_eq!(score.faults, ["not recorded: tcp outbound 127.3.0.1:7300"]);
    // Somebody else's are nobody's business.
    let mut other = flow();
    other.remote = address("192.0.2.1:443");
    assert_eq!(of_flows(vec![other]).unexpected, 0);
}

#[test]
fn records_of_one_connection_are_added_up_and_the_last_one_counts() {
    let traffic = |bytes_sent| Some(Traffic { bytes_sent, bytes_received: 25, ..Traffic::default() });
    let mut first = flow();
    (first.state, first.traffic, first.process) = (FlowState::Established, traffic(40), None);
    let mut second = flow();
    second.traffic = traffic(60);
    assert!(of_flows(vec![first.clone(), second.clone()]).is_perfect());
    // Two ends of the same connection are one too many.
    first.state = FlowState::Closed;
    assert_eq!(of_flows(vec![first, second]).outcome, 0);
}

#[test]
fn the_same_connection_twice_is_a_duplicate() {
    let again = FlowRecord { connection: ConnectionUid::from_bytes([8; 16]), ..flow() };
    let score = of_flows(vec![flow(), again]);
    assert_eq!(columns(&score), [1, 1, 1, 1, 1, 1, 0]);
    assert!(!score.is_perfect());
}

#[test]
fn an_attempt_that_was_given_up_is_not_one_that_failed() {
    let truth = |outcome| Truth::Connection(Connection { outcome, ..connection() });
    let recorded = FlowRecord { state: FlowState::Failed(ECANCELED), ..flow() };
    let kinds = vec![EventKind::Flow(Box::new(recorded))];
    assert!(one(truth(Outcome::GivenUp), kinds.clone()).is_perfect());
    assert_eq!(one(truth(Outcome::Failed(110)), kinds).outcome, 0);
}

#[test]
fn ipv4_is_the_same_by_an_ipv6_socket() {
    let mapped = Connection {
        local: Some(address("[::ffff:127.0.0.1]:40000")),
        remote: Some(address("[::ffff:127.3.0.1]:7300")),
        ..connection()
    };
    assert!(one(Truth::Connection(mapped), vec![EventKind::Flow(Box::new(flow()))]).is_perfect());
}

#[test]
fn a_process_is_held_against_its_start_its_parent_and_its_end() {
    let check = |spoil: fn(&mut ProcessRecord), exits: Vec<EventKind>| {
        let mut record = started();
        spoil(&mut record);
        let start = EventKind::ProcessStarted(Box::new(record));
        one(Truth::Process(process()), [vec![start], exits].concat())
    };
    let right = || vec![exited(Some(3))];
    assert!(check(|_| {}, right()).is_perfect());
    assert_eq!(columns(&check(|record| record.parent = None, right())), [1, 0, 1, 1, 1, 0, 0]);
    assert_eq!(columns(&check(|record| record.image.arguments.clear(), right())), [1, 1, 1, 0, 1, 0, 0]);
    assert_eq!(columns(&check(|_| {}, vec![])), [1, 1, 1, 0, 1, 0, 0], "no end");
    assert_eq!(check(|_| {}, vec![exited(Some(4))]).outcome, 0);
    assert_eq!(check(|_| {}, [right(), right()].concat()).outcome, 0, "two ends");
    let again = vec![EventKind::ProcessStarted(Box::new(started())), exited(Some(3))];
    assert_eq!(check(|_| {}, again).duplicates, 1);
    // Under another uid it is one that never was, and the right one is missing.
    let other = check(|record| record.uid = host().process(CHILD.pid, 81), vec![]);
    assert_eq!((columns(&other), other.expected), ([0, 0, 0, 0, 0, 0, 1], 1));
}

#[test]
fn a_long_list_of_faults_is_cut_and_counted() {
    let flows = (0..30).map(|number| {
        let mut flow = flow();
        flow.connection = ConnectionUid::from_bytes([100 + number; 16]);
        flow.remote.set_port(7310 + u16::from(number));
        flow
    });
    let score = of_flows(flows.collect());
    assert_eq!((score.unexpected, score.faults.len(), score.further_faults), (30, FAULTS_MAX, 21));
}

#[test]
fn losses_are_added_up() {
    let lost = |facet, count| {
        EventKind::CoverageChanged(CoverageChange {
            facet,
            grade: Grade::Lost { count, reason: "full".into() },
            from: Timestamp::from_secs(1),
            to: Some(Timestamp::from_secs(2)),
            scope: None,
            announced_from: None,
        })
    };
    let kinds = vec![lost(Facet::Processes, 2), lost(Facet::Connections, 3), lost(Facet::Connections, 4)];
    let hole = Hole {
        first: Seq(5),
        last: Seq(9),
        from: Timestamp::from_secs(1),
        to: Timestamp::from_secs(2),
        reason: "overwritten".into(),
    };
    let losses = losses(&events(kinds), &[hole]);
    assert_eq!((losses.processes, losses.connections, losses.overwritten), (2, 7, 5));
    assert!(!losses.is_none() && super::losses(&[], &[]).is_none());
}
