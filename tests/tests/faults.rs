//! Disks that fail while the agent records: it goes on in memory, within its bound, nothing that is said meanwhile is
//! false, and when the disk works again every event is there once, or counted.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use alibi_agent::ring::{Ring, View};
use alibi_collector::store::StoredFlow;
use alibi_lab::{
    disk::{ReadOnly, SmallDisk},
    faults::{Faults, kind},
    killed,
    live::Live,
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, count_flows, now, owners, stored_flows},
};
use alibi_proto::{id::Seq, time::Timestamp};
use rustix::io::Errno;
use serde_json::Value;

/// How long a disk may take to give back what was removed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Nobody talked to it.
const NOBODY: &str = "203.0.113.99";
/// What the agent says when its disk fails, and when that works again.
const WAITS: &str = "the ring cannot be written; events wait in memory";
const GOES_ON: &str = "the ring takes events again";

/// A ring in which segments are begun and evicted soon, but not before they are acknowledged.
const FOUR_SEGMENTS: [&str; 2] = ["--ring-bytes", "1048576"];

/// An agent that records what the test writes, and the collector that follows it.
struct Scene {
    live: Live,
    agent: Agent,
    collector: Collector,
    collector_data: tempfile::TempDir,
    begun: Timestamp,
}

impl Scene {
    fn begin(command: Command, elsewhere: &Path, data: &Path, words: &[&str]) -> Self {
        let (mut live, agent) = Live::begin_with(command, elsewhere, data, words);
        let collector_data = tempfile::tempdir().unwrap();
        let collector = Collector::start(collector_data.path());
        collector.follow(&agent.address);
        live.more(1);
        let scene = Self { live, agent, collector, collector_data, begun: now() };
        scene.until_known(1);
        scene
    }

    /// Waits until the collector has so many processes.
    fn until_known(&self, processes: usize) {
        self.until_known_or(processes, || false);
    }

    /// The same, or until something else is so.
    fn until_known_or(&self, processes: usize, other: impl Fn() -> bool) {
        let is_known = || self.count_flows() >= processes as u64;
        self.collector.json_until(&["hosts"], |_| other() || is_known());
    }

    /// Records more until something is so. Each piece is acknowledged before the next, so that no segment is evicted early.
    fn more_until(&mut self, is_so: impl Fn(&Self) -> bool) {
        while !is_so(self) {
            self.live.more(1000);
            self.until_known_or(self.live.processes(), || is_so(self));
        }
    }

    fn flows(&self) -> Vec<StoredFlow> {
        stored_flows(self.collector_data.path())
    }

    fn count_flows(&self) -> u64 {
        count_flows(self.collector_data.path())
    }

    fn count(&self, sql: &str) -> u64 {
        let connection = rusqlite::Connection::open(self.collector_data.path().join("alibi.db")).unwrap();
        let count: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        count as u64
    }

    /// The verdict about whom nobody talked to, since this began.
    fn alibi(&self, until: Timestamp) -> (i32, Value) {
        let (from, to) = (self.begun.to_string(), until.to_string());
        self.collector.json(&["who", NOBODY, "--from", &from, "--to", &to])
    }

    /// While the disk fails nothing is ruled out that waits in memory.
    fn is_unknown(&self) {
        let (status, answer) = self.alibi(now());
        assert_eq!((status, &answer["hosts"][0]["verdict"]), (3, &"unknown".into()), "{answer:#}");
    }

    /// Every process is there once, with its connection, and everything until now is known.
    fn is_whole(&mut self) {
        let until = now();
        self.live.more(1);
        self.until_known(self.live.processes());
        let (processes, flows) = (self.live.processes(), self.flows());
        assert_eq!((flows.len(), owners(&flows)), (processes, processes));
        assert_eq!(self.count("SELECT events FROM host"), self.count("SELECT next_seq - 1 FROM ring"));
        let to = until.to_string();
        let words = ["who", NOBODY, "--from", &self.begun.to_string(), "--to", &to];
        let answer = self.collector.json_until(&words, |answer| answer["hosts"][0]["verdict"] == "clear");
        assert_eq!(answer["hosts"][0]["gaps"].as_array().map_or(0, Vec::len), 0, "{answer:#}");
    }
}

fn agent() -> Command {
    Command::new(&programs().agent)
}

