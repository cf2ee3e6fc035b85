//! What the owner of a machine sees of the agent on it: without rights, and without a collector.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Output},
};

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, Running, outcome, told_by, told_until},
};
use alibi_proto::{
    transport,
    wire::{self, recorder_client::RecorderClient},
};
use serde_json::Value;

/// A user without rights.
const NOBODY: u32 = 65534;
/// The poll source takes no rights.
const POLL: [&str; 4] = ["--source", "poll", "--period", "100ms"];

fn status(data: &Path) -> Command {
    let mut command = Command::new(&programs().agent);
    command.arg("status").arg("--data").arg(data);
    command
}

fn count(told: &Value, rule: &str) -> u64 {
    let rules = told["redacted"]["by_rule"].as_array().unwrap();
    let count = rules.iter().find(|told| told["rule"] == rule).map(|told| told["count"].as_u64().unwrap());
    count.unwrap_or_else(|| panic!("no {rule} in {rules:#?}"))
}

/// What was asked, newest first, as the owner is told: seq and action.
fn asked(told: &Value) -> Vec<(u64, String)> {
    let newest = told["asked"]["newest"].as_array().unwrap();
    let of = |one: &Value| (one["seq"].as_u64().unwrap(), one["action"].as_str().unwrap().to_owned());
    newest.iter().map(of).collect()
}

#[test]
fn the_owner_sees_what_was_redacted_and_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("agent");
    let own = ["--redact", "--corp-pin", "--redact", "corptool -k"];
    let agent = Agent::start(&data, &[&POLL[..], &own].concat());
    let before = told_until(|| status(&data), |told| told["recorded_until"].is_string());
    assert_eq!((&before["running"], &before["source"]), (&Value::Bool(true), &"poll".into()), "{before:#}");
    assert_eq!(before["facets"][0]["grade"], "sampled");
    assert_eq!(before["collector"]["state"], "not_enrolled");
    assert_eq!(before["trouble"], Value::Array(Vec::new()));
    assert_eq!(count(&before, "corptool -k"), 0);

    let script = ["-c", "read line", "app", "--corp-pin", "81723645", "--password", "correct-horse"];
    let app = Running::start("an app", Command::new("sh").args(script));
    let after = told_until(|| status(&data), |told| count(told, "--corp-pin") > 0);
    assert_eq!(count(&after, "--corp-pin"), 1);
    assert!(count(&after, "secret-option") > count(&before, "secret-option"), "{after:#}");
    let text = fs::read_to_string(data.join("status.json")).unwrap();
    assert!(!text.contains("81723645") && !text.contains("correct-horse"), "{text}");
    drop(app);

    let output = outcome(&mut status(&data));
    let words = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{words}");
    for wanted in
        ["running since", "Recording by poll", "1 by --corp-pin (added here)", "collector: not enrolled"]
    {
        assert!(words.contains(wanted), "no `{wanted}` in:\n{words}");
    }
    assert!(agent.running.stop().success());
    let (code, ended) = told_by(status(&data));
    assert_eq!((code, &ended["running"]), (3, &Value::Bool(false)));
    assert_eq!(ended["agent"]["ended"]["reason"], "it was stopped");
}

#[test]
fn who_asked_is_told_and_kept_over_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("agent");
    let collector = Collector::start(&directory.path().join("collector"));
    Agent::enrol(&data, &collector.token(1));
    let agent = Agent::start_calling(&data, &POLL);
    let is_connected = |told: &Value| told["running"] == true && told["collector"]["state"] == "connected";
    let told = told_until(|| status(&data), is_connected);
    let link = &told["collector"];
    assert!(link["since"].is_string() && link["certificate_until"].is_string(), "{told:#}");

    let question = ["who", "203.0.113.99", "--last", "1m"];
    collector.json(&question);
    let has_asked = |told: &Value| asked(told).iter().any(|(_, action)| action == "who");
    let told = told_until(|| status(&data), has_asked);
    let newest = &told["asked"]["newest"][0];
    assert_eq!((&newest["role"], &newest["action"]), (&"admin".into(), &"who".into()), "{told:#}");
    assert!(newest["at"].is_string() && newest["who"].is_string(), "{told:#}");
    let words = String::from_utf8(outcome(&mut status(&data)).stdout).unwrap();
    assert!(words.contains(" (admin)  who\n") && words.contains("collector: connected to "), "{words}");
    assert!(!words.contains("203.0.113.99"), "what was looked for is not told: {words}");

    // Whoever is on this machine, and is no collector, tells nobody anything.
    let refused = tell_as_anybody(&agent.address).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied, "{refused}");

    agent.running.kill();
    let (code, killed) = told_by(status(&data));
    assert_eq!((code, &killed["running"]), (3, &Value::Bool(false)), "{killed:#}");
    let words = String::from_utf8(outcome(&mut status(&data)).stdout).unwrap();
    assert!(words.contains("not running: it ended without saying so"), "{words}");

    // What is told again is taken once.
    let before = asked(&told);
    let agent = Agent::start_calling(&data, &POLL);
    told_until(|| status(&data), is_connected);
    collector.json(&question);
    let is_more = |told: &Value| asked(told).len() > before.len() && is_connected(told);
    let told = told_until(|| status(&data), is_more);
    let after = asked(&told);
    assert_eq!(after[after.len() - before.len()..], before);
    assert!(after.windows(2).all(|pair| pair[0].0 > pair[1].0), "{after:?}");
    assert_eq!(told["asked"]["total"], after.len());
    assert!(agent.running.stop().success());
}

