//! Hosts whose clocks are wrong: they are asked by their own, and answer in the collector's time.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs::{self, File},
    io::Write as _,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use alibi_agent::capture::{
    Fact, Observation, ObservedConnection, ObservedProcess, ProcessKey, Report, SocketKey,
};
use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, now, outcome},
};
use alibi_proto::{
    coverage::{CoverageChange, Facet, Grade, Scope},
    flow::{Attribution, Direction, FlowState, Protocol, Traffic},
    process::ProcessImage,
    time::{Moment, Timestamp},
};
use serde_json::Value;

const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);
const TARGET: &str = "198.51.100.7";

/// A wall clock of its own for the programs that are run by it; the clock since boot is the machine's.
struct WrongClock(PathBuf);

impl WrongClock {
    fn new(directory: &Path, ahead: &str) -> Self {
        let clock = Self(directory.join("clock"));
        clock.set(ahead);
        clock
    }

    /// So many seconds ahead, with their sign.
    fn set(&self, ahead: &str) {
        let unfinished = self.0.with_extension("unfinished");
        fs::write(&unfinished, ahead).unwrap();
        fs::rename(unfinished, &self.0).unwrap();
    }

    /// The agent by this clock.
    fn agent(&self) -> Command {
        let mut command = Command::new(&programs().agent);
        // Without the wrapper: what it sets itself would stand for ever, and its child would outlive it.
        let wrapped = Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]).output().unwrap();
        command
            .env("LD_PRELOAD", String::from_utf8(wrapped.stdout).unwrap().trim())
            .env("FAKETIME_TIMESTAMP_FILE", &self.0)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
        command
    }

    /// What the agent over `data` answers by itself, about a window by its own clock.
    fn query(&self, data: &Path, words: &[&str]) -> (Option<i32>, Value) {
        let mut command = self.agent();
        command.arg("query").args(words).args(["--json", "--data"]).arg(data);
        let output = outcome(&mut command);
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{words:?}: {error}: {}", String::from_utf8_lossy(&output.stderr))
        });
        (output.status.code(), answer)
    }
}

