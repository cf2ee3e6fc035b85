use alibi_proto::{
    clock::Difference,
    flow::{Attribution, Direction, FlowEndReason, FlowRecord, FlowState, Protocol, Traffic},
    id::{ConnectionUid, HostId, ProcessUid},
    name::{NameSource, RemoteName},
    process::{ProcessExecution, ProcessExit, ProcessImage, ProcessLife, ProcessRecord, User},
};

use super::*;
use crate::search::{
    advice,
    document::{Connection, Document, Seen, Truth},
    fields::Subject,
    hints::{self, RecordHints},
};

const NOW: Timestamp = Timestamp::from_secs(1_000_000);
const HOST: HostId = HostId::from_bytes([0xab; 16]);

fn processes(text: &str) -> Result<Tree, QueryError> {
    parse(text, Searched::Processes, NOW)
}

fn life(name: &str, started: u64) -> ProcessLife {
    let image = ProcessImage {
        path: Some(format!("C:\\Program Files\\Tools\\{name}")),
        name: name.into(),
        arguments: vec![name.into(), "--resume".into(), "a*b?c".into(), "--wait=-30s".into()],
        user: Some(User { id: "S-1-5-21-7".into(), name: Some("CORP\\jdoe".into()) }),
        ..ProcessImage::default()
    };
    ProcessLife::new(
        ProcessRecord {
            uid: ProcessUid::from_bytes([0x6f; 16]),
            pid: 4711,
            parent: None,
            parent_pid: Some(1),
            started: Timestamp::from_secs(started),
            already_running: false,
            image,
        },
        None,
    )
}

fn flow(connection: u8, remote: &str, first: u64, last: u64) -> FlowRecord {
    FlowRecord {
        connection: ConnectionUid::from_bytes([connection; 16]),
        process: Some(ProcessUid::from_bytes([0x6f; 16])),
        attribution: Attribution::InKernel,
        protocol: Protocol::Tcp,
        direction: Direction::Outbound,
        local: "192.0.2.1:5000".parse().unwrap(),
        remote: remote.parse().unwrap(),
        opened: Timestamp::from_secs(first),
        already_open: false,
        first: Timestamp::from_secs(first),
        last: Timestamp::from_secs(last),
        traffic: Some(Traffic { bytes_sent: 5, bytes_received: 10, ..Traffic::default() }),
        state: FlowState::Closed,
        end_reason: FlowEndReason::EndOfFlow,
        record: 0,
        interface: None,
        network_namespace: None,
        round_trip: None,
        remote_name: Some(RemoteName { name: "cloud.example.com".into(), source: NameSource::Dns }),
    }
}

fn document<'a>(life: Option<&'a ProcessLife>, connections: &'a [Connection]) -> Document<'a> {
    Document {
        searched: Searched::Processes,
        host: HOST,
        host_name: "laptop-a",
        clock: Difference::ZERO,
        process: Seen::Known(life),
        parent: Seen::Known(None),
        connections: Seen::Known(connections),
    }
}

/// The process of the story: started long before, with a connection in the last ten minutes.
fn fits(query: &str) -> bool {
    let life = life("WinSCP.exe", 900_000);
    let connections = Connection::of_records(vec![
        flow(1, "203.0.113.9:22", 999_700, 999_800),
        flow(1, "203.0.113.9:22", 999_800, 999_850),
        flow(2, "[2001:db8::1]:443", 950_000, 950_001),
    ]);
    let tree = processes(query).unwrap_or_else(|error| panic!("{query}: {error}"));
    tree.holds(&document(Some(&life), &connections)) == Truth::Yes
}

