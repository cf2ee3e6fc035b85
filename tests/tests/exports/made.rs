//! Made answers, in all the ways in which one can be: every event of them holds against the schemas, and no verdict is lost.

use std::{net::SocketAddr, sync::Arc};

use alibi_collector::export::{
    Listing, Table,
    executables::ListedExecutables,
    hosts::ListedHosts,
    process::{More, ShownProcess},
    table::Cell,
    top::Top,
};
use alibi_lab::standards::{against_ecs, against_ocsf};
use alibi_proto::{
    chain::{ChainBreak, ChainStatus},
    coverage::{Facet, Gap, Grade, Scope},
    executable::{
        ExecutableRecord, ExecutableSighting, FileIdentity, Package, Sha256, Signature, SignatureStatus,
    },
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    host::{ClockStatus, HostDescription, HostEnrolment, HostStatus, UserPresence},
    id::{ConnectionUid, Epoch, HostId, ProcessUid, Seq},
    name::{NameSource, RemoteName},
    process::{ProcessExecution, ProcessExit, ProcessImage, ProcessLife, ProcessRecord, User},
    question::{
        Answer, AnswerClock, ConnectionActivity, HostAnswer, InWindow, ProcessActivity, Question, Verdict,
    },
    target::Target,
    time::Timestamp,
    window::Window,
    wire,
};
use serde_json::Value;

const HOSTILE: &str = "=cmd\u{1b}[2J<script>";

fn at(second: u64) -> Timestamp {
    Timestamp::from_nanos(1_764_000_000_123_456_789 + second * 1_000_000_000)
}

fn flow(state: FlowState, direction: Direction, ends: (&str, &str)) -> FlowRecord {
    let end = |text: &str| text.parse::<SocketAddr>().unwrap();
    FlowRecord {
        connection: ConnectionUid::from_bytes([1; 16]),
        process: None,
        attribution: Attribution::InKernel,
        protocol: if direction == Direction::Outbound { Protocol::Tcp } else { Protocol::Udp },
        direction,
        local: end(ends.0),
        remote: end(ends.1),
        opened: at(1),
        already_open: false,
        first: at(1),
        last: at(5),
        traffic: (state == FlowState::Closed).then_some(Traffic {
            bytes_sent: 1,
            bytes_received: 2,
            packets_sent: 3,
            packets_received: 4,
            packets_retransmitted: 0,
        }),
        state,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: Some(RemoteName { name: "cloud.example.com".into(), source: NameSource::Dns }),
    }
}

/// In every state, each way, over every kind of address.
fn flows() -> Vec<FlowRecord> {
    let states = [
        FlowState::Attempted,
        FlowState::Established,
        FlowState::Closed,
        FlowState::Failed(104),
        FlowState::Failed(111),
        FlowState::Failed(0),
    ];
    let ends = [
        ("203.0.113.1:40670", "198.51.100.7:443"),
        ("[2001:db8::1]:40670", "[2001:db8::2]:443"),
        ("[::ffff:203.0.113.1]:40670", "[::ffff:198.51.100.7]:443"),
        ("127.0.0.1:40670", "127.0.0.1:443"),
        ("0.0.0.0:0", "198.51.100.7:53"),
    ];
    let mut flows = Vec::new();
    for state in states {
        for ends in ends {
            flows.extend(
                [Direction::Outbound, Direction::Inbound].map(|direction| flow(state, direction, ends)),
            );
        }
    }
    flows
}

fn image(path: Option<&str>) -> ProcessImage {
    ProcessImage {
        path: path.map(str::to_owned),
        name: HOSTILE.into(),
        arguments: vec![HOSTILE.into(), "b c".into()],
        user: Some(User { id: "1000".into(), name: Some("jdoe".into()) }),
        effective_user: Some(User { id: "0".into(), name: None }),
        file: Some(FileIdentity { device: 1, inode: 2, modified: at(0), size: 3 }),
        ..ProcessImage::default()
    }
}

