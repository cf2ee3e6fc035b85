//! What the programs refuse: in one line that names the thing, the limit and the way out, with exit status 2, and with
//! nothing changed on disk. Here what they are told to do; see the modules for full disks and hostile peers.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::HashMap,
    fs,
    net::TcpListener,
    os::unix::{fs::PermissionsExt as _, net::UnixListener, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use alibi_lab::{
    disk::Listing,
    live::{TARGET, report},
    programs::programs,
    requirements::{Requirement, met},
    system::{Agent, Collector, nobodys_token, outcome},
};
use serde_json::Value;

#[path = "refusals/disks.rs"]
mod disks;

/// A user without rights.
const NOBODY: u32 = 65534;

fn alibi(words: &[&str]) -> Command {
    let mut command = Command::new(&programs().alibi);
    command.args(words);
    command
}

fn agent(words: &[&str]) -> Command {
    let mut command = Command::new(&programs().agent);
    command.args(words);
    command
}

fn serve(data: &Path) -> Command {
    let mut command = alibi(&["serve", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data);
    command
}

fn run(data: &Path) -> Command {
    let mut command = agent(&["run", "--source", "poll", "--listen", "127.0.0.1:0", "--data"]);
    command.arg(data);
    command
}

fn query(data: &Path) -> Command {
    let mut command = agent(&["query", TARGET, "--last", "10m", "--data"]);
    command.arg(data);
    command
}

/// Runs a program that must refuse: in one line with all of `wanted` in it, and with `directory` left as it was.
fn refused(mut command: Command, directory: &Path, wanted: &[&str]) {
    let before = Listing::of(directory);
    let output = outcome(&mut command);
    let changed = before.differences(&Listing::of(directory));
    assert_eq!(changed, Vec::<PathBuf>::new(), "{command:?} changed something on disk");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{command:?}: {error}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{command:?}");
    let name = Path::new(command.get_program()).file_name().unwrap().to_str().unwrap();
    let message = error.strip_prefix(&format!("{name}: ")).unwrap_or_else(|| panic!("{command:?}: {error}"));
    assert_eq!(message.lines().count(), 1, "{command:?}: not one line: {error}");
    for wanted in wanted {
        assert!(message.contains(wanted), "{command:?}: no `{wanted}` in: {error}");
    }
}

/// Asks both programs what neither can answer.
fn refused_question(words: &[&str], wanted: &[&str]) {
    let directory = tempfile::tempdir().unwrap();
    let mut who = alibi(&["who"]);
    who.args(words).args(["--collector", "127.0.0.1:1"]);
    refused(who, directory.path(), wanted);
    let mut query = agent(&["query"]);
    query.args(words).arg("--data").arg(directory.path().join("data"));
    refused(query, directory.path(), wanted);
}

#[test]
fn a_window_that_is_none_is_refused() {
    const READABLE: &str = "write RFC 3339";
    const LENGTH: &str = "10m";
    for (words, wanted) in [
        (
            &["--from", "2026-01-02T00:00:00Z", "--to", "2026-01-01T00:00:00Z"][..],
            &["reversed", "2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "--from"][..],
        ),
        (
            &["--from", "2026-01-02T00:00:00Z", "--to", "2026-01-02T00:00:00Z"],
            &["empty", "2026-01-02T00:00:00Z", "--from"],
        ),
        (&["--from", "now"], &["empty", "--from"]),
        (&["--from", "2200-01-01T00:00:00Z"], &["reversed", "2200-01-01T00:00:00Z", "--from"]),
        (
            &["--from", "2200-01-01T00:00:00Z", "--to", "2201-01-01T00:00:00Z"],
            &["future", "2200-01-01T00:00:00Z", "now is", "--from"],
        ),
        (&[], &["no window", "--last 10m", "--from T"]),
        (&["--to", "now"], &["no window", "--last 10m", "--from T"]),
        (&["--last", "10m", "--from", "-5m"], &["two windows", "--last", "--from"]),
        (&["--last", "10m", "--to", "now"], &["two windows", "--last", "--to"]),
        (&["--last", "10"], &["`10`", LENGTH]),
        (&["--last", ""], &["``", LENGTH]),
        (&["--last", "0m"], &["`0m`", "positive", LENGTH]),
        (&["--last", "-5m"], &["`-5m`", "positive", LENGTH]),
        (&["--last", "99999d"], &["`99999d`", "ten years at most", LENGTH]),
        (&["--last", "banana"], &["`banana`", LENGTH]),
        (&["--from", "yesterday"], &["`yesterday`", READABLE]),
        (&["--from", ""], &["``", READABLE]),
        (&["--from", "1960-01-01T00:00:00Z"], &["`1960-01-01T00:00:00Z`", READABLE]),
        (&["--from", "-10m", "--to", "25:00"], &["`25:00`", READABLE]),
        (&["--from", "-10m", "--to", "2026-01-01"], &["`2026-01-01`", READABLE]),
    ] {
        refused_question(&[&[TARGET][..], words].concat(), wanted);
    }
}

#[test]
fn a_target_that_is_none_is_refused() {
    const EXAMPLE: &str = "203.0.113.7:443";
    const PORTS: &str = "1 to 65535";
    for (words, wanted) in [
        (&["banana"][..], &["`banana`", EXAMPLE][..]),
        (&["cloud..example.com"], &["`cloud..example.com`", "DNS name"]),
        (&["bücher.example"], &["`bücher.example`", "xn--"]),
        (&["cloud.example.com:99999"], &["`cloud.example.com:99999`", PORTS]),
        (&["cloud.example.com", "--address", "banana"], &["`banana`", EXAMPLE]),
        (&[TARGET, "--address", "203.0.113.8"], &["with a name only"]),
        (&[""], &["``", EXAMPLE]),
        (&["203.0.113.0/33"], &["`203.0.113.0/33`", "32"]),
        (&["2001:db8::/129"], &["`2001:db8::/129`", "128"]),
        (&["203.0.113.7/x"], &["`203.0.113.7/x`", EXAMPLE]),
        (&["203.0.113.7:99999"], &["`203.0.113.7:99999`", PORTS]),
        (&["[2001:db8::1]:99999"], &["`[2001:db8::1]:99999`", PORTS]),
        (&["203.0.113.7:0"], &["port 0", PORTS]),
        (&[TARGET, "--port", "0"], &["--port", "'0'", "1..=65535"]),
        (&[TARGET, "--port", "99999"], &["--port", "'99999'", "1..=65535"]),
        (&[TARGET, "--port", "https"], &["--port", "'https'"]),
        (&["203.0.113.7:80", "--port", "443"], &["two ports", "80", "443", "give one"]),
        (&[TARGET, "--protocol", "icmp"], &["--protocol", "icmp", "write tcp or udp"]),
    ] {
        refused_question(&[words, &["--last", "10m"]].concat(), wanted);
    }
}

#[test]
fn an_address_that_is_none_or_that_others_reach_too_early_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    let data = data.to_str().unwrap();
    const WAY_OUT: &str = "127.0.0.1:8440";
    for address in ["0.0.0.0:0", "[::]:0"] {
        let wanted = ["--listen", "not enrolled", "alibi-agent enroll", "loopback"];
        refused(agent(&["run", "--data", data, "--listen", address]), directory.path(), &wanted);
    }
    for address in ["banana", "127.0.0.1", "127.0.0.1:99999", "unix:relative"] {
        refused(alibi(&["host", "add", address]), directory.path(), &[address, WAY_OUT]);
        refused(agent(&["run", "--data", data, "--listen", address]), directory.path(), &[address, WAY_OUT]);
    }
}

#[test]
fn an_option_that_makes_no_sense_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("deep/data");
    let data = data.to_str().unwrap();
    let too_many = (0..33).map(|at| format!("--pin{at}")).collect::<Vec<_>>().join(",");
    for (words, wanted) in [
        (&["--ring-bytes", "1"][..], &["ring", "1 bytes", "--ring-bytes"][..]),
        (&["--ring-bytes", "many"], &["--ring-bytes", "many"]),
        (&["--period", "0s"], &["--period", "`0s`", "10m"]),
        (&["--sync-interval", "61s"], &["--sync-interval", "`61s`", "at most 60 s"]),
        (&["--sync-interval", "soon"], &["--sync-interval", "`soon`", "10m"]),
        (&["--source", "magic"], &["`magic`", "poll or replay:FILE"]),
        (&["--redact", "-k"], &["--redact", "`-k`", "`corptool -k`"]),
        (&["--redact", "PIN=1"], &["--redact", "`PIN` has a value", "`CORP_PIN=`"]),
        (&["--redact", &too_many], &["--redact", "33 rules", "at most 32"]),
        (&["--source", "replay:/nonexistent/file"], &["/nonexistent/file"]),
    ] {
        let mut command = agent(&["run", "--listen", "127.0.0.1:0", "--data", data]);
        command.args(words);
        refused(command, directory.path(), wanted);
    }
    let command = alibi(&["serve", "--listen", "127.0.0.1:0", "--data", data, "--retention", "0d"]);
    refused(command, directory.path(), &["--retention", "`0d`", "10m"]);
}

#[test]
fn without_a_collector_every_question_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = free.local_addr().unwrap().to_string();
    drop(free);
    let socket = format!("unix:{}", directory.path().join("none.sock").display());
    for address in [&nobody, &socket] {
        for words in [
            &["hosts"][..],
            &["who", TARGET, "--last", "10m"],
            &["process", "0123abcd"],
            &["host", "add", "127.0.0.1:8441"],
            &["host", "remove", "127.0.0.1:8441"],
        ] {
            let mut command = alibi(words);
            command.args(["--collector", address]).env("ALIBI_TOKEN", nobodys_token(&nobody));
            refused(command, directory.path(), &["no collector", address, "alibi serve", "--collector"]);
        }
    }
    // Whoever is nobody there need not be dialled.
    let credentials = directory.path().join("credentials.json");
    let mut command = alibi(&["hosts", "--collector", &nobody]);
    command.env("ALIBI_CREDENTIALS", &credentials).env_remove("ALIBI_TOKEN");
    let wanted = ["not logged in", &nobody, credentials.to_str().unwrap(), "alibi login", "ALIBI_TOKEN"];
    refused(command, directory.path(), &wanted);
}

