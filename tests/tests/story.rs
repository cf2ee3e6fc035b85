//! The story that everything is for: a process that was started long before the window reconnects inside it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use alibi_lab::{
    network::{Network, SERVER},
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, Running, now},
};
use alibi_proto::time::Timestamp;
use serde_json::Value;

/// What the server is called, and who says so.
const NAME: &str = "cloud.example.com";
const NAME_SERVER: &str = "198.51.100.7:53";
const LAB: &str = env!("CARGO_BIN_EXE_lab");
/// How long the collector may take to store what it was given last.
const PATIENCE: Duration = Duration::from_secs(10);

/// A server, two laptops with an agent each, and a collector that follows both.
struct Story {
    network: Network,
    server_address: String,
    _servers: [Running; 2],
    collector: Collector,
    agents: Vec<Agent>,
    _directory: tempfile::TempDir,
}

impl Story {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let network = Network::new(2);
        let server_address = format!("{SERVER}:443");
        let mut command = network.on_server(LAB);
        command.args(["server", &server_address]);
        let server = Running::start("the server", &mut command);
        server.line_with("listening", 0);

        let mut command = network.on_server(LAB);
        command.args(["name-server", NAME_SERVER, &SERVER.to_string()]);
        let name_server = Running::start("the name server", &mut command);
        name_server.line_with("listening", 0);

        let collector = Collector::start(&directory.path().join("collector"));
        let agents = ["laptop-a", "laptop-b"].iter().enumerate();
        let agents: Vec<_> =
            agents.map(|(laptop, name)| agent(&network, laptop, name, directory.path())).collect();
        for agent in &agents {
            collector.follow(&agent.address);
        }
        Self {
            network,
            server_address,
            _servers: [server, name_server],
            collector,
            agents,
            _directory: directory,
        }
    }

    /// A client on a laptop, known to the collector before anything else happens.
    fn client(&self, laptop: usize, name: &str) -> Running {
        let mut command = self.network.on_laptop(laptop, name, LAB);
        command.arg("client");
        Running::start("a client", &mut command)
    }

    fn who(&self, words: &[&str]) -> (i32, Value) {
        self.collector.json(&[&["who"], words].concat())
    }
}

fn agent(network: &Network, laptop: usize, name: &str, directory: &Path) -> Agent {
    let program = programs().agent.to_str().expect("a path in UTF-8");
    let command = network.on_laptop(laptop, name, program);
    let listen = format!("unix:{}", directory.join(format!("{name}.sock")).display());
    Agent::start_with(
        command,
        &directory.join(name),
        &listen,
        &["--source", "ebpf", "--own-network-namespace"],
    )
}

fn host<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let hosts = answer["hosts"].as_array().unwrap();
    hosts.iter().find(|host| host["name"] == name).unwrap_or_else(|| panic!("no {name} in {answer:#}"))
}

