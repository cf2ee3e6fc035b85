//! A recording that a test writes while the agent records it: processes that have a connection each to the same target.

use std::{fs::File, io::Write as _, path::Path, process::Command};

use alibi_agent::capture::{
    ConnectionChange, Fact, Observation, ObservedConnection, ObservedProcess, ProcessKey, Report, SocketKey,
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade},
    flow::{Attribution, Direction, FlowState, Protocol},
    process::ProcessImage,
    time::Moment,
};
use serde_json::Value;

use crate::{
    disk::pipe,
    programs::programs,
    system::{self, Agent},
};

/// Whom recorded connections are with (TEST-NET-3, RFC 5737).
pub const TARGET: &str = "203.0.113.7";
/// Processes of one report: no line may be longer than a report is.
const IN_A_REPORT: usize = 100;

/// The recording, and the end of the pipe by which it goes on. The source ends when this is dropped.
#[derive(Debug)]
pub struct Live {
    pipe: File,
    next_pid: u32,
}

impl Live {
    /// Begins with complete coverage, and the agent that records it.
    pub fn begin(directory: &Path, data: &Path) -> (Self, Agent) {
        Self::begin_with(Command::new(&programs().agent), directory, data, &[])
    }

    /// The same with an agent that is started by a command which ends in its program, and further words.
    ///
    /// # Panics
    /// When there can be no pipe in `directory`.
    pub fn begin_with(command: Command, directory: &Path, data: &Path, words: &[&str]) -> (Self, Agent) {
        Self::begin_at(command, directory, data, "127.0.0.1:0", words)
    }

    /// The same with one that listens there; nowhere but at its socket, if that is empty.
    ///
    /// # Panics
    /// When there can be no pipe in `directory`.
    pub fn begin_at(
        command: Command,
        directory: &Path,
        data: &Path,
        listen: &str,
        words: &[&str],
    ) -> (Self, Agent) {
        let path = directory.join("live");
        let mut live = Self { pipe: pipe(&path).expect("a pipe can be made"), next_pid: 1 };
        let source = format!("replay:{}", path.display());
        let words = [&["--source", &source], words].concat();
        let agent = Agent::start_with(command, data, listen, &words);
        live.complete();
        (live, agent)
    }

    /// From now on everything is recorded.
    fn complete(&mut self) {
        let at = now();
        let complete = Fact::Coverage(CoverageChange {
            facet: Facet::Connections,
            grade: Grade::Complete,
            from: at.wall,
            to: None,
            scope: None,
            announced_from: None,
        });
        self.write(&line(vec![complete], at));
    }

    /// So many more processes, each with a connection.
    pub fn more(&mut self, processes: u32) {
        let pids: Vec<u32> = (self.next_pid..self.next_pid + processes).collect();
        self.next_pid += processes;
        pids.chunks(IN_A_REPORT).for_each(|some| self.write(&report(some.iter().copied())));
    }

    /// How many there were.
    pub fn processes(&self) -> usize {
        self.next_pid as usize - 1
    }

    fn write(&mut self, line: &str) {
        self.pipe.write_all(line.as_bytes()).expect("the pipe is open at both ends");
    }
}

/// The line of these processes: each starts, and opens and closes a connection to the target.
///
/// # Panics
/// Never: the target is an address.
pub fn report(pids: impl Iterator<Item = u32>) -> String {
    let at = now();
    let facts = pids.flat_map(|pid| {
        let process = ProcessKey { pid, start: 1 };
        let socket = SocketKey {
            protocol: Protocol::Tcp,
            remote: format!("{TARGET}:443").parse().expect("it is an address"),
            socket: u64::from(pid),
        };
        let started = ObservedProcess {
            process,
            parent: None,
            parent_pid: None,
            started: at.wall,
            already_running: false,
            image: ProcessImage { name: "p".to_owned(), ..ProcessImage::default() },
        };
        let opened = ObservedConnection {
            socket,
            local: ([192, 0, 2, 1], pid as u16).into(),
            owner: Some(process),
            attribution: Attribution::InKernel,
            direction: Direction::Outbound,
            state: FlowState::Established,
            already_open: false,
            traffic: None,
            interface: None,
            network_namespace: None,
        };
        [
            Fact::ProcessStarted(Box::new(started)),
            Fact::ConnectionOpened(Box::new(opened)),
            Fact::ConnectionClosed { socket, state: FlowState::Closed, change: ConnectionChange::default() },
        ]
    });
    line(facts.collect(), at)
}

fn line(facts: Vec<Fact>, at: Moment) -> String {
    let observations = facts.into_iter().map(|fact| Observation { at, fact }).collect();
    let report = Report { observations, seen_until: at };
    format!("{}\n", serde_json::to_string(&report).expect("a report can be written down"))
}

fn now() -> Moment {
    let wall = system::now();
    Moment { wall, boot_ns: wall.as_nanos() }
}

/// How many processes of the first host an answer has.
///
/// # Panics
/// When it is no answer.
pub fn found(answer: &Value) -> usize {
    answer["hosts"][0]["processes"].as_array().expect("the answer has processes").len()
}

/// Each process is there, with its connection, once.
///
/// # Panics
/// When it is not so.
pub fn assert_each_once(answer: &Value, processes: usize) {
    let found = answer["hosts"][0]["processes"].as_array().expect("a list");
    let mut pids: Vec<_> = found.iter().map(|process| process["pid"].as_u64().expect("a number")).collect();
    pids.sort_unstable();
    assert_eq!(pids, (1..=processes as u64).collect::<Vec<_>>());
    assert!(
        found.iter().all(|process| process["flows"].as_array().expect("a list").len() == 1),
        "{answer:#}"
    );
}