/// As many processes, each with a connection to the target that has ended, as a recording.
fn recording(processes: u32) -> String {
    const IN_A_REPORT: usize = 100;
    let pids: Vec<_> = (1..=processes).collect();
    pids.chunks(IN_A_REPORT).map(|pids| report(pids.iter().copied())).collect()
}

#[test]
fn what_the_collector_does_not_know_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    // Two uids begin with the same four digits: those of two processes with the same low half of the pid.
    let processes = 3;
    fs::write(path("recording"), recording(2) + &report([0x1_0001].into_iter())).unwrap();
    let source = format!("replay:{}", path("recording").display());
    let collector = Collector::start(&path("collector"));
    let agent = Agent::start(&path("agent"), &["--source", &source]);
    collector.follow(&agent.address);

    let found = |answer: &Value| answer["hosts"][0]["processes"].as_array().unwrap().clone();
    let answer = collector
        .json_until(&["who", TARGET, "--last", "10m"], |answer| found(answer).len() == processes as usize);
    let uids: Vec<_> =
        found(&answer).iter().map(|process| process["process"].as_str().unwrap().to_owned()).collect();
    let mut by_prefix: HashMap<&str, u32> = HashMap::new();
    uids.iter().for_each(|uid| *by_prefix.entry(&uid[..4]).or_default() += 1);
    let (ambiguous, _) = by_prefix.iter().find(|(_, count)| **count > 1).unwrap();
    let unknown = (0..).map(|n| format!("{n:032x}")).find(|uid| !uids.contains(uid)).unwrap();

    let hosts = || collector.json(&["hosts"]).1["hosts"].as_array().unwrap().len();
    let nowhere = tempfile::tempdir().unwrap();
    let listed = "`alibi hosts` lists";
    for (words, wanted) in [
        (&["hosts", "--host", "nobody"][..], &["`nobody`", listed][..]),
        (&["who", TARGET, "--last", "10m", "--host", "nobody"], &["`nobody`", listed]),
        (&["hosts", "--user", "nobody-here"], &["`nobody-here`", listed]),
        (&["who", TARGET, "--last", "10m", "--user", "nobody-here"], &["`nobody-here`", listed]),
        (&["process", &unknown], &[unknown.as_str(), "alibi who"]),
        (&["process", ambiguous], &[ambiguous, "more than one", "write more"]),
        (&["process", "abc"], &["`abc`", "32", "first 4"]),
        (&["process", ""], &["``", "32", "first 4"]),
        (&["process", "wxyz"], &["`wxyz`", "hexadecimal"]),
        (&["process", &format!("{unknown}0")], &["32"]),
        (&["host", "add", &agent.address], &[agent.address.as_str(), "already", listed]),
        (
            &["host", "add", &format!("http://{}/", agent.address)],
            &[agent.address.as_str(), "already", listed],
        ),
        (&["host", "remove", "127.0.0.1:1"], &["127.0.0.1:1", listed]),
    ] {
        refused(collector.command(words), nowhere.path(), wanted);
        assert_eq!(hosts(), 1, "{words:?}");
    }

    // What serves there is no collector, and the other way round.
    let command = collector.command(&["hosts", "--collector", &agent.address]);
    refused(command, nowhere.path(), &[&agent.address, "no collector", "does not speak TLS", "--collector"]);
    collector.follow(&collector.address);
    collector.running.line_with(&format!("not connected place=\"{}\"", collector.address), 0);
}

