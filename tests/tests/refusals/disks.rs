//! Disks that are full: at the start, and while the programs run.

use alibi_lab::{
    disk::SmallDisk,
    live::{Live, assert_each_once, found},
    system::{Running, now, stored_flows},
};

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
    // More than the room that was set aside takes, however well they are packed together.
    live.more(1900);
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
    drop(live);
    assert!(agent.running.stop().success());
    let output = outcome(query(&agent.data).arg("--json"));
    assert_each_once(&serde_json::from_slice(&output.stdout).unwrap(), processes);
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
    assert_eq!(stored_flows(&data).len(), live.processes());
    assert_eq!(count("SELECT events FROM host"), count("SELECT next_seq - 1 FROM ring"));
}

#[test]
fn a_file_of_records_that_is_missing_is_a_gap_of_its_time_and_no_more() {
    const NOBODY: &str = "203.0.113.99";
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("collector");
    let (mut live, agent) = Live::begin(directory.path(), &directory.path().join("agent"));
    let collector = Collector::start(&data);
    collector.follow(&agent.address);
    let arrived = |collector: &Collector, live: &Live| {
        collector.json_until(&["who", TARGET, "--last", "10m"], |answer| found(answer) == live.processes());
    };
    live.more(10);
    arrived(&collector, &live);
    let began = now();
    live.more(10);
    arrived(&collector, &live);
    let words = |target: &'static str, to: &str| {
        [target, "--from", &began.to_string(), "--to", to].map(str::to_owned).to_vec()
    };
    let ask = |collector: &Collector, target| {
        // Of what is known by now.
        let (_, hosts) = collector.json(&["hosts"]);
        let until = hosts["hosts"][0]["known_until"].as_str().unwrap().to_owned();
        let words = words(target, &until);
        collector.json(&[&["who"], &words.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat())
    };
    assert_eq!(ask(&collector, NOBODY).0, 1);

    // The catalog tells of a run in a file that is gone: it was removed by hand, or did not come back from a backup.
    let address = collector.address.clone();
    assert!(collector.running.stop().success());
    let connection = rusqlite::Connection::open(data.join("alibi.db")).unwrap();
    let insert = "INSERT INTO flow_run (id, file, rows, first, last, until) VALUES (1, 'flows-020000.db', 9, ?1, ?1, ?1)";
    connection.execute(insert, [began.as_nanos_i64()]).unwrap();
    let collector = Collector::start_at(&data, &address);
    let (status, answer) = ask(&collector, NOBODY);
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    let is_told = |gap: &Value| gap["reason"].as_str().unwrap().contains("flows-020000.db is missing");
    assert!(status == 3 && gaps.iter().any(is_told), "{answer:#}");
    // What is there is found all the same, and what is about another time is not touched.
    let (status, answer) = collector.json(&["who", TARGET, "--last", "10m"]);
    assert_eq!((status, found(&answer)), (0, live.processes()));
    let uid = answer["hosts"][0]["processes"][0]["process"].as_str().unwrap();
    let (_, process) = collector.json(&["process", uid]);
    assert!(process["damage"][0].as_str().unwrap().contains("flows-020000.db"), "{process:#}");
    connection.execute("UPDATE flow_run SET first = 1, last = 1, until = 1", []).unwrap();
    assert!(collector.running.stop().success());
    let collector = Collector::start_at(&data, &address);
    assert_eq!(ask(&collector, NOBODY).0, 1);
}
