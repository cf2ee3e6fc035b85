//! Which programs are new here, how common are they, and who moves what: asked of real agents that saw real programs.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use alibi_lab::{
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, Running, now},
};
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// An agent on this very machine, which sees all that runs on it.
fn agent(directory: &Path, name: &str) -> Agent {
    let listen = format!("unix:{}", directory.join(format!("{name}.sock")).display());
    let program = Command::new(&programs().agent);
    Agent::start_with(program, &directory.join(name), &listen, &["--source", "ebpf"])
}

/// A program that nobody else has: its content, too, is its own.
fn program(directory: &Path, name: &str) -> PathBuf {
    let path = directory.canonicalize().unwrap().join(name);
    fs::copy("/bin/sleep", &path).unwrap();
    let mut file = fs::File::options().append(true).open(&path).unwrap();
    write!(file, "{name} {}", std::process::id()).unwrap();
    path
}

fn run(program: &Path) {
    assert!(Command::new(program).arg("0").status().unwrap().success());
}

/// What is listed of a path.
fn listed<'a>(answer: &'a Value, path: &Path) -> Option<&'a Value> {
    let has_path = |executable: &&Value| {
        executable["paths"].as_array().unwrap().iter().any(|listed| listed == path.to_str().unwrap())
    };
    answer["executables"].as_array().unwrap().iter().find(has_path)
}

/// All that is listed of a path, host by host.
fn of_path<'a>(answer: &'a Value, path: &Path) -> Vec<&'a Value> {
    let path = path.to_str().unwrap();
    let executables = answer["executables"].as_array().unwrap().iter();
    executables.filter(|executable| executable["paths"].to_string().contains(path)).collect()
}

