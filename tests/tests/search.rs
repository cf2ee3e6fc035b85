//! The search language against the story: the query of a classic search misses the process that was started before the window
//! and connected in it, says so, and offers the one that finds it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::path::Path;

use alibi_lab::{
    network::{Network, SERVER},
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, Running, now},
};
use alibi_proto::time::Timestamp;
use serde_json::Value;

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// A server, a laptop with an agent, and a collector that follows it.
struct Scene {
    network: Network,
    server_address: String,
    _server: Running,
    collector: Collector,
    _agent: Agent,
    _directory: tempfile::TempDir,
}

impl Scene {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let network = Network::new(1);
        let server_address = format!("{SERVER}:443");
        let mut command = network.on_server(LAB);
        command.args(["server", &server_address]);
        let server = Running::start("the server", &mut command);
        server.line_with("listening", 0);
        let collector = Collector::start(&directory.path().join("collector"));
        let agent = agent(&network, directory.path());
        collector.follow(&agent.address);
        Self { network, server_address, _server: server, collector, _agent: agent, _directory: directory }
    }

    /// Connects, and waits until the collector has been told; the local end.
    fn connect(&self, client: &mut Running, name: &str) -> String {
        let local = client.ask(&format!("connect {name} {}", self.server_address));
        self.collector.json_until(&["who", &self.server_address, "--last", "1h"], |answer| {
            answer["hosts"].to_string().contains(&local)
        });
        local
    }

    fn list(&self, words: &[&str]) -> Value {
        let (status, listed) = self.collector.json(words);
        assert_eq!(status, 0, "{listed:#}");
        listed
    }

    /// What is said where something cannot be asked.
    fn refused(&self, words: &[&str]) -> String {
        let output = self.collector.alibi(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{words:?}: {said}");
        said
    }
}

fn agent(network: &Network, directory: &Path) -> Agent {
    let program = programs().agent.to_str().expect("a path in UTF-8");
    let command = network.on_laptop(0, "laptop-a", program);
    let listen = format!("unix:{}", directory.join("laptop-a.sock").display());
    let words = ["--source", "ebpf", "--own-network-namespace"];
    Agent::start_with(command, &directory.join("laptop-a"), &listen, &words)
}

fn rows<'a>(listed: &'a Value, name: &str) -> &'a [Value] {
    listed[name].as_array().unwrap_or_else(|| panic!("no {name} in {listed:#}"))
}

/// The agent's own process is listed, too: it connects to itself.
fn by_pid(listed: &Value, pid: u32) -> Option<&Value> {
    rows(listed, "processes").iter().find(|process| process["pid"] == pid)
}

fn time(value: &Value) -> Timestamp {
    serde_json::from_value(value.clone()).unwrap_or_else(|error| panic!("{value}: {error}"))
}

