//! The agent as a service: systemd starts it, watches over it and stops it, and what it is forbidden blinds it to nothing.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use alibi_agent::ring::View;
use alibi_lab::{
    requirements::{Requirement, met},
    systemd::{Kind, Systemd},
};
use alibi_proto::id::Epoch;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);
const UNIT: &str = include_str!("../../agent/service/alibi-agent.service");
const AGENT: &str = "/usr/local/bin/alibi-agent";
const CONFIGURATION: &str = "listen = \"unix:/run/alibi-agent/agent.sock\"\n";

const KILLED: &str = "the agent ended without saying so (crash, kill or power loss)";
const STOPPED: &str = "the agent was stopped";

fn status(systemd: &Systemd) -> (Option<i32>, Value) {
    let output = systemd.run(&[AGENT, "service", "status", "--json"]);
    let said = String::from_utf8_lossy(&output.stderr);
    let status = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    (output.status.code(), status)
}

/// Waits until another process than `pid` is ready; its pid.
fn another(systemd: &Systemd, pid: &Value) -> Value {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (_, status) = status(systemd);
        if status["running"] == true && status["pid"] != *pid {
            return status["pid"].clone();
        }
        assert!(Instant::now() < deadline, "it was not started again: {status:#}");
    }
}

/// Why nothing was recorded at times, in order.
fn gaps(systemd: &Systemd) -> Vec<String> {
    let words = [AGENT, "query", "203.0.113.99", "--last", "10m", "--json"];
    let output = systemd.run(&words);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    let gaps = answer["hosts"][0]["gaps"].as_array().unwrap();
    let none = gaps.iter().filter(|gap| gap["grade"] == "none" && gap["facet"] == "connections");
    none.map(|gap| gap["reason"].as_str().unwrap().to_owned()).collect()
}

/// Which host it is, and which ring it has.
fn identity(systemd: &Systemd) -> (String, Epoch) {
    let data = systemd.path("/var/lib/alibi-agent");
    let host = fs::read_to_string(data.join("host.json")).unwrap();
    (host, View::open_read_only(&data.join("ring")).unwrap().epoch())
}

