//! Agents that call home, from behind NAT, over lines that break: what they record arrives once, and what is said of them
//! meanwhile is true.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpListener},
    path::Path,
    process::Command,
};

use alibi_collector::store::StoredFlow;
use alibi_lab::{
    connect_proxy::ConnectProxy,
    live::Live,
    network::{BehindNat, OUTSIDE, SERVER},
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, count_flows, now, outcome, owners, stored_flows, told_until},
};
use alibi_proto::time::Timestamp;
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_lab");
/// Nobody talked to it.
const NOBODY: &str = "203.0.113.99";

/// A collector outside, and a laptop behind NAT that has been enrolled.
struct Scene {
    nat: BehindNat,
    collector: Collector,
    directory: tempfile::TempDir,
}

impl Scene {
    fn begin(words: &[&str]) -> Self {
        let (nat, directory) = (BehindNat::new(), tempfile::tempdir().unwrap());
        let collector = collector(&nat, directory.path(), words);
        let scene = Self { nat, collector, directory };
        let mut enroll = scene.nat.on_laptop(&programs().agent.display().to_string());
        let enrolled =
            outcome(enroll.args(["enroll", &scene.collector.token(1), "--data"]).arg(scene.data()));
        assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
        scene
    }

    fn data(&self) -> std::path::PathBuf {
        self.directory.path().join("agent")
    }

    /// The laptop's agent records what the test writes.
    fn live(&self) -> (Live, Agent) {
        let agent = self.nat.on_laptop(&programs().agent.display().to_string());
        Live::begin_at(agent, self.directory.path(), &self.data(), "", &[])
    }

    /// The collector is started anew over its data.
    fn start_again(self, words: &[&str]) -> Self {
        let Self { nat, collector, directory } = self;
        collector.running.kill();
        let collector = self::collector(&nat, directory.path(), words);
        Self { nat, collector, directory }
    }

    fn host(&self) -> Value {
        self.collector.json(&["hosts"]).1["hosts"][0].clone()
    }

    fn until_host(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.collector.json_until(&["hosts"], |hosts| wanted(&hosts["hosts"][0]))["hosts"][0].clone()
    }

    fn flows(&self) -> Vec<StoredFlow> {
        stored_flows(&self.directory.path().join("collector"))
    }

    fn count_flows(&self) -> u64 {
        count_flows(&self.directory.path().join("collector"))
    }

    fn count(&self, sql: &str) -> u64 {
        let path = self.directory.path().join("collector").join("alibi.db");
        let connection = rusqlite::Connection::open(path).unwrap();
        let count: i64 = connection.query_row(sql, [], |row| row.get(0)).unwrap();
        count as u64
    }

    /// Waits until everything that was written has arrived; and then it is there once.
    fn until_all_is_there(&self, live: &Live) {
        let wanted = live.processes();
        self.collector.json_until(&["hosts"], |_| self.count_flows() >= wanted as u64);
        let flows = self.flows();
        assert_eq!((flows.len(), owners(&flows)), (wanted, wanted));
        assert_eq!(self.count("SELECT count(*) FROM process"), wanted as u64);
    }

    /// Nothing was lost since, and all of it is proven.
    fn proves_all_since(&self, began: Timestamp) {
        let (from, to) = (began.to_string(), time(&self.host()["known_until"]).to_string());
        let (status, answer) = self.collector.json(&["who", NOBODY, "--from", &from, "--to", &to]);
        assert_eq!(status, 1, "{answer:#}");
    }
}

fn collector(nat: &BehindNat, directory: &Path, words: &[&str]) -> Collector {
    let alibi = nat.on_server(&programs().alibi.display().to_string());
    Collector::start_elsewhere(alibi, &directory.join("collector"), &format!("{SERVER}:8440"), words)
}

fn is_connected(host: &Value) -> bool {
    host["connected"] == true
}

