//! What was answered, in every format in which other programs take it.
//!
//! Of made answers every event is held against the published schemas ([`made`]). Here real programs record and answer: the rows
//! of one question are the same in each format, and a program with a hostile name is what it was called in all of them.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{os::unix::fs::symlink, path::Path, process::Output};

use alibi_lab::{
    network::{Network, SERVER},
    programs::programs,
    requirements::{Requirement, met},
    standards::{against_ecs, against_ocsf},
    system::{Agent, Collector, Running, nobodys_token, now, outcome},
};
use alibi_proto::time::Timestamp;
use parquet::{
    file::reader::{FileReader as _, SerializedFileReader},
    record::Field,
};
use serde_json::Value;

#[path = "exports/made.rs"]
mod made;

const LAB: &str = env!("CARGO_BIN_EXE_lab");
/// What a program may be called: it is a formula, steers a terminal, is HTML, and has what CSV has to quote.
const HOSTILE: &str = "=1+\u{1b}[2J<b>,\"";

/// A server, a laptop that talks to it and one that does not, and a collector.
struct World {
    network: Network,
    server_address: String,
    _server: Running,
    collector: Collector,
    _agents: [Agent; 2],
    directory: tempfile::TempDir,
}

impl World {
    fn begin() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let network = Network::new(2);
        let server_address = format!("{SERVER}:443");
        let mut command = network.on_server(LAB);
        command.args(["server", &server_address]);
        let server = Running::start("the server", &mut command);
        server.line_with("listening", 0);
        let collector = Collector::start(&directory.path().join("collector"));
        let agents = [0, 1].map(|laptop| agent(&network, laptop, directory.path()));
        for agent in &agents {
            collector.follow(&agent.address);
        }
        Self { network, server_address, _server: server, collector, _agents: agents, directory }
    }

    fn exported(&self, words: &[&str], format: &str) -> Output {
        self.collector.alibi(&[words, &["--format", format]].concat())
    }

    /// What the words list, as rows of each format, which are the same.
    fn rows(&self, words: &[&str], status: i32) -> Vec<Value> {
        let told = |format: &str| {
            let output = self.exported(words, format);
            assert_eq!(output.status.code(), Some(status), "{words:?} {format}: {output:?}");
            assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{words:?} {format}");
            output.stdout
        };
        let rows = lines(&told("ndjson"));
        let in_csv = csv_cells(&told("csv"));
        let in_parquet = parquet_cells(told("parquet"));
        assert_eq!((in_csv.len(), in_parquet.len()), (rows.len(), rows.len()));
        for (row, (csv, parquet)) in rows.iter().zip(in_csv.iter().zip(&in_parquet)) {
            let mut fields: Vec<_> =
                row.as_object().unwrap().iter().map(|(name, cell)| (name.clone(), text(cell))).collect();
            fields.sort();
            let still = |cells: &[(String, String)]| -> Vec<_> {
                cells.iter().filter(|(name, _)| name != MOVES).cloned().collect()
            };
            assert_eq!((still(&fields), still(&fields)), (still(csv), still(parquet)));
        }
        rows
    }

    fn events(&self, words: &[&str]) -> [Vec<Value>; 2] {
        ["ecs", "ocsf"].map(|format| {
            let output = self.exported(words, format);
            assert_eq!(output.status.code(), Some(0), "{words:?} {format}: {output:?}");
            let events = lines(&output.stdout);
            let against = if format == "ecs" { against_ecs } else { against_ocsf };
            for event in &events {
                assert_eq!(against(event), Vec::<String>::new(), "{event:#}");
            }
            events
        })
    }
}

fn agent(network: &Network, laptop: usize, directory: &Path) -> Agent {
    let name = ["laptop-a", "laptop-b"][laptop];
    let program = programs().agent.to_str().expect("a path in UTF-8");
    let command = network.on_laptop(laptop, name, program);
    let listen = format!("unix:{}", directory.join(format!("{name}.sock")).display());
    let words = ["--source", "ebpf", "--own-network-namespace"];
    Agent::start_with(command, &directory.join(name), &listen, &words)
}

