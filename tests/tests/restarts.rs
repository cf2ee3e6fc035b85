//! Programs are killed and started again in the middle of a stream: nothing is lost, nothing is stored twice, and what
//! was not recorded is a gap.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{collections::BTreeSet, path::Path, time::Duration};

use alibi_agent::ring::{Read, Reader, View};
use alibi_collector::store::StoredFlow;
use alibi_lab::{
    recording::Recording,
    system::{Agent, Collector, now, stored_flows},
};
use alibi_proto::{
    id::Seq,
    time::Timestamp,
    wire::{self, event::Kind},
};
use prost::Message as _;
use serde_json::Value;

/// A recording of connections, an hour ago, written to a file; the words that make an agent replay it.
fn recording(directory: &Path, reports: u32, connections: u32) -> (Recording, String) {
    let begins = now().saturating_sub(Duration::from_secs(3600));
    let recording = Recording { begins, reports, connections };
    let path = directory.join("recording.jsonl");
    recording.write(&path).unwrap();
    (recording, format!("replay:{}", path.display()))
}

fn events(hosts: &Value) -> u64 {
    hosts["hosts"][0]["events"].as_u64().unwrap()
}

/// The positions of all flow events, as a ring has them, and how many events it has in all. It must have them all.
fn flows_in_ring(agent_data: &Path) -> (BTreeSet<u64>, u64) {
    let view = View::open_read_only(&agent_data.join("ring")).unwrap();
    let mut reader = Reader::new(view, Seq::FIRST);
    let (mut flows, mut all) = (BTreeSet::new(), 0);
    loop {
        match reader.next_records().unwrap() {
            Read::Records(first, columns) => {
                let records = columns.records();
                for (record, seq) in records.iter().zip(first.0..) {
                    let event = wire::Event::decode(record).unwrap();
                    all += 1;
                    assert_eq!((event.seq, event.seq), (seq, all));
                    if matches!(event.kind, Some(Kind::Flow(_))) {
                        flows.insert(event.seq);
                    }
                }
            }
            Read::Hole(hole) => panic!("{hole:?}"),
            Read::CaughtUp => return (flows, all),
        }
    }
}

/// The positions of all flow events, as the collector's database has them, each checked to be there once.
fn flows_in_store(collector_data: &Path) -> BTreeSet<u64> {
    let flows = stored_flows(collector_data);
    let distinct: BTreeSet<_> = flows.iter().map(|flow| (flow.host, flow.epoch, flow.seq)).collect();
    assert_eq!(distinct.len(), flows.len(), "stored twice");
    let is_of_the_first = |flow: &StoredFlow| (flow.host, flow.epoch) == (flows[0].host, flows[0].epoch);
    assert!(flows.iter().all(is_of_the_first), "one host, one epoch");
    flows.iter().map(|flow| flow.seq.0).collect()
}

/// Waits until the collector has stored more than `events` of the one host.
fn more_than(collector: &Collector, stored: u64) -> u64 {
    events(&collector.json_until(&["hosts"], |hosts| events(hosts) > stored))
}

#[test]
fn a_killed_collector_loses_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, source) = recording(directory.path(), 600, 100);
    let agent = Agent::start(&directory.path().join("agent"), &["--source", &source]);
    let data = directory.path().join("collector");
    let mut collector = Collector::start(&data);
    collector.follow(&agent.address);
    let mut stored = 0;
    for _ in 0..5 {
        stored = more_than(&collector, stored);
        let address = collector.address.clone();
        collector.running.kill();
        collector = Collector::start_at(&data, &address);
    }
    assert!(stored < 60_000, "it was killed in the middle of the stream");

    let ends = recording.ends();
    let all = collector.json_until(&["hosts"], |hosts| is_known(hosts, ends));
    let (flows, in_ring) = flows_in_ring(&agent.data);
    assert_eq!(flows.len(), 60_000, "one record for each short connection");
    assert!(flows_in_store(&data) == flows, "the store has what the ring has");
    assert_eq!(events(&all), in_ring);
}

