//! Bad input: each is one clear line on standard error, exit status 2, nothing on standard output, and nothing changed.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use alibi_lab::{
    disk::SmallDisk,
    programs::programs,
    recording::Recording,
    requirements::{Requirement, met},
    system::{Agent, Collector, now},
};

/// The one line of a refusal.
#[track_caller]
fn refusal(what: &str, output: &Output) -> String {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{what}: {stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{what}");
    assert_eq!(stderr.lines().count(), 1, "{what}: one line, not:\n{stderr}");
    stderr
}

#[track_caller]
fn refused(command: &mut Command, wanted: &[&str]) {
    let what = format!("{command:?}");
    let line = refusal(&what, &command.output().unwrap());
    for wanted in wanted {
        assert!(line.contains(wanted), "{what}: no `{wanted}` in: {line}");
    }
}

/// Every file below a directory, with its bytes.
fn contents(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
            found.insert(path, Vec::new());
        } else {
            let bytes = fs::read(&path).unwrap();
            found.insert(path, bytes);
        }
    }
    found
}

fn agent_run(data: &Path) -> Command {
    let mut command = Command::new(&programs().agent);
    command.args(["run", "--listen", "127.0.0.1:0", "--source", "poll", "--data"]).arg(data);
    command
}

fn serve(data: &Path) -> Command {
    let mut command = Command::new(&programs().alibi);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
    command
}

#[test]
fn questions_that_cannot_be_put() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(&directory.path().join("agent"), &["--source", "poll"]);
    let collector = Collector::start(&directory.path().join("collector"));
    collector.follow(&agent.address);
    let hosts_before = collector.json(&["hosts"]).1["hosts"].as_array().unwrap().len();

    let last = ["--last", "10m"];
    let cases: &[(&str, &[&str], &str)] = &[
        ("10.1.2.3", &["--from", "10:30", "--to", "10:29"], "reversed"),
        ("10.1.2.3", &["--from", "10:30", "--to", "10:30"], "reversed or empty"),
        ("10.1.2.3", &["--from", "2250-01-01T00:00:00Z", "--to", "2251-01-01T00:00:00Z"], "in the future"),
        ("10.1.2.3", &[], "no window"),
        ("10.1.2.3", &["--last", "10m", "--from", "-5m"], "two windows"),
        ("10.1.2.3", &["--from", "yesterday"], "`yesterday` is not a time"),
        ("10.1.2.3", &["--last", "soon"], "`soon` is not a length of time"),
        ("10.1.2.3", &["--last", "-5m"], "`-5m` is not a length of time"),
        ("10.1.2.3", &["--last", "0s"], "`0s` is not a length of time"),
        ("banana", &last, "`banana` is not a target"),
        ("10.1.2.3/33", &last, "`10.1.2.3/33` is not a network"),
        ("10.1.2.3:99999", &last, "from 1 to 65535"),
        ("10.1.2.3:80", &["--last", "10m", "--port", "443"], "two ports"),
        ("10.1.2.3", &["--last", "10m", "--port", "0"], "0 is not in 1..=65535"),
        ("10.1.2.3", &["--last", "10m", "--port", "99999"], "99999"),
        ("10.1.2.3", &["--last", "10m", "--protocol", "sctp"], "`sctp` is not a protocol"),
    ];
    for (target, words, wanted) in cases {
        let mut who = Command::new(&programs().alibi);
        who.args(["--collector", &collector.address, "who", target]).args(*words);
        refused(&mut who, &[wanted]);
        let mut query = Command::new(&programs().agent);
        query.args(["query", target, "--data"]).arg(&agent.data).args(*words);
        refused(&mut query, &[wanted]);
    }

    let alibi = |words: &[&str], wanted: &[&str]| {
        refused(
            Command::new(&programs().alibi).args(["--collector", &collector.address]).args(words),
            wanted,
        );
    };
    alibi(&["who", "10.1.2.3", "--last", "1m", "--host", "no-such"], &["no host `no-such`", "alibi hosts"]);
    alibi(&["hosts", "--host", "no-such"], &["no host `no-such`"]);
    alibi(&["who", "10.1.2.3", "--last", "1m", "--user", "nobody-such"], &["user `nobody-such`"]);
    alibi(&["process", "0123456789abcdef"], &["no process `0123456789abcdef`"]);
    alibi(&["process", "abc"], &["`abc` is not a process uid"]);
    alibi(&["process", "xyz-not-hex"], &["is not a process uid"]);
    alibi(&["host", "add", "10.0.0.1:8441"], &["`10.0.0.1:8441` leaves this machine", "loopback"]);
    alibi(&["host", "add", "banana"], &["`banana` is not an address"]);
    alibi(&["host", "add", &agent.address], &["is followed already"]);
    alibi(&["host", "remove", "127.0.0.1:1"], &["no agent is followed at 127.0.0.1:1"]);
    alibi(&["hosts", "--collector", "10.0.0.1:8440"], &["leaves this machine"]);
    alibi(&["hosts", "--collector", "127.0.0.1:1"], &["no collector answers at 127.0.0.1:1", "alibi serve"]);
    assert_eq!(collector.json(&["hosts"]).1["hosts"].as_array().unwrap().len(), hosts_before);
    assert!(agent.running.stop().success());
}