fn time(value: &Value) -> Timestamp {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// A recording of everything from three hours before `until`, with one short connection to the target at `connected`.
fn recording(directory: &Path, connected: Timestamp, until: Timestamp) -> String {
    let begins = until.saturating_sub(3 * HOUR);
    let moment = |wall: Timestamp| Moment { wall, boot_ns: wall.as_nanos() };
    let process = ProcessKey { pid: 4711, start: 99 };
    let scope = Scope { source: "replay".into(), covers: "all".into(), cannot_see: "nothing".into() };
    let complete = Fact::Coverage(CoverageChange {
        facet: Facet::Connections,
        grade: Grade::Complete,
        from: begins,
        to: None,
        scope: Some(scope),
        announced_from: None,
    });
    let owner = Fact::ProcessStarted(Box::new(ObservedProcess {
        process,
        parent: None,
        parent_pid: None,
        started: begins,
        already_running: false,
        image: ProcessImage { name: "replayed".into(), ..ProcessImage::default() },
    }));
    let connection = Fact::ConnectionOpened(Box::new(ObservedConnection {
        socket: SocketKey {
            protocol: Protocol::Tcp,
            remote: format!("{TARGET}:443").parse().unwrap(),
            socket: 1,
        },
        local: ([192, 0, 2, 1], 5000).into(),
        owner: Some(process),
        attribution: Attribution::InKernel,
        direction: Direction::Outbound,
        state: FlowState::Closed,
        already_open: false,
        traffic: Some(Traffic { bytes_sent: 1, ..Traffic::default() }),
        interface: None,
        network_namespace: None,
    }));
    let path = directory.join("recording.jsonl");
    let mut file = File::create(&path).unwrap();
    for (at, facts) in [(begins, vec![complete, owner]), (connected, vec![connection]), (until, vec![])] {
        let observations =
            facts.into_iter().map(|fact| Observation { at: moment(at), fact }).collect::<Vec<_>>();
        serde_json::to_writer(&mut file, &Report { observations, seen_until: moment(at) }).unwrap();
        file.write_all(b"\n").unwrap();
    }
    format!("replay:{}", path.display())
}

#[test]
fn a_host_an_hour_ahead_is_found_and_ruled_out_in_the_collectors_time() {
    const TEST: &str = "a_host_an_hour_ahead_is_found_and_ruled_out_in_the_collectors_time";
    if !met(TEST, &[Requirement::FakeTime]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let wrong = WrongClock::new(directory.path(), "+3600");
    // In truth the connection was half an hour ago.
    let connected = now().saturating_sub(30 * MINUTE);
    let by_the_host = connected.saturating_add(HOUR);
    let source = recording(directory.path(), by_the_host, now().saturating_add(HOUR).saturating_sub(MINUTE));
    let data = directory.path().join("agent");
    let agent = Agent::start_with(wrong.agent(), &data, "127.0.0.1:0", &["--source", &source]);
    let collector = Collector::start(&directory.path().join("collector"));
    collector.follow(&agent.address);

    let recorded = connected.saturating_add(20 * MINUTE);
    let hosts = collector.json_until(&["hosts"], |hosts| {
        let known_until = &hosts["hosts"][0]["known_until"];
        !known_until.is_null() && time(known_until) >= recorded
    });
    let clock = &hosts["hosts"][0]["clock"];
    let (offset, bound) = (clock["offset_us"].as_i64().unwrap(), clock["bound_us"].as_i64().unwrap());
    assert!((offset - 3_600_000_000).abs() <= bound && (1..10_000_000).contains(&bound), "{clock}");
    assert!(now().since(time(&clock["measured"])) < 10 * MINUTE, "{clock}");
    let known_until = time(&hosts["hosts"][0]["known_until"]);
    assert!(known_until < now(), "in the collector's time: {known_until}");
    let table = String::from_utf8(collector.alibi(&["hosts"]).stdout).unwrap();
    assert!(table.contains("ahead of"), "{table}");

    let around = |minutes: u32| {
        let middle = connected.saturating_sub(minutes * MINUTE);
        [middle.saturating_sub(5 * MINUTE), middle.saturating_add(5 * MINUTE)].map(|time| time.to_string())
    };
    let [from, to] = &around(0);
    let (status, answer) = collector.json(&["who", TARGET, "--from", from, "--to", to]);
    assert_eq!(status, 0, "{answer:#}");
    let host = &answer["hosts"][0];
    let process = &host["processes"][0];
    let flow = &process["flows"][0];
    assert_eq!(time(&flow["host_clock"]["first"]), by_the_host, "its own time, as it was recorded");
    let ahead = by_the_host.since(time(&flow["first"]));
    assert!(ahead.abs_diff(HOUR) < Duration::from_secs(5), "{flow:#}");
    assert_eq!(flow["in_window"], "bytes");
    let ahead = time(&process["host_clock"]["started"]).since(time(&process["started"]));
    assert!(ahead.abs_diff(HOUR) < Duration::from_secs(5), "{process:#}");
    let asked = &host["clock"]["window"];
    assert!(time(&asked["from"]) < time(&from.as_str().into()).saturating_add(HOUR), "widened: {asked}");
    assert!(time(&asked["to"]) > time(&to.as_str().into()).saturating_add(HOUR), "widened: {asked}");
    let told = collector.alibi(&["who", TARGET, "--from", from, "--to", to]);
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("ahead of the collector's") && told.contains("by its own clock"), "{told}");

    // Beside it, the host is ruled out; and so it would be, falsely, were it asked by its own clock when that was.
    let [beside_from, beside_to] = &around(20);
    let (status, answer) = collector.json(&["who", TARGET, "--from", beside_from, "--to", beside_to]);
    assert_eq!(status, 1, "{answer:#}");
    let (status, answer) = wrong.query(&data, &[TARGET, "--from", from, "--to", to]);
    assert_eq!(status, Some(1), "{answer:#}");
    assert_eq!(answer["hosts"][0]["clock"], Value::Null, "by its own clock there is no other");

    // An instant that is nearer to the connection than its clock is known.
    let first = time(&flow["first"]);
    let instant = [first, first.saturating_add(Duration::from_millis(1))].map(|time| time.to_string());
    let (status, answer) = collector.json(&["who", TARGET, "--from", &instant[0], "--to", &instant[1]]);
    assert_eq!(status, 3, "{answer:#}");
    assert_eq!(answer["hosts"][0]["processes"][0]["flows"][0]["in_margin"], true);
    let reason = answer["hosts"][0]["gaps"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("may have been outside of the window"), "{reason}");
}

/// An open connection to this very process.
struct Connection(TcpListener, #[expect(dead_code, reason = "is held open")] [TcpStream; 2]);

impl Connection {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let here = listener.accept().unwrap().0;
        Self(listener, [there, here])
    }

    fn port(&self) -> String {
        self.0.local_addr().unwrap().port().to_string()
    }
}

#[test]
fn a_clock_that_was_set_right_before_anybody_came_is_known_for_what_it_was() {
    const TEST: &str = "a_clock_that_was_set_right_before_anybody_came_is_known_for_what_it_was";
    if !met(TEST, &[Requirement::FakeTime]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let wrong = WrongClock::new(directory.path(), "+3600");
    let data = directory.path().join("agent");
    let agent = Agent::start_with(wrong.agent(), &data, "127.0.0.1:0", &["--source", "poll"]);
    let before = now();
    let connection = Connection::open();
    let port = connection.port();
    let asked = ["127.0.0.1", "--port", &port, "--last", "1m"];
    while wrong.query(&data, &asked).0 != Some(0) {}
    let after = now();
    drop(connection);

    wrong.set("+0");
    let set_back = |answer: &Value| {
        let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
        gaps.iter().any(|gap| gap["reason"].as_str().unwrap().starts_with("the clock was set back"))
    };
    while !set_back(&wrong.query(&data, &["203.0.113.99", "--last", "1m"]).1) {}

    let collector = Collector::start(&directory.path().join("collector"));
    collector.follow(&agent.address);
    let hosts = collector.json_until(&["hosts"], |hosts| {
        let host = &hosts["hosts"][0];
        !host["clock"].is_null() && !host["known_until"].is_null() && time(&host["known_until"]) > after
    });
    let clock = &hosts["hosts"][0]["clock"];
    assert_eq!(clock["offset_us"], 0, "{hosts:#}");
    let [from, to] = [before, after].map(|time| time.to_string());
    let (status, answer) =
        collector.json(&["who", "127.0.0.1", "--port", &port, "--from", &from, "--to", &to]);
    assert_eq!(status, 0, "{answer:#}");
    // By its own clock it was an hour later, which has not come yet.
    let (_, own) = wrong.query(&data, &["127.0.0.1", "--port", &port, "--from", &from, "--to", &to]);
    assert_ne!(own["verdict"], "talked", "{own:#}");
}

#[test]
fn an_agent_on_the_collectors_own_machine_has_its_clock() {
    let directory = tempfile::tempdir().unwrap();
    let agent = Agent::start(&directory.path().join("agent"), &["--source", "poll"]);
    let collector = Collector::start(&directory.path().join("collector"));
    collector.follow(&agent.address);
    let connection = Connection::open();
    let port = connection.port();
    let asked = ["who", "127.0.0.1", "--port", &port, "--last", "1m"];
    let answer = collector.json_until(&asked, |answer| answer["verdict"] == "talked");
    let host = &answer["hosts"][0];
    assert_eq!(host["clock"]["offset_us"], 0, "{host:#}");
    assert_eq!(host["clock"]["bound_us"], 0);
    assert_eq!(host["clock"]["window"], answer["window"]);
    assert!(host["processes"][0].get("host_clock").is_none(), "{host:#}");
    assert!(host["processes"][0]["flows"][0].get("host_clock").is_none(), "{host:#}");
    let table = String::from_utf8(collector.alibi(&["hosts"]).stdout).unwrap();
    assert!(table.contains("the collector's own"), "{table}");
}
