//! The collector's store with the real programs: backups of it while it takes in what comes, kills at any moment, and damage to
//! what it has on the disk. Each event is there once, or is a gap that is named.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use alibi_agent::ring::View;
use alibi_lab::{
    disk::SmallDisk,
    live::{Live, found},
    programs::programs,
    recording::{Recording, STEP},
    requirements::{Requirement, met},
    system::{Agent, Collector, count_flows, now, outcome, stored_flows},
};
use alibi_proto::time::Timestamp;
use serde_json::Value;

const NOBODY: &str = "203.0.113.99";
/// So many records make more than one run in a file of a day.
const REPORTS: u32 = 300;
const CONNECTIONS: u32 = 1_000;
/// So many records in the main database are written as a run.
const RUN_ROWS: i64 = 128 << 10;

/// An agent that tells of a recording of an hour ago, and the collector that follows it.
struct Scene {
    directory: tempfile::TempDir,
    recording: Recording,
    agent: Agent,
    /// None only while it is down.
    collector: Option<Collector>,
}

impl Scene {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let begins = now().saturating_sub(Duration::from_secs(3600));
        let recording = Recording { begins, reports: REPORTS, connections: CONNECTIONS };
        let path = directory.path().join("recording.jsonl");
        recording.write(&path).unwrap();
        let source = format!("replay:{}", path.display());
        let agent = Agent::start(&directory.path().join("agent"), &["--source", &source]);
        let collector = Collector::start(&directory.path().join("collector"));
        collector.follow(&agent.address);
        Self { directory, recording, agent, collector: Some(collector) }
    }

    fn collector(&self) -> &Collector {
        self.collector.as_ref().unwrap()
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("collector")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Waits until there is more than so much.
    fn more_than(&self, stored: u64) -> u64 {
        events(&self.collector().json_until(&["hosts"], |hosts| events(hosts) > stored))
    }

    /// Waits until all of the recording is there.
    fn until_whole(&self) {
        let hosts = self.collector().json_until(&["hosts"], |hosts| {
            let known_until = &hosts["hosts"][0]["known_until"];
            !known_until.is_null()
                && serde_json::from_value::<Timestamp>(known_until.clone()).unwrap() >= self.recording.ends()
        });
        let in_ring = View::open_read_only(&self.agent.data.join("ring")).unwrap().next_seq().0 - 1;
        assert_eq!(events(&hosts), in_ring);
    }

    /// Each connection is there once, and nobody else was talked to.
    fn assert_whole(&self, data: &Path) {
        self.until_whole();
        let flows = stored_flows(data);
        let places: BTreeSet<_> = flows.iter().map(|flow| (flow.epoch, flow.seq)).collect();
        let wanted = (REPORTS * CONNECTIONS) as usize;
        assert_eq!((places.len(), flows.len()), (wanted, wanted));
        assert_eq!(self.who(NOBODY).0, 1);
        // The last ones were at the very end of the window, which is not in it.
        let one = Recording::remote((REPORTS - 1) * CONNECTIONS - 1).to_string();
        assert_eq!(self.who(&one).0, 0);
        let (_, hosts) = self.collector().json(&["hosts"]);
        assert_eq!(hosts["hosts"][0]["chain"]["state"], "whole", "{hosts:#}");
        assert!(self.collector().alibi(&["audit", "verify"]).status.success());
    }

    /// Who talked to it during the recording?
    fn who(&self, target: &str) -> (i32, Value) {
        self.who_at(target, &[])
    }

    fn who_at(&self, target: &str, words: &[&str]) -> (i32, Value) {
        let (from, to) = (self.recording.begins.to_string(), self.recording.ends().to_string());
        self.collector().json(&[&["who", target, "--from", &from, "--to", &to], words].concat())
    }

    /// Ends the collector without any warning; it is started again over `data`, after something was done there.
    fn killed(&mut self, data: &Path, meanwhile: impl FnOnce(&Self)) {
        let address = self.collector().address.clone();
        self.collector.take().unwrap().running.kill();
        meanwhile(self);
        self.collector = Some(Collector::start_at(data, &address));
    }
}