#[test]
fn queries_of_carbon_black_and_elastic_mean_what_they_mean_there() {
    for query in [
        "",
        "*",
        "sensor_id:abababab-abab-abab-abab-abababababab",
        "sensor_id:ABABABAB-*",
        "hostname:laptop-? username:jdoe",
        "user.name:corp\\\\jdoe",
        "process_name:winscp.exe",
        "process.name:(putty.exe OR winscp.exe)",
        "process_name:IN [putty.exe win*]",
        "cmdline:resume",
        "cmdline:\"--resume a*b?c\"",
        "cmdline:a\\*b\\?c",
        "cmdline:*a\\*b*",
        "cmdline:*wait=-30s",
        "*wait=-30s",
        "process.command_line:*wait\\=\\-30s*",
        "path:C\\:\\\\Program\\ Files\\\\Tools\\\\WinSCP.exe",
        "path:*\\Tools*",
        "ipaddr:[2001\\:db8\\:\\: TO *]",
        "path:\"C:\\Program Files\\Tools\"",
        "path:\"C:\\\\Program Files\\\\\"",
        "path:*\\\\winscp.exe",
        "netconn_count:[1 TO *]",
        "netconn_count:2",
        "netconn_count:>1 netconn_count:<=2",
        "netconn_count:{1 TO 3}",
        "ipaddr:203.0.113.9",
        "ipaddr:203.0.113.0/24 ipport:443",
        "ipaddr:203.0.*",
        "ipaddr:[203.0.113.1 TO 203.0.113.10]",
        "ipaddr:\"2001:db8::1\"",
        "ipaddr:[2001:db8:: TO *]",
        "domain:cloud.example.com",
        "domain:*.EXAMPLE.com",
        "protocol:tcp direction:outbound state:closed",
        "destination.ip:203.0.113.9 source.ip:192.0.2.1",
        "bytes:30 bytes_sent:10",
        "start:[NOW-2DAYS TO NOW]",
        "start:[-2d TO *]",
        "start:-2d OR pid:4711",
        "-start:[NOW-10MINUTES TO NOW]",
        "activity:[NOW-10MINUTES TO NOW]",
        "activity:[NOW-4MINUTES TO NOW-3MINUTES]",
        "last_update:[NOW-3MINUTES TO NOW]",
        "-process.end:* process.start:*",
        "NOT process_name:putty.exe",
        "winscp",
        "203.0.113.0/24",
        "process_name:putty.exe OR (process_name:winscp* AND NOT username:admin)",
        "process_name:putty.exe OR ipport:22 -username:admin",
        "sha256:0000 OR guid OR process.entity_id:6f6f6f",
        "parent_pid:1",
        "exit_code:>-5 OR *",
    ] {
        assert!(fits(query), "{query}");
    }
    for query in [
        "process_name:winscp",
        "process_name:\"win*\"",
        "cmdline:\"a*\" cmdline:axb",
        "ipaddr:203.0.113.10",
        "ipaddr:[203.0.113.9 TO *] -ipaddr:[203.0.113.9 TO *]",
        "domain:*.cloud.example.com",
        "netconn_count:0",
        "activity:[NOW-1HOUR TO NOW-10MINUTES]",
        "exit_code:*",
        "process_name:putty.exe ipport:22",
        "-ipport:22",
        "process.parent.name:*",
        "user.name:doe",
    ] {
        assert!(!fits(query), "{query}");
    }
}

#[test]
fn the_query_of_the_story_runs_misses_and_is_told_what_to_ask() {
    let query =
        "sensor_id:abababab-abab-abab-abab-abababababab netconn_count:[1 TO *] start:[NOW-10MINUTES TO NOW]";
    assert!(!fits(query), "it was started before");
    let tree = processes(query).unwrap();
    let [warning] = &advice::warnings(&tree, Searched::Processes, NOW)[..] else { panic!("one warning") };
    assert!(warning.message.contains("start tests when the process was started"), "{warning:?}");
    let instead = warning.instead.as_deref().unwrap();
    assert_eq!(
        instead,
        "host.id:abababab-abab-abab-abab-abababababab AND network.connections:[1 TO *] AND \
         activity:[NOW-10MINUTES TO NOW]"
    );
    assert!(fits(instead));
    assert_eq!(warning.commands, [format!("alibi search '{instead}'")]);

    let with_remote = processes("ipaddr:203.0.113.9 start:[NOW-10MINUTES TO NOW]").unwrap();
    let commands = &advice::warnings(&with_remote, Searched::Processes, NOW)[0].commands;
    assert_eq!(commands[1], "alibi who 203.0.113.9 --from 1970-01-12T13:36:40Z --to 1970-01-12T13:46:40Z");

    for harmless in ["start:[NOW-10MINUTES TO NOW]", "netconn_count:[1 TO *]", "activity:NOW ipport:22", ""] {
        assert_eq!(
            advice::warnings(&processes(harmless).unwrap(), Searched::Processes, NOW),
            [],
            "{harmless}"
        );
    }
}