/// Data directories that both programs made and left: of the agent, of the collector.
fn made(directory: &Path) -> [PathBuf; 2] {
    let [agent, collector] = ["agent", "collector"].map(|name| directory.join(name));
    assert!(Agent::start(&agent, &["--source", "poll"]).running.stop().success());
    assert!(Collector::start(&collector).running.stop().success());
    [agent, collector]
}

#[test]
fn a_data_directory_that_is_not_the_programs_own_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let [of_agent, of_collector] = made(directory.path());
    let choose = "choose another with --data";

    fs::write(path("file"), "a file").unwrap();
    fs::create_dir(path("foreign")).unwrap();
    fs::write(path("foreign/diary.txt"), "dear diary").unwrap();
    for data in [path("file"), path("file/below"), path("foreign")] {
        let name = data.display().to_string();
        for command in [serve(&data), run(&data), query(&data)] {
            refused(command, directory.path(), &[&name, choose]);
        }
    }
    let name = of_collector.display().to_string();
    refused(run(&of_collector), directory.path(), &[&name, "data of alibi:", choose]);
    refused(query(&of_collector), directory.path(), &[&name, "data of alibi:", choose]);
    let name = of_agent.display().to_string();
    refused(serve(&of_agent), directory.path(), &[&name, "data of alibi-agent", choose]);

    fs::create_dir(path("empty")).unwrap();
    for data in [path("empty"), path("none")] {
        refused(
            query(&data),
            directory.path(),
            &[&data.display().to_string(), "nothing has been recorded", "--data"],
        );
    }

    for (data, program) in [(&of_agent, "alibi-agent"), (&of_collector, "alibi")] {
        let marker = data.join("alibi.json");
        let command = || if program == "alibi" { serve(data) } else { run(data) };
        let name = data.display().to_string();
        fs::write(&marker, format!(r#"{{"program":"{program}","format":999}}"#)).unwrap();
        refused(command(), directory.path(), &[&name, "newer version", "999", "1", "upgrade", choose]);
        // A newer version may say more in it.
        fs::write(&marker, format!(r#"{{"program":"{program}","format":999,"more":["words"]}}"#)).unwrap();
        refused(command(), directory.path(), &[&name, "newer version", "999", "1", "upgrade", choose]);
        fs::write(&marker, "{").unwrap();
        refused(command(), directory.path(), &[&name, choose]);
    }
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_owner_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = tempfile::tempdir().unwrap();
    let [of_agent, of_collector] = ["agent", "collector"].map(|name| directory.path().join(name));
    let agent = Agent::start(&of_agent, &["--source", "poll"]);
    let collector = Collector::start(&of_collector);
    for (command, data) in [(run(&of_agent), &of_agent), (serve(&of_collector), &of_collector)] {
        let name = data.display().to_string();
        refused(command, nowhere.path(), &[&name, "in use", "stop", "choose another with --data"]);
    }
    collector.follow(&agent.address);
    collector.json_until(&["who", TARGET, "--last", "1s"], |answer| answer["hosts"][0]["host"].is_string());
    let output = outcome(&mut query(&of_agent));
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_data_directory_that_may_not_be_read_or_written_is_refused() {
    if !met("an unreadable data directory", &[Requirement::Root]) {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(directory.path(), 0o755);
    let [of_agent, of_collector] = made(directory.path());
    let new = directory.path().join("new");
    let cases =
        [(&of_agent, 0o700), (&of_agent, 0o755), (&of_collector, 0o700), (&of_collector, 0o755), (&new, 0)];
    for (data, permissions) in cases {
        if permissions > 0 {
            mode(data, permissions);
        }
        let name = data.display().to_string();
        for mut command in [serve(data), run(data)] {
            command.uid(NOBODY).gid(NOBODY);
            refused(command, directory.path(), &[&name, "--data"]);
        }
    }
    mode(&of_agent, 0o700);
    let mut command = query(&of_agent);
    command.uid(NOBODY).gid(NOBODY);
    refused(command, directory.path(), &[&of_agent.display().to_string(), "ermission denied", "--data"]);
}

#[test]
fn a_ring_with_foreign_or_newer_files_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = &made(directory.path())[0];
    let ring = data.join("ring");
    let check = |file: &Path, wanted: &[&str]| {
        let name = file.display().to_string();
        for command in [run(data), query(data)] {
            refused(command, directory.path(), &[&[name.as_str()], wanted].concat());
        }
    };

    let foreign = ring.join("diary.txt");
    fs::write(&foreign, "dear diary").unwrap();
    check(&foreign, &["does not belong to the ring", "move it"]);
    fs::remove_file(&foreign).unwrap();

    let files: Vec<_> = fs::read_dir(&ring).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 2, "a segment and a checkpoint: {files:?}");
    for file in files {
        let bytes = fs::read(&file).unwrap();
        let mut newer = bytes.clone();
        newer[8..10].copy_from_slice(&999_u16.to_le_bytes());
        fs::write(&file, newer).unwrap();
        check(&file, &["newer version", "999", &bytes[8].to_string(), "upgrade"]);
        let mut other = bytes.clone();
        // The checkpoint has two places, of which one may be empty.
        other.chunks_mut(4096).for_each(|slot| slot[..8].copy_from_slice(b"FOREIGN!"));
        fs::write(&file, other).unwrap();
        check(&file, &["does not belong to the ring", "move it"]);
        fs::write(&file, bytes).unwrap();
    }

    let identity = data.join("host.json");
    fs::write(&identity, "{").unwrap();
    check(&identity, &["identity", "restore it", "move it"]);
}

#[test]
fn a_database_that_is_foreign_or_newer_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let data = &made(directory.path())[1];
    let database = data.join("alibi.db");
    let name = database.display().to_string();
    let check =
        |wanted: &[&str]| refused(serve(data), directory.path(), &[&[name.as_str()], wanted].concat());
    let own = fs::read(&database).unwrap();

    let pragma = |name: &str, value: i32| {
        let connection = rusqlite::Connection::open(&database).unwrap();
        connection.pragma_update(None, name, value).unwrap();
    };
    pragma("user_version", 999);
    check(&["newer version", "999", "upgrade"]);
    fs::write(&database, &own).unwrap();
    pragma("application_id", 7);
    check(&["another program", "move it"]);
    for text in ["dear diary".to_owned(), "dear diary\n".repeat(1000)] {
        fs::write(&database, text).unwrap();
        check(&["not a SQLite database", "move it"]);
    }
    fs::remove_file(&database).unwrap();
    fs::create_dir(&database).unwrap();
    check(&[]);
}

#[test]
fn a_port_in_use_is_refused_and_nothing_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().to_string();
    let path = directory.path().join("taken.sock");
    let _taken = UnixListener::bind(&path).unwrap();
    let socket = format!("unix:{}", path.display());
    let data = directory.path().join("data");
    for address in [&port, &socket] {
        for mut command in [alibi(&["serve"]), agent(&["run"])] {
            command.args(["--listen", address, "--data"]).arg(&data);
            refused(command, directory.path(), &[address, "in use", "choose another with --listen"]);
        }
    }
}

/// As in `alibi hosts | head -n 0`.
#[test]
fn a_reader_that_has_had_enough_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let collector = Collector::start(&directory.path().join("collector"));
    for words in [&["hosts"][..], &["hosts", "--json"], &["audit"], &["token", "list"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = collector.command(words).stdout(writer).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.as_str()), (Some(0), ""), "{words:?}");
    }
    // Any other trouble is told, and is no answer.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = collector.command(&["hosts"]).stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("No space left"), "{said}");
}