#[test]
fn whatever_the_disk_says_every_event_is_there_once_when_it_works_again() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let faults = Faults::below(&data.join("ring"));
    let mut command = agent();
    faults.under(&mut command);
    let mut scene = Scene::begin(command, directory.path(), &data, &FOUR_SEGMENTS);
    for (with, kinds, one_in) in [
        (Errno::IO, kind::WRITE, 1),
        (Errno::NOSPC, kind::WRITE | kind::SHORT, 1),
        (Errno::IO, kind::SYNC, 1),
        (Errno::ROFS, kind::ALL, 1),
        (Errno::DQUOT, kind::ALL, 1),
        (Errno::NOSPC, kind::ALL, 1),
        (Errno::IO, kind::ALL, 2),
        (Errno::IO, kind::ALL, 5),
        (Errno::NOSPC, kind::WRITE | kind::SHORT | kind::TRUNCATE, 2),
    ] {
        let context = format!("{with:?}, kinds {kinds}, one in {one_in}");
        eprintln!("{context}");
        let (failed, waits) = (faults.failed(), said(&scene.agent, WAITS));
        faults.fail(with, kinds, one_in);
        // Few calls are made for many events. A write that is cut short is gone on with, so that alone is no trouble.
        while if one_in == 1 { said(&scene.agent, WAITS) == waits } else { faults.failed() < failed + 20 } {
            scene.live.more(100);
        }
        if one_in == 1 {
            scene.is_unknown();
        }
        scene.live.more(300);
        faults.mend();
        scene.is_whole();
        assert!(faults.failed() > failed, "{context}");
        assert_eq!(said(&scene.agent, WAITS), said(&scene.agent, GOES_ON), "{context}");
    }
    // What is there is what a later run finds.
    let Scene { live, agent, .. } = scene;
    drop(live);
    assert!(agent.running.stop().success());
    View::open_read_only(&data.join("ring")).unwrap();
}

#[test]
fn segments_are_begun_and_evicted_whichever_call_for_it_fails() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let faults = Faults::below(&data.join("ring"));
    let mut command = agent();
    faults.under(&mut command);
    let mut scene = Scene::begin(command, directory.path(), &data, &FOUR_SEGMENTS);
    for (with, kinds) in [(Errno::IO, kind::RENAME), (Errno::ROFS, kind::OPEN), (Errno::IO, kind::UNLINK)] {
        let failed = faults.failed();
        faults.fail(with, kinds, 1);
        // Until a segment is full, and what is written in place is written.
        scene.more_until(|_| faults.failed() > failed);
        scene.live.more(2000);
        faults.mend();
        scene.is_whole();
    }
    // What could not be evicted is, once it can be.
    let ring = data.join("ring");
    scene.more_until(|_| View::open_read_only(&ring).is_ok_and(|view| view.first_seq() > Seq::FIRST));
    scene.is_whole();
    assert_eq!(said(&scene.agent, "events were lost"), 0);
}

#[test]
fn what_goes_beyond_the_bound_is_lost_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let faults = Faults::below(&data.join("ring"));
    let mut command = agent();
    faults.under(&mut command);
    let mut scene = Scene::begin(command, directory.path(), &data, &[]);
    faults.fail(Errno::IO, kind::WRITE, 1);
    let begun = now();
    // Two events each: twice over the bound of 100,000.
    const PROCESSES: u32 = 110_000;
    scene.live.more(PROCESSES);
    let (first, line) = scene.agent.running.line_with("events were lost", 0);
    let (second, line) = scene.agent.running.line_with("events were lost", line);
    scene.is_unknown();
    let ended = now();
    faults.mend();
    let (_, line) = scene.agent.running.line_with(GOES_ON, line);
    scene.live.more(10);
    let (from, to) = (begun.to_string(), ended.to_string());
    let words = ["who", NOBODY, "--from", &from, "--to", &to];
    let is_told = |answer: &Value| lost(answer).next().is_some();
    let answer = scene.collector.json_until(&words, is_told);
    assert_eq!(answer["hosts"][0]["verdict"], "unknown", "{answer:#}");

    // As many as the agent says, and as are missing, but for what it said of coverage.
    let said = scene.agent.running.said();
    let said: u64 =
        said.iter().filter(|line| line.contains("events were lost")).map(|line| events_of(line)).sum();
    assert!(said >= events_of(&first) + events_of(&second) && line > 0);
    let told: Vec<u64> = lost(&answer).collect();
    assert_eq!(told, [said], "{answer:#}");
    let total = 2 * scene.live.processes() as u64;
    scene.collector.json_until(&["hosts"], |_| scene.count("SELECT events FROM host") + said >= total);
    let kept = scene.count_flows() + scene.count("SELECT count(record) FROM process");
    assert!((total - kept..=total - kept + 100).contains(&said), "{said} said, {} missing", total - kept);

    // Beyond it the host is ruled out again.
    let from = now();
    let to = now();
    scene.live.more(1);
    let (from, to) = (from.to_string(), to.to_string());
    scene.collector.json_until(&["who", NOBODY, "--from", &from, "--to", &to], |answer| {
        answer["hosts"][0]["verdict"] == "clear"
    });
}

/// The counts of what was lost of connections.
fn lost(answer: &Value) -> impl Iterator<Item = u64> {
    let gaps = answer["hosts"][0]["gaps"].as_array().cloned().unwrap_or_default();
    gaps.into_iter()
        .filter(|gap| gap["facet"] == "connections" && gap["grade"] == "lost")
        .map(|gap| gap["count"].as_u64().unwrap())
}