#[test]
fn an_agent_that_its_collector_does_not_want_runs_with_trouble() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("agent");
    let collector = Collector::start(&directory.path().join("collector"));
    Agent::enrol(&data, &collector.token(1));
    let agent = Agent::start_calling(&data, &POLL);
    let told = told_until(|| status(&data), |told| told["collector"]["state"] == "connected");
    assert_eq!(told_by(status(&data)).0, 0);
    collector.said(&["host", "revoke", told["host"]["id"].as_str().unwrap()]);
    let told = told_until(|| status(&data), |told| told["trouble"] != Value::Array(Vec::new()));
    assert_ne!(told["collector"]["state"], "connected");
    let output = outcome(&mut status(&data));
    let words = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("\nTROUBLE  ") && words.contains("running since"), "{words}");
    assert!(agent.running.stop().success());
}

/// Tells who asked, as somebody on this machine who is no collector.
fn tell_as_anybody(address: &str) -> Result<(), tonic::Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = RecorderClient::new(transport::channel(&address.parse().unwrap()).unwrap());
        let entry = wire::Asked { seq: 1_000_000, who: "somebody".into(), ..wire::Asked::default() };
        client.asked(wire::AskedRequest { entries: vec![entry] }).await.map(drop)
    })
}

#[test]
fn where_no_agent_has_been_nothing_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = status(&directory.path().join("none"));
    let Output { status: code, stdout, stderr } = outcome(&mut command);
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!((code.code(), stdout.as_slice()), (Some(2), b"".as_slice()), "{stderr}");
    assert!(stderr.contains("no data in") && stderr.lines().count() == 1, "{stderr}");
}

/// The agent of this system, in a system of its own as far as files go: its data are in their usual place.
#[test]
fn whoever_has_no_rights_sees_the_agent_of_the_system() {
    if !met("the status without rights", &[Requirement::Root, Requirement::Mounts]) {
        return;
    }
    let mut command = Command::new("unshare");
    let own = "mount -t tmpfs none /var/lib && mount -t tmpfs none /run && exec \"$@\"";
    command.args(["--mount", "sh", "-c", own, "sh"]).arg(&programs().agent);
    let data = Path::new("/var/lib/alibi-agent");
    let agent = Agent::start_with(command, data, "127.0.0.1:0", &POLL);
    let inside = |words: &[&str]| {
        let mut command = Command::new("nsenter");
        let target = agent.running.pid().to_string();
        // A user without rights cannot enter, so it is become one inside.
        let user = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--reset-env"];
        command.args(["--target", &target, "--mount"]).args(user).args(words);
        command
    };
    let agent_program = programs().agent.to_str().unwrap().to_owned();
    let by_nobody = || inside(&[&agent_program, "status"]);
    let told = told_until(by_nobody, |told| told["running"] == true);
    assert_eq!(told["source"], "poll");
    let words = String::from_utf8(outcome(&mut by_nobody()).stdout).unwrap();
    assert!(words.contains("running since"), "{words}");
    let refused = outcome(&mut inside(&["cat", "/var/lib/alibi-agent/status.json"]));
    assert!(!refused.status.success(), "the data are nobody's");
    let listed =
        outcome(&mut inside(&["stat", "-c", "%a %n", "/run/alibi-agent", "/run/alibi-agent/status.json"]));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed, "755 /run/alibi-agent\n644 /run/alibi-agent/status.json\n");
    assert!(agent.running.stop().success());
}

/// An agent over other data tells nobody but who may read those.
#[test]
fn a_private_agent_tells_nobody_else() {
    if !met("a private agent's status", &[Requirement::Root]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let data = directory.path().join("agent");
    let agent = Agent::start(&data, &POLL);
    told_until(|| status(&data), |told| told["running"] == true);
    let mut command = status(&data);
    command.uid(NOBODY).gid(NOBODY);
    let refused = outcome(&mut command);
    let problem = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{problem}");
    assert!(problem.contains("ermission denied") && problem.contains("--data"), "{problem}");
    assert!(agent.running.stop().success());
}