fn life(signature: Option<SignatureStatus>) -> ProcessLife {
    let uid = ProcessUid::from_bytes([2; 16]);
    let record = ProcessRecord {
        uid,
        pid: 7,
        parent: Some(ProcessUid::from_bytes([3; 16])),
        parent_pid: Some(1),
        started: at(0),
        already_running: false,
        image: image(Some("/usr/bin/sh")),
    };
    let executable = ExecutableRecord {
        at: at(0),
        path: "/opt/x".into(),
        file: None,
        sha256: Some(Sha256::from_bytes([9; 32])),
        first_on_host: true,
        package: Some(Package { name: "x".into(), version: "1".into(), source: "dpkg".into() }),
        sighting: ExecutableSighting::Run,
        process: None,
        problem: None,
        signature: signature.map(|status| Signature::of_status(status, None)),
        version: None,
    };
    ProcessLife {
        executions: vec![ProcessExecution { uid, executed: at(1), image: image(Some("/opt/x")) }],
        executable: vec![executable],
        ..ProcessLife::new(record, Some(ProcessExit { uid, exited: at(9), exit_code: Some(-1) }))
    }
}

/// One of which next to nothing is known.
fn bare() -> ProcessLife {
    let record = ProcessRecord {
        uid: ProcessUid::from_bytes([4; 16]),
        pid: 8,
        parent: None,
        parent_pid: None,
        started: at(0),
        already_running: true,
        image: ProcessImage { name: "kworker".into(), ..ProcessImage::default() },
    };
    ProcessLife::new(record.clone(), Some(ProcessExit { uid: record.uid, exited: at(2), exit_code: None }))
}

/// A process just started, by nobody that is known.
fn orphan() -> ProcessLife {
    let mut life = bare();
    life.record.already_running = false;
    life.exit = None;
    life
}

fn host(name: &str, verdict: Verdict, gaps: Vec<Gap>, processes: Vec<ProcessActivity>) -> HostAnswer {
    HostAnswer {
        host: (name != "never answered").then(|| HostId::from_bytes([5; 16])),
        name: name.into(),
        verdict,
        gaps,
        processes,
        scopes: vec![Arc::new(Scope {
            source: "ebpf".into(),
            covers: "TCP".into(),
            cannot_see: "raw".into(),
        })],
        known_until: Some(at(20)),
        records_left_out: 0,
        clock: None,
    }
}

fn answer() -> Answer {
    let connections = |flows: Vec<FlowRecord>| -> Vec<ConnectionActivity> {
        flows
            .into_iter()
            .map(|flow| ConnectionActivity { flow, in_window: InWindow::Bytes, in_margin: false })
            .collect()
    };
    let of = |uid: u8, life: Option<ProcessLife>, flows| ProcessActivity {
        uid: (uid > 0).then(|| ProcessUid::from_bytes([uid; 16])),
        life,
        connections: connections(flows),
    };
    let one = || vec![flow(FlowState::Closed, Direction::Outbound, ("203.0.113.1:1", "198.51.100.7:443"))];
    let processes = vec![
        of(2, Some(life(None)), flows()),
        of(4, Some(bare()), one()),
        of(6, None, one()),
        of(0, None, one()),
    ];
    let grades = [
        Grade::Lost { count: 3, reason: "overwritten".into() },
        Grade::NotRecorded { reason: HOSTILE.into() },
        Grade::Doubtful { reason: "a clock was set".into() },
    ];
    let gaps = grades.map(|grade| Gap { facet: Facet::Connections, grade, from: at(2), to: at(3) }).to_vec();
    let window = Window::new(at(0), at(10)).unwrap();
    let clock = AnswerClock { offset_ns: -1_500_000, bound_ns: 10, window };
    Answer {
        question: Question { target: Target::parse("198.51.100.7", None, None).unwrap(), window },
        addresses: Vec::new(),
        hosts: vec![
            HostAnswer {
                records_left_out: 4,
                clock: Some(clock),
                ..host("a", Verdict::Talked, gaps.clone(), processes)
            },
            host("b", Verdict::Clear, Vec::new(), Vec::new()),
            host("c", Verdict::Unknown, gaps, Vec::new()),
            HostAnswer {
                known_until: None,
                scopes: Vec::new(),
                ..host("never answered", Verdict::Unknown, Vec::new(), Vec::new())
            },
        ],
    }
}

fn shown() -> ShownProcess {
    use SignatureStatus::{Invalid, NotChecked, Trusted, Unsigned, Untrusted};
    let signed = [Trusted, Untrusted, Invalid, Unsigned, NotChecked];
    ShownProcess {
        host: HostId::from_bytes([5; 16]),
        host_name: "laptop-a".into(),
        process: life(None),
        ancestors: signed.map(|status| life(Some(status))).to_vec(),
        children: vec![bare(), orphan()],
        connections: flows(),
        left_out: 2,
        damage: vec!["a file is missing".into()],
        clock: Some(ClockStatus { offset_ns: 1_000, bound_ns: 1, measured: at(0) }),
        more: More::default(),
    }
}