fn time(value: &Value) -> Timestamp {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn a_laptop_behind_nat_is_enrolled_calls_home_and_answers() {
    if !met("a laptop behind NAT", &[Requirement::Nat, Requirement::Bpf]) {
        return;
    }
    let scene = Scene::begin(&[]);
    let listed = scene.host();
    assert_eq!(
        (&listed["connected"], &listed["known_until"]),
        (&Value::Bool(false), &Value::Null),
        "{listed:#}"
    );
    assert_eq!(listed["trouble"], "it has not called since the collector was started");

    let agent = scene.nat.on_laptop(&programs().agent.display().to_string());
    let agent = Agent::start_with(agent, &scene.data(), "", &["--own-network-namespace"]);
    let host = scene.until_host(|host| is_connected(host) && !host["known_until"].is_null());
    let from = host["from"].as_str().unwrap();
    assert!(from.starts_with(&format!("{OUTSIDE}:")), "the router's address, and not {from}");
    assert_eq!(host["enrolment"]["host"], host["host"]);

    // No port is open on the laptop, for TCP or UDP, but those by which the agent looks on the loopback whether it sees itself.
    let ports = scene.nat.on_laptop("ss").args(["-H", "-l", "-n", "-t", "-u"]).output().unwrap();
    assert!(ports.status.success());
    let ports = String::from_utf8(ports.stdout).unwrap();
    let open: Vec<_> = ports.lines().filter(|port| !port.contains(" 127.0.0.1:")).collect();
    assert!(open.is_empty(), "{open:?}");

    let began = now();
    let listener = scene.nat.inside_server(|| TcpListener::bind((IpAddr::from(SERVER), 7000)).unwrap());
    let accepting = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.read_exact(&mut [0])?;
        stream.write_all(&[b'a'; 64 << 10])?;
        // It has heard enough, and how it hangs up is its own affair.
        let _ = stream.read_to_end(&mut Vec::new());
        Ok::<_, std::io::Error>(())
    });
    let touched = scene.nat.on_laptop(LAB).args(["touch", &format!("{SERVER}:7000"), "x"]).output().unwrap();
    assert!(touched.status.success(), "{}", String::from_utf8_lossy(&touched.stderr));
    accepting.join().unwrap().unwrap();
    let (from, to) = (began.to_string(), now().to_string());
    let (status, answer) =
        scene.collector.json(&["who", &SERVER.to_string(), "--port", "7000", "--from", &from, "--to", &to]);
    assert_eq!(status, 0, "{answer:#}");
    let process = &answer["hosts"][0]["processes"][0];
    assert!(process["path"].as_str().unwrap().ends_with("lab"), "{answer:#}");
    let (status, answer) = scene.collector.json(&["who", NOBODY, "--from", &from, "--to", &to]);
    assert_eq!(status, 1, "{answer:#}");

    // Somebody who is outside reaches nothing inside, and the collector needs nothing.
    let verified = scene.collector.alibi(&["host", "verify", host["host"].as_str().unwrap()]);
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    assert!(agent.running.stop().success());
}

#[test]
fn whatever_the_line_does_each_event_arrives_once() {
    if !met("a line that breaks", &[Requirement::Nat]) {
        return;
    }
    let scene = Scene::begin(&[]);
    let (mut live, agent) = scene.live();
    live.more(100);
    scene.until_all_is_there(&live);
    let began = now();

    // The cable is out: what the collector knows gets old, and it says so. When it is back in, so is what was missed.
    let before = time(&scene.host()["known_until"]);
    scene.nat.cut();
    live.more(300);
    let host = scene.until_host(|host| now().since(time(&host["known_until"])).as_secs() >= 3);
    assert!(
        time(&host["known_until"]) < before.saturating_add(std::time::Duration::from_secs(3)),
        "{host:#}"
    );
    let (status, answer) = scene.collector.json(&["who", NOBODY, "--last", "1s"]);
    assert_eq!(status, 3, "nobody is cleared of what has not arrived: {answer:#}");
    scene.nat.mend();
    scene.until_all_is_there(&live);

    // The router forgets whose connection it is: what is sent goes nowhere, and the agent calls anew.
    scene.nat.forget();
    live.more(300);
    scene.until_all_is_there(&live);

    // One packet in five is lost on the way, so that others overtake it.
    scene.nat.lose(true);
    live.more(2_000);
    scene.until_all_is_there(&live);
    scene.nat.lose(false);

    // A slow line, and a backlog.
    scene.nat.throttle("512kbit");
    live.more(3_000);
    scene.until_all_is_there(&live);
    scene.nat.throttle("1gbit");

    // The collector is killed while it takes in a backlog.
    scene.nat.cut();
    live.more(5_000);
    scene.nat.mend();
    let some = live.processes() - 4_000;
    scene.collector.json_until(&["hosts"], |_| scene.count_flows() >= some as u64);
    let scene = scene.start_again(&[]);
    live.more(100);
    scene.until_all_is_there(&live);

    scene.proves_all_since(began);
    drop(live);
    assert!(agent.running.stop().success());
}

