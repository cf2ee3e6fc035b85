//! The agent for Windows, run by Wine, with a collector on Linux.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
};

use alibi_lab::{
    network::Network,
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, Running, nobodys_token},
};
use serde_json::Value;

/// Why no better source works under Wine, as the scope of each facet has it.
const REFUSED: &str =
    "etw cannot be used: cannot begin a session of Event Tracing for Windows: Access denied.";

/// The Windows of this test, which ends with it.
struct Wine {
    programs: PathBuf,
}

impl Wine {
    /// A command that runs one of the programs.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new("wine");
        command.arg(self.programs.join(name)).env("WINEDEBUG", "-all");
        command
    }

    /// Starts the agent, and tells as whom it records and from what.
    fn agent(&self, data: &Path, listen: &str) -> (Agent, String) {
        let agent = Agent::start_with(self.command("alibi-agent.exe"), data, listen, &["--source", "auto"]);
        let (line, _) = agent.running.line_with("recording address=", 0);
        let who = line.split_once(" host=").unwrap().1.to_owned();
        (agent, who)
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        // What it has started besides the programs goes on for a while otherwise.
        let _ = Command::new("wineserver").arg("-k").status();
    }
}

/// A path as Windows programs have it here.
fn windows_path(path: &Path) -> String {
    format!("Z:{}", path.to_str().unwrap().replace('/', "\\"))
}

fn processes(answer: &Value) -> &[Value] {
    answer["hosts"][0]["processes"].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn an_agent_under_wine_polls_and_keeps_who_talked() {
    if !met("an agent under Wine", &[Requirement::NetworkNamespaces, Requirement::Wine]) {
        return;
    }
    programs();
    // Wine shows the sockets of everything in its network namespace: so that there are no others.
    Network::new(0).inside_server(records_and_is_followed);
}

fn records_and_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("agent");
    let wine = Wine { programs: std::env::var_os("ALIBI_WINDOWS_PROGRAMS").unwrap().into() };

    // A Windows program asks somebody who never answers, nor even accepts, and so stays connected.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap().to_string();
    let (agent, first_run) = wine.agent(&data, "127.0.0.1:0");
    let collector = Collector::start(&directory.path().join("before"));
    collector.follow(&agent.address);
    let mut asking = wine.command("alibi.exe");
    asking.args(["hosts", "--collector", &target]).env("ALIBI_TOKEN", nobodys_token(&target));
    let asking = Running::start("alibi.exe", &mut asking);
    let who = ["who", &target, "--last", "1h"];
    let path = windows_path(&wine.programs.join("alibi.exe"));
    let is_asking = |process: &Value| process["path"] == path.as_str();
    let before = collector.json_until(&who, |answer| processes(answer).iter().any(is_asking));
    drop(listener);
    asking.kill();

    // What the source is worth, and why it is no better.
    let (_, hosts) = collector.json(&["hosts"]);
    let sources = hosts["hosts"][0]["sources"].as_array().unwrap();
    assert_eq!((sources.len(), &sources[0]["name"]), (1, &"poll".into()), "{hosts:#}");
    let caveat = sources[0]["caveat"].as_str().unwrap();
    assert!(caveat.contains("never on Windows itself"), "{hosts:#}");
    for facet in sources[0]["facets"].as_array().unwrap() {
        let cannot_see = facet["cannot_see"].as_str().unwrap();
        assert!(cannot_see.contains(REFUSED), "{hosts:#}");
    }
    collector.running.stop();
    assert!(agent.running.interrupt().success());

    // Another collector, which knows nothing yet, is told by the ring of an agent that was started again.
    let (agent, second_run) = wine.agent(&data, &agent.address);
    assert_eq!(first_run, second_run, "the same host and source");
    let collector = Collector::start(&directory.path().join("after"));
    collector.follow(&agent.address);
    collector.json_until(&who, |answer| processes(answer).iter().any(is_asking));
    let (status, answer) = collector.json(&who);
    assert_eq!((status, &answer["hosts"][0]["verdict"]), (0, &"talked".into()), "{answer:#}");
    let [process] = processes(&answer) else { panic!("one process: {answer:#}") };
    assert_eq!(process["process"], processes(&before)[0]["process"]);
    let flows = process["flows"].as_array().unwrap();
    let is_it = |flow: &Value| flow["remote"] == target.as_str() && flow["direction"] == "outbound";
    assert!(!flows.is_empty() && flows.iter().all(is_it), "{flows:#?}");
    assert!(flows.iter().all(|flow| flow["attribution"] == "socket_table"), "{flows:#?}");
    assert!(agent.running.interrupt().success());
}