fn listed() -> ListedHosts {
    let silent = HostStatus {
        address: "127.0.0.1:1".into(),
        description: None,
        connected: false,
        heard: None,
        known_until: None,
        trouble: Some("it is refused".into()),
        events: 0,
        clock: None,
        chain: ChainStatus::default(),
        from: None,
        enrolment: None,
    };
    let id = HostId::from_bytes([5; 16]);
    let enrolment = HostEnrolment {
        host: id,
        name: "laptop-b".into(),
        enrolled: at(0),
        certificate_until: at(9),
        tags: vec!["berlin".into()],
        revoked: Some(at(3)),
        copied: Some("in two places".into()),
    };
    let described = |os: &str, os_version: &str| HostStatus {
        description: Some(HostDescription {
            host: id,
            name: "laptop-a".into(),
            os: os.into(),
            os_version: os_version.into(),
            machine_id: None,
            boot_id: "b".into(),
            booted: at(0),
            agent_version: "0.1.0".into(),
            users: vec![UserPresence {
                user: User { id: "0".into(), name: Some("root".into()) },
                processes: 2,
            }],
            sources: Vec::new(),
            epoch: Epoch(1),
            first_seq: Seq::FIRST,
            next_seq: Seq::FIRST,
        }),
        heard: Some(at(8)),
        known_until: Some(at(8)),
        clock: Some(ClockStatus { offset_ns: 0, bound_ns: 0, measured: at(0) }),
        chain: ChainStatus {
            anchored: None,
            breaks: vec![ChainBreak {
                at: at(1),
                epoch: Epoch(u64::MAX),
                seq: Seq(3),
                reason: "rewound".into(),
            }],
        },
        ..silent.clone()
    };
    let enrolled = HostStatus { enrolment: Some(enrolment), ..silent.clone() };
    let systems = [("linux", "Debian"), ("windows", "11"), ("macos", "26"), ("plan9", "")];
    let hosts = [silent.clone(), enrolled].into_iter();
    ListedHosts {
        hosts: hosts.chain(systems.map(|(os, version)| described(os, version))).collect(),
        now: at(10),
    }
}

fn cells<'a>(table: &'a Table, name: &str) -> Vec<&'a Cell> {
    let index = table.columns().iter().position(|(column, _)| *column == name).unwrap();
    table.rows().iter().map(|row| &row[index]).collect()
}

/// So many events, each of which holds against its schema.
fn holds(listing: &impl Listing, count: usize) -> (Vec<Value>, Vec<Value>) {
    let (ecs, ocsf) = (listing.ecs(), listing.ocsf());
    assert_eq!((ecs.len(), ocsf.len()), (count, count));
    for document in &ecs {
        assert_eq!(against_ecs(document), Vec::<String>::new(), "{document:#}");
    }
    for document in &ocsf {
        assert_eq!(against_ocsf(document), Vec::<String>::new(), "{document:#}");
    }
    (ecs, ocsf)
}

#[test]
fn no_verdict_is_lost() {
    let answer = answer();
    let table = answer.table();
    let matches = flows().len() + 3;
    assert_eq!(table.rows().len(), matches + 3, "a row each match, and each host without any");
    let verdicts = cells(&table, "verdict");
    assert!(verdicts[..matches].iter().all(|cell| **cell == Cell::Text("talked".into())));
    let others: Vec<_> = verdicts[matches..].to_vec();
    assert_eq!(
        others,
        ["clear", "unknown", "unknown"].map(|word| Cell::Text(word.into())).iter().collect::<Vec<_>>()
    );
    // Its gaps are in each row of a host, and none are no gaps.
    let gaps = cells(&table, "gaps").into_iter().map(|cell| match cell {
        Cell::List(Value::Array(gaps)) => gaps.len(),
        other => panic!("{other:?}"),
    });
    let gaps: Vec<_> = gaps.collect();
    assert!(gaps[..matches].iter().all(|count| *count == 3));
    assert_eq!(gaps[matches..], [0, 3, 0]);
    assert_eq!(cells(&table, "host").last(), Some(&&Cell::Absent));
    assert_eq!(answer.notices(), ["4 more records of a matched and are left out: ask about less time"]);

    let (ecs, ocsf) = holds(&answer, matches + 4);
    let verdict = |documents: &[Value], at: &str| -> Vec<Value> {
        documents.iter().map(|document| document.pointer(at).cloned().unwrap()).collect()
    };
    for verdicts in [verdict(&ecs, "/alibi/verdict"), verdict(&ocsf, "/unmapped/verdict")] {
        assert!(verdicts[..=matches].iter().all(|verdict| verdict == "talked"));
        assert_eq!(verdicts[matches + 1..], ["clear", "unknown", "unknown"]);
    }
}

