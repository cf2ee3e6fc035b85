//! Disks that are full: at the start, and while the programs run.

use std::{fs::File, io::Write as _};

use alibi_agent::capture::Report;
use alibi_lab::{
    disk::{SmallDisk, pipe},
    system::Running,
};
use alibi_proto::coverage::{CoverageChange, Facet, Grade};

use super::*;

const SIZE_KIB: u32 = 2048;

/// Whether the program starts with room for so many pages; if not, it must have said why and left nothing.
fn starts(command: impl Fn(&Path) -> Command, ready: &str, pages: u64) -> bool {
    let disk = SmallDisk::new(SIZE_KIB);
    disk.fill_but(pages);
    let data = disk.path().join("deep/data");
    let before = Listing::of(disk.path());
    let running = Running::start("the program", &mut command(&data));
    if running.started(ready) {
        return true;
    }
    drop(running);
    assert_eq!(before.differences(&Listing::of(disk.path())), Vec::<PathBuf>::new(), "with {pages} pages");
    let name = data.display().to_string();
    refused(command(&data), disk.path(), &[&name, "make room"]);
    false
}

#[test]
fn a_program_that_finds_the_disk_full_leaves_nothing_behind() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    // Each page more lets a program come further before it finds the disk full.
    let first_start = |command: fn(&Path) -> Command, ready| {
        (0..200).find(|&pages| starts(command, ready, pages)).expect("with room enough it starts")
    };
    assert!(first_start(run, "recording address=") > 1);
    assert!(first_start(serve, "serving address=") > 1);
}

#[test]
fn a_program_that_finds_the_disk_of_its_data_full_loses_nothing_of_them() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let disk = SmallDisk::new(SIZE_KIB);
    let [of_agent, of_collector] = made(disk.path());
    disk.fill_but(0);
    refused(run(&of_agent), disk.path(), &[&of_agent.display().to_string(), "make room"]);
    // Answering needs no room, neither here nor there.
    let collector = Collector::start(&of_collector);
    collector.running.line_with("is full: make room", 0);
    assert_eq!(collector.json(&["hosts"]).0, 0);
    assert!(collector.running.stop().success());
    let output = outcome(&mut query(&of_agent));
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    disk.free();
    made(disk.path());
}

/// A recording that the test writes while the agent records it.
struct Live {
    pipe: File,
    next_pid: u32,
}

impl Live {
    /// Begins with complete coverage, and the agent that records it.
    fn begin(directory: &Path, data: &Path) -> (Self, Agent) {
        let path = directory.join("live");
        let mut live = Self { pipe: pipe(&path).unwrap(), next_pid: 1 };
        let agent = Agent::start(data, &["--source", &format!("replay:{}", path.display())]);
        let at = now();
        let complete = Fact::Coverage(CoverageChange {
            facet: Facet::Connections,
            grade: Grade::Complete,
            from: at.wall,
            to: None,
            scope: None,
            announced_from: None,
        });
        let report = Report { observations: vec![Observation { at, fact: complete }], seen_until: at };
        writeln!(live.pipe, "{}", serde_json::to_string(&report).unwrap()).unwrap();
        (live, agent)
    }

    /// So many more processes, each with a connection.
    fn more(&mut self, processes: u32) {
        let pids = self.next_pid..self.next_pid + processes;
        self.next_pid = pids.end;
        // No line may be longer than a report is.
        for some in pids.collect::<Vec<_>>().chunks(100) {
            self.pipe.write_all(report(some.iter().copied()).as_bytes()).unwrap();
        }
    }

    fn processes(&self) -> usize {
        self.next_pid as usize - 1
    }
}

fn found(answer: &Value) -> usize {
    answer["hosts"][0]["processes"].as_array().unwrap().len()
}

#[test]
fn an_agent_whose_disk_gets_full_keeps_all_and_goes_on_when_there_is_room() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(SIZE_KIB);
    let (mut live, agent) = Live::begin(elsewhere.path(), &disk.path().join("data"));
    let collector = Collector::start(&elsewhere.path().join("collector"));
    collector.follow(&agent.address);
    live.more(10);
    collector.json_until(&["who", TARGET, "--last", "10m"], |answer| found(answer) == live.processes());

    disk.fill_but(0);
    live.more(1000);
    let (line, next) = agent.running.line_with("the ring cannot be written", 0);
    assert!(line.contains("ERROR") && line.contains("No space left"), "{line}");
    // What waits is not known, and nobody is told that it is.
    live.more(1);
    let (status, answer) = collector.json(&["who", "203.0.113.99", "--last", "10m"]);
    assert_eq!((status, &answer["hosts"][0]["verdict"]), (3, &"unknown".into()), "{answer:#}");
    let output = outcome(&mut query(&agent.data));
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));

    disk.free();
    agent.running.line_with("the ring takes events again", next);
    live.more(10);
    let answer =
        collector.json_until(&["who", TARGET, "--last", "10m"], |answer| found(answer) >= live.processes());
    let processes = live.processes();
    assert_each_once(&answer, processes);
    drop(live.pipe);
    assert!(agent.running.stop().success());
    let output = outcome(query(&agent.data).arg("--json"));
    assert_each_once(&serde_json::from_slice(&output.stdout).unwrap(), processes);
}

/// Each process is there, with its connection, once.
fn assert_each_once(answer: &Value, processes: usize) {
    let found = answer["hosts"][0]["processes"].as_array().unwrap();
    let mut pids: Vec<_> = found.iter().map(|process| process["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    assert_eq!(pids, (1..=processes as u64).collect::<Vec<_>>());
    assert!(found.iter().all(|process| process["flows"].as_array().unwrap().len() == 1), "{answer:#}");
}

#[test]
fn a_collector_whose_disk_gets_full_says_so_and_has_every_event_once_when_there_is_room() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(SIZE_KIB);
    let data = disk.path().join("data");
    let (mut live, agent) = Live::begin(elsewhere.path(), &elsewhere.path().join("agent"));
    let collector = Collector::start(&data);
    collector.follow(&agent.address);
    live.more(10);
    collector.json_until(&["who", TARGET, "--last", "10m"], |answer| found(answer) == live.processes());

    disk.fill_but(0);
    live.more(500);
    let (line, next) = collector.running.line_with("is full: make room", 0);
    let (_, hosts) = collector.json(&["hosts"]);
    let host = &hosts["hosts"][0];
    let trouble = host["trouble"].as_str().unwrap();
    assert!(line.contains("ERROR"), "{line}");
    assert_eq!(host["connected"], false, "{hosts:#}");
    assert!(trouble.contains("full") && trouble.contains("make room"), "{trouble}");
    // What is stored is answered, and nothing is ruled out beyond it.
    let (status, answer) = collector.json(&["who", TARGET, "--last", "10m"]);
    assert_eq!((status, found(&answer)), (0, 10));
    let (status, _) = collector.json(&["who", "203.0.113.99", "--last", "10m"]);
    assert_eq!(status, 3);

    disk.free();
    collector.running.line_with("following", next);
    live.more(10);
    let answer =
        collector.json_until(&["who", TARGET, "--last", "10m"], |answer| found(answer) >= live.processes());
    assert_each_once(&answer, live.processes());
    assert!(collector.running.stop().success());
    let connection = rusqlite::Connection::open(data.join("alibi.db")).unwrap();
    let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM flow"), live.processes() as i64);
    assert_eq!(count("SELECT events FROM host"), count("SELECT next_seq - 1 FROM ring"));
}