#[test]
fn systemd_starts_the_agent_again_when_it_is_stuck_and_stops_it_cleanly() {
    let needs = [Requirement::Systemd, Requirement::Bpf, Requirement::Mounts];
    if !met("the service of systemd", &needs) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let systemd = Systemd::start(Kind::First, directory.path());
    let (code, none) = status(&systemd);
    assert_eq!((code, &none["installed"]), (Some(3), &Value::Null));
    systemd.write("/etc/systemd/system/alibi-agent.service.d/lab.conf", "[Service]\nWatchdogSec=8s\n");
    systemd.write("/etc/alibi/agent.toml", CONFIGURATION);

    // Installed and started: it is ready only once it records.
    let said = systemd.said(&[AGENT, "service", "install"]);
    assert!(said.contains("wrote the unit") && said.contains("/var/lib/alibi-agent"), "{said}");
    let (code, running) = status(&systemd);
    assert_eq!((code, &running["enabled"]), (Some(0), &Value::Bool(true)), "{running:#}");
    let says = running["says"].as_str().unwrap();
    assert_eq!(says, "recording by ebpf, serving at unix:/run/alibi-agent/agent.sock");
    let data = fs::metadata(systemd.path("/var/lib/alibi-agent")).unwrap();
    assert_eq!(data.permissions().mode() & 0o7777, 0o700);
    // The machine's owner sees how it is, without rights, and of what is beside that nothing.
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let told = systemd.said(&[&nobody[..], &[AGENT, "status"]].concat());
    assert!(told.contains("running since") && told.contains("Recording by ebpf"), "{told}");
    let socket = fs::metadata(systemd.path("/run/alibi-agent/agent.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let first = identity(&systemd);
    assert!(!gaps(&systemd).iter().any(|reason| reason == KILLED));

    // Stuck: it is killed and started again, and the time is a gap.
    let pid = running["pid"].to_string();
    systemd.said(&["kill", "-STOP", &pid]);
    let pid = another(&systemd, &running["pid"]);
    assert!(gaps(&systemd).iter().any(|reason| reason == KILLED), "{:?}", gaps(&systemd));

    // Installed over itself, as another version would be: stopped cleanly, and the same host and ring go on.
    assert!(!gaps(&systemd).iter().any(|reason| reason == STOPPED));
    systemd.said(&[AGENT, "service", "install"]);
    let pid = another(&systemd, &pid);
    assert!(gaps(&systemd).iter().any(|reason| reason == STOPPED), "{:?}", gaps(&systemd));
    assert_eq!(gaps(&systemd).iter().filter(|reason| *reason == KILLED).count(), 1);
    assert_eq!(identity(&systemd), first);

    systemd.said(&["systemctl", "stop", "alibi-agent"]);
    let result = systemd.said(&["systemctl", "show", "alibi-agent", "--property", "Result,ExecMainStatus"]);
    assert_eq!(result, "Result=success\nExecMainStatus=0\n");
    assert_eq!(status(&systemd).0, Some(3));
    systemd.said(&["systemctl", "start", "alibi-agent"]);
    another(&systemd, &pid);
    let of_a_stop = gaps(&systemd).iter().filter(|reason| *reason == STOPPED).count();
    assert_eq!(of_a_stop, 2, "{:?}", gaps(&systemd));

    // Taken away, but for what is the owner's.
    let said = systemd.said(&[AGENT, "service", "uninstall"]);
    assert!(said.contains("kept the configuration") && said.contains("kept the data"), "{said}");
    assert_eq!(status(&systemd).1["installed"], Value::Null);
    assert_eq!(identity(&systemd), first);
    assert!(!systemd.path("/etc/systemd/system/alibi-agent.service").exists());
}

#[test]
fn what_the_unit_forbids_blinds_the_agent_to_nothing() {
    let needs = [Requirement::Systemd, Requirement::Bpf, Requirement::Mounts];
    if !met("the self test under the unit's restrictions", &needs) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let systemd = Systemd::start(Kind::Beside, directory.path());
    systemd.write("/etc/systemd/user/alibi-agent.service", &selftest_unit());
    systemd.said(&["systemctl", "--user", "daemon-reload"]);
    systemd.run(&["systemctl", "--user", "start", "alibi-agent"]);
    let said = |of: &str| fs::read_to_string(systemd.path(of)).unwrap();
    let report: Value = serde_json::from_str(&said("/run/report"))
        .unwrap_or_else(|error| panic!("{error}: {}", said("/run/problems")));
    for check in report["checks"].as_array().unwrap() {
        assert_eq!(check["seen"], check["done"], "{report:#}");
    }
    assert!(report["checks"].as_array().unwrap().len() >= 10, "{report:#}");
    assert_eq!(report["source"], "ebpf");
    assert_eq!(said("/run/problems"), "", "a sensor that cannot be opened is told of");
}

/// The unit, with the self test in the agent's place. That answers DNS questions and writes nothing.
fn selftest_unit() -> String {
    const OTHER: [&str; 7] = [
        "Type=",
        "ExecStart=",
        "Restart=",
        "WatchdogSec=",
        "StateDirectory",
        "RuntimeDirectory",
        "CapabilityBoundingSet=",
    ];
    let is_kept = |line: &&str| !OTHER.iter().any(|other| line.starts_with(other));
    let rights = UNIT.lines().find(|line| line.starts_with("CapabilityBoundingSet=")).unwrap();
    let own = format!(
        "[Service]\nType=oneshot\nExecStart={AGENT} selftest --source ebpf --json\n{rights} CAP_NET_BIND_SERVICE\n\
         StandardOutput=file:/run/report\nStandardError=file:/run/problems\n"
    );
    UNIT.lines().filter(is_kept).collect::<Vec<_>>().join("\n").replacen("[Service]\n", &own, 1)
}