fn is_known(hosts: &Value, until: Timestamp) -> bool {
    let known_until = &hosts["hosts"][0]["known_until"];
    !known_until.is_null() && serde_json::from_value::<Timestamp>(known_until.clone()).unwrap() >= until
}

#[test]
fn a_killed_agent_loses_and_doubles_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, source) = recording(directory.path(), 300, 100);
    let data = directory.path().join("collector");
    let collector = Collector::start(&data);
    let mut agent = Agent::start(&directory.path().join("agent"), &["--source", &source]);
    collector.follow(&agent.address);
    let mut stored = 0;
    for _ in 0..4 {
        stored = more_than(&collector, stored);
        let (address, agent_data) = (agent.address, agent.data);
        agent.running.kill();
        // It begins the recording from the start each time: other events, of the same things.
        agent = Agent::start_again(&agent_data, &address, &["--source", &source]);
    }
    // The last run's recording is whole once its last connection is there as often as the recording was begun anew, at
    // the least once; then nothing more comes.
    collector.json_until(&["hosts"], |hosts| {
        let (_, in_ring) = flows_in_ring(&agent.data);
        hosts["hosts"][0]["connected"] == true && in_ring >= 30_000 && events(hosts) == in_ring
    });
    let last = Recording::remote(29_999).to_string();
    assert_eq!(collector.json(&["who", &last, "--last", "2h"]).0, 0);
    assert_eq!(recording.reports, 300);
    let (flows, in_ring) = flows_in_ring(&agent.data);
    assert!(flows_in_store(&data) == flows, "the store has what the ring has");
    let (_, hosts) = collector.json(&["hosts"]);
    assert_eq!(events(&hosts), in_ring);
}

#[test]
fn a_kill_and_a_stop_of_the_agent_are_gaps_where_they_were() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let agent = Agent::start(&directory.path().join("agent"), &["--source", "poll"]);
    collector.follow(&agent.address);
    let (data, address) = (agent.data.clone(), agent.address.clone());
    let known = |after: Timestamp| {
        collector.json_until(&["hosts"], |hosts| is_known(hosts, after));
    };
    known(now());

    let before_kill = now();
    agent.running.kill();
    let after_kill = now();
    let agent = Agent::start_again(&data, &address, &["--source", "poll"]);
    known(now());
    let after_restart = now();
    assert!(agent.running.stop().success());
    let after_stop = now();
    let agent = Agent::start_again(&data, &address, &["--source", "poll"]);
    known(now());

    let from = before_kill.saturating_sub(Duration::from_secs(1)).to_string();
    let (status, answer) = collector.json(&["who", "203.0.113.99", "--from", &from]);
    assert_eq!(status, 3);
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    let time = |value: &Value| serde_json::from_value::<Timestamp>(value.clone()).unwrap();
    let none = |reason: &str| {
        let gap = gaps.iter().find(|gap| gap["grade"] == "none" && gap["reason"] == reason);
        let gap = gap.unwrap_or_else(|| panic!("no gap because {reason}: {gaps:#?}"));
        (time(&gap["from"]), time(&gap["to"]))
    };
    let (killed_from, killed_to) = none("the agent ended without saying so (crash, kill or power loss)");
    assert!(killed_from <= after_kill && killed_to >= after_kill && killed_to <= after_restart, "{gaps:#?}");
    let (stopped_from, stopped_to) = none("the agent was stopped");
    assert!(stopped_from <= after_stop && stopped_to >= after_stop && stopped_from >= killed_to, "{gaps:#?}");
    // Between them, and after, it was recorded as well as polling can.
    assert!(gaps.iter().all(|gap| gap["grade"] == "none" || gap["grade"] == "sampled"), "{gaps:#?}");
    drop(agent);
}