#[test]
fn source_and_destination_are_who_asked_and_who_was_asked() {
    let (ecs, ocsf) = holds(&answer(), flows().len() + 7);
    let closed = |direction: &str| {
        let is = |document: &&Value| {
            document["event"]["action"] == "connection_closed"
                && document["network"]["direction"] == direction
        };
        ecs.iter().zip(&ocsf).find(|(ecs, _)| is(ecs)).unwrap()
    };
    let (ecs, ocsf) = closed("egress");
    assert_eq!((&ecs["source"]["bytes"], &ecs["destination"]["bytes"]), (&1.into(), &2.into()));
    assert_eq!(
        (&ecs["source"]["ip"], &ecs["destination"]["domain"]),
        (&"203.0.113.1".into(), &"cloud.example.com".into())
    );
    assert_eq!((&ocsf["traffic"]["bytes_out"], &ocsf["traffic"]["bytes_in"]), (&1.into(), &2.into()));
    assert_eq!((&ocsf["dst_endpoint"]["port"], &ocsf["type_uid"]), (&443.into(), &400_102.into()));
    assert_eq!(ecs["process"]["name"], HOSTILE, "the data as it is");
    assert_eq!(ecs["network"]["community_id"], ocsf["connection_info"]["community_uid"]);
    let (ecs, ocsf) = closed("ingress");
    assert_eq!((&ecs["source"]["bytes"], &ecs["destination"]["bytes"]), (&2.into(), &1.into()));
    assert_eq!((&ocsf["traffic"]["bytes_out"], &ocsf["traffic"]["bytes_in"]), (&2.into(), &1.into()));
    assert_eq!(
        (&ocsf["src_endpoint"]["port"], &ocsf["connection_info"]["direction_id"]),
        (&443.into(), &1.into())
    );
}

#[test]
fn a_life_is_told_event_by_event() {
    let shown = shown();
    assert_eq!(shown.table().rows().len(), flows().len() + 7);
    assert_eq!(
        shown.notices(),
        [
            "2 more children and connection records are left out",
            "connections may be missing: a file is missing"
        ]
    );
    // Six lives of a start, another program and an end; one that was found and ended; one that began.
    let (ecs, ocsf) = holds(&shown, 6 * 3 + 2 + 1 + flows().len());
    let actions: Vec<_> = ecs.iter().take(3).map(|document| document["event"]["action"].clone()).collect();
    assert_eq!(actions, ["process_started", "process_executed", "process_ended"]);
    // What is on record of the last program is not said of the first.
    assert_eq!(
        (&ecs[0]["process"]["executable"], &ecs[0]["process"]["hash"]),
        (&"/usr/bin/sh".into(), &Value::Null)
    );
    assert_eq!(ecs[1]["process"]["hash"]["sha256"], "09".repeat(32));
    assert_eq!(
        (&ecs[2]["process"]["exit_code"], &ecs[0]["process"]["exit_code"]),
        (&(-1).into(), &Value::Null)
    );
    let types: Vec<_> = ocsf.iter().take(3).map(|document| document["type_uid"].clone()).collect();
    assert_eq!(types, [100_701, 100_701, 100_702]);
    let orphan = ocsf.iter().rfind(|document| document["class_uid"] == 1007).unwrap();
    assert_eq!(orphan["actor"], serde_json::json!({"app_name": "Unknown"}));
}

#[test]
fn hosts_hold_whatever_is_known_of_them() {
    let listed = listed();
    let (ecs, ocsf) = holds(&listed, listed.hosts.len());
    assert_eq!(listed.table().rows().len(), listed.hosts.len());
    assert_eq!((&ecs[0]["host"], &ocsf[0]["device"]["hostname"]), (&Value::Null, &"127.0.0.1:1".into()));
    assert_eq!((&ecs[1]["host"]["name"], &ecs[1]["tags"][0]), (&"laptop-b".into(), &"berlin".into()));
    assert_eq!(
        (&ecs[2]["host"]["os"]["type"], &ocsf[5]["device"]["os"]["type_id"]),
        (&"linux".into(), &0.into())
    );
}