#[test]
fn certificates_are_renewed_and_a_ca_takes_over_under_load() {
    if !met("certificates under load", &[Requirement::Nat]) {
        return;
    }
    let short = ["--certificate-lifetime", "12s"];
    let scene = Scene::begin(&short);
    let (mut live, agent) = scene.live();
    live.more(100);
    scene.until_all_is_there(&live);
    let began = now();
    let connected = scene.until_host(is_connected);

    // Twice the certificate runs out, or would, and the connection is none the worse.
    let mut from = 0;
    for _ in 0..2 {
        live.more(500);
        from = agent.running.line_with("the certificate is renewed", from).1;
    }
    assert_eq!(scene.host()["from"], connected["from"], "it is the same connection");
    assert!(time(&scene.host()["enrolment"]["certificate_until"]) > now());

    // A new CA signs from now on, and the host learns of it as it renews. Then the old one is not needed any more.
    let old =
        scene.collector.json(&["ca", "list"]).1["authorities"][0]["fingerprint"].as_str().unwrap().to_owned();
    scene.collector.said(&["ca", "rotate"]);
    live.more(500);
    let moved =
        |list: &Value| list["authorities"][0]["hosts"] == 1 && list["authorities"][0]["fingerprint"] != old;
    scene.collector.json_until(&["ca", "list"], moved);
    scene.collector.said(&["ca", "retire", &old]);
    live.more(500);
    agent.running.line_with("the certificate is renewed", from);
    scene.until_all_is_there(&live);

    // A connection that is made anew has the new CA on both sides.
    let scene = scene.start_again(&short);
    live.more(500);
    scene.until_all_is_there(&live);
    scene.proves_all_since(began);
    drop(live);
    assert!(agent.running.stop().success());
}

/// A laptop that was away for longer than its certificate goes on recording, and is who it was once it has enrolled again.
#[test]
fn a_host_that_outlives_its_certificate_loses_nothing() {
    if !met("a laptop that was away", &[Requirement::Nat]) {
        return;
    }
    let scene = Scene::begin(&["--certificate-lifetime", "10s"]);
    let (mut live, agent) = scene.live();
    live.more(100);
    scene.until_all_is_there(&live);
    let (began, host) = (now(), scene.host());

    // The line is cut until the certificate has run out, as the owner is told.
    scene.nat.cut();
    let status = || {
        let mut status = Command::new(&programs().agent);
        status.arg("status").arg("--data").arg(scene.data());
        status
    };
    let has_run_out = |told: &Value| {
        let until = &told["collector"]["certificate_until"];
        until.is_string() && time(until) < now()
    };
    told_until(status, has_run_out);
    live.more(500);
    scene.nat.mend();
    agent.running.line_with("our certificate has run out, or is not valid yet by its clock", 0);
    assert_eq!(scene.host()["connected"], false);
    live.more(500);

    // With a new token it is the same host, and all that it has recorded since arrives.
    let mut enroll = scene.nat.on_laptop(&programs().agent.display().to_string());
    let again = outcome(enroll.args(["enroll", &scene.collector.token(1), "--data"]).arg(scene.data()));
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let back = scene.until_host(is_connected);
    assert_eq!(back["host"], host["host"]);
    scene.until_all_is_there(&live);
    scene.proves_all_since(began);
    drop(live);
    assert!(agent.running.stop().success());
}

#[test]
fn an_agent_calls_home_through_a_proxy() {
    // What is told it, and what whole systems are told.
    for variable in ["ALIBI_PROXY", "HTTPS_PROXY", "all_proxy"] {
        calls_home_through_the_proxy_of(variable);
    }
}