#[test]
fn what_a_small_ring_overwrites_is_a_loss_with_its_exact_count() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, source) = recording(directory.path(), 300, 400);
    let words = ["--source", &source, "--ring-bytes", "524288"];
    let agent = Agent::start(&directory.path().join("agent"), &words);
    // Followed only once all of it has been recorded, and most of it overwritten.
    let last = Recording::remote(119_999).to_string();
    let ring = agent.data.join("ring");
    let answered = |address: &str| {
        let mut query = std::process::Command::new(&alibi_lab::programs::programs().agent);
        query
            .args(["query", address, "--last", "2h", "--data"])
            .arg(&agent.data)
            .output()
            .unwrap()
            .status
            .code()
    };
    while answered(&last) != Some(0) {}
    let overwritten = View::open_read_only(&ring).unwrap().first_seq().0 - 1;
    assert!(overwritten > 10_000, "{overwritten}");

    let collector = Collector::start(&directory.path().join("collector"));
    collector.follow(&agent.address);
    let hosts = collector.json_until(&["hosts"], |hosts| is_known(hosts, recording.ends()));
    let next_seq = View::open_read_only(&ring).unwrap().next_seq().0;
    assert_eq!(events(&hosts) + overwritten, next_seq - 1);

    let after_the_last = recording.ends().saturating_add(Duration::from_nanos(1));
    let (from, to) = (recording.begins.to_string(), recording.ends().to_string());
    // An overwritten one is not found, and its host is no alibi.
    let first = Recording::remote(0).to_string();
    let (status, answer) = collector.json(&["who", &first, "--from", &from, "--to", &to]);
    assert_eq!(status, 3, "{answer:#}");
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    let lost: Vec<_> = gaps.iter().filter(|gap| gap["grade"] == "lost").collect();
    assert_eq!(lost.len(), 1, "{gaps:#?}");
    assert_eq!(lost[0]["count"], overwritten);
    assert_eq!(lost[0]["reason"], "overwritten in the ring before they were delivered");

    // One that was kept is found, and where nothing was lost the host is clear.
    let (status, _) = collector.json(&["who", &last, "--from", &from, "--to", &after_the_last.to_string()]);
    assert_eq!(status, 0);
    let end: Timestamp = serde_json::from_value(lost[0]["to"].clone()).unwrap();
    assert!(end < recording.ends(), "{end}");
    let (status, answer) = collector.json(&["who", "203.0.113.99", "--from", &end.to_string(), "--to", &to]);
    assert_eq!(status, 1, "{answer:#}");
}

#[test]
fn a_recording_without_a_gap_is_an_alibi() {
    let directory = tempfile::tempdir().unwrap();
    let (recording, source) = recording(directory.path(), 10, 3);
    let agent = Agent::start(&directory.path().join("agent"), &["--source", &source]);
    let collector = Collector::start(&directory.path().join("collector"));
    collector.follow(&agent.address);
    collector.json_until(&["hosts"], |hosts| is_known(hosts, recording.ends()));
    let (from, to) = (recording.begins.to_string(), recording.ends().to_string());
    let who = |target: &str, to: &str| collector.json(&["who", target, "--from", &from, "--to", to]);

    let (status, answer) = who("203.0.113.99", &to);
    assert_eq!((status, &answer["verdict"]), (1, &"clear".into()), "{answer:#}");
    assert_eq!(answer["hosts"][0]["scopes"][0]["source"], "replay");
    let (status, answer) = who("10.0.0.0/8", &to);
    assert_eq!(status, 0);
    assert_eq!(
        answer["hosts"][0]["processes"][0]["flows"].as_array().unwrap().len(),
        27,
        "not those at `to`"
    );
    assert_eq!(answer["hosts"][0]["processes"][0]["flows"][0]["in_window"], "bytes");
    // A nanosecond more than was recorded, and nothing is proven.
    let later = recording.ends().saturating_add(Duration::from_nanos(1)).to_string();
    let (status, answer) = who("203.0.113.99", &later);
    assert_eq!(status, 3, "{answer:#}");

    // A second agent that never answered is listed, and unknown.
    collector.follow("127.0.0.1:1");
    let (status, answer) = who("203.0.113.99", &to);
    assert_eq!((status, answer["hosts"].as_array().unwrap().len()), (3, 2), "{answer:#}");
}