#[test]
fn the_query_of_the_story_misses_the_process_says_so_and_offers_the_one_that_finds_it() {
    if !met("the search", &[Requirement::NetworkNamespaces]) {
        return;
    }
    let scene = Scene::begin();
    let mut client = Running::start("a client", scene.network.on_laptop(0, "laptop-a", LAB).arg("client"));
    // Yesterday, as it were.
    scene.connect(&mut client, "first");
    assert_eq!(client.ask("close first"), "closed");
    scene.collector.json_until(&["who", &scene.server_address, "--last", "1h"], |answer| {
        answer["hosts"].to_string().contains(r#""state":"closed""#)
    });
    let from = now();
    let second = scene.connect(&mut client, "second");
    let host = scene.list(&["hosts"])["hosts"][0]["host"].as_str().unwrap().to_owned();

    // Word by word. The process is younger than ten minutes here, so it is found; that this is no answer is said all the same.
    let literal = format!("sensor_id:{host} netconn_count:[1 TO *] start:[NOW-10MINUTES TO NOW]");
    let listed = scene.list(&["search", &literal]);
    assert_eq!(listed["warnings"][0]["kind"], "start_is_not_activity", "{listed:#}");
    let process = by_pid(&listed, client.pid()).unwrap_or_else(|| panic!("{listed:#}"));
    assert_eq!(process["connections"], 2, "{process:#}");
    assert_eq!(listed["complete"], false, "recording had not begun ten minutes ago: {listed:#}");

    // In a window that the process is older than.
    let length = now().since(from).as_millis();
    let within = literal.replace("10MINUTES", &format!("{length}MILLISECONDS"));
    let listed = scene.list(&["search", &within]);
    assert_eq!(by_pid(&listed, client.pid()), None, "{listed:#}");
    let instead = listed["warnings"][0]["instead"].as_str().unwrap();
    assert!(instead.contains(&format!("activity:[NOW-{length}MILLISECONDS TO NOW]")), "{instead}");
    let found = scene.list(&["search", instead]);
    let process = by_pid(&found, client.pid()).unwrap_or_else(|| panic!("{found:#}"));
    assert_eq!(process["host_name"], "laptop-a");
    assert!(time(&process["started"]) < from, "{process:#}");
    assert_eq!(found["warnings"], Value::Array(vec![]));

    // The connection by itself, in a window that is over and was recorded without a gap.
    let (from, to) = (from.to_string(), now().to_string());
    let window = ["--from", from.as_str(), "--to", to.as_str()];
    let query = format!("ipaddr:{SERVER} ipport:443");
    let flows = scene.list(&[&["flows", query.as_str()], &window[..]].concat());
    assert_eq!(flows["complete"], true, "{flows:#}");
    for flow in rows(&flows, "flows") {
        assert_eq!((&flow["local"], &flow["process"]), (&second.as_str().into(), &process["process"]));
        assert_eq!((&flow["process_path"], &flow["pid"]), (&LAB.into(), &client.pid().into()));
        assert_eq!(flow["state"], "established");
    }
    assert!(!rows(&flows, "flows").is_empty(), "{flows:#}");
    let none = scene.list(&[&["flows", "ipport:444"], &window[..]].concat());
    assert_eq!((rows(&none, "flows").len(), &none["complete"]), (0, &true.into()), "{none:#}");

    // Nothing is added to it any more.
    assert_eq!(client.ask("close second"), "closed");
    scene.collector.json_until(&["who", &scene.server_address, "--from", &from], |answer| {
        answer["hosts"].to_string().contains(r#""state":"closed""#)
    });
    pages_are_the_whole_in_parts(&scene, &query);
    people_are_told(&scene, &within, &query);
}

fn pages_are_the_whole_in_parts(scene: &Scene, query: &str) {
    let to = now().to_string();
    for sort in ["time", "oldest", "bytes"] {
        let asked = ["flows", query, "--sort", sort, "--from", "-1h", "--to", &to];
        let whole = scene.list(&asked);
        let (mut parts, mut cursor) = (Vec::new(), None::<String>);
        loop {
            let further: Vec<&str> = cursor.iter().flat_map(|cursor| ["--cursor", cursor.as_str()]).collect();
            let page = scene.list(&[&asked[..], &["--limit", "1"], &further].concat());
            assert!(rows(&page, "flows").len() <= 1);
            parts.extend(rows(&page, "flows").iter().cloned());
            cursor = page["cursor"].as_str().map(str::to_owned);
            let Some(cursor) = &cursor else { break };
            let other = scene.refused(&["flows", "direction:inbound", "--sort", sort, "--cursor", cursor]);
            assert!(other.contains("the cursor is that of another question"), "{other}");
        }
        assert!(parts.len() >= 2, "{whole:#}");
        assert_eq!(rows(&whole, "flows"), parts, "{sort}");
    }
    let cut = scene.refused(&["flows", "--cursor", "AAAA"]);
    assert!(cut.contains("the cursor is cut or changed"), "{cut}");
}

fn people_are_told(scene: &Scene, within: &str, query: &str) {
    let said = scene.collector.said(&["search", within]);
    for wanted in [
        "warning: start tests when",
        "  alibi search '",
        "a search proves nothing about what it does not list",
    ] {
        assert!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    let said = scene.collector.said(&["flows", query]);
    assert!(said.contains("laptop-a") && said.contains(&scene.server_address), "{said}");
    let fields = scene.collector.said(&["search", "--fields"]);
    assert!(fields.contains("netconn_count") && fields.contains("process.command_line"), "{fields}");

    let near = scene.refused(&["search", "proces_name:x"]);
    assert!(near.contains("did you mean process_name"), "{near}");
    let deep = scene.refused(&["search", &"(".repeat(10_000)]);
    assert!(deep.contains("more than 32 brackets"), "{deep}");
    let host = scene.refused(&["search", "*", "--host", "nobody"]);
    assert!(host.contains("no host `nobody` is followed"), "{host}");

    let audit = scene.list(&["audit"]);
    let asked = |entry: &&Value| entry["action"] == "search" && entry["outcome"] == "ok";
    let entry = rows(&audit, "entries").iter().find(asked).unwrap_or_else(|| panic!("{audit:#}"));
    assert!(entry["detail"].as_str().unwrap().contains("netconn_count:[1 TO *]"), "{entry:#}");
}