#[test]
fn what_is_new_is_listed_with_its_proof_and_what_is_written_only_too() {
    if !met("executables", &[Requirement::Bpf, Requirement::Root]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let one = agent(directory.path(), "one");
    collector.follow(&one.address);

    // Before the window.
    let old = program(directory.path(), "old");
    run(&old);
    let before = now().to_string();
    let answer = collector.json_until(&["executables", "--last", "1h", "--limit", "1000"], |answer| {
        listed(answer, &old).is_some_and(|old| old["run"] == "run" && old["sha256"].is_string())
    });
    let found = listed(&answer, &old).unwrap();
    let novelty = &found["new_on_host"];
    assert_eq!(novelty["verdict"], "unknown", "recording began in that hour: {found:#}");
    assert!(novelty["reason"].as_str().unwrap().contains("nothing was recorded before"), "{novelty:#}");

    // In it: one that is run, one that is written only, and the old one again.
    let from = now().to_string();
    let (new, unrun) = (program(directory.path(), "new"), program(directory.path(), "unrun"));
    run(&new);
    run(&old);
    let window = ["executables", "--from", &from, "--limit", "1000"];
    let since_start = [&window[..], &["--recorded-for", "1ms"]].concat();
    let answer = collector.json_until(&since_start, |answer| {
        listed(answer, &new).is_some_and(|new| new["run"] == "run" && new["sha256"].is_string())
            && listed(answer, &unrun)
                .is_some_and(|unrun| unrun["run"] != "unknown" && unrun["sha256"].is_string())
    });
    let (found, unrun) = (listed(&answer, &new).unwrap(), listed(&answer, &unrun).unwrap());
    assert_eq!(listed(&answer, &old), None, "it was there before");
    assert_eq!((&found["new_on_host"]["verdict"], &found["hosts"]), (&"new".into(), &1.into()), "{found:#}");
    assert_eq!(found["new_in_fleet"]["verdict"], "new", "{found:#}");
    assert!(found["host"]["written"].is_object() && found["host"]["run"].is_object(), "{found:#}");
    assert_eq!((&unrun["run"], &unrun["host"]["run"]), (&"not_run".into(), &Value::Null), "{unrun:#}");
    assert_ne!(found["sha256"], unrun["sha256"]);
    // A moment of recording proves nothing to whoever does not say that it is enough.
    let (_, answer) = collector.json(&window);
    let found = listed(&answer, &new).unwrap();
    assert_eq!(found["new_on_host"]["verdict"], "unknown");
    let reason = found["new_on_host"]["reason"].as_str().unwrap();
    assert!(reason.contains("only before the window, and 24 h at least are wanted"), "{reason}");
    assert!(answer["hosts"][0]["recorded_since"].as_str().unwrap() < from.as_str(), "{answer:#}");
    let (_, answer) = collector.json(&[&window[..], &["--new"]].concat());
    assert_eq!(answer["executables"], Value::Array(vec![]), "{answer:#}");
    let (_, answer) = collector.json(&[&since_start[..], &["--new"]].concat());
    assert!(listed(&answer, &new).is_some());
    // A window in which it was not there yet.
    let earlier = ["executables", "--from", "-1h", "--to", &before, "--limit", "1000"];
    let (_, answer) = collector.json(&earlier);
    assert!(listed(&answer, &new).is_none() && listed(&answer, &old).is_some());
    // A person reads the same.
    let text = collector.said(&since_start);
    for wanted in ["new on this host", "new in the fleet", "written, not run", new.to_str().unwrap()] {
        assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
    }

    // Another host runs the same, and is not recorded for long: in the fleet nothing is proven to be new any more.
    let two = agent(directory.path(), "two");
    collector.follow(&two.address);
    let answer = collector.json_until(&since_start, |answer| {
        answer["hosts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|host| host["recorded_since"].is_string() || host["problem"].is_string())
            && answer["hosts"].as_array().unwrap().len() == 2
    });
    assert!(answer["fleet_problem"].is_string(), "{answer:#}");
    run(&new);
    // Each has it by its hash, before long.
    let answer = collector.json_until(&since_start, |answer| {
        let of_it = of_path(answer, &new);
        of_it.len() == 2 && of_it.iter().all(|found| found["hosts"] == 2)
    });
    for found in of_path(&answer, &new) {
        assert_eq!(found["new_in_fleet"]["verdict"], "unknown", "{found:#}");
    }
    assert!(one.running.stop().success() && two.running.stop().success());
}

#[test]
fn what_moves_most_is_told_of_remotes_processes_and_hosts() {
    if !met("top", &[Requirement::Bpf, Requirement::Root]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    let one = agent(directory.path(), "one");
    collector.follow(&one.address);
    let server = |address: &str| {
        let server = Running::start("a server", Command::new(LAB).args(["server", address]));
        let (line, _) = server.line_with("listening ", 0);
        (server, line.rsplit(' ').next().unwrap().to_owned())
    };
    let ((_near, near), (_far, far)) = (server("127.0.0.8:0"), server("127.0.0.9:0"));
    collector.json_until(&["top", "hosts", "--last", "1h"], |answer| {
        answer["rows"].as_array().unwrap().len() == 1
    });
    let from = now().to_string();
    let mut client = Running::start("a client", Command::new(LAB).arg("client"));
    for (name, server) in [("a", &near), ("b", &near), ("c", &near), ("d", &far)] {
        // One byte there and back.
        client.ask(&format!("connect {name} {server}"));
        assert_eq!(client.ask(&format!("close {name}")), "closed");
    }
    let all = |answer: &Value| answer["total"]["connections"] == 4 && answer["total"]["bytes_sent"] == 4;
    let whom = ["top", "processes", "127.0.0.8/31", "--from", &from];
    let is_client = |row: &Value| {
        let sums = ["processes", "connections", "bytes_sent"].map(|sum| row[sum].clone());
        sums == [1, 4, 4].map(Value::from) && row["sha256"].is_string()
    };
    let answer =
        collector.json_until(&whom, |answer| answer["rows"].as_array().unwrap().iter().any(is_client));
    let rows = answer["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["path"] == LAB).unwrap_or_else(|| panic!("{answer:#}"));
    assert!(row["sha256"].is_string() && row["hosts"] == 1, "{row:#}");
    assert!(row["host"].is_string(), "there is one only: {row:#}");
    let uid = row["process"].as_str().unwrap();

    let remotes = ["top", "remotes", "--process", uid, "--from", &from];
    let by_connections = [&remotes[..], &["--by", "connections"]].concat();
    let answer = collector.json_until(&by_connections, all);
    let remote =
        |row: &Value| (row["remote"].clone(), row["connections"].clone(), row["bytes_received"].clone());
    let rows: Vec<_> = answer["rows"].as_array().unwrap().iter().map(remote).collect();
    let want = [("127.0.0.8", 3), ("127.0.0.9", 1)];
    assert_eq!(rows, want.map(|(remote, count)| (remote.into(), count.into(), count.into())), "{answer:#}");
    let (_, cut) = collector.json(&[&by_connections[..], &["--limit", "1"]].concat());
    assert_eq!((cut["rows"].as_array().unwrap().len(), &cut["rows_left_out"]), (1, &1.into()));
    assert!(all(&cut), "what is cut is in the sum: {cut:#}");

    let (_, answer) = collector.json(&["top", "hosts", "--from", &from]);
    let host = &answer["rows"][0];
    assert!(host["host_name"].is_string() && host["connections"].as_u64().unwrap() >= 4, "{answer:#}");
    let text = collector.said(&by_connections);
    assert!(text.contains("127.0.0.8") && text.contains("CONNECTIONS"), "{text}");

    // The same of the process, over time.
    let (_, shown) = collector.json(&["process", uid, "--from", &from, "--recorded-for", "1ms"]);
    assert_eq!((&shown["total"]["connections"], &shown["total"]["bytes_sent"]), (&4.into(), &4.into()));
    let sum = |what: &str| -> u64 {
        shown["buckets"].as_array().unwrap().iter().map(|bucket| bucket[what].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("opened"), sum("bytes_sent"), sum("bytes_received")), (4, 4, 4), "{shown:#}");
    assert_eq!(shown["prevalence"]["hosts"], 1, "{shown:#}");
    let (_, ever) = collector.json(&["process", uid]);
    assert_eq!(ever["prevalence"]["new_on_host"], Value::Null, "{ever:#}");
    assert!(collector.said(&["process", uid]).contains("its executable was seen on 1 of 1 hosts"));
    // What cannot be meant is said.
    for (words, want) in [
        (&["top", "remotes", "--process", uid][..], "no window"),
        (&["top", "hosts", "--last", "1h", "--limit", "1001"], "--limit takes at most 1000"),
        (&["executables"], "no window"),
    ] {
        let output = collector.alibi(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(want) && output.stdout.is_empty(), "{said}");
    }
    let audit = collector.said(&["audit", "--limit", "20"]);
    assert!(audit.contains(&format!("top remotes --process {uid}")), "{audit}");
    assert!(one.running.stop().success());
}