#[test]
fn what_is_wrong_is_told_with_the_way_out() {
    for (query, want) in [
        ("proces_name:x", "there is no field `proces_name`, did you mean process_name"),
        ("zzzzzzzzz:x", "there is no field `zzzzzzzzz`; `alibi search --fields` lists all"),
        ("a OR b c", "put brackets around what belongs together"),
        ("ipaddr:example.com", "`example.com` is nothing that remote.ip can be: write an address"),
        ("ipaddr:2001:db8::1", "values that have spaces or colons between quotes"),
        ("ipport:https", "`https` is nothing that remote.port can be: write a whole number"),
        ("start:yesterday", "write a time such as NOW-10MINUTES"),
        ("start:[NOW TO NOW-10MINUTES]", "is reversed or empty"),
        ("netconn_count:[5 TO 1]", "the range [5 TO 1] of network.connections is reversed or empty"),
        ("username:[a TO b]", "user.name has no ranges"),
        ("sha256:xyz", "from 4 to 64 hexadecimal digits"),
        ("ipaddr:[10.0.0.1 TO \u{3a}:1]", "goes from an address of IPv4 to one of IPv6"),
        ("(process_name:x", "a `(` in the query is not closed"),
        ("process_name:x)", "a `)` in the query closes nothing"),
        ("cmdline:\"x", "a `\"` in the query is not closed"),
        ("x\\", "the query ends in a backslash"),
        ("winscp^3", "a weight (`^`) means nothing here"),
        ("cmdline:\"a b\"~2", "a distance (`~`) means nothing here"),
        ("path:/usr/", "put a path that ends in / between quotes"),
        ("[1 TO 5]", "stands without a field"),
        ("cmdline:IN []", "the set of process.command_line has no values"),
        ("process_name:", "is not a query"),
        ("AND", "is not a query"),
        ("pid:99999999999999999999999999999999999999999", "is nothing that process.pid can be"),
        ("a\u{e000}", "U+E000"),
    ] {
        let said = processes(query).expect_err(query).to_string();
        assert!(said.contains(want), "{query}: {said}");
        assert!(said.starts_with(|c: char| !c.is_uppercase() || said.starts_with("OR")), "{said}");
    }
    let said = parse("netconn_count:1", Searched::Flows, NOW).unwrap_err().to_string();
    assert!(said.contains("ask `alibi search`"), "{said}");
}

fn random_value(kind: Kind, random: &mut fastrand::Rng) -> String {
    let one_of =
        |values: &[&str], random: &mut fastrand::Rng| values[random.usize(..values.len())].to_owned();
    match kind {
        Kind::Keyword | Kind::Text => one_of(
            &["*", "tcp", "udp", "?dp", "win*", "WinSCP.exe", "jdoe", "*.example.com", "out*", "\"a b\""],
            random,
        ),
        Kind::Identity => one_of(&["6f6f", "0101", "*"], random),
        Kind::Address => one_of(
            &[
                "203.0.113.9",
                "203.0.113.0/24",
                "0.0.0.0/0",
                "\"2001:db8::1\"",
                "*",
                "203.*",
                "[203.0.113.0 TO *]",
            ],
            random,
        ),
        Kind::Number => one_of(&["22", "443", "[0 TO 100]", ">22", "*", "1", "4711"], random),
        Kind::Time | Kind::Activity => {
            let (from, length) = (random.u64(0..2_000), random.u64(0..500));
            format!("[NOW-{}s TO NOW-{}s]", from + length, from)
        }
    }
}

fn random_query(depth: usize, random: &mut fastrand::Rng) -> String {
    let joined = |with: &str, random: &mut fastrand::Rng| {
        let count = random.usize(2..4);
        let parts: Vec<_> = (0..count).map(|_| random_query(depth - 1, random)).collect();
        format!("({})", parts.join(with))
    };
    match if depth == 0 { 3 } else { random.u8(..6) } {
        0 => joined(" AND ", random),
        1 => joined(" OR ", random),
        2 => format!("(NOT {})", random_query(depth - 1, random)),
        _ => {
            let about = &fields::FIELDS[random.usize(..fields::FIELDS.len())];
            format!("{}:{}", about.name, random_value(about.kind, random))
        }
    }
}

fn random_flow(random: &mut fastrand::Rng) -> FlowRecord {
    let remotes = ["203.0.113.9:22", "203.0.114.9:443", "[2001:db8::1]:443", "10.0.0.1:53"];
    let first = 998_000 + random.u64(0..2_000);
    let mut flow =
        flow(random.u8(1..4), remotes[random.usize(..remotes.len())], first, first + random.u64(0..300));
    flow.protocol = if random.bool() { Protocol::Tcp } else { Protocol::Udp };
    if random.bool() {
        (flow.state, flow.end_reason) = (FlowState::Established, FlowEndReason::ActiveTimeout);
    }
    flow
}