fn time(value: &Value) -> Timestamp {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

/// The processes that a search for *processes started in the window, with connections to the target* finds: what the
/// classic question asks, and the trap that the story is about.
fn started_inside(host: &Value, from: Timestamp, to: Timestamp) -> Vec<&Value> {
    let processes = host["processes"].as_array().unwrap().iter();
    processes.filter(|process| (from..to).contains(&time(&process["started"]))).collect()
}

#[test]
fn a_process_from_before_the_window_that_reconnects_inside_it_is_found() {
    if !met("the story", &[Requirement::NetworkNamespaces]) {
        return;
    }
    let mut story = Story::begin();
    let mut client = story.client(0, "laptop-a");
    let idle = story.client(1, "laptop-b");

    // Yesterday, as it were: the client talks to the server, and the connection ends.
    assert_eq!(client.ask(&format!("resolve {NAME} {NAME_SERVER}")), SERVER.to_string());
    let first_local = client.ask(&format!("connect first {}", story.server_address));
    story.collector.json_until(&["who", &story.server_address, "--last", "1h"], |answer| {
        answer["hosts"].to_string().contains(&first_local)
    });
    assert_eq!(client.ask("close first"), "closed");
    story.collector.json_until(&["who", &story.server_address, "--last", "1h"], |answer| {
        answer["hosts"].to_string().contains(r#""state":"closed""#)
    });

    // The window: the same process connects again.
    let from = now();
    let local = client.ask(&format!("connect second {}", story.server_address));
    let window = |to: Timestamp| [from.to_string(), to.to_string()];
    story.collector.json_until(&["who", &story.server_address, "--from", &from.to_string()], |answer| {
        answer["hosts"].to_string().contains(&local)
    });
    let to = now();
    let [from_text, to_text] = window(to);
    let (status, answer) = story.who(&[&SERVER.to_string(), "--from", &from_text, "--to", &to_text]);
    assert_eq!(status, 0, "somebody talked: {answer:#}");

    let laptop_a = host(&answer, "laptop-a");
    assert_eq!(laptop_a["verdict"], "talked");
    let processes = laptop_a["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 1, "{laptop_a:#}");
    let process = &processes[0];
    assert_eq!(process["pid"], client.pid());
    assert_eq!(process["path"], LAB);
    assert!(process["arguments"].to_string().contains("client"), "{process:#}");
    assert!(time(&process["started"]) < from, "it was started before the window: {process:#}");
    let flows = process["flows"].as_array().unwrap();
    assert_eq!(flows.len(), 1, "the first connection ended before the window: {flows:#?}");
    assert_eq!(flows[0]["local"], local.as_str());
    assert_eq!(flows[0]["remote"], story.server_address.as_str());
    assert_eq!(flows[0]["direction"], "outbound");
    assert_eq!(flows[0]["attribution"], "in_kernel");
    // One byte there and back.
    assert_eq!((&flows[0]["bytes_sent"], &flows[0]["bytes_received"]), (&1.into(), &1.into()));
    assert_eq!(flows[0]["in_window"], "bytes");
    assert!((from..to).contains(&time(&flows[0]["first"])), "{flows:#?}");

    // The other laptop has nothing, which is proven; the proof names what it covers.
    let laptop_b = host(&answer, "laptop-b");
    assert_eq!((&laptop_b["verdict"], &laptop_b["gaps"]), (&"clear".into(), &Value::Array(vec![])));
    let scope = laptop_b["scopes"].to_string();
    assert!(scope.contains("TCP and UDP over IPv4 and IPv6 by eBPF"), "{scope}");
    let (status, answer) =
        story.who(&[&SERVER.to_string(), "--from", &from_text, "--to", &to_text, "--host", "laptop-b"]);
    assert_eq!((status, answer["hosts"].as_array().unwrap().len()), (1, 1));

    // By name, too, though it was looked up before the window. The other laptop can have had the address from somewhere
    // else, for all that its hour of recording knows; asked by address besides, it is ruled out.
    let by_name = ["who", NAME, "--from", &from_text, "--to", &to_text];
    let (status, named) = story.collector.json(&by_name);
    assert_eq!((status, &named["addresses"]), (0, &serde_json::json!([SERVER.to_string()])), "{named:#}");
    let found = &host(&named, "laptop-a")["processes"][0];
    assert_eq!(found["process"], process["process"]);
    assert_eq!(
        (&found["flows"][0]["name"], &found["flows"][0]["name_source"]),
        (&NAME.into(), &"dns".into())
    );
    let other = host(&named, "laptop-b");
    assert_eq!(
        (&other["verdict"], &other["gaps"][0]["facet"]),
        (&"unknown".into(), &"names".into()),
        "{other:#}"
    );
    let server = SERVER.to_string();
    let with_address = [&by_name[..], &["--address", &server]].concat();
    let (status, named) = story.collector.json(&with_address);
    assert_eq!((status, &host(&named, "laptop-b")["verdict"]), (0, &"clear".into()), "{named:#}");

    // The trap: no process with a connection to the server was started inside the window, so the classic search finds
    // nobody. Over all time it would have found this one, so it is the window that hides it.
    assert_eq!(started_inside(laptop_a, from, to), Vec::<&Value>::new());
    assert_eq!(started_inside(laptop_a, Timestamp::ZERO, to).len(), 1);

    // What is that process? Its parents are on record.
    let uid = process["process"].as_str().unwrap();
    let (status, shown) = story.collector.json(&["process", uid]);
    assert_eq!((status, &shown["pid"], &shown["host_name"]), (0, &process["pid"], &"laptop-a".into()));
    assert_eq!(shown["ancestors"][0]["pid"], std::process::id(), "{shown:#}");
    // Two connections to the server, and one question to its name server.
    assert_eq!(shown["flows"].as_array().unwrap().len(), 3);

    // A person reads the same.
    let output = story.collector.alibi(&["who", &SERVER.to_string(), "--from", &from_text, "--to", &to_text]);
    let text = String::from_utf8(output.stdout).unwrap();
    for wanted in [
        "TALKED   laptop-a",
        "CLEAR    laptop-b",
        LAB,
        "TCP and UDP over IPv4 and IPv6",
        "1 host can be ruled out",
    ] {
        assert!(text.contains(wanted), "no `{wanted}` in:\n{text}");
    }
    assert_eq!(idle.said(), Vec::<String>::new());

    // Asked on the laptop itself, with no collector: while the agent runs, and from the ring after it has stopped.
    let agent = story.agents.remove(0);
    for running in [Some(agent.running), None] {
        let mut command = Command::new(&programs().agent);
        command.args([
            "query",
            &SERVER.to_string(),
            "--from",
            &from_text,
            "--to",
            &to_text,
            "--json",
            "--data",
        ]);
        let output = command.arg(&agent.data).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let local_answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        let processes = &local_answer["hosts"][0]["processes"];
        assert_eq!(processes[0]["process"], process["process"]);
        assert_eq!(processes[0]["flows"][0]["connection"], flows[0]["connection"]);
        if let Some(running) = running {
            assert!(running.stop().success());
        } else {
            // Now that nothing is added any more, both answer alike, in every word, once the collector has stored what it was
            // given last.
            let asked = Instant::now();
            let there = || {
                let (_, answer) = story.who(&[&SERVER.to_string(), "--from", &from_text, "--to", &to_text]);
                host(&answer, "laptop-a")["processes"].clone()
            };
            while there() != *processes && asked.elapsed() < PATIENCE {}
            assert_eq!(*processes, there());
        }
    }
}