fn events(hosts: &Value) -> u64 {
    hosts["hosts"][0]["events"].as_u64().unwrap_or_default()
}

/// `alibi` with words about a data directory.
fn alibi(words: &[&str], data: &Path) -> Output {
    outcome(Command::new(&programs().alibi).args(words).arg("--data").arg(data))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// The one file of flow records.
fn day_file(data: &Path) -> PathBuf {
    let mut files: Vec<PathBuf> =
        fs::read_dir(data.join("alibi.flows")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "db"));
    files.sort();
    files.remove(0)
}

#[test]
fn a_collector_that_is_brought_back_from_a_backup_has_every_event_once() {
    let mut scene = Scene::begin();
    let data = scene.data();
    // Enough for a run, and not all.
    scene.more_than(u64::from(REPORTS * CONNECTIONS) / 2);
    let [first, second] = ["first", "second"].map(|name| scene.at(name).display().to_string());
    let output = alibi(&["backup", &first], &data);
    assert!(output.status.success(), "{}", said(&output));
    let stored = events(&scene.collector().json(&["hosts"]).1);
    scene.more_than(stored);
    let output = alibi(&["backup", &second, "--previous", &first, "--json"], &data);
    assert!(output.status.success(), "{}", said(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["left_out"], serde_json::json!([]), "{told:#}");
    scene.until_whole();

    for (backup, name) in [(&first, "brought-back"), (&second, "brought-back-again")] {
        let restored = scene.at(name);
        // Who has logged in, is known there, too.
        fs::copy(data.with_extension("credentials.json"), restored.with_extension("credentials.json"))
            .unwrap();
        scene.killed(&restored, |_| {
            let output = alibi(&["restore", backup], &restored);
            assert!(output.status.success(), "{}", said(&output));
        });
        scene.assert_whole(&restored);
        let (_, entries) = scene.collector().json(&["audit", "--limit", "1000"]);
        assert!(entries["entries"].as_array().unwrap().iter().any(|entry| entry["action"] == "restore"));
        let output = alibi(&["check"], &restored);
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn a_collector_that_is_killed_again_and_again_loses_and_doubles_nothing() {
    let mut scene = Scene::begin();
    let data = scene.data();
    let mut stored = 0;
    let mut kills = 0;
    while stored < u64::from(REPORTS * CONNECTIONS) * 9 / 10 {
        stored = scene.more_than(stored + 1);
        scene.killed(&data, |scene| assert_known(&scene.recording, &data));
        kills += 1;
    }
    assert!(kills >= 5, "it was killed in the middle of the stream {kills} times");
    scene.assert_whole(&data);
}

/// Whatever happened until the moment up to which all is said to be known, is there.
fn assert_known(recording: &Recording, data: &Path) {
    let connection = rusqlite::Connection::open(data.join("alibi.db")).unwrap();
    let ask = "SELECT max(known_until) FROM host";
    let Some(known_until) = connection.query_row(ask, [], |row| row.get::<_, Option<i64>>(0)).unwrap() else {
        return;
    };
    let passed_ns = (known_until as u64).saturating_sub(recording.begins.as_nanos());
    let reports = passed_ns.saturating_sub(1) / STEP.as_nanos() as u64;
    let (stored, wanted) = (count_flows(data), reports * u64::from(CONNECTIONS));
    assert!(stored >= wanted.min(u64::from(REPORTS * CONNECTIONS)), "{stored} of {wanted}");
}

#[test]
fn whatever_becomes_of_a_file_of_records_is_a_gap_and_all_else_is_answered() {
    let mut scene = Scene::begin();
    let data = scene.data();
    scene.until_whole();
    // What is enough for a run is in one.
    let catalog = rusqlite::Connection::open(data.join("alibi.db")).unwrap();
    let waiting = || -> i64 {
        catalog.query_row("SELECT coalesce(sum(rows), 0) FROM arrived", [], |row| row.get(0)).unwrap()
    };
    scene.collector().json_until(&["hosts"], |_| waiting() < RUN_ROWS);
    let file = day_file(&data);
    let one = Recording::remote(7).to_string();
    let mut whole = Vec::new();
    scene.killed(&data, |_| {
        cut_logs(&data);
        whole = fs::read(&file).unwrap();
    });
    for (what, edit) in [
        ("a byte of a block", &flip as &dyn Fn(&Path)),
        ("the end", &|file| fs::File::options().write(true).open(file).unwrap().set_len(8_192).unwrap()),
        ("all of it", &|file| fs::remove_file(file).unwrap()),
        ("its version", &|file| {
            fs::File::options().write(true).open(file).unwrap().write_all_at(&[0, 0, 0, 99], 60).unwrap()
        }),
        ("its beginning", &|file| fs::write(file, "dear diary\n".repeat(1_000)).unwrap()),
    ] {
        eprintln!("{what}");
        scene.killed(&data, |_| {
            cut_logs(&data);
            fs::write(&file, &whole).unwrap();
            edit(&file);
        });
        // Of a remote that no block can have, none has to be read.
        assert!(matches!(scene.who(NOBODY).0, 1 | 3), "{what}");
        let (status, answer) = scene.who_at("10.0.0.0/8", &["--port", "444"]);
        let name = file.file_name().unwrap().to_string_lossy();
        let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
        let is_told = |gap: &Value| gap["reason"].as_str().unwrap().contains(&*name);
        assert!(status == 3 && gaps.iter().any(is_told), "{what}: {answer:#}");
        assert!(matches!(scene.who(&one).0, 0 | 3), "{what}");
        let (status, hosts) = scene.collector().json(&["hosts"]);
        assert!(status == 0 && hosts["hosts"][0]["connected"].is_boolean(), "{what}");
        assert_eq!(alibi(&["check"], &data).status.code(), Some(1), "{what}");
    }
    // As it was, it is whole again.
    scene.killed(&data, |_| {
        cut_logs(&data);
        fs::write(&file, &whole).unwrap();
    });
    scene.assert_whole(&data);
}

/// Changes a byte of what a block is looked through by. (Of one of its records it is found where that is wanted.)
fn flip(path: &Path) {
    let connection = rusqlite::Connection::open(path).unwrap();
    let changed = "substr(columns, 1, 50) || unhex(printf('%02x', 255 - unicode(substr(hex(columns), 101, 1)))) || substr(columns, 52)";
    let edit = format!(
        "UPDATE block SET columns = CAST({changed} AS BLOB) WHERE id = 3; PRAGMA wal_checkpoint(TRUNCATE)"
    );
    connection.execute_batch(&edit).unwrap();
}

/// Puts what is in write-ahead logs where it belongs, so that a file can be taken for all of it.
fn cut_logs(data: &Path) {
    for path in [data.join("alibi.db"), day_file_of_any_state(data)].iter().filter(|path| path.exists()) {
        if let Ok(connection) = rusqlite::Connection::open(path) {
            // Where it is damaged, it is overwritten before long.
            let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
        }
        for end in ["-wal", "-shm"] {
            let _ = fs::remove_file(format!("{}{end}", path.display()));
        }
    }
}

fn day_file_of_any_state(data: &Path) -> PathBuf {
    let names = fs::read_dir(data.join("alibi.flows")).unwrap().map(|entry| entry.unwrap().path());
    names.into_iter().find(|path| path.extension().is_some_and(|end| end == "db")).unwrap_or_default()
}

#[test]
fn a_main_database_that_is_damaged_is_refused_with_the_ways_out_and_repaired_when_asked() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("collector");
    let (mut live, agent) = Live::begin(directory.path(), &directory.path().join("agent"));
    let collector = Collector::start(&data);
    collector.follow(&agent.address);
    live.more(50);
    let all = ["who", alibi_lab::live::TARGET, "--last", "10m"];
    collector.json_until(&all, |answer| found(answer) == 50);
    let address = collector.address.clone();
    collector.running.kill();
    cut_main_log(&data);
    let output = alibi(&["repair"], &data);
    assert!(output.status.success() && said(&output).contains("nothing was done"), "{}", said(&output));

    let file = data.join("alibi.db");
    let connection = rusqlite::Connection::open(&file).unwrap();
    let page = "SELECT rootpage FROM sqlite_schema WHERE name = 'coverage'";
    let page: i64 = connection.query_row(page, [], |row| row.get(0)).unwrap();
    drop(connection);
    let write = fs::File::options().write(true).open(&file).unwrap();
    write.write_all_at(&[0xa5; 64], (page as u64 - 1) * 4_096).unwrap();
    let mut serve = Command::new(&programs().alibi);
    let output = outcome(serve.args(["serve", "--listen", &address, "--data"]).arg(&data));
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for wanted in ["alibi.db", "is damaged", "`alibi restore`", "`alibi repair`"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert_eq!(alibi(&["check"], &data).status.code(), Some(1));

    let before = now();
    let output = alibi(&["repair"], &data);
    assert!(output.status.success() && said(&output).contains("alibi.db.damaged-1"), "{}", said(&output));
    let after = now();
    let collector = Collector::start_at(&data, &address);
    // What is there is found, and of that time nothing is proven.
    let answer = collector.json_until(&all, |answer| found(answer) == 50);
    assert_eq!(answer["hosts"][0]["processes"].as_array().unwrap().len(), 50);
    let window = |from: Timestamp, to: Timestamp| {
        ["--from".to_owned(), from.to_string(), "--to".to_owned(), to.to_string()]
    };
    let who = |window: [String; 4]| {
        let words: Vec<&str> = ["who", NOBODY].into_iter().chain(window.iter().map(String::as_str)).collect();
        collector.json(&words)
    };
    let (status, answer) = who(window(before.saturating_sub(Duration::from_secs(60)), before));
    let reason = "the collector's main database was damaged then, and repaired";
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    assert!(status == 3 && gaps.iter().any(|gap| gap["reason"] == reason), "{answer:#}");
    // The stream goes on; a collector that runs is not repaired.
    live.more(10);
    collector.json_until(&all, |answer| found(answer) == 60);
    let hosts = collector.json_until(&["hosts"], |hosts| {
        serde_json::from_value::<Timestamp>(hosts["hosts"][0]["known_until"].clone())
            .is_ok_and(|until| until > after)
    });
    assert_eq!(hosts["hosts"][0]["connected"], true, "{hosts:#}");
    let output = alibi(&["repair"], &data);
    assert!(!output.status.success() && said(&output).contains("stop it first"), "{}", said(&output));
    assert!(alibi(&["check"], &data).status.success());
}

fn cut_main_log(data: &Path) {
    let connection = rusqlite::Connection::open(data.join("alibi.db")).unwrap();
    connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
}

#[test]
fn a_backup_for_which_there_is_no_room_leaves_nothing_behind() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("collector");
    let collector = Collector::start(&data);
    let disk = SmallDisk::new(2_048);
    disk.fill_but(20);
    let output = alibi(&["backup", &disk.path().join("backup").display().to_string()], &data);
    assert!(output.status.code() == Some(2) && said(&output).contains("full"), "{}", said(&output));
    assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 1, "what fills it");
    assert_eq!(collector.json(&["hosts"]).0, 0, "the collector is none the worse");
    disk.free();
    let output = alibi(&["backup", &disk.path().join("backup").display().to_string()], &data);
    assert!(output.status.success(), "{}", said(&output));
}