/// By a host's own clock, which is up to a minute beside the collector's.
fn random_clock(random: &mut fastrand::Rng) -> Difference {
    let some = |random: &mut fastrand::Rng| random.i64(-60..60) * 1_000_000_000;
    if random.bool() { Difference::ZERO } else { Difference::between(some(random), some(random)) }
}

/// Whether a record is looked at for all that the hints say, as the store reads them: by the host's clock, and by how long a
/// record stands for its connection.
fn admits(hints: &RecordHints, clock: Difference, flow: &FlowRecord) -> bool {
    let times = hints.times.is_none_or(|times| {
        let own = crate::search::document::by_host(times, clock);
        flow.first <= own.to && flow.last >= own.from.saturating_sub(alibi_proto::flow::RECORD_SPAN_MAX)
    });
    let remote = flow.remote.ip();
    times
        && hints
            .remotes
            .as_ref()
            .is_none_or(|remotes| remotes.iter().any(|network| network.contains(&remote)))
        && hints.port.is_none_or(|port| flow.remote.port() == port)
        && hints.protocol.is_none_or(|protocol| flow.protocol == protocol)
}

#[test]
fn a_hint_never_drops_what_the_tree_holds_of() {
    let mut random = fastrand::Rng::with_seed(11);
    let (mut held, mut dropped) = (0, 0);
    for _ in 0..60_000 {
        let text = random_query(random.usize(..4), &mut random);
        let clock = random_clock(&mut random);
        let mut life = life("WinSCP.exe", 998_000 + random.u64(0..2_000));
        life.exit = random.bool().then(|| ProcessExit {
            uid: life.record.uid,
            exited: Timestamp::from_secs(999_999),
            exit_code: Some(0),
        });
        // A record by itself.
        let record = random_flow(&mut random);
        if let Ok(tree) = parse(&text, Searched::Flows, NOW) {
            let connections = [Connection::of_record(record.clone())];
            let document =
                Document { searched: Searched::Flows, clock, ..document(Some(&life), &connections) };
            let holds = tree.holds(&document) == Truth::Yes;
            let admitted = admits(&RecordHints::of_records(&tree), clock, &record);
            assert!(admitted || !holds, "{text}\n{record:?}");
            held += u32::from(holds);
            dropped += u32::from(!admitted);
        }
        // A process with several.
        let records: Vec<_> = (0..random.usize(..4)).map(|_| random_flow(&mut random)).collect();
        let connections = Connection::of_records(records.clone());
        let document = Document { clock, ..document(Some(&life), &connections) };
        let tree = parse(&text, Searched::Processes, NOW).unwrap();
        let holds = tree.holds(&document) == Truth::Yes;
        let needed = RecordHints::of_some_connection(&tree);
        let admitted = needed.is_none_or(|hints| records.iter().any(|record| admits(&hints, clock, record)));
        assert!(admitted || !holds, "{text}\n{records:#?}");
        let started = hints::started(&tree).is_none_or(|started| {
            let own = crate::search::document::by_host(started, clock);
            own.from <= life.record.started && life.record.started <= own.to
        });
        assert!(started || !holds, "{text}");
        dropped += u32::from(!admitted) + u32::from(!started);
    }
    assert!(held > 5_000 && dropped > 5_000, "{held} held, {dropped} were passed over");
}

#[test]
fn what_was_not_looked_up_decides_nothing() {
    let mut random = fastrand::Rng::with_seed(12);
    let mut decided = 0;
    for _ in 0..20_000 {
        let text = random_query(random.usize(..4), &mut random);
        let tree = processes(&text).unwrap();
        let life = life("WinSCP.exe", 999_000);
        let connections = Connection::of_records(vec![random_flow(&mut random), random_flow(&mut random)]);
        let whole = document(Some(&life), &connections);
        for partly in [
            Document { connections: Seen::NotYet, ..whole },
            Document { process: Seen::NotYet, parent: Seen::NotYet, ..whole },
            Document { process: Seen::NotYet, parent: Seen::NotYet, connections: Seen::NotYet, ..whole },
        ] {
            let truth = tree.holds(&partly);
            assert!(truth == Truth::Perhaps || truth == tree.holds(&whole), "{text}");
            decided += u32::from(truth != Truth::Perhaps);
        }
    }
    assert!(decided > 5_000, "{decided}");
}

