//! What one agent sends costs no other its freshness: neither a message that is never finished, nor a backlog.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    path::Path,
    time::{Duration, Instant},
};

use alibi_lab::{
    capture::watch::until_recorded,
    live::{Live, TARGET, found},
    recording::Recording,
    system::{Agent, Collector, now},
};
use serde_json::Value;

#[path = "hostile/agent.rs"]
mod agent;

use agent::{false_agent, head};

/// Each holds a message of 8 MiB: together they want more than there is for all.
const HOSTILE: u8 = 40;
/// Of the collector. What they claim would be more, and was never sent.
const MEMORY_BYTES_MAX: u64 = 200 << 20;
/// How long anything else may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long it may take until what happens now is known; the machine may be busy, and the programs are not optimised.
const LIVE_MAX: Duration = Duration::from_secs(5);

/// More happens on the host, and how long it takes until the collector has all of it.
fn takes(collector: &Collector, live: &mut Live, host: &str) -> Duration {
    live.more(1);
    let (began, processes) = (Instant::now(), live.processes());
    collector
        .json_until(&["who", TARGET, "--last", "10m", "--host", host], |answer| found(answer) == processes);
    began.elapsed()
}

/// Looks at the hosts until they are as wanted; a question that waits for what happens now, between two looks, takes its time.
fn hosts_until(collector: &Collector, host: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let (_, hosts) = collector.json(&["hosts"]);
        if wanted(&hosts) {
            return hosts;
        }
        assert!(began.elapsed() < PATIENCE, "it never is as wanted, but: {hosts:#}");
        collector.json(&["who", TARGET, "--last", "1s", "--host", host]);
    }
}

/// The first host, by which it is asked for.
fn name_of(collector: &Collector) -> String {
    // Waits until something is known of it.
    collector.json(&["who", TARGET, "--last", "1s"]);
    let hosts = collector.json_until(&["hosts"], |hosts| hosts["hosts"][0]["known_until"].is_string());
    hosts["hosts"][0]["host"].as_str().unwrap().to_owned()
}

fn host_at(hosts: &Value, address: &str) -> Value {
    let hosts = hosts["hosts"].as_array().unwrap();
    hosts.iter().find(|host| host["address"] == address).unwrap().clone()
}

/// An agent that has recorded so many connections, before anybody asks it for them.
fn with_backlog(directory: &Path, reports: u32, connections: u32) -> (Agent, u64) {
    std::fs::create_dir(directory).unwrap();
    let recording =
        Recording { begins: now().saturating_sub(Duration::from_secs(3600)), reports, connections };
    let path = directory.join("recording.jsonl");
    recording.write(&path).unwrap();
    let source = format!("replay:{}", path.display());
    let agent = Agent::start(&directory.join("agent"), &["--source", &source, "--ring-bytes", "67108864"]);
    until_recorded(&agent.data, recording.ends()).unwrap();
    (agent, u64::from(reports * connections))
}

#[test]
fn unfinished_messages_keep_nobody_who_is_live_from_being_heard() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let (mut live, honest) = Live::begin(directory.path(), &directory.path().join("agent"));
    collector.follow(&honest.address);
    let name = name_of(&collector);
    // The beginning of a message as large as may be, and never the rest.
    let unfinished = [head(8 << 20), vec![0; 60 << 10]].concat();
    let hostile: Vec<String> = (1..=HOSTILE).map(|number| false_agent(number, unfinished.clone())).collect();
    hostile.iter().for_each(|address| collector.follow(address));
    hosts_until(&collector, &name, |hosts| {
        hostile.iter().filter(|address| host_at(hosts, address)["connected"] == true).count() > 32
    });

    // Somebody else has a backlog, which has to wait for its turn.
    let (late, records) = with_backlog(&directory.path().join("late"), 20, 500);
    collector.follow(&late.address);
    let mut slowest = Duration::ZERO;
    let began = Instant::now();
    let taken_in = |hosts: &Value| host_at(hosts, &late.address)["events"].as_u64() >= Some(records);
    while !taken_in(&collector.json(&["hosts"]).1) {
        slowest = slowest.max(takes(&collector, &mut live, &name));
        assert!(began.elapsed() < PATIENCE, "the backlog never has its turn");
    }
    assert!(slowest < LIVE_MAX, "what happened was known after {slowest:?}");

    // Whoever did not finish was let go, and is told of, until they come again.
    collector.running.line_with("it took too long over a message", 0);
    let memory_bytes = collector.running.memory_bytes_max();
    assert!(memory_bytes < MEMORY_BYTES_MAX, "{memory_bytes}");
}

#[test]
fn backlogs_keep_nobody_who_is_live_from_being_heard() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let (mut live, honest) = Live::begin(directory.path(), &directory.path().join("agent"));
    collector.follow(&honest.address);
    let name = name_of(&collector);
    takes(&collector, &mut live, &name);

    // More at once than take turns.
    let late: Vec<(Agent, u64)> = (0..4)
        .map(|number| with_backlog(&directory.path().join(format!("late-{number}")), 100, 500))
        .collect();
    late.iter().for_each(|(agent, _)| collector.follow(&agent.address));
    let (mut slowest, mut during) = (Duration::ZERO, 0);
    loop {
        let hosts = collector.json(&["hosts"]).1;
        let behind = late
            .iter()
            .filter(|(agent, records)| host_at(&hosts, &agent.address)["events"].as_u64() < Some(*records))
            .count();
        if behind == 0 {
            break;
        }
        slowest = slowest.max(takes(&collector, &mut live, &name));
        during += usize::from(behind > 2);
    }
    assert!(during > 0, "the backlogs were over before anything happened");
    assert!(slowest < LIVE_MAX, "what happened was known after {slowest:?}");
}