/// An object a line.
fn lines(bytes: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(!text.contains('\u{1b}'), "what would steer a terminal is escaped: {text:?}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A cell as the text that it has in CSV.
fn text(cell: &Value) -> String {
    match cell {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A column that moves on between two questions: until when a host is known.
const MOVES: &str = "known_until";

/// Each row of CSV by its columns, in order of their names, without what guards against formulas.
fn csv_cells(bytes: &[u8]) -> Vec<Vec<(String, String)>> {
    let mut reader = csv::Reader::from_reader(bytes);
    let names = reader.headers().unwrap().clone();
    let rows = reader.records().map(|record| {
        let record = record.unwrap();
        let cells = names.iter().zip(record.iter()).map(|(name, cell)| {
            assert!(!cell.starts_with(['=', '+', '@']), "{cell:?}");
            (name.to_owned(), cell.strip_prefix('\'').unwrap_or(cell).to_owned())
        });
        let mut cells: Vec<_> = cells.collect();
        cells.sort();
        cells
    });
    rows.collect()
}

/// The same of Parquet, whose instants are numbers.
fn parquet_cells(bytes: Vec<u8>) -> Vec<Vec<(String, String)>> {
    let reader = SerializedFileReader::new(prost::bytes::Bytes::from(bytes)).unwrap();
    let schema = reader.metadata().file_metadata().schema_descr_ptr();
    let is_time = |index: usize| {
        schema
            .column(index)
            .logical_type_ref()
            .is_some_and(|kind| matches!(kind, parquet::basic::LogicalType::Timestamp { .. }))
    };
    let rows = reader.get_row_iter(None).unwrap().map(|row| {
        let row = row.unwrap();
        let cells = row.get_column_iter().enumerate().map(|(index, (name, field))| {
            let cell = match field {
                Field::Null => String::new(),
                Field::Str(text) => text.clone(),
                Field::Bool(is) => is.to_string(),
                Field::Long(nanos) if is_time(index) => {
                    Timestamp::from_nanos(u64::try_from(*nanos).unwrap()).to_string()
                }
                Field::Long(number) => number.to_string(),
                other => panic!("{name}: {other:?}"),
            };
            (name.clone(), cell)
        });
        let mut cells: Vec<_> = cells.collect();
        cells.sort();
        cells
    });
    rows.collect()
}

#[test]
fn one_answer_is_the_same_in_every_format() {
    if !met("exports", &[Requirement::NetworkNamespaces]) {
        return;
    }
    let world = World::begin();
    let from = now();
    let program = world.directory.path().join(HOSTILE);
    symlink(LAB, &program).unwrap();
    let mut command = world.network.on_laptop(0, "laptop-a", program.to_str().unwrap());
    command.arg("client");
    let mut client = Running::start("a client", &mut command);
    let local = client.ask(&format!("connect one {}", world.server_address));
    assert_eq!(client.ask("close one"), "closed");
    world.collector.json_until(&["who", &world.server_address, "--from", &from.to_string()], |answer| {
        // What is found out of the executable comes later.
        let hosts = answer["hosts"].to_string();
        hosts.contains(r#""state":"closed""#) && hosts.contains(r#""sha256":""#)
    });
    let (from, to) = (from.to_string(), now().to_string());
    let question = ["who", &world.server_address, "--from", &from, "--to", &to];
    let (status, answer) = {
        let json = world.exported(&question, "json");
        let answer: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(world.collector.json(&question).1["hosts"].as_array().map(Vec::len), Some(2));
        (json.status.code(), answer)
    };
    assert_eq!(status, Some(0), "{answer:#}");
    let talker = answer["hosts"].as_array().unwrap().iter().find(|host| host["verdict"] == "talked").unwrap();
    let (process, flow) = (&talker["processes"][0], &talker["processes"][0]["flows"][0]);
    assert_eq!(flow["local"], local.as_str());

    let rows = world.rows(&question, 0);
    assert_eq!(rows.len(), 2, "{rows:#?}");
    let row = |verdict: &str| rows.iter().find(|row| row["verdict"] == verdict).unwrap();
    let (talked, clear) = (row("talked"), row("clear"));
    assert_eq!((&talked["host_name"], &talked["process"]), (&"laptop-a".into(), &process["process"]));
    assert_eq!(talked["arguments"][0], program.to_str().unwrap(), "the data as it was");
    assert_eq!((&talked["community_id"], &talked["first"]), (&flow["community_id"], &flow["first"]));
    assert!(
        flow["community_id"].as_str().is_some_and(|id| id.starts_with("1:") && id.len() == 30),
        "{flow:#}"
    );
    assert_eq!(
        format!("{}:{}", text(&talked["local_address"]), talked["local_port"]),
        local,
        "address and port are columns of their own"
    );
    assert_eq!((&clear["host_name"], &clear["connection"]), (&"laptop-b".into(), &Value::Null));
    assert_eq!((&clear["gaps"], &clear["window_from"]), (&Value::Array(Vec::new()), &from.as_str().into()));
    // The exit status is that of the answer, whatever the format.
    world.rows(&[&question[..], &["--host", "laptop-b"]].concat(), 1);
    // A terminal shows the name as text.
    let table = world.collector.alibi(&question);
    let shown = String::from_utf8(table.stdout).unwrap();
    assert!(!shown.contains('\u{1b}') && shown.contains("=1+?[2J<b>"), "{shown:?}");

    let [ecs, ocsf] = world.events(&question);
    assert_eq!((ecs.len(), ocsf.len()), (3, 3), "two verdicts and a connection");
    let is_network = |event: &&Value| event["event"]["category"][0] == "network";
    let event = ecs.iter().find(is_network).unwrap();
    assert_eq!(event["network"]["community_id"], flow["community_id"]);
    assert_eq!(
        (&event["process"]["entity_id"], &event["alibi"]["verdict"]),
        (&process["process"], &"talked".into())
    );
    let event = ocsf.iter().find(|event| event["class_uid"] == 4001).unwrap();
    assert_eq!(event["connection_info"]["community_uid"], flow["community_id"]);
    assert_eq!(event["actor"]["process"]["pid"], process["pid"]);

    let uid = process["process"].as_str().unwrap();
    let rows = world.rows(&["process", uid], 0);
    assert_eq!((&rows[0]["relation"], &rows[0]["community_id"]), (&"process".into(), &flow["community_id"]));
    assert!(rows.iter().any(|row| row["relation"] == "ancestor"), "{rows:#?}");
    let [ecs, ocsf] = world.events(&["process", uid]);
    assert_eq!(ecs.len(), ocsf.len());
    let actions: Vec<_> = ecs.iter().map(|event| event["event"]["action"].as_str().unwrap()).collect();
    assert!(
        ["process_started", "process_executed", "connection_closed"]
            .iter()
            .all(|action| actions.contains(action)),
        "{actions:?}"
    );

    // Hosts change from one moment to the next: each format is looked at alone.
    let hosts = lines(&world.exported(&["hosts"], "ndjson").stdout);
    let names: Vec<_> = hosts.iter().map(|host| host["name"].clone()).collect();
    assert_eq!(names, ["laptop-a", "laptop-b"]);
    assert_eq!(csv_cells(&world.exported(&["hosts"], "csv").stdout).len(), 2);
    assert_eq!(parquet_cells(world.exported(&["hosts"], "parquet").stdout).len(), 2);
    let [ecs, ocsf] = world.events(&["hosts"]);
    assert_eq!((ecs.len(), &ocsf[0]["device"]["hostname"]), (2, &"laptop-a".into()));

    // What is cut says so, beside the rows.
    let cut = world.exported(&["audit", "--limit", "1"], "csv");
    assert_eq!(csv_cells(&cut.stdout).len(), 1);
    let notice = String::from_utf8(cut.stderr).unwrap();
    assert!(notice.starts_with("alibi: older ones: --before "), "{notice}");
    // So do tokens, each time that they are used.
    let credentials = lines(&world.exported(&["token", "list"], "ndjson").stdout);
    let kinds: Vec<_> = credentials.iter().map(|credential| credential["kind"].clone()).collect();
    assert_eq!(kinds, ["analyst certificate", "analyst token"], "{credentials:#?}");
    assert_eq!(parquet_cells(world.exported(&["token", "list"], "parquet").stdout).len(), 2);
    assert_eq!(world.rows(&["ca", "list"], 0)[0]["state"], "signs");
}

/// Where no collector is.
const NOWHERE: &str = "127.0.0.1:1";

/// Nobody is asked: there is nobody, who would be missed.
#[test]
fn what_a_listing_cannot_be_printed_as_is_refused_before_anybody_is_asked() {
    let refused = |words: &[&str]| {
        let mut command = std::process::Command::new(&programs().alibi);
        command.args(words).env("ALIBI_COLLECTOR", NOWHERE).env("ALIBI_TOKEN", nobodys_token(NOWHERE));
        let output = outcome(&mut command);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{words:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for words in [&["token", "list"][..], &["audit"], &["ca", "list"]] {
        for format in ["ecs", "ocsf"] {
            let said = refused(&[words, &["--format", format]].concat());
            let wanted = format!(
                "alibi: `alibi {}` lists no events, and --format {format} is for events: take one of table, json, ndjson, csv, parquet\n",
                words.join(" ")
            );
            assert_eq!(said, wanted);
        }
    }
    let said = refused(&["hosts", "--format", "xml"]);
    assert!(
        said.starts_with("alibi: invalid value 'xml' for '--format <WORD>'") && said.contains("parquet"),
        "{said}"
    );
    let said = refused(&["hosts", "--format", "csv", "--json"]);
    assert!(said.contains("cannot be used with"), "{said}");
}