fn events_of(line: &str) -> u64 {
    let (_, rest) = line.split_once("events=").unwrap_or_else(|| panic!("{line}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// The ring of an agent that runs. A segment may be evicted between being listed and being looked at: then it is looked at anew.
fn ring_under_way(data: &Path) -> View {
    let began = Instant::now();
    loop {
        match View::open_read_only(&data.join("ring")) {
            Ok(view) => return view,
            Err(problem) => assert!(began.elapsed() < Duration::from_secs(20), "{problem}"),
        }
    }
}

/// How many lines of the agent have this in them.
fn said(agent: &Agent, text: &str) -> usize {
    agent.running.said().iter().filter(|line| line.contains(text)).count()
}

#[test]
fn a_directory_that_becomes_read_only_is_waited_for() {
    if !met("a directory that becomes read-only", &[Requirement::Mounts]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let mut scene = Scene::begin(agent(), directory.path(), &data, &FOUR_SEGMENTS);
    let mut line = 0;
    for _ in 0..2 {
        // What is open stays so: the segment that is written on is filled, and none can be begun.
        let read_only = ReadOnly::over(&data.join("ring"));
        let waits = said(&scene.agent, WAITS);
        scene.more_until(|scene| said(&scene.agent, WAITS) > waits);
        line = scene.agent.running.line_with(WAITS, line).1;
        assert!(
            scene.agent.running.said()[line - 1].contains("Read-only"),
            "{:?}",
            scene.agent.running.said()
        );
        scene.is_unknown();
        drop(read_only);
        line = scene.agent.running.line_with(GOES_ON, line).1;
        scene.is_whole();
    }
    assert_eq!(said(&scene.agent, "events were lost"), 0);
}

#[test]
fn a_full_disk_costs_nothing_as_long_as_something_is_acknowledged() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    for pages in [5, 20, 70] {
        let disk = SmallDisk::new(2048);
        let data = disk.path().join("data");
        let mut scene = Scene::begin(agent(), elsewhere.path(), &data, &FOUR_SEGMENTS);
        disk.fill_but(pages);
        // Each is acknowledged before the next comes; until what was begun on the full disk was full, too, and is gone.
        let next_seq = ring_under_way(&data).next_seq();
        scene.more_until(|_| ring_under_way(&data).first_seq() >= Seq(next_seq.0 + 40_000));
        assert_eq!(said(&scene.agent, "events were lost"), 0);
        scene.is_whole();
        std::fs::remove_file(elsewhere.path().join("live")).unwrap();
    }
}

#[test]
fn a_full_disk_is_waited_for_if_nobody_has_what_is_on_it() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(4096);
    let data = disk.path().join("data");
    let (mut live, agent) = Live::begin_with(agent(), elsewhere.path(), &data, &["--ring-bytes", "2097152"]);
    live.more(1);
    let begun = now();
    disk.fill_but(100);
    while said(&agent, WAITS) == 0 {
        live.more(1000);
    }
    live.more(1000);
    disk.free();
    agent.running.line_with(GOES_ON, 0);
    assert_eq!(View::open_read_only(&data.join("ring")).unwrap().first_seq(), Seq::FIRST);
    let collector_data = tempfile::tempdir().unwrap();
    let collector = Collector::start(collector_data.path());
    collector.follow(&agent.address);
    let mut scene = Scene { live, agent, collector, collector_data, begun };
    scene.is_whole();
    assert_eq!(said(&scene.agent, "events were lost"), 0);
}

#[test]
fn room_that_was_set_aside_is_for_what_comes_first() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    for pages in 0..12 {
        let disk = SmallDisk::new(512);
        let (mut ring, _) = killed::open(&disk.path().join("ring")).unwrap();
        ring.append(&[killed::record(0, 1)]).unwrap();
        let append = |ring: &mut Ring, seq: u64| {
            // On a busy machine, the room of what was removed comes back a little later.
            let deadline = Instant::now() + PATIENCE;
            let appended = loop {
                match ring.append(&[killed::record(0, seq)]) {
                    Ok(appended) => break appended,
                    Err(error) => assert!(Instant::now() < deadline, "{pages} pages, record {seq}: {error}"),
                }
                std::thread::yield_now();
            };
            // Whatever is appended is acknowledged, so there is always something that nobody needs.
            ring.acknowledge(Seq(seq)).unwrap();
            appended.started_segment
        };
        let full = (2..).filter(|seq| append(&mut ring, *seq)).nth(1).unwrap();
        disk.fill_but(pages);
        for seq in full + 1..2000 {
            // A segment may be begun with less room than it needs, and then there is some for the next.
            if append(&mut ring, seq) {
                let _ = ring.prepare();
            }
        }
        assert!(ring.first_seq() > Seq(1500), "{:?}", ring.first_seq());
    }
}