#[test]
fn an_executable_is_told_as_it_was_first_seen() {
    let times =
        |first: u64| wire::SeenTimes { first_ns: at(first).as_nanos(), last_ns: at(first + 1).as_nanos() };
    let prevalence = |run: Option<u64>, written: Option<u64>, sha256: Option<Vec<u8>>| wire::Prevalence {
        sha256,
        hosts: 2,
        hosts_known: 3,
        host_run: run.map(times),
        host_written: written.map(times),
        ..wire::Prevalence::default()
    };
    let seen = |paths: &[&str], prevalence, about: Option<wire::ExecutableAbout>| wire::SeenExecutable {
        host: vec![5; 16],
        host_name: "laptop-a".into(),
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        prevalence: Some(prevalence),
        about,
        ..wire::SeenExecutable::default()
    };
    let written = seen(&["C:\\Tools\\x.exe", HOSTILE], prevalence(Some(2), Some(1), Some(vec![9; 32])), None);
    let response = wire::ExecutablesResponse {
        executables: vec![written, seen(&[], prevalence(Some(3), None, None), None)],
        ..wire::ExecutablesResponse::default()
    };
    let window = Window::new(at(0), at(10)).unwrap();
    let listed = ListedExecutables::new(window, response).unwrap();
    let (ecs, ocsf) = holds(&listed, 2);
    assert_eq!(
        (&ecs[0]["event"]["type"][0], &ecs[0]["file"]["name"], &ecs[0]["file"]["hash"]["sha256"]),
        (&"creation".into(), &"x.exe".into(), &"09".repeat(32).into())
    );
    assert_eq!(
        (&ecs[0]["@timestamp"], &ecs[1]["event"]["type"][0]),
        (&at(1).to_string().into(), &"info".into())
    );
    assert_eq!((&ecs[1]["file"], &ocsf[1]["file"]["name"]), (&Value::Null, &"Unknown".into()));
    assert_eq!((&ocsf[0]["type_uid"], &ocsf[1]["type_uid"]), (&100_101.into(), &100_199.into()));
    assert_eq!(ocsf[0]["unmapped"]["prevalence"]["hosts"], 2);
}

#[test]
fn what_connections_come_to_is_told_of_whatever_it_is_of() {
    let total = wire::Total {
        connections: 3,
        records: 4,
        bytes_sent: 5,
        bytes_received: 6,
        ..wire::Total::default()
    };
    let row = wire::TopRow { hosts: 1, processes: 2, total: Some(total), ..wire::TopRow::default() };
    let window = Window::new(at(0), at(10)).unwrap();
    let told = |of, row| {
        let response = wire::TopResponse { rows: vec![row], ..wire::TopResponse::default() };
        let (mut ecs, mut ocsf) = holds(&Top::new(window, of, "bytes", response).unwrap(), 1);
        (ecs.remove(0), ocsf.remove(0))
    };
    let remote = wire::TopRow {
        remote: Some("2001:db8::7".into()),
        names: vec!["cloud.example.com".into()],
        ports: vec![443, 80],
        ..row.clone()
    };
    let (ecs, ocsf) = told(wire::TopOf::Remotes, remote);
    assert_eq!((&ecs["destination"]["ip"], &ecs["network"]["bytes"]), (&"2001:db8::7".into(), &11.into()));
    assert_eq!((&ecs["event"]["kind"], &ecs["destination"]["port"]), (&"metric".into(), &Value::Null));
    assert_eq!((&ocsf["count"], &ocsf["traffic"]["bytes_out"]), (&3.into(), &5.into()));
    assert_eq!(ocsf["dst_endpoint"]["hostname"], "cloud.example.com");

    let process = wire::TopRow {
        path: Some("/opt/x".into()),
        name: Some(HOSTILE.into()),
        sha256: Some(vec![9; 32]),
        process_uid: Some(vec![2; 16]),
        ..row.clone()
    };
    let (ecs, ocsf) = told(wire::TopOf::Processes, process);
    assert_eq!(
        (&ecs["process"]["name"], &ocsf["src_endpoint"]["hostname"]),
        (&HOSTILE.into(), &"Unknown".into())
    );
    assert_eq!(ocsf["actor"]["process"]["uid"], "02".repeat(16));

    let host = wire::TopRow { host: Some(vec![5; 16]), host_name: Some("laptop-a".into()), ..row };
    let (ecs, ocsf) = told(wire::TopOf::Hosts, host);
    assert_eq!((&ecs["host"]["name"], &ocsf["device"]["hostname"]), (&"laptop-a".into(), &"laptop-a".into()));
}
