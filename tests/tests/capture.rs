//! Everything that happens is recorded: every kind of connection and process, held against what the programs that made
//! them say themselves; and what an agent that is killed did not record is a gap, exactly as long as it was.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeMap, net::SocketAddr, path::Path, process::Command};

use alibi_agent::ring::View;
use alibi_lab::{
    capture::{stage::Stage, tail::Tail},
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Running, now},
    workload::{self, EARLY},
};
use alibi_proto::{
    coverage::{Facet, Grade},
    event::{Event, EventKind},
    flow::FlowRecord,
    id::{ConnectionUid, Seq},
    time::Timestamp,
};

/// What everything here is expected of.
const SOURCE: &str = "ebpf";
const LAB: &str = env!("CARGO_BIN_EXE_lab");
const REQUIREMENTS: &[Requirement] = &[Requirement::NetworkNamespaces, Requirement::Bpf];

/// Room for all that happens here at once: a busy machine must not decide a test. What an overflow means is tested on its
/// own.
const BUFFER: &[&str] = &["--bpf-buffer-bytes", "33554432"];

/// Starts an agent, and waits until it has told what there is already.
fn watched(stage: &Stage) -> Agent {
    let agent = stage.agent("agent", SOURCE, BUFFER);
    Tail::open(&agent.address).unwrap().until("a watermark", |tail| tail.watermark.is_some()).unwrap();
    agent
}

#[test]
fn everything_is_recorded_as_it_was() {
    if !met("capture", REQUIREMENTS) {
        return;
    }
    let stage = Stage::new(Path::new(LAB)).unwrap();
    let early = stage.begin_early();
    let agent = watched(&stage);
    for workload in workload::ALL.iter().filter(|workload| workload.name != EARLY) {
        stage.run(workload).unwrap();
    }
    stage.end_early(early).unwrap();
    let findings = stage.findings(&agent).unwrap();

    let expected: BTreeMap<&str, u64> =
        findings.scores.iter().map(|score| (score.workload.as_str(), score.expected)).collect();
    for (workload, count) in
        [("fresh", 6_000), ("many", 40_000), ("exec", 2_000), ("fork", 500), ("udp", 200)]
    {
        assert_eq!(expected.get(workload), Some(&count), "{workload} did not do what it is there for");
    }
    assert_eq!(expected.len(), workload::ALL.len(), "{expected:?}");
    let imperfect: Vec<_> = findings.scores.iter().filter(|score| !score.is_perfect()).collect();
    assert!(imperfect.is_empty() && findings.losses.is_none(), "{:#?}\n{imperfect:#?}", findings.losses);
    assert!(agent.running.stop().success());
}

/// The flow records after `seq`, by the end that is the client's.
fn flows(events: &[Event], after: Seq) -> BTreeMap<SocketAddr, &FlowRecord> {
    let mut flows = BTreeMap::new();
    for event in events.iter().filter(|event| event.seq > after) {
        if let EventKind::Flow(flow) = &event.kind {
            flows.insert(flow.local, &**flow);
        }
    }
    flows
}

/// The exit status of the question who talked to `target`, asked of the ring itself.
fn who(data: &Path, target: &str, from: Timestamp, to: Timestamp) -> Option<i32> {
    let (from, to) = (from.to_string(), to.to_string());
    let mut command = Command::new(&programs().agent);
    let command = command.args(["query", target, "--from", &from, "--to", &to, "--data"]).arg(data);
    command.output().unwrap().status.code()
}

const TALKED: Option<i32> = Some(0);
const CLEAR: Option<i32> = Some(1);
const UNKNOWN: Option<i32> = Some(3);