#[test]
fn addresses_that_leave_the_machine_or_are_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let cases = [
        ("0.0.0.0:0", "`0.0.0.0:0` leaves this machine"),
        ("[::]:0", "leaves this machine"),
        ("192.0.2.1:8440", "leaves this machine"),
        ("8440", "`8440` is not an address"),
        ("unix:relative", "is not an address"),
        (&taken, "it is in use"),
    ];
    for (listen, wanted) in cases {
        let data = directory.path().join("data");
        let mut agent = Command::new(&programs().agent);
        refused(agent.args(["run", "--listen", listen, "--data"]).arg(&data), &[wanted]);
        let mut collector = Command::new(&programs().alibi);
        refused(collector.args(["serve", "--listen", listen, "--data"]).arg(&data), &[wanted]);
        assert!(!data.exists(), "{listen}: nothing is left behind");
    }
    drop(listener);
}

#[test]
fn data_directories_that_are_not_ours() {
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str, file: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        fs::create_dir_all(path.join(file).parent().unwrap()).unwrap();
        fs::write(path.join(file), bytes).unwrap();
        path
    };
    let foreign = make("foreign", "diary.txt", b"dear diary");
    let file = make("file", "it", b"no directory").join("it");
    let agents = make("agents", "alibi.json", br#"{"program":"alibi-agent","format":1}"#);
    let collectors = make("collectors", "alibi.json", br#"{"program":"alibi","format":1}"#);
    let newer_agent = make("newer-agent", "alibi.json", br#"{"program":"alibi-agent","format":999}"#);
    let newer_collector = make("newer-collector", "alibi.json", br#"{"program":"alibi","format":999}"#);
    let garbled = make("garbled", "alibi.json", b"{");
    let before = contents(directory.path());

    for program in [agent_run, serve] {
        refused(&mut program(&foreign), &["is not a data directory of Alibi", "--data"]);
        refused(&mut program(&garbled), &["is not a data directory of Alibi"]);
        refused(&mut program(&file), &["cannot use the data directory"]);
    }
    refused(&mut agent_run(&collectors), &["holds the data of alibi:"]);
    refused(&mut serve(&agents), &["holds the data of alibi-agent:"]);
    refused(&mut agent_run(&newer_agent), &["newer version (format 999", "upgrade"]);
    refused(&mut serve(&newer_collector), &["newer version (format 999", "upgrade"]);
    let mut query = Command::new(&programs().agent);
    query.args(["query", "10.1.2.3", "--last", "1m", "--data"]);
    refused(query.arg(directory.path().join("absent")), &["nothing has been recorded there yet"]);
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn a_data_directory_in_use_and_what_is_foreign_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let (agent_data, collector_data) = (directory.path().join("agent"), directory.path().join("collector"));
    let agent = Agent::start(&agent_data, &["--source", "poll"]);
    let collector = Collector::start(&collector_data);
    refused(&mut agent_run(&agent_data), &["is in use by another process"]);
    refused(&mut serve(&collector_data), &["is in use by another process"]);
    assert!(agent.running.stop().success());
    assert!(collector.running.stop().success());

    let stray = agent_data.join("ring/notes.txt");
    fs::write(&stray, "mine").unwrap();
    let before = contents(directory.path());
    refused(&mut agent_run(&agent_data), &["notes.txt does not belong to the ring"]);
    assert_eq!(contents(directory.path()), before);
    fs::remove_file(stray).unwrap();

    let database = collector_data.join("alibi.db");
    let good = fs::read(&database).unwrap();
    fs::write(&database, b"this is no database at all, and never was one").unwrap();
    let before = contents(directory.path());
    refused(&mut serve(&collector_data), &["cannot use the database"]);
    assert_eq!(contents(directory.path()), before);
    fs::write(&database, good).unwrap();
    rusqlite::Connection::open(&database).unwrap().execute_batch("PRAGMA user_version = 999").unwrap();
    let before = contents(directory.path());
    refused(&mut serve(&collector_data), &["newer version", "999"]);
    assert_eq!(contents(directory.path()), before);
}

#[test]
fn a_data_directory_that_may_not_be_read() {
    if !met("an unreadable data directory", &[Requirement::Mounts]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data = directory.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    // The programs may lie where only root may go: they are run from a place where everybody may.
    let copy = |program: &Path| {
        let copy = directory.path().join(program.file_name().unwrap());
        fs::copy(program, &copy).unwrap();
        copy
    };
    let (agent, alibi) = (copy(&programs().agent), copy(&programs().alibi));
    let as_nobody = |program: &Path, command: &str| {
        let mut as_nobody = Command::new(program);
        as_nobody.uid(65_534).gid(65_534).args([command, "--listen", "127.0.0.1:0", "--data"]).arg(&data);
        as_nobody
    };
    refused(&mut as_nobody(&agent, "run"), &["cannot use the data directory", "Permission denied"]);
    refused(&mut as_nobody(&alibi, "serve"), &["cannot use the data directory", "Permission denied"]);
    assert_eq!(contents(&data), BTreeMap::new());
}

#[test]
fn a_disk_that_is_full_from_the_start() {
    if !met("a full disk", &[Requirement::Mounts]) {
        return;
    }
    let disk = SmallDisk::new(256 << 10);
    let ballast = disk.fill();
    let before = contents(disk.path());
    for program in [agent_run, serve] {
        refused(&mut program(&disk.path().join("data")), &["No space left on device"]);
        assert_eq!(contents(disk.path()), before);
    }
    drop(ballast);
}

#[test]
fn a_disk_that_gets_full_loses_nothing_that_fits_into_memory() {
    if !met("a disk that gets full", &[Requirement::Mounts]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(8 << 20);
    let collector = Collector::start(&disk.path().join("collector"));
    let ballast = disk.fill();

    let begins = now().saturating_sub(Duration::from_secs(3600));
    let recording = Recording { begins, reports: 100, connections: 100 };
    let path = directory.path().join("recording.jsonl");
    recording.write(&path).unwrap();
    let source = format!("replay:{}", path.display());
    let agent = Agent::start(&directory.path().join("agent"), &["--source", &source]);

    // The collector cannot even note that it is to follow an agent, and says so.
    let output = collector.alibi(&["host", "add", &agent.address]);
    assert!(refusal("a full disk", &output).contains("full"), "{output:?}");
    drop(ballast);
    collector.follow(&agent.address);
    let events = |hosts: &serde_json::Value| hosts["hosts"][0]["events"].as_u64().unwrap();
    collector.json_until(&["hosts"], |hosts| events(hosts) > 10_000);

    // The agent's own disk: recording goes on in memory, and nothing is lost once there is room again.
    let agent_disk = SmallDisk::new(4 << 20);
    let data = agent_disk.path().join("agent");
    let small = Agent::start(&data, &["--source", "poll", "--ring-bytes", "1048576"]);
    let ballast = agent_disk.fill();
    let (_, line) = small.running.line_with("the ring cannot be written", 0);
    let meanwhile = now();
    drop(ballast);
    small.running.line_with("the ring takes events again", line);
    collector.follow(&small.address);
    let from = meanwhile.to_string();
    let small_known = |answer: &serde_json::Value| {
        let hosts = answer["hosts"].as_array().unwrap();
        // Sampled throughout: the time in which the disk was full is no gap.
        hosts.iter().any(|host| {
            let gaps = host["gaps"].as_array().unwrap();
            !gaps.is_empty() && gaps.iter().all(|gap| gap["grade"] == "sampled")
        })
    };
    let to = now().to_string();
    collector.json_until(&["who", "203.0.113.99", "--from", &from, "--to", &to], small_known);
}
