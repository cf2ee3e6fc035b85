//! The buffer between kernel and agent overflows: what was lost is known to the last event, and takes only the windows
//! that it touches.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
};

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    ring,
    system::{Agent, now},
};
use alibi_proto::{
    coverage::{Facet, Grade},
    event::EventKind,
    time::Timestamp,
};
use rustix::process::{Pid, Signal, kill_process};

/// What the kernel has counted for each facet, in the map of the probe that process `pid` has loaded.
fn lost_in_kernel(pid: u32) -> [u64; 3] {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let ids: Vec<u32> = descriptors
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok())
        .filter_map(|info| info.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok()))
        .collect();
    let map = aya::maps::loaded_maps()
        .map(Result::unwrap)
        .find(|map| ids.contains(&map.id()) && map.name_as_str() == Some("lost"))
        .unwrap();
    let map = aya::maps::Map::PerCpuArray(aya::maps::MapData::from_id(map.id()).unwrap());
    let counts = aya::maps::PerCpuArray::<_, u64>::try_from(map).unwrap();
    [0, 1, 2].map(|facet| counts.get(&facet, 0).unwrap().iter().sum())
}

/// What the agent says was lost for want of room.
fn lost_in_coverage(agent_data: &Path) -> [u64; 3] {
    let mut lost = [0; 3];
    for event in ring::events(agent_data).unwrap() {
        if let EventKind::CoverageChanged(change) = event.kind
            && let Grade::Lost { count, reason } = change.grade
        {
            assert_eq!(
                reason,
                "the kernel could not tell: the buffer to the agent was full, there was no memory at a socket, or a datagram could not be read"
            );
            assert!(change.to.is_some(), "a loss has an end");
            let facet = match change.facet {
                Facet::Processes => 0,
                Facet::Connections => 1,
                Facet::Names => 2,
            };
            lost[facet] += count;
        }
    }
    lost
}

fn ask(agent_data: &Path, target: &str, from: Timestamp, to: Timestamp) -> Output {
    let (from, to) = (from.to_string(), to.to_string());
    Command::new(&programs().agent)
        .args(["query", target, "--from", &from, "--to", &to, "--json", "--data"])
        .arg(agent_data)
        .output()
        .unwrap()
}

fn verdict(agent_data: &Path, target: &str, from: Timestamp, to: Timestamp) -> String {
    let output = ask(agent_data, target, from, to);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["hosts"][0]["verdict"].as_str().unwrap().to_owned()
}

/// Waits until everything before `instant` is recorded: until then nothing can be ruled out.
fn known_until(agent_data: &Path, instant: Timestamp) {
    let is_known = || {
        let output =
            ask(agent_data, "203.0.113.99", now().saturating_sub(std::time::Duration::from_secs(1)), now());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let until = answer["hosts"][0]["known_until"].clone();
        serde_json::from_value::<Timestamp>(until).is_ok_and(|until| until >= instant)
    };
    while !is_known() {}
}

fn connect(count: u32, to: SocketAddr, listener: &TcpListener) {
    for _ in 0..count {
        let near = TcpStream::connect(to).unwrap();
        drop((near, listener.accept().unwrap()));
    }
}

#[test]
fn what_the_buffer_had_no_room_for_is_counted_to_the_last_event() {
    if !met("losses", &[Requirement::Bpf]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let words = ["--source", "ebpf", "--bpf-buffer-bytes", "65536"];
    let agent = Agent::start(&directory.path().join("agent"), &words);
    let (data, pid) = (agent.data.clone(), agent.running.pid());
    let process = Pid::from_raw(pid.cast_signed()).unwrap();
    // Nobody else talks to these.
    let target = SocketAddr::from((Ipv4Addr::new(127, 77, 1, 1), 0));
    let listener = TcpListener::bind(target).unwrap();
    let target = listener.local_addr().unwrap();
    let (somebody, nobody) = ("127.77.1.1", "127.77.1.2");

    known_until(&data, now());
    let begin = now();
    connect(3, target, &listener);
    let before = now();
    known_until(&data, before);

    let stopped = now();
    kill_process(process, Signal::STOP).unwrap();
    connect(2_000, target, &listener);
    kill_process(process, Signal::CONT).unwrap();
    known_until(&data, now());
    let after = now();
    connect(3, target, &listener);
    let end = now();
    known_until(&data, end);

    let (coverage, kernel) = (lost_in_coverage(&data), lost_in_kernel(pid));
    assert_eq!(coverage, kernel);
    assert!(kernel[1] > 5_000, "2,000 connections of two ends each do not fit: {kernel:?}");
    eprintln!("lost, processes, connections and names: {kernel:?} by the kernel, {coverage:?} by coverage");

    for (from, to, unseen, seen) in [
        (begin, before, "clear", "talked"),
        (stopped, after, "unknown", "talked"),
        (before, end, "unknown", "talked"),
        (after, end, "clear", "talked"),
    ] {
        assert_eq!(verdict(&data, nobody, from, to), unseen, "{from} to {to}");
        assert_eq!(verdict(&data, somebody, from, to), seen, "{from} to {to}");
    }
    assert!(agent.running.stop().success());
}