#[test]
fn a_killed_agent_knows_its_connections_again_and_its_gap_is_exact() {
    if !met("a killed agent", REQUIREMENTS) {
        return;
    }
    let stage = Stage::new(Path::new(LAB)).unwrap();
    let server = Running::start("the server", stage.lab().args(["server", "127.99.0.1:7000"]));
    server.line_with("listening", 0);
    let mut client = Running::start("the client", stage.lab().arg("client"));
    let connect = |client: &mut Running, name: &str| -> SocketAddr {
        client.ask(&format!("connect {name} 127.99.0.1:7000")).parse().unwrap()
    };

    // One from before all agents, one under the eyes of the first, one while there is none.
    let mut locals = vec![connect(&mut client, "before")];
    let first = watched(&stage);
    locals.push(connect(&mut client, "watched"));
    let mut tail = Tail::open(&first.address).unwrap();
    tail.until_known(now()).unwrap();
    let before: BTreeMap<SocketAddr, ConnectionUid> = {
        let known = |tail: &Tail| locals.iter().all(|local| flows(&tail.events, Seq(0)).contains_key(local));
        tail.until("records of what is open", known).unwrap();
        flows(&tail.events, Seq(0)).iter().map(|(local, flow)| (*local, flow.connection)).collect()
    };
    let (data, whole_until) = (first.data.clone(), tail.watermark.unwrap());
    let begins = tail.events[0].recorded.wall;
    first.running.kill();
    let killed = now();
    drop(tail);
    let ring = View::open_read_only(&data.join("ring")).unwrap();
    let (recorded_until, last) = (ring.recorded_until().unwrap(), Seq(ring.next_seq().0 - 1));
    drop(ring);
    let unseen = connect(&mut client, "unseen");
    assert_eq!(client.ask("close unseen"), "closed");

    let again = now();
    let second = watched(&stage);
    let mut tail = Tail::open(&second.address).unwrap();
    tail.until_known(now()).unwrap();
    let known = |tail: &Tail| locals.iter().all(|local| flows(&tail.events, last).contains_key(local));
    tail.until("what is open, anew", known).unwrap();
    let found = flows(&tail.events, last);
    for local in &locals {
        assert_eq!(found[local].connection, before[local], "{local} has another name now");
        assert!(found[local].first >= again, "{:?} speaks of the gap", found[local]);
    }
    assert!(!found.contains_key(&unseen), "nobody saw {unseen}");

    // The gap begins where the first run is known to be whole, and ends where the second one is complete.
    let changes = tail.events.iter().filter(|event| event.seq > last);
    let mut changes = changes.filter_map(|event| match &event.kind {
        EventKind::CoverageChanged(change) if change.facet == Facet::Connections => Some(change),
        _ => None,
    });
    let gap = changes.next().unwrap();
    let Grade::NotRecorded { reason } = &gap.grade else { panic!("{gap:?}") };
    assert!(reason.contains("without saying so"), "{gap:?}");
    assert_eq!((gap.from, gap.to), (recorded_until, None));
    assert!(whole_until <= recorded_until && recorded_until <= killed, "{recorded_until}");
    let resumed = changes.find(|change| change.grade == Grade::Complete).unwrap().from;
    let first_found = locals.iter().map(|local| found[local].first).min().unwrap();
    assert!(again <= resumed && resumed <= first_found, "{again} {resumed} {first_found}");

    let until = tail.watermark.unwrap();
    let nanosecond = std::time::Duration::from_nanos(1);
    for (from, to, nobody) in [
        (recorded_until.saturating_sub(std::time::Duration::from_millis(1)), recorded_until, CLEAR),
        (recorded_until, killed, UNKNOWN),
        (recorded_until, recorded_until.saturating_add(nanosecond), UNKNOWN),
        (resumed.saturating_sub(nanosecond), resumed, UNKNOWN),
        (killed, resumed, UNKNOWN),
        (resumed, until, CLEAR),
        (begins, until, UNKNOWN),
    ] {
        assert_eq!(
            who(&data, "203.0.113.99", from, to),
            nobody,
            "{from} to {to}, gap {recorded_until} to {resumed}"
        );
    }
    // What was open before and after is found on both sides.
    assert_eq!(who(&data, "127.99.0.1", begins, recorded_until), TALKED);
    assert_eq!(who(&data, "127.99.0.1", resumed, until), TALKED);
    assert!(second.running.stop().success());
}