#[test]
fn a_tree_that_is_written_is_read_again_as_it_was() {
    let mut random = fastrand::Rng::with_seed(13);
    let mut check = |text: &str| {
        let tree = processes(text).unwrap();
        let written = tree.to_string();
        let again = processes(&written).unwrap_or_else(|error| panic!("{text} became {written}: {error}"));
        assert_eq!(again.to_string(), written, "{text}");
        let life = life("WinSCP.exe", 999_000);
        let connections = [Connection::of_record(random_flow(&mut random))];
        let document = document(Some(&life), &connections);
        assert_eq!(tree.holds(&document), again.holds(&document), "{text} became {written}");
    };
    for text in [
        "",
        "a b",
        "/",
        "/usr/*",
        "(/usr/bin/a* OR \"/tmp/\")",
        "-a",
        "cmdline:\"a \\\" b\"",
        "path:C\\:\\\\x*",
        "cmdline:a\\*b*",
        "cmdline:\"AND\"",
        "a\\ b*",
        "cmdline:\"a b\"*",
        "path:\"/usr/\"",
        "pid:IN [1 2]",
        "start:-10m",
        "-(a b)",
        "NOT NOT a",
    ] {
        check(text);
    }
    let mut random = fastrand::Rng::with_seed(14);
    for _ in 0..5_000 {
        check(&random_query(random.usize(..4), &mut random));
    }
}

#[test]
fn every_field_has_an_example_that_is_a_query() {
    for about in fields::FIELDS {
        let tree = processes(about.example).unwrap_or_else(|error| panic!("{}: {error}", about.example));
        assert!(tree.mentions(&|mentioned| mentioned.field == about.field), "{}", about.example);
        assert!(about.subject != Subject::Host || about.kind == Kind::Keyword, "{}", about.name);
    }
}

#[test]
fn a_process_is_found_by_all_that_it_ran() {
    let mut life = life("sh", 999_000);
    let image =
        ProcessImage { name: "curl".into(), path: Some("/usr/bin/curl".into()), ..ProcessImage::default() };
    let (uid, executed) = (life.record.uid, Timestamp::from_secs(999_001));
    life.executions.push(ProcessExecution { uid, executed, image });
    for query in
        ["process_name:sh", "process_name:curl", "path:/usr/bin/*", "last_update:[NOW-999s TO NOW-999s]"]
    {
        let tree = processes(query).unwrap();
        assert_eq!(tree.holds(&document(Some(&life), &[])), Truth::Yes, "{query}");
    }
}

#[test]
fn a_connection_lives_until_its_next_record_and_no_longer_than_its_last_stands_for() {
    let open = |record: FlowRecord| FlowRecord {
        state: FlowState::Established,
        end_reason: FlowEndReason::ActiveTimeout,
        ..record
    };
    let remote = "203.0.113.9:22";
    let check = |records: &[FlowRecord], query: &str| {
        let connections = Connection::of_records(records.to_vec());
        let tree = processes(query).unwrap();
        tree.holds(&document(None, &connections)) == Truth::Yes
    };
    let from_to =
        |from: u64, to: u64| format!("activity:[NOW-{}s TO NOW-{}s]", 1_000_000 - from, 1_000_000 - to);
    // Open after a second, and closed after two.
    let closed = [open(flow(1, remote, 990_000, 990_001)), flow(1, remote, 990_001, 990_002)];
    assert!(check(&closed, &from_to(990_002, 990_002)) && !check(&closed, &from_to(990_003, 990_500)));
    // Open, and not told of since.
    let idle = [open(flow(1, remote, 990_000, 990_001))];
    assert!(check(&idle, &from_to(990_500, 990_600)) && !check(&idle, &from_to(990_902, 999_000)));
    // Told of again after a hole.
    let torn = [open(flow(1, remote, 990_000, 990_001)), flow(1, remote, 995_000, 995_001)];
    assert!(check(&torn, &from_to(990_900, 990_950)) && check(&torn, &from_to(994_000, 995_000)));
    assert!(!check(&torn, &from_to(992_000, 994_000)) && !check(&torn, &from_to(995_002, 999_000)));
}