fn calls_home_through_the_proxy_of(variable: &str) {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let proxy = ConnectProxy::start();
    let data = directory.path().join("agent");
    let url = format!("http://jdoe:hunter2@{}", proxy.address);
    let agent = || {
        let mut agent = Command::new(&programs().agent);
        for other in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"] {
            agent.env_remove(other);
        }
        agent.env(variable, &url);
        agent
    };
    let enrolled = outcome(agent().args(["enroll", &collector.token(1), "--data"]).arg(&data));
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let running = Agent::start_with(agent(), &data, "", &["--source", "poll"]);
    collector.json_until(&["hosts"], |hosts| is_connected(&hosts["hosts"][0]));
    let seen = proxy.seen();
    let line = format!("CONNECT {} HTTP/1.1", collector.address);
    assert!(seen.len() >= 2 && seen.iter().all(|request| request.starts_with(&line)), "{seen:?}");
    // jdoe:hunter2, in base64.
    assert!(seen.iter().all(|request| request.contains("Basic amRvZTpodW50ZXIy")), "{seen:?}");
    assert!(running.running.said().iter().all(|line| !line.contains("hunter2")));
    assert!(running.running.stop().success());

    // One that does not let through is named, without its password.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut agent = agent();
    agent.env(variable, format!("http://jdoe:hunter2@{closed}"));
    let refused = outcome(agent.args(["enroll", &collector.token(1), "--data"]).arg(&data));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&format!("the proxy http://{closed} does not let through")), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn an_agent_that_others_can_reach_serves_the_collector_alone() {
    if !met("an agent that listens", &[Requirement::Nat]) {
        return;
    }
    let scene = Scene::begin(&[]);
    let there = format!("{SERVER}:8441");
    let agent = || scene.nat.on_server(&programs().agent.display().to_string());
    let data = scene.directory.path().join("listening");

    // Not before it is enrolled: strangers would be served.
    let refused = outcome(agent().args(["run", "--source", "poll", "--listen", &there, "--data"]).arg(&data));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("this host is not enrolled") && !data.exists(), "{said}");

    let enrolled = outcome(agent().args(["enroll", &scene.collector.token(1), "--data"]).arg(&data));
    assert!(enrolled.status.success(), "{}", String::from_utf8_lossy(&enrolled.stderr));
    let running = Agent::start_with(agent(), &data, &there, &["--source", "poll"]);
    assert_eq!(running.address, there);
    scene.collector.said(&["host", "add", &there]);
    let listed = |hosts: &Value| {
        let host = hosts["hosts"].as_array().unwrap().iter().find(|host| host["address"] == there.as_str());
        host.is_some_and(|host| is_connected(host) && !host["known_until"].is_null())
    };
    scene.collector.json_until(&["hosts"], listed);
    // Its owner is told so, too.
    let status = || {
        let mut status = Command::new(&programs().agent);
        status.arg("status").arg("--data").arg(&data);
        status
    };
    told_until(status, |told| told["collector"]["state"] == "connected");
    assert!(running.running.stop().success());
}

#[test]
fn an_agent_that_is_enrolled_while_it_runs_notices() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let data = directory.path().join("agent");
    let agent = Agent::start_calling(&data, &["--source", "poll"]);
    assert_eq!(collector.json(&["hosts"]).1["hosts"], Value::Array(vec![]));
    Agent::enrol(&data, &collector.token(1));
    let host = collector.json_until(&["hosts"], |hosts| is_connected(&hosts["hosts"][0]));
    let recorded = host["hosts"][0]["host"].as_str().unwrap().to_owned();
    let (line, _) = agent.running.line_with("recording address=", 0);
    assert!(line.contains(&recorded), "it keeps the id under which it has recorded: {line}");

    // Being enrolled twice at once changes nothing, and a token is good for as many hosts as it says.
    let token = collector.token(1);
    Agent::enrol(&data, &token);
    let other = outcome(
        Command::new(&programs().agent).args(["enroll", &token, "--data"]).arg(directory.path().join("b")),
    );
    assert!(!other.status.success());
    assert!(agent.running.stop().success());
    let again = Agent::start_calling(&data, &["--source", "poll"]);
    collector.json_until(&["hosts"], |hosts| is_connected(&hosts["hosts"][0]));
    assert!(again.running.stop().success());
}
